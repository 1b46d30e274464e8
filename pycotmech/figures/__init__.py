"""The parts of pictures: frames, heat maps, bars, curves, words. Every function takes arrays and labels, and nothing here
imports any other part of the package.

Tests: `test_frame.py` for `bars` and `curves`; `tests/test_absent_packages.py` for `library`;
`tests/runs/report/test_aggregate.py` for `words`; the others have tests of their own names.
"""
