"""Writes the page of a results folder."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

from pycotmech.files.write import write_text
from pycotmech.report.page import Page, render

if TYPE_CHECKING:
    from pycotmech.runs.results_base import Results

FILE = "report.html"
"""The name of the page in a results folder."""


def page_of(results: Results | str | os.PathLike) -> Page:
    """Returns the page of a results folder, finished or not. results: a folder, or what `pycotmech.open_results` gave.

    Raises FileNotFoundError where there are no results, ValueError where they cannot be read. What is damaged or not stored
    is left out, and the page says so. Cost: all values are read; intervals and verdicts are computed from them, seconds for
    the paper's analyses. The model is not loaded.
    """
    from pycotmech.runs.results import AttentionResults, PaperResults, SweepResults
    from pycotmech.runs.trace_results import TraceResults

    opened = _opened(results)
    if isinstance(opened, SweepResults):
        from pycotmech.report.run import run_page

        return run_page(opened)
    if isinstance(opened, PaperResults):
        from pycotmech.report.paper import paper_page

        return paper_page(opened)
    if isinstance(opened, TraceResults):
        from pycotmech.report.trace import trace_page

        return trace_page(opened)
    if isinstance(opened, AttentionResults):
        from pycotmech.report.attention import attention_page

        return attention_page(opened)
    raise TypeError(f"results: got {type(results).__name__}; expected a folder, or what pycotmech.open_results gives")


def write_report(results: Results | str | os.PathLike, path: str | os.PathLike | None = None) -> Path:
    """Writes the page of a results folder as one HTML file, and returns its path. See `page_of`.

    path: the file; None: report.html in the folder. What is there is replaced and never followed.
    """
    if path is not None and not Path(path).expanduser().absolute().parent.is_dir():
        raise FileNotFoundError(f"path: there is no folder {Path(path).expanduser().absolute().parent}")
    opened = _opened(results)
    page = page_of(opened)
    to = opened.folder / FILE if path is None else Path(path).expanduser()
    write_text(to, render(page))
    return to


def _opened(results: Results | str | os.PathLike) -> Results:
    from pycotmech.runs.results import open_results

    return open_results(results) if isinstance(results, str | os.PathLike) else results
