"""`pycotmech run` on the shipped tiny model: the main job end to end, continued, refused, interrupted."""

from __future__ import annotations

import json
import resource
import signal
import subprocess
import sys
import time

import numpy as np
import pandas as pd
import pytest

import pycotmech as pcm
from pycotmech.cli import app
from pycotmech.runs import SweepState, read
from tests.cli.prompts import CLEAN, CORRUPTED, SMALL, pairs_file
from tests.reference.forked import ended, start, stopped


def test_run_keeps_what_the_library_computes(finished):
    data = read(finished)
    model = pcm.Model.from_pretrained("tiny-cot")
    examples = pcm.cot.make_examples(2, tokenizer=model.tokenizer, bos=True, shots=0, seed=0)
    assert (data["state"] == SweepState.FINISHED).sum() >= 3  # the model is right nearly always
    for e, s in np.argwhere(data["state"].values == SweepState.FINISHED):
        step = examples[e].steps[int(data["step"][s])]
        sweep = pcm.patch_heads(model, step.clean, step.corrupted)
        cell = data.isel(example=e, step=s)
        np.testing.assert_allclose(cell["raw"], sweep.raw, rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(cell["effect"], sweep.effect, atol=1e-5)
        assert float(cell["corrupted_metric"]) == pytest.approx(sweep.corrupted_metric[0], rel=1e-5)
        assert np.abs(sweep.effect).max() > 0.1  # far above the tolerances


def test_run_writes_everything_a_reader_needs(finished):
    names = {p.name for p in finished.iterdir()} - {".lock", "screen.txt"}
    assert names == {
        "results.zarr", "examples.jsonl", "events.jsonl", "top_heads.csv", "summary.md", "summary.json", "overview.png",
        "step_01.png", "step_05.png", "report.html", "heads.json",
    }  # fmt: skip
    lines = [json.loads(line) for line in (finished / "examples.jsonl").read_text("utf-8").splitlines()]
    model = pcm.Model.from_pretrained("tiny-cot")
    step = pcm.cot.make_examples(2, tokenizer=model.tokenizer, bos=True, shots=0, seed=0)[1].steps[5]
    kept = lines[1]["steps"][1]
    assert kept["step"] == 5 and kept["clean"] == step.clean.tolist() and kept["corrupted"] == step.corrupted.tolist()
    assert (kept["answer"], kept["wrong"], kept["text"]) == (step.answer, step.wrong, step.text)
    attrs = read(finished).attrs
    assert attrs["identity"]["steps"] == [1, 5] and attrs["identity"]["pycotmech"] == pcm.__version__
    assert attrs["about"]["versions"]["torch"] and "prefix_attn" in attrs["about"]["ops"]


def test_the_screen_shows_the_table_the_notes_and_sentences(finished):
    screen = (finished / "screen.txt").read_text("utf-8")
    top = pd.read_csv(finished / "top_heads.csv")
    for _, row in top.iterrows():
        assert f"L{row['layer']}H{row['head']}" in screen and f"{row['restoration']:+.3f}" in screen
    assert "Note: trained from scratch on this task" in screen
    assert "* Step 5 (induction) depends most on L" in screen
    assert "larger than rounding errors" in screen
    summary = json.loads((finished / "summary.json").read_text("utf-8"))
    assert all(sentence in screen for sentence in summary["findings"])
    assert summary["complete"] and [s["step"] for s in summary["steps"]] == [1, 5]
    assert summary["steps"][0]["top_heads"][0]["head"] == top.iloc[0]["head"]


def test_run_again_does_nothing_twice(finished, shell):
    chunk = finished / "results.zarr" / "raw" / "c.0.0.0.0"
    before = chunk.stat().st_mtime_ns
    code, out, err = shell("run", *SMALL, "--out", finished)
    assert code == 0 and chunk.stat().st_mtime_ns == before
    assert " sweeps; 0 to do" in err
    assert out.split("\n\n")[1] in (finished / "screen.txt").read_text("utf-8")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (("--seed", "1"), "seed was 0, now 1"),
        (("--steps", "1,6"), "steps was 1,5, now 1,6"),
        (("--direction", "noise"), "direction was denoise, now noise"),
        (("--positions", "last"), "positions was all, now -1"),
        (("--dtype", "float64"), "dtype was auto, now float64"),
    ],
)
def test_other_settings_on_the_same_folder_are_refused_by_name(finished, shell, change, message):
    before = read(finished)
    code, out, err = shell("run", *SMALL, *change, "--out", finished)
    assert code == 2 and out == "" and len(err.splitlines()) == 1
    assert f"contains results of other settings: {message}." in err
    assert read(finished).identical(before)


