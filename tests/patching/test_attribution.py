"""Attribution patching: slopes against finite differences in float64, agreement by hand, and the screen it is for."""

import numpy as np
import pandas as pd
import pytest
import torch

import pycotmech as pcm
from pycotmech.patching import Sweep
from tests.reference.tiny import tiny_llama
from tests.reference.truth import activations, double, edited_logits, kl, logits_of

SHAPES = {"mha": dict(n_heads=4), "gqa": dict(n_heads=4, n_key_value_heads=2)}
L, T, FIRST, ALSO = 3, 14, 9, 11
METRICS = {
    "logit_diff": lambda clean: lambda x: float(x[7] - x[11]),
    "prob": lambda clean: lambda x: float(torch.softmax(x.double(), -1)[7]),
    "kl": lambda clean: lambda x: kl(clean, x),
}
DIFFERENCE = dict(metric="logit_diff", answer=7, wrong=11)


def prompts(seed=0, length=T, first=FIRST, also=ALSO):
    clean = torch.randint(61, (length,), generator=torch.Generator().manual_seed(seed))
    corrupted = clean.clone()
    for p in (first, also):
        corrupted[p] = (corrupted[p] + 5 + p) % 61
    return clean, corrupted


def slope(hf, base, source, site, l, head, positions, measure, step=1e-4):
    """The derivative of the metric along base + e (source - base) at e = 0, by central differences in float64."""
    a, b = activations(hf, base)[site, l][positions, head], activations(hf, source)[site, l][positions, head]
    ends = [
        measure(edited_logits(hf, base, [(site, l, head, positions, a + e * (b - a))])) for e in (-step, step)
    ]  # fmt: skip
    return (ends[1] - ends[0]) / (2 * step)


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("site", ["z", "q", "k", "v"])
@pytest.mark.parametrize("shape", SHAPES)
def test_slopes_are_those_of_finite_differences(shape, site, metric):
    hf = double(tiny_llama(**SHAPES[shape], n_layers=L))
    model, (clean, corrupted) = pcm.Model(hf), prompts()
    columns = 2 if shape == "gqa" and site in "kv" else 4
    for direction in ("denoise",) if metric == "kl" else ("denoise", "noise"):
        base, source = (corrupted, clean) if direction == "denoise" else (clean, corrupted)
        measure = METRICS[metric](logits_of(hf, clean, keep=1)[0])
        found = pcm.attribute_heads(
            model, clean, corrupted, site=site, by_position=True, direction=direction, metric=metric, answer=7, wrong=11,
            normalize=False,
        )  # fmt: skip
        assert found.values.shape == (L, T, columns) and found.axes == ("layer", "position", "head")
        scale = np.abs(found.raw_change).max()
        assert scale > (1e-6 if metric == "prob" else 1e-2), "the test needs a signal"
        assert (found.raw_change[:, :FIRST] == 0).all()
        for l, p, h in [(0, FIRST, 0), (0, T - 1, columns - 1), (1, ALSO, 1), (L - 1, T - 1, 1), (L - 1, ALSO, 0)]:
            truth = slope(hf, base, source, site, l, h, [p], measure)
            assert abs(found.raw_change[l, p, h] - truth) < 1e-6 * scale, (l, p, h)
        # All positions of a head at once: their sum.
        at_once = pcm.attribute_heads(
            model, clean, corrupted, site=site, direction=direction, metric=metric, answer=7, wrong=11, normalize=False
        )
        assert np.abs(at_once.raw_change - found.raw_change.sum(1)).max() < 1e-12 * scale
        truth = slope(hf, base, source, site, 1, 1, list(range(T)), measure)
        assert abs(at_once.raw_change[1, 1] - truth) < 1e-6 * scale


def test_float32_agrees_with_float64():
    hf = tiny_llama(**SHAPES["gqa"], n_layers=L)
    clean, corrupted = prompts()
    for metric in METRICS:  # the second time on keys and values that the first left behind
        arguments = dict(metric=metric, answer=7, wrong=11)
        narrow = pcm.attribute_heads(pcm.Model(hf), clean, corrupted, **arguments)
        wide = pcm.attribute_heads(pcm.Model(double(hf)), clean, corrupted, **arguments)
        assert np.abs(narrow.effect - wide.effect).max() < 1e-4 * np.abs(wide.effect).max()
        assert narrow.effect.dtype == narrow.values.dtype == np.float32


