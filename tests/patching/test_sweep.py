"""Variants with any edits against one hooked float64 forward each."""

from dataclasses import replace

import numpy as np
import pytest
import torch

import pycotmech as pcm
from pycotmech.model import sizes
from tests.reference.tiny import tiny_llama
from tests.reference.truth import activations, double, edited_logits, kl, logits_of, ungrouped

SHAPES = {"mha": dict(n_heads=4), "gqa": dict(n_heads=4, n_key_value_heads=2)}
L, H, D, T, WIDTH = 3, 4, 16, 12, 48


def measure(logits):
    return float(logits[..., 7] - logits[..., 11])


@pytest.fixture(scope="module", params=SHAPES)
def case(request):
    hf = tiny_llama(**SHAPES[request.param], n_layers=L)
    tokens = torch.randint(61, (T,), generator=torch.Generator().manual_seed(5))
    model = pcm.Model(hf)
    return model, double(hf), tokens


def random_edit(generator, cfg, read, site):
    """An edit at random that reaches what is read, and the same for the reference."""

    def draw(n):
        return int(torch.randint(n, (1,), generator=generator))

    l, positions = draw(L), sorted({draw(T) for _ in range(3)} | {read})
    head = None if site.startswith("resid") or site.endswith("out") else draw(cfg.n_key_value_heads if site in "kv" else H)
    if site == "edge":
        head, keys = head if draw(2) else None, sorted({0, 2, 3, 2 + draw(4)})
        positions = [p for p in positions if p != 0]  # position 1 still sees itself
        return pcm.Edit("edge", l, head, positions, keys=keys), (site, l, head, positions, keys)
    if site == "pattern":
        value = torch.rand(len(positions), T, generator=generator)
        value = value.masked_fill(torch.arange(T) > torch.tensor(positions)[:, None], 0)
    else:
        value = torch.randn(len(positions), WIDTH if head is None else D, generator=generator)
    return pcm.Edit(site, l, head, positions, value), (site, l, head, positions, value)


SITES = ("z", "q", "k", "v", "pattern", "edge", "resid_pre", "resid_mid", "resid_post", "attn_out", "mlp_out")


@pytest.mark.parametrize("read", [11, 9])
def test_variants_with_one_edit_and_with_many(case, read):
    """Each site alone, and four edits of different sites, layers and heads in one variant."""
    model, hf64, tokens = case
    generator = torch.Generator().manual_seed(read)
    chosen = [[site] for site in SITES for _ in range(3)]
    chosen += [[SITES[i] for i in torch.randperm(len(SITES), generator=generator)[:4]] for _ in range(12)]
    drawn = [[random_edit(generator, model.cfg, read, site) for site in sites] for sites in chosen]
    expected = torch.stack([edited_logits(hf64, tokens, [truth for _, truth in edits], read) for edits in drawn])
    base = measure(edited_logits(hf64, tokens, [], read))
    variants = [
        pcm.Variant(tuple(e for e, _ in edits), name=" ".join(sites)) for edits, sites in zip(drawn, chosen, strict=True)
    ]
    result = pcm.sweep(model, tokens, variants, metric="logit_diff", answer=7, wrong=11, read=read, return_logits=True)
    effects = np.array([measure(x) - base for x in expected])
    error, largest = np.abs(result.effect - effects), np.abs(effects).max()
    assert largest > 1 and error.max() < 1e-4 * largest, [(variants[i].name, error[i]) for i in np.argsort(-error)[:3]]
    assert (result.logits - expected).abs().max() < 1e-4 * expected.abs().max()
    assert abs(result.base_metric - base) < 1e-4 and 0 < result.noise_floor < 1e-3
    assert result.names == tuple(v.name for v in variants) and len(result) == len(variants)


def test_in_pieces_and_blocks(case, monkeypatch):
    """Neither the memory budget nor the block size changes anything beyond rounding; progress ends at its total."""
    model, _, tokens = case
    generator = torch.Generator().manual_seed(3)
    variants = []
    for i in range(40):
        edits = [random_edit(generator, model.cfg, T - 1, SITES[(i + j) % len(SITES)])[0] for j in (0, 3)]
        variants.append(pcm.Variant(tuple(edits)))
    seen = []
    arguments = dict(metric="logit_diff", answer=7, wrong=11)
    whole = pcm.sweep(model, tokens, variants, progress=lambda done, total: seen.append((done, total)), **arguments)
    assert whole.plan.chunks == 1 and seen[-1][0] == seen[-1][1] > 0
    assert np.array_equal(whole.raw, pcm.sweep(model, tokens, variants, **arguments).raw)
    small = pcm.sweep(model, tokens, variants, memory_gb=0.0005, **arguments)
    monkeypatch.setattr(sizes, "CPU", replace(sizes.CPU, row_block=7))
    blocks = pcm.sweep(model, tokens, variants, **arguments)
    assert small.plan.chunks > 1
    for other in (small, blocks):
        assert np.abs(other.raw - whole.raw).max() < 2e-5 * np.abs(whole.effect).max()


