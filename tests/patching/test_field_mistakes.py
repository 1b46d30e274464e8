"""Mistakes that other libraries have made, each with a test that it is not made here.

Further ones stand where they belong: a lost head dimension is seen (tests/ops/test_dropped_dimension.py), hooks that would be
ignored are refused (tests/model/test_model.py), edits that reach nothing are errors (test_sweep.py).
"""

import numpy as np
import pytest
import torch

import pycotmech as pcm
from pycotmech.engine.staircase import Staircase
from pycotmech.patching import attribution
from tests.reference.stages import observe
from tests.reference.tiny import tiny_llama
from tests.reference.truth import activations, double, logits_of, patched_logits, z_of

T, FIRST, D = 20, 13, 16
DIFFERENCE = dict(metric="logit_diff", answer=7, wrong=11)


def prompts(seed=0):
    clean = torch.randint(61, (T,), generator=torch.Generator().manual_seed(seed))
    corrupted = clean.clone()
    for p in (FIRST, 16):
        corrupted[p] = (corrupted[p] + 9) % 61
    return clean, corrupted


# ---- an edit of one query head's input changed z of the whole group ---------------------------------------------------

REACHES = {
    ("q", 1, False): {1},
    ("z", 1, False): {1},
    ("pattern", 1, False): {1},
    ("k", 1, False): {3, 4, 5},
    ("v", 0, False): {0, 1, 2},
    ("k", 1, True): {1},
    ("v", 4, True): {4},
}


@pytest.mark.parametrize(("site", "head", "per_query_head"), REACHES)
def test_an_edit_of_a_head_changes_z_of_that_head_alone(site, head, per_query_head):
    """Seen at the projection itself: what o_proj gets differs from the base run in these heads, in no other."""
    hf = tiny_llama(n_heads=6, n_key_value_heads=2, n_layers=2)
    tokens, seen = prompts()[0], []
    base = torch.stack(z_of(hf, tokens))[0]  # [T, H, D]
    hf.model.layers[0].self_attn.o_proj.register_forward_pre_hook(
        lambda module, args: seen.append(args[0].detach().reshape(-1, 6, D).clone())
    )
    model = pcm.Model(hf)
    seen.clear()
    value = torch.eye(T)[0] if site == "pattern" else 0.0  # zeroed; of a pattern, the first key takes all
    edit = pcm.Edit(site, 0, head, None, value, per_query_head=per_query_head)
    pcm.sweep(model, tokens, [pcm.Variant((edit,))], **DIFFERENCE)
    found = set()
    for row in torch.cat(seen):
        changed = (row - base).abs().amax(-1) > 1e-3  # [T, H], against each position of the base run
        nearest = changed[changed.sum(1).argmin()]
        found.add(frozenset(nearest.nonzero().flatten().tolist()))
    assert found == {frozenset(), frozenset(REACHES[site, head, per_query_head])}


# ---- pseudo-heads ----------------------------------------------------------------------------------------------------


def test_a_head_is_not_its_slice_of_what_attention_adds():
    """`patch_heads` and `ablate_heads` are the interventions in front of W_O; the same columns behind it are others."""
    hf = tiny_llama(n_heads=6, n_key_value_heads=2, n_layers=2, d_model=96)  # as many columns behind W_O as in front
    hf64, (clean, corrupted) = double(hf), prompts()
    model, source = pcm.Model(hf), z_of(hf64, clean)
    swept = pcm.patch_heads(model, clean, corrupted, normalize=False, **DIFFERENCE).effect[0]
    zero = logits_of(hf64, corrupted, keep=1)[0]
    truth = torch.stack([patched_logits(hf64, corrupted, source, 0, h) for h in range(6)]) - zero
    truth = (truth[:, 7] - truth[:, 11]).numpy()
    ours, theirs = (activations(hf64, t)["attn_out", 0] for t in (corrupted, clean))
    variants = []
    for h in range(6):
        sliced = ours.clone()
        sliced[:, h * D : (h + 1) * D] = theirs[:, h * D : (h + 1) * D]
        variants.append(pcm.Variant((pcm.Edit("attn_out", 0, None, None, sliced),)))
    pseudo = pcm.sweep(model, corrupted, variants, **DIFFERENCE).effect
    scale = np.abs(truth).max()
    assert np.abs(swept - truth).max() < 1e-4 * scale
    assert np.abs(pseudo - truth).max() > 0.3 * scale and np.corrcoef(pseudo, truth)[0, 1] < 0.9


