"""Compiles the kernels of the other phases in several processes at once: one after another they take minutes.

Each process runs a part of the work with little data, which leaves its kernels in Triton's cache. Nothing is checked here, and
what goes wrong is said again where it is.
"""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

import torch

import pycotmech as pcm
from benchmarks import llama7b
from benchmarks.gpu import kernels
from benchmarks.gpu.bench import Bench
from benchmarks.gpu.engine import SMALL
from benchmarks.gpu.found import Found

ROOT = Path(__file__).resolve().parents[2]
SWEEPS = ["sweep, last", "sweep, suffix"]


def run(bench: Bench, found: Found) -> None:
    parts = [*kernels.PARTS, *SWEEPS]
    if bench.small:  # nothing is compiled on a CPU: one is enough to know that they run
        parts = SWEEPS[:1]
    start, code = time.monotonic(), "from benchmarks.gpu import compile; import sys; compile.part(*sys.argv[1:])"
    workers = {}
    for part_name in parts:
        command = [sys.executable, "-c", code, part_name, str(bench.device), str(int(bench.small))]
        workers[part_name] = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    for part_name, worker in workers.items():
        said, _ = worker.communicate()
        print(part_name, said[-3000:])
        found.fact(part_name, f"exit status {worker.returncode} after {time.monotonic() - start:.0f} s")
    found.check("processes that failed", sum(worker.returncode != 0 for worker in workers.values()), 0)


@torch.no_grad()
def part(name: str, device: str, small: str) -> None:
    """One part, in a process that was started for it."""
    bench = Bench(torch.device(device), bool(int(small)))
    if name in kernels.PARTS:
        kernels.warm(name, bench)
        return
    # The widths of Llama-2 7B decide which kernels there are, not the number of layers.
    config = llama7b.shape(2, vocab_size=2000, **(SMALL if bench.small else {}))
    model = pcm.Model(llama7b.random_llama(config, torch.bfloat16, bench.device), check=False)
    positions = name.split(", ")[1]
    clean, corrupted, where = llama7b.prompts(positions, 64 if bench.small else 256, config.vocab_size)
    pcm.patch_heads(model, clean, corrupted, **llama7b.arguments(where))
