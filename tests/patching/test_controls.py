"""Controls of sweeps: self-patches, patches from an unrelated prompt, the sham position."""

import warnings
from functools import partial

import numpy as np
import pytest
import torch

import pycotmech as pcm
from pycotmech.patching.control_results import Controls
from pycotmech.patching.controls import CONTROL_SHARE
from tests.reference.close import assert_allclose
from tests.reference.tiny import tiny_llama
from tests.reference.truth import double, kl, logits_of, sweep_truth

T, FIRST = 20, 11


def prompts(n: int, seed: int = 0, shared: int = 5, first: int = FIRST) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
    """n pairs of T tokens that begin with the same ones, and differ within the pair at `first` and two tokens later."""
    g = torch.Generator().manual_seed(seed)
    begin = torch.randint(3, 61, (shared,), generator=g)
    clean = [torch.cat((begin, torch.randint(3, 61, (T - shared,), generator=g))) for _ in range(n)]
    corrupted = [c.clone() for c in clean]
    for c in corrupted:
        c[[first, first + 2]] = (c[[first, first + 2]] + 7) % 58 + 3
    return clean, corrupted


@pytest.mark.parametrize("direction", ["denoise", "noise"])
def test_the_random_control_is_one_hooked_forward_per_head(direction):
    """With z of the other prompt at the positions from the first difference on; each head beside its own control."""
    hf = tiny_llama(n_layers=3, n_key_value_heads=2, seed=4)
    model, wide = pcm.Model(hf.double(), check=False), double(hf)
    clean, corrupted = prompts(2)
    sweep = pcm.patch_heads(model, clean, corrupted, direction=direction, controls=("random",))
    assert sweep.controls is not None and not sweep.controls.missing
    for i in range(2):
        base, other = (corrupted[i], clean[1 - i]) if direction == "denoise" else (clean[i], corrupted[1 - i])
        metric = partial(kl, logits_of(wide, clean[i], keep=1)[0])
        truth = sweep_truth(wide, base, other, metric, positions=range(FIRST, T))
        assert_allclose(sweep.controls.random_raw[i], truth, rtol=1e-9, atol=1e-12)
    total = sweep.controls.random_raw.mean(0)
    base, other = (sweep.corrupted_metric, sweep.clean_metric)[:: 1 if direction == "denoise" else -1]
    expected = (total - base.mean()) / (other.mean() - base.mean())
    assert_allclose(sweep.control, expected, atol=1e-5)
    assert np.abs(sweep.control).max() > 0.05


@pytest.mark.parametrize("options", [{}, {"positions": [-1, -4]}, {"metric": "prob", "answer": 7}, {"by_position": True}])
def test_the_sham_position_changes_exactly_nothing(options):
    model = pcm.Model(tiny_llama(n_layers=4, seed=1), check=False)
    clean, corrupted = prompts(3)
    sweep = pcm.patch_heads(model, clean, corrupted, controls=["sham"], **options)
    assert sweep.controls is not None
    np.testing.assert_array_equal(sweep.controls.sham, [0.0, 0.0, 0.0])
    assert sweep.sham == 0.0 and np.isnan(sweep.control).all()
    with pytest.raises(ValueError, match="no random control was measured"):
        _ = sweep.beyond


def test_a_patch_that_is_off_by_one_shows_in_the_sham(monkeypatch):
    """What the sham is for: were the source run's rows taken one too early, its patch would reach the first difference."""
    from pycotmech.patching import pair_sweep

    model = pcm.Model(tiny_llama(n_layers=4, seed=1), check=False)
    clean, corrupted = prompts(1)
    honest = pair_sweep.sham_change

    def shifted(evaluator, prompt, first, reads, source, *more):
        return honest(evaluator, prompt, first, reads, torch.cat((source, source[:, -1:]), 1), *more)

    monkeypatch.setattr(pair_sweep, "sham_change", shifted)
    assert pcm.patch_heads(model, clean[0], corrupted[0], controls=["sham"]).sham > 1e-6


def test_no_sham_where_prompts_differ_at_the_first_token():
    model = pcm.Model(tiny_llama(), check=False)
    clean, corrupted = prompts(2, shared=0, first=0)
    sweep = pcm.patch_heads(model, clean, corrupted, controls="all")
    assert sweep.controls is not None and np.isnan(sweep.sham)
    assert sweep.controls.missing == dict.fromkeys(range(2), "no sham position: the prompts differ at position 0")


