"""E3 and E4: what each head alone brings to its layer, where it looks, what it writes."""

import numpy as np
import pytest
import torch

import pycotmech as pcm
from pycotmech.cot.analyses import copy_heads as copying
from pycotmech.cot.analyses import decision_heads as decision
from pycotmech.cot.tools.cells import choose
from pycotmech.cot.tools.cost import workload
from pycotmech.cot.tools.rows import read_rows, row_head_outputs
from tests.cot.analyses.interval_cases import keeps_its_ranges
from tests.reference.close import assert_allclose
from tests.reference.tiny import tiny_llama
from tests.reference.truth import activations

STEPS = [0, 5, 9]


@pytest.fixture(scope="module")
def decided(model, examples, every):
    model.prefixes.clear()  # the cost is that of a cold call
    return pcm.cot.decision_heads(model, examples, steps=STEPS, right=every)


@pytest.fixture(scope="module")
def copied(model, examples, every):
    model.prefixes.clear()  # the cost is that of a cold call
    return pcm.cot.copy_heads(model, examples, steps=STEPS, right=every)


def lens(hf, rows):
    return torch.softmax(hf.lm_head(hf.model.norm(rows)).double(), -1)


@torch.no_grad()
def test_decision_is_its_formula_on_a_plain_forward_pass(model, examples, decided):
    hf = model.hf
    for e, s in ((0, 0), (1, 1), (2, 2)):
        step = examples[e].steps[STEPS[s]]
        acts = activations(hf, step.clean)
        for l in range(4):
            pre, mid, z = acts["resid_pre", l][-1], acts["resid_mid", l][-1], acts["z", l][-1]
            w = hf.model.layers[l].self_attn.o_proj.weight.unflatten(1, (8, -1))
            alone = pre + torch.einsum("hd,mhd->hm", z, w)
            want = lens(hf, alone)[:, step.answer].numpy()
            assert_allclose(decided.data["p_head"].values[e, s, l], want, atol=2e-6)
            assert float(decided.data["p_mid"][e, s, l]) == pytest.approx(float(lens(hf, mid)[step.answer]), abs=2e-6)
            assert float(decided.data["p_pre"][e, s, l]) == pytest.approx(float(lens(hf, pre)[step.answer]), abs=2e-6)


def test_one_head_alone_is_its_layer():
    """docs/protocol.md, Checks: with H = 1 mu is 0, and all heads together give p_mid."""
    torch.manual_seed(0)
    one = pcm.Model(tiny_llama(n_heads=1, d_head=48, d_vocab=300), check=False)
    cells = _fake_cells(one)
    found = pcm.cot.decision_heads(one, *cells[:1], steps=[5], right=cells[1])
    assert_allclose(found.relative()["mean"].values, 0, atol=1e-5)
    assert float(found.data["p_head"].std()) > 0
    assert_allclose(found.data["p_head"].values[..., 0], found.data["p_mid"].values, rtol=1e-4)


@torch.no_grad()
def test_all_heads_together_are_their_layer():
    """docs/protocol.md, E3, with several heads in a layer and shared keys: what they write, added up, gives p_mid; and a head
    whose companions write nothing gives it alone."""
    hf = tiny_llama(n_heads=4, n_key_value_heads=2, n_layers=3, d_vocab=300)
    several = pcm.Model(hf, check=False)
    examples, right = _fake_cells(several)
    found = pcm.cot.decision_heads(several, examples, steps=[5], right=right).data.sel(step=5)
    apart = np.abs(found["p_head"] - found["p_mid"]) / found["p_mid"]
    assert float(apart.min(("layer", "head")).max()) > 1e-2  # no head is its layer
    for e, example in enumerate(examples):
        step = example.steps[5]
        acts = several.run(step.clean, capture=("resid_pre", "z"))
        pre, z = acts["resid_pre"][:, -1], acts["z"][:, -1]
        together = pre + row_head_outputs(several.family, z).sum(1)
        want = lens(hf, together)[:, step.answer].numpy()
        assert_allclose(found["p_mid"].values[e], want, rtol=1e-4)
        alone = decision.probability(several.family, together, step.answer)
        assert_allclose(alone, want, rtol=1e-4)
    for layer in hf.model.layers:
        layer.self_attn.o_proj.weight[:, :32] = layer.self_attn.o_proj.weight[:, 48:] = 0  # all but head 2
    lone = pcm.cot.decision_heads(pcm.Model(hf, check=False), examples, steps=[5], right=right)
    assert_allclose(lone.relative()["mean"].sel(head=2).values, 0, atol=1e-5)
    rounding = 4 * np.finfo(np.float32).eps * float(lone.data["p_mid"].max())  # of probabilities, whose differences gains are
    assert_allclose(lone.data["gain"].sel(head=[0, 1, 3]).values, 0, atol=rounding)
    assert float(np.abs(lone.data["gain"].sel(head=2)).max()) > 1e-4


def _fake_cells(model):
    """Examples of tiny-cot's tokenizer for a random model: ids are just ids."""
    tokenizer = pcm.Model.from_pretrained("tiny-cot").tokenizer
    examples = pcm.cot.make_examples(2, shots=1, tokenizer=tokenizer, bos=False, seed=1)
    return examples, torch.ones(2, examples.n_steps, dtype=torch.bool)


