"""`pycotmech export`: its options reach the results, and what is wrong is one line."""

from __future__ import annotations

import pandas as pd
import pytest


def test_a_run_as_csv(shell, finished, tmp_path):
    code, text, err = shell("export", finished, "--to", "csv", "--out", tmp_path / "x.csv", "--variables", "effect,noise_floor")
    assert (code, err) == (0, "") and f"written: {tmp_path / 'x.csv'}" in text
    table = pd.read_csv(tmp_path / "x.csv")
    assert {"example", "step", "layer", "head", "effect", "noise_floor"} <= set(table) and "raw" not in table


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--to", "xlsx", "--out", "x"), "to: got 'xlsx'; expected one of parquet, csv, safetensors, json"),
        (("--to", "csv", "--out", ""), "out: the name is empty"),
        (("--to", "csv", "--out", "nowhere/x.csv"), "out: there is no folder nowhere"),
        (("--to", "csv", "--out", "x.csv", "--name", "remove"), "name: got 'remove'; expected one of sweeps"),
    ],
)
def test_what_is_wrong_is_one_line(shell, finished, options, message):
    code, _, err = shell("export", finished, *options)
    assert code == 2 and message in err and err.count("\n") == 1


def test_a_folder_without_results_is_named(shell, tmp_path):
    code, _, err = shell("export", tmp_path, "--to", "csv", "--out", tmp_path / "x.csv")
    assert code == 2 and "holds no results of run, sweep, paper, attention or trace" in err


def test_mib_from_a_run_and_what_needs_the_model(shell, finished, tmp_path):
    import json

    import pycotmech as pcm

    steps = pcm.open_results(finished).table("steps")
    step = int(steps[steps["n"] > 0]["step"].iloc[0])
    options = ("--step", step, "--task", "ioi", "--model-name", "gpt2")
    code, text, err = shell("export", finished, "--to", "mib", "--out", tmp_path / "circuits", *options)
    path = tmp_path / "circuits" / "ioi_gpt2" / "importances.json"
    assert (code, err) == (0, "") and f"written: {path}" in text
    scores = pcm.open_results(finished).head_scores(step=step).values
    assert json.loads(path.read_text())["nodes"]["a1.h2"]["score"] == scores[1, 2]
    code, _, err = shell("export", finished, "--to", "headvis", "--out", tmp_path / "tree")
    assert code == 2 and "write_headvis(folder, model, prompts" in err and err.count("\n") == 1
