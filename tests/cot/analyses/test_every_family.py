"""The analyses that look inside a layer, on families that build it otherwise: norms after attention, LayerNorm, no rotation.

A tiny random model of each family gets the task's prompts; what an analysis says of it is what hooked forward passes give.
"""

import numpy as np
import pytest
import torch

import pycotmech as pcm
from pycotmech.cot.tools.flow_exact import Limits
from tests.reference.parts import layers_of, output_matrix
from tests.reference.paths import PathTruth
from tests.reference.small_families import small
from tests.reference.truth import activations, double, edited_logits, gain_of
from tests.reference.watch import watched

FAMILIES = ("gemma2", "gemma3_text", "gpt2", "gpt_neox", "gpt_oss", "olmo2", "olmoe", "phi3", "qwen3")
STEPS = [0, 5]
CELLS = [(0, 0, 0), (1, 1, 5)]  # (example, index among STEPS, step)


class Case:
    def __init__(self, family, like):
        sizes = {"gpt2": {"vocab_size": like.cfg.d_vocab, "n_positions": 512}}
        hf = small(family, **sizes.get(family, {"vocab_size": like.cfg.d_vocab, "max_position_embeddings": 512}))
        self.family, self.wide = family, double(hf)
        self.model = pcm.Model(hf, like.tokenizer, prepend_bos=like.prepend_bos)
        self.examples = pcm.cot.make_examples(2, shots=2, tokenizer=like.tokenizer, bos=like.prepend_bos, seed=4)
        self.every = torch.ones(2, self.examples.n_steps, dtype=torch.bool)
        self.truth = {(e, s): activations(self.wide, self.examples[e].steps[s].clean) for e, _, s in CELLS}


@pytest.fixture(scope="module", params=FAMILIES)
def case(request, model):
    return Case(request.param, model)


ERRORS: list[float] = []


@pytest.fixture(autouse=True)
def kernels_are_reached(request, case):
    """Without a fallback in silence: `tests/reference/watch.py`."""
    ERRORS.clear()
    with watched(request, case.family, torch.float32, ERRORS):
        yield


def close(ours, theirs, tolerance=3e-4):
    ours, theirs = np.asarray(ours, dtype=float), np.asarray(theirs, dtype=float)
    assert ours.shape == theirs.shape and np.isfinite(theirs).all()
    scale = max(np.abs(theirs).max(), 0.1)
    worst = np.abs(ours - theirs).max()
    assert worst <= tolerance * scale
    ERRORS.append(float(worst / scale))


def test_patch_steps(case):
    found = pcm.cot.patch_steps(case.model, case.examples, right=case.every, steps=STEPS).data
    for e, i, s in CELLS:
        step = case.examples[e].steps[s]
        for l, h in ((0, 1), (2, 3)):
            logits = edited_logits(case.wide, step.corrupted, [("z", l, h, None, case.truth[e, s]["z", l][:, h])])
            close(found["logit_diff"][e, i, l, h], logits[step.answer] - logits[step.wrong])


def test_decision_heads(case):
    if case.model.cfg.parallel:
        with pytest.raises(NotImplementedError, match="resid_mid lies between"):
            pcm.cot.decision_heads(case.model, case.examples, right=case.every, steps=STEPS)
        return
    found = pcm.cot.decision_heads(case.model, case.examples, right=case.every, steps=STEPS).data
    for e, i, s in CELLS:
        step, family = case.examples[e].steps[s], pcm.Model(case.wide, check=False).family
        for l in range(3):
            row = case.truth[e, s]["resid_mid", l][-1:]
            close(found["p_mid"][e, i, l], family.logits(row)[0].softmax(-1)[step.answer])


def test_attention_by_source(case):
    found = pcm.cot.attention_by_source(case.model, case.examples, right=case.every, steps=STEPS).data
    for e, i, s in CELLS:
        truth, step = case.truth[e, s], case.examples[e].steps[s]
        question = slice(
            step.segments["question"].start, min(step.segments["question"].stop, len(step.clean) - 1)
        )  # not itself
        row = torch.stack([truth["pattern", l][:, -1] for l in range(3)])
        close(found["mass"].sel(source="question")[e, i], row[..., question].sum(-1))
        for l, layer in enumerate(layers_of(case.wide)):
            H = row.shape[1]
            values = truth["v", l].repeat_interleave(H // truth["v", l].shape[1], 1)  # [T, H, D]
            z = torch.einsum("ht,thd->hd", row[l][:, question], values[question])
            written = torch.einsum("hd,ohd->ho", z, output_matrix(layer).unflatten(1, z.shape))
            if hasattr(layer, "post_feedforward_layernorm"):
                norm = layer.post_attention_layernorm
                whole = output_matrix(layer) @ truth["z", l][-1].flatten()
                eps = norm.eps if hasattr(norm, "eps") else norm.variance_epsilon
                written = written * gain_of(norm) * torch.rsqrt(whole.pow(2).mean() + eps)
            close(found["written"].sel(source="question")[e, i, l], written.norm(dim=-1))
    close(found["contribution"].sum("source").sel(step=5)[1], np.ones(3))


def test_answer_writers(case):
    if case.family == "gemma2":
        with pytest.raises(NotImplementedError, match="soft-capped"):
            pcm.cot.answer_writers(case.model, case.examples, right=case.every, steps=STEPS)
        return
    found = pcm.cot.answer_writers(case.model, case.examples, right=case.every, steps=STEPS).data
    for e, i, s in CELLS:
        step = case.examples[e].steps[s]
        parts = pcm.head_logits(case.model, step.clean, answer=step.answer, wrong=step.wrong).difference
        close(found["contrast"][e, i], parts.heads[..., 0])


def test_information_flow(case):
    """Writers by intervention are paths to the logits: one head's z from the counterfactual, every other head held."""
    limits = Limits(floor=0.0, writer_share=0.0, share=0.0, writers=2, senders=1, depth=1, nodes=4)
    options = dict(right=case.every, steps=[0, 3, 5, 9], replaced_by="counterfactual", limits=limits)
    if case.model.cfg.parallel:
        with pytest.raises(NotImplementedError, match="resid_mid lies between"):
            pcm.cot.information_flow(case.model, case.examples, **options)
        return
    found = pcm.cot.information_flow(case.model, case.examples, **options)
    compared, contrast = 0, torch.tensor([1.0, -1.0], dtype=torch.float64)
    for e in range(2):
        for s in (0, 3, 5, 9):
            step, graph = case.examples[e].steps[s], found.graph(case.examples[e].index, s)
            if not graph.writers:
                continue
            asked, truth = [step.answer, step.wrong], PathTruth(case.wide, step.clean, step.corrupted)
            known = activations(case.wide, step.clean)
            whole = float(edited_logits(case.wide, step.clean, [])[asked] @ contrast)
            for w in graph.writers:
                node = graph.nodes[w]
                logits = truth.first_run((node.layer, node.head), [len(step.clean) - 1])[0][-1]
                close(node.weight, (whole - float(logits[asked] @ contrast)) / whole, 2e-3)
                compared += 1
            for edge in graph.edges:
                node = graph.nodes[edge.parent]
                close(edge.attention, known["pattern", node.layer][node.head, node.position, edge.position])
    assert compared >= 2
