"""The command as a whole: files, resuming, other settings, analyses that fail."""

import dataclasses
import json
import shutil

import numpy as np
import pandas as pd
import pytest
import torch

from pycotmech import paper
from pycotmech.cot.task.steps import Graded
from pycotmech.cot.tools import cells
from pycotmech.files.write import UNFINISHED
from pycotmech.paper import runner
from pycotmech.paper.entries import ENTRIES
from pycotmech.runs import Settings, open_folder

SETTINGS = Settings(model="tiny-cot", examples=2, shots=2, steps=(2, 5))
ONLY = ("decision_heads", "copy_heads")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("paper") / "out"


@pytest.fixture(scope="module")
def first(folder):
    said = []
    outcome = paper.run(SETTINGS, folder, only=ONLY, say=said.append)
    return outcome, said


def test_everything_is_there(first, folder):
    outcome, said = first
    assert list(outcome.results) == list(ONLY) and not outcome.failures and not outcome.resumed
    for name in ONLY:
        assert (folder / "figures" / f"{name}.png").stat().st_size > 5000
        assert len(pd.read_csv(folder / "tables" / f"{name}.csv")) > 0
        again = outcome.results[name].load(folder / "data")
        main = outcome.results[name].main
        np.testing.assert_array_equal(again.data[main].values, outcome.results[name].data[main].values)
    summary = (folder / "summary.md").read_text("utf-8")
    assert all(claim.text in summary for claim in paper.CLAIMS)
    assert "needs functional_rift, which was not run" in summary
    assert outcome.results["copy_heads"].findings()[0] in summary
    about = json.loads((folder / "paper.json").read_text("utf-8"))
    assert set(about["costs"]) == set(ONLY) and about["costs"]["copy_heads"]["token_forwards"] > 10
    assert "about" in said[1] and "copy_heads" in said[1]  # the plan, before the first result
    assert said[2].startswith("Answer probability")


def test_the_same_command_goes_on(first, folder):
    more = paper.run(SETTINGS, folder, only=(*ONLY, "attention_by_source"))
    assert more.resumed == list(ONLY) and list(more.results) == [*ONLY, "attention_by_source"]
    about = json.loads((folder / "paper.json").read_text("utf-8"))
    assert set(about["costs"]) == {*ONLY, "attention_by_source"}  # costs of what was done before are kept


def test_what_an_analysis_draws_besides_is_written_and_shown(tmp_path):
    found = paper.run(SETTINGS, tmp_path / "out", only=("answer_sources",))
    assert not found.failures and (tmp_path / "out/figures/answer_sources_map.png").stat().st_size > 5000
    assert "(figures/answer_sources_map.png)" in (tmp_path / "out/summary.md").read_text("utf-8")


def test_other_settings_are_refused_and_nothing_is_lost(first, folder):
    before = (folder / "paper.json").read_text("utf-8")
    with pytest.raises(ValueError, match="contains results of other settings: seed was 0, now 3"):
        paper.run(dataclasses.replace(SETTINGS, seed=3), folder, only=ONLY)
    assert (folder / "paper.json").read_text("utf-8") == before


def test_the_plan_alone_runs_nothing(tmp_path):
    said = []
    outcome = paper.run(SETTINGS, tmp_path, plan_only=True, say=said.append)
    assert len(outcome.plan.lines) == len(ENTRIES) and not outcome.results and not list(tmp_path.iterdir())
    assert "information_flow" in said[-1]


def test_an_analysis_that_fails_leaves_the_others(tmp_path, monkeypatch):
    def broken(given, progress):
        raise ValueError("steps: nothing to see")

    entries = tuple(dataclasses.replace(e, how=broken) if e.name == "patch_steps" else e for e in ENTRIES)
    monkeypatch.setattr(
        runner, "chosen", lambda only: [e for e in entries if e.name in ("patch_steps", "copy_heads", "remove")]
    )
    outcome = paper.run(SETTINGS, tmp_path)
    assert outcome.failures == {"patch_steps": "steps: nothing to see", "remove": "needs patch_steps"}
    assert list(outcome.results) == ["copy_heads"]
    assert "steps: nothing to see" in (tmp_path / "summary.md").read_text("utf-8")


@pytest.mark.parametrize("right", [(1,), pytest.param((0, 3), marks=pytest.mark.slow)])
def test_few_right_examples_are_enough_for_sets(tmp_path, monkeypatch, right):
    """One or two of four: too few for halves of two, so that sets are chosen and told on the same, which is said."""
    monkeypatch.setattr(cells, "grade", only_right(right))
    asked = ("knock_out_curve", "head_overlap", "keep_only", "remove")
    outcome = paper.run(dataclasses.replace(SETTINGS, examples=4, steps=(5,)), tmp_path, only=asked)
    assert not outcome.failures and set(asked) <= set(outcome.results)
    n = len(right)
    for name in ("keep_only", "remove"):
        result = outcome.results[name]
        assert result.data.sizes["example"] == n and result.about["settings"]["reused"] == n
        assert result.data["right"].notnull().all()
    half = outcome.results["knock_out_curve"].data["half"].values.tolist()
    assert sorted(h for h in half if h) == (["both"] if n == 1 else ["report", "select"])
    overlap = outcome.results["head_overlap"].data
    assert bool(np.isfinite(overlap["f1_low"][0, 1])) == (n > 1)