@pytest.mark.parametrize("site", ["z", "v"])
def test_exact_where_the_model_is_linear(site):
    """With one layer of attention, no norm in front of the unembedding and no MLP, logits are linear in z and in v."""
    hf = tiny_llama(**SHAPES["gqa"], n_layers=2)
    with torch.no_grad():
        for layer in hf.model.layers:
            layer.mlp.down_proj.weight.zero_()
        hf.model.layers[1].self_attn.o_proj.weight.zero_()
    hf.model.norm.forward = lambda x: 0.5 * x
    model = pcm.Model(hf)
    pairs = [prompts(seed, length=12 + seed, first=6 + seed, also=10) for seed in (0, 3)]
    clean, corrupted = [c for c, _ in pairs], [d for _, d in pairs]
    for direction in ("denoise", "noise"):
        for normalize in (True, False):
            arguments = dict(site=site, direction=direction, normalize=normalize, **DIFFERENCE)
            exact = pcm.patch_heads(model, clean, corrupted, **arguments)
            found = pcm.attribute_heads(model, clean, corrupted, **arguments)
            scale = np.abs(exact.effect).max()
            assert scale > 0.02, "the test needs a signal"
            for name in ("values", "effect"):
                assert np.abs(getattr(found, name) - getattr(exact, name)).max() < 2e-5 * max(scale, 1), name
            base = exact.corrupted_metric if direction == "denoise" else exact.clean_metric
            assert np.abs(found.raw_change - (exact.raw - base[:, None, None])).max() < 1e-4
            assert np.abs(found.clean_metric - exact.clean_metric).max() < 1e-5
            assert found.agreement(exact).pearson == pytest.approx(1, abs=1e-6)


def test_positions_and_a_read_position():
    hf = tiny_llama(**SHAPES["mha"], n_layers=L)
    model, (clean, corrupted) = pcm.Model(hf), prompts()
    whole = pcm.attribute_heads(model, clean, corrupted, by_position=True, **DIFFERENCE)
    some = pcm.attribute_heads(model, clean, corrupted, positions=[-1, ALSO], **DIFFERENCE)
    scale = np.abs(whole.effect).max()
    assert np.abs(some.effect - whole.effect[:, [ALSO, T - 1]].sum(1)).max() < 1e-6 * scale
    assert (whole.effect[-1, :-1] == 0).all()  # z in the last layer reaches what is read at the last position only
    early = pcm.attribute_heads(model, clean, corrupted, read=12, **DIFFERENCE)
    cut = pcm.attribute_heads(model, clean[:13], corrupted[:13], **DIFFERENCE)
    assert np.abs(early.effect - cut.effect).max() < 1e-6 * np.abs(cut.effect).max()


def test_a_list_of_pairs_is_the_same_as_one_at_a_time():
    """What all prompts share runs once, what a pair shares behind it once more; both without changing a value."""
    model = pcm.Model(tiny_llama(**SHAPES["gqa"], n_layers=L))
    shared = torch.randint(61, (6,), generator=torch.Generator().manual_seed(9))
    pairs = [tuple(torch.cat((shared, t)) for t in prompts(seed, length=9 + seed, first=4 + seed, also=8)) for seed in range(3)]
    together = pcm.attribute_heads(model, [c for c, _ in pairs], [d for _, d in pairs], **DIFFERENCE)
    assert together.raw_change.shape == (3, L, 4)
    for i, (clean, corrupted) in enumerate(pairs):
        alone = pcm.attribute_heads(model, clean, corrupted, **DIFFERENCE)
        assert np.abs(together.raw_change[i] - alone.raw_change).max() < 1e-5 * np.abs(alone.raw_change).max()
    span = together.clean_metric.mean() - together.corrupted_metric.mean()
    assert np.abs(together.effect - together.raw_change.mean(0) / span).max() < 1e-6 * np.abs(together.effect).max()
    at_the_start = prompts(first=0)  # no shared prefix at all
    alone = pcm.attribute_heads(model, *at_the_start, by_position=True, **DIFFERENCE)
    hf64, (clean, corrupted) = double(model.hf), at_the_start
    truth = slope(hf64, corrupted, clean, "z", 0, 2, [0], METRICS["logit_diff"](None))
    assert alone.raw_change[0, 0, 2] == pytest.approx(truth, abs=1e-4 * np.abs(alone.raw_change).max())


# ---- agreement -------------------------------------------------------------------------------------------------------


def synthetic(estimate, exact, floor):
    common = dict(
        clean_metric=np.ones(1), corrupted_metric=np.zeros(1), metric="logit_diff", direction="denoise", site="z",
        normalized=True, by_position=False, model_name="m",
    )  # fmt: skip
    e, x = np.float32(estimate), np.float32(exact)
    found = pcm.Attribution(values=e, effect=e, raw_change=e.astype(float), **common)
    return found, Sweep(values=x, raw=x.astype(float), effect=x, noise_floor=floor, plan=None, **common)


