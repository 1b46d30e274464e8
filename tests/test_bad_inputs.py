"""Inputs that cannot be used: one clear line that names the argument, from the package itself, before anything is run."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

import pycotmech as pcm
from tests.reference.tiny import tiny_llama

PACKAGE = Path(pcm.__file__).parent
LENGTH = 12
EXPECTED = ("expected", "must", "give", "needs", "no meaning", "there is no", "does not broadcast to", "are patched at")
"""One of these says what would have been right."""


@pytest.fixture(scope="module")
def given():
    model = pcm.Model.from_pretrained("tiny-cot")
    tokens = torch.arange(20, 20 + LENGTH)
    corrupted = tokens.clone()
    corrupted[7] = 60
    examples = pcm.cot.make_examples(2, shots=1, tokenizer=model.tokenizer, bos=model.prepend_bos, seed=4)
    plain = tiny_llama()
    return SimpleNamespace(
        model=model,
        tok=model.tokenizer,
        hf=model.hf,
        tokens=tokens,
        pair=(tokens, corrupted),
        edit=pcm.Edit("z", 1, 2, None, 0.0),
        examples=examples,
        right=torch.ones(len(examples), examples.n_steps, dtype=torch.bool),
        plain=plain,
        no_tokenizer=pcm.Model(plain),
    )


def variant(**changes):
    return [pcm.Variant((pcm.Edit(**(dict(site="z", layer=1, head=2, positions=None, value=0.0) | changes)),))]


def heads(**arguments) -> Callable:
    return lambda g: pcm.patch_heads(g.model, *g.pair, **arguments)


def swept(*edits, **arguments) -> Callable:
    return lambda g: pcm.sweep(g.model, g.tokens, *(edits or (variant(),)), **arguments)


def prompt(bad) -> Callable:
    return lambda g: pcm.patch_heads(g.model, bad(g) if callable(bad) else bad, g.tokens)


def analysis(name: str, *more, **arguments) -> Callable:
    return lambda g: getattr(pcm.cot, name)(g.model, g.examples, *more, **({"right": g.right} | arguments))


def on_hf(function: str, *names: str, **arguments) -> Callable:
    return lambda g: getattr(pcm, function)(g.hf, *(getattr(g, n) for n in names), **arguments)


def meta():
    with torch.device("meta"):
        return tiny_llama()


TABLE: dict[str, tuple[str, Callable]] = {
    # ---- models ------------------------------------------------------------------------------------------------------
    "Model: None": ("hf_model", lambda g: pcm.Model(None)),
    "Model: a name": ("hf_model", lambda g: pcm.Model("tiny-cot")),
    "Model: a Model": ("hf_model", lambda g: pcm.Model(g.model)),
    "Model: a class": ("hf_model", lambda g: pcm.Model(type(g.hf))),
    "Model: on meta": ("hf_model", lambda g: pcm.Model(tiny_llama().to("meta"))),
    "Model: a linear layer": ("model", lambda g: pcm.Model(torch.nn.Linear(2, 2))),
    "Model: tokenizer a name": ("tokenizer", lambda g: pcm.Model(g.plain, "gpt2")),
    "Model: tokenizer a number": ("tokenizer", lambda g: pcm.Model(g.plain, 3)),
    "Model: BOS that is not there": ("prepend_bos", lambda g: pcm.Model(g.plain, without_bos(g), prepend_bos=True)),
    "from_pretrained: None": ("name_or_path", lambda g: pcm.Model.from_pretrained(None)),
    "from_pretrained: empty": ("name_or_path", lambda g: pcm.Model.from_pretrained("  ")),
    "from_pretrained: not there": ("name_or_path", lambda g: pcm.Model.from_pretrained("/no/such/folder")),
    "from_pretrained: dtype": ("dtype", lambda g: pcm.Model.from_pretrained("tiny-cot", dtype="int4")),
    "from_pretrained: device": ("device", lambda g: pcm.Model.from_pretrained("tiny-cot", device="tpu9")),
    "from_pretrained: device number": ("device", lambda g: pcm.Model.from_pretrained("tiny-cot", device=1.5)),
    "from_pretrained: revision": ("revision", lambda g: pcm.Model.from_pretrained("tiny-cot", revision="main")),
    # ---- a Hugging Face model, a name or nothing in place of a pycotmech.Model ----------------------------------------
    "patch_heads: hf": ("model", lambda g: pcm.patch_heads(g.hf, *g.pair)),
    "patch_heads: name": ("model", lambda g: pcm.patch_heads("tiny-cot", *g.pair)),
    "patch_heads: None": ("model", lambda g: pcm.patch_heads(None, *g.pair)),
    "patch_heads_each: hf": ("model", lambda g: pcm.patch_heads_each(g.hf, [g.pair[0]], [g.pair[1]])),
    "plan_heads: hf": ("model", lambda g: pcm.plan_heads(g.hf, *g.pair)),
    "patch_residual: hf": ("model", lambda g: pcm.patch_residual(g.hf, *g.pair)),
    "sweep: hf": ("model", lambda g: pcm.sweep(g.hf, g.tokens, variant())),
    "ablate_heads: hf": ("model", on_hf("ablate_heads", "tokens", heads=[(0, 1)])),
    "attribute_heads: hf": ("model", lambda g: pcm.attribute_heads(g.hf, *g.pair)),
    "knock_out_edges: hf": ("model", on_hf("knock_out_edges", "tokens", from_=[1], to=[-1])),
    "path_patch: hf": ("model", lambda g: pcm.path_patch(g.hf, *g.pair)),
    "path_patch_all: hf": ("model", lambda g: pcm.path_patch_all(g.hf, *g.pair)),
    "plan_paths: hf": ("model", lambda g: pcm.plan_paths(g.hf, 12)),
    "check_pair: hf": ("model", lambda g: pcm.check_pair(*g.pair, model=g.hf)),
    "attention_summary: hf": ("model", on_hf("attention_summary", "tokens")),
    "head_scores: hf": ("model", on_hf("head_scores", "tokens")),
    "repeated_tokens: hf": ("model", on_hf("repeated_tokens")),
    "head_logits: hf": ("model", on_hf("head_logits", "tokens")),
    "logit_lens: hf": ("model", on_hf("logit_lens", "tokens")),
    **{
        f"{name}: hf": ("model", lambda g, name=name: getattr(pcm.cot, name)(g.hf, g.examples, right=g.right))
        for name in (
            "answer_sources",
            "answer_writers",
            "attention_by_source",
            "context_abidance",
            "copy_heads",
            "decision_heads",
            "decision_horizon",
            "functional_rift",
            "induction_heads",
            "information_flow",
            "patch_steps",
        )
    },
    "pair_probes: hf": ("model", lambda g: pcm.cot.pair_probes(g.hf)),
    "relation_heads: hf": ("model", lambda g: pcm.cot.relation_heads(g.hf)),
    "keep_only: hf": ("model", lambda g: pcm.cot.keep_only(g.hf, g.examples, {"a": [(0, 1)]}, right=g.right)),
    "remove: hf": ("model", lambda g: pcm.cot.remove(g.hf, g.examples, [(0, 1)], np.ones((4, 8)), right=g.right)),
    "knock_out_curve: hf": ("model", lambda g: pcm.cot.knock_out_curve(g.hf, g.examples, np.ones((4, 8)), right=g.right)),
    "grade: hf": ("model", lambda g: pcm.cot.grade(g.hf, g.examples)),
    "head_means: hf": ("model", lambda g: pcm.cot.head_means(g.hf, g.examples)),
    # ---- prompts -----------------------------------------------------------------------------------------------------
    "prompt: None": ("clean", prompt(None)),
    "prompt: a number": ("clean", prompt(5)),
    "prompt: empty list": ("clean", prompt([])),
    "prompt: empty string": ("clean", lambda g: pcm.patch_heads(g.no_tokenizer, "", [1])),
    "prompt: string without tokenizer": ("clean", lambda g: pcm.patch_heads(g.no_tokenizer, "Max", "Sam")),
    "prompt: lone surrogate": ("clean", lambda g: pcm.patch_heads(g.model, "\ud800", "Max")),
    "prompt: bytes": ("clean", prompt(b"Max is")),
    "prompt: None inside": ("clean", prompt([1, None, 3])),
    "prompt: None first": ("clean", prompt([None, 1, 3])),
    "prompt: True inside": ("clean", prompt([1, True, 3])),
    "prompt: text inside": ("clean", prompt([1, "a", 3])),
    "prompt: floats": ("clean", prompt([1.0, 2.0])),
    "prompt: float tensor": ("clean", prompt(torch.rand(LENGTH))),
    "prompt: bool tensor": ("clean", prompt(torch.ones(LENGTH, dtype=torch.bool))),
    "prompt: complex tensor": ("clean", prompt(torch.ones(LENGTH, dtype=torch.complex64))),
    "prompt: on meta": ("clean", prompt(torch.ones(LENGTH, dtype=torch.long, device="meta"))),
    "prompt: negative id": ("clean", prompt([1, -3, 4])),
    "prompt: id beyond the vocabulary": ("clean", prompt([1, 10**6])),
    "prompt: id beyond int64": ("clean", prompt([1, 10**30])),
    "prompt: three dims": ("clean", lambda g: pcm.patch_heads(g.model, *[torch.ones(1, 2, 3, dtype=torch.long)] * 2)),
    "prompt: mapping": ("clean", prompt({"text": [1, 2]})),
    "prompt: a set": ("clean", prompt({1, 2})),
    "prompt: a generator": ("clean", prompt(lambda g: (i for i in range(3)))),
    "prompts: one and a list": ("clean", lambda g: pcm.patch_heads(g.model, g.pair[0], [g.pair[1]])),
    "prompts: unequally many": ("clean", lambda g: pcm.patch_heads(g.model, [g.tokens], [g.tokens, g.tokens])),
    "prompts: of unequal length": ("clean", lambda g: pcm.patch_heads(g.model, g.tokens, g.tokens[:-1])),
    "prompts: the same": ("clean", lambda g: pcm.patch_heads(g.model, g.tokens, g.tokens)),
    "run: None": ("tokens", lambda g: g.model.run(None)),
    "run: empty batch": ("tokens", lambda g: g.model.run(torch.empty(0, 4, dtype=torch.long))),
    "run: no prompts": ("tokens", lambda g: g.model.run([])),
    "run: None among prompts": ("tokens", lambda g: g.model.run(["Max is", None])),
    "run: capture": ("capture", lambda g: g.model.run(g.tokens, capture=("zz",))),
    "run: positions": ("positions", lambda g: g.model.run(g.tokens, positions=[99])),
    "run: position 1.0": ("positions", lambda g: g.model.run(g.tokens, positions=1.0)),
    "run: positions text": ("positions", lambda g: g.model.run(g.tokens, positions="last")),
    "attention_summary: None": ("tokens", lambda g: pcm.attention_summary(g.model, None)),
    "logit_lens: None": ("tokens", lambda g: pcm.logit_lens(g.model, None)),
    "head_scores: floats": ("tokens", lambda g: pcm.head_scores(g.model, [0.5, 1.5])),
    # ---- answers -----------------------------------------------------------------------------------------------------
    "answer: missing": ("answer", heads(metric="prob")),
    "answer: typo": (
        "answer.*'rompuss'",
        lambda g: pcm.patch_heads(g.model, "Max is a", "Sam is a", metric="prob", answer="rompuss"),
    ),
    "wrong: typo": (
        "wrong.*'rompuss'",
        lambda g: pcm.patch_heads(g.model, "Max is a", "Sam is a", metric="logit_diff", answer="wumpus", wrong="rompuss"),
    ),
    "answer: typo, sweep": ("answer.*'rompuss'", swept(metric="prob", answer="rompuss")),
    "answer: typo, lens": ("answer.*'rompuss'", lambda g: pcm.logit_lens(g.model, g.tokens, answer=["wumpus", "rompuss"])),
    "answer: typo, head_logits": ("answer.*'rompuss'", lambda g: pcm.head_logits(g.model, g.tokens, answer="rompuss")),
    "answer: True": ("answer", heads(metric="prob", answer=True)),
    "answer: [None]": ("answer", heads(metric="prob", answer=[None])),
    "answer: [True]": ("answer", heads(metric="prob", answer=[True])),
    "answer: 5.0": ("answer", heads(metric="prob", answer=5.0)),
    "answer: empty": ("answer", heads(metric="prob", answer="")),
    "answer: beyond the vocabulary": ("answer", heads(metric="prob", answer=10**6)),
    "answer: negative": ("answer", heads(metric="prob", answer=-1)),
    "answer: too many": ("answer", heads(metric="prob", answer=[1, 2])),
    "answer: a mapping": ("answer", heads(metric="prob", answer={"a": 1})),
    "answer: equals wrong": ("answer", heads(metric="logit_diff", answer=5, wrong=5)),
    "wrong: missing": ("wrong", heads(metric="logit_diff", answer=5)),
    "wrong: True": ("wrong", heads(metric="logit_diff", answer=5, wrong=True)),
    "answer: True, sweep": ("answer", swept(metric="prob", answer=True)),
    "answer: [None], lens": ("answer", lambda g: pcm.logit_lens(g.model, g.tokens, answer=[None])),
    "answer: True, lens": ("answer", lambda g: pcm.logit_lens(g.model, g.tokens, answer=True)),
    "answer: 5.5, head_logits": ("answer", lambda g: pcm.head_logits(g.model, g.tokens, answer=5.5)),
    "wrong: without answer": ("answer", lambda g: pcm.head_logits(g.model, g.tokens, wrong=5)),
    # ---- numbers -----------------------------------------------------------------------------------------------------
    **{f"memory_gb: {bad}": ("memory_gb", heads(memory_gb=bad)) for bad in (math.inf, math.nan, 0, -1, "4", True, [1])},
    "memory_gb: inf, sweep": ("memory_gb", swept(memory_gb=math.inf)),
    "memory_gb: inf, lens": ("memory_gb", lambda g: pcm.logit_lens(g.model, g.tokens, memory_gb=math.inf)),
    "memory_gb: inf, head_logits": ("memory_gb", lambda g: pcm.head_logits(g.model, g.tokens, memory_gb=math.inf)),
    "memory_gb: inf, paths": ("memory_gb", lambda g: pcm.path_patch(g.model, *g.pair, memory_gb=math.inf)),
    "memory_gb: inf, copy_heads": ("memory_gb", analysis("copy_heads", memory_gb=math.inf)),
    "memory_gb: text, pair_probes": ("memory_gb", lambda g: pcm.cot.pair_probes(g.model, memory_gb="4")),
    **{f"seed: {bad}": ("seed", heads(seed=bad)) for bad in (2**63, 2**32, -1, 1.0, "0", None, True)},
    "seed: 2**63, sweep": ("seed", swept(seed=2**63)),
    "seed: 2**63, ablate": ("seed", lambda g: pcm.ablate_heads(g.model, g.tokens, [(0, 1)], seed=2**63)),
    "seed: 2**63, paths": ("seed", lambda g: pcm.path_patch(g.model, *g.pair, seed=2**63)),
    "seed: 2**63, scores": ("seed", lambda g: pcm.head_scores(g.model, seed=2**63)),
    "seed: -1, patch_steps": ("seed", analysis("patch_steps", seed=-1)),
    "seed: 2**63, pair_probes": ("seed", lambda g: pcm.cot.pair_probes(g.model, seed=2**63)),
    "seed: 2**63, knock_out_curve": ("seed", analysis("knock_out_curve", np.ones((4, 8)), seed=2**63)),
    # ---- the other arguments of patching --------------------------------------------------------------------------------
    "direction": ("direction", heads(direction="up")),
    "site": ("site", heads(site="resid_pre")),
    "site: None": ("site", heads(site=None)),
    "metric": ("metric", heads(metric="loss")),
    "metric: None": ("metric", heads(metric=None)),
    "read: beyond": ("read", heads(read=99)),
    "read: None": ("read", heads(read=None)),
    "read: before the difference": ("read", heads(read=2)),
    "positions: beyond": ("positions", heads(positions=[99])),
    "positions: empty": ("positions", heads(positions=[])),
    "positions: a mask": ("positions", heads(positions=[True] * LENGTH)),
    "heads: beyond": ("heads", heads(heads=[(99, 0)])),
    "heads: empty": ("heads", heads(heads=[])),
    "heads: not pairs": ("heads", heads(heads=[1, 2])),
    "heads: 1.0": ("heads", heads(heads=[(1.0, 2)])),
    "screen: 0": ("screen", heads(screen=0)),
    "screen: 1.5": ("screen", heads(screen=1.5)),
    "groups: empty": ("groups", heads(groups={})),
    "groups: overlap": ("groups", heads(groups={"a": slice(7, 9), "b": [8]})),
    "groups: with by_position": ("groups", heads(groups={"a": [7]}, by_position=True)),
    "per_query_head: for z": ("per_query_head", heads(per_query_head=True)),
    "residual site": ("site", lambda g: pcm.patch_residual(g.model, *g.pair, site="z")),
    "kind": ("kind", lambda g: pcm.ablate_heads(g.model, g.tokens, [(0, 1)], kind="max")),
    "mean: missing": ("mean", lambda g: pcm.ablate_heads(g.model, g.tokens, [(0, 1)], kind="mean")),
    "ablated heads: None": ("heads", lambda g: pcm.ablate_heads(g.model, g.tokens, None)),
    "from_: beyond": ("from_", lambda g: pcm.knock_out_edges(g.model, g.tokens, from_=[99], to=[-1])),
    "from_: unknown name": ("from_", lambda g: pcm.knock_out_edges(g.model, g.tokens, from_="shots", to=[-1])),
    "layers: beyond": ("layers", lambda g: pcm.knock_out_edges(g.model, g.tokens, from_=[1], to=[-1], layers=[9])),
    "receivers: None": ("receivers", lambda g: pcm.path_patch(g.model, *g.pair, receivers=None)),
    "receivers: text": ("receivers", lambda g: pcm.path_patch(g.model, *g.pair, receivers="mlps")),
    "senders: 1.0": ("senders", lambda g: pcm.path_patch(g.model, *g.pair, senders=[(1.0, 1)])),
    "n_tokens": ("n_tokens", lambda g: pcm.plan_paths(g.model, 0)),
    # ---- edits and variants -----------------------------------------------------------------------------------------------
    "variants: empty": ("variants", swept([])),
    "variants: None": ("variants", swept(None)),
    "variants: edits": ("variants", swept([pcm.Edit("z", 1, 2, None, 0.0)])),
    "variants: a variant": ("variants", swept(variant()[0])),
    "edits: a number": ("variants", swept([pcm.Variant((3,))])),
    "edit: layer 1.0": (r"variants\[0\].edits\[0\].layer", swept(variant(layer=1.0))),
    "edit: layer None": (r"variants\[0\].edits\[0\].layer", swept(variant(layer=None))),
    "edit: layer True": (r"variants\[0\].edits\[0\].layer", swept(variant(layer=True))),
    "edit: layer beyond": (r"variants\[0\].edits\[0\].layer", swept(variant(layer=9))),
    "edit: head 1.0": (r"variants\[0\].edits\[0\].head", swept(variant(head=1.0))),
    "edit: head text": (r"variants\[0\].edits\[0\].head", swept(variant(head="1"))),
    "edit: value None": (r"variants\[0\].edits\[0\].value", swept(variant(value=None))),
    "edit: value text": (r"variants\[0\].edits\[0\].value", swept(variant(value="zero"))),
    "edit: value NaN": (r"variants\[0\].edits\[0\].value", swept(variant(value=math.nan))),
    "edit: value of another shape": (r"variants\[0\].edits\[0\].value", swept(variant(value=torch.ones(3)))),
    "edit: site": (r"variants\[0\].edits\[0\].site", swept(variant(site="zz"))),
    "edit: site None": (r"variants\[0\].edits\[0\].site", swept(variant(site=None))),
    "edit: positions twice": (r"variants\[0\].edits\[0\].positions", swept(variant(positions=[1, 1]))),
    "edit: position 1.5": (r"variants\[0\].edits\[0\].positions", swept(variant(positions=1.5))),
    "edit: keys": (r"variants\[0\].edits\[0\].keys", swept(variant(keys=[1]))),
    "clean: with another metric": ("clean", swept(metric="prob", answer=5, clean=[1, 2])),
    "clean: logits of another size": ("clean", swept(clean=torch.rand(3))),
    # ---- attention and lenses -----------------------------------------------------------------------------------------
    "rows: beyond": ("rows", lambda g: pcm.attention_summary(g.model, g.tokens, rows=[99])),
    "rows: empty": ("rows", lambda g: pcm.attention_summary(g.model, g.tokens, rows=[])),
    "top_k: -1": ("top_k", lambda g: pcm.attention_summary(g.model, g.tokens, top_k=-1)),
    "top_k: text": ("top_k", lambda g: pcm.attention_summary(g.model, g.tokens, top_k="8")),
    "segments: text": ("segments", lambda g: pcm.attention_summary(g.model, g.tokens, segments="question")),
    "segments: beyond": ("segments", lambda g: pcm.attention_summary(g.model, g.tokens, segments={"a": [99]})),
    "readout: of another length": ("readout", lambda g: pcm.attention_summary(g.model, g.tokens, readout=torch.ones(3, 1))),
    "capture_attention: a number": ("model", lambda g: pcm.capture_attention(3).__enter__()),
    "lens site": ("site", lambda g: pcm.logit_lens(g.model, g.tokens, site="z")),
    "lens top_k": ("top_k", lambda g: pcm.logit_lens(g.model, g.tokens, top_k=10**6)),
    "lens top_k text": ("top_k", lambda g: pcm.logit_lens(g.model, g.tokens, top_k="5")),
    "lens positions": ("positions", lambda g: pcm.logit_lens(g.model, g.tokens, positions=[])),
    "normalization": ("normalization", lambda g: pcm.head_logits(g.model, g.tokens, normalization="layer")),
    "repeated_tokens: length": ("length", lambda g: pcm.repeated_tokens(g.model, length=0)),
    "repeated_tokens: batch": ("batch", lambda g: pcm.repeated_tokens(g.model, batch=-1)),
    # ---- the analyses of chains of thought ----------------------------------------------------------------------------
    "make_examples: a model": ("tokenizer", lambda g: pcm.cot.make_examples(1, tokenizer=g.model)),
    "make_examples: None": ("tokenizer", lambda g: pcm.cot.make_examples(1, tokenizer=None)),
    "make_examples: n": ("n:", lambda g: pcm.cot.make_examples(0, tokenizer=g.tok)),
    "make_examples: style": ("style", lambda g: pcm.cot.make_examples(1, tokenizer=g.tok, style="plain")),
    "make_examples: seed": ("seed", lambda g: pcm.cot.make_examples(1, tokenizer=g.tok, seed=0.5)),
    "examples: None": ("examples", lambda g: pcm.cot.copy_heads(g.model, None)),
    "examples: a list": ("examples", lambda g: pcm.cot.copy_heads(g.model, list(g.examples))),
    "steps: beyond": ("steps", analysis("copy_heads", steps=[99])),
    "steps: text": ("steps", analysis("copy_heads", steps=["all"])),
    "right: a list": ("right", analysis("copy_heads", right=[True])),
    "definition": ("definition", analysis("copy_heads", definition="mine")),
    "probe": ("probe", lambda g: pcm.cot.pair_probes(g.model, probe="forest")),
    "sets: none": ("sets", analysis("keep_only", {})),
    "rule": ("rule", lambda g: pcm.cot.select_heads(np.ones((4, 8)), rule="best")),
    "scores: text": ("scores", lambda g: pcm.cot.select_heads("z")),
}


def without_bos(g):
    import copy

    tokenizer = copy.deepcopy(g.tok)
    tokenizer.bos_token = None
    return tokenizer


def test_the_table_is_long_enough():
    assert len(TABLE) >= 80


@pytest.mark.parametrize("name", TABLE)
def test_one_clear_line_that_names_the_argument(name, given, monkeypatch):
    argument, call = TABLE[name]

    def ran(*_args, **_kwargs):
        pytest.fail(f"{name}: the model was run before the argument was refused")

    for model in (given.model, given.no_tokenizer):
        monkeypatch.setattr(model.family, "embed", ran)
    with pytest.raises((ValueError, TypeError, NotImplementedError, FileNotFoundError)) as caught:
        call(given)
    message = str(caught.value)
    assert caught.match(rf"^([a-z_]+, )*{argument}")
    assert "\n" not in message and len(message) < 500
    assert any(words in message for words in EXPECTED), message
    assert Path(str(caught.traceback[-1].path)).is_relative_to(PACKAGE), f"from the depths: {caught.traceback[-1]}"
