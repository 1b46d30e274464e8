"""The suite's table, its baseline and its processes, on made-up numbers; one question on a tiny model."""

from __future__ import annotations

import copy
import dataclasses
import json
from pathlib import Path

import pytest
import torch

from benchmarks import against, bench_peers, compare, patching_questions, peers, predicted, suite, table
from benchmarks.questions import QUESTIONS, SIZES, question_named
from tests.reference.truth import z_of


def spread(median: float, off: float = 0.02) -> dict[str, float]:
    return {"median": median, "low": median * (1 - off), "high": median * (1 + off)}


def results(hooks: float = 30.0, share: float = 0.9, gib: float = 1.0) -> dict:
    machine = {
        "cpu": "abacus", "cores": 2, "load": 0.1, "torch": "2.13", "transformers": "5", "pycotmech": "abc",
        "date": "2026-01-01",
        "products_gflops": {"float32, 1 thread": 100.0}, "copy_gbs": 10.0,
    }  # fmt: skip
    row = {
        "question": "all heads", "group": "heads", "size": "tiny", "dtype": "float32", "threads": 2, "note": "T = 9",
        "rounds": 3,
        "check": "fine", "ours": {**spread(2.0), "gib": gib},
        "limit": {**spread(1.8), "by": "its products, bare", "share": spread(share)},
        "rivals": [{"name": "hooks", **spread(60.0), "part": True, "ratio": spread(hooks), "gib": 2.0}],
    }  # fmt: skip
    return {"machine": machine, "rows": [row], "minutes": 1.5}


def words(before: dict, now: dict) -> dict[str, str]:
    found = compare.judged(compare.ratios(before), compare.ratios(now))
    return {v.name.rpartition(": ")[2]: v.word for v in found}


def test_what_lies_within_the_spread_is_the_same():
    assert set(words(results(), results(hooks=29.2, share=0.89)).values()) == {"same"}
    assert words(results(), results(hooks=28.6))["hooks"] == "same"  # below all that was seen, but by less than the margin


def test_what_lies_below_all_that_was_seen_is_worse():
    found = words(results(), results(hooks=25.0))
    assert found == {"share of the machine": "same", "hooks": "worse", "memory of hooks": "same"}
    assert words(results(), results(share=0.7))["share of the machine"] == "worse"
    assert words(results(), results(gib=1.5))["memory of hooks"] == "worse"
    assert words(results(), results(hooks=40.0))["hooks"] == "better"


def test_a_wide_spread_forgives_more():
    before = results()
    before["rows"][0]["rivals"][0]["ratio"] = spread(30.0, off=0.3)
    assert words(before, results(hooks=25.0))["hooks"] == "same"


def test_errors_are_missing_and_new_questions_are_no_fault():
    now = results()
    now["rows"].append({**copy.deepcopy(now["rows"][0]), "question": "another"})
    found = compare.judged(compare.ratios(results()), compare.ratios(now))
    assert {v.word for v in found} == {"same", "new"} and not any(v.bad for v in found)
    now["rows"][0]["error"] = "it died"
    verdicts = compare.judged(compare.ratios(results()), compare.ratios(now))
    assert sum(v.bad for v in verdicts) == 3 and any(v.word == "missing" for v in verdicts)
    part = compare.judged(compare.ratios(results()), {}, groups=["another question"])
    assert part == []


def test_several_runs_are_pooled():
    found = compare.pooled(compare.ratios(results(hooks=h)) for h in (20.0, 30.0, 31.0))
    hooks = next(r for name, r in found.items() if name.endswith(": hooks"))
    assert hooks.median == 30.0 and hooks.low == pytest.approx(19.6) and hooks.high == pytest.approx(31.62)


def test_the_command_keeps_a_baseline_and_judges(tmp_path, capsys):
    paths = {name: tmp_path / f"{name}.json" for name in ("good", "bad", "baseline")}
    paths["good"].write_text(json.dumps(results()))
    paths["bad"].write_text(json.dumps(results(hooks=10.0)))
    of = ["--baseline", str(paths["baseline"])]
    assert compare.main([str(paths["good"]), *of]) == 2 and "no baseline" in capsys.readouterr().err
    assert compare.main([str(paths["good"]), *of, "--update"]) == 0
    kept = json.loads(paths["baseline"].read_text())
    assert len(kept["ratios"]) == 3 and kept["machine"]["cpu"] == "abacus" and "60" not in json.dumps(kept["ratios"])
    assert compare.main([str(paths["good"]), *of]) == 0
    assert compare.main([str(paths["bad"]), *of]) == 1
    assert "1 of 3 ratios are worse or missing" in capsys.readouterr().out


