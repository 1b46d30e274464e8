"""Plans: what is said before a sweep is what it does."""

import gc
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch.profiler import ProfilerActivity, profile

import pycotmech as pcm
from pycotmech import ops
from pycotmech._words import plural
from tests.reference.stages import observe
from tests.reference.tiny import tiny_llama

V = 3000
SHAPE = dict(n_layers=5, n_heads=6, n_key_value_heads=2, d_head=32, d_model=192, d_mlp=512, d_vocab=V, n_positions=512)


@pytest.fixture(scope="module", params=[torch.float32, torch.bfloat16])
def model(request):
    return pcm.Model(tiny_llama(**SHAPE, dtype=request.param))


def pairs(n, length, first, seed=0):
    generator = torch.Generator().manual_seed(seed)
    front = torch.randint(V, (first - 3,), generator=generator)
    clean = [torch.cat((front, torch.randint(V, (length - len(front),), generator=generator))) for _ in range(n)]
    corrupted = [t.clone() for t in clean]
    for t in corrupted:
        t[first] = (t[first] + 1) % V
    return (clean, corrupted) if n > 1 else (clean[0], corrupted[0])


CASES = {
    "last": (pairs(1, 160, 140), dict(positions=[-1])),
    "all": (pairs(1, 160, 100), {}),
    "by position": (pairs(1, 100, 80), dict(by_position=True)),
    "groups": (pairs(1, 100, 80), dict(groups={"a": slice(82, 90), "b": [-1, -2]})),
    "many": (pairs(20, 160, 140), dict(positions=[-1])),
    "k": (pairs(1, 160, 130), dict(site="k")),
    "pattern": (pairs(1, 160, 130), dict(site="pattern")),
    "two logits": (pairs(1, 160, 100), dict(metric="logit_diff", answer=3, wrong=4)),
    "logits kept": (pairs(1, 160, 140), dict(return_logits=True)),
    "chunks": (pairs(6, 160, 140), dict(memory_gb=0.025)),
}


def peak_bytes(call):
    """What a call allocates at its worst moment, beside what there was."""
    gc.collect()
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as trace:
        out = call()
    events = sorted((e.start_ns(), e.nbytes()) for e in trace.profiler.kineto_results.events() if e.name() == "[memory]")
    return out, int(np.cumsum([n for _, n in events]).max())


BOTH = ("all", "by position", "two logits", "logits kept", "chunks")
"""Cases that are run in both dtypes by the quick tests too; bytes are counted alike in the others."""
QUICK_CASES = [
    pytest.param(dtype, name, marks=[] if dtype == torch.float32 or name in BOTH else pytest.mark.slow)
    for dtype in (torch.float32, torch.bfloat16)
    for name in CASES
]


