"""Every kernel in Triton's interpreter against float64, among NaN (tests/kernels/poison.py)."""

import pytest
from pycotmech.kernels import prefix_attn

from tests.kernels import cases


@pytest.mark.parametrize("name", cases.ATTENTION)
def test_extract(run, name):
    cases.check_extract(run, name)


def test_topk_ties(run):
    cases.check_ties(run)


@pytest.mark.parametrize(
    "name", ["suffix_gqa", "d80", "fp32", "padded_long", "window", "everything", "peaked", "scale_0", "sinks"]
)
def test_colsum(run, name):
    cases.check_colsum(run, name)


@pytest.mark.parametrize("name", ["suffix_gqa", "one_row", "d80", "fp32", "padded", "everything", "negative_scale", "sinks"])
def test_rows_and_entries(run_once, name):
    cases.check_rows(run_once, name)


@pytest.mark.parametrize("name", [name for name in cases.PREFIX if name not in cases.SPLIT])
def test_prefix(run, name):
    cases.check_prefix(run, name)


@pytest.mark.parametrize("name", cases.SPLIT)
def test_few_rows_are_split(run, name, monkeypatch):
    found, plain = [], prefix_attn.splits
    monkeypatch.setattr(prefix_attn, "splits", lambda *sizes: found.append(plain(*sizes)) or found[-1])
    cases.check_prefix(run, name)
    assert found[0] > 4


@pytest.mark.parametrize("case", cases.ROWS, ids=str)
def test_add_rms_norm(run_once, case):
    cases.check_norm(run_once, *case)


@pytest.mark.parametrize("case", cases.ROPE, ids=str)
def test_rope(run_once, case):
    cases.check_rope(run_once, *case)


@pytest.mark.parametrize("case", cases.ROPE_KEYS, ids=str)
def test_rope_keys(run_once, case):
    cases.check_rope_keys(run_once, *case)


@pytest.mark.parametrize("case", cases.SWIGLU, ids=str)
def test_swiglu(run_once, case):
    cases.check_swiglu(run_once, *case)
