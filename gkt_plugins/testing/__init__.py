"""For plugin authors and for our own tests: fakes, and ways to try a plugin before it is installed.

Public, and covered by the same promises as the rest: :mod:`gkt_plugins.testing.plugins` loads plugin modules that no
distribution provides yet. Each module is imported by itself, so that none brings in what another one needs.
"""