def test_effects_are_those_without_controls():
    model = pcm.Model(tiny_llama(n_layers=3, seed=2), check=False)
    clean, corrupted = prompts(3)
    plain, controlled = (pcm.patch_heads(model, clean, corrupted, controls=c) for c in (None, "all"))
    assert plain.controls is None and np.isnan(plain.control).all()
    assert_allclose(controlled.effect, plain.effect, atol=plain.noise_floor)
    assert controlled.controls is not None
    assert np.abs(controlled.controls.self_patches).max() < plain.noise_floor
    assert list(plain.to_dataframe().columns) == ["layer", "head", "value", "effect", "above_floor"]
    assert list(controlled.to_dataframe().columns[-2:]) == ["control", "beyond"]
    assert "random control of 36 heads" in str(controlled) and "sham position: 0;" in str(controlled)


def test_pairs_of_other_lengths_have_no_random_control():
    model = pcm.Model(tiny_llama(seed=3), check=False)
    clean, corrupted = prompts(3)
    clean[1], corrupted[1] = clean[1][:-1], corrupted[1][:-1]
    sweep = pcm.patch_heads(model, clean, corrupted, controls=["random"])
    assert sweep.controls is not None
    with pytest.raises(ValueError, match="control_source: got a list of 2 for 3 pairs; expected a list of one for each"):
        pcm.patch_heads(model, clean, corrupted, controls=["random"], control_source=clean[:2])
    some = pcm.patch_heads(model, clean, corrupted, controls=["random"], control_source=[None, None, clean[0]])
    assert some.controls is not None and sorted(some.controls.missing) == [0, 1]
    assert sweep.controls.missing == {1: "random control: none: no other pair of equal length"}
    assert np.isnan(sweep.controls.random_raw[1]).all() and not np.isnan(sweep.controls.random_raw[[0, 2]]).any()
    with pytest.warns(UserWarning, match="no other pair of equal length"):
        alone = pcm.patch_heads(model, clean[0], corrupted[0], controls=["random"])
    assert np.isnan(alone.control).all()
    given = pcm.patch_heads(model, clean[0], corrupted[0], controls=["random"], control_source=clean[2])
    assert_allclose(given.controls.random_raw, sweep.controls.random_raw[0], rtol=1e-4)


def test_each_of_a_list_has_its_own_controls_also_where_runs_are_shared():
    model = pcm.Model(tiny_llama(n_layers=3, seed=5), check=False)
    (clean, other), (corrupted, _) = prompts(2)
    ends = [T, T - 3]
    sweeps = pcm.patch_heads_each(
        model, [clean[:n] for n in ends], [corrupted[:n] for n in ends], controls="all",
        control_source=[other[:n] for n in ends],
    )  # fmt: skip
    for sweep, n in zip(sweeps, ends, strict=True):
        alone = pcm.patch_heads(model, clean[:n], corrupted[:n], controls="all", control_source=other[:n])
        assert_allclose(sweep.control, alone.control, atol=1e-4)
        assert sweep.sham == 0.0 and sweep.controls is not None and not sweep.controls.missing


def test_a_share_of_the_heads_is_drawn_evenly_over_layers_and_anew_for_each_pair():
    model = pcm.Model(tiny_llama(n_layers=6, n_heads=4, seed=6), check=False)
    clean, corrupted = prompts(8)
    sweep = pcm.patch_heads(model, clean, corrupted, controls=["random"], control_share=0.25)
    measured = ~np.isnan(sweep.controls.random_raw)
    assert (measured.sum((1, 2)) == 6).all()
    assert (measured.sum(2) == 1).all()  # one in each layer
    assert len({m.tobytes() for m in measured}) > 4
    again = pcm.patch_heads(model, clean, corrupted, controls=["random"], control_share=0.25)
    np.testing.assert_array_equal(~np.isnan(again.controls.random_raw), measured)
    full = pcm.patch_heads(model, clean, corrupted, controls=["random"])
    assert_allclose(sweep.controls.random_raw[measured], full.controls.random_raw[measured], atol=1e-5)


def test_chunks_change_nothing():
    model = pcm.Model(tiny_llama(n_layers=4, seed=7), check=False)
    clean, corrupted = prompts(5)
    whole, parts = (
        pcm.patch_heads(model, clean, corrupted, controls="all", memory_gb=m) for m in (None, 0.0035)
    )  # fmt: skip
    assert parts.plan.chunks > whole.plan.chunks
    assert_allclose(parts.control, whole.control, atol=1e-5)
    np.testing.assert_array_equal(parts.controls.sham, np.zeros(5))