def test_agreement_by_hand():
    nan = float("nan")
    exact = [[5.0, -4.0, 3.0, 2.0], [-1.5, 1.0, 0.01, nan]]
    estimate = [[4.0, -5.0, -2.0, 2.5], [-1.0, 1.0, 9.0, 8.0]]
    found, sweep = synthetic(estimate, exact, floor=0.1)
    got = found.agreement(sweep)
    a, b = np.array([5, -4, 3, 2, -1.5, 1]), np.array([4, -5, -2, 2.5, -1, 1])  # neither rounding nor what was not swept
    assert got.n == 6
    assert got.pearson == pytest.approx(np.corrcoef(a, b)[0, 1], abs=1e-6)
    # ranks 5 0 4 3 1 2 against 5 0 1 4 2 3: 1 - 6 * (9 + 1 + 1 + 1) / (6 * 35)
    assert got.spearman == pytest.approx(1 - 6 * 12 / 210)
    assert got.sign == pytest.approx(5 / 6)
    # exact: 5 4 3 2 1.5; estimate: 9 (below the floor, but an estimate cannot know) 5 4 2.5 2
    assert got.top[5] == 4 / 5 and np.isnan(got.top[10]) and np.isnan(got.top[20])
    assert "6 entries above the noise floor" in str(got) and "80% of the top 5" in str(got) and "top 10" not in str(got)


def test_agreement_of_ties_and_of_nothing():
    exact, estimate = np.array([[1.0, 1, 2, 3, 3, 3]]), np.array([[1.0, 2, 2, 2, 5, -4]])
    got = synthetic(estimate, exact, 0.0)[0].agreement(synthetic(estimate, exact, 0.0)[1])
    assert got.spearman == pytest.approx(pd.Series(exact[0]).rank().corr(pd.Series(estimate[0]).rank()))
    none = synthetic(estimate, exact, 9.0)[0].agreement(synthetic(estimate, exact, 9.0)[1])
    assert none.n == 0 and np.isnan([none.spearman, none.pearson, none.sign]).all()


def test_agreement_needs_the_same_sweep():
    hf = tiny_llama(**SHAPES["mha"], n_layers=L)
    model, (clean, corrupted) = pcm.Model(hf), prompts()
    found = pcm.attribute_heads(model, clean, corrupted, **DIFFERENCE)
    for arguments, message in [
        (dict(site="q"), "sweep: its site is 'q', the attribution's is 'z'"),
        (dict(direction="noise"), "sweep: its direction is 'noise'"),
        (dict(by_position=True), "sweep: its by_position is True"),
        (dict(normalize=False), "sweep: its normalized is False"),
    ]:
        with pytest.raises(ValueError, match=message):
            found.agreement(pcm.patch_heads(model, clean, corrupted, **{**DIFFERENCE, **arguments}))
    with pytest.raises(ValueError, match="sweep: of 2 pairs, the attribution of 1"):
        found.agreement(pcm.patch_heads(model, [clean, clean], [corrupted, corrupted], **DIFFERENCE))


def test_agreement_on_a_trained_model(tiny_cot_path):
    """A model that reasons: the estimates find the heads that matter, and are not the exact values."""
    model = pcm.Model.from_pretrained(tiny_cot_path)
    example = pcm.cot.make_examples(1, shots=2, seed=0, tokenizer=model.tokenizer)[0]
    step = example.steps[5]
    arguments = dict(metric="logit_diff", answer=int(step.answer), wrong=int(step.wrong))
    exact = pcm.patch_heads(model, step.clean, step.corrupted, **arguments)
    found = pcm.attribute_heads(model, step.clean, step.corrupted, **arguments)
    agreement = found.agreement(exact)
    assert agreement.n > 10 and agreement.spearman > 0.5 and agreement.top[5] >= 0.6
    assert np.abs(found.effect - exact.effect).max() > 0.01
    assert exact.top(1)[0][0] in found.strongest(5)
    assert "attribution patching (first order)" in str(found) and "estimate" in str(found)
    assert list(found.to_dataframe().columns) == ["layer", "head", "value", "effect"]