# ---- the user's model was changed -------------------------------------------------------------------------------------


def calls(model, hf):
    clean, corrupted = prompts()
    ids = clean[None]
    return {
        "run": lambda: model.run(clean, capture=("z", "resid_pre")),
        "patch_heads": lambda: pcm.patch_heads(model, clean, corrupted),
        "patch_heads, q": lambda: pcm.patch_heads(model, clean, corrupted, site="q", by_position=True),
        "screen": lambda: pcm.patch_heads(model, clean, corrupted, screen=2, **DIFFERENCE),
        "patch_residual": lambda: pcm.patch_residual(model, clean, corrupted),
        "sweep": lambda: pcm.sweep(model, clean, [pcm.Variant((pcm.Edit("v", 0, 1, None, 0.0),))]),
        "ablate_heads": lambda: pcm.ablate_heads(model, clean, [(0, 1)]),
        "attribute_heads": lambda: pcm.attribute_heads(model, clean, corrupted),
        "attention_summary": lambda: pcm.attention_summary(model, clean),
        "capture_attention": lambda: captured(hf, ids),
        "head_scores": lambda: pcm.head_scores(model, clean),
    }


def captured(hf, ids):
    with pcm.capture_attention(hf), torch.no_grad():
        hf(ids)


@pytest.mark.parametrize("name", calls(None, None))
def test_the_user_s_hooks_flags_and_settings_stay(name):
    """The very hooks, by identity and order; and they still fire."""
    hf = tiny_llama(n_heads=4, n_key_value_heads=2, n_layers=2, attn_implementation="sdpa")
    fired = []
    for module in (hf.model.layers[0].self_attn.q_proj, hf.model.layers[1].self_attn.o_proj, hf.model.norm, hf.lm_head):
        module.register_forward_hook(lambda module, args, out: fired.append(1))
        module.register_forward_pre_hook(lambda module, args: fired.append(2))
        module.register_full_backward_hook(lambda module, grad_in, grad_out: None)
    for n, parameter in enumerate(hf.parameters()):
        parameter.requires_grad_(n % 3 == 0)
    hf.train()
    hf.model.layers[1].eval()

    def state():
        modules = [
            (
                m.training,
                [(i, id(h)) for hooks in (m._forward_hooks, m._forward_pre_hooks, m._backward_hooks) for i, h in hooks.items()],
                sorted(m.__dict__),
            )
            for m in hf.modules()
        ]
        weights = [(p.data_ptr(), p.requires_grad, p.grad, p._version, p.dtype) for p in hf.parameters()]
        settings = (torch.is_grad_enabled(), torch.get_num_threads(), torch.get_default_dtype(), torch.get_rng_state().sum())
        return modules, weights, hf.config._attn_implementation, hf.config.to_dict(), settings

    model = pcm.Model(hf)
    before, logits = state(), hf(prompts()[0][None]).logits.detach()
    fired.clear()
    calls(model, hf)[name]()
    assert state() == before and before[2] == "sdpa"
    assert fired or name in ("attention_summary", "head_scores")
    fired.clear()
    assert torch.equal(hf(prompts()[0][None]).logits, logits)
    assert fired.count(1) == 4 and fired.count(2) == 4


# ---- "start at layer" still ran all the layers -------------------------------------------------------------------------


