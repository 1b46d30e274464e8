"""The command line as such: help, wrong options, errors in one line."""

from __future__ import annotations

import os
import shlex
import signal
import subprocess
import sys
import warnings
from typing import Any

import pytest
import torch
import typer

from pycotmech.cli import app as cli
from pycotmech.cli import options as o
from pycotmech.cli.app import EXAMPLES, GROUPS
from pycotmech.model.aliases import ALIASES
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


def test_a_warning_is_one_line_without_a_place_in_the_code(shell, monkeypatch):
    seen = {}

    def warns(**options):
        seen["warning"] = warnings.formatwarning(UserWarning("memory is\nshort \x1b"), UserWarning, "a.py", 3)

    before = warnings.formatwarning
    monkeypatch.setattr(cli, "app", warns)
    assert shell("info")[0] == 0 and warnings.formatwarning is before
    assert seen["warning"] == "pycotmech: warning: memory is short \\x1b\n"
    assert shell("info", "--debug")[0] == 0 and "a.py:3" in seen["warning"]


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
    for command in EXAMPLES:
        assert command in done.stdout
    assert all(title in done.stdout for title in GROUPS) and "Exit codes: 0 done; 1 part of" in done.stdout


class InterruptsAgain:
    """`signal`, but each time that a handler is restored Ctrl-C comes once more."""

    def __getattr__(self, name: str) -> Any:
        return getattr(signal, name)

    def signal(self, number: int, handler: Any) -> Any:
        before = signal.signal(number, handler)
        if number == signal.SIGTERM and handler is not cli._stop:
            signal.raise_signal(signal.SIGINT)
        return before


def test_ctrl_c_twice_ends_with_the_code_of_once(monkeypatch, interruptible):
    """Also if the second comes when the command has ended, and Python has yet to."""

    def interrupted(**options):
        raise KeyboardInterrupt

    monkeypatch.setattr(cli, "app", interrupted)
    monkeypatch.setattr(cli, "signal", InterruptsAgain())
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(SystemExit) as stopped:
        cli.main()
    assert stopped.value.code == 130 and signal.getsignal(signal.SIGTERM) is before
    assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN


def commands() -> dict[str, Any]:
    return typer.main.get_command(cli.app).commands  # type: ignore[attr-defined]


@pytest.mark.parametrize("name", sorted(EXAMPLES))
def test_help_has_examples_that_the_command_takes(name, shell, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    code, out, _ = shell(name, "--help")
    for line in EXAMPLES[name]:
        assert code == 0 and line in out
        program, command, *arguments = shlex.split(line.partition(" >")[0])
        assert (program, command) == ("pycotmech", name)
        commands()[name].make_context(name, arguments)  # reads the arguments, runs nothing
    codes = out.partition("Exit codes: ")[2]
    assert codes.startswith("0 ") and "; 2 bad input" in codes and "; 130 stopped" in codes


@pytest.mark.parametrize("name", sorted(EXAMPLES))
def test_every_option_is_in_a_group_and_is_described(name):
    """Options without a group are those that say what a command works on; there are few."""
    options = [p for p in commands()[name].params if p.param_type_name == "option"]
    assert all(
        p.help and p.help[0].isupper() and p.help.rstrip().endswith((".", "?", "}.")) for p in options if p.name != "help"
    )
    ungrouped = [p.name for p in options if getattr(p, "rich_help_panel", None) is None]
    assert len(ungrouped) <= 8, ungrouped


@pytest.mark.parametrize("stream", ["stdout", "stderr"])
def test_a_character_that_the_terminal_lacks_is_shown_as_an_escape(stream):
    """As on Windows, where a pipe may have the encoding cp1252."""
    script = f"""
import sys, typer
from pycotmech.cli import app, options
app.app = lambda **how: options.say("a head \u2192 \u0120max", err={stream == "stderr"})
app.main()
"""
    env = {**os.environ, "PYTHONIOENCODING": "cp1252"}
    done = subprocess.run([sys.executable, "-c", script], env=env, capture_output=True)
    assert done.returncode == 0 and getattr(done, stream) == b"a head \\u2192 \\u0120max\n", done.stderr


def test_every_command_has_an_example_and_options_in_groups(shell):
    assert set(commands()) == set(EXAMPLES)
    out = shell("run", "--help")[1]
    for title in ("The task (instead of --pairs)", "What is patched and measured", "How it runs", "What is shown"):
        assert title in out
    assert "The splitter" not in out and "[red]" not in out


@pytest.mark.parametrize(
    ("words", "offered"),
    [
        ("pycotmech stat", {"status"}),
        ("pycotmech run --metric l", {"logit_diff"}),
        ("pycotmech sweep --model smollm", {"smollm2-135m", "smollm2-135m-cot"}),
        ("pycotmech export results --to c", {"csv", "circuitsvis"}),
    ],
)
def test_completion_offers_commands_and_words(words, offered):
    env = {"_PYCOTMECH_COMPLETE": "complete_bash", "COMP_WORDS": words, "COMP_CWORD": str(len(words.split()) - 1)}
    script = "from pycotmech.cli import main; main()"
    done = subprocess.run([sys.executable, "-c", script], env={**os.environ, **env}, capture_output=True, text=True)
    assert set(done.stdout.split()) == offered, done.stderr


def test_models_that_completion_offers_are_those_of_the_package():
    assert set(o.MODELS) == set(ALIASES)


def test_a_package_of_an_extra_that_is_missing_is_one_line(shell, monkeypatch):
    def missing(*args: object, **kwargs: object) -> None:
        raise ModuleNotFoundError("No module named 'sklearn'", name="sklearn.linear_model")

    monkeypatch.setattr("pycotmech.runs.status.status_of", missing)
    code, _, err = shell("status", "anywhere")
    assert code == 2
    assert err == ("pycotmech: error: probes need scikit-learn, which is not installed: pip install 'pycotmech[probes]'\n")


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
