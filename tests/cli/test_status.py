"""`pycotmech status`: text for people, JSON for programs."""

from __future__ import annotations

import json


def test_a_finished_run(shell, finished):
    code, text, err = shell("status", finished)
    assert (code, err) == (0, "") and "(run): sweeps: " in text and "0 pending" in text
    code, text, _ = shell("status", finished, "--json")
    found = json.loads(text)
    assert code == 0 and found["kind"] == "run" and found["pending"] == 0 and found["finished"] > 0 and not found["writing"]


def test_a_folder_without_results_is_named(shell, tmp_path):
    code, _, err = shell("status", tmp_path / "nowhere")
    assert code == 2 and "there is no folder" in err
