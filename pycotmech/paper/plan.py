"""What the analyses are going to need, said before they start: work in forward passes and FLOP, time, memory."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from pycotmech.cot.tools.cost import Cost, Workload, metered
from pycotmech.cot.tools.registry import Description
from pycotmech.model.run import forward_packed

if TYPE_CHECKING:
    from pycotmech.model import Model

_ROWS = 512
_OVERHEAD = 1.25
"""Time of a sweep over time of its matrix products: attention, norms, the joining of rows, the metric."""


@dataclass(frozen=True)
class Line:
    """One analysis. authors: 0 where they read it off what another of their analyses had made, where it is counted. seconds:
    estimated for this machine."""

    name: str
    source: str
    ours: Cost
    authors: Cost
    seconds: float


@dataclass(frozen=True)
class CostPlan:
    """All of them. flop_per_second: measured on a short run of this model."""

    lines: tuple[Line, ...]
    flop_per_second: float
    workload: Workload

    @property
    def seconds(self) -> float:
        return sum(line.seconds for line in self.lines)

    @property
    def memory(self) -> float:
        """Bytes beyond the model, of the analysis that needs most."""
        return max((line.ours.memory for line in self.lines), default=0.0)

    def __str__(self) -> str:
        w = self.workload
        out = [
            f"{w.examples} examples, {w.cells} steps that the model gets right, {w.length:.0f} tokens "
            f"(the first {w.shared} shared); this machine: {self.flop_per_second / 1e9:,.0f} GFLOP/s",
            f"{'analysis':<22} {'paper':<8} {'token-forwards':>14} {'TFLOP':>8} {'time':>8} {'authors: forwards':>18} "
            f"{'TFLOP':>10}",
        ]
        for line in self.lines:
            out.append(
                f"{line.name:<22} {line.source:<8} {line.ours.token_forwards:>14,.0f} {line.ours.flop / 1e12:>8.2f} "
                f"{shown_time(line.seconds):>8} {line.authors.forwards:>18,.0f} {line.authors.flop / 1e12:>10,.1f}"
            )
        total, theirs = sum((l.ours for l in self.lines), Cost()), sum((l.authors for l in self.lines), Cost())
        out.append(
            f"{'all':<22} {'':<8} {total.token_forwards:>14,.0f} {total.flop / 1e12:>8.2f} {shown_time(self.seconds):>8} "
            f"{theirs.forwards:>18,.0f} {theirs.flop / 1e12:>10,.1f}"
        )
        out.append(f"about {shown_time(self.seconds)}, {max(self.memory / 2**30, 0.1):.1f} GiB beyond the model")
        return "\n".join(out)


def shown_time(seconds: float) -> str:
    """1.4 s, 35 s, 4.2 min, 3.1 h."""
    if seconds < 90:
        return f"{seconds:.1f} s" if seconds < 10 else f"{seconds:.0f} s"
    return f"{seconds / 60:.1f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def make(model: Model, entries: Sequence[Description], workload: Workload) -> CostPlan:
    """The plan of these entries. Cost: one forward pass of 512 tokens, twice, for the speed of this machine."""
    speed = measured_speed(model)
    lines = []
    for entry in entries:
        ours, authors = entry.cost(model.cfg, workload), entry.authors(model.cfg, workload)
        lines.append(Line(entry.name, entry.source, ours, authors, _OVERHEAD * ours.flop / speed))
    return CostPlan(tuple(lines), speed, workload)


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
