"""Runs into a folder: settings, prompt pairs that come in, results that stay whatever happens to the process.

`pycotmech.runs.experiment` is the main job, `pycotmech.runs.attention` the attention of one text; `pycotmech.paper` runs the
analyses of the paper on the same ground. `pycotmech.runs.report` shows what a folder holds.

`run` is the main job, on one process or many (`pycotmech.runs.workers`); `merge` puts folders of parts together, and
`estimate_run` predicts what a run needs.

Tests: `tests/cli/test_attention.py` for `attention`; `test_store.py` for `progress`, `variables`; `test_results.py` for
`export`, `results_base`; `test_experiment.py` for `work`; `test_head_views.py` for `views_of_run`;
`tests/paper/test_entries.py` for `speed`, `test_runner.py` beside it for `show`; the others have tests of their own names.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pycotmech import _lazy
from pycotmech.runs.folder import open_folder
from pycotmech.runs.pairs import PromptPair, read_pairs
from pycotmech.runs.progress import ProgressReporter
from pycotmech.runs.settings import Points, Settings
from pycotmech.runs.store import ResultAxes, SweepState, SweepStore, read

if TYPE_CHECKING:
    from pycotmech.runs.estimate import Estimate as Estimate
    from pycotmech.runs.estimate import estimate_run as estimate_run
    from pycotmech.runs.experiment import RunOutcome as RunOutcome
    from pycotmech.runs.experiment import run as run
    from pycotmech.runs.merge import MergeOutcome as MergeOutcome

_LATER = {
    "Estimate": ".estimate",
    "MergeOutcome": ".merge",
    "RunOutcome": ".experiment",
    "estimate_run": ".estimate",
    "run": ".experiment",
}
"""Names whose modules load PyTorch."""

__all__ = [
    "Points",
    "ProgressReporter",
    "PromptPair",
    "ResultAxes",
    "Settings",
    "SweepState",
    "SweepStore",
    "open_folder",
    "read",
    "read_pairs",
    *_LATER,
]


def __getattr__(name: str) -> Any:
    return _lazy.attribute(__name__, name, _LATER)