@pytest.mark.parametrize("site", ["z", "q", "resid_post"])
@pytest.mark.parametrize("positions", [None, [-1], [15, -1]])
def test_layers_below_an_edit_and_positions_before_it_are_not_computed(site, positions, monkeypatch):
    """The rows that go through each part of each layer, counted, against what the edits reach; and against the plan."""
    L, H = 5, 4
    model = pcm.Model(tiny_llama(n_heads=H, n_layers=L))
    clean, corrupted = prompts()
    count = {part: [0] * L for part in ("qkv", "attn_out", "mlp_out")}
    inside, variants = [], []

    def note(part):
        def through(l, x):
            if inside:
                count[part][l] += len(x)

        return through

    for part in count:
        observe(monkeypatch, model.family, part, note(part))
    run = Staircase.run

    def staircase(self):
        inside.append(1)
        rows = self.rows
        variants.extend(zip(rows.keys, rows.offsets.diff().tolist(), strict=True))
        try:
            return run(self)
        finally:
            inside.pop()

    monkeypatch.setattr(Staircase, "run", staircase)
    first = FIRST if positions is None else min(p % T for p in positions)
    if site == "resid_post":
        result = pcm.patch_residual(model, clean, corrupted, site=site, by_position=False, positions=positions)
        joins = {l: (3 * l + 2, 1) for l in range(L)}  # layer -> (layer and stage, how many)
    else:
        result = pcm.patch_heads(model, clean, corrupted, site=site, positions=positions)
        joins = {l: (3 * l + (site == "z"), H) for l in range(L)}
    # In the last layer only the row that is read can change it.
    ours = [(key, T - first if l < L - 1 else 1) for l, (key, n) in joins.items() for _ in range(n)]
    # Eight self-patches spread over the layers, and four jittered copies of the base run from layer 0 on.
    controls = [(3 * round(x) + 1, T - first) for x in [*np.linspace(0, L - 1, 8), 0, 0, 0, 0]]
    assert sorted(variants) == sorted(ours + controls)

    # A variant goes through attention of the layers above its key, and through the MLP from there on; the last layer's
    # queries, output and MLP are of the row read alone.
    def rows(key, length, at):
        return length if key <= at else 0

    everything = ours + controls
    for l in range(L - 1):
        assert count["qkv"][l] == count["attn_out"][l] == sum(rows(k, n, 3 * l) for k, n in everything), l
        assert count["mlp_out"][l] == sum(rows(k, n, 3 * l + 1) for k, n in everything), l
    last = 3 * (L - 1)
    assert count["qkv"][-1] == sum(rows(k, n + 1, last) for k, n in everything)
    assert count["attn_out"][-1] == sum(rows(k, 1, last) for k, _ in everything)
    assert count["mlp_out"][-1] == sum(rows(k, 1, last + 1) for k, _ in everything)
    assert result.plan.token_forwards * L == pytest.approx(sum(count["mlp_out"]))
    assert result.plan.token_forwards < 0.75 * len(everything) * T


# ---- patterns that were not causal, since no mask was passed -----------------------------------------------------------


@pytest.mark.parametrize("grouped", [False, True])
def test_a_later_token_changes_nothing_before_it(grouped):
    """In packed runs, in the attention statistics, and in the Hugging Face forward that gives slopes, behind a prefix too."""
    hf = tiny_llama(n_heads=4, n_key_value_heads=2 if grouped else 4, n_layers=3)
    model, tokens = pcm.Model(hf), prompts()[0]
    other = tokens.clone()
    other[-1] = (other[-1] + 5) % 61
    sites = ("resid_pre", "resid_mid", "resid_post", "attn_out", "mlp_out", "q", "k", "v", "z")
    a, b = model.run(tokens, capture=sites), model.run(other, capture=sites)
    for site in sites:
        assert torch.equal(a[site][:, :-1], b[site][:, :-1]), site
        assert (a[site][-1, -1] - b[site][-1, -1]).abs().max() > 1e-3, site
    assert torch.equal(a.logits[:-1], b.logits[:-1])
    summary = pcm.attention_summary(model, tokens, top_k=T)
    assert (summary.top_keys <= np.arange(T)[None, None, :, None]).all()
    assert np.allclose(summary.received.sum(-1), T, atol=1e-4)  # each row gives away 1, none of it to keys that do not exist

    truth = torch.stack(z_of(double(hf), tokens)).float()
    twin = attribution._differentiable_twin(model.family, "z")
    with torch.no_grad():
        past = attribution._extended(model.family, twin, [], tokens[:FIRST])
        for start, before in ((0, []), (FIRST, past)):
            once = dict(base=False, past=before)
            runs = [attribution._forward(model.family, twin, "z", tokens=t[start:], **once)[0] for t in (tokens, other)]
            z, changed = (torch.stack([x[0].unflatten(-1, (4, D)) for x in run]) for run in runs)
            assert (z - truth[:, start:]).abs().max() < 1e-4 * truth.abs().max()
            assert (z[:, :-1] - changed[:, :-1]).abs().max() < 1e-5
