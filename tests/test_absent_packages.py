"""What runs from a plain checkout on a machine with PyTorch and transformers, and without most of the other packages."""

import os
import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]

SWEEP = """
import tests.absent_packages
import torch, pycotmech as pcm
from tests.reference.tiny import tiny_llama
model = pcm.Model(tiny_llama(n_layers=2))
clean = torch.arange(3, 23)
corrupted = clean.clone()
corrupted[12] += 1
assert pcm.patch_heads(model, clean, corrupted).values.shape == (2, 4)
assert pcm.patch_residual(model, clean, corrupted).values.shape == (2, 20)
assert pcm.attention_summary(model, clean, rows=[-1], top_k=4).mass.shape[:3] == (2, 4, 1)
"""


def run(*command: str, **env: str) -> subprocess.CompletedProcess:
    plain = {k: v for k, v in os.environ.items() if k != "PYTEST_ADDOPTS"}
    settings = {**plain, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1", **env}
    return subprocess.run([sys.executable, *command], cwd=ROOT, env=settings, capture_output=True, text=True, check=False)


def test_sweeps_and_summaries_need_no_package_of_files_and_figures():
    done = run("-c", SWEEP, ABSENT_PACKAGES="zarr,numcodecs,gguf,plotly,xarray,pandas,matplotlib,sklearn,typer,accelerate")
    assert done.returncode == 0, done.stderr


def test_gpu_tests_are_collected_without_them():
    command = ("-m", "pytest", "-p", "tests.absent_packages", "-m", "gpu", "--collect-only", "-q", "-p", "no:cacheprovider")
    done = run(*command)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-2000:]
    assert int(re.search(r"(\d+) tests collected", done.stdout)[1]) >= 230 and "error" not in done.stdout.splitlines()[-1]
