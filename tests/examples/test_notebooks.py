"""The notebooks run from top to bottom: quickly on tiny-cot, and with the slow tests on the models that they name.

The slow tests also compare what the cells print with what is stored, so that text and stored outputs stay true.
"""

from __future__ import annotations

import json
import re

import matplotlib
import pytest

from tests.reference import notebooks

LONG = {"paper_on_one_page"}
"""Long on a small model too."""
NUMBER = re.compile(r"[-+]?\d+(?:\.\d+)?(?:e[-+]?\d+)?")


def alike(stored: str, fresh: str) -> bool:
    """Whether two printed texts have the same words, and numbers that rounding may explain."""
    a, b = ([float(x) for x in NUMBER.findall(text)] for text in (stored, fresh))
    words = NUMBER.sub("", stored) == NUMBER.sub("", fresh)
    return words and len(a) == len(b) and all(abs(x - y) <= 0.02 + 0.05 * abs(x) for x, y in zip(a, b))


@pytest.fixture(autouse=True)
def quiet(monkeypatch):
    monkeypatch.setattr(matplotlib, "is_interactive", lambda: False)
    monkeypatch.setattr("matplotlib.pyplot.show", lambda *_, **__: None)


@pytest.mark.filterwarnings("ignore:tokens. .* unknown to the tokenizer")
@pytest.mark.parametrize("name", [pytest.param(n, marks=pytest.mark.slow if n in LONG else ()) for n in notebooks.names()])
def test_every_cell_runs_on_a_small_model(name, tmp_path):
    assert notebooks.run(name, small=True, folder=tmp_path).names["model"].name == "tiny-cot"


@pytest.mark.slow
@pytest.mark.parametrize("name", notebooks.names())
def test_every_cell_prints_what_is_stored(name, tmp_path):
    ran = notebooks.run(name, small=False, folder=tmp_path)
    for cell in notebooks.code(name):
        if cell.number in ran.printed:
            assert alike(cell.printed, ran.printed[cell.number]), f"cell {cell.number}: {ran.printed[cell.number]}"


@pytest.mark.parametrize("name", notebooks.names())
def test_outputs_are_stored_in_order_and_without_errors(name):
    cells = [c for c in notebooks.read(name)["cells"] if c["cell_type"] == "code"]
    ran = [c for c in cells if "install" not in c["metadata"].get("tags", [])]
    assert [c["execution_count"] for c in ran] == list(range(1, len(ran) + 1))
    kinds = {output["output_type"] for c in cells for output in c["outputs"]}
    assert kinds <= {"stream", "display_data", "execute_result"}
    assert not [o for c in cells for o in c["outputs"] if o.get("name") == "stderr"]
    assert not re.search(r"/(work|home|root|tmp)/", json.dumps(cells)), "a path of the machine that it ran on"


def test_the_first_notebook_has_ten_cells():
    assert len(notebooks.code("first_finding")) == 10


@pytest.mark.parametrize("name", notebooks.names())
def test_heads_that_the_text_names_are_in_the_outputs(name):
    shown = "\n".join(cell.printed + cell.shown for cell in notebooks.code(name))
    for head in re.findall(r"\bL\d+H\d+\b", notebooks.prose(name)):
        assert head in shown, head


@pytest.mark.parametrize("name", notebooks.names())
def test_links_lead_somewhere(name):
    for target in re.findall(r"\]\(([^)#\s]+)", notebooks.prose(name)):
        assert target.startswith("https://") or (notebooks.FOLDER / target).exists(), target
