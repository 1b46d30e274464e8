"""The report of a results folder as one HTML file: for someone who opens it first, without the package or a network.

`write_report` takes a folder or what `pycotmech.open_results` gives, and reads nothing else: what is not stored is not
computed, and the page says so. One file for each kind of folder (`run`, `paper`, `trace`, `attention`) says what its page
holds; `charts` makes the values that report.js draws, and `page` the HTML.

Tests: `test_pages.py` for `attention`, `charts`, `of_analyses`, `paper`, `run`, `trace`; tests/browser for report.js and
report.css; the others have tests of their own names.
"""

from __future__ import annotations

from pycotmech.report.write import FILE, page_of, write_report

__all__ = ["FILE", "page_of", "write_report"]
