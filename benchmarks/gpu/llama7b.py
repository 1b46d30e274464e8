"""All 1,024 heads at the shape of Llama-2 7B in bfloat16."""

from __future__ import annotations

from benchmarks.gpu.bench import Bench
from benchmarks.gpu.found import Found
from benchmarks.gpu.sweeps import SMALL, sweeps
from benchmarks.llama7b import shape


def run(bench: Bench, found: Found) -> None:
    sweeps(bench, found, shape(12, **SMALL) if bench.small else shape())
