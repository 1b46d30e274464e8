"""The exact sweep over heads against one hooked float64 forward per head."""

from dataclasses import replace

import numpy as np
import pytest
import torch

import pycotmech as pcm
from pycotmech.model import sizes
from tests.reference.stages import observe
from tests.reference.tiny import tiny_llama
from tests.reference.truth import double, kl, logits_of, patched_logits, sweep_truth, z_of

SHAPES = {"mha": dict(n_heads=4, n_layers=4), "gqa": dict(n_heads=6, n_key_value_heads=2, n_layers=4)}
T, FIRST = 40, 25


def pair(seed=0, length=T, first=FIRST, also=(31,)):
    generator = torch.Generator().manual_seed(seed)
    clean = torch.randint(61, (length,), generator=generator)
    corrupted = clean.clone()
    for p in (first, *also):
        corrupted[p] = (corrupted[p] + 1 + int(torch.randint(59, (1,), generator=generator))) % 61
    return clean, corrupted


METRICS = {
    "kl": lambda clean: lambda x: kl(clean, x),
    "logit_diff": lambda clean: lambda x: float(x[7] - x[11]),
    "prob": lambda clean: lambda x: float(torch.softmax(x.double(), -1)[7]),
}


def truth_effects(hf64, clean, corrupted, direction, metric, positions=None):
    """Float64 effects of the interventions on the raw metric: [L, H], and the metric of the two runs."""
    base, source = (corrupted, clean) if direction == "denoise" else (clean, corrupted)
    clean_logits = logits_of(hf64, clean, keep=1)[0]
    measure = METRICS[metric](clean_logits)
    raw = sweep_truth(hf64, base, source, measure, positions=positions)
    return (
        raw - measure(logits_of(hf64, base, keep=1)[0]),
        measure(clean_logits),
        measure(logits_of(hf64, corrupted, keep=1)[0]),
    )


def close(sweep, truth):
    """Effects (not normalised: plain changes of the metric) agree to 1e-4 of the largest, or 1e-6 where there is none."""
    error = np.abs(sweep.effect - truth.numpy())
    largest = truth.abs().max().item()
    assert largest > 1e-4, "the test needs a signal"
    assert error.max() <= max(1e-4 * largest, 1e-6), (error.max(), largest)


@pytest.mark.parametrize("positions", [None, [-1], [-8, 33]])
@pytest.mark.parametrize("direction", ["denoise", "noise"])
@pytest.mark.parametrize("shape", SHAPES)
def test_float32_agrees_with_float64(shape, direction, positions):
    hf = tiny_llama(**SHAPES[shape])
    clean, corrupted = pair()
    model, hf64 = pcm.Model(hf), double(hf)
    for metric in METRICS:
        truth, _, _ = truth_effects(hf64, clean, corrupted, direction, metric, positions)
        sweep = pcm.patch_heads(
            model,
            clean,
            corrupted,
            direction=direction,
            metric=metric,
            answer=7,
            wrong=11,
            positions=positions,
            normalize=False,
        )
        close(sweep, truth)


@pytest.mark.parametrize("direction", ["denoise", "noise"])
@pytest.mark.parametrize("metric", METRICS)
def test_the_scale_of_values_and_effects(direction, metric):
    hf = tiny_llama(**SHAPES["gqa"])
    clean, corrupted = pair(3)
    truth, m_clean, m_corrupted = truth_effects(double(hf), clean, corrupted, direction, metric)
    base = m_corrupted if direction == "denoise" else m_clean
    sweep = pcm.patch_heads(pcm.Model(hf), clean, corrupted, direction=direction, metric=metric, answer=7, wrong=11)
    values = (truth + base - m_corrupted) / (m_clean - m_corrupted)  # corrupted 0, clean 1
    scale = np.abs(values.numpy() - (direction == "noise")).max()
    assert np.abs(sweep.values - values.numpy()).max() < 1e-3 * scale
    expected = values if direction == "denoise" else 1 - values
    assert np.abs(sweep.effect - expected.numpy()).max() < 1e-4 * scale + 1e-6
    assert sweep.clean_metric[0] == pytest.approx(m_clean, abs=1e-5)
    assert sweep.corrupted_metric[0] == pytest.approx(m_corrupted, rel=1e-4)
    if metric == "kl":
        assert sweep.clean_metric[0] == 0 and (sweep.raw >= 0).all()
    assert sweep.values.dtype == np.float32 and sweep.values.shape == (4, 6)
    assert sweep[1, 2] == sweep.values[1, 2]


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_16_bit_error_is_at_most_that_of_hooked_hugging_face(dtype, shape):
    hf = tiny_llama(**SHAPES[shape], dtype=dtype)
    hf64, model = double(hf), pcm.Model(hf)
    ours = theirs = signal = 0.0
    for seed in range(4):
        clean, corrupted = pair(seed)
        truth, _, _ = truth_effects(hf64, clean, corrupted, "denoise", "logit_diff")
        own, _, _ = truth_effects(hf, clean, corrupted, "denoise", "logit_diff")
        sweep = pcm.patch_heads(model, clean, corrupted, metric="logit_diff", answer=7, wrong=11, normalize=False)
        ours += float(((torch.from_numpy(sweep.effect) - truth) ** 2).sum())
        theirs += float(((own - truth) ** 2).sum())
        signal += float((truth**2).sum())
    assert ours <= theirs, (ours / theirs) ** 0.5
    assert ours < 0.01 * signal