@torch.no_grad()
def test_attention_is_that_of_the_pattern(model, examples, copied):
    for e, s in ((0, 1), (2, 2)):
        step = examples[e].steps[STEPS[s]]
        acts = activations(model.hf, step.clean)
        spans = sorted(step.occurrences, key=lambda o: o.start)
        for l in range(4):
            pattern = acts["pattern", l][:, -1]
            assert_allclose(copied.data["attention"].values[e, s, l], pattern[:, spans[-1]].sum(-1), atol=1e-5)
            want = sum(pattern[:, o].sum(-1) for o in spans)
            assert_allclose(copied.data["attention_all"].values[e, s, l], want, atol=1e-5)


@torch.no_grad()
def test_what_heads_write_adds_up_to_the_logit(model, examples, every):
    """docs/protocol.md, Checks: heads, embedding and MLPs together are the logit, with the true final norm."""
    cells = choose(model, examples, steps=[5], right=every)
    hf = model.hf
    for row in read_rows(model, cells, ("z",), attention=True):
        step = row.cell.step
        assert_allclose(row.attention.sum(-1), 1, atol=1e-5)
        heads = copying.written(model.family, row, step.answer)
        acts = activations(hf, step.clean)
        rest = acts["resid_pre", 0][-1] + sum(acts["mlp_out", l][-1] for l in range(4))
        rms = (row.final.double().square().mean() + hf.config.rms_norm_eps).sqrt()
        direction = hf.lm_head.weight[step.answer].double() * hf.model.norm.weight.double() / rms
        logit = float(hf(step.clean[None]).logits[0, -1, step.answer])
        assert float(heads.sum() + rest.double() @ direction) == pytest.approx(logit, rel=1e-5)
        assert abs(float(heads.sum())) > 0.01 * abs(logit)


def test_the_papers_definition_is_by_token_and_without_the_norm(model, examples, every, copied):
    theirs = pcm.cot.copy_heads(model, examples, steps=[5], right=every, definition="paper")
    step = examples[0].steps[5]
    last = int((step.clean == step.answer).nonzero()[-1])
    pattern = activations(model.hf, step.clean)["pattern", 2][:, -1]
    assert_allclose(theirs.data["attention"].values[0, 0, 2], pattern[:, last], atol=1e-5)
    z = activations(model.hf, step.clean)["z", 2][-1]
    w = model.hf.model.layers[2].self_attn.o_proj.weight.unflatten(1, (8, -1))
    raw = torch.einsum("hd,mhd,m->h", z, w, model.hf.lm_head.weight[step.answer])
    assert_allclose(theirs.data["written"].values[0, 0, 2], raw.detach(), rtol=1e-4, atol=1e-5)
    assert not np.allclose(theirs.data["written"].values[0, 0], copied.data["written"].values[0, 1], rtol=0.05)
    with pytest.raises(ValueError, match="definition: got 'right'"):
        pcm.cot.copy_heads(model, examples, definition="right")


@pytest.mark.parametrize(("name", "module"), [("decision_heads", decision), ("copy_heads", copying)])
def test_cost_is_predicted(name, module, model, examples, every, request):
    result = request.getfixturevalue({"decision_heads": "decided", "copy_heads": "copied"}[name])
    size = workload(choose(model, examples, steps=STEPS, right=every))
    assert module.cost(model.cfg, size).token_forwards == pytest.approx(result.about["cost"]["token_forwards"], rel=0.1)
    assert module.authors_cost(model.cfg, size).forwards == 9


def test_an_unembedding_or_a_norm_that_is_something_else_is_refused(model, examples, every):
    """What is attached would be passed over in silence where weights are read."""
    for module, words in ((model.hf.lm_head, "attached to its unembedding"), (model.hf.model.norm, "its final norm is not")):
        hook = module.register_forward_hook(lambda m, a, out: 2 * out)
        try:
            with pytest.raises((NotImplementedError, ValueError), match=words):
                pcm.cot.copy_heads(model, examples, steps=[5], right=every)
        finally:
            hook.remove()


def test_findings_have_intervals_and_tell_what_the_numbers_are(decided, copied):
    line = next(x for x in decided.findings() if x.startswith("step 5 (n = 3): after the attention"))
    curve = decided.data["p_mid"].sel(step=5).mean("example").values
    first = int(np.argmax(curve >= curve.max() / 2))
    assert f"of layer {first} [" in line and f"({curve.max():.2f} [" in line and f"attention {curve[-1]:.2f} [" in line
    mean = copied.data[["attention", "written"]].mean("example")
    want = np.corrcoef(mean["attention"].values.ravel(), mean["written"].values.ravel())[0, 1]
    assert copied.findings()[-1].startswith(f"correlation of attention and writing over heads and steps: {want:.2f} [")


def test_they_show_themselves(decided, copied, tmp_path):
    keeps_its_ranges(decided)
    keeps_its_ranges(copied)
    for result in (decided, copied):
        assert len(result.table(2)) == 6
        assert f"{result.title} (tiny-cot; docs/protocol.md, E" in str(result)
        result.plot(path=tmp_path / f"{result.name}.png")
        assert (tmp_path / f"{result.name}.png").stat().st_size > 5000
