"""The command line as such: help, wrong options, errors in one line."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
import torch

from pycotmech.cli import app as cli
from tests.cli.prompts import CLEAN, CORRUPTED


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
    for command in ("run", "sweep", "attention", "trace", "report", "info"):
        assert command in done.stdout


@pytest.mark.parametrize("command", ["run", "paper", "attention", "sweep"])
def test_threads_beyond_the_cores_are_refused_and_others_left_as_they_were(command, shell, tmp_path):
    text = tmp_path / "text"
    text.write_text("Max is a wumpus .")
    own = {"attention": ("--text", text), "sweep": ("--clean", CLEAN, "--corrupted", CORRUPTED)}.get(command, ())
    out = () if command == "sweep" else ("--out", tmp_path / "out")
    before = torch.get_num_threads()
    code, _, err = shell(command, "--model", "tiny-cot", *own, *out, "--threads", "100000")
    assert code == 2 and f"threads: got 100000; expected at most {os.cpu_count()}" in err
    assert torch.get_num_threads() == before


@pytest.mark.parametrize("command", ["run", "paper", "attention", "report"])
def test_an_empty_name_is_not_the_current_folder(command, shell, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "text").write_text("Max is a wumpus .")
    own = ("--text", "text") if command == "attention" else ()
    arguments = ("",) if command == "report" else ("--model", "tiny-cot", "--out", "", *own)
    code, _, err = shell(command, *arguments)
    assert code == 2 and "the name is empty; expected a folder" in err
    assert [path.name for path in tmp_path.iterdir()] == ["text"]


def test_control_characters_of_names_are_shown_and_not_obeyed(shell, tmp_path):
    code, _, err = shell("report", tmp_path / "\x1b]0;owned\x07")
    assert code == 2 and "\x1b" not in err and "\\x1b]0;owned\\x07" in err
