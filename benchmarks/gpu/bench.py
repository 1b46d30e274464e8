"""Where a phase runs, how long it has, and how it measures: device events and medians on a GPU, a clock on a CPU."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor


class Timing(NamedTuple):
    """Seconds of repeated runs."""

    median: float
    low: float
    high: float

    @property
    def spread(self) -> tuple[float, float]:
        return self.low, self.high


@dataclass(frozen=True)
class Bench:
    """device: "cuda", "cuda:1" or "cpu". small: sizes for a CPU. seconds: the phase's limit. known: rows of earlier phases by
    phase."""

    device: torch.device
    small: bool = False
    seconds: float = 600.0
    known: dict[str, list[dict[str, Any]]] = field(default_factory=dict)
    began: float = field(default_factory=time.monotonic)

    @property
    def cuda(self) -> bool:
        return self.device.type == "cuda"

    def left(self) -> float:
        """Seconds until the phase is stopped."""
        return self.seconds - (time.monotonic() - self.began)

    def sync(self) -> None:
        if self.cuda:
            torch.cuda.synchronize(self.device)

    def timed(self, call: Callable[[], object], *, times: int = 5, warm: int = 1) -> Timing:
        """Runs a call that launches work and waits for nothing: device events around each run."""
        for _ in range(warm):
            call()
        self.sync()
        found = []
        for _ in range(times):
            if self.cuda:
                begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
                begin.record()
                call()
                end.record()
                end.synchronize()
                found.append(begin.elapsed_time(end) / 1e3)
            else:
                start = time.perf_counter()
                call()
                found.append(time.perf_counter() - start)
        return _timing(found)

    def waited(self, call: Callable[[], object], *, times: int = 3, before: Callable[[], object] | None = None) -> Timing:
        """Runs a call that ends with its results on the host: the clock, with the device idle before and after. before: called
        before each run, and not timed."""
        found = []
        for _ in range(times):
            if before is not None:
                before()
            self.sync()
            start = time.perf_counter()
            call()
            self.sync()
            found.append(time.perf_counter() - start)
        return _timing(found)

    def figure_of(self, phase: str, what: str) -> float | None:
        """A figure that an earlier phase found; None if it did not."""
        rows = [r for r in self.known.get(phase, ()) if r["kind"] == "figure" and r["what"] == what]
        return rows[-1]["value"] if rows else None

    def forget_peak(self) -> None:
        if self.cuda:
            torch.cuda.reset_peak_memory_stats(self.device)

    def peak_gib(self) -> float | None:
        """The most device memory in use since `forget_peak`; None on a CPU."""
        return torch.cuda.max_memory_allocated(self.device) / 2**30 if self.cuda else None


def _timing(found: list[float]) -> Timing:
    return Timing(statistics.median(found), min(found), max(found))


@contextmanager
def poisoned_outputs() -> Iterator[None]:
    """Tensors that are allocated without values are NaN (integers: their largest): what a kernel does not write is seen."""
    before, warn_only = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
    filled = torch.utils.deterministic.fill_uninitialized_memory
    torch.use_deterministic_algorithms(True, warn_only=True)
    torch.utils.deterministic.fill_uninitialized_memory = True
    try:
        yield
    finally:
        torch.utils.deterministic.fill_uninitialized_memory = filled
        torch.use_deterministic_algorithms(before, warn_only=warn_only)


def surrounded(x: Tensor, margin: int = 256) -> Tensor:
    """A copy of x between margins of NaN, so that reading past an edge is seen."""
    flat = torch.full((x.numel() + 2 * margin,), torch.nan, dtype=x.dtype, device=x.device)
    return flat[margin:-margin].view(x.shape).copy_(x)


def relative(got: Tensor, want: Tensor) -> float:
    """Relative error in the norm, where `want` is finite; not a number if infinities differ."""
    got, finite = got.double(), want.isfinite()
    if got.shape != want.shape or not torch.equal(got[~finite], want[~finite].double()):
        return float("nan")
    return float((got - want)[finite].norm() / want[finite].norm().clamp_min(1e-300))
