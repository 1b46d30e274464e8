"""`pycotmech report`: what it rebuilds."""

from __future__ import annotations

import json
import shutil

import pandas as pd

from pycotmech.runs.attention import summarise_text


def test_report_rebuilds_and_needs_results(finished, shell, tmp_path):
    finished = shutil.copytree(finished, tmp_path / "copy")
    for name in ("summary.md", "step_05.png", "top_heads.csv"):
        (finished / name).unlink()
    code, _, _ = shell("report", finished, "--top", "2")
    assert code == 0 and len(pd.read_csv(finished / "top_heads.csv")) == 4
    assert (finished / "step_05.png").read_bytes().startswith(b"\x89PNG") and (finished / "summary.md").is_file()
    assert (finished / "report.html").read_text("utf-8").startswith("<!doctype html>")
    code, _, err = shell("report", tmp_path)
    assert code == 2 and "holds no results" in err


def test_the_page_goes_where_it_is_asked_for(finished, shell, tmp_path):
    code, out, _ = shell("report", finished, "--out", tmp_path / "made" / "page.html")
    assert code == 0 and (tmp_path / "made" / "page.html").stat().st_size > 10_000
    assert f"report: {tmp_path / 'made' / 'page.html'}" in out


def test_serve_opens_the_page(finished, shell, monkeypatch):
    served = []
    monkeypatch.setattr("pycotmech.report.serve.serve", lambda page, say: served.append(page))
    code, _, _ = shell("report", finished, "--serve", "--quiet")
    assert code == 0 and served == [finished / "report.html"]


def test_heads_are_stored_for_a_folder_without_them(finished, shell, tmp_path):
    copy = shutil.copytree(finished, tmp_path / "copy")
    kept = json.loads((copy / "heads.json").read_text("utf-8"))
    (copy / "heads.json").unlink()
    code, _, err = shell("report", copy, "-q")
    assert code == 0, err
    assert "<p class=note>What heads attend to" in (copy / "report.html").read_text("utf-8")
    code, out, err = shell("report", copy, "--heads")
    assert code == 0 and "heads.json: what the strongest heads attend to and write" in out, err
    made = json.loads((copy / "heads.json").read_text("utf-8"))
    assert made["views"] == kept["views"] and made["of"] == kept["of"]
    assert "<p class=note>What heads attend to" not in (copy / "report.html").read_text("utf-8")


def test_heads_are_refused_with_a_reason(finished, shell, tmp_path):
    copy = shutil.copytree(finished, tmp_path / "copy")
    code, _, err = shell("report", copy, "--device", "cpu")
    assert code == 2 and "device: has a meaning with --heads only" in err
    records = (copy / "examples.jsonl").read_text("utf-8")
    (copy / "examples.jsonl").write_text(records.replace('"answer": ', '"answer": 1'), "utf-8")
    code, _, err = shell("report", copy, "--heads")
    assert code == 2 and "does not hold the prompts of these results" in err
    (copy / "examples.jsonl").unlink()
    code, _, err = shell("report", copy, "--heads")
    assert code != 0 and "examples.jsonl is missing" in err
    summarise_text("The cat is a cat.", tmp_path / "text", model="tiny-cot", top_k=4)
    code, _, err = shell("report", tmp_path / "text", "--heads")
    assert code == 2 and "expected one of run, sweep or paper" in err
