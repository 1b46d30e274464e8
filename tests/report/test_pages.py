"""The pages of every kind of folder: finished, begun, damaged, of earlier versions."""

from __future__ import annotations

import json
import re
import shutil

import numpy as np
import pytest

from pycotmech import paper
from pycotmech.files.arrays import load_arrays, save_arrays
from pycotmech.files.whole import read_sealed, write_sealed
from pycotmech.paper.views import make_views
from pycotmech.report import page_of, write_report
from pycotmech.report.page import Claim, Draw, Note, Quote, render
from pycotmech.runs import Settings, experiment
from pycotmech.runs.attention import STORE, summarise_text
from pycotmech.runs.events import EventLog
from pycotmech.runs.head_views import FILE as VIEWS
from pycotmech.runs.results import open_results
from pycotmech.runs.trace_run import TraceSettings, run_traces
from tests.figures.overlaps import overlaps
from tests.report.made import run_folder
from tests.report.test_page import data_of, read

MIB = 2**20


def charts_of(page, kind=None):
    found = [part.chart for section in page.sections for part in section.parts if isinstance(part, Draw)]
    return [c for c in found if kind in (None, c["kind"])]


def texts_of(page):
    notes = [part.text for section in page.sections for part in section.parts if isinstance(part, Note)]
    return " ".join([*page.answer, *page.notes, *notes])


# ---- run ----------------------------------------------------------------------------------------------------------------


def test_a_run_in_numbers(tmp_path):
    folder = run_folder(tmp_path / "run", hostile="plain")
    page = page_of(folder)
    (chart,) = charts_of(page, "heads")
    assert (chart["layers"], chart["heads"]) == (6, 4) and [m["kind"] for m in chart["maps"]] == [
        "decision",
        "copying",
        "induction",
    ]
    first = chart["maps"][0]
    assert len(first["value"]) == 24 and abs(first["value"][3 * 4 + 2] - 0.7) < 0.02
    assert first["low"][14] < first["value"][14] < first["high"][14] and first["floor"] == 1e-4 and 0 < first["control"] < 0.1
    assert "The strongest head is L3H2" in page.answer[0] and "[" in page.answer[0] and "held-out" in page.answer[0]
    assert page.views is not None and page.views["count"] == 1


def test_the_answers_interval_is_that_of_the_held_out_half(tmp_path):
    from pycotmech.runs.report.aggregate import by_step, intervals
    from pycotmech.runs.store import read as read_store
    from pycotmech.stats.bootstrap import halves, ratio_interval

    data = read_store(run_folder(tmp_path / "run"))
    found, steps = intervals(data), by_step(data)
    _, reported = halves(4)
    weight = np.abs(data["corrupted_metric"].values[reported, 0])[:, None, None]
    effect = data["effect"].values[reported, 0].astype("f8")
    expected = ratio_interval(effect * weight, weight + 0 * effect)
    np.testing.assert_allclose(found["held_out_low"].values[0], expected.low)
    np.testing.assert_allclose(found["held_out_high"].values[0], expected.high)
    np.testing.assert_allclose(steps["held_out_restoration"].values[0], expected.mean)
    assert (found["low"] < found["high"]).all()


def test_a_run_that_has_just_begun(tmp_path):
    page = page_of(run_folder(tmp_path / "begun", finished=0))
    assert page.answer == ["No sweep is finished yet, so there is no answer."] and "12 sweeps pending" in texts_of(page)
    read(render(page))
    half = page_of(run_folder(tmp_path / "half", finished=1))
    assert "9 sweeps pending" in texts_of(half) and charts_of(half, "heads")[0]["maps"][0]["n"] == 1
    assert "low" not in charts_of(half, "heads")[0]["maps"][0]  # one example has no interval


def test_without_views_the_page_says_so_once(tmp_path):
    folder = run_folder(tmp_path / "run", views=False)
    page = page_of(folder)
    assert page.views is None and texts_of(page).count("heads.json is missing or damaged") == 1
    (folder / VIEWS).write_text('{"texts": [["a"]], "views": [{"text": 7}], "heads": []}')
    assert page_of(folder).views is None


@pytest.mark.parametrize(
    "change",
    [
        lambda v: v["views"][0].update(read=10**6),
        lambda v: v["views"][0].update(step="1"),
        lambda v: v["views"][0]["heads"]["3.2"].update(keys=[-1] * 8),
        lambda v: v["views"][0]["heads"]["3.2"].update(mass=[float("inf")] * 8),
        lambda v: v["views"][0]["heads"]["3.2"].update(words=["a"]),
        lambda v: v.update(texts="no list"),
    ],
)
def test_views_of_another_form_are_not_shown(tmp_path, change):
    folder = run_folder(tmp_path / "run")
    stored = json.loads((folder / VIEWS).read_text("utf-8"))
    del stored["sha256"]
    change(stored)
    (folder / VIEWS).write_text(json.dumps(stored), "utf-8")
    assert page_of(folder).views is None


