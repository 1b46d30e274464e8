"""Predicts what the analyses need before they start: work in forward passes and FLOP, time, memory."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch

from pycotmech.cost import Device
from pycotmech.cot.tools.cost import Cost, Workload
from pycotmech.cot.tools.registry import Description
from pycotmech.display import Described, Facts
from pycotmech.model.config import ModelConfig
from pycotmech.runs.speed import shown_time


@dataclass(frozen=True)
class Line:
    """The cost of one analysis. authors: 0 if the authors read it off the results of another analysis, which counts it.
    seconds: estimated for the device of the plan; authors_seconds: of the authors' loops there, in float32 as they ran; 0 where
    that is not known."""

    name: str
    source: str
    ours: Cost
    authors: Cost
    seconds: float
    authors_seconds: float = 0.0


@dataclass(frozen=True)
class CostPlan(Described):
    """The costs of all analyses. flop_per_second: measured on a short run of this model, or those of a data sheet's product.
    device: the name of what the times are predicted for."""

    lines: tuple[Line, ...]
    flop_per_second: float
    workload: Workload
    device: str = "this machine"

    @property
    def seconds(self) -> float:
        return sum(line.seconds for line in self.lines)

    @property
    def memory(self) -> float:
        """Bytes beyond the model, of the analysis that needs most."""
        return max((line.ours.memory for line in self.lines), default=0.0)

    def described(self) -> Facts:
        w = self.workload
        lines = {
            f"{line.source} {line.name}": (
                f"{line.ours.token_forwards:,.0f} token-forwards, {line.ours.flop / 1e12:,.2f} TFLOP, "
                f"{shown_time(line.seconds)}; the authors' loops: {line.authors.forwards:,.0f} forward passes"
            )
            for line in self.lines
        }
        made = {"device": self.device, "time": f"about {shown_time(self.seconds)}"}
        memory = {"memory beyond the model": f"{max(self.memory / 2**30, 0.1):.1f} GiB"}
        return Facts(f"Plan: {w.examples} examples, {w.cells} steps", {**made, **memory, "analyses": lines})

    def __str__(self) -> str:
        w = self.workload
        out = [
            f"{w.examples} examples, {w.cells} steps that the model gets right, {w.length:.0f} tokens "
            f"(the first {w.shared} shared); {self.device}: {self.flop_per_second / 1e9:,.0f} GFLOP/s",
            f"{'analysis':<22} {'paper':<8} {'token-forwards':>14} {'TFLOP':>8} {'time':>8} {'authors: forwards':>18} "
            f"{'TFLOP':>10}" + f" {'time':>8}" * self.timed,
        ]
        for line in self.lines:
            out.append(self._row(line.name, line.source, line.ours, line.authors, line.seconds, line.authors_seconds))
        total, theirs = sum((l.ours for l in self.lines), Cost()), sum((l.authors for l in self.lines), Cost())
        out.append(self._row("all", "", total, theirs, self.seconds, sum(line.authors_seconds for line in self.lines)))
        out.append(f"about {shown_time(self.seconds)}, {max(self.memory / 2**30, 0.1):.1f} GiB beyond the model")
        return "\n".join(out)

    @property
    def timed(self) -> bool:
        """Whether the authors' loops have a predicted time."""
        return any(line.authors_seconds for line in self.lines)

    def _row(self, name: str, source: str, ours: Cost, authors: Cost, seconds: float, theirs: float) -> str:
        row = (
            f"{name:<22} {source:<8} {ours.token_forwards:>14,.0f} {ours.flop / 1e12:>8.2f} {shown_time(seconds):>8} "
            f"{authors.forwards:>18,.0f} {authors.flop / 1e12:>10,.1f}"
        )
        return f"{row} {shown_time(theirs):>8}" if self.timed else row


def make(
    cfg: ModelConfig, entries: Sequence[Description], workload: Workload, device: Device, flop_per_second: float,
    *, authors: bool = False,
) -> CostPlan:  # fmt: skip
    """Returns the plan of these entries on a device. flop_per_second: of large products there. authors: whether to predict the
    time of the authors' loops too, which run in float32, a forward pass at a time, attention's matrices left out; on a device
    that knows other sizes than those of this model."""
    keys = workload.length - (workload.length - workload.shared) / 2
    single = replace(cfg, dtype=torch.float32)
    lines = []
    for entry in entries:
        ours, theirs = entry.cost(cfg, workload), entry.authors(cfg, workload)
        seconds, loops = device.seconds(cfg, ours.demand(cfg, keys)), 0.0
        if authors:
            loops = device.seconds(single, replace(theirs, passes=theirs.forwards).demand(single, workload.length / 2))
        lines.append(Line(entry.name, entry.source, ours, theirs, seconds, loops))
    return CostPlan(tuple(lines), flop_per_second, workload, device.name)


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
