"""Tiny trained models and word problems with which everything can be shown on a CPU, offline.

Importing this package loads no torch; :mod:`gkt_plugins.demo.train` does.
"""
