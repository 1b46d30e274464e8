"""What a person gets to see: tables, sentences and figures from results."""

from pycotmech.report.aggregate import by_step, top_heads
from pycotmech.report.findings import findings
from pycotmech.report.folder import build_report
from pycotmech.report.heatmap import overview_figure, step_figure, sweep_figure

__all__ = [
    "build_report",
    "by_step",
    "findings",
    "overview_figure",
    "step_figure",
    "sweep_figure",
    "top_heads",
]
