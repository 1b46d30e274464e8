"""The parts of pictures: frames, heat maps, bars, curves, words. Every function takes arrays and labels, and nothing here
imports any other part of the package.

Tests: `test_heatmap.py` for `frame`; `tests/cot/analyses/test_answer_sources.py` for `bars`; `test_functional_rift.py` for
`curves`; `tests/runs/report/test_aggregate.py` for `words`; the others have tests of their own names.
"""