def test_by_position():
    hf = tiny_llama(**SHAPES["gqa"])
    clean, corrupted = pair()
    hf64 = double(hf)
    sweep = pcm.patch_heads(
        pcm.Model(hf), clean, corrupted, by_position=True, metric="logit_diff", answer=7, wrong=11, normalize=False
    )
    assert sweep.shape == (4, T, 6)
    assert (sweep.effect[:, :FIRST] == 0).all()
    for p in (FIRST, FIRST + 3, T - 1):
        truth, _, _ = truth_effects(hf64, clean, corrupted, "denoise", "logit_diff", [p])
        assert np.abs(sweep.effect[:, p] - truth.numpy()).max() < 1e-4 * np.abs(sweep.effect).max()


@pytest.mark.parametrize("site", ["z", "k", "resid_mid"])
def test_groups_of_positions(site):
    """Each group at once, against sweeps over the group's positions alone; one in front of the difference gets a warning."""
    model = pcm.Model(tiny_llama(**SHAPES["gqa"]))
    clean, corrupted = pair()
    patch = pcm.patch_residual if site == "resid_mid" else pcm.patch_heads
    groups = {"shots": slice(0, 20), "word": slice(FIRST - 1, FIRST + 3), "rest": [33, 31, -8], "end": -1}
    arguments = dict(site=site, metric="logit_diff", answer=7, wrong=11)
    with pytest.warns(UserWarning, match="groups: 'shots' reaches nothing that is read in any example"):
        sweep = patch(model, clean, corrupted, groups=groups, **arguments)
    heads = () if site == "resid_mid" else (2,) if site == "k" else (6,)
    assert sweep.shape == (4, 4, *heads) and sweep.axes == ("layer", "group", *(["head"] if heads else []))
    assert sweep.groups == tuple(groups) and not sweep.by_position
    assert (sweep.effect[:, 0] == 0).all() and np.allclose(sweep.raw[:, 0], sweep.corrupted_metric)
    once = {} if site != "resid_mid" else dict(by_position=False)
    for g, positions in ((1, [FIRST, FIRST + 1, FIRST + 2]), (2, [31, 32, 33]), (3, [39])):
        alone = patch(model, clean, corrupted, positions=positions, **once, **arguments)
        assert np.abs(sweep.raw[:, g] - alone.raw).max() < 2e-5 * np.abs(sweep.raw).max(), g
    frame = sweep.to_dataframe()
    assert set(frame["group"]) == set(groups) and " in '" in str(sweep)
    sweep.plot()
    longer = [torch.cat((t[:3], t)) for t in (clean, corrupted)]
    named = dict(list(groups.items())[1:])
    moved = {"word": slice(FIRST + 2, FIRST + 6), "rest": [36, 34, 35], "end": 42}
    both = patch(model, [clean, longer[0]], [corrupted, longer[1]], groups=[named, moved], **arguments)
    alone = patch(model, *longer, groups=moved, **arguments)
    assert both.raw.shape == (2, 4, 3, *heads)
    for together, expected in zip(both.raw, (sweep.raw[:, 1:], alone.raw), strict=True):
        assert np.abs(together - expected).max() < 2e-5 * np.abs(sweep.raw).max()


