"""Every benchmark imports what is there: nothing else runs them between releases."""

import importlib
from pathlib import Path

import pytest

FILES = sorted((Path(__file__).resolve().parents[2] / "benchmarks").glob("*.py"))


@pytest.mark.parametrize("name", [path.stem for path in FILES])
def test_a_benchmark_can_be_imported(name):
    importlib.import_module(f"benchmarks.{name}")
