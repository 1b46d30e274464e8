"""Runs into a folder: settings, prompt pairs that come in, results that stay whatever happens to the process.

`pycotmech.runs.experiment` is the main job, `pycotmech.runs.attention` the attention of one text; `pycotmech.paper` runs the
analyses of the paper on the same ground. `pycotmech.runs.report` shows what a folder holds.

Tests: `tests/cli/test_attention.py` for `attention`; `test_store.py` for `progress`, `variables`; `test_results.py` for
`export`; `test_experiment.py` for `work`; the
others have tests of their own names.
"""

from pycotmech.runs.folder import open_folder
from pycotmech.runs.pairs import PromptPair, read_pairs
from pycotmech.runs.progress import ProgressReporter
from pycotmech.runs.settings import Settings
from pycotmech.runs.store import ResultAxes, SweepState, SweepStore, read

__all__ = [
    "ProgressReporter",
    "PromptPair",
    "ResultAxes",
    "Settings",
    "SweepState",
    "SweepStore",
    "open_folder",
    "read",
    "read_pairs",
]
