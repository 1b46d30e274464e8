"""The shell in this process, and folders for its tests."""

from __future__ import annotations

import io
from contextlib import redirect_stdout
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
    folder, screen = tmp_path_factory.mktemp("finished"), io.StringIO()
    with pytest.MonkeyPatch.context() as patch, redirect_stdout(screen):
        code = exit_code(("run", *SMALL, "--out", folder), patch)
    assert code == 0
    (folder / "screen.txt").write_text(screen.getvalue(), "utf-8")
    return folder
