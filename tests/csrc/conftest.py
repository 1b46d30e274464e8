"""Builds the plain C++ tests with the address and undefined-behaviour sanitizers and runs them. No torch involved."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

HERE = Path(__file__).parent
CSRC = HERE.parent.parent / "csrc"
FLAGS = [
    *("-std=c++20", "-g1", "-Wall", "-Wextra", "-Werror", "-Wno-unknown-pragmas"),
    *("-fsanitize=address,undefined", "-fno-sanitize-recover=all", f"-I{CSRC}", f"-I{HERE}"),
]


UNOPTIMISED = ("attn_weights", "extract", "prefix_attn")
"""Parts of the core that call the kernels and do little themselves; these and the tests compile in half the time."""


def _run(*command: str, env: dict[str, str] | None = None) -> str:
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, **(env or {})})
    assert done.returncode == 0, f"{' '.join(command)}\n{done.stdout[-2000:]}\n{done.stderr[-6000:]}"
    return done.stdout


@pytest.fixture(scope="session")
def compiler() -> str:
    found = os.environ.get("CXX") or shutil.which("g++") or shutil.which("clang++")
    assert found, "the C++ tests need g++ or clang++"
    return found


@pytest.fixture(scope="session")
def cpp_test(compiler: str, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., list[str]]:
    """cpp_test("gemm_test", args=(), defines=(), env={}): builds tests/csrc/gemm_test.cpp with csrc/core, runs it and
    returns the lines it printed. Objects are compiled once a session for each set of defines."""
    folder = tmp_path_factory.mktemp("cpp")

    def compile_one(source: Path, defines: tuple[str, ...]) -> str:
        out = folder / f"{source.stem}-{abs(hash(defines))}.o"
        if not out.exists():
            level = "-O0" if source.parent == HERE or source.stem in UNOPTIMISED else "-O1"
            _run(compiler, *FLAGS, level, *(f"-D{d}" for d in defines), "-c", str(source), "-o", str(out))
        return str(out)

    def build_and_run(name: str, *, args: tuple[str, ...] = (), defines: tuple[str, ...] = (), env=None) -> list[str]:
        # Only AMX has a define of its own; the rest of the core is shared between the programs.
        core = [(p, defines if p.name == "gemm_amx.cpp" else ()) for p in sorted((CSRC / "core").glob("*.cpp"))]
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            objects = list(pool.map(lambda job: compile_one(*job), [*core, (HERE / f"{name}.cpp", ())]))
        program = folder / f"{name}-{abs(hash(defines))}"
        _run(compiler, *FLAGS, *objects, "-o", str(program))
        return _run(str(program), *args, env=env).split()

    return build_and_run