def test_other_weights_under_the_same_name_are_refused(finished, shell, monkeypatch):
    from pycotmech.runs import experiment

    monkeypatch.setattr(experiment, "model_identity", lambda model, verify: {"weights": "another"})
    code, _, err = shell("run", *SMALL, "--out", finished)
    assert code == 2 and "weights was" in err and "now another" in err


def test_sigint_keeps_what_is_finished_and_the_same_command_goes_on(tmp_path, shell):
    out, waits = tmp_path / "out", tmp_path / "waits"
    settings = ("--model", "tiny-cot", "--examples", "8", "--shots", "0", "--steps", "5,9", "--threads", "1")

    def interrupted_in_its_fifth_sweep() -> None:
        from pycotmech import patching

        honest, calls = patching.patch_heads_each, []

        def patch(*given, **options):
            calls.append(len(given))
            if len(calls) == 5:
                waits.touch()
                time.sleep(600)
            return honest(*given, **options)

        patching.patch_heads_each = patch  # of the child alone
        sys.argv = ["pycotmech", "run", *settings, "--out", str(out)]
        app.main()

    pid = start(interrupted_in_its_fifth_sweep, tmp_path / "errors")
    code, give_up = None, time.monotonic() + 120
    while code is None and not waits.exists() and time.monotonic() < give_up:
        code = ended(pid, 0.02)
    code = stopped(pid, 0.0, signal.SIGINT) if code is None else code
    err = (tmp_path / "errors").read_text("utf-8")
    assert code == 130 and waits.exists(), err
    assert "stopped; finished results are kept" in err and "Traceback" not in err
    first = read(out)
    kept = np.argwhere(first["state"].values == SweepState.FINISHED)
    assert 4 <= len(kept) < int((first["state"] != SweepState.SKIPPED).sum())
    stamps = {e: (out / f"results.zarr/raw/c.{e}.0.0.0").stat().st_mtime_ns for e in {int(e) for e, _ in kept[:-2]}}
    code, screen, err = shell("report", out)
    assert code == 0 and "still to do" in screen
    code, screen, err = shell("run", *settings, "--out", out)
    assert code == 0 and f"already finished: {len(kept)} sweep" in err and "still to do" not in screen
    second = read(out)
    assert (second["state"] != SweepState.PENDING).all()
    for e, s in kept:
        np.testing.assert_array_equal(second["raw"][e, s], first["raw"][e, s])
    assert stamps and all((out / f"results.zarr/raw/c.{e}.0.0.0").stat().st_mtime_ns == t for e, t in stamps.items())


def test_quiet_says_nothing(tmp_path, shell):
    assert shell("run", *SMALL, "--examples", "1", "--out", tmp_path / "out", "--quiet") == (0, "", "")
    assert (tmp_path / "out" / "summary.md").is_file()


@pytest.mark.parametrize("metric", ["kl", "prob"])
def test_words_that_the_metric_does_not_read_may_be_missing(metric, tmp_path, shell):
    pair = {"clean": CLEAN, "corrupted": CORRUPTED, "answer": "lempus"}
    path = pairs_file(tmp_path, pair, pair | {"wrong": "tumpus"})
    code, _, err = shell("run", "--model", "tiny-cot", "--pairs", path, "--metric", metric, "--out", tmp_path / "out")
    assert code == 0, err
    code, out, err = shell("sweep", "--model", "tiny-cot", "--pairs", path, "--metric", metric)
    assert code == 0 and "layer" in out, err


