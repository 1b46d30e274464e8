"""Values, effects and the noise floor keep their precision, whatever the default dtype is, and say where there is none."""

import dataclasses
import warnings

import numpy as np
import pytest
import torch

import pycotmech as pcm
from tests.reference.tiny import tiny_llama

SHAPE = dict(n_layers=3, n_heads=4, n_key_value_heads=2)


@pytest.fixture(scope="module", params=[torch.float32, torch.float64], ids=["float32", "float64"])
def model(request):
    return pcm.Model(tiny_llama(**SHAPE, dtype=request.param))


CLEAN = torch.randint(61, (12,), generator=torch.Generator().manual_seed(0))
CORRUPTED = CLEAN.clone()
CORRUPTED[5] = (CORRUPTED[5] + 1) % 61
DIFFERENCE = dict(metric="logit_diff", answer=3, wrong=4)
VARIANT = pcm.Variant((pcm.Edit("resid_mid", 1, None, [6], 0.5),))


def test_a_small_difference_of_large_metrics_keeps_its_digits():
    """Of metrics 17.0000 and 17.0045 float32 holds the difference to 5e-4 of it."""
    model = pcm.Model(tiny_llama(**SHAPE, dtype=torch.float64))
    metric = lambda logits: 17.0 + 1e-4 * (logits[:, 3] - logits[:, 4]).double()  # noqa: E731
    large = pcm.patch_heads(model, CLEAN, CORRUPTED, metric=metric)
    plain = pcm.patch_heads(model, CLEAN, CORRUPTED, **DIFFERENCE)
    span = float(large.clean_metric[0] - large.corrupted_metric[0])
    assert 0 < abs(span) < 1e-2
    assert abs(span - 1e-4 * float(plain.clean_metric[0] - plain.corrupted_metric[0])) < 1e-12
    assert np.abs(large.values - plain.values).max() < 1e-6
    estimates = [pcm.attribute_heads(model, CLEAN, CORRUPTED, **m) for m in (dict(metric=metric), DIFFERENCE)]
    assert np.abs(estimates[0].effect - estimates[1].effect).max() < 1e-6


CALLS = {
    **{s: lambda m, s=s: pcm.patch_heads(m, CLEAN, CORRUPTED, site=s, return_logits=True) for s in ("z", "q", "v", "pattern")},
    "list": lambda m: pcm.patch_heads(m, [CLEAN] * 2, [CORRUPTED] * 2, by_position=True, **DIFFERENCE),
    "residual": lambda m: pcm.patch_residual(m, CLEAN, CORRUPTED, site="mlp_out", metric="prob", answer=3),
    "paths": lambda m: pcm.path_patch(m, CLEAN, CORRUPTED, receivers="all"),
    "paths to logits": lambda m: pcm.path_patch(m, CLEAN, CORRUPTED),
    "attribution": lambda m: pcm.attribute_heads(m, CLEAN, CORRUPTED),
    "screen": lambda m: pcm.patch_heads(m, CLEAN, CORRUPTED, screen=3, **DIFFERENCE),
    "sweep": lambda m: pcm.sweep(m, CLEAN, [VARIANT], clean=CORRUPTED, return_logits=True),
    "mean": lambda m: pcm.ablate_heads(m, CLEAN, [(0, 1), (1, 2)], kind="mean", mean=[CLEAN, CORRUPTED], each=True),
    "edges": lambda m: pcm.knock_out_edges(m, CLEAN, from_=[1], to=[6]),
    "number": lambda m: pcm.sweep(m, CLEAN, [pcm.Variant((pcm.Edit("z", 1, 0, [6], 0.3),))]),
}


@pytest.mark.parametrize("name", CALLS)
@pytest.mark.parametrize("default", [torch.float64, torch.bfloat16])
def test_the_default_dtype_changes_nothing(model, name, default):
    def numbers():
        model.prefixes.clear()
        found = CALLS[name](model)
        return {
            f.name: np.asarray(x)
            for f in dataclasses.fields(found)
            if isinstance(x := getattr(found, f.name), (np.ndarray, torch.Tensor, float))
        }

    expected = numbers()
    torch.set_default_dtype(default)
    try:
        got = numbers()
    finally:
        torch.set_default_dtype(torch.float32)
    for field, array in expected.items():
        assert got[field].dtype == array.dtype and np.array_equal(got[field], array, equal_nan=True), field


@pytest.mark.parametrize("kind", ["patch_heads", "sweep"])
def test_a_metric_may_change_the_logits_that_it_gets(model, kind):
    def careless(logits):
        out = logits[:, 3].clone()
        logits.sub_(logits.amax())
        return out

    def call(metric):
        if kind == "sweep":
            return pcm.sweep(model, CLEAN, [VARIANT], metric=metric, return_logits=True)
        return pcm.patch_heads(model, CLEAN, CORRUPTED, metric=metric, return_logits=True)

    found, expected = call(careless), call(lambda logits: logits[:, 3])
    assert torch.equal(found.logits, expected.logits) and np.array_equal(found.raw, expected.raw)


