"""A sweep stays within its budget or names the least that it needs; limits of control groups are seen; where memory runs out
all the same, work goes on in halves or says what to set."""

import re

import numpy as np
import pytest
import torch

import pycotmech as pcm
from pycotmech.engine import memory, planner
from pycotmech.engine.staircase import Staircase
from tests.engine.test_planner import peak_bytes
from tests.reference.tiny import tiny_llama


@pytest.fixture(scope="module")
def model():
    return pcm.Model.from_pretrained("tiny-cot")


def prompts(model, length, first=0):
    clean = torch.randint(model.cfg.d_vocab, (length,), generator=torch.Generator().manual_seed(0))
    corrupted = clean.clone()
    corrupted[first] = (corrupted[first] + 1) % model.cfg.d_vocab
    return clean, corrupted


CALLS = {
    "heads": lambda m, a, b, gb: pcm.patch_heads(m, a, b, heads=[(0, 1), (2, 3)], memory_gb=gb),
    "at the end": lambda m, a, b, gb: pcm.patch_heads(m, a, b, positions=[-1], memory_gb=gb),
    "k": lambda m, a, b, gb: pcm.patch_heads(m, a, b, site="k", positions=[-1], memory_gb=gb),
    "pattern": lambda m, a, b, gb: pcm.patch_heads(m, a, b, site="pattern", positions=[-1], memory_gb=gb),
    "residual": lambda m, a, b, gb: pcm.patch_residual(m, a, b, positions=[-3, -2], memory_gb=gb),
    "list": lambda m, a, b, gb: pcm.patch_heads(m, [a, b[:400]], [b, a[:400]], positions=[-1, -2], memory_gb=gb),
    "sweep": lambda m, a, b, gb: pcm.sweep(m, a, [pcm.Variant((pcm.Edit("z", 1, 0, [0], 0.0),))], memory_gb=gb),
    "paths": lambda m, a, b, gb: pcm.path_patch(m, a, b, receivers=[(2, 1), (3, 0)], positions=[-2, -1], memory_gb=gb),
    "paths to logits": lambda m, a, b, gb: pcm.path_patch(m, a, b, memory_gb=gb),
}


@pytest.mark.parametrize("name", CALLS)
def test_a_sweep_is_within_its_budget_or_names_the_least(model, name):
    """Two prompts that share nothing: the runs of the prompts are the largest part."""
    pair = prompts(model, 1000)
    for memory_gb in (0.046, 0.06, 0.2) if name == "heads" else (0.046, 0.2):
        model.prefixes.clear()
        try:
            result, peak = peak_bytes(lambda gb=memory_gb: CALLS[name](model, *pair, gb))
        except ValueError as error:
            least = float(re.search(r"rows needs (\S+), ", str(error)).group(1))
            assert memory_gb < least < 0.2
            result, peak = peak_bytes(lambda gb=least: CALLS[name](model, *pair, gb))
        assert peak <= result.plan.bytes_in_flight <= result.plan.budget_bytes, (peak / 2**30, result.plan)


def tree(root, files):
    for path, text in files.items():
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_text(text)


def test_the_limit_of_a_control_group_is_seen(tmp_path):
    proc, root = tmp_path / "cgroup", tmp_path / "sys"
    proc.write_text("0::/user.slice/job\n")
    assert memory.cgroup_free(proc, root) is None
    tree(root, {"user.slice/job/memory.max": "max\n", "user.slice/job/memory.current": "5000\n"})
    assert memory.cgroup_free(proc, root) is None
    tree(root, {"user.slice/memory.max": "9000\n", "user.slice/memory.current": "6000\n"})  # of the level above
    assert memory.cgroup_free(proc, root) == 3000
    tree(root, {"user.slice/memory.stat": "anon 1000\ninactive_file 500\n"})
    assert memory.cgroup_free(proc, root) == 3500
    tree(root, {"user.slice/job/memory.max": "4000\n"})
    assert memory.cgroup_free(proc, root) == 0
    inside = tmp_path / "inside"  # a container sees its own group as the root
    tree(inside, {"memory.max": "8000\n", "memory.current": "1000\n"})
    assert memory.cgroup_free(proc, inside) == 7000


