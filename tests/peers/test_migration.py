"""The peers' side of docs/migration.md runs, and gives the numbers of ours (which tests/docs runs)."""

from __future__ import annotations

import copy
import re

import numpy as np
import pytest

from benchmarks import three_ways
from tests.docs.test_code_blocks import ROOT, blocks_of, smaller

pytestmark = pytest.mark.peers

OWN_MODEL = re.compile(r"boot_transformers\(|TransformersModel\(|IntervenableModel\(")
"""A library that puts modules of its own around the model's gets a copy."""


def close(theirs: object, ours: object, tolerance: float) -> bool:
    """Whether two arrays differ by no more than this share of the largest value."""
    a, b = (np.asarray(x, dtype=np.float64) for x in (theirs, ours))
    return bool(a.shape == b.shape and np.abs(a - b).max() <= tolerance * np.abs(b).max())


def test_both_sides_of_the_page_agree(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    names: dict = {"__name__": "__main__", "path": str(tmp_path / "model")}
    original = None
    for block in blocks_of(ROOT / "docs" / "migration.md", "python"):
        if "model" in names and original is None:
            original = names["model"].hf
            original.config.save_pretrained(names["path"])
            names["tokenizer"].save_pretrained(names["path"])
        if original is not None and OWN_MODEL.search(block.text):
            names["hf"] = copy.deepcopy(original)
        three_ways.execute(smaller(block.text), tmp_path / f"line_{block.line}.py", names)

    for theirs in ("by_lens", "by_nnsight", "by_pyvene"):
        assert close(names[theirs], names["sweep"].raw, 1e-3), theirs
    assert close(names["by_position"], names["residual"].raw, 1e-3)
    T = len(names["clean"])
    assert close(names["resid"].reshape(T, -1), names["acts"]["resid_post"][1], 1e-4)
    assert close(names["z_of_lens"].reshape(T, -1), names["acts"]["z"][1].reshape(T, -1), 1e-4)
    assert close(names["logit_difference"](names["without"]), names["ablated"].raw.ravel()[0], 1e-3)
    assert close(names["logit_difference"](names["edited"]), names["own"].raw.ravel()[0], 1e-3)
    assert close(names["on_question"], names["summary"].segment("question")[2, :, 0], 1e-4)


def test_the_benchmark_compares_three_libraries():
    rows = [three_ways.run(library, "tiny-cot", 1, 1) for library in three_ways.RESULTS]
    assert not [row["why"] for row in rows if "why" in row]
    assert not [row["why"] for row in three_ways.compared(rows) if "why" in row]
