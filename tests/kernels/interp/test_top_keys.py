"""Top keys by a bound (`kernels/extract_topk.py`) in Triton's interpreter: when programs do without rounds, and what happens
where a list is too short or a bound is wrong."""

import math

import pytest
import torch
from pycotmech.kernels import configs, extract, extract_topk, launch

from tests.kernels import chosen, poison


def run(op, *args):
    with launch.as_if_on("sm_90"), poison.guarded_outputs():
        return extract.attn_extract(*args)


@pytest.fixture
def taken(monkeypatch):
    """The programs that go through rounds."""
    calls, plain = [], extract_topk.rounds

    def counted(*args):
        calls.append(args)
        return plain(*args)

    monkeypatch.setattr(extract_topk, "rounds", counted)
    return calls


@pytest.mark.parametrize("name", chosen.OPTIONS)
def test_chosen_scores(name, taken):
    chosen.check(run, *chosen.tensors(list(chosen.PATTERNS.values())), **chosen.OPTIONS[name])
    assert not taken


def test_a_list_that_is_too_short(taken):
    """Only the program that has such a row goes through rounds."""
    rows = torch.zeros(150, dtype=torch.int64)
    rows[140] = 1
    chosen.check(run, *chosen.tensors([chosen.PATTERNS["rising"], chosen.ONE_BIN], rows))
    assert len(taken) == 1


def test_softcapped_scores(taken):
    patterns = [chosen.PATTERNS["two values"], chosen.PATTERNS["near"] / 64]
    chosen.check(run, *chosen.tensors(patterns), softcap=2.0, scale=1.0)
    assert not taken


@pytest.mark.parametrize("shift", [1.0, -1e6], ids=["too high", "too low"])
def test_a_wrong_bound_is_noticed(shift, taken, monkeypatch):
    """Nothing rests on the pass before: with a bound that is too high a row finds too few keys, with one too low too many."""
    plain = extract_topk._bound
    monkeypatch.setattr(extract_topk, "_bound", lambda *args: plain(*args) + shift)
    chosen.check(run, *chosen.tensors([chosen.PATTERNS["near"], chosen.PATTERNS["falling"]]))
    assert taken


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf], ids=str)
def test_scores_that_are_not_finite(value, monkeypatch):
    """The same keys with a bound as without."""
    g = torch.Generator().manual_seed(0)
    q, k = torch.randn(2, 1, 1, 80, 32, generator=g).bfloat16()
    q[..., 0] = 1
    k[..., [3, 70, 71], 0] = value
    found = []
    for families in (configs.BOUNDED, ()):
        monkeypatch.setattr(configs, "BOUNDED", families)
        found.append(run("attn_extract", q, k, k, None, 0, None, None, 0.2, False, 8, 0, 0.0)[7])
    assert torch.equal(*found)


def test_heads_of_several_launches(monkeypatch):
    """Lists of a bounded size: the same as at once."""
    q, k = torch.randn(2, 1, 3, 40, 32, generator=torch.Generator().manual_seed(1)).bfloat16()
    monkeypatch.setattr(extract_topk, "LISTS", 2 * 40 * extract_topk._RECORD)
    chosen.check(run, q, k, scale=0.2)
