"""The suite's table and baseline, on made-up numbers; its questions on a model of nothing but shapes are in `make bench`."""

from __future__ import annotations

import copy
import json

import pytest

from benchmarks import against, compare, predicted, suite, table
from benchmarks.questions import QUESTIONS, SIZES, question_named


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


@pytest.mark.slow
def test_the_suite_runs(tmp_path, monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    code = suite.main(["--out", str(tmp_path), "--size", "tiny", "--threads", "1", "--rounds", "1"])
    found = json.loads((tmp_path / "results.json").read_text())
    assert code == 0 and len(found["rows"]) == 1, found
    row = found["rows"][0]
    assert 0 < row["limit"]["share"]["median"] < 2 and row["ours"]["gib"] > 0.1 and len(row["rivals"]) == 2
    assert "heads against hooked forwards" in row["check"] and (tmp_path / "table.md").is_file()


def test_slower_is_by_more_than_the_margin_and_the_noise():
    def judged(here: list[float], there: list[float]) -> dict:
        (found,) = against.verdicts({"here": {"a": here}, "there": {"a": there}}, 0.05)
        return found

    assert judged([1.0, 1.1, 1.2], [1.0, 1.05, 1.1])["slower"] is False
    assert judged([1.2, 1.3, 1.25], [1.0, 1.05, 1.1])["slower"] is True
    assert judged([1.2, 1.3, 1.25], [1.0, 1.05, 1.21])["slower"] is False  # one process of theirs was as slow
    assert judged([1.03, 1.03], [1.0, 1.0])["slower"] is False
    assert judged([2.0], [1.0])["ratio"] == 2.0 and judged([2.0], [1.0])["slower"] is False
