"""Every analysis on a family with windows, a soft-cap and its own scale: what it says of attention is that of hooked forwards.

Half of the layers see 40 or 25 of the prompt's tokens, so that the few-shot block they share is cut. Edges of flow graphs
and decompositions are held against the same family in their own tests.
"""

import numpy as np
import pytest
import torch

import pycotmech as pcm
from tests.cot.analyses.test_decision_horizon import generate
from tests.reference.close import assert_allclose
from tests.reference.truth import activations, double, edited_logits
from tests.reference.windowed import registered, windowed

STEPS = [0, 5, 9]
CELLS = [(0, 0, 0), (1, 1, 5), (2, 2, 9)]  # (example, index among STEPS, step)


@pytest.fixture(scope="module")
def windowed_model(model):
    hf = windowed(like=model.hf, windows=[40, 0, 25, 0], softcap=6.0, scale=0.3)
    with registered():
        return pcm.Model(hf, model.tokenizer, prepend_bos=model.prepend_bos)


@pytest.fixture(scope="module")
def wide(windowed_model):
    """The same in float64, for hooked forward passes."""
    return double(windowed_model.hf)


@pytest.fixture(scope="module")
def truth(wide, examples):
    """(example, step) -> activations and patterns of the clean prompt, by hooks."""
    return {(e, s): activations(wide, examples[e].steps[s].clean) for e, _, s in CELLS}


def patterns(found):
    """Of the last row, [L, H, T]."""
    return torch.stack([found["pattern", l][:, -1] for l in range(4)])


def close(ours, theirs, tolerance=2e-4):
    assert_allclose(np.asarray(ours, dtype=float), np.asarray(theirs, dtype=float), rtol=tolerance, atol=tolerance)


def test_the_windows_cut_the_prompts(truth):
    for found in truth.values():
        row = found["pattern", 2][:, -1]
        assert float(row[:, :-25].abs().max()) == 0 and float(row[:, -25:].min()) > 0


def test_grade(windowed_model, examples, wide):
    right = pcm.cot.grade(windowed_model, examples).right
    for e, _, s in CELLS:
        step = examples[e].steps[s]
        said = int(edited_logits(wide, step.clean, []).argmax())
        assert bool(right[e, s]) <= (said == step.answer)


def test_patch_steps(windowed_model, examples, every, truth, wide):
    found = pcm.cot.patch_steps(windowed_model, examples, right=every, steps=STEPS).data
    for e, i, s in CELLS:
        step = examples[e].steps[s]
        for l, h in ((0, 1), (2, 3)):
            logits = edited_logits(wide, step.corrupted, [("z", l, h, None, truth[e, s]["z", l][:, h])])
            close(found["logit_diff"][e, i, l, h], logits[step.answer] - logits[step.wrong])


def test_induction_heads(windowed_model, examples, every):
    answer = pcm.cot.patch_steps(windowed_model, examples, right=every)
    found = pcm.cot.induction_heads(windowed_model, examples, right=every, answer=answer, steps=[5, 9]).data
    close(found["effect"].sel(corruption="answer"), answer.data["effect"].sel(step=found.step))


def test_decision_heads(windowed_model, examples, every, truth, wide):
    found = pcm.cot.decision_heads(windowed_model, examples, right=every, steps=STEPS).data
    for e, i, s in CELLS:
        answer = examples[e].steps[s].answer
        for site, name in (("resid_pre", "p_pre"), ("resid_mid", "p_mid")):
            for l in range(4):
                p = wide.lm_head(wide.model.norm(truth[e, s][site, l][-1])).softmax(-1)[answer]
                close(found[name][e, i, l], p)


def test_copy_heads(windowed_model, examples, every, truth):
    found = pcm.cot.copy_heads(windowed_model, examples, right=every, steps=STEPS).data
    for e, i, s in CELLS:
        row = patterns(truth[e, s])
        spans = sorted(examples[e].steps[s].occurrences, key=lambda span: span.start)
        close(found["attention"][e, i], row[..., spans[-1]].sum(-1))
        close(found["attention_all"][e, i], sum(row[..., span].sum(-1) for span in spans))


def test_attention_by_source(windowed_model, examples, every, truth):
    found = pcm.cot.attention_by_source(windowed_model, examples, right=every, steps=STEPS).data
    for e, i, s in CELLS:
        row, parts = patterns(truth[e, s]), examples[e].steps[s].segments
        close(found["mass"].sel(source="itself")[e, i], row[..., -1])
        close(found["mass"].sel(source="first")[e, i], row[..., 0])
        close(found["mass"].sel(source="few_shot")[e, i], row[..., 1 : parts["few_shot"].stop].sum(-1))
        generated = slice(parts["generated"].start, row.shape[-1] - 1)
        close(found["mass"].sel(source="generated")[e, i], row[..., generated].sum(-1))