# ---- the screen ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("site", ["z", "q", "v"])
@pytest.mark.parametrize("by_position", [False, True])
def test_a_screened_sweep_is_the_sweep_where_it_is_exact(site, by_position):
    model = pcm.Model(tiny_llama(**SHAPES["gqa"], n_layers=L))
    clean, corrupted = prompts()
    arguments = dict(site=site, by_position=by_position, **DIFFERENCE)
    whole = pcm.patch_heads(model, clean, corrupted, **arguments)
    found = pcm.attribute_heads(model, clean, corrupted, **arguments)
    some = pcm.patch_heads(model, clean, corrupted, screen=3, **arguments)
    heads = found.strongest(3)
    score = np.abs(found.effect).max(1) if by_position else np.abs(found.effect)
    assert sorted(heads) == sorted(zip(*np.unravel_index(np.argsort(-score.ravel())[:3], score.shape), strict=True))
    chosen = np.zeros(score.shape, bool)
    chosen[tuple(zip(*heads, strict=True))] = True
    exact = np.broadcast_to(chosen[:, None], whole.shape) if by_position else chosen
    assert np.array_equal(some.exact, exact) and np.isnan(some.values[~exact]).all() and np.isnan(some.raw[~exact]).all()
    for name in ("values", "effect", "raw"):
        mine, theirs = getattr(some, name)[exact], getattr(whole, name)[exact]
        assert np.abs(mine - theirs).max() <= 1e-6 * max(1, np.abs(theirs).max()), name
    assert np.array_equal(some.estimate, found.effect)
    assert some.noise_floor == pytest.approx(whole.noise_floor, rel=0.5)
    assert some.plan.variants < whole.plan.variants
    assert "only the 3 heads with the largest first-order estimates were swept" in str(some)
    assert "screened" not in str(whole) and whole.estimate is None and whole.exact.all()
    frame = some.to_dataframe()
    assert list(frame.columns[-2:]) == ["estimate", "exact"] and frame["exact"].sum() == exact.sum()
    assert all(where[0::2] in heads if by_position else where in heads for where, _ in some.top(99))
    agreement = found.agreement(some)  # over what was swept
    assert 0 < agreement.n <= exact.sum()
    some.plot()


def test_a_screen_among_some_heads():
    model = pcm.Model(tiny_llama(**SHAPES["mha"], n_layers=L))
    clean, corrupted = prompts()
    among = [(0, 1), (1, 3), (2, 2), (2, 0)]
    some = pcm.patch_heads(model, clean, corrupted, heads=among, screen=2, **DIFFERENCE)
    assert some.exact.sum() == 2 and all((int(l), int(h)) in among for l, h in np.argwhere(some.exact))
    assert sorted(map(tuple, np.argwhere(~np.isnan(some.estimate)).tolist())) == sorted(among)
    assert pcm.patch_heads(model, clean, corrupted, heads=among, screen=4, **DIFFERENCE).exact.sum() == 4


# ---- errors, and the user's model ------------------------------------------------------------------------------------


def test_errors_before_anything_runs(monkeypatch):
    model = pcm.Model(tiny_llama(**SHAPES["gqa"], n_layers=L))
    monkeypatch.setattr(model.hf.model, "forward", lambda *a, **k: pytest.fail("ran before the arguments were checked"))
    monkeypatch.setattr(model.family, "refuse_unsupported", lambda: None)
    monkeypatch.setattr(model.family, "embed", lambda tokens: pytest.fail("ran before the arguments were checked"))
    clean, corrupted = prompts()
    both = [
        (dict(metric="kl", direction="noise"), "metric: 'kl' has no slope in direction 'noise'"),
        (dict(site="pattern"), "for site 'pattern'|got 'pattern'; an attribution is taken at 'z', 'q', 'k', 'v'"),
        (dict(positions=[2]), "reach nothing that is read"),
        (dict(direction="up"), "direction: got 'up'"),
        (dict(metric="prob"), "answer: metric 'prob' needs it"),
    ]
    for arguments, message in both:
        with pytest.raises(ValueError, match=message):
            pcm.attribute_heads(model, clean, corrupted, **arguments)
        with pytest.raises(ValueError, match=message):
            pcm.patch_heads(model, clean, corrupted, screen=2, **arguments)
    with pytest.raises(ValueError, match="site: got 'resid_pre'; an attribution"):
        pcm.attribute_heads(model, clean, corrupted, site="resid_pre")
    for arguments, message in [
        (dict(screen=0), r"screen: got 0; expected how many of the 12 heads to sweep, 1\.\.12"),
        (dict(screen=13), "screen: got 13"),
        (dict(screen=2.5), "screen: got 2.5"),
        (dict(screen=True), "screen: got True"),
        (dict(screen=2, heads=[(0, 0)]), "screen: got 2; expected how many of the 1 heads"),
        (dict(screen=2, site="k", per_query_head=True), "screen: got 2 for site 'k'"),
        (dict(screen=2, memory_gb=-1), "memory_gb: got -1"),
    ]:
        with pytest.raises(ValueError, match=message):
            pcm.patch_heads(model, clean, corrupted, **arguments)