def test_groups_that_are_wrong():
    model = pcm.Model(tiny_llama(**SHAPES["gqa"]))
    clean, corrupted = pair()
    bad = [
        (dict(groups={"a": slice(20, 30), "b": [29, 35]}), ValueError, "'b' and 'a' overlap at position 29"),
        (dict(groups={"a": slice(30, 30)}), ValueError, r"groups\['a'\]: slice.* holds no position"),
        (dict(groups={"a": [40]}), ValueError, r"groups\['a'\]: 40 is outside a prompt of 40 tokens"),
        (dict(groups={"a": slice(30, 41)}), ValueError, "reaches outside the prompt of 40 tokens"),
        (dict(groups={"a": [3, 4]}), ValueError, "groups: none of them reaches what is read"),
        (dict(groups={}), TypeError, "expected a mapping"),
        (dict(groups=[{"a": [30]}, {"a": [30]}]), ValueError, "2 given for 1 examples"),
        (dict(groups={"a": [30]}, by_position=True), ValueError, "groups and by_position"),
        (dict(groups={"a": [30]}, positions=[30]), ValueError, "positions: the groups say which"),
        (dict(groups={"a": [30]}, screen=2), ValueError, "screen: heads are screened"),
    ]
    for arguments, kind, message in bad:
        with pytest.raises(kind, match=message):
            pcm.patch_heads(model, clean, corrupted, **arguments)
    with pytest.raises(ValueError, match=r"the names .* are not those of the first example"):
        pcm.patch_heads(model, [clean] * 2, [corrupted] * 2, groups=[{"a": [30]}, {"b": [30]}])


def test_all_heads_of_a_layer_are_attn_out():
    """Patching every head of a layer at once is patching what its attention adds; the heads' joins add up to it."""
    hf = tiny_llama(n_heads=4, n_layers=3)
    family = pcm.Model(hf).family
    clean, corrupted = pair()
    z_clean, z_corrupted = (torch.stack(z_of(hf, t)) for t in (clean, corrupted))
    for l in range(3):
        rows, heads = torch.arange(T).repeat_interleave(4), torch.arange(4).repeat(T)
        x_mid = torch.zeros(len(rows), family.cfg.d_model)
        dz = (z_clean - z_corrupted)[l][rows, heads]
        joined = family.join(l, x_mid, z_corrupted[l][rows], dz, heads).unflatten(0, (T, 4)).sum(1)
        expected = family.attn_out(l, z_clean[l]) - family.attn_out(l, z_corrupted[l])
        assert torch.allclose(joined, expected, atol=1e-5)


def test_every_intervention_in_the_last_layer_and_in_the_first():
    """The two ends of the staircase, on full logits."""
    hf = tiny_llama(**SHAPES["mha"])
    clean, corrupted = pair()
    sweep = pcm.patch_heads(pcm.Model(hf), clean, corrupted, heads=[(0, 1), (3, 2), (0, 0)], return_logits=True)
    source = z_of(hf, clean)
    for l, h in [(0, 1), (3, 2), (0, 0)]:
        assert torch.allclose(sweep.logits[l, h], patched_logits(hf, corrupted, source, l, h), atol=3e-5)
    assert np.isnan(sweep.values).sum() == 16 - 3 and torch.isnan(sweep.logits[1, 1]).all()


def test_a_list_of_pairs_is_the_same_as_one_at_a_time():
    """Ragged lengths, different first differences, one call: packed, sharing what prompts share."""
    hf = tiny_llama(**SHAPES["gqa"])
    model = pcm.Model(hf)
    shared = torch.randint(61, (20,), generator=torch.Generator().manual_seed(9))
    pairs = [pair(seed, length=18 + 3 * seed, first=4 + seed, also=()) for seed in range(4)]
    pairs = [tuple(torch.cat((shared, t)) for t in both) for both in pairs]
    together = pcm.patch_heads(model, [c for c, _ in pairs], [d for _, d in pairs])
    assert together.raw.shape == (4, 4, 6)
    for i, (clean, corrupted) in enumerate(pairs):
        alone = pcm.patch_heads(model, clean, corrupted)
        scale = np.abs(alone.raw - alone.corrupted_metric).max()
        assert np.abs(together.raw[i] - alone.raw).max() < 1e-4 * scale
    mean = together.raw.mean(0)
    expected = (mean - together.corrupted_metric.mean()) / (0 - together.corrupted_metric.mean())
    assert np.abs(together.values - expected).max() < 1e-5  # the ratio of means, not the mean of ratios


