"""Folders of `pycotmech trace` as `pcm.open_results` and `status_of` read them, and what they export."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pandas as pd
import pytest
import xarray as xr

import pycotmech as pcm
from pycotmech.runs.trace_run import TraceSettings, run_traces
from tests.runs.fake_circuitsvis import drawn as drawn

OF_TRACE = ("answer_paths", "early_answers", "suppress")
NAMES = ("chain_use", "receiver_heads", *(f"trace_{i:03d}/{name}" for i in range(2) for name in OF_TRACE))


def write_traces(path, n=2):
    rng, lines = np.random.default_rng(0), []
    for i in range(n):
        ids = rng.integers(5, 200, 36).tolist()
        spans = [[a, a + 3] for a in range(5, 29, 3)]
        lines.append(json.dumps({"tokens": [1, *ids], "sentences": spans, "answer": [31, 33], "name": f"t{i}"}))
    path.write_text("\n".join(lines))
    return path


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    place = tmp_path_factory.mktemp("traces")
    run_traces(TraceSettings("tiny-cot", write_traces(place / "traces.jsonl"), threads=1), place / "out")
    return place / "out"


def test_datasets_tables_and_plots(folder, tmp_path):
    results = pcm.open_results(folder)
    assert results.kind == "trace" and results.names == NAMES == results.tables
    stored = pcm.traces.Suppression.load(folder / "trace_001")
    xr.testing.assert_equal(results["trace_001/suppress"], stored.data.assign_attrs(results["trace_001/suppress"].attrs))
    assert results["receiver_heads"].sizes["trace"] == 2
    pd.testing.assert_frame_equal(results.table("trace_001/suppress"), stored.table())
    results.plot("receiver_heads", path=tmp_path / "heads.png")
    assert (tmp_path / "heads.png").stat().st_size > 5000
    assert "traces with results of their own: 2" in repr(results)
    with pytest.raises(KeyError, match="no dataset 'trace_002/suppress'"):
        results["trace_002/suppress"]


def test_provenance_has_the_names_of_the_other_kinds(folder):
    made = pcm.open_results(folder).provenance
    names = ("model", "weights", "config", "prompts", "dtype", "device", "threads", "versions", "seed", "arguments", "created")
    assert set(names) <= set(made), set(names) - set(made)
    assert made["model"] == "tiny-cot" and made["seed"] == 0 and made["arguments"]["proximity"] == 4
    assert made["sizes"] == {"n_layers": 4, "n_heads": 8, "d_model": 256, "parallel": False}


def test_a_lost_file_of_settings_leaves_what_the_results_say(folder, tmp_path):
    out = shutil.copytree(folder, tmp_path / "out")
    for damage in ("[1", None):
        (out / "trace.json").unlink() if damage is None else (out / "trace.json").write_text(damage)
        assert pcm.open_results(out).provenance["model"] == "tiny-cot" and pcm.open_results(out).names == NAMES


def test_status_and_events(folder, tmp_path):
    results = pcm.open_results(folder)
    events = results.events().events
    assert [e["event"] for e in events] == ["start", "plan", *["finished"] * 8, "stop"] and results.events().torn == 0
    assert set(events[1]["units"]) == {e["unit"] for e in events[2:-1]} == set(NAMES)
    status = results.status()
    assert (status.kind, status.unit, status.finished, status.pending, status.failed) == ("trace", "analysis", 8, 0, 0)
    out = shutil.copytree(folder, tmp_path / "out")
    shutil.rmtree(out / "trace_001" / "early_answers.zarr")
    status = pcm.open_results(out).status()
    assert (status.finished, status.pending) == (7, 1)
    assert status.seconds_left is not None and status.seconds_left > 0


def test_what_the_traces_do_not_allow_is_said_and_is_no_failure(tmp_path):
    outcome = run_traces(TraceSettings("tiny-cot", write_traces(tmp_path / "one.jsonl", 1), threads=1), tmp_path / "out")
    results = pcm.open_results(tmp_path / "out")
    status = results.status()
    assert (status.finished, status.pending, status.failed) == (4, 0, 0) and not outcome.failures
    (why,) = results.provenance["plan"]["left_out"]
    assert "it takes two with answers, and there are 1" in why
    assert f"## Left out\n\n* {why}" in (tmp_path / "out" / "summary.md").read_text()


def test_what_cannot_be_made_is_a_failure_that_is_recorded(tmp_path, monkeypatch):
    def broken(*args, **options):
        raise ValueError("memory_gb: too little")

    monkeypatch.setattr(pcm.traces, "suppress", broken)
    outcome = run_traces(TraceSettings("tiny-cot", write_traces(tmp_path / "two.jsonl"), threads=1), tmp_path / "out")
    status = pcm.open_results(tmp_path / "out").status()
    assert (status.finished, status.pending, status.failed) == (5, 3, 3)
    assert status.failures == outcome.failures and status.failures["trace_000/suppress"] == "memory_gb: too little"
    assert "suppress and early_answers of two traces" in status.failures["chain_use"]


def test_exports(folder, tmp_path):
    results = pcm.open_results(folder)
    written = results.to_csv(tmp_path / "tables")
    assert written[-1] == tmp_path / "tables" / "trace_001" / "suppress.csv" and len(written) == 8
    (one,) = results.to_json(tmp_path / "heads.json", "receiver_heads")
    found = json.loads(one.read_text())
    table = pd.DataFrame(found["rows"], columns=found["columns"])
    kept = results["receiver_heads"]["kurtosis"]
    row = table[(table["trace"] == kept["trace"].values[1]) & (table["layer"] == 2) & (table["head"] == 3)].iloc[0]
    np.testing.assert_allclose(row["kurtosis"], kept.isel(trace=1).sel(layer=2, head=3))
    assert found["about"]["kind"] == "trace" and found["about"]["analysis"]["identity"]["model"] == "tiny-cot"


def test_links_are_not_followed(folder, tmp_path):
    out = shutil.copytree(folder, tmp_path / "out")
    (out / "trace_002").symlink_to(folder / "trace_000")
    assert pcm.open_results(out).names == NAMES


def test_circuitsvis_shows_what_heads_take_from_each_sentence(folder, tmp_path, drawn):
    results = pcm.open_results(folder)
    results.export("circuitsvis", tmp_path / "page.html", "trace_001/answer_paths")
    kept = results.analysis("trace_001/answer_paths")
    expected = kept.data["contribution"].transpose("part", "layer", "head")
    np.testing.assert_allclose(drawn["activations"], expected, rtol=1e-5, atol=1e-7)
    assert drawn["tokens"][:2] == [" first token", " prompt"] and len(drawn["tokens"]) == kept.data.sizes["part"]
    with pytest.raises(ValueError, match="name: missing; expected one of trace_000/answer_paths, trace_001/answer_paths"):
        results.export("circuitsvis", tmp_path / "page.html")
    with pytest.raises(
        ValueError, match=r"to: mib cannot be made from this folder, which holds no patching of heads \(trace\)"
    ):
        results.export("mib", tmp_path)
