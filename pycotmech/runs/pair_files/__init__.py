"""Readers of prompt pairs: one file for each format, and the choice among them (choose). All yield `Record`s, and none of them
runs or unpickles anything.

Tests: `tests/runs/pair_files/test_choose.py` for `choose`, `record`; `test_table_files.py` for `csv_file`, `parquet_file`,
`datasets_folder`, `arrow`; `tests/runs/test_pairs.py` for `jsonl_file`, `text`.
"""
