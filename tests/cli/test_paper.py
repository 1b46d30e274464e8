"""`pycotmech paper`: its options reach the run, and the plan shows all of it."""

import json

import pytest

SMALL = ("paper", "--model", "tiny-cot", "--examples", "2", "--shots", "1")


def test_the_plan_shows_settings_and_what_claims_need(shell, tmp_path):
    out = tmp_path / "out"
    code, text, err = shell(*SMALL, "--out", out, "--settings", "easy,shuffled", "--only", "copy_heads,E8", "--plan")
    assert code == 0, err
    assert "shuffled" in text and "copied in order" in text and "all settings: about" in text and "copy_heads" in text
    assert not out.exists() and "examples that the claims need" not in text
    code, _, err = shell(*SMALL, "--out", out, "--only", "copy_heads")
    assert code == 0 and "first finding, " in err and "copy_heads (1 of 1 analyses): copy_heads: " in err, err
    code, text, _ = shell(*SMALL, "--out", tmp_path / "other", "--pilot", out, "--only", "copy_heads", "--plan")
    assert code == 0 and "examples that the claims need" in text and "(2 are planned)" in text


def test_a_dry_run_and_an_estimate_say_what_they_would_do_and_write_nothing(shell, tmp_path):
    out = tmp_path / "out"
    code, text, err = shell(*SMALL, "--out", out, "--only", "copy_heads", "--dry-run", "--workers", "2")
    assert code == 0, err
    assert (
        "engine local, workers: 2" in text
        and "analyses: 1, 0 of them finished; settings of the task: easy" in text
        and "nothing was written" in text
    )
    code, text, _ = shell(*SMALL, "--out", out, "--only", "copy_heads", "--estimate")
    found = json.loads(text)
    assert code == 0 and found["settings"]["easy"]["analyses"][0]["name"] == "copy_heads" and found["finished"] == 0
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--settings", "hard"), "tasks: got 'hard'; expected some of easy, distractors"),
        (("--minutes", "5"), "minutes: chooses the number of examples, which is given as well"),
        (("--pilot", "nowhere"), "pilot: there is no folder nowhere"),
        (("--workers", "0"), "workers: got 0; expected 1 or more"),
        (("--engine", "serial", "--workers", "2"), "workers: got 2 for the serial engine"),
    ],
)
def test_wrong_options_are_refused_before_any_work(shell, tmp_path, options, message):
    code, _, err = shell(*SMALL, "--out", tmp_path / "out", *options)
    assert code == 2 and message in err
