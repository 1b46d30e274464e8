"""Harder settings of the task beside the easy one: what they are, what runs in them, and how they are compared."""

import dataclasses
import json
import types

import numpy as np
import pytest
import torch

from pycotmech import cot, paper
from pycotmech.cot.task.steps import Graded
from pycotmech.cot.tools import cells
from pycotmech.paper.claims import CLAIMS, Claim, Verdict
from pycotmech.paper.one_setting import SettingOutcome, Task
from pycotmech.paper.settings import EASY, HARDER, entries_of_harder, named
from pycotmech.paper.settings_table import needed, needs_of, pooled, settings_table
from pycotmech.runs import Settings

SETTINGS = Settings(model="tiny-cot", examples=2, shots=2, steps=(2, 5))
WORDED = ("wording_each", "wording_all")
"""tiny-cot has no such words."""


def test_every_setting_is_one_change_of_the_task(smollm2):
    plain = Settings(model="smollm2-135m", examples=32, shots=1)
    seen = {EASY: cot.make_examples(1, tokenizer=smollm2, **plain.task()).few_shot}
    for setting in HARDER:
        changed = setting.of(plain)
        changed.check()
        assert changed.examples == 8 and setting.of(dataclasses.replace(plain, examples=2)).examples == 2
        assert setting.why.endswith(".") and len(setting.changes) <= 2
        seen[setting.name] = cot.make_examples(1, tokenizer=smollm2, **changed.task()).few_shot
    assert len(set(seen.values())) == len(seen) == 9


def test_what_runs_in_them():
    entries = {e.name: e for e in entries_of_harder()}
    assert {"patch_steps", "knock_out_curve", "answer_writers", "answer_sources", "context_abidance"} <= set(entries)
    for entry in entries.values():
        of_e8 = entry.source == "E8" and (entry.claims or any(entry.name in e.needs for e in entries.values()))
        assert entry.source in ("E1", "E5") or of_e8, entry.name
    answered = {c.name for c in CLAIMS if set(c.needs) <= set(entries)}
    assert {"pathways", "sources", "writers", "abidance"} <= answered


@pytest.mark.parametrize(
    ("names", "easy", "harder"),
    [
        (("easy",), True, ()),
        (("none",), True, ()),
        (("shuffled", "distractors"), False, ("distractors", "shuffled")),
        (("easy", "competing"), True, ("competing",)),
        (("all",), True, tuple(s.name for s in HARDER)),
    ],
)
def test_names(names, easy, harder):
    found = named(names)
    assert found[0] == easy and tuple(s.name for s in found[1]) == harder


@pytest.mark.parametrize("names", [("hard",), (), ("easy", "x")])
def test_unknown_names_are_refused(names, tmp_path):
    with pytest.raises(ValueError, match="tasks: got"):
        paper.run(SETTINGS, tmp_path, tasks=names)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("settings") / "out"


@pytest.fixture(scope="module")
def first(folder):
    said = []
    only = ("answer_writers",)
    return paper.run(SETTINGS, folder, only=only, tasks=("easy", "shuffled", "wording_each"), say=said.append), said


def test_each_has_a_folder_of_its_own_and_one_table_compares_them(first, folder):
    outcome, said = first
    assert list(outcome.harder) == ["shuffled", "wording_each"]
    shuffled = folder / "settings" / "shuffled"
    about = json.loads((shuffled / "paper.json").read_text("utf-8"))
    assert about["identity"]["order"] == "shuffled" and about["task"]["examples"] == 2
    for name in ("summary.md", "data/answer_writers.zarr", "tables/answer_writers.csv", "figures/answer_writers.png"):
        assert (shuffled / name).exists()
    summary = (folder / "summary.md").read_text("utf-8")
    table = summary.split("## The claims in harder settings")[1].split("\n## ")[0]
    assert "| | easy | shuffled | wording_each | pooled |" in table
    assert "| examples | 2 | 2 |  | |" in table and "100% (33%)" in table
    assert "does not know 'Facts'" in table  # a setting that cannot be made is told and stops nothing
    writers = next(c for c in CLAIMS if c.name == "writers")
    row = next(line for line in table.splitlines() if line.startswith(f"| {writers.text} |"))
    assert row.count("**") == 4 and "–" in row
    told = next(text for text in said if text.startswith("setting  "))
    assert "shuffled" in told and "wording_each   cannot be made" in told and "all settings: about" in told


def test_they_are_resumed_and_kept_in_the_summary(first, folder):
    before = (folder / "settings/shuffled/data/answer_writers.zarr/zarr.json").stat().st_mtime_ns
    again = paper.run(SETTINGS, folder, only=("answer_writers",), tasks=("shuffled",))
    assert again.results == {} and again.harder["shuffled"].resumed == ["answer_writers"]
    assert (folder / "settings/shuffled/data/answer_writers.zarr/zarr.json").stat().st_mtime_ns == before
    easy = paper.run(SETTINGS, folder, only=("answer_writers",))
    assert easy.resumed == ["answer_writers"] and list(easy.harder) == ["shuffled"]
    assert "| | easy | shuffled | pooled |" in (folder / "summary.md").read_text("utf-8")


