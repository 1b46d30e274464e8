"""The main job from Python: what a stop, a second start, other weights and damage lead to."""

from __future__ import annotations

import json
import os
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

import pycotmech as pcm
from pycotmech.runs import Settings, SweepState, SweepStore, experiment, open_folder, read
from pycotmech.runs.store import STORE
from tests.reference.forked import ended, start

SETTINGS = Settings(model="tiny-cot", examples=2, shots=0, threads=1)


@pytest.fixture(scope="module")
def finished(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("experiment") / "out"
    outcome = experiment.run(SETTINGS, folder)
    assert outcome.done >= 15 and not outcome.failures
    return folder


@pytest.mark.parametrize("stop", [1, 2, 5])
def test_a_stop_inside_an_example_changes_no_bit(finished, tmp_path, monkeypatch, stop):
    """Steps that share a pass are kept together, and what is left is done in the same groups as without the stop."""
    honest, finishes = SweepStore._put, []

    def write(self, name, example, row):
        if name == "raw":
            finishes.append(example)
        if len(finishes) == stop and name == "effect":
            raise KeyboardInterrupt
        honest(self, name, example, row)

    monkeypatch.setattr(SweepStore, "_put", write)
    with pytest.raises(KeyboardInterrupt):
        experiment.run(SETTINGS, tmp_path / "out")
    monkeypatch.setattr(SweepStore, "_put", honest)
    assert (read(tmp_path / "out")["state"] == SweepState.PENDING).any()
    experiment.run(SETTINGS, tmp_path / "out")
    first, second = read(finished), read(tmp_path / "out")
    for name in ("raw", "values", "effect", "noise_floor", "clean_metric", "corrupted_metric", "right", "state"):
        np.testing.assert_array_equal(first[name], second[name])


def test_damage_is_repaired_to_the_last_bit(finished, tmp_path):
    out = shutil.copytree(finished, tmp_path / "out")
    for name, example in (("raw", 0), ("right", 1), ("state", 1)):
        (chunk,) = (path for path in (out / STORE / name).glob(f"c.{example}.*"))
        chunk.write_bytes(chunk.read_bytes()[:-7])
    (out / "examples.jsonl").unlink()
    outcome = experiment.run(SETTINGS, out)
    assert outcome.done > 0 and not outcome.failures
    for name in ("raw", "values", "effect", "right", "state"):
        np.testing.assert_array_equal(read(finished)[name], read(out)[name])
    assert (out / "examples.jsonl").read_text() == (finished / "examples.jsonl").read_text()


def test_a_weight_or_a_constant_changed_under_the_same_name_is_refused(finished, monkeypatch):
    honest = pcm.Model.from_pretrained

    def changed_weight(*given, **more):
        model = honest(*given, **more)
        with torch.no_grad():
            model.hf.model.layers[-1].mlp.down_proj.weight.view(-1)[-1] += 1e-3
        return model

    def changed_rope(*given, **more):
        model = honest(*given, **more)
        model.hf.config.rope_parameters = {**model.hf.config.rope_parameters, "rope_theta": 500.0}
        return model

    before = read(finished)
    for loaded, name in ((changed_weight, "weights"), (changed_rope, "config")):
        monkeypatch.setattr(pcm.Model, "from_pretrained", loaded)
        with pytest.raises(ValueError, match=f"contains results of other settings: {name} was sha256:"):
            experiment.run(SETTINGS, finished)
    assert read(finished).identical(before)


def test_nothing_is_written_without_the_lock(tmp_path):
    with open_folder(tmp_path), pytest.raises(BlockingIOError, match="another process is writing"):
        experiment.run(SETTINGS, tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {".lock"}


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs a POSIX system")
def test_starts_at_once_with_two_seeds_leave_one_seed_only(tmp_path):
    out = tmp_path / "out"

    def run(seed: int) -> None:
        try:
            experiment.run(replace(SETTINGS, steps=(5,), seed=seed), out)
        except (BlockingIOError, ValueError):
            raise SystemExit(7) from None

    pids = [start(lambda seed=i % 2: run(seed), tmp_path / f"errors{i}") for i in range(4)]
    codes = {ended(pid, 300) for pid in pids}
    assert codes in ({0}, {0, 7}), [path.read_text() for path in tmp_path.glob("errors*")]
    seed = read(out).attrs["identity"]["seed"]
    model = pcm.Model.from_pretrained("tiny-cot")
    examples = pcm.cot.make_examples(2, tokenizer=model.tokenizer, bos=True, shots=0, seed=seed)
    lines = [json.loads(line) for line in (out / "examples.jsonl").read_text("utf-8").splitlines()]
    assert [line["question"] for line in lines] == [example.question for example in examples]


def test_threads_are_left_as_they_were(tmp_path):
    before = torch.get_num_threads()
    experiment.run(replace(SETTINGS, examples=1, steps=(5,)), tmp_path)
    assert torch.get_num_threads() == before
