"""The command that runs claims where the truth is known: what it counts, what it fails for, how it goes on."""

import dataclasses
import json

import numpy as np
import pytest

from benchmarks.validity import claims, judge, kept, page
from benchmarks.validity.__main__ import main
from benchmarks.validity.models import toy, toy_shape
from benchmarks.validity.planted import PLANTINGS
from benchmarks.validity.recovery import RECOVERIES, table
from pycotmech.paper import CLAIMS
from pycotmech.paper.claims import Verdict, decided

WORDS = ("borne out", "not borne out", "not decided")
ABIDANCE = ["--parts", "nulls", "--claims", "abidance", "--models", "2", "--examples", "2", "--steps", "5", "--workers", "1"]


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """Everything but the large models, with the fewest examples."""
    out = tmp_path_factory.mktemp("validity")
    parts = ["nulls", "planted", "recovery", "coverage", "levels"]
    few = ["--models", "1", "--examples", "4", "--steps", "2", "5", "--draws", "1", "--workers", "1"]
    status = main(["--parts", *parts, *few, "--out", str(out)])
    return out, status


def lines(out):
    return [json.loads(line) for line in (out / "models.jsonl").read_text("utf-8").splitlines()]


def rows_of(text, title):
    """The first table below a heading, as lists of cells."""
    below = text.split(f"## {title}\n", 1)[1].split("\n## ")[0].splitlines()
    first = next(i for i, line in enumerate(below) if line.startswith("|"))
    last = next((i for i, line in enumerate(below[first:], first) if not line.startswith("|")), len(below))
    return [[cell.strip() for cell in line.strip("|").split(" | ")] for line in below[first:last] if "---" not in line]


def test_the_page_has_the_numbers_of_the_results(whole):
    out, status = whole
    found = [line for line in lines(out) if line["part"] == "nulls"]
    assert len(found) == 1 and all(set(line["verdicts"]) == {claim.name for claim in CLAIMS} for line in found)
    text = (out / "validity.md").read_text("utf-8")
    head, *rows = rows_of(text, "Claims on random models")
    assert [row[0] for row in rows] == [claim.name for claim in CLAIMS]
    nulls = {claim.name: claim.null for claim in CLAIMS}
    for row in rows:
        cells, said = dict(zip(head, row, strict=True)), [line["verdicts"][row[0]] for line in found]
        without = sum("no_data" in verdict for verdict in said)
        assert (cells["its null"], int(cells["models"]), int(cells["no data"])) == (nulls[row[0]], 1, without)
        for word in WORDS:
            assert int(cells[word]) == sum(v["word"] == word and "no_data" not in v for v in said)
    head, *rows = rows_of(text, "Claims on models in which they were planted")
    assert {(row[0], row[3]) for row in rows} == {
        (claim, verdict["word"])
        for line in lines(out)
        if line["part"] == "planted"
        for claim, verdict in line["verdicts"].items()
    }
    tables = kept.tables(out)
    for name, found in tables.items():
        head, *rows = rows_of(text, page.TITLES[name])
        if name not in page.PIVOTED:
            assert len(rows) == len(found["rows"])
            continue
        value, kinds = page.PIVOTED[name]

        def named(row, kinds=kinds):
            return tuple(f"{row[k]:.3g}" if isinstance(row[k], float) else row[k] for k in kinds)

        shown = {(*row[: len(kinds)], at): cell for row in rows for at, cell in zip(head, row) if at.startswith("n = ")}
        for row in found["rows"]:
            cell = shown.pop((*named(row), f"n = {row['n']}"))
            assert cell.strip("*") == f"{row[value]:.1%}" and cell.startswith("**") == (row.get("holds") is False)
        assert not any(shown.values())
    assert "recovery" in tables and f"commit {kept.commit()}" in text and kept.processor() in text
    assert status == (1 if judge.failures(kept.models(out), tables) else 0)


def test_the_page_is_written_from_the_results_alone(whole, tmp_path):
    out, status = whole
    assert main(["--out", str(out), "--page", str(tmp_path / "page.md")]) == status
    assert (tmp_path / "page.md").read_text("utf-8") == (out / "validity.md").read_text("utf-8")


@pytest.mark.parametrize("planting", PLANTINGS, ids=lambda p: p.name)
def test_a_claim_is_borne_out_where_it_was_planted_and_nowhere_else(whole, planting):
    (line,) = [line for line in lines(whole[0]) if line["name"] == planting.name]
    verdict = line["verdicts"][planting.claim]
    assert (verdict["word"] == "borne out") == planting.true and "no_data" not in verdict, verdict


def test_a_judge_that_bears_everything_out_is_named(tmp_path, monkeypatch, capsys):
    def always(results):
        return Verdict("borne out", "whatever it is")

    broken = tuple(dataclasses.replace(c, judge=always) if c.name == "abidance" else c for c in CLAIMS)
    monkeypatch.setattr(claims, "CLAIMS", broken)
    assert main([*ABIDANCE, "--out", str(tmp_path)]) == 1
    assert "FAILS: abidance: borne out on 2 of 2 random models" in capsys.readouterr().err
    assert "abidance: borne out on 2 of 2" in (tmp_path / "validity.md").read_text("utf-8")


