"""`pycotmech trace`: plan first, a folder that is continued, other settings refused."""

from __future__ import annotations

import json

import numpy as np
import pytest

import pycotmech as pcm


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    path = tmp_path_factory.mktemp("traces") / "traces.jsonl"
    rng, lines = np.random.default_rng(0), []
    for i in range(2):
        ids = rng.integers(5, 200, 36).tolist()
        spans = [[a, a + 3] for a in range(5, 29, 3)]
        lines.append(json.dumps({"tokens": [1, *ids], "sentences": spans, "answer": [31, 33], "name": f"t{i}"}))
    path.write_text("\n".join(lines))
    return path


def test_plan_run_and_continue(shell, tmp_path, file):
    out = tmp_path / "out"
    arguments = ("trace", "--model", "tiny-cot", "--traces", file, "--out", out)
    code, text, err = shell(*arguments, "--plan")
    assert code == 0 and "token-forwards" in text and "2 traces" in text and not out.exists(), err
    code, text, err = shell(*arguments)
    assert code == 0 and "first finding, " in err, err
    assert "Does the answer depend on the chain?" in text and "; open " in text and text.rstrip().endswith("report.html")
    for name in ("receiver_heads", "chain_use", "trace_000/suppress", "trace_001/early_answers", "trace_001/answer_paths"):
        for end in ("zarr", "csv", "png"):
            assert (out / f"{name}.{end}").exists(), (name, end)
    assert "## t0" in (out / "summary.md").read_text() and len((out / "traces.jsonl").read_text().splitlines()) == 2
    code, text, _ = shell("status", out)
    assert code == 0 and "(trace): analyses: 8 finished, 0 pending" in text
    code, text, _ = shell("export", out, "--to", "csv", "--out", tmp_path / "s.csv", "--name", "trace_001/suppress")
    assert code == 0 and (tmp_path / "s.csv").read_text().count("\n") > 8
    (out / "trace_001" / "suppress.png").unlink()
    before = (out / "chain_use.zarr" / "zarr.json").stat().st_mtime_ns
    code, text, _ = shell(*arguments)
    assert code == 0 and "already finished: receiver_heads, trace_000/suppress" in text
    assert (out / "trace_001" / "suppress.png").exists()
    assert (out / "chain_use.zarr" / "zarr.json").stat().st_mtime_ns == before
    code, _, err = shell(*arguments, "--seed", "1")
    assert code == 2 and "seed was 0, now 1" in err
    assert pcm.traces.ChainUse.load(out).data.sizes["trace"] == 2


def _interrupted(monkeypatch, module, name):
    """Ctrl-C at the second call of a module's analysis of one trace. Returns the names of the traces of all calls."""
    calls, whole = [], getattr(module, name)

    def stopped(model, trace, **options):
        calls.append(trace.name)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return whole(model, trace, **options)

    monkeypatch.setattr(module, name, stopped)
    return calls


def test_an_interrupted_run_computes_only_what_is_missing(shell, tmp_path, file, monkeypatch):
    out = tmp_path / "out"
    calls = _interrupted(monkeypatch, pcm.traces, "suppress")
    arguments = ("trace", "--model", "tiny-cot", "--traces", file, "--out", out, "--quiet")
    assert shell(*arguments)[0] == 130
    assert (out / "trace_000" / "suppress.zarr").exists() and not (out / "trace_001" / "suppress.zarr").exists()
    assert shell(*arguments)[0] == 0
    assert calls == ["t0", "t1", "t1"]


def test_an_interrupted_verdict_goes_on_with_the_next_trace(shell, tmp_path, file, monkeypatch):
    from pycotmech.traces.analyses import chain_use as module

    out = tmp_path / "out"
    calls = _interrupted(monkeypatch, module, "head_influence")
    arguments = ("trace", "--model", "tiny-cot", "--traces", file, "--out", out, "--quiet")
    assert shell(*arguments)[0] == 130 and (out / "chain_use.parts").is_dir()
    code, text, _ = shell("status", out)
    assert code == 0 and "7 finished, 1 pending" in text
    assert shell(*arguments)[0] == 0 and not list(out.rglob("*.parts"))
    assert calls == ["t0", "t1", "t1"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--traces", "nowhere.jsonl"), "traces: there is no file nowhere.jsonl"),
        (("--traces", ""), "traces: the name is empty"),
        (("--out", ""), "out: the name is empty"),
    ],
)
def test_wrong_options_are_refused_before_any_work(shell, tmp_path, file, options, message):
    defaults = {"--model": "tiny-cot", "--traces": str(file), "--out": str(tmp_path / "out")}
    defaults[options[0]] = options[1]
    code, _, err = shell("trace", *[part for pair in defaults.items() for part in pair])
    assert code == 2 and message in err


def test_traces_without_answers_have_no_use_of_the_chain(shell, tmp_path, file):
    line = json.loads(file.read_text().splitlines()[0])
    del line["answer"]
    short = tmp_path / "short.jsonl"
    short.write_text(json.dumps(line))
    code, text, err = shell("trace", "--model", "tiny-cot", "--traces", short, "--out", tmp_path / "out")
    assert code == 0, err
    assert not (tmp_path / "out" / "chain_use.zarr").exists() and "Receiver heads" in text


def test_lines_without_a_trace_are_an_error_or_left_out(shell, tmp_path, file):
    log = tmp_path / "log.jsonl"
    log.write_text("\n".join([file.read_text(), "{", '{"prompt": "a"}', *['{"tokens": [4], "sentences": [[0, 1]]}'] * 5]))
    arguments = ("trace", "--model", "tiny-cot", "--traces", log, "--out", tmp_path / "out")
    code, _, err = shell(*arguments, "--plan")
    assert code == 2 and "line 3: no JSON" in err
    code, text, err = shell(*arguments, "--plan", "--skip-unusable")
    assert code == 0 and "2 traces" in text, err
    assert "left out: line 3 of the file: no JSON" in text and "left out: line 4 of the file: completion: missing" in text
    assert "left out: 2 more lines of the file: 8, 9" in text
