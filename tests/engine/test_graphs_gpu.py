"""Graphs on a CUDA device against the same passes launched kernel by kernel: `pytest tests/patching -m gpu`."""

import time

import numpy as np
import pytest
import torch

import pycotmech as pcm
from pycotmech.engine import graphs
from pycotmech.engine.staircase import Staircase
from tests.engine.test_graphs import CASES, sweeps
from tests.reference.tiny import tiny_llama

pytestmark = pytest.mark.gpu


def on_gpu(dtype):
    return pcm.Model(tiny_llama(n_heads=4, n_key_value_heads=2, n_layers=3, dtype=dtype).cuda())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("case", CASES)
def test_replays_are_what_is_run_kernel_by_kernel(case, dtype, monkeypatch):
    monkeypatch.setenv("PYCOTMECH_CUDA_GRAPHS", "1")
    model = on_gpu(dtype)
    found = graphs.kept.of(model.family)
    assert found is not None
    found.limit = 0  # the same passes, prompts padded as for a replay, launched kernel by kernel
    expected = [sweeps(CASES[case], seed, model) for seed in range(4)]
    found.limit = None
    for seed in range(4):
        assert np.array_equal(sweeps(CASES[case], seed, model), expected[seed], equal_nan=True)
    assert found.captures["variants"] == 1 and found.replays["variants"] == 3 and found.nbytes > 0
    assert found.captures["prompts"] >= 1 and found.replays["prompts"] >= 3
    found.clear()
    assert found.nbytes == 0


@pytest.mark.parametrize("case", CASES)
def test_the_cpu_agrees(case):
    """To what float32 leaves: the same sweep on both devices."""
    cpu = pcm.Model(tiny_llama(n_heads=4, n_key_value_heads=2, n_layers=3))
    a, b = sweeps(CASES[case], 0, cpu)[:-1], sweeps(CASES[case], 0, on_gpu(torch.float32))[:-1]
    assert np.nanmax(np.abs(a - b)) <= 1e-3 * np.nanmax(np.abs(a))


@pytest.mark.parametrize("case", CASES)
def test_passes_wait_for_nothing(case, monkeypatch):
    """PyTorch's own watch: an operation that would wait for the device is an error while a pass runs."""
    monkeypatch.setenv("PYCOTMECH_CUDA_GRAPHS", "0")
    model, plain = on_gpu(torch.bfloat16), Staircase.run
    sweeps(CASES[case], 0, model)

    def run(self):
        torch.cuda.set_sync_debug_mode("error")
        try:
            return plain(self)
        finally:
            torch.cuda.set_sync_debug_mode("default")

    monkeypatch.setattr(Staircase, "run", run)
    sweeps(CASES[case], 0, model)


def test_a_replay_takes_less_time(monkeypatch):
    """With 20 rows in a dozen layers the launches are what takes the time."""
    hf = tiny_llama(n_heads=4, n_key_value_heads=2, n_layers=12, dtype=torch.bfloat16).cuda()
    model, took = pcm.Model(hf), {}
    for setting in ("0", "1"):
        monkeypatch.setenv("PYCOTMECH_CUDA_GRAPHS", setting)
        times = []
        for seed in range(8):
            torch.cuda.synchronize()
            start = time.perf_counter()
            sweeps(CASES["z, where it is read"], seed, model)
            times.append(time.perf_counter() - start)
        took[setting] = sorted(times[3:])[2]
    assert took["1"] < took["0"], took