def test_the_table_shows_what_is_in_the_results():
    record = results()
    record["rows"].append(
        {**{k: record["rows"][0][k] for k in ("question", "size", "dtype", "threads")}, "error": "it died | here"}
    )
    text = table.page(record)
    assert "abacus, 2 cores" in text and "| 30x [29x, 31x] |" in text and "| 60 s [58.8 s, 61.2 s] * |" in text
    assert "90%" in text and "1.00 GiB" in text and "2.00 GiB" in text and "no figure: it died / here" in text
    columns = {row.count("|") for row in table.rows(record)}
    assert len(columns) == 1, columns
    assert "No run of the suite is recorded yet" in table.page({})


def test_times_and_ratios_are_readable():
    assert [table.seconds(x) for x in (0.0123, 0.5, 12.345, 1234.5)] == ["12.3 ms", "0.5 s", "12.3 s", "1,234 s"]
    assert [table.ratio(x) for x in (0.5, 7.56, 1234.5)] == ["0.50x", "7.56x", "1,234x"]


def test_the_page_shows_the_record():
    from tests.reference import generated

    for name, text in table.parts(table.read()).items():
        assert generated.shown(table.PAGE, name) == text, f"{name}: run `python -m benchmarks.table`"


def test_predictions_hold_together():
    text = predicted.table()
    assert "| all |  |" in text and text.count("H100") >= 3
    rows = [row.split("|") for row in text.splitlines() if row.startswith("| patch_steps")]
    assert len(rows) == 1 and "1,026,000" in rows[0][6]


def test_every_question_has_a_name_a_size_and_dtypes():
    names = [(q.name, q.size) for q in QUESTIONS]
    assert len(set(names)) == len(names) and {q.size for q in QUESTIONS} == set(SIZES)
    assert all(question_named(*name) is q for name, q in zip(names, QUESTIONS, strict=True))
    with pytest.raises(ValueError, match="there is no 'nothing' at size 'tiny'"):
        question_named("nothing", "tiny")
    assert all(set(q.dtypes) <= {"float32", "bfloat16"} and q.rounds >= 2 for q in QUESTIONS)


@pytest.fixture
def answers(monkeypatch):
    """Stands in for processes: what is asked of them, and what they answer."""
    asked, answers = [], {}

    class Child:
        def __init__(self, words, *, passive):
            self.way = words[-1]
            asked.append(self.way)
            assert passive == (self.way != "all")

        def ready(self):
            asked.append("ready")

        def answer(self, timeout):
            row = {k: v for k, v in results()["rows"][0].items() if k in ("what", "note", "check", "ours", "limit", "rivals")}
            del row[suite.OURS]["gib"], row["rivals"][0]["gib"]
            return copy.deepcopy(answers.get(self.way, row if self.way == "all" else {"gib": 1.5})) | {
                "stages": {"imports": 1.0}
            }

        def stop(self):
            pass

    monkeypatch.setattr(suite, "Child", Child)
    monkeypatch.setattr(suite, "machine", lambda threads: results()["machine"])
    return asked, answers


def test_memory_is_measured_after_all_times_in_a_process_for_each_way(answers, tmp_path, capsys):
    asked, _ = answers
    assert suite.main(["--out", str(tmp_path), "--only", "kernel,lens", "--threads", "2"]) == 0
    assert asked[:6] == ["all", "all", "ready", "ready", "all", "ready"]  # two import at once
    assert sorted(asked[6:]) == ["hooks"] * 3 + ["ours"] * 3
    rows = json.loads((tmp_path / "results.json").read_text())["rows"]
    assert [(row["ours"]["gib"], row["rivals"][0]["gib"]) for row in rows] == [(1.5, 1.5)] * 3
    said = capsys.readouterr().err
    assert "attention kernel, 7b, bfloat16, 2 thread(s): 1.50 GiB, hooks (imports 1.0)" in said
    assert "seconds in all: imports 3, memory, imports 6" in said


