"""The shell: one file per command.

Tests: `test_run.py` for `bars`, `options`; `test_app.py` for `paper`; the others have tests of their own names.
"""

from pycotmech.cli.app import main

__all__ = ["main"]