def test_own_pairs(tmp_path, shell):
    model = pcm.Model.from_pretrained("tiny-cot")
    ids = [model.to_tokens(text).tolist() for text in (CLEAN, CORRUPTED)]
    given = {"clean": CLEAN, "corrupted": CORRUPTED, "answer": "lempus", "wrong": "tumpus", "name": "words"}
    path = pairs_file(tmp_path, given, {"clean": ids[0], "corrupted": ids[1], "answer": "lempus", "wrong": "tumpus"})
    code, out, _ = shell("run", "--model", "tiny-cot", "--pairs", path, "--metric", "logit_diff", "--out", tmp_path / "out")
    assert code == 0 and "The pairs depend most on L" in out
    data = read(tmp_path / "out")
    assert data["name"].values.tolist() == ["words", "line 2"]
    sweep = pcm.patch_heads(model, CLEAN, CORRUPTED, metric="logit_diff", answer="lempus", wrong="tumpus")
    for e in range(2):  # text and ids of the same prompts
        np.testing.assert_allclose(data["values"][e, 0], sweep.values, atol=1e-5)
    code, out, _ = shell(
        "sweep", "--model", "tiny-cot", "--pairs", path, "--metric", "logit_diff", "--csv", tmp_path / "a.csv",
        "--png", tmp_path / "a.png",
    )  # fmt: skip
    frame = pd.read_csv(tmp_path / "a.csv")
    np.testing.assert_allclose(frame["value"].to_numpy().reshape(4, 8), sweep.values, atol=1e-5)
    (layer, head), effect = sweep.top(1)[0]
    assert code == 0 and f"L{layer}H{head}" in out and f"{effect:+.4f}" in out
    assert (tmp_path / "a.png").read_bytes().startswith(b"\x89PNG")


def test_a_pair_that_cannot_be_swept_is_named_before_the_first_sweep(tmp_path, shell):
    good = {"clean": CLEAN, "corrupted": CORRUPTED}
    for bad, message in (
        ({"clean": CLEAN, "corrupted": CORRUPTED + " red"}, "line 2: clean has 15 tokens, corrupted has 16"),
        ({"clean": [1, 9999], "corrupted": [1, 5]}, "line 2: clean: token id 9999 is outside the vocabulary"),
        ({**good, "answer": "lempus", "wrong": "lempus"}, "line 2: answer and wrong"),
    ):
        path = pairs_file(tmp_path, good, bad)
        code, _, err = shell("run", "--model", "tiny-cot", "--pairs", path, "--out", tmp_path / "out")
        assert code == 2 and message in err, err
        assert not (tmp_path / "out" / "results.zarr").exists()


def test_a_pair_without_a_difference_in_the_metric_does_not_stop_the_others(tmp_path, shell, monkeypatch):
    from pycotmech import patching

    honest = patching.patch_heads_each

    def patch(model, clean, corrupted, **options):
        if any(len(tokens) == 2 for tokens in clean):
            raise ValueError("metric: kl is the same in the clean and the corrupted run")
        return honest(model, clean, corrupted, **options)

    monkeypatch.setattr(patching, "patch_heads_each", patch)
    path = pairs_file(tmp_path, {"clean": [1, 8], "corrupted": [1, 9]}, {"clean": CLEAN, "corrupted": CORRUPTED})
    code, out, err = shell("run", "--model", "tiny-cot", "--pairs", path, "--out", tmp_path / "out")
    assert code == 1 and "pycotmech: failed: " in err and "line 1: metric: kl is the same" in err
    assert read(tmp_path / "out")["state"].values.tolist() == [[0], [1]] and "1 still to do" in out


