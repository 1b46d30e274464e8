"""How fast a model is on this machine, measured by short runs, to predict how long longer ones take."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from pycotmech.cot.tools.cost import metered
from pycotmech.model.run import forward_packed
from pycotmech.patching import Edit, Variant, sweep

if TYPE_CHECKING:
    from pycotmech.model import Model

_ROWS = 512
_TOKENS, _VARIANTS = 32, 64
"""Size of the sweep by which the overhead of sweeps is measured."""
_OVERHEAD = 1.25, 4.0
"""Least and most time of a sweep over time of its matrix products: attention, norms, the joining of rows, the metric. The short
sweep by which it is measured has fewer rows than real ones, so that more of its time is none of theirs."""


@dataclass(frozen=True)
class Speed:
    """Speed of a model here. forward: FLOP/s of a forward pass. overhead: time of a sweep over that of its products."""

    forward: float
    overhead: float = _OVERHEAD[0]


def shown_time(seconds: float) -> str:
    """1.4 s, 35 s, 4.2 min, 3.1 h."""
    if seconds < 90:
        return f"{seconds:.1f} s" if seconds < 10 else f"{seconds:.0f} s"
    return f"{seconds / 60:.1f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def measured_speed(model: Model) -> float:
    """FLOP/s of this model's own matrix products here, in its dtype: the faster of two short runs, all rows through all
    layers. The products are counted while they run."""
    rows = min(_ROWS, model.cfg.n_ctx)
    tokens = torch.randint(model.cfg.d_vocab, (rows,), generator=torch.Generator().manual_seed(0))
    best = 0.0
    for _ in range(2):
        with metered(model) as meter:
            forward_packed(model.family, [tokens], read=torch.arange(rows))
            if model.device.type == "cuda":
                torch.cuda.synchronize(model.device)
        best = max(best, meter.flop / meter.seconds)
    return best


def measured_overhead(model: Model, forward: float) -> float:
    """By how much a sweep takes longer than its products would in a forward pass, from one short sweep, after one to warm up;
    between the ends of `_OVERHEAD`. forward: what `measured_speed` has found."""
    cfg = model.cfg
    tokens = torch.randint(cfg.d_vocab, (min(_TOKENS, cfg.n_ctx),), generator=torch.Generator().manual_seed(1))
    heads = (
        torch.linspace(0, cfg.n_layers * cfg.n_heads - 1, min(_VARIANTS, cfg.n_layers * cfg.n_heads)).round().long().tolist()
    )
    variants = [Variant((Edit("z", i // cfg.n_heads, head=i % cfg.n_heads, value=0.0),)) for i in heads]
    speeds = []
    for run in (variants[-4:], variants):
        with metered(model) as meter:
            sweep(model, tokens, run, metric="kl")
        speeds.append(meter.flop / meter.seconds)
    return min(max(forward / speeds[-1], _OVERHEAD[0]), _OVERHEAD[1])
