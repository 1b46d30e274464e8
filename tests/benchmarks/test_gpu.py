"""`python -m benchmarks.gpu` on a CPU: every phase with small sizes, and what becomes of phases that hang, die or are wrong."""

import contextlib
import importlib
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from benchmarks.gpu import __main__ as command
from benchmarks.gpu import compile, kernels, supervise
from benchmarks.gpu.bench import Bench, poisoned_outputs, relative, surrounded
from benchmarks.gpu.found import Found, read_rows
from pycotmech import ops
from pycotmech.engine import graphs
from tests.reference.stand_in_graphs import Again

ROOT = Path(__file__).resolve().parents[2]


def phase(name: str, **known) -> Found:
    found = Found()
    with torch.no_grad():
        importlib.import_module(f"benchmarks.gpu.{name}").run(Bench(torch.device("cpu"), small=True, known=known), found)
    return found


def bad(found: Found) -> list[dict]:
    return [r for r in found.rows if r["kind"] in ("failed", "withheld", "not run") or r.get("passed") is False]


@pytest.mark.parametrize("name", [name for name in command.SHARES if name != "environment"])
def test_a_phase_finds_what_it_should(name):
    found = phase(name)
    kinds = [r["kind"] for r in found.rows]
    assert not bad(found), bad(found)
    assert "check" in kinds and (name in ("compile", "engine") or "figure" in kinds)
    assert "figure" not in kinds or kinds.index("check") < kinds.index("figure")


def test_kernels_are_compiled_by_a_part_of_their_own():
    compile.part(kernels.PARTS[-1], "cpu", "1")


def test_the_command(tmp_path):
    """As it is typed on a machine with a GPU, from another folder, with packages missing."""
    words = ["-m", "benchmarks.gpu", "--device", "cpu", "--small", "--minutes", "10", "--only", "environment,ceilings"]
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, *words, "--out", tmp_path / "out"], cwd=tmp_path, env=env, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert {p.name for p in (tmp_path / "out").iterdir()} == {"results.json", "table.md"}
    results = json.loads((tmp_path / "out/results.json").read_text())
    assert results["asked"]["device"] == "cpu" and {p["ended"] for p in results["phases"].values()} == {"ok"}
    assert "| ceilings | product of matrices, bfloat16 |" in (tmp_path / "out/table.md").read_text()


def test_phases_that_hang_or_die_cost_themselves_only(tmp_path):
    codes = {
        "hangs": "found.fact('before', 1); time.sleep(600)",
        "dies": "found.fact('before', 2); os.abort()",
        "wrong": "found.figure('speed', 3.0, 'm/s', checked=found.check('error', 2.0, 1.0))",
        "right": "found.figure('speed', 4.0, 'm/s', checked=found.check('error', 1.0, 2.0))",
    }

    def run(name, rows, known, limit):
        head = "import os, time; from pathlib import Path; from benchmarks.gpu.found import Found"
        return [sys.executable, "-c", f"{head}; found = Found(Path({str(rows)!r})); {codes[name]}"]

    old, supervise._LEAST = supervise._LEAST, 1.0
    try:
        shares = {"hangs": 3.0, "dies": 60.0, "wrong": 60.0, "right": 60.0}
        results = supervise.run(tmp_path, shares, 183.0, run, {})
    finally:
        supervise._LEAST = old
    assert results.phases["hangs"]["seconds"] < 60
    ended = {name: p["ended"] for name, p in results.phases.items()}
    assert ended["hangs"].startswith("stopped after") and ended["dies"] == "exit status -6"
    assert ended["wrong"] == ended["right"] == "ok"
    assert [p["rows"][0]["value"] for p in results.phases.values()] == [1, 2, 2.0, 1.0]
    assert [r["kind"] for r in results.phases["wrong"]["rows"]] == ["check", "withheld"]
    assert len(results.failed) == 4 and not any("right" in line for line in results.failed)
    written = json.loads((tmp_path / "results.json").read_text())
    assert written["phases"]["right"]["rows"][1]["value"] == 4.0
    assert "==== dies" in (tmp_path / "errors.txt").read_text() and "FAILS: more than" in (tmp_path / "table.md").read_text()


def test_no_phase_begins_without_time(tmp_path):
    results = supervise.run(tmp_path, {"late": 1.0}, 5.0, lambda *_: pytest.fail("it began"), {})
    assert results.phases["late"]["ended"] == "no time left" and not results.failed


@pytest.mark.parametrize("wrong", ["z", "lse", "unwritten"])
def test_a_wrong_kernel_gives_no_figure(monkeypatch, wrong):
    right = ops.attn_extract

    def broken(*args, **kwargs):
        out = right(*args, **kwargs)
        if wrong == "unwritten":
            return out._replace(z=torch.empty_like(out.z))
        return out._replace(**{wrong: getattr(out, wrong) * 1.01})

    monkeypatch.setattr(ops, "attn_extract", broken)
    found = phase("kernels")
    failed = {r["what"] for r in bad(found)}
    assert "attn_extract all, bfloat16, T = 40" in failed and not any("swiglu" in what for what in failed)
    assert not any(r["kind"] == "figure" and r["what"].startswith("attn_extract") for r in found.rows)


