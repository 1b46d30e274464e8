"""The device, its driver, the versions of what runs on it, and which code runs each op."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import subprocess
from pathlib import Path

import torch

from benchmarks.gpu.bench import Bench
from benchmarks.gpu.found import Found

ROOT = Path(__file__).resolve().parents[2]


def run(bench: Bench, found: Found) -> None:
    found.fact("python", platform.python_version())
    for package in ("torch", "triton", "transformers", "numpy"):
        try:
            found.fact(package, importlib.metadata.version(package))
        except importlib.metadata.PackageNotFoundError:
            found.fact(package, "is not installed")
    found.fact("cores", os.cpu_count())
    if bench.cuda:
        card = torch.cuda.get_device_properties(bench.device)
        found.fact("card", card.name)
        found.fact("memory in GiB", round(card.total_memory / 2**30, 1))
        found.fact("compute capability", f"{card.major}.{card.minor}")
        found.fact("multiprocessors", card.multi_processor_count)
        found.fact("CUDA of PyTorch", torch.version.cuda)
        found.fact("driver", _said("nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"))
        found.fact(
            "clocks and limit of power",
            _said("nvidia-smi", "--query-gpu=clocks.max.sm,clocks.max.mem,power.limit", "--format=csv"),
        )
    found.fact("commit", _said("git", "-C", str(ROOT), "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"))
    from pycotmech import ops

    found.fact("C++ library", ops.cpp_missing or "is loaded")
    for op, where in ops.describe().items():
        found.fact(f"{op} runs on", where["cuda" if bench.cuda else "cpu"])


def _said(*command: str) -> str:
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=20, check=True)
        return done.stdout.strip() or "unknown"
    except (OSError, subprocess.SubprocessError):
        return "unknown"
