"""E7: attention, what is taken from each source, and the decomposition of the layer, against dense computations in float64."""

import numpy as np
import pytest
import torch

import pycotmech as pcm
from pycotmech.cot.analyses import attention_by_source as module
from pycotmech.cot.tools import cells as cells_module
from pycotmech.cot.tools.activations import SOURCES, Prompt, by_example, head_mask
from pycotmech.cot.tools.cost import workload
from tests.cot.analyses.flow_cases import activations_of, planted_activations, random_tokens
from tests.cot.analyses.interval_cases import keeps_its_ranges
from tests.reference import planted
from tests.reference.close import assert_allclose, assert_close
from tests.reference.tiny import tiny_llama
from tests.reference.truth import activations, double, logits_of, z_of
from tests.reference.windowed import registered, windowed


@pytest.fixture(scope="module", params=["llama", "windowed"])
def wide(request):
    """A float64 model with grouped queries."""
    shape = dict(n_key_value_heads=2, attention_bias=True)
    if request.param == "llama":
        return pcm.Model(double(tiny_llama(n_layers=3, **shape)), check=False)
    with registered():
        return pcm.Model(double(windowed(windows=[7, 0, 12], **shape)), check=False)


@pytest.fixture(scope="module")
def result(model, examples):
    right = torch.ones(3, 10, dtype=torch.bool)
    right[1, 5] = False
    model.prefixes.clear()  # the cost is that of a cold call
    return pcm.cot.attention_by_source(model, examples, steps=[0, 5, 9], right=right)


def dense(model, tokens):
    """Per layer: attention [H, T, T], values by query head [T, H, D], resid_pre and resid_mid [T, d], by hooks."""
    found = activations(model.hf, tokens)
    values = (found["v", l].repeat_interleave(model.cfg.group, 1) for l in range(3))
    return [(found["pattern", l], v, found["resid_pre", l], found["resid_mid", l]) for l, v in enumerate(values)]


def test_shares_are_those_of_dense_attention(wide):
    tokens = random_tokens(30)
    other = torch.cat((tokens[:11], random_tokens(9, seed=1)))  # 11 tokens are shared, and computed once
    segments = {"few_shot": slice(0, 11), "question": slice(11, 20), "generated": slice(20, 30)}
    prompts = [
        Prompt(tokens[:n], 3, 4, segments={k: slice(s.start, min(s.stop, n)) for k, s in segments.items()}) for n in (19, 30)
    ]
    first, _ = activations_of(wide, [tokens, other])
    assert first.shared == 11
    found = module.shares(wide.family, first, prompts)
    for i, prompt in enumerate(prompts):
        labels, r = prompt.labels(), prompt.read
        assert labels[0] == SOURCES.index("first") and labels[r] == SOURCES.index("itself") and len(labels) == r + 1
        for l, (pattern, v, _, _) in enumerate(dense(wide, tokens)):
            W = wide.hf.model.layers[l].self_attn.o_proj.weight.T.view(wide.cfg.n_heads, wide.cfg.d_head, -1)
            for h in range(wide.cfg.n_heads):
                for g in range(len(SOURCES)):
                    at = np.flatnonzero(labels == g)
                    assert_close(found.mass[i, l, h, g], pattern[h, r, at].sum(), rtol=1e-12, atol=1e-13)
                    size = (sum(pattern[h, r, j] * v[j, h] for j in at) @ W[h]).norm() if len(at) else torch.zeros(()).double()
                    assert_close(found.written[i, l, h, g], size, rtol=1e-11, atol=1e-12)
    assert_close(found.mass.sum(-1), torch.ones_like(found.mass[..., 0]), rtol=1e-13, atol=0)
    assert_close(found.layer.sum(-1), torch.ones_like(found.layer[..., 0]), rtol=1e-13, atol=0)


