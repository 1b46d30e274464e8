"""While rows go through the layers nothing is asked of the device: no number is read back, no place is looked for there.

On CUDA each of these operations stops the program until the device has caught up. They are watched for on the CPU, where the
engine makes the same calls; the ops below it, which have code of their own for CUDA, are left out. And passes are run on
PyTorch's "meta" device, whose tensors have shapes and no values: there is nothing to read back, and a tensor that came from
the CPU would be seen.
"""

import traceback

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

import pycotmech as pcm
from pycotmech.engine import graphs
from pycotmech.engine.joins import HeadJoins
from pycotmech.engine.staircase import Staircase
from pycotmech.model.families import family_of
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
    model = pcm.Model(tiny_llama(n_heads=4, n_key_value_heads=2, n_layers=3))
    model.family.few_launches = True  # as on a GPU
    return model, clean, corrupted


SITES = ["z", "q", "k", "v", "pattern", "resid_pre", "resid_mid", "resid_post", "attn_out", "mlp_out"]


def patch(case, site):
    model, clean, corrupted = case
    if site in ("z", "q", "k", "v", "pattern"):
        pcm.patch_heads(model, clean, corrupted, site=site)
        pcm.patch_heads(model, [clean, clean[:20]], [corrupted, corrupted[:20]], site=site, positions=[-1, -2])
    else:
        pcm.patch_residual(model, clean, corrupted, site=site)


def several_layers(case):
    model, clean, _ = case
    pattern = pcm.Edit("pattern", 1, None, [18, 23], torch.full((1, 24), 1 / 30).tril(15))
    edits = (pcm.Edit("k", 0, 1, [4, 9], 0.0), pcm.Edit("z", 1, 2, None, 1.0), pcm.Edit("edge", 2, None, [23], keys=[3, 4]))
    pcm.sweep(model, clean, [pcm.Variant(edits[:n]) for n in (1, 2, 3)] + [pcm.Variant((pattern,))])
    pcm.ablate_heads(model, clean, [(0, 1), (2, 3)], each=True)


def paths(case):
    model, clean, corrupted = case
    options = dict(metric="logit_diff", answer=7, wrong=11, positions=[-1, -3])
    pcm.path_patch(model, clean, corrupted, **options)
    for per_query_head in (False, True):
        pcm.path_patch(
            model, clean, corrupted, senders=[(0, 1), (1, 3)], receivers=[(1, 0), (2, 3), (2, 1)],
            per_query_head=per_query_head, **options,
        )  # fmt: skip


@pytest.mark.parametrize("site", SITES)
def test_patching(case, watched, site):
    patch(case, site)
    assert watched.count > 100 and watched.found == []


@pytest.mark.parametrize("run", [several_layers, paths])
def test_variants_with_edits_in_several_layers_and_paths(case, watched, run):
    run(case)
    assert watched.count > 100 and watched.found == []


class OneDevice(TorchDispatchMode):
    """Holds what runs to tensors of the meta device."""

    def __init__(self):
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.count += 1
        out = func(*args, **(kwargs or {}))
        for t in tree_leaves((args, kwargs, out)):
            if isinstance(t, torch.Tensor) and t.device.type != "meta":
                # A number that was written into the program is a tensor for a moment, and a kernel's argument after it.
                assert t.ndim == 0 and func._schema.name in ("aten::scalar_tensor", "aten::lift_fresh"), func._schema.name
        return out


@pytest.fixture
def without_values(case, monkeypatch):
    """Each pass is also run on the meta device, its weights and tensors without values; counts passes and operations."""
    meta = family_of(tiny_llama(n_heads=4, n_key_value_heads=2, n_layers=3).to("meta"))
    meta.few_launches = True
    plain, mode, passes = Staircase.run, OneDevice(), []

    def run(self):
        empty = {id(t): torch.empty_like(t, device="meta") for t in graphs.Signature(self).tensors}
        copy = graphs.bound(self, empty)
        parts = (copy, copy.attention, copy.mlp, copy.watch, copy.edits, copy.edits.value, copy.join)
        for part in (*parts, getattr(copy.join, "controls", None)):
            if hasattr(part, "family"):
                vars(part)["family"] = meta
        with mode:
            out = plain(copy)
        passes.append(out)
        real = plain(self)
        assert out.device.type == "meta" and out.shape == real.shape and out.dtype == real.dtype
        return real

    monkeypatch.setattr(Staircase, "run", run)
    return passes, mode


@pytest.mark.parametrize("run", [*SITES, several_layers, paths])
def test_on_a_device_without_values(case, without_values, run):
    passes, mode = without_values
    run(case) if callable(run) else patch(case, run)
    assert len(passes) >= 1 and mode.count > 100


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


@pytest.mark.parametrize("what", ["read back", "from the CPU"])
def test_the_device_without_values_sees(case, without_values, monkeypatch, what):
    plain = HeadJoins.__call__

    def rows(self, joining):
        if what == "read back":
            return plain(self, joining) * float(self.control.any())
        return plain(self, joining) * torch.ones(1).to(self.control.device)

    monkeypatch.setattr(HeadJoins, "__call__", rows)
    with pytest.raises((RuntimeError, NotImplementedError, AssertionError)):
        patch(case, "z")