def test_the_limit_of_a_control_group_of_version_1_is_seen(tmp_path):
    proc, root = tmp_path / "cgroup", tmp_path / "sys"
    proc.write_text("9:name=systemd:/\n4:cpu,memory:/job\n0::/\n")
    tree(root, {"memory/job/memory.limit_in_bytes": "9000\n", "memory/job/memory.usage_in_bytes": "6000\n"})
    tree(root, {"memory/job/memory.stat": "inactive_file 10\ntotal_inactive_file 500\n"})
    assert memory.cgroup_free(proc, root) == 3500
    tree(root, {"memory/memory.limit_in_bytes": str(2**63 - 4096), "memory/memory.usage_in_bytes": "6000\n"})
    assert memory.cgroup_free(proc, root) == 3500


def test_the_default_budget_is_within_a_control_group(model, monkeypatch):
    monkeypatch.setattr(memory, "cgroup_free", lambda: 2**28)
    assert pcm.plan_heads(model, *prompts(model, 100)).budget_bytes == 2**27


def run_out(monkeypatch, rows):
    """From so many rows on, a pass runs out of memory."""
    plain = Staircase.run

    def run(self):
        if self.rows.begins[-1] > rows:
            raise RuntimeError("[enforce fail at alloc_cpu.cpp:127] DefaultCPUAllocator: can't allocate memory: you tried ...")
        return plain(self)

    monkeypatch.setattr(Staircase, "run", run)


def test_a_pass_that_runs_out_of_memory_goes_on_in_halves(monkeypatch):
    model = pcm.Model(tiny_llama(n_layers=3, n_heads=4))
    pair = prompts(model, 12, first=6)
    whole = pcm.patch_heads(model, *pair, metric="prob", answer=3)
    run_out(monkeypatch, 30)
    with pytest.warns(UserWarning, match=r"memory ran out while \d+ variants? .* memory_gb= sets .*; continuing with half"):
        halves = pcm.patch_heads(model, *pair, metric="prob", answer=3)
    assert np.abs(halves.effect - whole.effect).max() < 1e-5 * np.abs(whole.effect).max()
    run_out(monkeypatch, 5)
    with pytest.warns(UserWarning), pytest.raises(MemoryError, match=r"while 1 variant .*; memory_gb= sets how much"):
        pcm.patch_heads(model, *pair, metric="prob", answer=3)


def test_prompts_that_run_out_of_memory_say_what_to_set(monkeypatch):
    model = pcm.Model(tiny_llama(n_layers=3, n_heads=4))

    def no_memory(*args):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")

    monkeypatch.setattr(model.family, "qkv", no_memory)
    with pytest.raises(MemoryError, match=r"memory ran out while 1 pair of prompts ran .*; memory_gb= sets how much"):
        pcm.patch_heads(model, *prompts(model, 12))


def test_other_errors_stay_as_they_are(monkeypatch):
    model = pcm.Model(tiny_llama(n_layers=3, n_heads=4))
    monkeypatch.setattr(Staircase, "run", lambda self: torch.ones(2) @ torch.ones(3))
    with pytest.raises(RuntimeError, match="inconsistent tensor size"):
        pcm.patch_heads(model, *prompts(model, 12))


def test_what_pytorch_keeps_of_a_gpus_memory_is_free(monkeypatch):
    gpu = torch.device("cuda", 1)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (10 * 2**30, 80 * 2**30))
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda device: 6 * 2**30)
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda device: 5 * 2**30)
    assert memory.free_bytes(gpu) == 11 * 2**30


def test_the_budget_of_several_devices_is_that_of_the_fullest(monkeypatch):
    free = {torch.device("cuda", 0): 8 * 2**30, torch.device("cuda", 1): 2 * 2**30}
    monkeypatch.setattr(planner, "free_bytes", free.__getitem__)
    assert planner.memory_budget(None, *free) == 2**30
    assert planner.memory_budget(3, *free) == 3 * 2**30