def only_right(rows):
    """A grading by which every step of these examples is right, and none of the others."""

    def grade(model, examples):
        table = torch.zeros(len(examples), examples.n_steps, dtype=torch.bool)
        table[list(rows)] = True
        return Graded(table, table[:, 0], "clean", examples.kinds)

    return grade


def test_what_was_cut_off_while_being_written_is_made_again(first, folder, tmp_path):
    out = tmp_path / "out"
    unfinished = out / "data" / f"{UNFINISHED}0a"
    (unfinished / "copy_heads.zarr").mkdir(parents=True)
    outcome = paper.run(SETTINGS, out, only=("copy_heads",))
    assert outcome.resumed == [] and not unfinished.exists()


@pytest.mark.parametrize("state", ["lost", "empty", "not an object"])
def test_results_say_themselves_of_which_settings_they_are(first, folder, tmp_path, state):
    out = shutil.copytree(folder, tmp_path / "out")
    (out / "paper.json").unlink()
    if state != "lost":
        (out / "paper.json").write_text("" if state == "empty" else "[1]")
    with pytest.raises(ValueError, match="contains results of other settings: seed was 0, now 1"):
        paper.run(dataclasses.replace(SETTINGS, seed=1), out, only=ONLY)
    again = paper.run(SETTINGS, out, only=ONLY)
    assert again.resumed == list(ONLY)
    assert json.loads((out / "paper.json").read_text("utf-8"))["costs"]["copy_heads"]["token_forwards"] > 10


def test_data_of_unknown_settings_is_not_taken_for_these(first, folder, tmp_path):
    out = shutil.copytree(folder, tmp_path / "out")
    (out / "paper.json").unlink()
    for path in (out / "data").glob("*.zarr/zarr.json"):  # as earlier versions left them
        metadata = json.loads(path.read_text("utf-8"))
        about = json.loads(metadata["attributes"]["about"])
        del about["identity"]
        metadata["attributes"]["about"] = json.dumps(about)
        path.write_text(json.dumps(metadata))
    with pytest.raises(ValueError, match=r"contains data but no readable paper.json"):
        paper.run(SETTINGS, out, only=ONLY)


def test_damaged_data_is_made_again_and_lost_tables_and_figures_too(first, folder, tmp_path):
    out = shutil.copytree(folder, tmp_path / "out")
    main = first[0].results["copy_heads"].main
    (chunk,) = (path for path in (out / "data/copy_heads.zarr" / main / "c").rglob("*") if path.is_file())
    chunk.write_bytes(chunk.read_bytes()[:-3])
    (out / "tables/decision_heads.csv").unlink()
    (out / "figures/decision_heads.png").unlink()
    again = paper.run(SETTINGS, out, only=ONLY)
    assert again.resumed == ["decision_heads"] and list(again.results) == list(ONLY)
    np.testing.assert_array_equal(again.results["copy_heads"].data[main], first[0].results["copy_heads"].data[main])
    assert (out / "tables/decision_heads.csv").read_text() == (folder / "tables/decision_heads.csv").read_text()
    assert (out / "figures/decision_heads.png").stat().st_size > 5000


def test_some_analyses_after_more_keep_the_summary_of_all(first, folder, tmp_path):
    out = shutil.copytree(folder, tmp_path / "out")
    some = paper.run(SETTINGS, out, only=("copy_heads",))
    assert list(some.results) == ["copy_heads"]
    summary = (out / "summary.md").read_text("utf-8")
    assert all(f"(figures/{name}.png)" in summary for name in ONLY)
    about = {claim.text: verdict.evidence for claim, verdict in some.verdicts}
    assert about == {claim.text: verdict.evidence for claim, verdict in first[0].verdicts}


def test_one_process_at_a_time(tmp_path):
    with open_folder(tmp_path), pytest.raises(BlockingIOError, match="another process is writing"):
        paper.run(SETTINGS, tmp_path, only=ONLY)


def test_nothing_is_written_through_a_link(tmp_path):
    (tmp_path / "outside").mkdir()
    out = tmp_path / "out"
    out.mkdir()
    (out / "tables").symlink_to(tmp_path / "outside")
    with pytest.raises(ValueError, match="tables is a symbolic link"):
        paper.run(SETTINGS, out, only=("copy_heads",))
    assert not list((tmp_path / "outside").iterdir())


def test_bad_input_before_any_work(tmp_path):
    with pytest.raises(ValueError, match="pairs: the paper's analyses need the task"):
        paper.run(Settings(model="tiny-cot", pairs=tmp_path / "x.jsonl"), tmp_path)
    with pytest.raises(ValueError, match="only: got 'E99'"):
        paper.run(SETTINGS, tmp_path, only=("E99",))


@pytest.mark.slow
def test_the_whole_of_it(tmp_path):
    outcome = paper.run(Settings(model="tiny-cot", examples=4, shots=2), tmp_path)
    assert not outcome.failures and list(outcome.results) == [e.name for e in ENTRIES]
    for claim in paper.CLAIMS:
        assert claim.verdict(outcome.results).evidence
