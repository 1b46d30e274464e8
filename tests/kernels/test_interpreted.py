"""Runs tests/kernels/interp in a process of its own, with Triton's interpreter on before triton is imported."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("triton", reason="the kernels need triton")
HERE = Path(__file__).resolve().parent
AT_LEAST = 90


def test_kernels_in_the_interpreter(pytestconfig):
    command = [sys.executable, "-m", "pytest", str(HERE / "interp"), "-q", "-p", "no:cacheprovider", "--tb=short"]
    env = os.environ | {"TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=pytestconfig.rootpath, env=env, capture_output=True, text=True, check=False)
    counts = {word: int(n) for n, word in re.findall(r"(\d+) (passed|failed|error|skipped)", done.stdout)}
    assert done.returncode == 0, f"the kernels fail in the interpreter:\n{done.stdout}\n{done.stderr}"
    assert counts.get("passed", 0) >= AT_LEAST, f"{counts}: fewer tests ran than there are\n{done.stdout}"
    assert set(counts) == {"passed"}, f"none may be skipped: {counts}\n{done.stdout}"
