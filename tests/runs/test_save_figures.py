"""Figures of a results folder: names, formats, captions, and what cannot be drawn."""

from __future__ import annotations

import struct

import pytest

import pycotmech as pcm
from pycotmech.runs.results import PaperResults
from pycotmech.runs.save_figures import Drawing, chosen, save
from tests.figures.overlaps import overlaps
from tests.report.made import HOSTILE, run_folder


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    return pcm.open_results(run_folder(tmp_path_factory.mktemp("run") / "made", examples=3, steps=2, layers=4, heads=4))


def test_every_figure_in_every_format_with_its_caption(results, tmp_path):
    found = results.save_figures(tmp_path / "new" / "out", formats=("png", "svg", "pdf"), dpi=50)
    assert list(found.files) == ["overview", "step_0", "step_1"] and found.failures == {}
    assert {p.name for p in (tmp_path / "new" / "out").iterdir()} == {
        "captions.md", *(f"{name}.{ending}" for name in found.files for ending in ("png", "svg", "pdf"))
    }  # fmt: skip
    png, svg, pdf = (path.read_bytes() for path in found.files["step_1"])
    small = results.save_figures(tmp_path / "half", only=["step_1"], dpi=25).files["step_1"][0].read_bytes()
    width, half = (struct.unpack(">I", data[16:20])[0] for data in (png, small))
    assert png[:8] == b"\x89PNG\r\n\x1a\n" and abs(width - 2 * half) <= 1
    assert pdf[:5] == b"%PDF-" and b"<text" in svg  # texts stay texts
    captions = found.captions.read_text("utf-8")
    assert captions.count("\n## ") == 3 and "3 examples, noise floor" in captions and "control 0." in captions
    assert HOSTILE not in captions  # markup of a stranger is escaped


def test_texts_of_a_figure_do_not_lie_on_one_another(results):
    for name, drawing in results.drawings().items():
        if name != "overview":  # its model's name, a hostile text, has no end
            assert overlaps(drawing.draw()) == [], name


def test_the_same_figure_gives_the_same_bytes(results, tmp_path):
    for formats in (("svg",), ("pdf",)):
        once, again = (results.save_figures(tmp_path / n, only=["step_0"], formats=formats).files["step_0"][0] for n in "ab")
        assert once.read_bytes() == again.read_bytes()


def test_names_and_experiments_choose():
    drawings = {
        "answer_writers": Drawing("", "E8, stage I", None),
        "information_flow": Drawing("", "E8", None),
        "copy_heads": Drawing("", "E4", None),
        "competing/copy_heads": Drawing("", "E4", None),
        "trace_000/suppress": Drawing("", "Elhage et al. 2021", None),
    }
    assert list(chosen(drawings, ["e8"])) == ["answer_writers", "information_flow"]
    assert list(chosen(drawings, ["copy_heads", "suppress"])) == ["copy_heads", "competing/copy_heads", "trace_000/suppress"]
    assert chosen(drawings, None) == drawings
    with pytest.raises(ValueError, match="only: got 'E99'; expected some of answer_writers, "):
        chosen(drawings, ["E4", "E99"])


def test_a_step_without_results_is_missing_and_says_why(tmp_path):
    results = pcm.open_results(run_folder(tmp_path / "begun", examples=2, steps=2, layers=2, heads=2, finished=0))
    assert list(results.drawings()) == [] and list(results.missing_drawings()) == ["step_0", "step_1"]
    with pytest.raises(ValueError, match="only: step_1 cannot be drawn: no sweep of this step is finished"):
        results.save_figures(tmp_path / "out", only=["step_1"])
    made = results.save_figures(tmp_path / "out")
    assert made.files == {} and list(made.missing) == ["step_0", "step_1"]
    assert "## No results yet" in made.captions.read_text("utf-8")


def test_analyses_that_a_paper_folder_lacks_are_missing(tmp_path):
    (tmp_path / "paper" / "data").mkdir(parents=True)
    missing = PaperResults(tmp_path / "paper").missing_drawings()
    assert "patch_steps" in missing and missing["copy_heads"].endswith("computes them with --only copy_heads")


def test_what_cannot_be_drawn_is_named_and_the_rest_is_made(results, tmp_path):
    def broken():
        raise ValueError("all values are missing")

    drawings = {"broken": Drawing("A figure", "E1", broken), **results.drawings()}
    found = save(drawings, tmp_path, formats=["png"], dpi=30, heading="Figures")
    assert found.failures == {"broken": "all values are missing"} and len(found.files) == 3
    assert "* broken: all values are missing" in found.captions.read_text("utf-8")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"formats": ("gif",)}, "formats: got 'gif'; expected some of png, svg, pdf"),
        ({"formats": ()}, "formats: is empty"),
        ({"dpi": 0}, "dpi: got 0; expected 20 to 1200"),
        ({"dpi": float("nan")}, "dpi: got nan"),
        ({"only": ()}, "only: is empty"),
        ({"only": ("step_9",)}, "only: got 'step_9'; expected some of overview, step_0, step_1"),
    ],
)
def test_mistakes(results, tmp_path, arguments, message):
    with pytest.raises(ValueError, match=message):
        results.save_figures(tmp_path / "out", **arguments)
    assert not (tmp_path / "out").exists()
