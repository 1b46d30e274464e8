"""The cases of tests/kernels/cases.py through the registered ops on a CUDA device: `pytest tests/kernels -m gpu`."""

import pytest
import torch

import pycotmech.ops  # noqa: F401  registers the ops

pytest.importorskip("triton", reason="the kernels need triton")
from tests.kernels import cases, chosen, poison

pytestmark = pytest.mark.gpu

CHANGED = {"add_rms_norm": (0,), "rope": (0,), "rope_keys": (0, 5, 6)}
"""Arguments that an op changes in place."""


@pytest.fixture
def run():
    """The op on CUDA copies of the arguments, in the same poisoned surroundings; in-place results are copied back."""

    def call(op, *args):
        moved = [poison.island(a.cuda()) if isinstance(a, torch.Tensor) and a.numel() else a for a in args]
        moved = [a.cuda() if isinstance(a, torch.Tensor) else a for a in moved]
        with poison.guarded_outputs():
            out = getattr(torch.ops.pycotmech, op)(*moved)
            torch.cuda.synchronize()
        for i in CHANGED.get(op, ()):
            if args[i] is not None:
                args[i].copy_(moved[i])
        return out

    return call


@pytest.mark.parametrize("name", cases.ATTENTION)
def test_extract(run, name):
    cases.check_extract(run, name, cases.ON_GPU)


def test_topk_ties(run):
    cases.check_ties(run)


@pytest.mark.parametrize("name", chosen.OPTIONS)
def test_chosen_scores(run, name):
    patterns = list(chosen.PATTERNS.values())
    for rows in (patterns, [*patterns, chosen.ONE_BIN]):
        chosen.check(run, *chosen.tensors(rows), **chosen.OPTIONS[name], slack=cases.ON_GPU)


@pytest.mark.parametrize("name", cases.ATTENTION)
def test_colsum(run, name):
    cases.check_colsum(run, name, cases.ON_GPU)


@pytest.mark.parametrize("name", cases.ATTENTION)
def test_rows_and_entries(run, name):
    cases.check_rows(run, name, cases.ON_GPU)


@pytest.mark.parametrize("name", cases.PREFIX)
def test_prefix(run, name):
    cases.check_prefix(run, name, cases.ON_GPU)


@pytest.mark.parametrize("case", cases.ROWS, ids=str)
def test_add_rms_norm(run, case):
    cases.check_norm(run, *case, cases.ON_GPU)


@pytest.mark.parametrize("case", cases.ROPE, ids=str)
def test_rope(run, case):
    cases.check_rope(run, *case, cases.ON_GPU)


@pytest.mark.parametrize("case", cases.ROPE_KEYS, ids=str)
def test_rope_keys(run, case):
    cases.check_rope_keys(run, *case, cases.ON_GPU)


@pytest.mark.parametrize("case", cases.SWIGLU, ids=str)
def test_swiglu(run, case):
    cases.check_swiglu(run, *case, cases.ON_GPU)
