"""`python -m benchmarks.gpu` on a pretended GPU: every phase at its full sizes, up to what a driver would be asked.

Tensors have no values (tests/reference/pretended_gpu.py). Models have fewer layers: each is as the next one.
"""

import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch.autograd import DeviceType
from torch.autograd.profiler_util import EventList, FunctionEvent
from torch.profiler import ProfilerActivity

from benchmarks import llama7b
from benchmarks.gpu import __main__ as command
from benchmarks.gpu import compile as compile_phase
from benchmarks.gpu import engine, kernels, profile, supervise, sweeps, tests
from benchmarks.gpu.bench import Bench
from benchmarks.gpu.found import Found, read_rows
from pycotmech.engine import graphs
from tests.reference.pretended_gpu import Graph, pretended_gpu

pytestmark = pytest.mark.filterwarnings("ignore:Accessing the data pointer of FakeTensor")
ARCHITECTURES = {"A100": (8, 0), "H100": (9, 0), "B200": (10, 0)}


class Profile:
    """In the place of PyTorch's profiler: a launch and a kernel."""

    def __init__(self, activities):
        assert ProfilerActivity.CUDA in activities

    def __enter__(self):
        return self

    def __exit__(self, *_):
        pass

    def key_averages(self):
        kernel = FunctionEvent(0, "extract_kernel", 0, 10, 35, device_type=DeviceType.CUDA, use_device="cuda", stack=[])
        events = EventList([kernel, FunctionEvent(1, "cudaLaunchKernel", 0, 0, 5, stack=[])])
        events._build_tree()
        return events.key_averages()


@pytest.fixture
def phase(monkeypatch, tmp_path):
    """Runs a phase as its process does; returns its rows, and what the device was asked."""
    plain, check = llama7b.shape, Found.check
    monkeypatch.setattr(Found, "check", lambda self, *what: check(self, *what) or True)  # values are nothing that could pass
    monkeypatch.setattr(graphs.Graphs, "_compare", staticmethod(lambda replayed, usual, dtype: None))
    monkeypatch.setattr(profile, "profile", Profile)
    known = tmp_path / "known.json"
    known.write_text('{"ceilings": [{"kind": "figure", "what": "product of matrices, bfloat16", "value": 800.0}]}')

    def run(name, layers=1, capability=(9, 0), device="cuda"):
        monkeypatch.setattr(llama7b, "shape", lambda n=32, **sizes: plain(min(n, layers), **sizes))
        for module in [sys.modules.get(f"benchmarks.gpu.{where}") for where in ("llama7b", "smollm2")]:
            if module is not None:
                monkeypatch.setattr(module, "shape", llama7b.shape)
        rows, before = tmp_path / f"{name}.jsonl", torch.is_grad_enabled()
        words = ["--phase", name, "--rows", str(rows), "--known", str(known), "--device", device]
        graphs.kept.clear()
        with pretended_gpu(capability) as gpu:
            try:
                assert command.main(words) == 0
            finally:
                torch.set_grad_enabled(before)
                graphs.kept.clear()
        found = read_rows(rows)
        assert not [r for r in found if r["kind"] in ("failed", "not run")], found
        return {r["what"]: r["value"] for r in found}, gpu

    return run


@pytest.mark.parametrize("device", ["cuda", "cuda:0"])
def test_ceilings(phase, device):
    found, _ = phase("ceilings", device=device)
    assert found["product of matrices, bfloat16"] > 0 and found["copy, read and written"] > 0


def test_a_device_that_is_not_there(tmp_path):
    rows = tmp_path / "rows"
    words = ["--phase", "ceilings", "--rows", str(rows), "--seconds", "100"]
    with pretended_gpu():
        assert command.main([*words, "--device", "cuda:1"]) == supervise.NO_DEVICE
    assert "finds 1 CUDA devices" in read_rows(rows)[0]["value"]


def test_the_environment_names_card_and_driver(phase, monkeypatch, tmp_path):
    program = tmp_path / "nvidia-smi"
    program.write_text('#!/bin/sh\ncase "$1" in *driver*) echo 580.95;; *) printf "a, b\\n1980 MHz, 700.00 W\\n";; esac\n')
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{command.os.environ['PATH']}")
    found, _ = phase("environment")
    assert found["card"] == "stand-in" and found["compute capability"] == "9.0" and found["driver"] == "580.95"
    assert "700.00 W" in found["clocks and limit of power"] and "|" not in found["clocks and limit of power"]
    assert found["add_rms_norm runs on"] == "Triton"


def test_attention(phase):
    found, gpu = phase("attention")
    assert "T = 16,384, attn_extract, 8 masses, entropy, top 8, against z and lse" in found
    assert "T = 1,024, PyTorch CUDNN_ATTENTION, z alone" in found
    assert gpu.launched["extract_kernel"] > gpu.launched["colsum_kernel"] > 0