def test_shares_of_the_ceiling_are_taken_from_the_phase_before():
    ceiling = {"kind": "figure", "what": "product of matrices, bfloat16", "value": 0.5}
    found = phase("attention", ceilings=[ceiling])
    assert any(r["what"].endswith("of the product of matrices") and r["unit"] == "%" for r in found.rows)


def test_rows_that_were_cut_off(tmp_path):
    found = Found(tmp_path / "rows")
    found.fact("one", 1)
    (tmp_path / "rows").open("a").write('{"kind": "fact", "wh')
    assert [r["what"] for r in read_rows(tmp_path / "rows")] == ["one"] and read_rows(tmp_path / "none") == []
    assert not Found().check("not a number", float("nan"), 1.0)
    with pytest.raises(TypeError, match="checked"):
        found.figure("speed", 1.0, "m/s", checked=None)


def test_what_is_not_written_and_what_lies_around_is_not_a_number():
    with poisoned_outputs():
        assert torch.empty(5).isnan().all() and torch.empty(3, dtype=torch.bfloat16).isnan().all()
    assert not torch.are_deterministic_algorithms_enabled()
    x = torch.randn(3, 4)
    assert torch.equal(surrounded(x), x) and surrounded(x).as_strided((1,), (1,), 255).isnan()
    assert relative(torch.tensor([1.0, -torch.inf]), torch.tensor([1.0, torch.inf]).double()) != 0


def test_phases_that_are_not_known(capsys):
    with pytest.raises(SystemExit):
        command.arguments(["--only", "ceilings,speed"])
    assert "got speed; expected names among environment" in capsys.readouterr().err


class AsOnAGpu(Bench):
    """The CPU, where every branch for a GPU is taken."""

    cuda = True


class Event:
    """In the place of a CUDA event: the clock."""

    def __init__(self, enable_timing=False):
        self.at = 0.0

    def record(self):
        self.at = time.perf_counter()

    def synchronize(self):
        pass

    def elapsed_time(self, other):
        return (other.at - self.at) * 1e3


class Graph:
    """In the place of a CUDA graph."""

    replays = 0

    def replay(self):
        Graph.replays += 1


class Passes(Again):
    """A replay of a pass of the engine counts as one of a CUDA graph."""

    def replayed(self, fn):
        Graph.replays += 1
        super().replayed(fn)


@pytest.fixture
def driver(monkeypatch):
    """Stands in for the functions of PyTorch that ask a CUDA driver."""

    class Stream(contextlib.nullcontext):
        def wait_stream(self, other):
            pass

    card = SimpleNamespace(name="stand-in", total_memory=2**36, major=9, minor=0, multi_processor_count=132)
    fakes = dict(
        Event=Event, CUDAGraph=Graph, Stream=Stream, current_stream=Stream, stream=lambda s: contextlib.nullcontext(),
        graph=lambda graph, stream=None: contextlib.nullcontext(), synchronize=lambda device=None: None,
        reset_peak_memory_stats=lambda device: None, max_memory_allocated=lambda device: 3 * 2**30,
        get_device_properties=lambda device: card,
    )  # fmt: skip
    for name, fake in fakes.items():
        monkeypatch.setattr(torch.cuda, name, fake)
    monkeypatch.setattr(graphs, "captures", lambda device: os.environ.get("PYCOTMECH_CUDA_GRAPHS") != "0")
    monkeypatch.setattr(graphs, "backend_for", lambda device: Passes())
    yield
    graphs.kept.clear()


@pytest.mark.parametrize("name", ["environment", "ceilings", "attention", "llama7b", "summary", "profile"])
def test_no_branch_for_a_gpu_is_left_untried(name, driver):
    """What a GPU would be the first to run, run once with a stand-in for its driver."""
    found, before = Found(), Graph.replays
    known = {"ceilings": [{"kind": "figure", "what": "product of matrices, bfloat16", "value": 0.5}]}
    with torch.no_grad():
        module = importlib.import_module(f"benchmarks.gpu.{name}")
        module.run(AsOnAGpu(torch.device("cpu"), small=True, known=known), found)
    assert not [r for r in bad(found) if r["kind"] != "not run"], bad(found)
    said = {r["what"]: r["value"] for r in found.rows}
    if name == "environment":
        assert said["card"] == "stand-in" and said["compute capability"] == "9.0"
    if name in ("llama7b", "summary"):
        peak = [what for what in said if "peak device memory" in what]
        assert [float(said[what]) for what in peak] == [3.0]
    if name == "llama7b":
        assert Graph.replays > before and "T = 64, 40 positions: cold prefix, replayed" in said
