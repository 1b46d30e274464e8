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
    code, _, err = shell("report", tmp_path)
    assert code == 2 and "holds no results" in err