@pytest.mark.parametrize(("model", "name"), QUICK_CASES, indirect=["model"])
def test_a_plan_is_what_is_done(model, monkeypatch, name):
    (clean, corrupted), arguments = CASES[name]
    model.prefixes.clear()
    seen, rows = [], []
    observe(monkeypatch, model.family, "mlp_out", lambda l, x: rows.append(len(x)))
    plan = pcm.plan_heads(model, clean, corrupted, **arguments)
    assert not rows
    progress = lambda done, total: seen.append((done, total))  # noqa: E731
    sweep, peak = peak_bytes(lambda: pcm.patch_heads(model, clean, corrupted, progress=progress, **arguments))
    if "memory_gb" not in arguments:  # what is free changes meanwhile
        plan = replace(plan, budget_bytes=sweep.plan.budget_bytes)
    assert plan == sweep.plan
    L = model.cfg.n_layers
    assert sum(rows) == pytest.approx((plan.token_forwards + plan.base_token_forwards) * L, abs=1e-6)
    assert peak <= plan.bytes_in_flight <= max(3 * peak, peak + 2**23), (peak / 2**20, plan)
    assert plan.bytes_in_flight <= plan.budget_bytes
    weights = sum(w.numel() * w.element_size() for w in model.hf.model.layers[0].parameters())
    unembedding = plan.chunks * model.hf.lm_head.weight.nbytes
    assert weights * len(rows) * 0.5 < plan.weight_bytes < weights * len(rows) * 1.5 + unembedding
    assert seen[-1] == (int(plan.token_forwards * L + 0.5) // L,) * 2
    if name == "chunks":
        assert plan.chunks > 1
        assert pcm.patch_heads(model, clean, corrupted).plan.chunks == 1
    assert plural(plan.chunks, "chunk") in str(plan) and "GiB of weights read" in str(plan)


def test_flop_are_those_of_the_products(model, monkeypatch):
    """Counted from the shapes that the stages get, attention's by the keys that each row sees."""
    (clean, corrupted), arguments = CASES["all"]
    model.prefixes.clear()
    family, cfg, flop = model.family, model.cfg, [0.0]
    heads, kv = cfg.n_heads * cfg.d_head, 2 * cfg.n_key_value_heads * cfg.d_head

    per_row = {
        "qkv": 2 * cfg.d_model * (heads + kv),
        "attn_out": 2 * cfg.d_model * heads,
        "join": 2 * cfg.d_model * heads,
        "mlp_out": 6 * cfg.d_model * cfg.d_mlp,
    }
    for stage, each in per_row.items():
        observe(monkeypatch, family, stage, lambda l, x, each=each: flop.__setitem__(0, flop[0] + each * len(x)))
    attend, attention = ops.prefix_attn, [0.0]

    def attended(q, k_shared, v_shared, k, v, rows, *args, **kwargs):
        own_lo, own_hi, lo, hi = rows.double().T
        attention[0] += 4 * heads * float((own_hi - own_lo + hi - lo).sum())
        return attend(q, k_shared, v_shared, k, v, rows, *args, **kwargs)

    monkeypatch.setattr(ops, "prefix_attn", attended)
    plan = pcm.patch_heads(model, clean, corrupted, **arguments).plan
    unembedding = 2 * cfg.d_model * V * plan.variants
    assert plan.flop == pytest.approx(flop[0] + attention[0] + unembedding, rel=0.05)


def test_a_budget_that_is_too_small_names_what_would_do(model, monkeypatch):
    clean, corrupted = pairs(1, 160, 100)
    monkeypatch.setattr(model.family, "embed", lambda tokens: pytest.fail("ran before the budget was checked"))
    calls = [
        lambda gb: pcm.patch_heads(model, clean, corrupted, memory_gb=gb),
        lambda gb: pcm.plan_heads(model, clean, corrupted, memory_gb=gb),
        lambda gb: pcm.patch_residual(model, clean, corrupted, memory_gb=gb),
        lambda gb: pcm.sweep(model, clean, [pcm.Variant((pcm.Edit("z", 0, 1, [9], 0.0),))], memory_gb=gb),
        lambda gb: pcm.ablate_heads(model, clean, [(0, 1)], kind="mean", mean=[corrupted], memory_gb=gb),
    ]
    for call in calls:
        with pytest.raises(ValueError, match=r"memory_gb: 0.001 GiB may be used, and one variant of \d+ rows needs 0.0\d+"):
            call(0.001)
    with pytest.raises(ValueError) as error:
        calls[0](0.001)
    least = float(str(error.value).split("rows needs ")[1].split(",")[0])
    assert pcm.plan_heads(model, clean, corrupted, memory_gb=least).chunks > 1
    monkeypatch.undo()
    least_sweep = pcm.patch_heads(model, clean, corrupted, memory_gb=least)
    whole = pcm.patch_heads(model, clean, corrupted)
    near = 1e-4 if model.cfg.dtype == torch.float32 else 0.2
    assert np.abs(least_sweep.values - whole.values).max() < near * np.abs(whole.values).max()


def test_a_plan_of_a_screen_is_refused(model):
    clean, corrupted = pairs(1, 160, 140)
    with pytest.raises(ValueError, match="screen: got 3"):
        pcm.plan_heads(model, clean, corrupted, screen=3)
    with pytest.raises(TypeError, match="by_head"):
        pcm.plan_heads(model, clean, corrupted, by_head=True)