def test_values_broadcast(case):
    """A number, one row for all positions, all heads at once: the same as written out."""
    model, hf64, tokens = case
    g = torch.Generator().manual_seed(2)
    row, all_heads = torch.randn(D, generator=g), torch.randn(2, H, D, generator=g)
    row_d = torch.randn(WIDTH, generator=g)
    cut = [pcm.Edit("edge", 1, h, [5, 11], keys=4) for h in range(H)]
    result = pcm.sweep(
        model,
        tokens,
        [
            pcm.Variant((pcm.Edit("z", 0, 2, None, 0.0),)),
            pcm.Variant((pcm.Edit("z", 0, 2, None, torch.zeros(T, D)),)),
            pcm.Variant((pcm.Edit("q", 1, 1, [3, -1], row),)),
            pcm.Variant((pcm.Edit("q", 1, 1, [3, -1], row.expand(2, D)),)),
            pcm.Variant((pcm.Edit("z", 1, None, [3, -1], all_heads),)),
            pcm.Variant(tuple(pcm.Edit("z", 1, h, [3, -1], all_heads[:, h]) for h in range(H))),
            pcm.Variant((pcm.Edit("blocks.1.hook_attn_out", 1, None, 4, row_d),)),
            pcm.Variant((pcm.Edit("attn_out", 1, None, [4], row_d[None].double()),)),
            pcm.Variant((pcm.Edit("edge", 1, None, [5, 11], keys=[4]),)),
            pcm.Variant(tuple(cut)),
        ],
        metric="logit_diff",
        answer=7,
        wrong=11,
    )
    assert np.abs(result.raw[::2] - result.raw[1::2]).max() < 1e-6 * np.abs(result.raw).max()
    assert len(set(np.round(result.raw[::2], 4))) == 5
    truth = measure(edited_logits(hf64, tokens, [("z", 0, 2, None, 0.0)])) - measure(edited_logits(hf64, tokens, []))
    assert result.effect[0] == pytest.approx(truth, rel=1e-4)


def test_kl_is_taken_from_the_base_a_prompt_or_logits(case):
    model, hf64, tokens = case
    other = tokens.flip(0)
    variants = [pcm.Variant((pcm.Edit("z", l, 1, None, 0.0),), name=f"L{l}") for l in range(L)]
    logits = [edited_logits(hf64, tokens, [("z", l, 1, None, 0.0)]) for l in range(L)]
    own, far = logits_of(hf64, tokens, keep=1)[0], logits_of(hf64, other, keep=1)[0]
    for clean, reference in ((None, own), (other, far), (far.float(), far)):
        result = pcm.sweep(model, tokens, variants, clean=clean)
        truth = np.array([kl(reference, x) for x in logits])
        assert np.abs(result.raw - truth).max() < 1e-4 * truth.max()
        assert result.base_metric == pytest.approx(kl(reference, own), rel=1e-4, abs=1e-12)
        assert np.abs(result.effect - (truth - kl(reference, own))).max() < 1e-4 * np.abs(truth).max()
    frame = result.to_dataframe()
    assert list(frame["name"]) == ["L0", "L1", "L2"] and frame["above_floor"].all() and "L1" in str(result)


# ---- grouped queries: what an edit must and must not reach -----------------------------------------------------------


@pytest.fixture(scope="module")
def grouped():
    hf = tiny_llama(n_heads=6, n_key_value_heads=2, n_layers=2)
    tokens = torch.randint(61, (T,), generator=torch.Generator().manual_seed(8))
    return pcm.Model(hf), hf, tokens


