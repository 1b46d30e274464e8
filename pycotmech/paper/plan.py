"""Predicts what the analyses need before they start: work in forward passes and FLOP, time, memory."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from pycotmech.cot.tools.cost import Cost, Workload
from pycotmech.cot.tools.registry import Description
from pycotmech.runs.speed import Speed, measured_overhead, measured_speed, shown_time

if TYPE_CHECKING:
    from pycotmech.model import Model


@dataclass(frozen=True)
class Line:
    """The cost of one analysis. authors: 0 if the authors read it off the results of another analysis, which counts it.
    seconds: estimated for this machine."""

    name: str
    source: str
    ours: Cost
    authors: Cost
    seconds: float


@dataclass(frozen=True)
class CostPlan:
    """The costs of all analyses. flop_per_second: measured on a short run of this model."""

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


def make(model: Model, entries: Sequence[Description], workload: Workload, speed: Speed | None = None) -> CostPlan:
    """Returns the plan of these entries. speed: None measures it by two forward passes of 512 tokens and a short sweep."""
    if speed is None:
        forward = measured_speed(model)
        speed = Speed(forward, measured_overhead(model, forward))
    lines = []
    for entry in entries:
        ours, authors = entry.cost(model.cfg, workload), entry.authors(model.cfg, workload)
        lines.append(Line(entry.name, entry.source, ours, authors, speed.overhead * ours.flop / speed.forward))
    return CostPlan(tuple(lines), speed.forward, workload)


def for_examples(workload: Workload, n: int, of: int) -> Workload:
    """Returns the workload of `of` examples scaled to n examples, with as many steps per example."""
    scale = n / of
    counts = {k: round(scale * getattr(workload, k)) for k in ("examples", "cells", "inductive", "sweeps", "beginnings")}
    return replace(workload, swept=scale * workload.swept, **{k: max(v, 1) for k, v in counts.items()})


def most_examples(seconds: Callable[[int], float], within: float, *, least: int = 4, most: int = 256) -> int:
    """Returns the largest even number of examples whose predicted time fits. seconds: n -> predicted seconds, rising with n.

    Raises ValueError if even `least` examples do not fit; fewer have no halves to choose and to report on.
    """
    if seconds(least) > within:
        raise ValueError(
            f"minutes: {least} examples, the fewest possible, take about {shown_time(seconds(least))}; expected more than "
            f"{shown_time(within)}, fewer settings of the task, or examples= to run them all the same"
        )
    low, high = least // 2, most // 2 + 1  # pairs of examples
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if seconds(2 * middle) <= within else (low, middle)
    return 2 * low
