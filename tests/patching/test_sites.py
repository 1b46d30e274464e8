"""Sweeps at every site against one hooked float64 forward per intervention."""

from dataclasses import replace

import numpy as np
import pytest
import torch

import pycotmech as pcm
from pycotmech.model import sizes
from tests.reference.tiny import tiny_llama
from tests.reference.truth import activations, double, edited_logits, logits_of, ungrouped

SHAPES = {"mha": dict(n_heads=4), "gqa": dict(n_heads=4, n_key_value_heads=2)}
T, FIRST, ALSO = 14, 9, 11
RESIDUAL = ("resid_pre", "resid_mid", "resid_post", "attn_out", "mlp_out")


def measure(logits):
    return float(logits[..., 7] - logits[..., 11])


class Case:
    """A tiny model and a pair of prompts, their float64 activations, and the truth of one replacement."""

    def __init__(
        self, shape: str, direction: str = "denoise", per_query_head: bool = False, seed: int = 0, dtype=torch.float32
    ) -> None:
        hf = tiny_llama(**SHAPES[shape], n_layers=3, seed=seed, dtype=dtype)
        self.model, self.direction = pcm.Model(hf), direction
        generator = torch.Generator().manual_seed(seed)
        self.clean = torch.randint(61, (T,), generator=generator)
        self.corrupted = self.clean.clone()
        self.corrupted[FIRST] = (self.corrupted[FIRST] + 7) % 61
        self.corrupted[ALSO] = (self.corrupted[ALSO] + 9) % 61
        self.use(ungrouped(hf) if per_query_head else double(hf))

    def use(self, hf) -> None:
        """Takes the truth from this model."""
        base, source = (self.corrupted, self.clean) if self.direction == "denoise" else (self.clean, self.corrupted)
        self.hf64, self.base, self.source = hf, base, activations(hf, source)
        self.base_metric = measure(edited_logits(hf, base, []))

    def effect(self, site: str, l: int, head: int | None, positions: list[int]) -> float:
        value = self.source[site, l]
        value = value[head][positions] if site == "pattern" else value[positions] if head is None else value[positions, head]
        return measure(edited_logits(self.hf64, self.base, [(site, l, head, positions, value)])) - self.base_metric

    def sweep(self, run=pcm.patch_heads, **arguments):
        return run(
            self.model, self.clean, self.corrupted, direction=self.direction, metric="logit_diff", answer=7, wrong=11,
            normalize=False, **arguments,
        )  # fmt: skip


def close(effect, truth):
    """To 1e-4 of the largest effect."""
    truth = np.asarray(truth)
    largest = np.abs(truth).max()
    assert largest > 0.2, "the test needs a signal"
    assert np.abs(effect - truth).max() <= 1e-4 * largest, (np.abs(effect - truth).max(), largest)


@pytest.mark.parametrize("direction", ["denoise", "noise"])
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("site", ["z", "q", "k", "v", "pattern"])
def test_heads_at_every_site(site, shape, direction):
    case = Case(shape, direction)
    heads = 2 if shape == "gqa" and site in "kv" else 4
    for positions in (None, [-1, -3, 10]):
        sweep = case.sweep(site=site, positions=positions)
        where = list(range(T)) if positions is None else [p % T for p in positions]
        assert sweep.shape == (3, heads) and sweep.site == site
        close(sweep.effect, [[case.effect(site, l, h, where) for h in range(heads)] for l in range(3)])


@pytest.mark.parametrize("site", ["z", "q", "k", "v", "pattern"])
def test_heads_by_position(site):
    case = Case("gqa")
    sweep = case.sweep(site=site, by_position=True)
    heads = 2 if site in "kv" else 4
    assert sweep.shape == (3, T, heads)
    assert (sweep.effect[:, :FIRST] == 0).all()
    if site not in "kv":  # in the last layer only the row that is read counts
        assert (sweep.effect[2, :-1] == 0).all() and (sweep.raw[2, :-1] == sweep.corrupted_metric[0]).all()
    truth = [[[case.effect(site, l, h, [p]) for h in range(heads)] for p in range(FIRST, T)] for l in range(3)]
    close(sweep.effect[:, FIRST:], truth)


