"""Intervals and tests over few examples.

Tests: `tests/cot/analyses/test_functional_rift.py` for `change`; `test_keep_only.py` for `draws`;
`tests/cot/tools/test_select_heads.py` for `histogram`, `significance`; `test_bootstrap.py` for `averages`; the others have
tests of their own names.
"""
