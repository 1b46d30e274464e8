"""What is installed, and what importing it costs and disturbs."""

from __future__ import annotations

import importlib.metadata
import json
import os
import re
import shutil
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from pathlib import Path

import pytest

import pycotmech

ROOT = Path(__file__).resolve().parent.parent

FORWARD = """
import json, sys
import torch
from transformers import LlamaConfig, LlamaForCausalLM
from transformers.utils import is_kernels_available
import pycotmech
model = LlamaForCausalLM(LlamaConfig(vocab_size=11, hidden_size=8, intermediate_size=8, num_hidden_layers=1,
                                     num_attention_heads=2, num_key_value_heads=1))
with torch.no_grad():
    finite = bool(model(torch.tensor([[1, 2, 3]])).logits.isfinite().all())
import pycotmech.kernels
kernels = sorted(str(p) for p in pycotmech.kernels.__path__)
print(json.dumps([finite, bool(is_kernels_available()), pycotmech.__file__, kernels]))
"""


def python(*arguments: str, cwd: Path, **env: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, *arguments], cwd=cwd, capture_output=True, text=True, env={**os.environ, **env}, timeout=600
    )


def answered(done: subprocess.CompletedProcess) -> list:
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


@pytest.fixture
def source(tmp_path_factory) -> Path:
    """A copy of the tree as a clean clone has it, without what was built or cached: a fresh one, for a build leaves things."""
    target = tmp_path_factory.mktemp("clone") / "pycotmech"
    left_out = shutil.ignore_patterns(
        ".*", "build", "dist", "*.so", "*.egg-info", "__pycache__", "tests", "benchmarks", "demo-*"
    )
    shutil.copytree(ROOT, target, ignore=left_out)
    return target


def test_transformers_is_not_disturbed_by_the_folder_kernels(tmp_path):
    """From the repository root, where a bare `import kernels` finds our folder, all is as it is from anywhere else."""
    assert (ROOT / "kernels").is_dir() and not (ROOT / "kernels" / "__init__.py").exists()
    here = answered(python("-c", FORWARD, cwd=ROOT))
    elsewhere = answered(python("-c", FORWARD, cwd=tmp_path, PYTHONPATH=str(ROOT)))
    assert here == elsewhere
    finite, has_kernels, file, kernels = here
    assert finite and Path(file).parent.parent == ROOT and kernels == [str(ROOT / "kernels")]
    assert not has_kernels or "kernels" in {d.name for d in importlib.metadata.distributions()}


def test_import_is_quick_and_loads_no_pytorch():
    timed = "import time; t = time.process_time(); import pycotmech; t = time.process_time() - t; import sys, json; "
    timed += "print(json.dumps([t, [m for m in ('torch', 'transformers', 'triton', 'numpy') if m in sys.modules]]))"
    runs = [answered(python("-c", timed, cwd=ROOT)) for _ in range(3)]
    assert all(loaded == [] for _, loaded in runs)
    assert min(seconds for seconds, _ in runs) < 0.3


def test_every_public_name_is_there():
    assert [name for name in pycotmech.__all__ if getattr(pycotmech, name) is None] == []


@pytest.mark.slow
def test_every_public_name_is_there_first():
    """In a process that has loaded nothing before."""
    script = "import pycotmech, json; print(json.dumps([n for n in pycotmech.__all__ if getattr(pycotmech, n) is None]))"
    assert answered(python("-c", script, cwd=ROOT)) == []


def test_every_package_of_the_tree_is_installed():
    folders = {p.parent for p in (ROOT / "pycotmech").rglob("*.py")}
    assert [str(f) for f in folders if not (f / "__init__.py").is_file()] == []


