"""The shell in this process, and folders for its tests."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.cli.prompts import SMALL
from tests.reference.shell import exit_code


@pytest.fixture
def shell(monkeypatch, capsys):
    """Runs the console script in this process: shell("run", ...) -> (exit code, output, errors)."""

    def call(*arguments: object) -> tuple[int, str, str]:
        code = exit_code(arguments, monkeypatch)
        out, err = capsys.readouterr()
        return code, out, err

    return call


@pytest.fixture(scope="session")
def finished(tmp_path_factory) -> Path:
    """A finished run, for tests that only look at it."""
    folder = tmp_path_factory.mktemp("finished")
    arguments = [sys.executable, "-m", "pycotmech", "run", *SMALL, "--out", str(folder)]
    done = subprocess.run(arguments, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    (folder / "screen.txt").write_text(done.stdout, "utf-8")
    return folder