def test_an_edit_reaches_its_head_or_its_group_and_nothing_else(grouped):
    """An edit whose heads get their own z back is no edit: q reaches one head, k and v a group, or one of it if asked."""
    model, _, tokens = grouped
    z = model.run(tokens, capture=("z",))["z"]
    group = {0: (0, 1, 2), 1: (3, 4, 5)}
    variants, restored = [], []
    for site in ("q", "k", "v"):
        for head in range(6 if site == "q" else 2):
            reached = (head,) if site == "q" else group[head]
            for back in [*(tuple(h for h in reached if h != left) for left in reached), reached]:
                edits = [pcm.Edit(site, 0, head, None, 0.0), *(pcm.Edit("z", 0, h, None, z[0, :, h]) for h in back)]
                variants.append(pcm.Variant(tuple(edits)))
                restored.append(back == reached)
    for site in ("k", "v"):
        for head in range(6):
            edit = pcm.Edit(site, 0, head, None, 0.0, per_query_head=True)
            variants += [pcm.Variant((edit,)), pcm.Variant((edit, pcm.Edit("z", 0, head, None, z[0, :, head])))]
            restored += [False, True]
    result = pcm.sweep(model, tokens, variants, metric="logit_diff", answer=7, wrong=11)
    change, restored = np.abs(result.raw - result.base_metric), np.array(restored)
    assert change[restored].max() < 2e-5 and change[~restored].min() > 1e-3


def test_a_slice_of_attn_out_is_no_head(grouped):
    """z of a head reaches all of the residual stream through W_O; a slice behind W_O is something else."""
    model, hf, tokens = grouped
    acts = model.run(tokens, capture=("z", "attn_out"))
    ablated, sliced, through = [], [], []
    for h in range(6):
        w = hf.model.layers[0].self_attn.o_proj.weight[:, h * D : (h + 1) * D]
        ablated.append(pcm.Variant((pcm.Edit("z", 0, h, None, 0.0),)))
        through.append(pcm.Variant((pcm.Edit("attn_out", 0, None, None, acts["attn_out"][0] - acts["z"][0, :, h] @ w.T),)))
        columns = acts["attn_out"][0].clone()
        columns[:, h * 8 : (h + 1) * 8] = 0
        sliced.append(pcm.Variant((pcm.Edit("attn_out", 0, None, None, columns),)))
    effect = pcm.sweep(model, tokens, ablated + through + sliced, metric="logit_diff", answer=7, wrong=11).effect
    assert np.abs(effect[:6] - effect[6:12]).max() < 1e-4 * np.abs(effect[:6]).max()
    assert np.abs(effect[:6] - effect[12:]).max() > 0.3 * np.abs(effect[:6]).max()


def test_two_query_heads_of_a_group_read_different_keys(grouped):
    """Both edited in one variant, beside an edit of the whole other group: a model with ungrouped heads agrees."""
    model, hf, tokens = grouped
    wide = ungrouped(hf)
    g = torch.Generator().manual_seed(4)
    k, v, both = (torch.randn(T, D, generator=g) for _ in range(3))
    edits = (
        pcm.Edit("k", 1, 0, None, k, per_query_head=True),
        pcm.Edit("v", 1, 1, None, v, per_query_head=True),
        pcm.Edit("k", 1, 1, None, both),
    )
    truth = [("k", 1, 0, None, k), ("v", 1, 1, None, v), *(("k", 1, h, None, both) for h in (3, 4, 5))]
    result = pcm.sweep(model, tokens, [pcm.Variant(edits)], metric="prob", answer=7, return_logits=True)
    expected = edited_logits(wide, tokens, truth)
    assert (expected - logits_of(wide, tokens, keep=1)[0]).abs().max() > 0.1
    assert (result.logits[0] - expected).abs().max() < 1e-4 * expected.abs().max()


def test_patterns_of_the_source_are_those_of_hugging_face(grouped):
    """Patching a head's pattern and its group's values is patching its z."""
    model, hf, tokens = grouped
    other = tokens.clone()
    other[6:9] = (other[6:9] + 5) % 61
    found = activations(double(hf), other)
    pattern = pcm.Variant(
        (
            pcm.Edit("pattern", 1, 4, None, found["pattern", 1][4]),
            pcm.Edit(
                "v",
                1,
                1,
                None,
                found["v", 1][:, 1],
            ),
        )
    )
    back = model.run(tokens, capture=("z",))["z"]
    pattern = pcm.Variant((*pattern.edits, *(pcm.Edit("z", 1, h, None, back[1, :, h]) for h in (3, 5))))
    z = pcm.Variant((pcm.Edit("z", 1, 4, None, found["z", 1][:, 4]),))
    result = pcm.sweep(model, tokens, [pattern, z], metric="logit_diff", answer=7, wrong=11)
    assert abs(result.effect[0] - result.effect[1]) < 1e-5 and abs(result.effect[1]) > 0.05


# ---- what would do nothing, or is wrong, is an error ------------------------------------------------------------------


