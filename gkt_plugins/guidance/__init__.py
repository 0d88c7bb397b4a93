"""GKT: a teacher writes the beginning of an answer, a student finishes it; text crosses between them.

``machine`` is the seam, without I/O; ``request`` and ``batch`` drive it; ``pipeline`` is both, made from a
configuration. Nothing is imported here, so that a module which only needs a policy loads no driver.
"""
