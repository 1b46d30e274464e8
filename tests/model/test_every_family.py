"""Every public function on every family: each asks the family, and agrees with hooked forward passes, or refuses by name.

One family is made for these tests: it has windows, a soft-cap, a scale and a second rotary base at once. The windows cut into
what two prompts share, so that a variant's rows see a part of the shared prefix. A new family is one row in `small_families`.
"""

import copy

import numpy as np
import pytest
import torch

import pycotmech as pcm
from tests.reference.paths import PathTruth
from tests.reference.small_families import FAMILIES, ONE_QUICK_TEST, WINDOWS, small
from tests.reference.truth import activations, double, edited_logits, logits_of, slopes, sweep_truth, ungrouped
from tests.reference.watch import watched
from tests.reference.windowed import registered, windowed
from tests.reference.written import direct_logits, lens_logits

T, FIRST, H, HKV, D = 20, 13, 4, 2, 16
ANSWER = dict(metric="logit_diff", answer=7, wrong=11, normalize=False)
CLEAN = torch.randint(61, (T,), generator=torch.Generator().manual_seed(0))
CORRUPTED = CLEAN.clone()
CORRUPTED[FIRST] = (CORRUPTED[FIRST] + 7) % 61
SITES = ("resid_pre", "resid_mid", "resid_post", "attn_out", "mlp_out", "q", "k", "v", "z")


class Case:
    """A model, its float64 truth, and how near the two must be, relative to the largest value."""

    def __init__(self, family: str, dtype: torch.dtype) -> None:
        hf = small(family)
        self.name, self.dtype, self.wide = family, dtype, double(hf)
        self.errors: list[float] = []  # of the test that is running, relative to the largest value
        self.tolerance = 2e-4 if dtype == torch.float32 else 1e-6  # many results are float32 whatever the model
        with registered():
            self.model = pcm.Model(hf if dtype == torch.float32 else copy.deepcopy(hf).double())
        self.clean, self.corrupted = activations(self.wide, CLEAN), activations(self.wide, CORRUPTED)

    def close(self, ours, truth, scale=None, narrowed=False) -> None:
        """narrowed: ours is of the Hugging Face model, whose norms compute in float32 whatever the dtype."""
        ours, truth = np.asarray(ours, dtype=np.float64), np.asarray(truth, dtype=np.float64)
        assert ours.shape == truth.shape
        scale = np.abs(truth[np.isfinite(truth)]).max() if scale is None else scale
        scale = max(scale, 0.05)  # of logits of size 1, where an effect is nearly nothing
        worst = np.nanmax(np.abs(ours - truth)) if ours.size else 0.0
        assert worst <= (max(self.tolerance, 2e-5) if narrowed else self.tolerance) * scale, (worst, scale)
        self.errors.append(float(worst / scale))

    def difference(self, tokens, edits=(), hf=None) -> float:
        """logit(answer) - logit(wrong) of one hooked forward pass."""
        logits = edited_logits(hf or self.wide, tokens, list(edits))
        return float(logits[7] - logits[11])


WIDE = ("windowed", "gpt_neox", "gpt_oss")
"""Families whose float64 models are in the quick tests; the others' are slow."""


def _cases():
    for family in FAMILIES:
        for dtype in (torch.float32, torch.float64):
            slow = family in ONE_QUICK_TEST or (dtype == torch.float64 and family not in WIDE)
            marks = pytest.mark.slow if slow else ()
            yield pytest.param((family, dtype), id=f"{family}-{str(dtype)[6:]}", marks=marks)


@pytest.fixture(scope="module", params=_cases())
def case(request):
    return Case(*request.param)


@pytest.fixture(autouse=True)
def kernels_are_reached(request):
    """Without a fallback in silence: `tests/reference/watch.py`."""
    if "case" not in request.fixturenames:
        yield
        return
    case = request.getfixturevalue("case")
    case.errors = []
    with watched(request, case.name, case.dtype, case.errors):
        yield


