"""Progress: how far, how fast, how long still, and what was found so far."""

from __future__ import annotations

import io
import sys

import numpy as np
import pytest

from pycotmech.cli import bars
from pycotmech.cli.bars import Bars, told_of
from pycotmech.runs.progress import StrongestHead


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        ((0, 40, "sweep", 0.0), "0 of 40 sweeps"),
        ((10, 40, "sweep", 50.0), "10 of 40 sweeps, 5.0 s a sweep, 2.5 min left"),
        ((30, 40, "example", 10.0), "30 of 40 examples, 3.0 examples a second, 3.3 s left"),
        ((40, 40, "sweep", 400.0), "40 of 40 sweeps, 10 s a sweep"),
        ((2, 12, "analysis", 1.0), "2 of 12 analyses, 2.0 analyses a second, 5.0 s left"),
        ((0.25, 1, "", 10.0), "25 %, 30 s left"),
    ],
)
def test_units_rate_and_time_left(arguments, text):
    assert told_of(*arguments) == text


def test_the_strongest_head_is_the_largest_mean_of_a_step():
    strongest, effect = StrongestHead(), np.zeros((2, 3), np.float32)
    assert strongest.add("step 1", effect, 0.01) == "no head beyond rounding so far"
    effect[1, 2] = -0.4
    assert strongest.add("step 5", effect, 0.01) == "the strongest head so far is L1H2, effect -0.40 (step 5, 1 sweep)"
    assert "L1H2, effect -0.20 (step 5, 2 sweeps)" in strongest.add("step 5", np.zeros((2, 3), np.float32), 0.01)
    effect[0, 0] = np.nan
    effect[0, 1] = 0.5
    assert "L0H1, effect +0.25 (step 1, 2 sweeps)" in strongest.add("step 1", effect, 0.01)


def test_without_a_terminal_there_is_a_line_now_and_then(capsys, monkeypatch):
    shown = Bars(quiet=False)
    shown.begin("patching", 40, "sweep")
    shown.at(1, "example 0, step 1")
    assert capsys.readouterr() == ("", "")
    shown.found("L1H2 restores most")
    assert "first finding" in (first := capsys.readouterr().err) and first.endswith("L1H2 restores most\n")
    monkeypatch.setattr(bars, "_EVERY", -1.0)
    shown.at(2, "example 0, step 5")
    line = capsys.readouterr().err
    assert line.startswith("patching: 2 of 40 sweeps, ") and line.endswith("example 0, step 5; L1H2 restores most\n")
    shown.end()
    quiet = Bars(quiet=True)
    quiet.begin("patching", 40, "sweep")
    quiet.at(2)
    quiet.found("something")
    quiet.note("something")
    quiet.end()
    assert capsys.readouterr() == ("", "")


def test_a_terminal_has_a_bar_that_ends_without_a_trace(monkeypatch, capsys):
    class Terminal(io.StringIO):
        def isatty(self):
            return True

    screen = Terminal()
    monkeypatch.setattr(sys, "stderr", screen)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "160")
    monkeypatch.setattr(bars, "_REDRAWN", -1.0)
    shown = Bars(quiet=False)
    shown.begin("patching", 4, "sweep")
    shown.at(1, "example [red]0[/red]")
    shown.found("L1H2 restores most")
    shown.note("a [bold]note[/bold] in between")
    print('{"json": 1}')
    shown.at(4)
    shown.end()
    text = screen.getvalue()
    assert "1 of 4 sweeps" in text and "[red]0[/red]" in text and "L1H2 restores most" in text
    assert "a [bold]note[/bold] in between" in text
    assert capsys.readouterr().out == '{"json": 1}\n'  # nothing that is printed goes through the bar
