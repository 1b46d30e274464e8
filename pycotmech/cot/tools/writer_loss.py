"""Measures what remains of an answer if heads that write it are knocked out, singly or all together.

Heads are knocked out only at the last position, where the answer is predicted. One sweep evaluates all sets of heads of a
prompt, with one row for each set.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pycotmech.cot.tools.activations import Prompt
from pycotmech.cot.tools.cost import Cost, Workload, rows_cost
from pycotmech.engine.joins import N_CONTROLS, N_JITTERED
from pycotmech.model.config import ModelConfig
from pycotmech.model.sizes import CPU
from pycotmech.patching import Edit, Variant, sweep

if TYPE_CHECKING:
    from pycotmech.model import Model


class Losses(NamedTuple):
    """Margins: the answer's logit minus the largest other one, above 0 while the answer is the first choice.

    intact: with no head knocked out. The others are [thresholds], one entry for each set of writers, NaN where it is empty:
    one: the smallest margin over knock-outs of a single writer. together: with all writers knocked out. matched: with as many
    other heads of the same layers knocked out together.
    """

    intact: float
    one: NDArray[np.float64]
    together: NDArray[np.float64]
    matched: NDArray[np.float64]


def losses(
    model: Model,
    prompt: Prompt,
    writers: Sequence[Tensor],
    fill: Tensor,
    *,
    seed: int = 0,
    memory_gb: float | None = None,
) -> Losses:
    """Knocks writers out of one prompt.

    writers: sets of heads, bool [L, H], each of which contains the next. fill [L, H, D]: replacement of z of a head that is
    knocked out. seed: for drawing the other heads. If the first set is empty, nothing is run and `intact` is NaN.
    Cost: the part of the prompt after its cached beginning, and for each variant one row from its first layer on.
    """
    none = np.full(len(writers), np.nan)
    out = Losses(float("nan"), none, none.copy(), none.copy())
    sets = [mask.cpu() for mask in writers]
    if not sets or not bool(sets[0].any()):
        return out
    generator = torch.Generator().manual_seed(seed)
    alone = {head: i for i, head in enumerate(_heads(sets[0]))}
    chosen = [[head] for head in alone]
    for mask in sets:
        chosen += [_heads(mask), _heads(others_of_the_same_layers(mask, generator))]
    variants = [
        Variant(tuple(Edit("z", l, head=h, positions=[prompt.read], value=fill[l, h][None]) for l, h in heads))
        for heads in chosen
        if heads
    ]

    def margin(logits: Tensor) -> Tensor:
        rest = logits.clone()
        rest[:, prompt.answer] = -torch.inf
        return logits[:, prompt.answer] - rest.amax(-1)

    found = sweep(model, prompt.tokens, variants, metric=margin, memory_gb=memory_gb, seed=seed)
    values = iter(found.raw.tolist())
    margins = [next(values) if heads else np.nan for heads in chosen]
    for t, mask in enumerate(sets):
        heads = _heads(mask)
        if heads:
            out.one[t] = min(margins[alone[head]] for head in heads)
            out.together[t], out.matched[t] = margins[len(alone) + 2 * t : len(alone) + 2 * t + 2]
    return out._replace(intact=found.base_metric)


def others_of_the_same_layers(mask: Tensor, generator: torch.Generator) -> Tensor:
    """Draws, in each layer, as many heads outside of a set as it has there, or all of them if there are fewer: bool [L, H]."""
    out = torch.zeros_like(mask)
    for l, row in enumerate(mask):
        rest = (~row).nonzero().flatten()
        out[l, rest[torch.randperm(len(rest), generator=generator)][: int(row.sum())]] = True
    return out


def _heads(mask: Tensor) -> list[tuple[int, int]]:
    return [(int(l), int(h)) for l, h in mask.nonzero().tolist()]


def losses_cost(cfg: ModelConfig, workload: Workload, *, writers: float = 8.0) -> Cost:
    """Predicts the cost.

    It counts the segments in which beginnings of prompts are cached on a CPU (`model.prefixes`), of each example those after
    the shared beginning, and of each cell what its last segment holds; and for each cell a row of each variant, through half of
    the layers on average. writers: number of writers of a cell at the lowest threshold.
    """
    longest = workload.longest or workload.length
    last = np.linspace(2 * workload.length - longest, longest, 32) - 1  # of prompts from the shortest to the longest
    ends = last // CPU.segment * CPU.segment
    kept = max(float(ends[-1]) - workload.shared // CPU.segment * CPU.segment, 0)
    segments = workload.examples * kept + workload.cells * float((last - ends).mean())
    variants = writers + 6 + N_CONTROLS
    layers = (variants + N_JITTERED) / 2  # of these rows; jittered copies join at the first
    rows = segments * (1 - 1 / cfg.n_layers) + workload.cells * (1 + layers)
    passes = 5 * workload.cells  # a prompt's segments, its run, its variants: a few rows each
    return rows_cost(cfg, rows, forwards=workload.cells, read=workload.cells * (1 + variants), passes=passes)
