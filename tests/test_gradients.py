"""The whole public API on a model whose weights require gradients: the same numbers, and no gradient anywhere."""

from __future__ import annotations

import dataclasses
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

import pycotmech as pcm

LENGTH = 12
SITES = ("resid_pre", "resid_mid", "resid_post", "attn_out", "mlp_out", "q", "k", "v", "z")
ANSWERS = dict(metric="logit_diff", answer=7, wrong=11)


@pytest.fixture(scope="module")
def given():
    tokens = torch.arange(20, 20 + LENGTH)
    corrupted = tokens.clone()
    corrupted[7] = 60
    model = pcm.Model.from_pretrained("tiny-cot")
    examples = pcm.cot.make_examples(3, shots=2, tokenizer=model.tokenizer, bos=model.prepend_bos, seed=4)
    right = torch.ones(len(examples), examples.n_steps, dtype=torch.bool)
    means = pcm.cot.head_means(model, examples, n=2)
    return SimpleNamespace(
        pair=(tokens, corrupted), examples=examples, right=right, means=means, scores=np.arange(32.0).reshape(4, 8)
    )


@pytest.fixture(scope="module")
def models():
    """Two models of the same weights, without and with gradients."""
    plain, training = (pcm.Model.from_pretrained("tiny-cot") for _ in range(2))
    training.hf.requires_grad_(True)
    return plain, training


def captured(model, g):
    with pcm.capture_attention(model) as capture, torch.no_grad():
        model.hf(g.pair[0][None])
    return capture.joined()


def variants():
    zero, key = pcm.Edit("z", 1, 2, None, 0.0), pcm.Edit("k", 0, 3, [4], 0.5)
    pattern = pcm.Edit("pattern", 2, 1, [-1], torch.eye(LENGTH)[0])
    rows = [pcm.Edit(site, 1, None, [5], 0.25) for site in ("resid_pre", "resid_mid", "resid_post", "attn_out", "mlp_out")]
    return [pcm.Variant((edit,)) for edit in (zero, key, pattern, *rows)]


CALLS: dict[str, Any] = {
    "run": lambda m, g: m.run(g.pair[0], capture=SITES),
    **{f"patch_heads {s}": lambda m, g, s=s: pcm.patch_heads(m, *g.pair, site=s) for s in ("z", "q", "k", "v", "pattern")},
    "patch_heads screen": lambda m, g: pcm.patch_heads(m, *g.pair, screen=4, **ANSWERS),
    "patch_heads callable": lambda m, g: pcm.patch_heads(m, *g.pair, metric=lambda x: x[:, 3] - x[:, 5], return_logits=True),
    "patch_heads_each": lambda m, g: pcm.patch_heads_each(m, [g.pair[0]], [g.pair[1]]),
    "patch_residual": lambda m, g: pcm.patch_residual(m, *g.pair),
    "sweep": lambda m, g: pcm.sweep(m, g.pair[0], variants(), clean=g.pair[1]),
    "ablate_heads mean": lambda m, g: pcm.ablate_heads(m, g.pair[0], [(0, 1)], kind="mean", mean=list(g.pair)),
    "ablate_heads resample": lambda m, g: pcm.ablate_heads(m, g.pair[0], [(0, 1)], kind="resample", resample=g.pair[1]),
    "knock_out_edges": lambda m, g: pcm.knock_out_edges(m, g.pair[0], from_=[1, 2], to=[-1]),
    "path_patch": lambda m, g: pcm.path_patch(m, *g.pair, **ANSWERS),
    "head_interactions": lambda m, g: pcm.head_interactions(m, *g.pair, [(0, 1), (2, 3)], answer=7, wrong=11),
    "path_patch_all": lambda m, g: pcm.path_patch_all(m, *g.pair),
    "attribute_heads": lambda m, g: pcm.attribute_heads(m, *g.pair, **ANSWERS),
    "attention_summary": lambda m, g: pcm.attention_summary(m, g.pair[0], segments={"a": slice(2, 5)}, readout="value_norm"),
    "head_scores": lambda m, g: pcm.head_scores(m),
    "capture_attention": captured,
    "head_logits": lambda m, g: pcm.head_logits(m, g.pair[0], answer=5, wrong=9),
    "head_logits own": lambda m, g: pcm.head_logits(m, g.pair[0], normalization="own"),
    "head_logits top_tokens": lambda m, g: pcm.head_logits(m, g.pair[0], answer=5).top_tokens(3),
    "head_logits probabilities": lambda m, g: pcm.head_logits(m, g.pair[0], answer=5).probabilities(),
    "logit_lens": lambda m, g: pcm.logit_lens(m, g.pair[0], site="resid"),
    "grade": lambda m, g: pcm.cot.grade(m, g.examples),
    "head_means": lambda m, g: pcm.cot.head_means(m, g.examples, n=1),
    **{
        name: lambda m, g, name=name: getattr(pcm.cot, name)(m, g.examples, right=g.right, steps=[0, 5])
        for name in (
            "patch_steps", "decision_heads", "copy_heads", "attention_by_source", "answer_writers", "information_flow",
            "answer_sources", "context_abidance", "functional_rift",
        )
    },
    "copy_heads paper": lambda m, g: pcm.cot.copy_heads(m, g.examples, right=g.right, steps=[5], definition="paper"),
    "information_flow paper": lambda m, g: pcm.cot.information_flow(
        m, g.examples, right=g.right, steps=[5], definition="paper"
    ),
    "induction_heads": lambda m, g: pcm.cot.induction_heads(m, g.examples, right=g.right),
    "decision_horizon": lambda m, g: pcm.cot.decision_horizon(m, g.examples, right=g.right, max_new=3),
    "pair_probes": lambda m, g: pcm.cot.pair_probes(m, questions=16, depths=[0, 3]),
    "relation_heads": lambda m, g: pcm.cot.relation_heads(m, questions=8, draws=50, random_sets=1),
    "keep_only": lambda m, g: pcm.cot.keep_only(m, g.examples, {"a": [(0, 1)]}, right=g.right, steps=[5], mean=g.means),
    "remove": lambda m, g: pcm.cot.remove(
        m, g.examples, [(0, 1), (2, 3), (3, 4)], g.scores, right=g.right, steps=[5], kind="zero"
    ),
    "knock_out_curve": lambda m, g: pcm.cot.knock_out_curve(
        m, g.examples, g.scores, right=g.right, steps=[5], sizes=[0, 16], kind="zero"
    ),
    "circuits": lambda m, g: pcm.cot.circuits(m, g.examples, right=g.right, steps=[5], mean=g.means, n_random=1, evaluations=9),
    "head_interactions by step": lambda m, g: pcm.cot.head_interactions(m, g.examples, right=g.right, steps=[5], k=2),
    "mlp_share": lambda m, g: pcm.cot.mlp_share(m, g.examples, right=g.right, steps=[5]),
    "set_transfer": lambda m, g: pcm.cot.set_transfer(
        m, g.examples, np.stack([[g.scores, -g.scores]] * 3), right=g.right, steps=[0, 1], kind="zero"
    ),
}  # fmt: skip