@pytest.mark.parametrize("site", ["k", "v"])
def test_what_one_query_head_reads(site):
    """per_query_head is a key-value edit in the same model with one key-value head for each query head."""
    case = Case("gqa", per_query_head=True)
    sweep = case.sweep(site=site, per_query_head=True)
    assert sweep.shape == (3, 4)
    close(sweep.effect, [[case.effect(site, l, h, list(range(T))) for h in range(4)] for l in range(3)])
    by_position = case.sweep(site=site, per_query_head=True, by_position=True)
    close(by_position.effect[:, FIRST], [[case.effect(site, l, h, [FIRST]) for h in range(4)] for l in range(3)])


@pytest.mark.parametrize("direction", ["denoise", "noise"])
@pytest.mark.parametrize("site", RESIDUAL)
def test_residual_by_position(site, direction):
    case = Case("gqa", direction)
    sweep = case.sweep(pcm.patch_residual, site=site)
    assert sweep.shape == (3, T) and sweep.axes == ("layer", "position") and (sweep.effect[:, :FIRST] == 0).all()
    close(sweep.effect[:, FIRST:], [[case.effect(site, l, None, [p]) for p in range(FIRST, T)] for l in range(3)])
    if site != "resid_pre":
        assert (sweep.effect[2, :-1] == 0).all()
    frame = sweep.to_dataframe()
    assert list(frame.columns) == ["layer", "position", "value", "effect", "above_floor"] and len(frame) == 3 * T


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("site", RESIDUAL)
def test_residual_at_once(site, shape):
    case = Case(shape)
    for positions in (None, [-1, 9, -2]):
        sweep = case.sweep(pcm.patch_residual, site=site, by_position=False, positions=positions)
        where = list(range(T)) if positions is None else [p % T for p in positions]
        assert sweep.shape == (3,)
        close(sweep.effect, [case.effect(site, l, None, where) for l in range(3)])


def test_all_of_the_residual_stream_is_the_other_run():
    """Every row before the first layer replaced: the other run itself, normalised 1; also in the last layer's output."""
    case = Case("mha")
    sweep = case.sweep(pcm.patch_residual, by_position=False)
    clean = measure(logits_of(case.hf64, case.clean, keep=1)[0])
    assert np.abs(sweep.raw[0] - clean) < 1e-4
    assert abs(case.sweep(pcm.patch_residual, site="resid_post", by_position=False).raw[-1] - clean) < 1e-4


@pytest.mark.parametrize("sites", [("q", "k", "v", "pattern"), RESIDUAL], ids=["heads", "residual"])
def test_16_bit_error_is_at_most_that_of_hooked_hugging_face(sites):
    """Root mean square over all entries of all sites, of changes of the metric."""
    ours = theirs = signal = 0.0
    for seed in range(3):
        exact = Case("gqa", seed=seed, dtype=torch.bfloat16)
        half = Case("gqa", seed=seed, dtype=torch.bfloat16)
        half.use(half.model.hf)
        for site in sites:
            if site in RESIDUAL:
                sweep, heads = exact.sweep(pcm.patch_residual, site=site, by_position=False), [None]
            else:
                sweep = exact.sweep(site=site)
                heads = list(range(sweep.shape[1]))
            truth = np.array([[exact.effect(site, l, h, list(range(T))) for h in heads] for l in range(3)])
            hooked = np.array([[half.effect(site, l, h, list(range(T))) for h in heads] for l in range(3)])
            ours += ((sweep.effect.reshape(truth.shape) - truth) ** 2).sum()
            theirs += ((hooked - truth) ** 2).sum()
            signal += (truth**2).sum()
    assert ours <= theirs, (ours / theirs) ** 0.5
    assert ours < 0.01 * signal, (ours / signal) ** 0.5


