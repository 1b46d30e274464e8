"""Intervals, tests, averages and random draws over few examples.

Tests: `test_draws.py` for `averages`; the others have tests of their own names.
"""