def test_a_process_that_dies_costs_its_own_figure_and_the_exit_status(answers, tmp_path, capsys):
    _, said = answers
    said["hooks"] = {"error": "Killed"}
    assert suite.main(["--out", str(tmp_path), "--only", "lens"]) == 1
    row = json.loads((tmp_path / "results.json").read_text())["rows"][0]
    assert row["ours"]["gib"] == 1.5 and row["rivals"][0]["gib_error"] == "Killed" and "gib" not in row["rivals"][0]
    assert "NO FIGURE: logit lens, 135m, float32" in capsys.readouterr().out
    said["all"] = {"error": "AssertionError: 3 apart"}
    assert suite.main(["--out", str(tmp_path), "--only", "lens"]) == 1
    assert "no figure: AssertionError: 3 apart" in (tmp_path / "table.md").read_text()


def test_nothing_is_begun_when_the_time_is_over(answers, tmp_path):
    asked, _ = answers
    assert suite.main(["--out", str(tmp_path), "--only", "lens", "--minutes", "0"]) == 1
    assert not asked and "not begun: the time was over" in (tmp_path / "table.md").read_text()


def test_a_way_makes_nothing_for_the_others(monkeypatch):
    made = []
    monkeypatch.setattr(patching_questions, "z_of", lambda hf, tokens: made.append("z") or z_of(hf, tokens))
    asked = patching_questions.heads("tiny-cot", "last", 2, "float32")
    found = asked.ours.run()
    assert not made
    by_hooks, by_cache = (way.least() for way in asked.rivals)
    assert made == ["z"], "kept for the second rival"
    assert torch.allclose(by_hooks, by_cache, atol=1e-3)  # the same head
    assert asked.check(found) == "2 heads against hooked forwards"
    with pytest.raises(AssertionError, match="by hooks; error"):
        asked.check(dataclasses.replace(found, effect=2 * found.effect))


def test_peers_have_a_table():
    ran = {"dtype": "float32", "threads": 2, "rounds": 3, "difference": 1e-5}
    rows = [
        ran | {"name": "ours", "seconds": spread(4.0), "cpu": spread(8.0), "ran": 270},
        ran | {"name": "hooks", "seconds": spread(80.0), "cpu": spread(160.0), "ran": 5, "ratio": 20.0, "cpu_ratio": 20.0},
        {"dtype": "float32", "threads": 2, "name": "a library", "note": "not installed"},
    ]
    about = {"cpu": "abacus", "cores": 2, "versions": "torch 2.13", "date": "2026-01-01", "minutes": 9.0}
    text = table.peers_table(about | {"rows": rows})
    assert "of 3 processes of each way" in text and "| hooks | float32 | 2 | 80 s [78.4 s, 81.6 s] | 20x |" in text
    assert "| a library | float32 | 2 | not installed |" in text
    assert len({line.count("|") for line in text.splitlines() if line.startswith("|")}) == 1


def test_peers_begin_no_round_that_ends_too_late(monkeypatch):
    now, asked = [0.0], []

    def measure(kind, **_):
        asked.append(kind)
        now[0] += 10.0
        return peers.Measured(1.0, 1.0, 2, {"0.0": 1.0, "1.0": 2.0}, 9, 3)

    monkeypatch.setattr(bench_peers, "measure", measure)
    monkeypatch.setattr(bench_peers, "WHAT", {"hooks": "hooks", "cached_hooks": "hooks over a cache"})
    monkeypatch.setattr(bench_peers.time, "monotonic", lambda: now[0])
    rows = bench_peers.compare("float32", 1, 5, minutes=1.6)
    assert asked == ["ours", "truth", "hooks", "cached_hooks", *["ours", "hooks", "cached_hooks"] * 1]
    assert [row["rounds"] for row in rows] == [2, 2, 2] and rows[1]["ratio"] == 1.0


def test_a_process_that_takes_too_long_is_stopped():
    late = suite.Child(["--child", "all heads, all positions", "tiny", "float32", "all"], passive=True)
    assert late.answer(0.01) == {"error": "stopped after 0 s"}


