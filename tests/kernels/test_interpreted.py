"""Runs tests/kernels/interp in a process of its own, with Triton's interpreter on before triton is imported."""

import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

triton = pytest.importorskip("triton", reason="the kernels need triton")
HERE = Path(__file__).resolve().parent
AT_LEAST = 60


def fails(triton_version: str, numpy_version: str) -> bool:
    """Whether this interpreter fails with this numpy: it makes numbers of arrays of one element, which numpy 2.4 refuses
    (Triton issue 9171)."""
    first_two = [tuple(map(int, version.split(".")[:2])) for version in (triton_version, numpy_version)]
    return first_two[0] == (3, 6) and first_two[1] >= (2, 4)


def test_where_the_interpreter_fails():
    assert fails("3.6.0", "2.4.6") and fails("3.6.0+cu130", "2.10.0")
    assert not fails("3.9.0", "2.4.6") and not fails("3.6.0", "2.3.5")


@pytest.mark.skipif(
    fails(triton.__version__, np.__version__),
    reason=f"the interpreter of Triton {triton.__version__} fails with numpy {np.__version__} (Triton issue 9171)",
)
def test_kernels_in_the_interpreter(pytestconfig):
    command = [sys.executable, "-m", "pytest", str(HERE / "interp"), "-q", "-p", "no:cacheprovider", "--tb=short"]
    command += ["-m", pytestconfig.getoption("markexpr")]
    env = os.environ | {"TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=pytestconfig.rootpath, env=env, capture_output=True, text=True, check=False)
    counts = {word: int(n) for n, word in re.findall(r"(\d+) (passed|failed|error|skipped)", done.stdout)}
    assert done.returncode == 0, f"the kernels fail in the interpreter:\n{done.stdout}\n{done.stderr}"
    assert counts.get("passed", 0) >= AT_LEAST, f"{counts}: fewer tests ran than there are\n{done.stdout}"
    assert set(counts) == {"passed"}, f"none may be skipped: {counts}\n{done.stdout}"