def test_the_plan_counts_controls_and_the_share_of_runs_costs_a_tenth():
    """A model of smollm2-135m's numbers of layers and heads, with prompts whose last tenth is the problem."""
    hf = tiny_llama(n_layers=30, n_heads=9, n_key_value_heads=3, d_head=4, d_model=18, d_mlp=16, n_positions=800)
    model = pcm.Model(hf, check=False)
    g = torch.Generator().manual_seed(0)
    shots = torch.randint(3, 61, (575,), generator=g)
    clean = [torch.cat((shots, torch.randint(3, 61, (75,), generator=g))) for _ in range(2)]
    corrupted = [c.clone() for c in clean]
    for c in corrupted:
        c[590] = (c[590] + 5) % 58 + 3

    def cost(**options):
        plan = pcm.plan_heads(model, clean[0], corrupted[0], **options)
        return plan.token_forwards + plan.base_token_forwards - 575, plan.flop, plan.variants

    none = cost()
    some = cost(controls=("random", "sham"), control_share=CONTROL_SHARE, control_source=clean[1])
    full = cost(controls="all", control_source=clean[1])
    assert some[2] == none[2] + 17 + 2 and full[2] == none[2] + 270 + 2
    assert 1.03 < some[0] / none[0] < 1.1 and some[1] / none[1] < 1.1
    assert 1.8 < full[0] / none[0] < 2.1
    # What is said is what is done: rows through layers, and rows of prompts.
    done = []
    pcm.patch_heads(
        model, clean[0], corrupted[0], controls="all", control_source=clean[1], heads=[(3, 1), (20, 4)],
        progress=lambda a, b: done.append((a, b)),
    )  # fmt: skip
    assert done[-1][0] == done[-1][1]


@pytest.mark.parametrize("seed", range(6))
def test_few_heads_of_random_weights_are_called_effects(seed):
    model = pcm.Model(tiny_llama(n_layers=4, n_heads=8, d_head=8, seed=seed), check=False)
    clean, corrupted = prompts(6, seed=seed)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        sweep = pcm.patch_heads(model, clean, corrupted, controls=("random",))
    assert sweep.beyond.mean() <= 0.05
    assert (sweep.effect[sweep.beyond] > 0).all() or not sweep.beyond.any()


def test_threshold_and_largest_leave_out_what_was_not_measured():
    found = controls(np.where(np.arange(200) < 99, np.arange(200.0), np.nan).reshape(20, 10))
    assert (found.n_random, found.threshold, found.largest) == (99, 94.0, 98.0)
    none = controls(np.full((2, 2), np.nan), missing={0: "no other pair of equal length"})
    assert none.n_random == 0 and np.isnan(none.threshold) and np.isnan(none.largest)
    assert "pair 0: no other pair of equal length" in str(none)


def controls(random, **more):
    random = np.asarray(random, dtype="f4")
    given = dict(random=random, random_raw=random.astype(float), sham=np.zeros(1), self_patches=np.zeros((1, 8)), share=1.0)
    return Controls(**{**given, **more})


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"controls": "random"}, "controls: got 'random'; expected None, 'all', or a sequence"),
        ({"controls": ["shuffled"]}, "controls: got .'shuffled'."),
        ({"controls": "all", "control_share": 0}, "control_share: got 0; expected a share of the heads above 0"),
        ({"controls": "all", "control_share": 1.5}, "control_share: got 1.5"),
        ({"controls": "all", "site": "v"}, "controls: got 'all' for site 'v'; expected None, or site 'z'"),
        ({"control_source": [5] * T}, "control_source: given, but controls=None"),
        ({"controls": "all", "control_source": [5] * 3}, r"control_source.0. has 3 tokens, its pair 20; expected equal"),
        ({"controls": "all", "control_source": [[5] * T]}, "control_source: got a list of 1 for one pair; expected one prompt"),
    ],
)
def test_bad_arguments(options, message):
    model = pcm.Model(tiny_llama(), check=False)
    (clean,), (corrupted,) = prompts(1)
    with pytest.raises(ValueError, match=message):
        pcm.patch_heads(model, clean, corrupted, **options)