def test_edits_that_reach_nothing_are_errors(grouped):
    model, _, tokens = grouped
    nothing = [
        pcm.Edit("z", 1, 0, [3], 0.0),  # the last layer, not the row read
        pcm.Edit("q", 0, 0, [0], 0.0),  # the first row sees itself only
        pcm.Edit("resid_post", 1, None, [-2], 0.0),
        pcm.Edit("mlp_out", 1, None, list(range(T - 1)), 0.0),
        pcm.Edit("pattern", 1, 2, [4], 0.0),
        pcm.Edit("edge", 0, 1, [4], keys=[5, 6]),  # keys that these queries do not see anyway
        pcm.Edit("edge", 1, None, [4], keys=[2]),
    ]
    for edit in nothing:
        with pytest.raises(ValueError, match=r"variants\[1\] \(mine\): its edit does not reach what is read, position 11"):
            pcm.sweep(model, tokens, [pcm.Variant((pcm.Edit("z", 0, 0, None, 0.0),)), pcm.Variant((edit,), name="mine")])
    with pytest.raises(ValueError, match=r"variants\[0\]: its edit does not reach"):
        pcm.sweep(model, tokens, [pcm.Variant((pcm.Edit("resid_pre", 0, None, [8], 0.0),))], read=7)
    with pytest.raises(ValueError, match=r"variants\[0\]: none of its 0 edits reaches"):
        pcm.sweep(model, tokens, [pcm.Variant(())])


def test_wrong_edits_are_named(grouped, monkeypatch):
    model, _, tokens = grouped
    monkeypatch.setattr(model.family, "embed", lambda tokens: pytest.fail("ran before the arguments were checked"))
    future = torch.full((1, T), 0.1)
    bad = [
        (pcm.Edit("zz", 0, 0, None, 0.0), r"edits\[0\].site: unknown site 'zz'; expected one of .*pattern, edge"),
        (pcm.Edit("z", 2, 0, None, 0.0), r"edits\[0\].layer: got 2; expected 0..1"),
        (pcm.Edit("blocks.1.attn.hook_z", 0, 0, None, 0.0), "layer: got 0; expected 1, as in the site's name"),
        (pcm.Edit("z", 0, 6, None, 0.0), "head: got 6 for site 'z'; expected 0..5"),
        (pcm.Edit("k", 0, 2, None, 0.0), "head: got 2 for site 'k'; expected 0..1"),
        (pcm.Edit("resid_pre", 0, 1, None, 0.0), "head: got 1 .* this site has no heads"),
        (pcm.Edit("z", 0, 0, [T], 0.0), "positions: 12 is outside a prompt of 12 tokens"),
        (pcm.Edit("z", 0, 0, [3, -9], 0.0), "names a position twice"),
        (pcm.Edit("z", 0, 0, [], 0.0), "positions: the list is empty"),
        (pcm.Edit("z", 0, 0, None), "value: None; expected a number or a tensor"),
        (pcm.Edit("z", 0, 0, None, torch.zeros(3, D)), r"value: shape \[3, 16\] does not broadcast to \[12, 16\]"),
        (pcm.Edit("z", 0, None, None, torch.zeros(T, 2, D)), r"does not broadcast to \[12, 6, 16\]"),
        (pcm.Edit("z", 0, 0, None, float("nan")), "value: has entries that are not finite"),
        (pcm.Edit("z", 0, 0, None, 0.0, per_query_head=True), "per_query_head: got True for site 'z'"),
        (pcm.Edit("z", 0, 0, None, 0.0, keys=[1]), "keys: .* expected key positions for 'edge' only"),
        (pcm.Edit("edge", 0, 0, None), "expected key positions for 'edge' only"),
        (pcm.Edit("edge", 0, 0, None, 0.0, keys=[1]), "value: an edge is cut"),
        (pcm.Edit("edge", 0, 0, None, keys=[]), "keys: the list is empty"),
        (pcm.Edit("pattern", 0, 0, [4], future), "weights after its query"),
    ]
    for edit, message in bad:
        with pytest.raises(ValueError, match=message):
            pcm.sweep(model, tokens, [pcm.Variant((edit,))])
    ok = pcm.Variant((pcm.Edit("z", 0, 0, None, 0.0),))
    twice = pcm.Variant((*ok.edits, pcm.Edit("z", 0, None, [3], 0.0)))
    with pytest.raises(ValueError, match=r"variants\[1\]: z of layer 0 is replaced twice at position 3, head 0"):
        pcm.sweep(model, tokens, [ok, twice])
    with pytest.raises(TypeError, match=r"variants\[0\]: expected a pycotmech.Variant, got Edit"):
        pcm.sweep(model, tokens, ok.edits)
    for arguments, message in [
        (dict(metric="accuracy"), "metric: got 'accuracy'"),
        (dict(metric="prob", answer=1, clean=tokens), "clean: only metric 'kl' compares with it"),
        (dict(clean=torch.zeros(5)), r"clean: got logits of shape \[5\]; expected \[61\]"),
        (dict(clean=[1, 2], read=7), "read .in clean.: 7 is outside a prompt of 2"),
        (dict(metric="logit_diff", answer=3, wrong=3), "begin with the same token 3"),
        (dict(read=T), "read: 12 is outside"),
        (dict(memory_gb=-1), "memory_gb: got -1"),
    ]:
        with pytest.raises(ValueError, match=message):
            pcm.sweep(model, tokens, [ok], **arguments)
    with pytest.raises(ValueError, match="variants: the list is empty"):
        pcm.sweep(model, tokens, [])


