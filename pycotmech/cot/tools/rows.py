"""The row that predicts the word, of every cell: activations, and what its heads look at, from packed forward passes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from pycotmech.cot.tools.activations import rotated
from pycotmech.cot.tools.cells import Cell, Cells
from pycotmech.engine import planner
from pycotmech.engine.bases import common_prefix
from pycotmech.model.families.base import Family
from pycotmech.model.run import KeyValues, forward_packed

if TYPE_CHECKING:
    from pycotmech.model import Model


@dataclass(frozen=True)
class ReadRow:
    """The last row of one cell's clean prompt. sites: name -> [L, ...]; final: resid_post of the last layer [d].

    attention [L, H, T]: the weights of this row's heads over all the prompt's positions; None if not asked for.
    """

    cell: Cell
    sites: dict[str, Tensor]
    final: Tensor
    attention: Tensor | None


def read_rows(
    model: Model, cells: Cells, sites: Sequence[str], *, attention: bool = False, memory_gb: float | None = None
) -> Iterator[ReadRow]:
    """Runs the clean prompt of every cell and gives its last row, cell by cell.

    Cost: the tokens that all prompts share once, then each prompt's own; T weights for each head and layer if `attention`.
    Memory: bounded by memory_gb (default: half of what is free), in batches of cells.
    """
    family = model.family
    prompts = [cell.step.clean for cell in cells]
    P = min(common_prefix(prompts), min(map(len, prompts)) - 1)
    todo, budget = list(cells), planner.memory_budget(memory_gb, *model.family.devices) // 2
    past = model.prefixes.key_values(prompts[0][:P], budget)
    wanted = tuple(dict.fromkeys((*sites, "q") if attention else sites))
    for a, b in planner.cut([planner.prompt_bytes(family, len(p), len(p) - P, wanted) for p in prompts], budget):
        suffixes = [p[P:] for p in prompts[a:b]]
        ends = torch.tensor([len(s) for s in suffixes]).cumsum(0) - 1
        packed = forward_packed(family, suffixes, past, sites=wanted, read=ends)
        for i, cell in enumerate(todo[a:b]):
            row = packed.offsets[i + 1] - 1
            here = {site: packed.sites[site][:, row] for site in wanted}
            weights = _weights(family, here["q"], packed.key_values(i, past)) if attention else None
            yield ReadRow(cell, {site: here[site] for site in sites}, packed.resid_final[i], weights)


def _weights(family: Family, q: Tensor, keys: KeyValues) -> Tensor:
    """q [L, H, D] of the last position, before the rotary embedding -> attention weights [L, H, T]."""
    end = [len(keys) - 1]
    rows = [family.pattern(l, rotated(family, l, q[l][None], end), keys.k[l], end)[0] for l in range(len(q))]
    return torch.stack(rows)


@torch.no_grad()
def row_head_outputs(family: Family, z: Tensor) -> Tensor:
    """What each head adds to the residual stream: z [L, H, D] of one row -> z W_O by head [L, H, d], without the bias."""
    return torch.stack([family.head_out(l, z[l][None])[0] for l in range(len(z))])


def word_spans(step) -> list[slice]:
    """Where the answer's word occurs in the clean prompt outside the shots, first to last (Step.occurrences)."""
    return sorted(step.occurrences, key=lambda span: span.start)
