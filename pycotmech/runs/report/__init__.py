"""What a person gets to see: tables, sentences and figures from results."""

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