def test_independent_of_chunks_blocks_and_threads(monkeypatch):
    hf = tiny_llama(**SHAPES["gqa"])
    model = pcm.Model(hf)
    clean, corrupted = pair()
    whole = pcm.patch_heads(model, clean, corrupted)
    assert whole.plan.chunks == 1
    scale = np.abs(whole.raw - whole.corrupted_metric).max()
    threads = torch.get_num_threads()
    try:
        for n in (1, 2):
            torch.set_num_threads(n)
            assert np.abs(pcm.patch_heads(model, clean, corrupted).raw - whole.raw).max() < 2e-5 * scale
            again = pcm.patch_heads(model, clean, corrupted)
            assert np.array_equal(again.raw, pcm.patch_heads(model, clean, corrupted).raw)  # one plan, one result
    finally:
        torch.set_num_threads(threads)
    small = pcm.patch_heads(model, clean, corrupted, memory_gb=0.0008)
    assert small.plan.chunks > 1 and np.abs(small.raw - whole.raw).max() < 2e-5 * scale
    monkeypatch.setattr(sizes, "CPU", replace(sizes.CPU, row_block=17))  # blocks that fit one variant each
    assert np.abs(pcm.patch_heads(model, clean, corrupted).raw - whole.raw).max() < 2e-5 * scale


def test_self_patches_and_noise_floor():
    """The noise floor is of the size of rounding: in float32 millionths of a logit, in bfloat16 tenths."""
    for dtype, low, high in ((torch.float32, 1e-7, 1e-4), (torch.bfloat16, 1e-2, 2.0)):
        hf = tiny_llama(**SHAPES["mha"], dtype=dtype)
        clean, corrupted = pair()
        sweep = pcm.patch_heads(pcm.Model(hf), clean, corrupted, metric="logit_diff", answer=7, wrong=11, normalize=False)
        assert low < sweep.noise_floor < high, (dtype, sweep.noise_floor)
    frame = sweep.to_dataframe()
    assert list(frame.columns) == ["layer", "head", "value", "effect", "above_floor"] and len(frame) == 16
    assert frame["above_floor"].any()
    best, value = sweep.top(1)[0]
    assert abs(value) == np.abs(sweep.effect).max() and sweep.effect[best] == np.float32(value)


def test_nothing_below_the_patch_is_recomputed(monkeypatch):
    """The last layer's heads cost one MLP; the plan counts it, and the engine calls no lower layer for them."""
    hf = tiny_llama(n_heads=4, n_layers=4)
    model = pcm.Model(hf)
    clean, corrupted = pair()
    calls = []
    observe(monkeypatch, model.family, "qkv", lambda l, x: calls.append((l, len(x))))
    pcm.patch_heads(model, clean, corrupted, heads=[(2, 0)], positions=[-1])
    # Both runs' suffixes and the prefix; the two self-patches of layer 0 (of eight) and four jittered copies.
    assert sum(n for l, n in calls if l == 1) - 15 * 2 - FIRST == 2 + 4


def test_arguments_are_checked_before_anything_runs(monkeypatch):
    model = pcm.Model(tiny_llama(**SHAPES["mha"]))
    monkeypatch.setattr(model.family, "embed", lambda tokens: pytest.fail("ran before the arguments were checked"))
    clean, corrupted = pair()
    bad = [
        (dict(direction="forwards"), "direction: got 'forwards'"),
        (dict(site="resid_pre"), "site: got 'resid_pre'"),
        (dict(site="nowhere"), "site: unknown site 'nowhere'"),
        (dict(metric="accuracy"), "metric: got 'accuracy'"),
        (dict(metric="logit_diff", answer=3), "wrong: metric 'logit_diff' needs it"),
        (dict(metric="prob"), "answer: metric 'prob' needs it"),
        (dict(metric="logit_diff", answer=3, wrong=3), "begin with the same token 3"),
        (dict(metric="prob", answer=61), "answer.0.: token id 61 is outside the vocabulary"),
        (dict(metric="prob", answer="word"), "no tokenizer"),
        (dict(heads=[(4, 0)]), r"heads: \(4, 0\) is out of range; expected layers 0..3, heads 0..3"),
        (dict(heads=[(0, 4)]), r"heads: \(0, 4\) is out of range"),
        (dict(heads=[]), "heads: the list is empty"),
        (dict(heads=[(True, 0)]), "heads: got .*expected .layer, head. pairs of integers"),
        (dict(positions=[40]), "positions: 40 is outside a prompt of 40 tokens"),
        (dict(positions=torch.arange(40) > 30), "positions: got False of type bool; expected integers"),
        (dict(positions=[30.5]), "positions: got 30.5 of type float; expected integers"),
        (dict(positions="read"), "positions: got 'r' of type str; expected integers"),
        (dict(groups={"a": torch.arange(40) > 30}), r"groups\['a'\]: got False of type bool"),
        (dict(positions=[3, 4]), "positions: .* reach nothing that is read"),
        (dict(read=3), "read: position 3 comes before the first difference"),
        (dict(read=[1, 2]), "read: 2 given for 1 examples"),
        (dict(memory_gb=0), "memory_gb: got 0"),
    ]
    for arguments, message in bad:
        with pytest.raises(ValueError, match=message):
            pcm.patch_heads(model, clean, corrupted, **arguments)
    for arguments, message in [
        (dict(progress=3), "progress: got 3 of type int; expected a callable"),
        (dict(groups={1: [30]}), "groups: got the name 1; expected names that are strings"),
    ]:
        with pytest.raises(TypeError, match=message):
            pcm.patch_heads(model, clean, corrupted, **arguments)
    prompts = [
        (clean[:-1], corrupted, "clean.0. has 39 tokens, corrupted.0. has 40"),
        (clean, clean, "are the same 40 tokens"),
        (clean[:0], corrupted, "clean.0.: the prompt is empty"),
        (clean.float(), corrupted, "expected integer token ids"),
        ([clean], corrupted, "one is a single prompt"),
        ([clean, clean], [corrupted], "2 prompts against 1"),
        (clean.clone().fill_(61), corrupted, "token id 61 is outside"),
    ]
    for a, b, message in prompts:
        with pytest.raises(ValueError, match=message):
            pcm.patch_heads(model, a, b)


