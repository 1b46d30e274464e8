"""What a person gets to see: tables, sentences and figures from results.

Tests: `tests/figures/test_heatmap.py` for `figures`; `test_aggregate.py` for `findings`, `table`; the others have tests of
their own names.
"""

from pycotmech.runs.report.aggregate import by_step, top_heads
from pycotmech.runs.report.figures import overview_figure, step_figure
from pycotmech.runs.report.findings import findings
from pycotmech.runs.report.folder import build_report

__all__ = [
    "build_report",
    "by_step",
    "findings",
    "overview_figure",
    "step_figure",
    "top_heads",
]
