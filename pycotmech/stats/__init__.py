"""Intervals and tests over few examples."""
