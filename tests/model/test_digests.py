"""Digests of weights: of every byte, kept for files whose path, size and time are those of before, and never for others."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import pytest
import torch

import pycotmech as pcm
from pycotmech.model import digests
from pycotmech.model.digests import weights_digest
from tests.reference.tiny import tiny_llama


@pytest.fixture
def folder(tmp_path, monkeypatch) -> Path:
    """A model on the disk, and an empty cache."""
    monkeypatch.setenv("PYCOTMECH_CACHE", str(tmp_path / "cache"))
    tiny_llama(seed=0).save_pretrained(tmp_path / "model")
    return tmp_path / "model"


@pytest.fixture
def read(monkeypatch) -> list[int]:
    """How many times every weight was read."""
    honest, calls = digests._digest, []
    monkeypatch.setattr(digests, "_digest", lambda weights: calls.append(len(weights)) or honest(weights))
    return calls


def digest_of(folder: Path, *, verify: bool = False, **more) -> str:
    model = pcm.Model.from_pretrained(folder, check=False, **more)
    return weights_digest(model.hf, model.weight_files, verify=verify)


def test_files_are_read_once(folder, read):
    first = digest_of(folder)
    assert digest_of(folder) == first and len(read) == 1
    model = pcm.Model.from_pretrained(folder, check=False)
    assert weights_digest(model.hf) == first and len(read) == 2  # the same of a model in memory, without its files


def test_another_dtype_time_or_place_is_read_again(folder, read, tmp_path):
    first = digest_of(folder)
    assert digest_of(folder, dtype="bfloat16") != first and len(read) == 2
    os.utime(folder / "model.safetensors", ns=(1, 1))
    assert digest_of(folder) == first and len(read) == 3
    assert digest_of(shutil.copytree(folder, tmp_path / "copy")) == first and len(read) == 4


def test_verify_sees_bytes_changed_under_the_same_size_and_time(folder, read):
    first, file = digest_of(folder), folder / "model.safetensors"
    stat, data = file.stat(), bytearray(file.read_bytes())
    data[-3] ^= 1
    file.write_bytes(data)
    os.utime(file, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    assert digest_of(folder) == first  # what sizes and times cannot show
    assert digest_of(folder, verify=True) != first and len(read) == 2


def test_an_edit_in_memory_is_seen(folder, read):
    model = pcm.Model.from_pretrained(folder, check=False)
    first = weights_digest(model.hf, model.weight_files)
    assert weights_digest(model.hf, model.weight_files) == first and len(read) == 1
    with torch.no_grad():
        model.hf.model.layers[-1].mlp.down_proj.weight.view(-1)[-1] += 1
    assert weights_digest(model.hf, model.weight_files) != first and len(read) == 2
    assert digest_of(folder) == first and len(read) == 2  # the files are what they were


@pytest.mark.parametrize("content", ["", "{}", "[1]", '{"weights": 3}', '{"weights": "abc"}'])
def test_a_damaged_cache_is_read_past(folder, read, content):
    first = digest_of(folder)
    (entry,) = (digests.cache_root() / "digests").iterdir()
    entry.write_text(content)
    assert digest_of(folder) == first and len(read) == 2
    assert json.loads(entry.read_text())["weights"] == first


def test_a_cache_that_cannot_be_written_costs_time_only(folder, read, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("PYCOTMECH_CACHE", str(tmp_path / "file" / "below"))
    assert digest_of(folder) == digest_of(folder) and len(read) == 2


def test_a_merged_adapter_is_read_each_time():
    model = pcm.Model.from_pretrained("tiny-cot", check=False)
    assert model.weight_files is not None and model.weight_files.files[0].suffix == ".safetensors"
    assert pcm.Model(tiny_llama(seed=0), None).weight_files is None


def test_weights_that_are_not_in_memory_need_their_files(folder):
    with torch.device("meta"):
        blank = type(tiny_llama(seed=0))(tiny_llama(seed=0).config)
    with pytest.raises(ValueError, match="weights are not in memory, and it was not loaded from files"):
        weights_digest(blank)
    files = digests.WeightFiles((folder / "model.safetensors",), "torch.float32", digests.fingerprint(blank.state_dict()))
    first = weights_digest(blank, files)
    data = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    assert weights_digest(blank, files, verify=True) != first
