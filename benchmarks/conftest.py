"""What every benchmark shares: a table at the end that holds only figures whose correctness check passed in the same run."""

from __future__ import annotations

import json
import os
import platform
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

_ROWS: list[dict] = []


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("pycotmech")
    group.addoption("--threads", type=int, default=None, help="threads for both sides (default: all cores)")
    group.addoption("--layers", type=int, default=32, help="layers of the Llama-2 7B shape (fewer need less memory)")
    group.addoption("--heads", type=int, default=None, help="only so many heads of the Llama-2 7B shape, spread evenly")
    group.addoption("--tokens", type=int, default=None, help="tokens of a trace (default: those of each benchmark)")
    group.addoption("--no-bare", dest="bare", action="store_false", help="Llama-2 7B shape: do not run the bare products")
    group.addoption("--results", default=None, help="also write the table to this JSON file")


@pytest.fixture(autouse=True)
def _threads(request: pytest.FixtureRequest):
    before = torch.get_num_threads()
    torch.set_num_threads(request.config.getoption("--threads") or before)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def report() -> Callable[..., None]:
    """report(what, seconds, baseline=..., baseline_seconds=..., note=...): call it after the correctness check."""

    def add(what: str, seconds: float, *, baseline: str | None = None, baseline_seconds: float | None = None, note: str = ""):
        ratio = None if baseline_seconds is None else baseline_seconds / seconds
        _ROWS.append(
            {
                "what": what,
                "seconds": seconds,
                "baseline": baseline,
                "baseline_seconds": baseline_seconds,
                "ratio": ratio,
                "threads": torch.get_num_threads(),
                "note": note,
            }
        )

    return add


@pytest.fixture
def say(request: pytest.FixtureRequest) -> Callable[[str], None]:
    """say(line): printed at once, whatever pytest captures, with the time since the test began."""
    start, plugins = time.perf_counter(), request.config.pluginmanager
    terminal, capture = plugins.get_plugin("terminalreporter"), plugins.get_plugin("capturemanager")

    def line(text: str) -> None:
        with capture.global_and_fixture_disabled():
            terminal.ensure_newline()
            terminal.write_line(f"[{time.perf_counter() - start:6.0f} s] {text}")
            terminal.flush()

    return line


def best_of(times: int, call: Callable[[], object]) -> float:
    """The shortest of a few wall times, in seconds."""
    best = float("inf")
    for _ in range(times):
        start = time.perf_counter()
        call()
        best = min(best, time.perf_counter() - start)
    return best


def pytest_terminal_summary(terminalreporter, config: pytest.Config) -> None:
    if not _ROWS:
        return
    write = terminalreporter.write_line
    write("")
    write(
        f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores, torch {torch.__version__}; "
        "every row passed its correctness check in this run"
    )
    write(f"{'what':<58} {'seconds':>9}   {'ratio':>7}  against")
    for r in _ROWS:
        ratio = "" if r["ratio"] is None else f"{r['ratio']:.1f}x"
        against = "" if r["baseline"] is None else f"{r['baseline']}: {r['baseline_seconds']:.2f} s"
        write(f"{r['what']:<58} {r['seconds']:>9.3f}   {ratio:>7}  {against}  {r['note']}")
    if config.getoption("--results"):
        Path(config.getoption("--results")).write_text(json.dumps(_ROWS, indent=1))
