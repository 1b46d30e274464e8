"""The command line as such: help, wrong options, errors in one line."""

from __future__ import annotations

import subprocess
import sys

import pytest

from pycotmech.cli import app as cli


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("run",), "Missing option '--model'"),
        (("run", "--model", "tiny-cot", "--out", "x", "--exmples", "3"), "No such option"),
        (("run", "--model", "tiny-cot", "--out", "x", "--examples", "many"), "--examples"),
        (("fly",), "No such command 'fly'"),
    ],
)
def test_a_wrong_command_line_is_one_line(shell, arguments, message):
    code, out, err = shell(*arguments)
    assert code == 2 and out == "" and message in err and len(err.splitlines()) == 1


def test_an_unknown_model_and_debug(shell, tmp_path, monkeypatch):
    code, _, err = shell("run", "--model", "./no-such-model", "--out", tmp_path / "out")
    assert code == 2 and "no-such-model" in err and "Traceback" not in err
    monkeypatch.setattr(sys, "argv", ["pycotmech", "run", "--model", "./no-such-model", "--out", str(tmp_path), "--debug"])
    with pytest.raises(FileNotFoundError):
        cli.main()


def test_help_loads_no_pytorch():
    script = (
        "import sys; sys.argv = ['pycotmech', '--help']\nfrom pycotmech.cli import main\ntry: main()\nexcept SystemExit: pass\n"
    )
    script += "sys.exit('torch' in sys.modules or 'xarray' in sys.modules or 'numpy' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    for command in ("run", "sweep", "attention", "report", "info"):
        assert command in done.stdout
