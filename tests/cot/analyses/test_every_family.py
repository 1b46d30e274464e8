"""Analyses that look inside a layer, and the two commands, on every family: what they say is what hooked forward passes give.

A tiny random model of each family gets the task's prompts, and every step counts as right. A new family is one row in
`small_families`. Families that build a layer otherwise than Llama are in the quick tests; the others, and the command `paper`
for all, are slow.
"""

from dataclasses import replace

import numpy as np
import pytest
import torch

import pycotmech as pcm
from pycotmech import paper
from pycotmech.cot.task.steps import Graded
from pycotmech.cot.tools import cells
from pycotmech.cot.tools.flow_exact import Limits
from pycotmech.model.check import check_against_hf
from pycotmech.runs import Settings
from pycotmech.runs.experiment import run
from pycotmech.runs.work import SweepWork, make_examples
from tests.reference.parts import layers_of
from tests.reference.paths import PathTruth
from tests.reference.small_families import FAMILIES, small
from tests.reference.truth import activations, double, edited_logits
from tests.reference.watch import unwatched, watched
from tests.reference.written import direct_logits, head_outputs, lens

QUICK = ("gemma2", "gpt2", "gpt_neox", "gpt_oss", "olmo2")
"""Soft-caps and four norms; learned positions; parallel blocks; sinks and experts; norms after the sublayers only."""
STEPS = (0, 5)
CELLS = [(0, 0, 0), (1, 1, 5)]  # (example, index among STEPS, step)
HEADS = ((0, 1), (2, 3))


class Case:
    def __init__(self, family, like, folder):
        length = "n_positions" if family == "gpt2" else "max_position_embeddings"
        hf = small(family, **{"vocab_size": like.cfg.d_vocab, length: 512})
        hf.save_pretrained(folder)
        like.tokenizer.save_pretrained(folder)
        self.family, self.wide, self.folder = family, double(hf), str(folder)
        self.settings = Settings(model=self.folder, examples=2, shots=2, steps=STEPS, seed=4)
        self.model = pcm.Model.from_pretrained(self.folder)
        self.examples = make_examples(self.model, self.settings)
        self.every = every(self.model, self.examples).right
        self.truth = {(e, s): activations(self.wide, self.examples[e].steps[s].clean) for e, _, s in CELLS}

    def difference(self, step, edits=()):
        """logit(answer) - logit(wrong) of one hooked forward pass of the corrupted prompt."""
        logits = edited_logits(self.wide, step.corrupted, list(edits))
        return float(logits[step.answer] - logits[step.wrong])

    def patched(self, e, s, l, h):
        return self.difference(self.examples[e].steps[s], [("z", l, h, None, self.truth[e, s]["z", l][:, h])])


def every(model, examples):
    """A random model is right nowhere: all steps count."""
    right = torch.ones(len(examples), examples.n_steps, dtype=torch.bool)
    return Graded(right, right[:, 0], "clean", examples.kinds)


def _families():
    for family in FAMILIES:
        if family != "windowed":  # which no folder can hold
            yield pytest.param(family, marks=() if family in QUICK else pytest.mark.slow)


@pytest.fixture(scope="module", params=_families())
def case(request, model, tmp_path_factory):
    return Case(request.param, model, tmp_path_factory.mktemp(request.param))


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


# ---- what hooked forward passes say ----------------------------------------------------------------------------------


def check_patch_steps(case, data):
    for e, i, s in CELLS:
        for l, h in HEADS:
            close(data["logit_diff"][e, i, l, h], case.patched(e, s, l, h))


def check_decision_heads(case, data):
    for e, i, s in CELLS:
        answer, truth = case.examples[e].steps[s].answer, case.truth[e, s]
        for l, layer in enumerate(layers_of(case.wide)):
            before = truth["resid_pre", l][-1]
            close(data["p_pre"][e, i, l], lens(case.wide, before[None])[0, answer])
            close(data["p_mid"][e, i, l], lens(case.wide, (before + truth["attn_out", l][-1])[None])[0, answer])
            close(data["p_head"][e, i, l], lens(case.wide, before + head_outputs(layer, truth["z", l][-1]))[:, answer])


