"""Runs the claims of the paper where there is nothing to find, and where something was planted.

`python -m benchmarks.validity` (or `make nulls`) runs every claim on random-weight models and on models whose circuits were
written by hand, and the simulations of intervals and tests (`coverage.py`, `levels.py`). It fails, and names the claim, if

* a claim is borne out on more random models than a test of level 5 % would let pass,
* a claim has no data on a random model, so that its null says nothing,
* a claim is not borne out on the model in which it was planted,
* a planted circuit is not recovered, or an interval or test does not hold its level.

`python -m benchmarks.validity --page` writes docs/validity.md from the stored results.

Tests: tests/benchmarks/validity.
"""
