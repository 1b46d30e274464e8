"""What heads write where an answer is predicted, and which of them count as its writers (docs/protocol.md, E8)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pycotmech.cot.tools.activations import Prompt, TextActivations, direct_directions, final_size, head_outputs, projected
from pycotmech.model.families.base import Family

FLOOR, REACH = 0.25, 0.1
"""The least share of a word's logit that its writer brings, and the least attention to a place that it reads."""
THRESHOLDS = (0.01, 0.1, 0.5)


COUNTS = ("writers", "projecting", "competitor_writers", "late", "sources", "segments")


class Written(NamedTuple):
    """What the heads write at the last position of one prompt; by head, [L, H]."""

    projection: Tensor  # U(z W_O)[answer]
    control: Tensor  # U(z W_O)[wrong]
    top: Tensor  # the likeliest token of U(z W_O)
    peak: Tensor  # its probability
    direct: Tensor  # share of logit(answer) - mean logit
    contrast: Tensor  # share of logit(answer) - logit(wrong)
    competitors: Tensor  # [L, H, C] U(z W_O) of the words of the prompt that compete with the answer
    competing: Tensor  # [L, H, C] share of logit(competitor) - mean logit
    mass: Tensor  # [L, H, K] attention to each occurrence of the answer's word
    logits: Tensor  # [2] the model's logit(answer) - mean logit, logit(answer) - logit(wrong)


@torch.no_grad()
def written(family: Family, acts: TextActivations, prompt: Prompt, *, projection: bool = True) -> Written:
    """What each head writes where the prompt is read. The activations need the sites z and q.

    Cost: the unembedding of a row for each head, if the projection is wanted (NaN and -1 otherwise).
    """
    cfg, read = family.cfg, [prompt.read]
    out = torch.stack([head_outputs(family, l, acts.at("z", l, read))[0] for l in range(cfg.n_layers)])
    shape = out.shape[:2]
    ids = [prompt.answer, prompt.wrong, *prompt.competing]
    final = acts.final(read)
    answer, wrong, *competing, mean = direct_directions(family, ids)
    size = final_size(family, final)[0]
    direct, contrast = out @ (answer - mean) / size, out @ (answer - wrong) / size
    brought = torch.stack([out @ (word - mean) / size for word in competing], -1) if competing else out.new_zeros(*shape, 0)
    logits = torch.stack((final[0] @ (answer - mean), final[0] @ (answer - wrong))) / size
    bias = family.unembedding_bias()
    if bias is not None:
        logits = logits + torch.stack((bias[ids[0]] - bias.mean(), bias[ids[0]] - bias[ids[1]])).to(logits.dtype)
    if projection:
        p, top, peak = projected(family, out.flatten(0, 1), ids)
        p, top, peak = p.view(*shape, len(ids)), top.view(shape), peak.view(shape)
    else:
        p, top, peak = out.new_full((*shape, len(ids)), torch.nan), torch.full(shape, -1), out.new_full(shape, torch.nan)
    mass = out.new_zeros(*shape, len(prompt.occurrences))
    if prompt.occurrences:
        for l in range(cfg.n_layers):
            row = acts.pattern(l, read)[0]
            mass[l] = torch.stack([row[:, span].sum(1) for span in prompt.occurrences], 1)
    return Written(p[..., 0], p[..., 1], top, peak, direct, contrast, p[..., 2:], brought, mass, logits)


def is_writer(projection: Tensor, brought: Tensor, threshold: float, floor: float) -> Tensor:
    """Which heads write a word: they say it with at least this probability and bring at least `floor` of its logit."""
    return (projection >= threshold) & (brought >= floor)


def count_writers(
    found: Written,
    prompt: Prompt,
    thresholds: Sequence[float],
    *,
    allowed: Tensor | None = None,
    floor: float = FLOOR,
    reach: float = REACH,
) -> dict[str, NDArray]:
    """`COUNTS` of one prompt, each [thresholds]."""
    L = found.projection.shape[0]
    out = {name: np.full(len(thresholds), np.nan) for name in COUNTS}
    allowed = torch.ones_like(found.projection, dtype=torch.bool) if allowed is None else allowed.to(found.projection.device)
    for t, threshold in enumerate(thresholds):
        says = (found.projection >= threshold) & allowed
        mask = is_writer(found.projection, found.direct, threshold, floor) & allowed
        layers = mask.nonzero()[:, 0]
        out["projecting"][t], out["writers"][t] = int(says.sum()), len(layers)
        if found.competitors.shape[-1]:
            others = is_writer(found.competitors, found.competing, threshold, floor) & allowed[..., None]
            out["competitor_writers"][t] = float(others.sum((0, 1)).double().mean())
        if len(layers):
            out["late"][t] = float((2 * layers >= L).double().mean())
        seen = (found.mass[mask] >= reach).any(0).tolist() if len(layers) else []
        at = [span for span, hit in zip(prompt.occurrences, seen) if hit]
        out["sources"][t], out["segments"][t] = len(at), len({prompt.segment_of(span.start) for span in at})
    return out


def late_share(brought: Tensor) -> float:
    """Of what heads [L, H, ...] bring of the logits of words, where that is above 0, the share that the later half of the
    layers brings, the mean over words; NaN without a word."""
    L = len(brought)
    above = brought.clamp(min=0).flatten(2).sum(1) if brought.ndim > 2 else brought.clamp(min=0).sum(1)[:, None]
    later = torch.arange(L) * 2 >= L
    return float((above[later].sum(0) / above.sum(0)).double().mean()) if above.shape[1] else float("nan")
