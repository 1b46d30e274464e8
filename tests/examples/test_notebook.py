"""The notebook of traces runs from top to bottom, on tiny-cot in place of the larger model."""

from __future__ import annotations

import json
from pathlib import Path

import matplotlib

NOTEBOOK = Path(__file__).parents[2] / "examples" / "traces.ipynb"


def test_every_cell_runs(monkeypatch):
    monkeypatch.setattr(matplotlib, "is_interactive", lambda: False)
    cells = [c for c in json.loads(NOTEBOOK.read_text("utf-8"))["cells"] if c["cell_type"] == "code"]
    assert len(cells) == 10
    namespace: dict = {"__name__": "__main__"}
    for number, cell in enumerate(cells, 1):
        source = "".join(cell["source"]).replace("smollm2-135m-cot", "tiny-cot")
        exec(compile(source, f"cell {number}", "exec"), namespace)
        assert not cell["outputs"], "the notebook is kept without outputs"
    assert namespace["use"].data.sizes["trace"] == 6
