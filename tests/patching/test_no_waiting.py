"""While rows go through the layers nothing is asked of the device: no number is read back, no place is looked for there.

On CUDA each of these operations stops the program until the device has caught up. They are watched for on the CPU, where the
engine makes the same calls; the ops below it, which have code of their own for CUDA, are left out.
"""

import traceback

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

import pycotmech as pcm
from pycotmech.patching.evaluate import HeadJoins
from pycotmech.patching.staircase import Staircase
from tests.reference.tiny import tiny_llama

WAITS = ("_local_scalar_dense", "nonzero", "item", "unique_dim", "_unique2", "unique_consecutive", "is_nonzero", "equal")


class Watch(TorchDispatchMode):
    def __init__(self):
        super().__init__()
        self.found, self.count = [], 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.count += 1
        if func._schema.name.split("::")[1] in WAITS:
            callers = [f for f in traceback.extract_stack()[:-1] if "pycotmech" in f.filename or "tests" in f.filename]
            if "/pycotmech/ops/" not in callers[-1].filename:
                self.found.append(f"{func._schema.name} at {callers[-1].filename}:{callers[-1].lineno}: {callers[-1].line}")
        return func(*args, **(kwargs or {}))


@pytest.fixture
def watched(monkeypatch):
    watch, plain = Watch(), Staircase.run

    def run(self):
        with watch:
            return plain(self)

    monkeypatch.setattr(Staircase, "run", run)
    monkeypatch.setattr(HeadJoins, "_picks", staticmethod(lambda rows: False))  # as on a GPU
    return watch


@pytest.fixture(scope="module")
def case():
    clean = torch.randint(61, (24,), generator=torch.Generator().manual_seed(1))
    corrupted = clean.clone()
    corrupted[15] = (corrupted[15] + 1) % 61
    return pcm.Model(tiny_llama(n_heads=4, n_key_value_heads=2, n_layers=3)), clean, corrupted


@pytest.mark.parametrize("site", ["z", "q", "k", "v", "resid_pre", "resid_mid", "resid_post", "attn_out", "mlp_out"])
def test_patching(case, watched, site):
    model, clean, corrupted = case
    if site in "zqkv":
        pcm.patch_heads(model, clean, corrupted, site=site)
        pcm.patch_heads(model, [clean, clean[:20]], [corrupted, corrupted[:20]], site=site, positions=[-1, -2])
    else:
        pcm.patch_residual(model, clean, corrupted, site=site)
    assert watched.count > 100 and watched.found == []


def test_variants_with_edits_in_several_layers(case, watched):
    model, clean, _ = case
    edits = (pcm.Edit("k", 0, 1, [4, 9], 0.0), pcm.Edit("z", 1, 2, None, 1.0), pcm.Edit("edge", 2, None, [23], keys=[3, 4]))
    pcm.sweep(model, clean, [pcm.Variant(edits[:n]) for n in (1, 2, 3)])
    pcm.ablate_heads(model, clean, [(0, 1), (2, 3)], each=True)
    assert watched.count > 100 and watched.found == []


@pytest.mark.parametrize("site", ["z", "attn_out"])
def test_masked_joins_are_picked_ones(case, monkeypatch, site):
    """What a GPU computes for all rows and the CPU for some is the same."""
    model, clean, corrupted = case
    patch = pcm.patch_heads if site == "z" else pcm.patch_residual
    picked = patch(model, clean, corrupted, site=site)
    monkeypatch.setattr(HeadJoins, "_picks", staticmethod(lambda rows: False))
    masked = patch(model, clean, corrupted, site=site)
    assert (masked.raw == picked.raw).all() and masked.noise_floor == picked.noise_floor > 0


def test_the_watch_sees(case, watched, monkeypatch):
    """A number read back in a stage of a layer is found."""
    model, clean, corrupted = case
    plain = model.family.mlp_out
    monkeypatch.setattr(model.family, "mlp_out", lambda l, x: plain(l, x) if float(x.abs().max()) else x)
    pcm.patch_heads(model, clean, corrupted)
    assert len(watched.found) >= 3 and all("float(x.abs().max())" in line for line in watched.found)