def test_metrics_without_a_slope():
    model, (clean, corrupted) = pcm.Model(tiny_llama(**SHAPES["mha"])), prompts()
    smooth = pcm.attribute_heads(model, clean, corrupted, metric=lambda x: x[:, 7] - x[:, 11])
    named = pcm.attribute_heads(model, clean, corrupted, **DIFFERENCE)
    assert np.abs(smooth.effect - named.effect).max() < 1e-6
    with pytest.raises(ValueError, match="metric: the callable's result does not depend on the logits by operations"):
        pcm.attribute_heads(model, clean, corrupted, metric=lambda x: x.argmax(-1).float())
    with pytest.raises(ValueError, match="metric: flat has slope 0 in the base run of pair 0"):

        def flat(x):
            return (x[:, 7] - x[:, 7].detach()) ** 2 + x[:, 11].detach()

        pcm.attribute_heads(model, clean, corrupted, metric=flat)


@pytest.mark.parametrize("training", [False, True])
def test_the_model_is_left_as_found(training):
    """Flags, hooks, gradients, the attention implementation; also after an error, under no_grad, with checkpointing on."""
    hf = tiny_llama(**SHAPES["gqa"], n_layers=L).requires_grad_(True)
    for parameter in list(hf.parameters())[::2]:
        parameter.requires_grad_(False)
    plain = pcm.attribute_heads(pcm.Model(hf), *prompts(), **DIFFERENCE)
    getattr(hf, "activation_checkpointing_enable", hf.gradient_checkpointing_enable)()
    hf.train(training)
    calls = []
    hf.model.layers[0].self_attn.o_proj.register_forward_pre_hook(lambda module, args: calls.append(1))
    hf.model.layers[1].self_attn.v_proj.register_forward_hook(lambda module, args, out: calls.append(2))

    def state():
        return [
            (m.training, len(m._forward_hooks), len(m._forward_pre_hooks), getattr(m, "gradient_checkpointing", None))
            for m in hf.modules()
        ] + [(p.requires_grad, p.grad is None) for p in hf.parameters()] + [hf.config._attn_implementation]  # fmt: skip

    before, model = state(), pcm.Model(hf)
    calls.clear()
    with torch.no_grad():
        found = pcm.attribute_heads(model, *prompts(), **DIFFERENCE)
    assert np.abs(found.effect - plain.effect).max() < 1e-5 * np.abs(plain.effect).max()
    assert {1, 2} == set(calls) and state() == before and not torch.is_inference_mode_enabled()
    with torch.inference_mode():
        pcm.patch_heads(model, *prompts(), **DIFFERENCE)
        screened = pcm.patch_heads(model, *prompts(), screen=2, **DIFFERENCE)
    assert np.array_equal(screened.estimate, found.effect)
    with pytest.raises(RuntimeError, match="stop"):
        pcm.attribute_heads(model, *prompts(), metric=lambda x: (_ for _ in ()).throw(RuntimeError("stop")))
    assert state() == before and before[-1] == "eager"


def test_hooks_and_adapters_are_differentiated():
    """What a user's hook makes of a projection is part of the model, and of its slopes."""
    hf = double(tiny_llama(**SHAPES["gqa"], n_layers=L))
    hf.model.layers[0].self_attn.o_proj.register_forward_hook(lambda module, args, out: torch.tanh(out))
    hf.model.layers[1].self_attn.o_proj.register_forward_pre_hook(lambda module, args: (2 * torch.tanh(args[0]),))
    clean, corrupted = prompts()
    found = pcm.attribute_heads(pcm.Model(hf), clean, corrupted, normalize=False, **DIFFERENCE)
    measure = METRICS["logit_diff"](None)
    for l in (0, 2):
        truth = slope(hf, corrupted, clean, "z", l, 1, list(range(T)), measure)
        assert abs(found.raw_change[l, 1] - truth) < 1e-6 * np.abs(found.raw_change).max()
    # Where a pre-hook changes what the projection gets, z is what the hook gets, as in sweeps.
    model = pcm.Model(hf)
    a, b = (model.run(t, capture=("z",))["z"][1, :, 1] for t in (corrupted, clean))
    ends = [pcm.Variant((pcm.Edit("z", 1, 1, None, a + e * (b - a)),)) for e in (-1e-4, 1e-4)]
    raw = pcm.sweep(model, corrupted, ends, **DIFFERENCE).raw
    assert abs(found.raw_change[1, 1] - (raw[1] - raw[0]) / 2e-4) < 1e-6 * np.abs(found.raw_change).max()