@pytest.mark.slow
def test_a_process_waits_until_it_is_asked_and_says_why_it_died():
    child = suite.Child(["--child", "no such question", "tiny", "float32", "all"], passive=True)
    child.ready()
    assert child.answer(60)["error"] == "ValueError: question: there is no 'no such question' at size 'tiny'"


@pytest.mark.slow
def test_the_suite_runs(tmp_path, monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    code = suite.main(["--out", str(tmp_path), "--size", "tiny", "--threads", "1", "--rounds", "1"])
    found = json.loads((tmp_path / "results.json").read_text())
    assert code == 0 and len(found["rows"]) == 1, found
    row = found["rows"][0]
    assert 0 < row["limit"]["share"]["median"] < 2 and row["ours"]["gib"] > 0.1 and len(row["rivals"]) == 2
    assert "heads against hooked forwards" in row["check"] and (tmp_path / "table.md").is_file()


def test_slower_is_by_more_than_the_margin_and_in_every_round():
    def judged(here: list[list[float]], there: list[list[float]]) -> dict:
        (found,) = against.verdicts({"here": {"a": here}, "there": {"a": there}}, 0.05)
        return found

    drifting = judged([[1.1, 2.2, 3.3], [1.1, 4.4]], [[1.0, 2.0, 3.0], [1.0, 4.0]])  # the machine slows down for both
    assert abs(drifting["ratio"] - 1.1) < 1e-12 and drifting["slower"] is True
    assert judged([[1.2], [1.3], [0.99]], [[1.0], [1.0], [1.0]])["slower"] is False  # one pair of processes says otherwise
    assert judged([[1.03], [1.04]], [[1.0], [1.0]])["slower"] is False
    once = judged([[2.0, 2.0, 9.0]], [[1.0, 1.0, 1.0]])
    assert (once["ratio"], once["lowest"], once["highest"], once["slower"]) == (2.0, 2.0, 2.0, False)


def test_two_commits_take_turns_run_by_run(monkeypatch):
    order: list[str] = []

    class Side:
        def __init__(self, root, threads):
            self.name = root.name

        def run(self, case):
            order.append(self.name)
            return [float(len(order)), 0.0, 0.0]

        def stop(self):
            order.append(f"{self.name} stopped")

    monkeypatch.setattr(against, "Side", Side)
    case = next(iter(against.CASES))
    monkeypatch.setitem(against.CASES, case, (2, "float32"))
    roots = {"here": Path("a"), "there": Path("b")}
    found = against.in_turn(roots, [case], 1, first=0)
    assert order == ["b", "a", "a", "b", "b", "a", "a stopped", "b stopped"]
    assert [run[0] for run in found["here"][case]] == [3.0, 6.0]  # without the run that warmed up
    assert [run[0] for run in found["there"][case]] == [4.0, 5.0]
    order.clear()
    against.in_turn(roots, [case], 1, first=1)
    assert order[:4] == ["a", "b", "b", "a"]


@pytest.mark.slow
def test_another_checkout_that_cannot_run_is_told_with_its_last_words(tmp_path):
    side = against.Side(tmp_path, 1)
    with pytest.raises(RuntimeError, match=f"{tmp_path}: pycotmech is .*expected it in"):
        side.run("last, float32")
    side.stop()


def test_another_checkout_that_answers_with_something_else_is_not_waited_for(monkeypatch, tmp_path):
    """Its process still waits for a case: its input is closed. It would end itself, with status 9, after five seconds."""
    code = "import os, sys, threading; threading.Timer(5, os._exit, [9]).start(); print('hello', flush=True); "
    last = "sys.stdin.read(); print('read it all', file=sys.stderr, flush=True); os._exit(0)"
    plain = against.subprocess.Popen
    monkeypatch.setattr(against.subprocess, "Popen", lambda words, **options: plain([words[0], "-c", code + last], **options))
    side = against.Side(tmp_path, 1)
    with pytest.raises(RuntimeError, match=f"{tmp_path}: read it all"):
        side.run("last, float32")
    assert side.process.returncode == 0
    side.stop()