def test_answer_writers(windowed_model, examples, every, truth, wide):
    found = pcm.cot.answer_writers(windowed_model, examples, right=every, steps=STEPS).data
    for e, i, s in CELLS:
        step, x = examples[e].steps[s], truth[e, s]["resid_post", 3][-1]
        direction = wide.lm_head.weight[step.answer] - wide.lm_head.weight[step.wrong]
        direction = direction * wide.model.norm.weight * torch.rsqrt(x.pow(2).mean() + wide.model.norm.variance_epsilon)
        for l in range(4):
            weight = wide.model.layers[l].self_attn.o_proj.weight.unflatten(1, (8, -1))
            written = torch.einsum("hd,ohd->ho", truth[e, s]["z", l][-1], weight)
            close(found["contrast"][e, i, l], written @ direction)


@pytest.mark.parametrize("definition", ["exact", "paper"])
def test_information_flow(windowed_model, examples, every, definition, wide):
    found = pcm.cot.information_flow(windowed_model, examples, right=every, steps=STEPS, definition=definition)
    data, compared = found.data, 0
    for n in range(data.sizes["edge"]):
        e, i = int(data["edge_e"][n]), int(data["edge_s"][n])
        node = int(data["edge_parent"][n])
        of_prompt = [k for k in range(data.sizes["node"]) if (int(data["node_e"][k]), int(data["node_s"][k])) == (e, i)]
        parent = of_prompt[node] if node < len(of_prompt) else node
        l, h, q = (int(data[f"node_{name}"][parent]) for name in ("layer", "head", "position"))
        pattern = activations(wide, examples[e].steps[STEPS[i]].clean)["pattern", l]
        close(data["edge_attention"][n], pattern[h, q, int(data["edge_position"][n])])
        compared += 1
        if compared == 12:
            break
    assert compared > 3


def test_answer_sources_and_context_abidance(windowed_model, examples, every, wide):
    flow = pcm.cot.information_flow(windowed_model, examples, right=every, steps=STEPS)
    sources = pcm.cot.answer_sources(windowed_model, examples, right=every, steps=STEPS, flow=flow).data
    for e, i, s in CELLS:
        step = examples[e].steps[s]
        p = edited_logits(wide, step.clean, []).softmax(-1)[step.answer]
        close(sources["probability"][e, i], p)
    abiding = pcm.cot.context_abidance(windowed_model, examples, right=every, steps=STEPS).data
    assert float(abiding["abides"].mean()) > 0


def test_functional_rift(windowed_model, examples, every):
    found = pcm.cot.functional_rift(windowed_model, examples, right=every, steps=[5]).data
    again = pcm.cot.functional_rift(windowed_model, examples, right=every, steps=[5]).data
    assert found.equals(again) and np.isfinite(found["context"].values).any()


def test_decision_horizon(windowed_model, examples, every):
    """Texts made by whole forward passes for every token; here keys are kept, and rows see a window of them."""
    from pycotmech.cot.analyses import decision_horizon as module
    from pycotmech.cot.tools.cells import choose

    found = pcm.cot.decision_horizon(windowed_model, examples, right=every).data
    begun = module.beginnings(choose(windowed_model, examples, right=every), windowed_model.tokenizer)
    begin = next(b for b in begun if (b.e, b.sentences) == (1, 1))
    example = examples[1]
    a, b = example.full_ids[: begin.length], module.other_question(example)[: begin.length]
    new = len(example.full_ids) - begin.length
    clean = generate(windowed_model.hf, a, b, None, new)
    for l in (0, 2):
        same = (generate(windowed_model.hf, a, b, l, new) == clean).double().cumprod(0).mean()
        close(found["agreement"].sel(sentences=1)[1, l], same)


def test_pair_probes_and_relation_heads(windowed_model, examples, every):
    with registered():  # for the model with random weights
        probes = pcm.cot.pair_probes(windowed_model, examples, right=every, questions=24, depths=[1, 3]).data
    assert int(probes["confusion"].sum()) > 0
    heads = pcm.cot.relation_heads(windowed_model, examples, right=every, questions=16, draws=50, random_sets=1).data
    looked = heads["attention"].values
    assert np.nanmin(looked) >= 0 and np.nanmax(looked) <= 1


def test_heads_that_are_kept_and_knocked_out(windowed_model, examples, every, wide):
    kept = [(0, 1), (2, 3)]
    found = pcm.cot.keep_only(windowed_model, examples, {"two": kept}, right=every, steps=STEPS, kind="zero").data
    for e, i, s in CELLS:
        step = examples[e].steps[s]
        others = [("z", l, h, None, 0.0) for l in range(4) for h in range(8) if (l, h) not in kept]
        here = found["log_prob"].sel(set="two")[e, i]
        ids = examples[e].full_ids
        word = ids[len(step.clean) :][:1]
        logs = edited_logits(wide, step.clean, others).log_softmax(-1)
        close(here, logs[int(word)])
    answer = pcm.cot.patch_steps(windowed_model, examples, right=every, steps=STEPS)
    curve = pcm.cot.knock_out_curve(
        windowed_model, examples, answer, variable="effect", right=every, sizes=[0, 32], steps=STEPS, kind="zero"
    ).data
    for e, i, s in CELLS:
        step = examples[e].steps[s]
        for size, edits in enumerate(([], [("z", l, None, None, 0.0) for l in range(4)])):
            logs = edited_logits(wide, step.clean, edits).log_softmax(-1)
            word = int(examples[e].full_ids[len(step.clean)])
            close(curve["log_prob"].isel(order=0, size=size)[e, i], logs[word])
