"""`pytest -m gpu` of the checkout, as a phase: how many tests passed, and which failed."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

from benchmarks.gpu.bench import Bench
from benchmarks.gpu.found import Found

ROOT = Path(__file__).resolve().parents[2]


def run(bench: Bench, found: Found) -> None:
    how = ["-n", "8"] if bench.cuda else ["--collect-only"]
    command = [sys.executable, "-m", "pytest", "-q", "-m", "gpu", "--tb=short", "-p", "no:cacheprovider", *how]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    print(done.stdout[-15000:], done.stderr[-3000:])
    lines = done.stdout.strip().splitlines() or ["it said nothing"]
    found.fact("last line", lines[-1])
    for line in [line for line in lines if re.match("(FAILED|ERROR)", line)][:40]:
        found.fact("failed", line)
    found.check("exit status of pytest", done.returncode, 0)