def test_several_pairs_of_unequal_lengths():
    case = Case("gqa")
    longer = [torch.cat((t[:2], t)) for t in (case.clean, case.corrupted)]
    for site, run in (("k", pcm.patch_heads), ("pattern", pcm.patch_heads), ("attn_out", pcm.patch_residual)):
        more = {} if run is pcm.patch_heads else dict(by_position=False)
        alone = [run(case.model, a, b, site=site, **more).raw for a, b in ((case.clean, case.corrupted), longer)]
        memory = None
        for _ in range(2):  # as it comes, then with less than that took
            both = run(case.model, [case.clean, longer[0]], [case.corrupted, longer[1]], site=site, memory_gb=memory, **more)
            assert memory is None or both.plan.chunks > 1
            for together, one in zip(both.raw, alone, strict=True):
                assert np.abs(together - one).max() < 1e-4 * np.abs(one).max()
            memory = 0.9 * both.plan.bytes_in_flight / 2**30


def test_blocks_that_hold_one_variant(monkeypatch):
    """Edits are found in whatever block of rows a variant falls."""
    from pycotmech.engine import row_edits as late

    case = Case("gqa")
    for site in ("k", "pattern", "v"):
        arguments = dict(site=site, per_query_head=site == "v")
        whole = case.sweep(**arguments)
        with monkeypatch.context() as patch:
            patch.setattr(sizes, "CPU", replace(sizes.CPU, row_block=7))
            patch.setattr(late, "_PATTERN_ENTRIES", 1)
            cut = case.sweep(**arguments)
        assert np.abs(whole.raw - cut.raw).max() < 1e-5 * np.abs(whole.effect).max() + 1e-5


def test_a_hook_name_stands_for_its_layer():
    case = Case("gqa")
    sweep = case.sweep(site="blocks.1.attn.hook_k")
    assert np.isnan(sweep.values[[0, 2]]).all() and not np.isnan(sweep.values[1]).any() and sweep.site == "k"
    assert np.array_equal(case.sweep(site="blocks.1.attn.hook_pattern").shape, (3, 4))
    residual = case.sweep(pcm.patch_residual, site="blocks.2.hook_resid_mid")
    assert np.isnan(residual.values[:2]).all() and not np.isnan(residual.values[2]).any()


def test_wrong_arguments():
    case = Case("gqa")
    bad = [
        (pcm.patch_heads, dict(site="resid_pre"), "site: got 'resid_pre'; heads are patched at"),
        (pcm.patch_heads, dict(site="edge"), "site: got 'edge'"),
        (pcm.patch_heads, dict(site="blocks.1.attn.hook_v", heads=[(0, 0)]), "expected layer 1, which the site names"),
        (pcm.patch_heads, dict(site="k", heads=[(0, 2)]), r"\(0, 2\) is out of range; expected layers 0..2, heads 0..1"),
        (pcm.patch_heads, dict(site="q", per_query_head=True), "per_query_head: got True for site 'q'"),
        (pcm.patch_heads, dict(heads=[(2, 0)], positions=[-2]), "reaches nothing that is read"),
        (pcm.patch_residual, dict(site="z"), "site: got 'z'; expected one of resid_pre"),
        (pcm.patch_residual, dict(site="blocks.2.hook_mlp_out", positions=[-2]), "reaches nothing that is read"),
        (pcm.patch_residual, dict(positions=[3]), "positions: .* reach nothing that is read"),
    ]
    for run, arguments, message in bad:
        with pytest.raises(ValueError, match=message):
            run(case.model, case.clean, case.corrupted, **arguments)


def test_patterns_of_one_head_in_prompts_of_several_lengths():
    """Variants that stand side by side have the head in common and not the base: each reads the keys of its own."""
    case = Case("gqa")
    pairs = [(case.clean[:n], case.corrupted[:n]) for n in (T, T - 1, T)]
    pairs[2] = (pairs[2][0].flip(0), pairs[2][0].flip(0).index_fill(0, torch.tensor([3]), 5))
    options = dict(site="pattern", heads=[(1, 2)], metric="logit_diff", answer=7, wrong=11, normalize=False)
    together = pcm.patch_heads(case.model, *([p[i] for p in pairs] for i in (0, 1)), **options)
    for e, (clean, corrupted) in enumerate(pairs):
        alone = pcm.patch_heads(case.model, clean, corrupted, **options)
        assert abs(alone.raw[1, 2] - alone.corrupted_metric) > 1e-3
        assert together.raw[e, 1, 2] == pytest.approx(alone.raw[1, 2], abs=1e-5)
