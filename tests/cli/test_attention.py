"""`pycotmech attention`: its files, its table, its errors."""

from __future__ import annotations

import json
import warnings

import numpy as np
import pandas as pd
import pytest
import typer
import xarray as xr
from typer.testing import CliRunner

import pycotmech as pcm
from pycotmech.cli.attention import attention
from pycotmech.runs.attention import find_text, read_segments

TEXT = (
    "Every lempus is a tumpus. Every tumpus is bright. Max is a lempus. True or false: Max is bright. "
    "Answer: Max is a lempus. Since every lempus is a tumpus, Max is a tumpus."
)
QUESTION = "True or false: Max is bright."


@pytest.fixture(scope="module")
def app():
    app = typer.Typer()
    app.callback()(lambda: None)
    app.command()(attention)
    return app


@pytest.fixture(scope="module")
def model():
    return pcm.Model.from_pretrained("tiny-cot")


@pytest.fixture
def prompt(tmp_path):
    path = tmp_path / "prompt.txt"
    path.write_text(TEXT + "\n", "utf-8")
    return path


def run(app, *args):
    return CliRunner().invoke(app, ["attention", "--model", "tiny-cot", *map(str, args)])


def test_writes_the_values_of_the_summary(app, model, prompt, tmp_path):
    segments = tmp_path / "segments.json"
    segments.write_text(json.dumps({"question": QUESTION, "start": [1, 4], "last": -1}))
    out = tmp_path / "out"
    with warnings.catch_warnings():
        warnings.filterwarnings("error", module="zarr")
        result = run(app, "--text", prompt, "--out", out, "--segments", segments, "--top-k", 3)
    assert result.exit_code == 0, result.output

    tokens = model.to_tokens(TEXT)
    ids = tokens.tolist()
    asked = model.tokenizer(QUESTION, add_special_tokens=False)["input_ids"]
    at = next(i for i in range(len(ids)) if ids[i : i + len(asked)] == asked)
    rule = {"question": slice(at, at + len(asked)), "start": slice(1, 4), "last": [-1]}
    want = pcm.attention_summary(model, tokens, segments=rule, top_k=3)
    scores = pcm.head_scores(model, tokens)

    heads = pd.read_csv(out / "heads.csv")
    np.testing.assert_allclose(heads["mass_question"], want.segment("question").mean(-1).ravel(), atol=1e-5)
    np.testing.assert_allclose(heads["induction"], scores.induction.ravel(), atol=1e-5)
    table = pd.read_csv(out / "tokens.csv")
    assert table["token"].tolist() == ids and table["segment"][at] == "question"
    received = want.received.mean((0, 1)) / np.arange(len(ids), 0, -1)
    np.testing.assert_allclose(table["received"], received, atol=1e-5)
    data = xr.open_zarr(out / "summary.zarr", consolidated=False)
    np.testing.assert_array_equal(data["mass"].sel(segment="question").values, want.segment("question"))
    np.testing.assert_array_equal(data["top_keys"].values, want.top_keys)
    assert data.attrs["model"] == "tiny-cot" and data.attrs["notes"] == list(model.notes)
    assert f"note: {model.notes[0]}" in result.output
    assert all((out / name).stat().st_size > 1000 for name in ("scores.png", "mass.png"))

    (l, h), best = scores.top("previous", 1)[0]
    line = next(line for line in result.output.splitlines() if "the previous token" in line)
    assert line.split()[3:5] == [f"{l}.{h}", f"{best:.2f}"]
    assert "segment question" in result.output and "segment first" not in result.output


def test_quiet_prints_nothing_and_reads_standard_input(app, tmp_path):
    args = ["attention", "--model", "tiny-cot", "--text", "-", "--out", str(tmp_path / "o"), "--quiet"]
    result = CliRunner().invoke(app, args, input=TEXT)
    assert result.exit_code == 0 and result.output == ""
    assert len(pd.read_csv(tmp_path / "o" / "heads.csv")) == 32


def test_results_are_replaced_only_on_request(app, prompt, tmp_path):
    out = tmp_path / "out"
    (out / "summary.zarr").mkdir(parents=True)
    result = run(app, "--text", prompt, "--out", out)
    assert isinstance(result.exception, ValueError) and "--overwrite" in str(result.exception)
    assert run(app, "--text", prompt, "--out", out, "--overwrite", "-q").exit_code == 0


@pytest.mark.parametrize(
    "options, message",
    [
        (["--segments", "a=1:2,a=3"], "'a' is given twice"),
        (["--segments", "a=x:2"], "expected name=start:stop"),
        (["--segments", "a"], "expected name=start:stop"),
        (["--segments", "a=5:900"], "outside the"),
        (["--segments", "a=1:4,b=3"], "overlap at position 3"),
        (["--top-k", "65"], "top_k: got 65"),
        (["--threads", "0"], "threads: got 0"),
        (["--model", "no-such-model-here"], "no-such-model-here"),
    ],
)
def test_wrong_options_are_named_and_leave_nothing_behind(app, prompt, tmp_path, options, message):
    result = run(app, "--text", prompt, "--out", tmp_path / "out", *options)
    assert isinstance(result.exception, (ValueError, OSError)) and message in str(result.exception)
    assert not (tmp_path / "out").exists()


def test_a_missing_or_empty_text_is_said(app, tmp_path):
    missing = run(app, "--text", tmp_path / "nothing.txt", "--out", tmp_path / "o").exception
    assert isinstance(missing, FileNotFoundError) and "nothing.txt" in str(missing)
    (tmp_path / "empty.txt").write_text("\n")
    assert "is empty" in str(run(app, "--text", tmp_path / "empty.txt", "--out", tmp_path / "o").exception)


def test_the_shell_knows_the_command_and_says_errors_in_one_line(prompt, tmp_path, capsys, monkeypatch):
    from pycotmech.cli import app as cli

    monkeypatch.setattr("sys.argv", ["pycotmech", "attention", "--text", str(prompt), "--out", str(tmp_path), "--top-k", "99"])
    monkeypatch.setattr("signal.signal", lambda *_: None)
    with pytest.raises(SystemExit) as stop:
        cli.main()
    assert stop.value.code == 2
    assert capsys.readouterr().err.splitlines() == ["pycotmech: error: top_k: got 99; expected 0 to 64"]


def test_segments_given_by_text(model, tmp_path):
    tokens = model.to_tokens(TEXT).tolist()
    found = find_text(model, TEXT, "Answer: Max is a lempus", "a")
    assert model.tokenizer.decode(tokens[found]).replace(" :", ":") == "Answer: Max is a lempus"
    with pytest.raises(ValueError, match="occurs 3 times"):
        find_text(model, TEXT, "Max is a", "a")
    with pytest.raises(ValueError, match="occurs 0 times"):
        find_text(model, TEXT, "zumpus", "a")
    path = tmp_path / "s.json"
    for bad, message in (('{"a": [1]}', "expected .start, stop."), ("[1]", "must contain an object"), ("{", "not a JSON")):
        path.write_text(bad)
        with pytest.raises(ValueError, match=message):
            read_segments(str(path))
    path.write_text('{"a": [3, null], "b": 2, "c": "piece"}')
    assert read_segments(str(path)) == {"a": slice(3, None), "b": slice(2, 3), "c": "piece"}
    assert read_segments("a=:3, b=-1") == {"a": slice(None, 3), "b": slice(-1, None)}