@pytest.mark.parametrize("norm", ["l1", "l2"])
def test_vectors_of_the_decomposition_sum_to_the_layers_output(wide, norm):
    tokens = random_tokens(24)
    (kept,) = activations_of(wide, [tokens])
    reads = [7, 23]
    for l, (pattern, v, pre, mid) in enumerate(dense(wide, tokens)):
        found = module.decompose(wide.family, kept, l, reads, norm=norm)
        projection = wide.hf.model.layers[l].self_attn.o_proj
        W = projection.weight.T.view(wide.cfg.n_heads, wide.cfg.d_head, -1)
        for i, r in enumerate(reads):
            assert_close(found.vectors[i].sum(0) + projection.bias, mid[r], rtol=1e-11, atol=1e-12)
            by_hand = torch.stack([sum(pattern[h, r, j] * (v[j, h] @ W[h]) for h in range(len(W))) for j in range(r + 1)])
            by_hand[r] += pre[r]
            assert_close(found.vectors[i, : r + 1], by_hand, rtol=1e-11, atol=1e-12)
            whole, p = by_hand.sum(0), {"l1": 1, "l2": 2}[norm]
            nearer = torch.stack([(whole.norm(p=p) - (whole - x).norm(p=p)).clamp_min(0) for x in by_hand])
            assert_close(found.contributions[i, : r + 1], nearer / nearer.sum(), rtol=1e-10, atol=1e-12)
            assert float(found.contributions[i, r + 1 :].abs().sum()) == 0
    assert_close(found.contributions.sum(1), torch.ones(2).double(), rtol=1e-12, atol=0)


def test_pruned_run_is_the_hooked_one_and_the_whole_one_where_nothing_is_pruned(wide):
    tokens = [random_tokens(16), torch.cat((random_tokens(16)[:9], random_tokens(5, seed=3)))]
    everything = torch.ones(3, 4, dtype=torch.bool)
    whole, same = activations_of(wide, tokens), activations_of(wide, tokens, keep=everything)
    assert torch.equal(whole[1].pattern(2, [12]), same[1].pattern(2, [12]))
    keep = head_mask(wide.cfg, [(0, 1), (2, 3)], argument="keep")
    pruned = activations_of(wide, tokens, keep=keep)
    z = [torch.stack(z_of(wide.hf, t)) for t in tokens]  # [L, T, H, D]
    fill = torch.cat([x[:, 1:] for x in z], 1).mean(1)  # [L, H, D]
    handles = []
    for l, layer in enumerate(wide.hf.model.layers):

        def hook(_module, args, l=l):
            x = args[0].unflatten(-1, (4, 16)).clone()
            x[0, 1:, ~keep[l]] = fill[l, ~keep[l]]
            return (x.flatten(-2),)

        handles.append(layer.self_attn.o_proj.register_forward_pre_hook(hook))
    truth = [logits_of(wide.hf, t)[-1] for t in tokens]
    for handle in handles:
        handle.remove()
    for kept, expected in zip(pruned, truth, strict=True):
        assert_close(wide.family.logits(kept.final([len(kept) - 1]))[0], expected, rtol=1e-9, atol=1e-10)
    assert not torch.allclose(pruned[0].final([15]), whole[0].final([15]))


def test_a_planted_head_takes_what_it_writes_from_where_it_looks():
    p = planted.parallel()
    for prompt, kept, where in planted_activations(p, 4):
        found = module.shares(p.model.family, kept, [prompt])
        for role in ("question", "generated"):
            l, h = p.heads[role]
            g = SOURCES.index(role)
            assert found.written[0, l, h, g] > 0.95 * found.written[0, l, h].sum()
        l, h = p.heads["generated"]
        assert found.mass[0, l, h, SOURCES.index("generated")] > 0.95
        tokens = module.decompose(p.model.family, kept, l, [prompt.read]).contributions[0, : prompt.read]
        assert int(tokens.argmax()) == where.positions["answer_generated"]  # in the decomposition too, behind the residual