def test_what_hooks_keep_is_left_alone(grouped):
    """Values and outputs that a user's hook holds are those of the run, not overwritten by edits."""
    _, hf, tokens = grouped
    attn, kept = hf.model.layers[1].self_attn, []
    handles = [
        m.register_forward_hook(lambda module, args, out: kept.append((out, out.clone()))) for m in (attn.v_proj, attn.o_proj)
    ]
    try:
        model = pcm.Model(hf)
        edits = [pcm.Edit("v", 1, 0, None, 3.0), pcm.Edit("attn_out", 1, None, [-1], 2.0), pcm.Edit("k", 0, 0, None, 1.0)]
        plain = pcm.sweep(model, tokens, [pcm.Variant(tuple(edits))], metric="prob", answer=7)
    finally:
        for handle in handles:
            handle.remove()
    assert len(kept) > 4 and all(torch.equal(out, copy) for out, copy in kept)
    again = pcm.sweep(pcm.Model(hf), tokens, [pcm.Variant(tuple(edits))], metric="prob", answer=7)
    assert plain.raw[0] == pytest.approx(again.raw[0], rel=1e-4)


def test_an_edit_that_reaches_nothing_is_said(case):
    """Never in silence: an error where it is all of a variant, a warning where other edits of the variant reach."""
    model, _, tokens = case
    idle, works = pcm.Edit("z", L - 1, 0, [3], 0.0), pcm.Edit("z", 0, 0, [3], 0.0)
    with pytest.raises(ValueError, match=r"variants\[1\]: its edit does not reach"):
        pcm.sweep(model, tokens, [pcm.Variant((works,)), pcm.Variant((idle,))])
    with pytest.warns(UserWarning, match=r"variants\[0\].edits\[1\]: reaches nothing that is read, position 11"):
        both = pcm.sweep(model, tokens, [pcm.Variant((works, idle))])
    assert both.raw[0] == pytest.approx(pcm.sweep(model, tokens, [pcm.Variant((works,))]).raw[0], rel=1e-5)
    with pytest.warns(UserWarning, match=r"edits\[1\]: reaches nothing"):
        pcm.ablate_heads(model, tokens, [(0, 0), (L - 1, 0)], positions=[3])
    other = tokens.clone()
    other[2] = (other[2] + 1) % 61
    with pytest.warns(UserWarning, match=f"z of layer {L - 1} at these positions reaches nothing that is read"):
        patched = pcm.patch_heads(model, tokens, other, positions=[3])
    assert (patched.effect[L - 1] == 0).all() and (patched.effect[0] != 0).any()
    with pytest.warns(UserWarning, match=f"resid_post of layer {L - 1} at these positions reaches nothing"):
        pcm.patch_residual(model, tokens, other, site="resid_post", positions=[3])


def test_the_strongest_variants(grouped):
    variants = [pcm.Variant((pcm.Edit("z", l, 0, None, 0.0),), name=f"L{l}") for l in range(2)]
    result = pcm.sweep(grouped[0], torch.tensor([5, 6, 7, 8]), variants)
    assert result.axes == ("variant",) and result.above_floor.tolist() == result.to_dataframe()["above_floor"].tolist()
    strongest = int(np.abs(result.effect).argmax())
    assert result.top(1) == [((strongest,), float(result.effect[strongest]))] and len(result.top()) == 2
    with pytest.raises(ValueError, match="by: got 'values'; expected 'raw' or 'effect'"):
        result.top(by="values")