def test_a_sweep_is_captured_and_replayed(phase, monkeypatch):
    """Of one layer at the widths of Llama-2 7B, patched at the last position."""
    before = Graph.replays
    monkeypatch.setattr(sweeps, "QUESTIONS", sweeps.QUESTIONS[:1])
    monkeypatch.setattr(sweeps, "HOOKED", 2)
    found, gpu = phase("llama7b")
    assert found["peak device memory in GiB, weights included"] == 3.0 and gpu.launched["prefix_kernel"] > 0
    assert "T = 512, last position: cold prefix, replayed" in found
    assert Graph.replays - before > 10 and not Graph.capturing
    assert "T = 512, last position: FLOP of the plan at the speed of the largest product" in found


def test_a_profile(phase):
    found, _ = phase("profile")
    assert found["second call, prefix cold: kernels on the device"] == 1
    assert found["second call, prefix cold: launches of the host"] == 1
    assert found["second call, prefix cold: extract_kernel"] == "1 times, 0.025 ms"


@pytest.mark.slow
@pytest.mark.parametrize("card", ARCHITECTURES)
@pytest.mark.parametrize("name", ["kernels", "engine", "attention", "llama7b", "smollm2", "summary"])
def test_every_phase_on_every_card(phase, name, card):
    found, gpu = phase(name, layers=3, capability=ARCHITECTURES[card])
    assert len(found) > 5 and gpu.launched.total() > 100
    if name == "engine":
        assert sum("float32, " in what for what in found) == len(engine.HEAD_SITES) + len(engine.RESIDUAL_SITES)
    if name in ("llama7b", "smollm2"):
        whats = [f"{T}: cold prefix, replayed" for T in ("T = 512, last position", "T = 640, 40 positions")]
        assert set(whats) <= set(found)
    if name == "kernels":
        assert any("T = 32,768" in what for what in found)


@pytest.mark.parametrize("part", [*kernels.PARTS[-1:], *(pytest.param(p, marks=pytest.mark.slow) for p in kernels.PARTS[:-1])])
def test_kernels_are_compiled_by_parts(part):
    with pretended_gpu() as gpu:
        compile_phase.part(part, "cuda:0", "0")
    assert gpu.launched.total() > 3


@pytest.mark.slow
@pytest.mark.parametrize("part", compile_phase.SWEEPS)
def test_those_of_sweeps_too(part):
    with pretended_gpu() as gpu:
        compile_phase.part(part, "cuda:0", "0")
    assert gpu.launched["prefix_kernel"] > 0


def test_tests_on_a_gpu_use_several_processes(monkeypatch):
    asked = []

    def run(words, **options):
        asked.append(words)
        return SimpleNamespace(stdout="FAILED tests/a.py::b\n1 failed, 3 passed\n", stderr="", returncode=1)

    monkeypatch.setattr(tests.subprocess, "run", run)
    found = Found()
    tests.run(Bench(torch.device("cuda", 0)), found)
    assert asked[0][-2:] == ["-n", "8"] and [r["kind"] for r in found.rows] == ["fact", "fact", "check"]
    assert not found.rows[-1]["passed"] and found.rows[1]["value"].startswith("FAILED tests/a.py")


@pytest.mark.parametrize("device_answers", [True, False])
def test_a_part_that_fails_costs_the_phase_only_if_the_device_no_longer_answers(monkeypatch, device_answers):
    found, reached = Found(), []

    def broken():
        raise RuntimeError("CUDA error: device-side assert triggered")

    with pretended_gpu():
        if not device_answers:
            monkeypatch.setattr(torch._C, "_cuda_synchronize", broken)
        try:
            with found.part("one"):
                raise ValueError("out of memory")
            reached.append(True)
        except RuntimeError as error:
            assert "device-side" in str(error)
    assert bool(reached) == device_answers and found.rows[0]["value"] == "ValueError: out of memory"


def test_tensors_of_two_devices_do_not_meet_and_recordings_wait_for_nothing():
    """The pretended device itself."""
    with pretended_gpu() as gpu, torch.no_grad():
        x = torch.ones(3, device="cuda")
        assert x.is_cuda and x.device == torch.device("cuda", 0) and float(x.sum()) == 1 and gpu.reads == 1
        with pytest.raises(RuntimeError, match="same device"):
            x + torch.ones(3)
        assert x[torch.tensor([0, 2])].shape == (2,) and x[[0, 2]].shape == (2,) and x.cpu().device.type == "cpu"
        with pytest.raises(ValueError, match="specified index"):
            torch.cuda.set_device(torch.device("cuda"))
        with pytest.raises(RuntimeError, match="capturing"), torch.cuda.graph(torch.cuda.CUDAGraph()):
            x.tolist()
        assert torch.ones(3).tolist() == [1, 1, 1]
    assert not torch.cuda.is_available() and Path(command.__file__).is_file()