def test_a_hostile_folder_gives_a_page_of_text(tmp_path):
    page = write_report(run_folder(tmp_path / "run")).read_text("utf-8")
    reader = read(page)
    assert not reader.all("img") and len(reader.all("script")) == 2
    assert any("onerror" in token for token in data_of(page)["views"]["texts"][0])


def test_a_large_run_stays_small(tmp_path):
    folder = run_folder(tmp_path / "large", layers=32, heads=32, steps=4, examples=2, tokens=2048)
    assert write_report(folder).stat().st_size < 2 * MIB


# ---- from the models that are shipped -----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tiny") / "out"
    experiment.run(Settings(model="tiny-cot", examples=2, steps=(5, 9), threads=1), folder)
    return folder


def test_a_run_keeps_what_its_heads_do(tiny):
    page = page_of(tiny)
    assert page.views is not None and 0 < page.views["count"] <= 48
    view = page.views["views"][0]
    for one in view["heads"].values():
        assert len(one["keys"]) == len(one["mass"]) <= 8 and one["mass"] == sorted(one["mass"], reverse=True)
        assert max(one["keys"]) <= view["read"] and sum(one["mass"]) <= 1.001
    assert charts_of(page, "heads")[0]["views"]
    read(render(page))


def test_the_users_pairs(tmp_path):
    lines = [{"clean": [1, 5, 6, 7], "corrupted": [1, 5, 8, 7], "name": "<b>"}, {"clean": [1, 9, 6], "corrupted": [1, 8, 6]}]
    (tmp_path / "mine.jsonl").write_text("\n".join(map(json.dumps, lines)))
    experiment.run(Settings(model="tiny-cot", pairs=tmp_path / "mine.jsonl", threads=1), tmp_path / "out")
    page = page_of(tmp_path / "out")
    assert "these prompts depend on" in page.title and charts_of(page, "heads")[0]["maps"][0]["name"] == "Prompt pairs"
    read(render(page))


def test_the_attention_of_a_text(tmp_path):
    summarise_text("The cat is a cat.", tmp_path / "out", model="tiny-cot", segments="begin=1:3", top_k=2)
    page = page_of(tmp_path / "out")
    maps = charts_of(page, "heads")[0]
    assert [m["name"] for m in maps["maps"]] == ["begin", "first token"] and maps["scale"] == "sequential" and maps["details"]
    assert "attention goes" in page.answer[0] and "to the first token" in page.answer[0]
    assert sum(map(int, re.findall(r"(\d+)% to ", page.answer[0]))) in (99, 100, 101)  # what no segment has is said too
    (text,) = [part for section in page.sections for part in section.parts if isinstance(part, Quote)]
    assert " is a " in text.parts[0][1]  # this tokenizer's tokens hold no spaces
    read(render(page))


def test_the_share_of_sinks_is_not_said_to_go_to_tokens(tmp_path):
    summarise_text("The cat is a cat.", tmp_path / "out", model="tiny-cot", segments="begin=1:3", top_k=2)
    data = load_arrays(tmp_path / "out" / STORE)
    save_arrays(data.assign(mass=0.5 * data["mass"], sink=0.5 + 0 * data["entropy"]), tmp_path / "out" / STORE)
    answer = page_of(tmp_path / "out").answer[0]
    assert "50% to the heads' own sinks, which are no tokens" in answer
    assert sum(map(int, re.findall(r"(\d+)% to ", answer))) in (99, 100, 101)


@pytest.fixture(scope="module")
def papers(tmp_path_factory):
    folder = tmp_path_factory.mktemp("papers") / "out"
    only = ("patch_steps", "attention_by_source", "answer_writers", "functional_rift", "information_flow")
    paper.run(Settings(model="tiny-cot", examples=2, steps=(2, 5), threads=1), folder, only=only)
    return folder


def test_texts_of_the_papers_figures_do_not_lie_on_one_another(papers):
    drawings = open_results(papers).drawings()
    assert len(drawings) == 5 and {name: found for name, d in drawings.items() if (found := overlaps(d.draw()))} == {}


