"""Measuring answers: intervals, accuracy against cost, plots."""
