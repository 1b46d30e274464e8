"""`pycotmech report`: what it rebuilds."""

from __future__ import annotations

import shutil

import pandas as pd


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
