"""The tables of docs/findings.md: the numbers of the result, each with its floor and its control."""

import numpy as np
import pytest
import xarray as xr

from benchmarks import findings
from pycotmech.cot.analyses.patch_steps import PatchSteps


@pytest.fixture
def found() -> PatchSteps:
    """Eight examples at one step; head 1 of layer 1 restores half, another 0.2, and the controls reach 0.3."""
    grid, cell = ("example", "step", "layer", "head"), ("example", "step")
    effect = np.random.default_rng(0).normal(0, 1e-3, (8, 1, 4, 8))
    effect[:, 0, 1, 1] += 0.5
    effect[:, 0, 2, 5] += 0.2
    control = np.full(effect.shape, np.nan)
    control[:, 0, :, 3] = np.linspace(0, 0.3, 4)
    ones = np.ones((8, 1))
    data = {"effect": (grid, effect), "kl": (grid, 1 - effect), "control": (grid, control)}
    data |= {"kl_clean": (cell, 0 * ones), "kl_corrupted": (cell, ones), "noise_floor": (cell, 0.01 * ones)}
    coords = {
        "example": np.arange(8),
        "step": [5],
        "kind": ("step", ["induction"]),
        "layer": np.arange(4),
        "head": np.arange(8),
    }
    about = {"model": "m", "cells": 8, "settings": {"direction": "denoise"}}
    return PatchSteps(xr.Dataset(data, coords), about)


def test_the_section_has_floor_and_control(found, tmp_path):
    text = findings.section(found)
    assert len([line for line in text.splitlines() if line.startswith("| L")]) == 10
    assert "**Step 5, induction**: right in 8 of 8, noise floor 0.010, control 0.300, reported on 4." in text
    lines = [line for line in text.splitlines() if line.startswith("| L")]
    assert lines[0].startswith("| L1H1 | +0.5") and lines[0].endswith("|  | yes |")
    assert lines[1].startswith("| L2H5 | +0.2") and lines[1].endswith("| within the control |")
    assert lines[2].endswith("| within the floor |")
    page = tmp_path / "findings.md"
    page.write_text(f"# Title\n\n{findings.TITLE}\n\nold\n\n## Speed\n\nkept\n")
    found.save(tmp_path / "data")
    findings.main([str(tmp_path), "--page", str(page)])
    assert page.read_text() == f"# Title\n\n{text}\n## Speed\n\nkept\n"
    with pytest.raises(ValueError, match="there is no section"):
        findings.replaced("# Title", text)


def test_the_page_has_the_section():
    assert findings.replaced(findings.PAGE.read_text(encoding="utf-8"), "").count("## ") >= 2
