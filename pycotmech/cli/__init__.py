"""The shell: one file per command.

Tests: `test_run.py` for `options`; `test_app.py` for `paper`; `test_doctor.py` for `checks`, `machine`; `test_json.py` for
`output`; the others have tests of their own names.
"""

from pycotmech.cli.app import main

__all__ = ["main"]
