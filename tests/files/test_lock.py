"""The lock of a results folder, with flock and with the locked bytes of Windows."""

from __future__ import annotations

import os
import subprocess
import sys
import types

import pytest

from pycotmech.files import lock


class Bytes:
    """Windows' locks of bytes (`msvcrt.locking`) for one process: by descriptor, so that two descriptors exclude each other."""

    LK_NBLCK = 2

    def __init__(self) -> None:
        self.held: dict[tuple[int, int], int] = {}

    def locking(self, descriptor: int, mode: int, count: int) -> None:
        stat = os.fstat(descriptor)
        holder = self.held.get((stat.st_dev, stat.st_ino))
        if holder is not None and holder != descriptor and self._is_open(holder):
            raise PermissionError(13, "Permission denied")
        self.held[stat.st_dev, stat.st_ino] = descriptor

    @staticmethod
    def _is_open(descriptor: int) -> bool:
        try:
            os.fstat(descriptor)
        except OSError:
            return False
        return True


@pytest.fixture(params=["flock", "bytes"])
def system(request, monkeypatch):
    if request.param == "bytes":
        monkeypatch.setattr(lock, "fcntl", None)
        windows = Bytes()
        monkeypatch.setitem(sys.modules, "msvcrt", types.SimpleNamespace(locking=windows.locking, LK_NBLCK=windows.LK_NBLCK))


def test_one_holds_it_until_the_descriptor_is_closed(system, tmp_path):
    path = tmp_path / ".lock"
    assert not lock.is_locked(path)
    held = lock.take(path)
    assert lock.is_locked(path)
    with pytest.raises(BlockingIOError, match="locked by another process"):
        lock.take(path)
    os.close(held)
    assert not lock.is_locked(path)
    os.close(lock.take(path))


def test_a_system_without_locks_locks_nothing(monkeypatch, tmp_path):
    monkeypatch.setattr(lock, "fcntl", None)
    first, second = lock.take(tmp_path / ".lock"), lock.take(tmp_path / ".lock")
    assert not lock.is_locked(tmp_path / ".lock")
    os.close(first)
    os.close(second)


def test_a_process_that_ends_gives_it_back(tmp_path):
    path = tmp_path / ".lock"
    script = "import sys; from pathlib import Path; from pycotmech.files import lock; lock.take(Path(sys.argv[1])); "
    script += "print('held', flush=True); input()"
    arguments = [sys.executable, "-c", script, str(path)]
    with subprocess.Popen(arguments, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout is not None and holder.stdout.readline() == "held\n"
        assert lock.is_locked(path)
        holder.kill()
        holder.wait()
    assert not lock.is_locked(path)
