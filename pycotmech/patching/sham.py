"""The sham position: a patch where both runs are the same.

Before the first difference of two prompts a causal model's runs are one run, which is computed once. So z of a head at the last
position before it is patched by the very numbers that are there. Two variants are evaluated with the same shapes: one takes
z of the source run there, found as every patch finds it, and one takes nothing. Their metrics are equal to the last bit, unless
positions are confused: a patch that is off by one reaches the first difference.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from pycotmech.engine.bases import Stage, run_pairs
from pycotmech.engine.evaluate import Evaluator
from pycotmech.engine.jitter import Jitter
from pycotmech.engine.joins import SELF_PATCH_SITES, HeadJoins
from pycotmech.engine.metrics import ExampleMetric
from pycotmech.engine.row_edits import RowEdits
from pycotmech.engine.rows import Variants
from pycotmech.model.config import ModelConfig
from pycotmech.model.run import KeyValues

N_SHAM = 2
"""Variants per run: with the patch and without."""
SHAM_PIECES = [(0, 1), (1, N_SHAM)]
"""One after the other, in the same shapes, so that equal rows give equal numbers."""


def sham_variants(cfg: ModelConfig, first: int) -> Variants:
    """Both variants of one run whose prompts differ from position `first` on. They join in the middle layer."""
    layer, stage = torch.full((N_SHAM,), cfg.n_layers // 2), torch.full((N_SHAM,), int(Stage.MID))
    return Variants(torch.zeros(N_SHAM, dtype=torch.long), layer, stage, torch.full((N_SHAM,), first - 1))


def sham_change(
    evaluator: Evaluator,
    prompt: Tensor,
    first: int,
    reads: Sequence[int],
    source: Tensor,
    past: KeyValues | None,
    metrics: Sequence[ExampleMetric],
    seed: int,
) -> Tensor:
    """What the patch changes in the metric where it is read: float64 [len(reads)].

    prompt: of the base run, up to the last read; first: the first difference; source [L, n, H, D]: z of the last n rows of the
    source run. past: keys and values that the prompt begins with, which may reach beyond the sham position.
    Cost: one run of the prompt after the past, and two variants.
    """
    family, sham = evaluator.family, first - 1
    shared = None if past is None or sham == 0 else KeyValues(past.k[:, :sham], past.v[:, :sham])
    runs = run_pairs(
        family, [prompt], [], past=shared, first=[sham], reads=[reads], sites=SELF_PATCH_SITES, source_sites=(),
        replay=evaluator.replay,
    )  # fmt: skip
    z = runs.bases.sites["z"].clone()
    z[:, z.shape[1] - source.shape[1] :] = source
    bases, none = replace(runs.bases, source={"z": z}), torch.zeros(N_SHAM, dtype=torch.bool)
    joins = HeadJoins.on_device_of(
        family,
        bases,
        control=none,
        moves=torch.tensor([True, False]),
        head=torch.full((N_SHAM,), seed % family.cfg.n_heads),
        position=torch.full((N_SHAM,), sham),
        editable=torch.ones(z.shape[1], dtype=torch.bool),
        signs=torch.ones(z.shape[1:], dtype=torch.long),
    )
    jitter = Jitter(family, torch.full((N_SHAM,), -1), torch.empty(0))  # no variant has noise, so none is drawn
    values, _, _ = evaluator.run(
        sham_variants(family.cfg, first), SHAM_PIECES, joins, RowEdits(family, bases), metrics, jitter, none
    )
    patched, plain = values.view(N_SHAM, len(reads))
    return patched - plain
