"""The cache of converted models: whole or absent, whatever happens while it is written."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

from pycotmech.model import converted


def build(folder: Path, text: str = "weights") -> dict:
    (folder / "model.safetensors").write_text(text)
    (folder / "config.json").write_text("{}")
    return {"made": text}


def refuse(folder: Path) -> dict:
    raise AssertionError("built again without need")


@pytest.fixture
def entry(tmp_path, monkeypatch) -> Path:
    monkeypatch.setenv("PYCOTMECH_CACHE", str(tmp_path / "cache"))
    source = tmp_path / "some model.gguf"
    source.write_bytes(b"GGUF" + bytes(100))
    return converted.entry_for(source)


def leftovers(entry: Path) -> list[str]:
    return [path.name for path in entry.parent.iterdir() if path != entry]


def test_where_the_cache_is(monkeypatch):
    monkeypatch.delenv("PYCOTMECH_CACHE", raising=False)
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setenv("HOME", "/home/someone")
    assert converted.cache_root() == Path("/home/someone/.cache/pycotmech")
    monkeypatch.setenv("XDG_CACHE_HOME", "/var/cache/someone")
    assert converted.cache_root() == Path("/var/cache/someone/pycotmech")
    monkeypatch.setenv("PYCOTMECH_CACHE", "/models")
    assert converted.cache_root() == Path("/models")


def test_built_once_then_read(entry):
    assert entry.parent == converted.cache_root() / "models" and entry.name.startswith("some_model-")
    assert converted.read_entry(entry) is None
    assert converted.get_or_build(entry, build) == {"made": "weights"}
    assert converted.get_or_build(entry, refuse) == {"made": "weights"}
    assert leftovers(entry) == []


@pytest.mark.parametrize("damage", ["shorter", "flipped", "lost", "no manifest", "manifest cut"])
def test_a_damaged_entry_is_built_again(entry, damage):
    converted.get_or_build(entry, build)
    weights, manifest = entry / "model.safetensors", entry / converted.MANIFEST
    if damage == "shorter":
        weights.write_text("weight")
    elif damage == "flipped":
        weights.write_text("wEights")
    elif damage == "lost":
        weights.unlink()
    elif damage == "no manifest":
        manifest.unlink()
    else:
        manifest.write_text(manifest.read_text()[:30])
    assert converted.read_entry(entry) is None
    assert converted.get_or_build(entry, lambda folder: build(folder, "new")) == {"made": "new"}
    assert weights.read_text() == "new"
    assert leftovers(entry) == []


def test_a_build_that_fails_leaves_nothing(entry):
    def fail(folder: Path) -> dict:
        build(folder)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        converted.get_or_build(entry, fail)
    assert not entry.exists() and leftovers(entry) == []


def test_what_a_killed_process_left_is_removed_after_a_day(entry):
    entry.parent.mkdir(parents=True)
    old, new = entry.parent / ".build-old", entry.parent / ".build-new"
    old.mkdir()
    new.mkdir()
    os.utime(old, (time.time() - 2 * 86400,) * 2)
    converted.get_or_build(entry, build)
    assert leftovers(entry) == [".build-new"]


def test_the_entry_moves_with_its_source(tmp_path):
    source = tmp_path / "a.gguf"
    source.write_bytes(b"x" * 50)
    first = converted.entry_for(source)
    assert converted.entry_for(source) == first
    os.utime(source, (1, 1))
    second = converted.entry_for(source)
    source.write_bytes(b"y" + b"x" * 49)
    os.utime(source, (1, 1))
    third = converted.entry_for(source)
    assert len({first, second, third}) == 3


WORKER = """
import importlib.util, pathlib, sys, time
spec = importlib.util.spec_from_file_location("cache", sys.argv[1])
cache = importlib.util.module_from_spec(spec)
spec.loader.exec_module(cache)
entry, ready, other = map(pathlib.Path, sys.argv[2:5])
def build(folder):
    (folder / "model.safetensors").write_text("w" * 100_000)
    ready.touch()
    while not other.exists():  # both are in the middle of their build before either ends it
        time.sleep(0.001)
    return {"made": "whole"}
print(cache.get_or_build(entry, build)["made"])
"""


@pytest.mark.parametrize("damaged", [False, True])
def test_two_processes_build_the_same_entry_at_once(entry, tmp_path, damaged):
    if damaged:
        converted.get_or_build(entry, build)
        (entry / "model.safetensors").write_text("")
    flags = [tmp_path / "a", tmp_path / "b"]
    runs = [
        subprocess.Popen(
            [sys.executable, "-c", WORKER, converted.__file__, entry, mine, other], stdout=subprocess.PIPE, text=True
        )
        for mine, other in (flags, flags[::-1])
    ]
    assert [run.communicate(timeout=60)[0].strip() for run in runs] == ["whole", "whole"]
    assert converted.read_entry(entry) == {"made": "whole"}
    assert leftovers(entry) == []


def test_a_cache_that_cannot_be_written_says_what_to_set(entry, tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    monkeypatch.setenv("PYCOTMECH_CACHE", str(tmp_path / "file"))
    with pytest.raises(OSError, match="cannot be written; set PYCOTMECH_CACHE"):
        converted.get_or_build(converted.cache_root() / "models" / "m-1", build)


def test_a_full_disk_is_seen_before_the_work(entry, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(10, 9, 10**9))
    with pytest.raises(OSError, match=r"28\.0 GB needed, 1\.0 GB free"):
        converted.get_or_build(entry, refuse, room=28 * 10**9)
    assert leftovers(entry) == []


def parts_of(tmp_path, *texts: bytes) -> list[Path]:
    paths = [tmp_path / f"part{i}" for i in range(len(texts))]
    for path, text in zip(paths, texts, strict=True):
        path.write_bytes(text)
    return paths


def test_parts_are_joined_once_and_checked(tmp_path, monkeypatch):
    monkeypatch.setenv("PYCOTMECH_CACHE", str(tmp_path / "cache"))
    parts, said = parts_of(tmp_path, b"GG", b"UF", b"rest"), []
    digest = hashlib.sha256(b"GGUFrest").hexdigest()
    for _ in range(2):
        path = converted.joined("m.gguf", parts, sha256=digest, first=lambda: said.append(1))
        assert path.read_bytes() == b"GGUFrest" and path.parent == tmp_path / "cache" / "files"
    assert said == [1]
    path.write_bytes(b"GG")  # torn: joined again
    assert converted.joined("m.gguf", parts, sha256=digest, first=lambda: None).read_bytes() == b"GGUFrest"


def test_parts_of_another_file_leave_nothing(tmp_path, monkeypatch):
    monkeypatch.setenv("PYCOTMECH_CACHE", str(tmp_path / "cache"))
    with pytest.raises(ValueError, match=r"the parts of m\.gguf are not the file that they should be"):
        converted.joined("m.gguf", parts_of(tmp_path, b"GG", b"XX"), sha256="0" * 64, first=lambda: None)
    assert list((tmp_path / "cache" / "files").iterdir()) == []