def test_every_public_function_with_a_model_is_called():
    takes_no_model = {
        "make_examples",
        "graded",
        "select",
        "select_heads",
        "head_overlap",
        "induction_score",
        "set_combinations",
    }
    runs_nothing = {
        "check_pair",
        "open_results",
        "plan_heads",
        "plan_paths",
        "read_pairs",
        "register_attention",
        "repeated_tokens",
        "write_report",
    }
    public = [name for name in (*pcm.__all__, *pcm.cot.__all__) if name.islower() and not name.startswith("_")]
    called = {name.split()[0] for name in CALLS}
    packages = {name for name in public if isinstance(getattr(pcm, name, None), ModuleType)}
    assert set(public) - called - takes_no_model - runs_nothing - packages == set()


def numbers(result: Any, path: str = "") -> dict[str, np.ndarray]:
    """Every array and tensor in a result, by where it stands. Tensors must carry no gradient."""
    if isinstance(result, torch.Tensor):
        assert not result.requires_grad and result.grad_fn is None, f"{path} carries a gradient"
        return {path: result.cpu().numpy()}
    if isinstance(result, np.ndarray):
        return {path: result} if result.dtype.kind in "biuf" else {}
    if isinstance(result, float):
        return {path: np.array(result)}
    if hasattr(result, "data_vars"):
        return {k: v for name in result.data_vars for k, v in numbers(result[name].values, f"{path}.{name}").items()}
    if isinstance(result, pcm.Activations):
        inner = {"logits": result.logits, **result}
    elif isinstance(result, (list, tuple)):
        inner = {str(i): part for i, part in enumerate(result)}
    elif dataclasses.is_dataclass(result):
        skipped = ("plan", "about")  # seconds and costs
        inner = {f.name: getattr(result, f.name) for f in dataclasses.fields(result) if f.name not in skipped}
    else:
        return {}
    return {
        k: v
        for name, part in inner.items()
        if not isinstance(part, pcm.Model)
        for k, v in numbers(part, f"{path}.{name}").items()
    }


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", CALLS)
def test_a_model_whose_weights_require_gradients(name, given, models):
    plain, training = models
    expected, found = (numbers(CALLS[name](model, given)) for model in (plain, training))
    assert expected.keys() == found.keys() and len(found) > 0
    for key, value in expected.items():
        assert np.array_equal(found[key], value, equal_nan=True), key
    assert all(p.grad is None and p.requires_grad for p in training.hf.parameters())
    assert torch.is_grad_enabled()
