"""How many launches a sweep asks of a GPU, counted without one; and that what is done to need few of them changes no number."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import LlamaConfig, LlamaForCausalLM

import pycotmech as pcm
from pycotmech.engine import graphs
from pycotmech.model import model as model_module
from pycotmech.model import sizes
from pycotmech.model.run import forward_packed
from tests.engine.launches import META, Launches, one_attention
from tests.reference.small_families import by_family, small
from tests.reference.stand_in_graphs import Again
from tests.reference.tiny import tiny_llama

H100 = sizes.for_ridge(266)
T, SUFFIX = 512, 40
LIMIT = 240
"""Launches outside graphs of a sweep whose prefix is not kept yet, at 32 layers and T = 512, read and patched at the last
position; passes of its shape have been seen."""
PASSES = 3
"""Passes of a cold sweep: over the prefix, over both prompts from where they differ, and over the variants."""
LIMIT_FIRST = 3420
"""The same of a sweep whose shape is new, so that every pass is launched kernel by kernel."""


class Replayed(Again):
    """A replay is one launch, and a capture counts nothing."""

    def __init__(self, launches):
        super().__init__()
        self.launches = launches

    def capture(self, fn):
        self.launches.paused = True
        captured = super().capture(fn)
        self.launches.paused = False
        return captured

    def replayed(self, fn):
        self.launches._count("graph")


@pytest.fixture
def counted(monkeypatch):
    """A model of 32 layers without values, as on an H100; launches; and a sweep of new prompts of one shape."""
    launches = Launches()
    with torch.device("meta"):
        config = LlamaConfig(
            num_hidden_layers=32, hidden_size=256, intermediate_size=688, num_attention_heads=32, vocab_size=500
        )  # widths do not matter
        hf = LlamaForCausalLM(config).bfloat16().eval()
    monkeypatch.setattr(model_module, "_base_of", lambda hf: hf)  # refuses models without values
    monkeypatch.setattr(sizes, "CPU", H100)
    monkeypatch.setattr(F, "scaled_dot_product_attention", one_attention(launches))
    monkeypatch.setattr(graphs, "captures", lambda device: True)
    monkeypatch.setattr(graphs, "backend_for", lambda device: Replayed(launches))
    monkeypatch.setattr(graphs.Graphs, "_compare", staticmethod(lambda replayed, usual, dtype: None))  # there are no values
    graphs.kept.clear()
    model = pcm.Model(hf, check=False)
    model.family.few_launches = True  # as on a GPU

    def sweep(seed, length=T, suffix=SUFFIX):
        generator = torch.Generator().manual_seed(seed)
        clean = torch.randint(500, (length,), generator=generator)
        corrupted = clean.clone()
        corrupted[length - suffix : -1] = (clean[length - suffix : -1] + 1) % 500
        before = launches.total
        with launches:
            pcm.patch_heads(
                model,
                clean,
                corrupted,
                positions=[length - 1],
                metric="logit_diff",
                answer=7,
                wrong=11,
                normalize=False,
                memory_gb=20.0,
            )
        return launches.total - before

    yield sweep, launches, model
    graphs.kept.clear()


def test_launches_of_a_cold_sweep(counted):
    sweep, launches, model = counted
    first, second, cold = (sweep(seed) for seed in range(3))  # no prefix is shared
    assert model.device == META and launches.counts["graph"] >= PASSES
    assert cold <= LIMIT, launches.counts.most_common(30)
    assert first <= LIMIT_FIRST and cold < second, (first, second)
    assert launches.counts["rope_keys"] >= 2 * 31, "keys of prompts are rotated and kept in one launch"


def test_a_first_sweep_of_other_prompts_replays(counted):
    """Neither the length of the prompts nor where they first differ has been seen before."""
    sweep, launches, _ = counted
    sweep(0, T - 7), sweep(1, T - 7)
    before = launches.counts["graph"]
    cold = sweep(2, T, SUFFIX + 3)
    assert launches.counts["graph"] == before + PASSES
    assert cold <= LIMIT, cold


def test_weights_in_one_buffer_need_fewer_launches(counted):
    """As `fuse_weights=True` puts them: three products less in every layer of both passes of the prompts, launched one by
    one."""
    sweep, _, model = counted
    separate = sweep(0)
    for layer in model.hf.model.layers:
        attention, mlp = layer.self_attn, layer.mlp
        for group in ((attention.q_proj, attention.k_proj, attention.v_proj), (mlp.gate_proj, mlp.up_proj)):
            shapes = [m.weight.shape for m in group]
            together = torch.empty(sum(n for n, _ in shapes), shapes[0][1], dtype=torch.bfloat16, device=META)
            for m, part in zip(group, together.split([n for n, _ in shapes]), strict=True):
                m.weight.data = part
    graphs.kept.clear()
    fused = sweep(3)
    assert separate - fused >= 2 * 3 * 31, (separate, fused)


def test_what_an_mlp_adds_is_added_by_the_next_norm():
    """All additions to the residual stream are fused with norms but for the last one. Sites that are kept are whole."""
    model = pcm.Model(tiny_llama(n_layers=4), check=False)
    family, tokens, added = model.family, torch.arange(3, 12), []
    family.few_launches = True
    sites = ("resid_pre", "resid_mid", "resid_post", "attn_out", "mlp_out")

    class Additions(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            if func._schema.name in ("aten::add", "aten::add_") and args[0].shape == (9, 48):
                added.append(func._schema.name)
            return func(*args, **(kwargs or {}))

    def run():
        return forward_packed(family, [tokens], sites=sites).sites

    with Additions():
        found = run()
    assert added == ["aten::add_"]
    family.few_launches = False
    usual = run()
    assert all(torch.allclose(found[site], usual[site], rtol=1e-5, atol=1e-6) for site in sites)
    assert torch.equal(found["resid_post"][:-1], found["resid_pre"][1:])


@pytest.mark.parametrize("family", by_family())
def test_few_launches_change_nothing_beyond_rounding(family):
    """What is done on a GPU only, on the CPU: products in one buffer, sums fused with norms, angles looked up once."""
    model = pcm.Model(small(family), check=False)
    clean = torch.arange(3, 27)
    corrupted = clean.clone()
    corrupted[13] += 1
    found = []
    for few in (False, True):
        model.family.few_launches = few
        model.prefixes.clear()
        arguments = dict(metric="logit_diff", answer=7, wrong=11, normalize=False)
        found.append(
            [pcm.patch_heads(model, clean, corrupted, site=site, **arguments).raw for site in ("z", "q", "v", "pattern")]
        )
        found[-1].append(pcm.patch_residual(model, clean, corrupted, site="resid_post", **arguments).raw)
        found[-1].append(model.run(clean, capture=("resid_pre", "resid_post", "q", "k", "v", "z", "mlp_out")).logits.numpy())
    for usual, fewer in zip(*found, strict=True):
        np.testing.assert_allclose(fewer, usual, atol=2e-5 * np.abs(usual).max(), rtol=0)


def test_a_table_is_checked_when_it_is_made():
    family = pcm.Model(tiny_llama(n_layers=1), check=False).family
    zero = torch.zeros(1, dtype=torch.long)
    assert family.row_table(zero, zero, zero, zero + 5, own_keys=1, shared_keys=5).tolist() == [[0, 1, 0, 5]]
    for keys, what in ((dict(own_keys=0, shared_keys=5), "k_own"), (dict(own_keys=1, shared_keys=4), "k_shared")):
        with pytest.raises(ValueError, match=what):
            family.row_table(zero, zero, zero, zero + 5, **keys)