def not_at(logits_of_one):
    """A metric that is NaN where the logits are these."""
    return lambda logits: torch.where((logits - logits_of_one).abs().amax(1) < 1e-6, torch.nan, logits[:, 3])


def test_a_metric_that_is_nan_once_is_named(model):
    whole = pcm.patch_heads(model, CLEAN, CORRUPTED, metric="prob", answer=3, return_logits=True)
    with pytest.warns(UserWarning, match=r"metric: <lambda> is no finite number in 1 of 12 results, the first of them L1H2"):
        found = pcm.patch_heads(model, CLEAN, CORRUPTED, metric=not_at(whole.logits[1, 2]))
    assert np.argwhere(np.isnan(found.values)).tolist() == [[1, 2]] and 0 < found.noise_floor < 1
    assert (1, 2) not in [place for place, _ in found.top(12)]
    one = pcm.sweep(model, CLEAN, [VARIANT], return_logits=True)
    with pytest.warns(
        UserWarning, match=r"metric: <lambda> is no finite number in 1 of 1 results, the first of them variant 0"
    ):
        pcm.sweep(model, CLEAN, [VARIANT], metric=not_at(one.logits[0]))
    ended = pcm.path_patch(model, CLEAN, CORRUPTED, metric=lambda logits: logits[:, 3])
    with pytest.warns(UserWarning, match=r"is no finite number in 1 of 12 results, the first of them L2H1 -> logits"):
        value = float(ended.raw[ended.senders.index((2, 1))])
        pcm.path_patch(
            model, CLEAN, CORRUPTED, metric=lambda logits: torch.where(logits[:, 3] == value, torch.nan, logits[:, 3])
        )


@pytest.mark.parametrize("question", ["patch_heads", "path_patch", "sweep"])
def test_a_metric_that_rounding_makes_nan_leaves_no_floor_in_silence(model, question):
    """NaN wherever the logits are not exactly those of a run, as they are not where rounding is measured."""
    kept = []

    def metric(logits):
        if len(kept) < 4:  # both runs, the variants and their controls
            kept.extend(logits.clone())
        known = torch.stack([(logits == row).all(1) for row in kept]).any(0)
        return torch.where(known, logits[:, 3], torch.nan)

    with pytest.warns(UserWarning, match="is no finite number if rounding moves the logits, so there is no noise floor"):
        if question == "sweep":
            found = pcm.sweep(model, CLEAN, [VARIANT], metric=metric)
        else:
            found = getattr(pcm, question)(model, CLEAN, CORRUPTED, metric=metric)
    assert np.isnan(found.noise_floor) and not found.above_floor.any()


def test_a_variant_that_is_nan_leaves_the_others_their_floor(model):
    variants = [pcm.Variant((pcm.Edit("resid_mid", 1, None, [6], value),)) for value in (0.5, 0.25)]
    whole = pcm.sweep(model, CLEAN, variants, metric="prob", answer=3, return_logits=True)
    with pytest.warns(UserWarning, match="is no finite number in 1 of 2 results, the first of them variant 0"):
        found = pcm.sweep(model, CLEAN, variants, metric=not_at(whole.logits[0]))
    assert 0 < found.noise_floor < 1e-3


@pytest.mark.parametrize("metric", ["kl", "prob", "logit_diff"])
def test_a_weight_that_became_nan_is_an_error(metric):
    model = pcm.Model(tiny_llama(**SHAPE))
    options = dict(metric=metric, answer=3, wrong=4)
    with torch.no_grad():
        model.hf.model.layers[1].mlp.down_proj.weight[0, 0] = torch.nan
    with pytest.raises(ValueError, match=rf"metric: {metric} is nan in the (clean|corrupted) run of pair 0; expected a finite"):
        pcm.patch_heads(model, CLEAN, CORRUPTED, **options)
    with pytest.raises(ValueError, match=rf"metric: {metric} is nan in the (clean|corrupted) run of pair 0"):
        pcm.attribute_heads(model, CLEAN, CORRUPTED, **options)
    with pytest.raises(ValueError, match=rf"metric: {metric} is nan in the (clean|corrupted) run of pair 0"):
        pcm.path_patch(model, CLEAN, CORRUPTED, **options)
    with pytest.raises(ValueError, match=f"metric: {metric} is no finite number in 8 of 8 self-patches"):
        pcm.sweep(model, CLEAN, [VARIANT], **options)


def test_logits_to_compare_with_are_finite(model):
    clean = torch.zeros(61)
    clean[7] = -torch.inf
    with pytest.raises(ValueError, match="clean: 1 of 61 logits are not finite; expected finite numbers"):
        pcm.sweep(model, CLEAN, [VARIANT], clean=clean)


def test_numbers_that_are_finite_get_no_warning(model):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        pcm.patch_heads(model, CLEAN, CORRUPTED, heads=[(0, 1)])
        pcm.patch_residual(model, CLEAN, CORRUPTED)
