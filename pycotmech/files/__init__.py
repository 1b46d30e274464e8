"""Files that others may have written: text made safe to show (text), files replaced at once (write), arrays with checksums
(arrays, chunks), datasets as long tables (long_table), and tables, figures and JSON files that are checked (whole). Nothing is
imported here, since the shell's help needs `text` only and `arrays` brings xarray.

Tests: `tests/runs/test_results.py` for `long_table`; the others have tests of their own names.
"""
