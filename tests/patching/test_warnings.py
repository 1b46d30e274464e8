"""Warnings point at the line that called the package."""

import warnings

import pytest
import torch

import pycotmech as pcm
from tests.reference.tiny import tiny_llama


@pytest.fixture(scope="module")
def model():
    return pcm.Model(tiny_llama(n_layers=3, dtype=torch.float32))


CLEAN = torch.tensor([5, 6, 7, 8, 9, 10])
CORRUPTED = torch.tensor([5, 6, 30, 8, 9, 10])


def edits(last):
    return [pcm.Edit("z", 0, 0, [3], 0.0), pcm.Edit("z", last, 0, [3], 0.0)]


CALLS = {
    "patch_heads": lambda m: pcm.patch_heads(m, CLEAN, CORRUPTED, positions=[3]),
    "patch_heads_each": lambda m: pcm.patch_heads_each(m, [CLEAN], [CORRUPTED], positions=[3]),
    "plan_heads": lambda m: pcm.plan_heads(m, CLEAN, CORRUPTED, positions=[3]),
    "patch_residual": lambda m: pcm.patch_residual(m, CLEAN, CORRUPTED, site="resid_mid", positions=[3], by_position=False),
    "attribute_heads": lambda m: pcm.attribute_heads(
        m, CLEAN, CORRUPTED, positions=[3], metric="prob", answer=3
    ),
    "sweep": lambda m: pcm.sweep(m, CLEAN, [pcm.Variant(tuple(edits(m.cfg.n_layers - 1)))]),
    "ablate_heads": lambda m: pcm.ablate_heads(m, CLEAN, [(0, 0), (m.cfg.n_layers - 1, 0)], positions=[3]),
    "knock_out_edges": lambda m: pcm.knock_out_edges(m, CLEAN, from_=[1], to=[3], layers=[0, m.cfg.n_layers - 1]),
}  # fmt: skip


@pytest.mark.parametrize("name", CALLS)
def test_a_warning_points_at_the_callers_line(model, name):
    with warnings.catch_warnings(record=True) as found:
        warnings.simplefilter("always")
        CALLS[name](model)
    assert found and {w.filename for w in found} == {__file__}
    here = CALLS[name].__code__
    assert {w.lineno for w in found} <= {line for _, _, line in here.co_lines()}