def test_windows_soft_cap_scale_and_rotary_base_matter():
    """Each changes the logits by far more than the tolerances below."""
    hf = windowed(windows=WINDOWS, n_heads=H, n_key_value_heads=HKV)
    ours = logits_of(hf, CLEAN)
    others = [windowed(windows=[0, 0, 0], like=hf), windowed(windows=WINDOWS, softcap=0.0, like=hf)]
    others += [windowed(windows=WINDOWS, scale=None, like=hf)]
    hf.model.layers[1].self_attn.second_base = False
    for other in [logits_of(o, CLEAN) for o in others] + [logits_of(hf, CLEAN)]:
        assert (ours - other).abs().max() > 0.1


def sites(case) -> tuple[str, ...]:
    """A parallel block has no stream between attention and MLP."""
    return tuple(site for site in SITES if site != "resid_mid" or not case.model.cfg.parallel)


def test_run(case):
    acts = case.model.run(CLEAN, capture=sites(case))
    for site in sites(case):
        case.close(acts[site], torch.stack([case.clean[site, l] for l in range(3)]))
    case.close(acts.logits, logits_of(case.wide, CLEAN))
    batch = case.model.run(torch.stack((CLEAN, CORRUPTED)), positions=-1)
    case.close(batch.logits[1, 0], logits_of(case.wide, CORRUPTED)[-1])


@pytest.mark.parametrize("positions", [None, [-1, -3]])
@pytest.mark.parametrize("site", ["z", "q", "k", "v", "pattern"])
def test_patch_heads(case, site, positions):
    found = pcm.patch_heads(case.model, CLEAN, CORRUPTED, site=site, positions=positions, **ANSWER)
    n = case.model.cfg.n_key_value_heads if site in "kv" else H
    assert found.raw.shape == (3, n)
    heads = [(l, h) for l in range(3) for h in range(n)]
    at = heads if positions is None else [(0, 1), (1, n - 1), (2, 0)]
    truth = np.empty(len(at))
    for i, (l, h) in enumerate(at):
        source = case.clean[site, l]
        value = source[h] if site == "pattern" else source[:, h]
        where = range(T) if positions is None else [p % T for p in positions]
        truth[i] = case.difference(CORRUPTED, [(site, l, h, list(where), value[list(where)])])
    case.close([found.raw[place] for place in at], truth, np.abs(truth - case.difference(CORRUPTED)).max())