def check_attention_by_source(case, data):
    for e, i, s in CELLS:
        truth, step = case.truth[e, s], case.examples[e].steps[s]
        question = slice(
            step.segments["question"].start, min(step.segments["question"].stop, len(step.clean) - 1)
        )  # not itself
        row = torch.stack([truth["pattern", l][:, -1] for l in range(3)])
        close(data["mass"].sel(source="question")[e, i], row[..., question].sum(-1))
        for l, layer in enumerate(layers_of(case.wide)):
            values = truth["v", l].repeat_interleave(row.shape[1] // truth["v", l].shape[1], 1)  # [T, H, D]
            z = torch.einsum("ht,thd->hd", row[l][:, question], values[question])
            written = head_outputs(layer, z, truth["z", l][-1])
            close(data["written"].sel(source="question")[e, i, l], written.norm(dim=-1))
    close(data["contribution"].sum("source").sel(step=5)[1], np.ones(3))


def check_answer_writers(case, data):
    for e, i, s in CELLS:
        step, truth = case.examples[e].steps[s], case.truth[e, s]
        asked = torch.tensor([step.answer, step.wrong])
        written = direct_logits(case.wide, truth, asked)
        close(data["contrast"][e, i], written[..., 0] - written[..., 1])
        for l, layer in enumerate(layers_of(case.wide)):
            alone = lens(case.wide, head_outputs(layer, truth["z", l][-1]))
            close(data["projection"][e, i, l], alone[:, step.answer])


def check_information_flow(case, found, steps, replaced_by):
    """Writers by intervention are paths to the logits: one head's z is replaced, every other head is held. Returns how many
    were compared."""
    compared, contrast = 0, torch.tensor([1.0, -1.0], dtype=torch.float64)
    for e in range(2):
        text = case.examples[e].steps[max(steps)].clean
        mean = [activations(case.wide, text)["z", l][1:].mean(0) for l in range(3)]  # [H, D]
        for s in steps:
            step, graph = case.examples[e].steps[s], found.graph(case.examples[e].index, s)
            if not graph.writers:
                continue
            asked, truth = [step.answer, step.wrong], PathTruth(case.wide, step.clean, step.corrupted)
            if replaced_by == "mean":
                truth.source_z = [z.expand(len(step.clean), -1, -1) for z in mean]
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
    return compared


# ---- the analyses ----------------------------------------------------------------------------------------------------


def test_patch_steps(case):
    check_patch_steps(case, pcm.cot.patch_steps(case.model, case.examples, right=case.every, steps=STEPS).data)


def test_decision_heads(case):
    check_decision_heads(case, pcm.cot.decision_heads(case.model, case.examples, right=case.every, steps=STEPS).data)


def test_attention_by_source(case):
    found = pcm.cot.attention_by_source(case.model, case.examples, right=case.every, steps=STEPS)
    check_attention_by_source(case, found.data)


def test_answer_writers(case):
    if case.family == "gemma2":
        with pytest.raises(NotImplementedError, match="soft-capped"):
            pcm.cot.answer_writers(case.model, case.examples, right=case.every, steps=STEPS)
        return
    check_answer_writers(case, pcm.cot.answer_writers(case.model, case.examples, right=case.every, steps=STEPS).data)


def test_information_flow(case):
    limits, steps = Limits(floor=0.0, writer_share=0.0, share=0.0, writers=2, senders=1, depth=1, nodes=4), (0, 3, 5, 9)
    options = dict(right=case.every, steps=steps, replaced_by="counterfactual", limits=limits)
    found = pcm.cot.information_flow(case.model, case.examples, **options)
    assert check_information_flow(case, found, steps, "counterfactual") >= 2


# ---- the commands ----------------------------------------------------------------------------------------------------


@pytest.fixture
def loading_unwatched(monkeypatch):
    """The check at load runs the Hugging Face model."""

    def check(family):
        with unwatched():
            check_against_hf(family)

    monkeypatch.setattr("pycotmech.model.model.check_against_hf", check)


def test_results_of_run(case, monkeypatch, tmp_path, loading_unwatched):
    """`pycotmech run`: each stored value is one hooked forward pass, and that of the direct call."""
    plain = SweepWork.grading

    def all_right(self, number, example):
        unit = plain(self, number, example)
        return replace(unit, targets=tuple(() for _ in unit.targets))

    monkeypatch.setattr(SweepWork, "grading", all_right)
    outcome = run(replace(case.settings, metric="logit_diff"), tmp_path)
    assert outcome.done == 4 and not outcome.failures
    data = pcm.open_results(tmp_path).data
    for e, i, s in CELLS:
        step = case.examples[e].steps[s]
        options = dict(metric="logit_diff", answer=step.answer, wrong=step.wrong)
        direct, stored = pcm.patch_heads(case.model, step.clean, step.corrupted, **options), data["raw"].values[e, i]
        base = case.difference(step)
        close(stored - base, direct.raw - base)
        close(data["corrupted_metric"][e, i], base)
        for l, h in HEADS:
            close(stored[l, h] - base, case.patched(e, s, l, h) - base)


@pytest.mark.slow
def test_results_of_paper(case, monkeypatch, tmp_path, loading_unwatched):
    """`pycotmech paper`: the stored results of E1, E3, E7 and E8."""
    monkeypatch.setattr(cells, "grade", every)
    outcome = paper.run(case.settings, tmp_path, only=("E1", "E3", "E7", "E8"))
    refused = {"answer_writers", "context_abidance"} if case.family == "gemma2" else set()
    assert set(outcome.failures) == refused, outcome.failures
    results = pcm.open_results(tmp_path)
    for check in (check_patch_steps, check_decision_heads, check_attention_by_source, check_answer_writers):
        name = check.__name__.removeprefix("check_")
        if name not in refused:
            check(case, results[name])
    check_information_flow(case, outcome.results["information_flow"], STEPS, "mean")