def test_a_claim_without_data_fails_and_the_analysis_is_named(tmp_path, monkeypatch, capsys):
    def broken(given, progress):
        raise ValueError("steps: nothing to see")

    real = claims.chosen
    monkeypatch.setattr(claims, "chosen", lambda names: [dataclasses.replace(e, how=broken) for e in real(names)])
    assert main([*ABIDANCE, "--out", str(tmp_path)]) == 1
    said = capsys.readouterr()
    assert "FAILS: abidance: no data on 2 of 2 random models" in said.err
    assert "context_abidance failed (ValueError: steps: nothing to see)" in said.err
    assert "0 borne out" in said.out and "2 without data" in said.out


def test_a_claim_that_finds_nothing_to_judge_by_has_no_data():
    def judge_of_nothing(results):
        return decided(np.nan, np.nan, 0.5, "no head writes", n=0)

    claim = dataclasses.replace(CLAIMS[0], name="none", judge=judge_of_nothing)
    assert claims.verdict(claim, {}, {})["no_data"].endswith("no head writes; there is no interval")
    open_ = dataclasses.replace(claim, judge=lambda results: decided(0.4, 0.6, 0.5, n=8))
    assert "no_data" not in claims.verdict(open_, {}, {})


def test_it_goes_on_where_it_stopped(tmp_path, capsys):
    main([*ABIDANCE, "--out", str(tmp_path)])
    first = (tmp_path / "models.jsonl").read_text("utf-8").splitlines()
    (tmp_path / "models.jsonl").write_text(first[0] + "\n" + first[1][:40], "utf-8")  # stopped while it wrote
    capsys.readouterr()
    main([*ABIDANCE, "--out", str(tmp_path)])
    assert capsys.readouterr().out.startswith("1/1 nulls 1: ")
    found = kept.models(tmp_path)
    assert [m["name"] for m in found] == ["0", "1"]
    again = json.loads(first[1])
    assert found[1]["verdicts"] == again["verdicts"] and found[1]["seed"] == again["seed"] == 1
    more = [*ABIDANCE[:3], "abidance", "writers", *ABIDANCE[4:]]
    main([*more, "--out", str(tmp_path)])
    assert [sorted(line["verdicts"]) for line in kept.lines(tmp_path)][2:] == [["writers"], ["writers"]]
    assert all(set(m["verdicts"]) == {"abidance", "writers"} for m in kept.models(tmp_path))


def test_results_of_other_settings_are_refused(tmp_path):
    main([*ABIDANCE, "--out", str(tmp_path)])
    with pytest.raises(ValueError, match="contains results of"):
        main([*ABIDANCE, "--seed", "1", "--out", str(tmp_path)])
    main([*ABIDANCE, "--seed", "1", "--fresh", "--out", str(tmp_path)])
    assert [m["seed"] for m in kept.models(tmp_path)] == [10000, 10001]


def test_bad_input_before_any_work(tmp_path):
    with pytest.raises(ValueError, match="claims: got nonsense; expected some of "):
        main(["--claims", "nonsense", "--out", str(tmp_path / "out")])
    with pytest.raises(ValueError, match="holds no results"):
        main(["--page", str(tmp_path / "page.md"), "--out", str(tmp_path)])


def test_random_models_differ_and_are_drawn_again_alike():
    shapes = [toy_shape(i, 0) for i in range(200)]
    assert {s.n_layers for s in shapes} == {4, 5, 6} and {s.n_heads for s in shapes} == {4, 6, 8}
    assert sum(s.attention == "flat" for s in shapes) == 40
    assert sum(s.n_key_value_heads < s.n_heads for s in shapes) > 60 and all(
        s.n_heads % s.n_key_value_heads == 0 for s in shapes
    )
    a, b = (toy(7, seed=0, n=2, shots=1) for _ in range(2))
    assert all((x == y).all() for x, y in zip(a.model.hf.parameters(), b.model.hf.parameters()))
    assert a.examples[0].full_text == b.examples[0].full_text and a.right.right.all()


def test_as_many_as_chance_lets_pass():
    assert [judge.allowed(n) for n in (0, 2, 200)] == [0, 1, 16]


def test_a_planted_claim_that_is_missed_and_a_planted_null_that_is_taken_for_it_are_said():
    def line(word, true):
        return {
            "part": "planted",
            "name": "abidance: x",
            "true": true,
            "verdicts": {"abidance": {"word": word, "evidence": "e"}},
        }

    assert not judge.failures([line("borne out", True), line("not decided", False)], {})
    assert judge.failures([line("not decided", True)], {}) == ["abidance: not decided on the planted model abidance: x: e"]
    assert judge.failures([line("borne out", False)], {}) == ["abidance: borne out on the planted model abidance: x: e"]


def test_a_circuit_that_is_not_recovered_is_said(monkeypatch):
    wrong = dataclasses.replace(RECOVERIES[1], found=lambda made, seed: ((0, 0), made.heads["writer"]))
    monkeypatch.setattr("benchmarks.validity.recovery.RECOVERIES", (wrong,))
    (row,) = table(2)
    assert row["recovered"] == 0 and not row["holds"] and row["otherwise"] == "(0, 0), planted (1, 1)"
    assert judge.failures([], {"recovery": {"rows": [row]}})
