"""`python -m benchmarks.gpu`: see the package's docstring."""

from __future__ import annotations

import argparse
import importlib
import json
import math
import os
import re
import signal
import sys
from collections.abc import Sequence
from pathlib import Path

from benchmarks.gpu import supervise
from benchmarks.gpu.found import Found

ROOT = Path(__file__).resolve().parents[2]
SHARES = {
    "environment": 20, "compile": 60, "ceilings": 25, "kernels": 60, "engine": 75, "attention": 75, "llama7b": 120,
    "smollm2": 40, "summary": 35,
}  # fmt: skip
"""Phases in their order, and what each may use, in seconds of eight minutes."""
MORE = {"profile": 40, "tests": 240}
"""Phases that run only where they are named with --only."""


def arguments(words: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.gpu",
        description="Checks and measures kernels and engine on one device. Exits with 1 if a check failed or a phase died.",
    )
    parser.add_argument(
        "--out", type=Path, default=Path("gpu-results"), help="Folder for results.json, table.md and errors.txt."
    )
    parser.add_argument("--minutes", type=_minutes, default=8.0, help="Time for all phases together.")
    parser.add_argument("--device", type=_device, default="cuda", help="Device to run on: cuda, cuda:1 or cpu.")
    parser.add_argument("--small", action="store_true", help="Use sizes that a CPU manages; the figures mean nothing.")
    parser.add_argument(
        "--only", default="", help=f"Phases to run, of {', '.join([*SHARES, *MORE])}; by default all but {' and '.join(MORE)}."
    )
    parser.add_argument("--phase", help=argparse.SUPPRESS)
    parser.add_argument("--rows", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--known", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--seconds", type=float, default=600.0, help=argparse.SUPPRESS)
    asked = parser.parse_args(words)
    every = {**SHARES, **MORE}
    asked.only = [name for name in asked.only.split(",") if name]
    if unknown := [name for name in asked.only if name not in every]:
        parser.error(f"--only: got {', '.join(unknown)}; expected names among {', '.join(every)}")
    asked.shares = {name: every[name] for name in asked.only or SHARES}
    return asked


def _device(word: str) -> str:
    if not re.fullmatch(r"cpu|cuda(:\d+)?", word):
        raise argparse.ArgumentTypeError(f"got {word!r}; expected cpu, cuda, or cuda:1")
    return word


def _minutes(word: str) -> float:
    try:
        minutes = float(word)
    except ValueError:
        minutes = math.nan
    if not 0 < minutes < math.inf:
        raise argparse.ArgumentTypeError(f"got {word!r}; expected a number above 0")
    return minutes


def main(words: Sequence[str] | None = None) -> int:
    """Runs the command; returns the exit status."""
    asked = arguments(words)
    if asked.phase:
        return _one(asked)
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH"))))
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # what was found until then is written

    def command(name: str, rows: Path, known: Path, limit: float) -> list[str]:
        print(f"{name}: at most {limit:.0f} s", flush=True)
        more = ["--small"] if asked.small else []
        of_phase = ["--phase", name, "--rows", str(rows), "--known", str(known), "--seconds", str(limit)]
        return [sys.executable, "-m", "benchmarks.gpu", "--device", asked.device, "--out", str(asked.out), *of_phase, *more]

    said = {"device": asked.device, "small": asked.small, "minutes": asked.minutes}
    try:
        results = supervise.run(asked.out, asked.shares, asked.minutes * 60, command, said)
    except KeyboardInterrupt:
        print(f"interrupted; what was found until then is in {asked.out}", file=sys.stderr)
        return 130
    except OSError as error:
        print(f"--out: got {asked.out}; expected a folder that can be written to ({error})", file=sys.stderr)
        return 2
    print(results.table())
    for line in results.failed:
        print(f"FAILS: {line}", file=sys.stderr)
    return 1 if results.failed else 0


def _one(asked: argparse.Namespace) -> int:
    """A phase, in the process that was started for it. It ends itself if the process that watches it is gone."""
    if not hasattr(signal, "alarm"):
        return _run(asked)
    signal.alarm(math.ceil(asked.seconds) + 5)
    try:
        return _run(asked)
    finally:
        signal.alarm(0)


def _run(asked: argparse.Namespace) -> int:
    import torch

    from benchmarks.gpu.bench import Bench

    known = json.loads(asked.known.read_text()) if asked.known and asked.known.exists() else {}
    found, device = Found(asked.rows), torch.device(asked.device)
    if device.type == "cuda":
        device = torch.device("cuda", device.index or 0)  # `set_device` takes none without a number
        there = torch.cuda.device_count() if torch.cuda.is_available() else 0
        if device.index >= there:
            found.failed("device", f"got {asked.device}; PyTorch {torch.__version__} finds {there} CUDA devices")
            return supervise.NO_DEVICE
        torch.cuda.set_device(device)
    torch.set_grad_enabled(False)
    importlib.import_module(f"benchmarks.gpu.{asked.phase}").run(Bench(device, asked.small, asked.seconds, known), found)
    return 0


if __name__ == "__main__":
    sys.exit(main())