def test_numbers_of_numpy_are_numbers():
    """Prompts, answers, positions and heads as they come out of arrays."""
    model, (clean, corrupted) = pcm.Model(tiny_llama(**SHAPES["mha"])), pair()
    arguments = dict(metric="logit_diff", read=38, positions=[33, -1], heads=[(0, 1), (2, 3)], answer=7, wrong=11)
    expected = pcm.patch_heads(model, clean, corrupted, **arguments).raw
    arguments |= {name: np.int64(arguments[name]) for name in ("answer", "wrong", "read")}
    arguments |= {name: np.array(arguments[name]) for name in ("positions", "heads")}
    for prompts in ((clean.numpy(), corrupted.numpy()), (list(clean.numpy()), list(corrupted.numpy()))):
        assert np.array_equal(pcm.patch_heads(model, *prompts, **arguments).raw, expected, equal_nan=True)
    assert model.run(list(clean.numpy())).logits.shape == (40, 61)


def test_a_callable_metric():
    model = pcm.Model(tiny_llama(**SHAPES["mha"]))
    clean, corrupted = pair()
    named = pcm.patch_heads(model, clean, corrupted, metric="logit_diff", answer=7, wrong=11)
    called = pcm.patch_heads(model, clean, corrupted, metric=lambda logits: logits[:, 7] - logits[:, 11])
    # The callable subtracts in float32, and the scale divides by a difference of the same size.
    assert np.abs(named.values - called.values).max() < 1e-5 * np.abs(named.values).max()
    with pytest.raises(ValueError, match=r"must map logits \[N, V\] to \[N\]"):
        pcm.patch_heads(model, clean, corrupted, metric=lambda logits: logits.sum())
    with pytest.raises(ValueError, match="the same in the clean and the corrupted run"):
        pcm.patch_heads(model, clean, corrupted, metric=lambda logits: logits[:, 0] * 0)


def test_read_position_and_progress():
    """The metric read in front of the end is that of the prompt cut there; progress ends at its total."""
    model = pcm.Model(tiny_llama(**SHAPES["gqa"]))
    clean, corrupted = pair()
    seen = []
    early = pcm.patch_heads(model, clean, corrupted, read=35, progress=lambda done, total: seen.append((done, total)))
    cut = pcm.patch_heads(model, clean[:36], corrupted[:36])
    assert np.abs(early.raw - cut.raw).max() < 1e-6
    assert seen[-1][0] == seen[-1][1] > 0 and [d for d, _ in seen] == sorted(d for d, _ in seen)


def test_kl_leaves_float64_logits_alone():
    """Logits that are kept are those of the variant, also where the metric works in their own precision."""
    hf = double(tiny_llama(**SHAPES["mha"]))
    clean, corrupted = pair()
    kept = pcm.patch_heads(pcm.Model(hf), clean, corrupted, heads=[(1, 2)], return_logits=True).logits[1, 2]
    assert torch.allclose(kept.double(), patched_logits(hf, corrupted, z_of(hf, clean), 1, 2), atol=1e-5)