@pytest.mark.parametrize("site", ["k", "v"])
def test_what_one_query_head_reads(case, site):
    found = pcm.patch_heads(case.model, CLEAN, CORRUPTED, site=site, per_query_head=True, **ANSWER)
    apart, group = ungrouped(case.wide), case.model.cfg.group
    truth = np.empty((3, H))
    for l in range(3):
        for h in range(H):
            truth[l, h] = case.difference(CORRUPTED, [(site, l, h, None, case.clean[site, l][:, h // group])], hf=apart)
    case.close(found.values, truth)


def test_patch_heads_by_position_and_of_a_list(case):
    by_position = pcm.patch_heads(case.model, CLEAN, CORRUPTED, by_position=True, **ANSWER)
    for l, p, h in ((0, 13, 1), (1, 15, 2), (2, 19, 0)):
        truth = case.difference(CORRUPTED, [("z", l, h, [p], case.clean["z", l][[p], h])])
        case.close(by_position.values[l, p, h], truth)
    other = torch.cat((CLEAN[:8], CLEAN[2:9]))  # shares the beginning alone
    changed = other.clone()
    changed[10] = (changed[10] + 9) % 61
    both = pcm.patch_heads(case.model, [CLEAN, other], [CORRUPTED, changed], **ANSWER)
    for raw, (base, source) in zip(both.raw, ((CORRUPTED, CLEAN), (changed, other)), strict=True):
        case.close(raw, sweep_truth(case.wide, base, source, lambda logits: float(logits[7] - logits[11])))


GROUPS = {"around the change": slice(11, 14), "after it": [14, 16], "last": -1}


def test_groups_of_positions(case):
    heads = pcm.patch_heads(case.model, CLEAN, CORRUPTED, groups=GROUPS, **ANSWER).raw
    stream = pcm.patch_residual(case.model, CLEAN, CORRUPTED, site="resid_post", groups=GROUPS, **ANSWER).raw
    assert heads.shape == (3, 3, H) and stream.shape == (3, 3)
    base = case.difference(CORRUPTED)
    for l, (g, where) in ((l, x) for l in (0, 2) for x in enumerate(([11, 12, 13], [14, 16], [T - 1]))):
        h = g + 1
        truth = case.difference(CORRUPTED, [("z", l, h, where, case.clean["z", l][where, h])])
        case.close(heads[l, g, h] - base, truth - base, 1)
        truth = case.difference(CORRUPTED, [("resid_post", l, None, where, case.clean["resid_post", l][where])])
        case.close(stream[l, g], truth, 10)


@pytest.mark.parametrize("site", ["resid_pre", "resid_mid", "resid_post", "attn_out", "mlp_out"])
def test_patch_residual(case, site):
    if site not in sites(case):
        with pytest.raises(NotImplementedError, match="resid_mid lies between"):
            pcm.patch_residual(case.model, CLEAN, CORRUPTED, site=site, **ANSWER)
        return
    found = pcm.patch_residual(case.model, CLEAN, CORRUPTED, site=site, by_position=True, **ANSWER)
    for l in range(3):
        for p in (FIRST, FIRST + 3, T - 1):
            truth = case.difference(CORRUPTED, [(site, l, None, [p], case.clean[site, l][[p]])])
            case.close(found.values[l, p], truth, 10)


def test_sweep(case):
    g = torch.Generator().manual_seed(5)
    dtype = case.model.cfg.dtype
    z, k, x = (torch.randn(n, D if n < 3 else case.model.cfg.d_model, dtype=dtype, generator=g) for n in (1, 2, 3))
    weights = torch.zeros(1, T, dtype=dtype)
    weights[0, [2, 18]] = torch.tensor([0.25, 0.75], dtype=dtype)  # key 2 has left the window: a pattern is taken as given
    edits = [
        [("z", 0, 2, [4], z), ("k", 1, 1, [5, 17], k)],
        [(sites(case)[1], 1, None, [3, 9, 19], x), ("edge", 2, 1, [19], [12, 16])],
        [("pattern", 2, 3, [19], weights)],
        [("edge", 0, None, [9, 19], [4, 14, 15])],
        [("z", 1, 2, [4, 17], z), ("mlp_out", 1, None, [9, 17, 19], x)],
        [("attn_out", 2, None, [17, 18, 19], x), ("mlp_out", 2, None, [9, 18, 19], x)],
        [("mlp_out", 1, None, [9, 17, 19], x), ("z", 2, 1, [19], z)],
    ]

    def edit(site, l, head, positions, value):
        keys = value if site == "edge" else None
        return pcm.Edit(site, l, head, positions, None if site == "edge" else value, keys)

    variants = [pcm.Variant(tuple(edit(*e) for e in group)) for group in edits]
    found = pcm.sweep(case.model, CLEAN, variants, metric="logit_diff", answer=7, wrong=11)
    case.close(found.raw, [case.difference(CLEAN, group) for group in edits])


def test_knock_out_edges(case):
    found = pcm.knock_out_edges(
        case.model, CLEAN, from_=[8, 14, 15], to=[-1, -2], each="layer", metric="logit_diff", answer=7, wrong=11
    )
    truth = [case.difference(CLEAN, [("edge", l, None, [18, 19], [8, 14, 15])]) for l in range(3)]
    case.close(found.raw, truth)


@pytest.mark.parametrize("kind", ["zero", "mean", "resample"])
def test_ablate_heads(case, kind):
    heads, other = [(0, 1), (1, 2), (2, 0)], CLEAN.flip(0)
    flipped = activations(case.wide, other)
    mean = torch.stack([flipped["z", l].mean(0) for l in range(3)])
    given = {"zero": {}, "mean": {"mean": mean}, "resample": {"resample": other}}[kind]
    found = pcm.ablate_heads(case.model, CLEAN, heads, kind=kind, metric="logit_diff", answer=7, wrong=11, **given)
    value = {"zero": lambda l, h: 0.0, "mean": lambda l, h: mean[l, h], "resample": lambda l, h: flipped["z", l][:, h]}[kind]
    case.close(np.ravel(found.raw), [case.difference(CLEAN, [("z", l, h, None, value(l, h)) for l, h in heads])])


def test_head_interactions(case):
    units = [(0, 1), [(1, 0), (1, 3)], (2, 2)]
    found = pcm.head_interactions(case.model, CLEAN, CORRUPTED, units, answer=7, wrong=11)

    base = case.difference(CLEAN)

    def change(*patched):
        return case.difference(CLEAN, [("z", l, h, None, case.corrupted["z", l][:, h]) for l, h in patched]) - base

    sets = [[(0, 1)], [(1, 0), (1, 3)], [(2, 2)]]
    case.close(found.single[0], [change(*unit) for unit in sets])
    joint = [change(*sets[a], *sets[b]) for a, b in ((0, 1), (0, 2), (1, 2))]
    case.close(found.joint[0][[0, 0, 1], [1, 2, 2]], joint)


@pytest.mark.parametrize("freeze_mlps", [False, True])
def test_path_patch(case, freeze_mlps):
    truth = PathTruth(case.wide, CORRUPTED, CLEAN, freeze_mlps=freeze_mlps)
    senders, receivers = [(0, 1), (0, 3), (1, 2)], [(1, 0), (2, 1), (2, 3)]
    options = dict(metric="logit_diff", answer=7, wrong=11, normalize=False, freeze_mlps=freeze_mlps)
    metric = lambda logits: float(logits[7] - logits[11])  # noqa: E731
    to_logits = pcm.path_patch(case.model, CLEAN, CORRUPTED, senders=senders, **options)
    case.close(np.ravel(to_logits.effect)[: len(senders)], truth.effects(senders, "logits", [], metric))
    found = pcm.path_patch(
        case.model, CLEAN, CORRUPTED, senders=senders, receivers=receivers, receiver_input=["q", "k", "v"], **options
    )
    expected = truth.effects(senders, receivers, ["q", "k", "v"], metric)
    for i, s, r in ((i, s, r) for i in range(3) for s in range(3) for r in range(3)):
        ours = found.effect[i, s, r]
        case.close(ours, expected[i, s, r], expected.abs().max())


@pytest.mark.parametrize("by_position", [False, True])
@pytest.mark.parametrize("site", ["z", "q", "k", "v"])
def test_attribute_heads(case, site, by_position):
    """Slopes by autograd at the same places of the hooked model, in float64."""
    found = pcm.attribute_heads(case.model, CLEAN, CORRUPTED, site=site, by_position=by_position, **ANSWER)
    change = torch.stack([case.clean[site, l] - case.corrupted[site, l] for l in range(3)])  # [L, T, heads, D]
    truth = (change * slopes(case.wide, CORRUPTED, site, lambda logits: logits[7] - logits[11])).sum(-1)
    case.close(found.effect, truth if by_position else truth.sum(1), narrowed=True)


def patterns(case, tokens=CLEAN):
    return torch.stack([activations(case.wide, tokens)["pattern", l] for l in range(3)])  # [L, H, T, T]


@pytest.mark.parametrize("rows", [None, [-1, 4, 10]])
def test_attention_summary(case, rows):
    found = pcm.attention_summary(case.model, CLEAN, segments={"a": slice(2, 9), "b": [11, 12, 17]}, rows=rows, top_k=12)
    p = patterns(case)
    p = p if rows is None else p[:, :, [r % T for r in rows]]
    case.close(found.segment("a"), p[..., 2:9].sum(-1), 1)
    case.close(found.segment("b"), p[..., [11, 12, 17]].sum(-1), 1)
    case.close(found.entropy, -torch.special.xlogy(p, p).sum(-1), 1)
    case.close(found.largest, p.amax(-1), 1)
    case.close(found.received, p.sum(2), 1)
    case.close(found.top_weights, p.sort(-1, descending=True).values[..., :12], 1)
    chosen = torch.from_numpy(found.top_keys).long()
    assert bool(((chosen >= 0) == (torch.from_numpy(found.top_weights) > 0)).all())  # no key outside the window is named


def test_head_scores(case):
    tokens = torch.cat((CLEAN[:10], CLEAN[:10]))
    found, p = pcm.head_scores(case.model, tokens), patterns(case, tokens)
    rows = torch.arange(1, T)
    case.close(found.first, p[:, :, 1:, 0].mean(-1), 1)
    case.close(found.previous, p[:, :, rows, rows - 1].mean(-1), 1)
    same = (tokens[:, None] == tokens) & (torch.arange(T) < torch.arange(T)[:, None])
    case.close(found.duplicate, (p * same).sum((-1, -2)) / same.any(1).sum(), 1)


def test_capture_attention(case):
    """Inside the Hugging Face model's own forward pass, which has no float64 norms."""
    hf = case.model.hf
    if any(case.model.family.attention(l).window for l in range(3)):
        with pytest.raises(NotImplementedError, match="window"), pcm.capture_attention(hf):
            hf(CLEAN[None])
        return
    with pcm.capture_attention(case.model, segments={"a": slice(2, 9)}, top_k=4) as found:
        logits = hf(CLEAN[None]).logits[0]
    case.close(logits, logits_of(case.wide, CLEAN), narrowed=True)
    p = patterns(case)
    case.close(found.segment("a")[0], p[..., 2:9].sum(-1), 1, narrowed=True)
    case.close(found.received[0], p.sum(2), 1, narrowed=True)
    case.close(found.top_weights[0], p.sort(-1, descending=True).values[..., :4], 1, narrowed=True)


def test_head_logits(case):
    ids = torch.tensor([7, 11])
    if case.name == "gemma2":
        with pytest.raises(NotImplementedError, match="soft-capped"):
            pcm.head_logits(case.model, CLEAN, answer=7, wrong=11)
        return
    parts, truth = pcm.head_logits(case.model, CLEAN, answer=7, wrong=11), direct_logits(case.wide, case.clean, ids)
    for l in range(3):
        case.close(parts.heads[l], truth[l])
    case.close(parts.total, logits_of(case.wide, CLEAN)[-1, ids])
    bias = 0 if parts.bias is None else parts.bias
    case.close(parts.heads.sum((0, 1)) + parts.mlps.sum(0) + parts.embedding + bias, parts.total)


def test_logit_lens(case):
    lens = pcm.logit_lens(case.model, CLEAN, positions=[-1, 3], answer=[7, 11])
    for l in range(3):
        case.close(lens.logits[:, l], lens_logits(case.wide, case.clean["resid_post", l][[-1, 3]])[:, [7, 11]])


def test_capture_refuses_windows_by_name_and_honours_the_soft_cap():
    hf = windowed(windows=WINDOWS, n_heads=H, n_key_value_heads=HKV)
    with pytest.raises(NotImplementedError, match="sliding window of 6 tokens"), pcm.capture_attention(hf):
        hf(CLEAN[None])
    capped = windowed(windows=[0, 0, 0], like=hf)
    with pcm.capture_attention(capped, segments={"a": slice(2, 9)}) as found:
        logits = capped(CLEAN[None]).logits[0]
    assert (logits - logits_of(capped, CLEAN)).abs().max() < 1e-4
    wide = double(capped)
    p = torch.stack([activations(wide, CLEAN)["pattern", l] for l in range(3)])
    assert np.abs(found.segment("a")[0] - p[..., 2:9].sum(-1).numpy()).max() < 1e-4