def test_constraints_hold_everything_that_is_needed():
    """Each requirement of the package, its tests and its development has one pinned version (Triton comes with PyTorch)."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    extras = project["optional-dependencies"]
    wanted = {re.split(r"[^\w.-]", r)[0].lower() for r in [*project["dependencies"], *extras["test"], *extras["dev"]]}
    lines = [line for line in (ROOT / "constraints.txt").read_text("utf-8").splitlines() if line and line[0] != "#"]
    assert all(re.fullmatch(r"[\w.-]+==[\w.]+", line) for line in lines)
    assert wanted - {line.split("==")[0].lower() for line in lines} == {"triton"}


def test_versions_are_one():
    version = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))
    assert version["project"]["dynamic"] == ["version"] and "version" not in version["project"]
    assert re.search(rf"^version: {re.escape(pycotmech.__version__)}$", (ROOT / "CITATION.cff").read_text("utf-8"), re.M)
    assert f"\n## {pycotmech.__version__} (" in (ROOT / "CHANGELOG.md").read_text("utf-8")


def test_licences_are_listed_for_what_is_installed():
    done = python(".ci/release/licences.py", "--check", cwd=ROOT)
    assert done.returncode == 0, done.stderr
    rows = [line for line in (ROOT / "docs" / "licences.md").read_text("utf-8").splitlines() if line.startswith("| ")][1:]
    assert len(rows) > 40 and not any("not stated" in row or "not installed" in row for row in rows), rows


def test_a_torch_that_is_too_old_is_said_once_and_the_reference_runs():
    script = (
        "import torch, json; torch.__version__ = torch.torch_version.TorchVersion('2.9.1+cpu'); import pycotmech.ops as ops; "
    )
    script += (
        "y = ops.add_rms_norm(torch.ones(2, 4), None, torch.ones(4), 1e-6); print(json.dumps([ops.cpp_missing, y.tolist()]))"
    )
    ran = python("-W", "always", "-c", script, cwd=ROOT)
    missing, y = answered(ran)
    assert missing == "the C++ kernels need torch 2.10 or later, and this is torch 2.9.1+cpu"
    assert ran.stderr.count(missing) == 1 and y[0] == pytest.approx([1.0] * 4, abs=1e-5)


@pytest.mark.slow
def test_the_source_archive_holds_what_a_build_needs(source, tmp_path):
    done = python("-m", "build", "--sdist", "--no-isolation", "--outdir", str(tmp_path), ".", cwd=source)
    assert done.returncode == 0, done.stderr
    (archive,) = tmp_path.glob("*.tar.gz")
    with tarfile.open(archive) as file:
        names = {name.partition("/")[2] for name in file.getnames()}
    for folder in ("csrc", "kernels", "pycotmech"):
        for path in (source / folder).rglob("*"):
            if path.is_file() and path.suffix not in (".so", ".pyc") and path.name != "README.md":
                assert path.relative_to(source).as_posix() in names, path
    assert {"setup.py", "pyproject.toml", "LICENSE", "README.md", "CHANGELOG.md", "CITATION.cff", "constraints.txt"} <= names
    assert not any(name.endswith((".so", ".pyc")) for name in names)


@pytest.mark.slow
def test_the_wheel_for_every_platform_holds_no_compiled_module(source, tmp_path):
    build = ("-m", "build", "--wheel", "--no-isolation", "--outdir", str(tmp_path), ".")
    done = python(*build, cwd=source, PYCOTMECH_PURE="1")
    assert done.returncode == 0, done.stderr
    (wheel,) = tmp_path.glob("*.whl")
    assert wheel.name == f"pycotmech-{pycotmech.__version__}-py3-none-any.whl"
    names = zipfile.ZipFile(wheel).namelist()
    assert "pycotmech/kernels/extract.py" in names and not any(name.endswith((".so", ".pyd")) for name in names)


@pytest.mark.slow
def test_the_wheel_holds_kernels_data_and_compiled_modules(source, tmp_path):
    done = python("-m", "pip", "wheel", "-q", "--no-build-isolation", "--no-deps", "-w", str(tmp_path), ".", cwd=source)
    assert done.returncode == 0, done.stderr
    (wheel,) = tmp_path.glob("*.whl")
    assert "-cp311-abi3-" in wheel.name  # one for every Python
    names = set(zipfile.ZipFile(wheel).namelist())
    for path in (ROOT / "kernels").glob("*.py"):
        assert f"pycotmech/kernels/{path.name}" in names
    for path in (ROOT / "pycotmech" / "data").rglob("*"):
        assert path.is_dir() or path.relative_to(ROOT).as_posix() in names
    for path in (ROOT / "pycotmech").rglob("*.py"):
        assert path.relative_to(ROOT).as_posix() in names
    for module in ("_C", "_core"):
        assert any(re.fullmatch(rf"pycotmech/{module}(\.abi3\.so|\.pyd)", n) for n in names), sorted(names)
    assert not any(n.startswith(("tests/", "benchmarks/", "kernels/", "csrc/")) for n in names)
    # Unpacked in a place of its own, it imports and computes with what was built, without the source tree.
    place = tmp_path / "site"
    zipfile.ZipFile(wheel).extractall(place)
    script = "import pycotmech, json; from pycotmech import ops; import pycotmech.kernels as k; "
    script += "print(json.dumps([pycotmech.__file__, ops.cpp_missing, list(k.__path__)]))"
    file, missing, kernels = answered(python("-c", script, cwd=tmp_path, PYTHONPATH=str(place)))
    assert Path(file).is_relative_to(place) and missing is None and kernels == [str(place / "pycotmech" / "kernels")]


@pytest.mark.slow
def test_without_a_compiler_it_installs_and_says_so_once(source, tmp_path):
    arguments = ("-m", "pip", "install", "-q", "--no-build-isolation", "--no-deps", "--target", str(tmp_path / "site"), ".")
    done = python(*arguments, cwd=source, CC="/bin/false", CXX="/bin/false")
    assert done.returncode == 0, done.stderr
    assert not list((tmp_path / "site" / "pycotmech").glob("_C*.so")) + list(
        (tmp_path / "site" / "pycotmech").glob("_core*.so")
    )
    script = "import torch, pycotmech, json; from pycotmech import ops; x = torch.ones(2, 4); import pycotmech.ops as again; "
    script += "y = ops.add_rms_norm(x, None, torch.ones(4), 1e-6); print(json.dumps([pycotmech.__file__, y.tolist()]))"
    ran = python("-W", "always", "-c", script, cwd=tmp_path, PYTHONPATH=str(tmp_path / "site"))
    file, y = answered(ran)
    assert Path(file).is_relative_to(tmp_path) and y[0] == pytest.approx([1.0] * 4, abs=1e-5)
    assert ran.stderr.count("the C++ kernels are not built") == 1