def test_the_paper_begins_with_its_claims(papers):
    page = page_of(papers)
    assert page.sections[0].id == "claims"
    claims = [part for part in page.sections[0].parts if isinstance(part, Claim)]
    assert len(claims) == 8 and all(c.word in ("borne out", "not borne out", "not decided") for c in claims)
    tried = [c for c in claims if any(isinstance(p, Draw) for p in c.parts)]
    assert tried, "no claim has the chart that it rests on"
    assert claims[-1].evidence.startswith("Needs")  # those without data come last
    ids = [section.id for section in page.sections]
    assert ids[1:6] == ["patch-steps", "attention-by-source", "answer-writers", "information-flow", "functional-rift"]
    kinds = {c["kind"] for c in charts_of(page)}
    assert {"heads", "stack", "bars", "flow", "lines"} <= kinds
    assert page.views is not None
    read(render(page))


def test_a_paper_s_heads_are_made_again(papers, tmp_path):
    folder = shutil.copytree(papers, tmp_path / "copy")
    kept = (folder / VIEWS).read_bytes()
    (folder / VIEWS).unlink()
    assert make_views(folder) and (folder / VIEWS).read_bytes().partition(b'"cost"')[0] == kept.partition(b'"cost"')[0]
    facts = read_sealed(folder / "paper.json")
    write_sealed(folder / "paper.json", {**facts, "identity": {**facts["identity"], "pycotmech": "0.0.1"}})
    with pytest.raises(ValueError, match=r"pycotmech was 0\.0\.1"):
        make_views(folder)
    assert make_views(folder, accept_version=True)
    write_sealed(folder / "paper.json", {**facts, "identity": {**facts["identity"], "weights": "sha256:0"}})
    with pytest.raises(ValueError, match="weights"):
        make_views(folder, accept_version=True)


def test_damaged_and_earlier_papers(papers, tmp_path):
    folder = shutil.copytree(papers, tmp_path / "copy")
    (folder / VIEWS).unlink()
    chunk = next(
        p for p in (folder / "data" / "functional_rift.zarr" / "context").rglob("*") if p.is_file() and p.name != "zarr.json"
    )
    chunk.write_bytes(b"no chunk")
    (folder / "paper.json").unlink()
    page = page_of(folder)
    assert "functional_rift counts as not done" in texts_of(page) and "heads.json is missing" in texts_of(page)
    assert "functional-rift" not in [section.id for section in page.sections]
    shutil.rmtree(folder / "data")
    (folder / "data").mkdir()
    assert "No claim can be judged yet" in page_of(folder).answer[0]


@pytest.fixture(scope="module")
def traces(tmp_path_factory):
    place = tmp_path_factory.mktemp("traces")
    rng, lines = np.random.default_rng(0), []
    for i in range(2):
        ids = rng.integers(5, 200, 36).tolist()
        spans = [[a, a + 3] for a in range(5, 29, 3)]
        lines.append(json.dumps({"tokens": [1, *ids], "sentences": spans, "answer": [31, 33], "name": f"t{i}"}))
    (place / "traces.jsonl").write_text("\n".join(lines))
    run_traces(TraceSettings("tiny-cot", place / "traces.jsonl", threads=1), place / "out")
    return place / "out"


def test_traces_begin_with_their_verdicts(traces):
    page = page_of(traces)
    assert [section.id for section in page.sections] == ["chain-use", "trace-000", "trace-001", "receiver-heads"]
    verdicts = [part for part in page.sections[0].parts if isinstance(part, Claim)]
    assert len(verdicts) == 5 and {"matrix", "lines", "bars", "heads"} <= {c["kind"] for c in charts_of(page)}
    matrix = next(c for c in charts_of(page, "matrix") if c["up"] == "later sentence")
    assert len(matrix["value"]) == len(matrix["rows"]) * len(matrix["columns"]) == len(matrix["texts"]) ** 2
    read(render(page))


def test_what_was_not_done_is_said(traces, tmp_path):
    folder = shutil.copytree(traces, tmp_path / "copy")
    EventLog(folder).write("failed", unit="receiver_heads", why="the longest has 5 sentences")
    assert "Receiver_heads" not in texts_of(page_of(folder))
    assert "receiver_heads was not done: the longest has 5 sentences." in texts_of(page_of(folder))


def test_one_trace_and_damaged_ones(traces, tmp_path):
    folder = shutil.copytree(traces, tmp_path / "copy")
    shutil.rmtree(folder / "chain_use.zarr")
    shutil.rmtree(folder / "trace_001")
    (folder / "traces.jsonl").write_text("{no json")
    (folder / "trace_000" / "suppress.zarr" / "zarr.json").write_text("{}")
    page = page_of(folder)
    assert "this folder has no such verdict yet" in texts_of(page) and "trace_000/suppress cannot be shown" in texts_of(page)
    assert [section.id for section in page.sections] == ["trace-000", "receiver-heads"]
    read(render(page))
