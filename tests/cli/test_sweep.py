"""`pycotmech sweep`: one pair, several, a screen."""

from __future__ import annotations

import numpy as np
import pandas as pd

import pycotmech as pcm
from tests.cli.prompts import CLEAN, CORRUPTED


def test_sweep_of_one_pair(shell):
    code, out, _ = shell("sweep", "--model", "tiny-cot", "--clean", CLEAN, "--corrupted", CORRUPTED, "--top", "3")
    sweep = pcm.patch_heads(pcm.Model.from_pretrained("tiny-cot"), CLEAN, CORRUPTED)
    assert code == 0 and out.count("  L") == 3
    for (layer, head), effect in sweep.top(3):
        assert f"L{layer}H{head}".ljust(8) + f" {effect:+.4f}" in out


def test_a_screened_sweep_says_so(shell, tmp_path):
    pair = ("--clean", CLEAN, "--corrupted", CORRUPTED)
    code, out, _ = shell("sweep", "--model", "tiny-cot", *pair, "--screen", "2", "--csv", tmp_path / "a.csv")
    sweep = pcm.patch_heads(pcm.Model.from_pretrained("tiny-cot"), CLEAN, CORRUPTED, screen=2)
    assert code == 0 and out.count("  L") == 2 and "only the 2 heads with the largest first-order estimates" in out
    frame = pd.read_csv(tmp_path / "a.csv")
    assert frame["exact"].sum() == 2 and np.allclose(frame["estimate"], sweep.estimate.ravel(), atol=1e-5)
    assert shell("sweep", "--model", "tiny-cot", *pair, "--screen", "99")[2].startswith("pycotmech: error: screen: got 99")


def test_sweep_needs_one_source_of_prompts(shell):
    code, _, err = shell("sweep", "--model", "tiny-cot")
    assert code == 2 and "expected either --clean and --corrupted, or --pairs" in err
    code, _, err = shell("sweep", "--model", "tiny-cot", "--clean", "a")
    assert code == 2 and "corrupted: missing" in err
