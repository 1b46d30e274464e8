"""Controls of runs: from which example each takes activations, and what the main job keeps and says of them."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

import pycotmech as pcm
from pycotmech.patching.controls import CONTROL_SHARE
from pycotmech.patching.pairs import aligned
from pycotmech.runs import Points, Settings, SweepState, experiment, read, work
from pycotmech.runs.controls import other_prompts
from pycotmech.runs.report import build_report
from pycotmech.runs.work import SweepUnit

SETTINGS = Settings(model="tiny-cot", examples=5, steps=(4, 5), shots=0, threads=1)


def unit(tokens: list[int], changed: int) -> SweepUnit:
    clean, corrupted = torch.tensor(tokens), torch.tensor(tokens)
    corrupted[changed] += 1
    return SweepUnit(0, 0, None, aligned(clean, corrupted), "")  # type: ignore[arg-type]


def test_the_next_example_of_the_same_length_is_taken():
    rows = [[unit([1, 2, 3, 4], 2)], [unit([1, 2, 3], 1)], [unit([1, 2, 3, 4], 3)], [unit([5, 6, 7, 8], 1)], [unit([9, 9], 0)]]
    found = [None if other is None else other.tolist() for (other,) in other_prompts(rows, "denoise")]
    # The third has the first's clean prompt, which is no other; the last of four tokens comes round to the first.
    assert found == [[5, 6, 7, 8], None, [5, 6, 7, 8], [1, 2, 3, 4], None]
    noising = [other.tolist() for (other,) in other_prompts([rows[0], rows[3]], "noise") if other is not None]
    assert noising == [[5, 7, 7, 8], [1, 2, 4, 4]]


def test_others_of_a_part_are_those_of_the_whole_run(monkeypatch):
    """However far after its edge they are, and round the end of the run."""
    model, n, long = pcm.Model.from_pretrained("tiny-cot"), 12, (1, 5, 11)
    honest = work.make_examples

    def of_two_lengths(model, settings):
        short, other = honest(model, settings), honest(model, replace(settings, distractors=2))
        return short.only([b if b.index in long else a for a, b in zip(short, other)])

    monkeypatch.setattr(work, "make_examples", of_two_lengths)
    monkeypatch.setattr(work, "_FOLLOWING", 1)
    settings = replace(SETTINGS, examples=n, steps=(5,))
    whole = [row[0] for row in work.work_of_task(model, settings).others]
    assert len({len(other) for other in whole}) == 2
    for start, stop in ((0, 2), (1, 2), (2, 6), (11, 12), (5, 12), (0, 12)):
        part = work.work_of_task(model, points(settings, start, stop, n))
        assert [row[0].tolist() for row in part.others] == [other.tolist() for other in whole[start:stop]], (start, stop)


def points(settings, start, stop, n):
    return replace(settings, points=Points(start, stop)).with_points_of(n)


def test_an_example_that_no_other_is_like_has_no_control(monkeypatch):
    """Which is known of a part only when all examples of the run were looked at."""
    model, honest = pcm.Model.from_pretrained("tiny-cot"), work.make_examples

    def one_is_long(model, settings):
        short, other = honest(model, settings), honest(model, replace(settings, distractors=2))
        return short.only([b if b.index == 1 else a for a, b in zip(short, other)])

    monkeypatch.setattr(work, "make_examples", one_is_long)
    monkeypatch.setattr(work, "_FOLLOWING", 1)
    part = work.work_of_task(model, points(replace(SETTINGS, examples=9, steps=(5,)), 0, 2, 9))
    assert part.others[1] == [None] and part.others[0][0] is not None


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    folder = tmp_path_factory.mktemp("controls") / "out"
    experiment.run(SETTINGS, folder)
    return folder


def test_a_run_keeps_its_controls(finished):
    """Those of `patch_heads` with the next example's prompt; exactly nothing at the sham position."""
    data = read(finished)
    done = data["state"].values == SweepState.FINISHED
    assert done.sum() >= 4
    assert (data["sham"].values[done] == 0).all() and np.isnan(data["sham"].values[~done]).all()
    model = pcm.Model.from_pretrained("tiny-cot", dtype="auto")
    L, H = model.cfg.n_layers, model.cfg.n_heads
    drawn = int(np.ceil(CONTROL_SHARE * L * H))
    measured = data["control"].notnull().sum(("layer", "head")).values
    assert (measured[done] == drawn).all()
    examples = pcm.cot.make_examples(5, tokenizer=model.tokenizer, bos=model.prepend_bos, shots=0)
    e, s = map(int, np.argwhere(done)[0])
    pair, other = examples[e].steps[(4, 5)[s]], examples[(e + 1) % 5].steps[(4, 5)[s]]
    alone = pcm.patch_heads(model, pair.clean, pair.corrupted, controls=("random",), control_source=other.clean)
    at = data["control"][e, s].notnull().values
    np.testing.assert_allclose(data["control"].values[e, s][at], alone.control[at], atol=1e-4)


def test_the_report_says_what_lies_beyond_floor_and_control(finished):
    report = build_report(finished, figures=False)
    assert any("effects exceed both noise floor and control" in s for s in report.sentences)
    assert np.isfinite(report.top["control"]).all() and set(report.top.columns) >= {"beyond", "head_control", "held_out"}
    text = (finished / "summary.md").read_text()
    assert "| control |" in text and "Before the first difference, patches change 0." in text


def test_without_controls_none_are_measured_and_the_folder_is_another(tmp_path):
    without = replace(SETTINGS, controls=False, examples=2)
    experiment.run(without, tmp_path / "out")
    data = read(tmp_path / "out")
    assert data["control"].isnull().all() and data["sham"].isnull().all()
    assert "controls" not in without.identity() and SETTINGS.identity()["controls"] is True
    report = build_report(tmp_path / "out", figures=False)
    assert "No random control was measured, so effects are compared with rounding alone." in report.sentences
    with pytest.raises(ValueError, match="controls was not set, now True"):
        experiment.run(replace(without, controls=True), tmp_path / "out")
