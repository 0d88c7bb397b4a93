"""Prices, usage records, the ledger and its reports.

``money`` and ``prices`` are pure; ``ledger`` writes; ``accountant`` is what drivers use; ``report`` reads. Nothing is
imported here, so that a module which only needs a price does not load a database.
"""