def test_result_rows_sum_to_one_and_wrong_cells_are_left_out(result):
    mass, share = result.data["mass"], result.data["contribution"]
    assert mass.dims == ("example", "step", "layer", "head", "source")
    assert (
        bool(mass.isel(example=1).sel(step=5).isnull().all()) and int(mass.isnull().all(("layer", "head", "source")).sum()) == 1
    )
    good = mass.isel(example=0)
    assert_allclose(good.sum("source"), 1, rtol=1e-5)
    assert_allclose(share.isel(example=0).sum("source"), 1, rtol=1e-5)
    assert float(good.sel(step=0, source="generated").max()) == 0  # nothing has been generated yet
    table = result.table()
    assert len(table) == 3 * len(SOURCES) and table.loc[table["step"] == 5, "n"].eq(2).all()
    assert any("n = 3" in line for line in result.findings())
    keeps_its_ranges(result)


def test_heads_that_take_most_are_told_on_the_other_half(result):
    data = result.data.isel(example=np.zeros(8, int)).assign_coords(example=np.arange(8))  # an example that counts everywhere
    data["written"] = data["written"] * np.random.default_rng(0).uniform(0.1, 3, size=data["written"].shape)
    many = module.AttentionBySource(data, result.about)
    for step in (None, 5):
        parts = many.at_step("written", step)
        assert parts.held_out and parts.words == "n = 4 held out"
        chosen, told = (p.data["written"].sel(source="question").mean(("example", "step")) for p in parts[:2])
        best = np.unravel_index(int(chosen.values.argmax()), chosen.shape)
        assert many.heads("question", step=step, k=1) == [(*best, pytest.approx(float(told[best])))]
    whole = data["written"].sel(source="question", step=5).mean("example").values
    assert many.heads("question", step=5, k=1, held_out=False)[0][2] == pytest.approx(float(whole.max()))
    assert any("layer-wise contribution: few-shot" in line for line in many.findings())


def test_cost_is_what_was_predicted(model, examples, result):
    right = torch.ones(3, 10, dtype=torch.bool)
    size = workload(cells_module.choose(model, examples, steps=[0, 5, 9], right=right))
    predicted = module.cost(model.cfg, size)
    assert result.about["cost"]["token_forwards"] == pytest.approx(predicted.token_forwards, rel=0.15)
    authors = module.authors_cost(model.cfg, size)
    assert authors.forwards == 9 * 2.5 and authors.token_forwards > 4 * predicted.token_forwards


def test_result_is_kept_and_drawn(result, tmp_path):
    result.save(tmp_path)
    again = module.AttentionBySource.load(tmp_path)
    np.testing.assert_array_equal(again.data["written"], result.data["written"])
    result.plot(path=tmp_path / "a.png")
    assert (tmp_path / "a.png").stat().st_size > 10_000


def test_words_are_found_in_the_few_shot_block(model):
    """A word of the shots that the block is asked for; the item's own words are not in it (disjoint vocabularies)."""
    from pycotmech.cot.tools.activations import Shots

    made = pcm.cot.make_examples(1, shots=2, tokenizer=model.tokenizer, bos=model.prepend_bos, seed=4)
    shots = Shots(made, model.tokenizer)
    word = made.few_shot.split()[-1].strip(".,")
    spans = shots.find(word)
    assert spans and all(word.lower() in model.tokenizer.decode(made.shared_ids[s]).lower() for s in spans)
    cells = cells_module.choose(model, made, right=torch.ones(1, 10, dtype=torch.bool))
    for cell, prompt in by_example(cells, model.tokenizer)[0]:
        assert prompt.occurrences == tuple(sorted(cell.step.occurrences, key=lambda s: s.start))


@pytest.mark.parametrize(
    ("arguments", "words"),
    [({"norm": "l3"}, "norm: got 'l3'"), ({"keep": [(9, 0)]}, "keep: no head 0 in layer 9"), ({"steps": [11]}, "steps: got")],
)
def test_bad_input(model, examples, arguments, words):
    with pytest.raises(ValueError, match=words):
        pcm.cot.attention_by_source(model, examples, right=torch.ones(3, 10, dtype=torch.bool), **arguments)
