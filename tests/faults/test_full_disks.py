"""Full disks: what is finished is kept, the message names the folder, and the same command goes on when there is room."""

from __future__ import annotations

import os
import resource
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from pycotmech.cli import app
from tests.faults.test_stops import COMMAND, goes_on
from tests.reference.forked import ended, start

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="needs a POSIX system")


def full(out: Path, errors: Path, limit: int | None = None) -> bool:
    """A run in a child; whether the disk was full, which it must say."""

    def work() -> None:
        if limit is not None:
            resource.setrlimit(resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY))
        sys.argv = ["pycotmech", *COMMAND, "--out", str(out)]
        app.main()

    errors.touch()  # before the limit
    code = ended(start(work, errors), 300)
    assert code in (0, 2), errors.read_text("utf-8")
    if code == 2:
        line = errors.read_text("utf-8").splitlines()[-1] if limit is None else ""
        assert limit is not None or f"the disk of {out} is full" in line or "No space left" in line, line
    return code == 2


@pytest.mark.slow
def test_no_file_may_grow(run_folder, tmp_path, tally):
    """Limits from nothing at all to the size of the largest file."""
    kind, sizes = (
        "disk full: a limit on the size of files",
        sorted({p.stat().st_size for p in run_folder.rglob("*") if p.is_file()}),
    )
    limits = [1, *sizes[:: max(1, len(sizes) // 12)]]
    n = 0
    for limit in limits:
        out = tmp_path / str(limit)
        if full(out, tmp_path / "errors", limit):
            goes_on(out, run_folder, tally, kind)
            n += 1
    assert n >= 10


@pytest.mark.slow
def test_a_small_file_system(run_folder, tmp_path, tally):
    """A tmpfs of a few sizes, which is made larger for the second try. Only root can mount one."""
    place = tmp_path / "small"
    place.mkdir()
    if os.geteuid() != 0 or subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "pycotmech", place]).returncode:
        pytest.skip("a file system can be mounted by root only")
    subprocess.run(["umount", place], check=True)
    n = 0
    for kilobytes in (4, 16, 32, 48, 64, 80, 96, 128, 160, 192, 256, 320, 384):
        subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={kilobytes}k", "pycotmech", place], check=True)
        try:
            if full(place / "out", tmp_path / "errors"):
                subprocess.run(["mount", "-o", "remount,size=64m", place], check=True)
                goes_on(place / "out", run_folder, tally, "disk full: a small tmpfs")
                n += 1
            shutil.rmtree(place / "out", ignore_errors=True)
        finally:
            subprocess.run(["umount", "-l", place], check=True)
    assert n >= 5
