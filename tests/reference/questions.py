"""Every kind of question that can be asked of a model, each answered with arrays: to compare one model with its twin."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch

import pycotmech as pcm

T, FIRST = 20, 13
CLEAN = torch.randint(61, (T,), generator=torch.Generator().manual_seed(0))
CORRUPTED = CLEAN.clone()
CORRUPTED[FIRST] = (CORRUPTED[FIRST] + 7) % 61
_ANSWER = dict(metric="logit_diff", answer=7, wrong=11)
_METRIC = dict(_ANSWER, normalize=False)
_SEGMENTS = {"question": slice(3, 13), "rest": slice(13, 20)}


def _run(model):
    sites = ("resid_pre", "resid_post", "attn_out", "mlp_out", "q", "k", "v", "z")
    acts = model.run(CLEAN, capture=sites)
    return {"logits": acts.logits, **acts}


def _heads(site: str, **options):
    return lambda model: {"raw": pcm.patch_heads(model, CLEAN, CORRUPTED, site=site, **options).raw}


def _two_pairs(model):
    other = torch.cat((CLEAN[:8], CLEAN[2:9]))
    changed = other.clone()
    changed[10] = (changed[10] + 9) % 61
    return {"raw": pcm.patch_heads(model, [CLEAN, other], [CORRUPTED, changed], direction="noise", **_METRIC).raw}


def _variants(model):
    edits = [
        pcm.Edit("z", 1, 2, [15], 0.25),
        pcm.Edit("mlp_out", 0, None, [14], 0.5),
        pcm.Edit("resid_post", 2, None, [-1], 0.1),
    ]
    variants = [pcm.Variant((edits[0],)), pcm.Variant((edits[1], edits[0])), pcm.Variant((edits[2],))]
    return {"raw": pcm.sweep(model, CLEAN, variants, **_ANSWER).raw}


def _residual(model):
    return {"raw": pcm.patch_residual(model, CLEAN, CORRUPTED, site="resid_pre", by_position=True, **_METRIC).raw}


def _paths(model):
    return {"raw": pcm.path_patch(model, CLEAN, CORRUPTED, senders=[(0, 1), (1, 2)], receivers=[(2, 0)], **_METRIC).raw}


def _ablation(model):
    heads, prompts = [(0, 1), (2, 3)], [CORRUPTED, CLEAN.flip(0)]
    return {"raw": pcm.ablate_heads(model, CLEAN, heads, kind="mean", mean=prompts, **_ANSWER).raw}


def _knock_out(model):
    return {"raw": pcm.knock_out_edges(model, CLEAN, from_=[5, 13], to=[15, -1], layers=[1], **_ANSWER).raw}


def _interactions(model):
    found = pcm.head_interactions(model, CLEAN, CORRUPTED, [(0, 1), (1, 2), (2, 0)], **_ANSWER)
    return {"effect": found.effect}


def _attribution(model):
    return {"raw": pcm.attribute_heads(model, CLEAN, CORRUPTED, **_METRIC).raw_change}


def _summary(model):
    found = pcm.attention_summary(model, CLEAN, segments=_SEGMENTS)
    return {name: getattr(found, name) for name in ("mass", "entropy", "received", "top_weights", "top_keys")}


def _scores(model):
    found = pcm.head_scores(model, CLEAN.repeat(2))
    return {kind: found[kind] for kind in ("first", "previous", "induction")}


def _lens(model):
    found = pcm.logit_lens(model, CLEAN, answer=[7, 11])
    return {"logits": found.logits, "entropy": found.entropy}


def _written(model):
    return {"heads": pcm.head_logits(model, CLEAN, answer=7, wrong=11).heads}


QUESTIONS: dict[str, Callable[[pcm.Model], dict]] = {
    "run": _run,
    "z": _heads("z", **_METRIC),
    "z by position, kl": _heads("z", by_position=True),
    "q": _heads("q", **_METRIC),
    "k": _heads("k", positions=[-1, -3], **_METRIC),
    "v": _heads("v", **_METRIC),
    "pattern": _heads("pattern", **_METRIC),
    "two pairs": _two_pairs,
    "variants": _variants,
    "residual": _residual,
    "paths": _paths,
    "ablation": _ablation,
    "knock-out": _knock_out,
    "interactions": _interactions,
    "attribution": _attribution,
    "summary": _summary,
    "scores": _scores,
    "lens": _lens,
    "written": _written,
}


def answers(model: pcm.Model, name: str) -> dict[str, np.ndarray]:
    found = QUESTIONS[name](model)
    return {key: value.cpu().numpy() if isinstance(value, torch.Tensor) else np.asarray(value) for key, value in found.items()}