def test_a_setting_of_which_nothing_is_right_stops_nothing(tmp_path, monkeypatch):
    grade = cells.grade

    def none_of_three_hops(model, examples):
        found = grade(model, examples)
        if examples.hops != 3:
            return found
        wrong = torch.zeros_like(found.right)
        return Graded(wrong, wrong[:, 0], "clean", examples.kinds)

    monkeypatch.setattr(cells, "grade", none_of_three_hops)
    found = paper.run(SETTINGS, tmp_path / "out", only=("answer_writers",), tasks=("easy", "three_hops", "distractors"))
    assert "gets none of steps" in found.harder["three_hops"].failure and "distractors" in found.harder
    assert not found.harder["distractors"].failure and not found.failures
    assert "* three_hops: not done: " in (tmp_path / "out/summary.md").read_text("utf-8")


def test_minutes_choose_the_number_once(tmp_path, monkeypatch):
    from pycotmech.paper import runner

    slow = types.SimpleNamespace(name="a slow machine", seconds=lambda cfg, demand: demand.flop(cfg) / 0.5e8)
    monkeypatch.setattr(runner, "speed_and_device", lambda model, planned: (1e8, slow))
    asked = dataclasses.replace(SETTINGS, examples=None)
    plan = lambda minutes: paper.run(asked, tmp_path, only=("copy_heads",), minutes=minutes, plan_only=True).plan  # noqa: E731
    found = plan(2.0)
    n = found.workload.examples
    assert n % 2 == 0 and n > 4 and found.seconds <= 120 * 1.1 and plan(4.0).workload.examples > n
    with pytest.raises(ValueError, match="minutes: 4 examples, the fewest possible, take about"):
        plan(0.0001)
    with pytest.raises(ValueError, match="minutes: chooses the number of examples, which is given as well"):
        paper.run(SETTINGS, tmp_path, minutes=3)
    with pytest.raises(ValueError, match="minutes: got 0; expected a positive number"):
        paper.run(asked, tmp_path, minutes=0)
    paper.run(SETTINGS, tmp_path / "out", only=("copy_heads",))
    kept = paper.run(asked, tmp_path / "out", only=("copy_heads",), minutes=5)  # what the folder holds decides
    assert kept.resumed == ["copy_heads"] and kept.results["copy_heads"].data.sizes["example"] == 2


def test_a_pilot_says_how_many_examples_claims_need(first, folder, tmp_path):
    said = []
    paper.run(SETTINGS, tmp_path / "other", pilot=folder, plan_only=True, say=said.append)
    assert said[-1].startswith("examples that the claims need") and all(c.name in said[-1] for c in CLAIMS)
    with pytest.raises(FileNotFoundError, match="pilot: there is no folder"):
        paper.run(SETTINGS, tmp_path / "other", pilot=tmp_path / "nowhere")


# ---- the table ------------------------------------------------------------------------------------------------------------


def _outcome(name, verdict, *, needs=True):
    claim = CLAIMS[1]
    results = dict.fromkeys(claim.needs) if needs else {}
    return SettingOutcome(name, results=results, verdicts=[(claim, verdict)], task=Task(8, 70, 80, 0.5, 0.25))  # type: ignore[arg-type]


def test_the_table_shows_words_figures_and_what_they_say_together():
    values = np.array([0.1, 0.2, 0.3, 0.4])
    table = settings_table(
        [
            _outcome("easy", Verdict("borne out", "").of(values, 0.0)),
            _outcome("a", Verdict("not borne out", "").of(-values, 0.0)),
            _outcome("b", Verdict("not decided", "")),
            _outcome("c", Verdict("borne out", ""), needs=False),
            SettingOutcome("d", failure="too few words"),
        ]
    )
    row = next(line for line in table if line.startswith(f"| {CLAIMS[1].text}"))
    cells = [c.strip() for c in row.strip("|").split("|")]
    assert cells[1].startswith("**borne out**, 0.25 [") and cells[1].endswith("n = 4")
    assert cells[2].startswith("**not borne out**, -0.25") and cells[3] == "**not decided**" and cells[4:6] == ["–", "–"]
    assert (
        cells[6].startswith("borne out in 1 of the 2 settings that decide it; 0.00 [")
        and "over 2 settings (threshold 0)" in cells[6]
    )
    assert "| steps that are right | 70 of 80 | 70 of 80 | 70 of 80 | 70 of 80 |  | |" in table
    assert "* d: not done: too few words" in table and pooled([Verdict("not decided", "")]) == "decided in none"


def test_needed_examples_in_words():
    values = np.array([-1.0, 1.0]) / np.sqrt(2) + 0.5
    assert needed(Verdict("not decided", "").of(values, 0.0)) == "needs about 34"
    assert needed(Verdict("borne out", "").of([1.0, np.nan, 2.0], 0.0)) == "decided at 2"
    assert needed(Verdict("not decided", "").of([1.0, -1.0], 0.0)) == "no feasible number decides it"
    assert needed(Verdict("not decided", "").of(np.linspace(1, 2, 20), 0.0)) == "enough for this part; another part is open"
    assert needed(Verdict("not decided", "").of([1.0], 0.0)) == "needs 2 or more examples to plan with"
    assert needed(Verdict("borne out", "")) == needed(Verdict("not decided", "")) == ""
    claim = Claim("c", "text", "E1", lambda results: Verdict("borne out", ""), "")
    assert "needs about 34" in needs_of([(claim, Verdict("not decided", "").of(values, 0.0))], 8)
