"""The exact sweep: the climb of variants, how they join, edits of rows on their way, evaluation, plan and replay.

README.md in this folder says what a variant is and which file does what. Tests: `tests/engine/test_staircase.py` for `rows`
and `staircase`, `tests/patching/test_sites.py` and `test_sweep.py` for `row_edits` and `joins`, `test_paths.py` for `senders`,
`test_heads.py` and `test_field_mistakes.py` for `evaluate` and `budget`, `test_noise_floor.py` for `jitter`,
`tests/model/test_split.py` for `travel`, `test_graphs.py` for `recording`; the other modules have tests of their own names.
"""