def test_steps_that_share_a_sweep_fail_one_by_one(tmp_path, shell, monkeypatch):
    """A step that cannot be done takes none of those with it that would have been read off the same run."""
    from pycotmech import patching

    honest, calls, bad = patching.patch_heads_each, [], []

    def patch(model, clean, corrupted, **options):
        calls.append(len(clean))
        if len(clean) > 1 and not bad:
            bad.append(clean[0].tolist())
        if any(tokens.tolist() in bad for tokens in clean):
            raise ValueError("metric: kl is the same in the clean and the corrupted run")
        return honest(model, clean, corrupted, **options)

    monkeypatch.setattr(patching, "patch_heads_each", patch)
    code, _, err = shell("run", "--model", "tiny-cot", "--examples", "1", "--shots", "3", "--out", tmp_path / "out")
    state = read(tmp_path / "out")["state"].values
    assert code == 1 and max(calls) > 1 and err.count("metric: kl is the same") == 1
    assert (state == 0).sum() == 1 and (state == 1).sum() >= 5


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--steps", "10"), "steps: got 10; expected 0..9 for 2 hops"),
        (("--steps", "one"), "steps: got 'one'; expected numbers"),
        (("--steps", ","), "steps: the list is empty"),
        (("--dtype", "float8"), "dtype: got 'float8'"),
        (("--metric", "loss"), "metric: got 'loss'; expected one of kl, logit_diff, prob"),
        (("--direction", "up"), "direction: got 'up'"),
        (("--style", "haiku"), "style: got 'haiku'"),
        (("--order", "sideways"), "order: got 'sideways'"),
        (("--ontology", "real"), "ontology: got 'real'"),
        (("--examples", "0"), "examples: got 0; expected 1 or more"),
        (("--shots", "-1"), "shots: got -1"),
        (("--memory-gb", "0"), "memory_gb: got 0.0; expected a positive number"),
        (("--positions", "first"), "positions: got 'first'; expected all, last, or numbers"),
        (("--top", "0"), "top: got 0"),
        (("--pairs", "nothing.jsonl"), "pairs: there is no file nothing.jsonl"),
        (("--pairs", "nothing.jsonl", "--shots", "3"), "shots: has no meaning with pairs"),
    ],
)
def test_bad_settings_are_one_line_before_the_model_is_loaded(shell, tmp_path, monkeypatch, arguments, message):
    monkeypatch.setattr(pcm.Model, "from_pretrained", lambda *a, **k: pytest.fail("the model was loaded"))
    code, out, err = shell("run", "--model", "tiny-cot", "--out", tmp_path / "out", *arguments)
    assert (code, out) == (2, "") and err.startswith("pycotmech: error: ") and len(err.splitlines()) == 1
    assert message in err


def test_an_output_folder_that_is_none(shell, tmp_path):
    file = tmp_path / "file"
    file.write_text("")
    code, _, err = shell("run", *SMALL, "--out", file)
    assert code == 2 and "is a file; expected a folder" in err
    code, _, err = shell("run", *SMALL, "--out", file / "below")
    assert code == 2 and "out: nothing can be written in" in err


def test_an_output_folder_that_is_read_only(shell, tmp_path, monkeypatch):
    def refuse(**options):
        raise PermissionError(13, "Permission denied", str(options["dir"]))

    monkeypatch.setattr("tempfile.TemporaryFile", refuse)
    code, _, err = shell("run", *SMALL, "--out", tmp_path)
    assert code == 2 and f"out: nothing can be written in {tmp_path}" in err and "Permission denied" in err


def test_positions_in_front_of_the_difference_are_refused_before_the_first_sweep(shell, tmp_path):
    code, _, err = shell("run", *SMALL, "--positions", "0", "--out", tmp_path / "out")
    assert code == 2 and "example 0, step 1: positions: [0] reach nothing that is read" in err


def limited() -> None:
    """No file of this process may grow beyond a few bytes, as on a full disk."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (700, resource.RLIM_INFINITY))


def test_a_full_disk_is_named_and_the_same_command_goes_on(tmp_path, shell):
    arguments = ("run", *SMALL, "--out", str(tmp_path / "out"), "--quiet")
    full = subprocess.run([sys.executable, "-m", "pycotmech", *arguments], capture_output=True, text=True, preexec_fn=limited)
    line = full.stderr.splitlines()[-1]
    assert full.returncode == 2 and f"error: the disk of {tmp_path / 'out'} is full" in line and "Make room" in line
    assert not [path for path in (tmp_path / "out").iterdir() if path.name.startswith(".pycotmech-")]
    assert shell(*arguments)[0] == 0 and (read(tmp_path / "out")["state"] != SweepState.PENDING).all()


def test_a_store_that_is_none_is_named(tmp_path, shell):
    (tmp_path / "results.zarr").mkdir()
    for arguments in (("run", *SMALL, "--out", tmp_path), ("report", tmp_path)):
        code, _, err = shell(*arguments)
        assert code == 2 and f"{tmp_path / 'results.zarr'} is not a store of arrays" in err and "Move it away" in err
