"""What identifies results, what is refused when they are continued, and what of it may be accepted."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

import pycotmech as pcm
from pycotmech.runs import Settings, experiment, provenance, read
from pycotmech.runs.events import read_events
from pycotmech.runs.folder import refuse_other_settings
from pycotmech.runs.provenance import agrees, differences, model_identity
from tests.reference.tiny import tiny_llama

SETTINGS = Settings(model="tiny-cot", examples=1, shots=0, steps=(5,), threads=1)


def test_every_weight_and_what_the_configuration_decides_identify_a_model():
    hf = tiny_llama(seed=0)
    first = model_identity(pcm.Model(hf, None))
    assert model_identity(pcm.Model(tiny_llama(seed=0), None)) == first
    with torch.no_grad():
        hf.model.layers[0].mlp.up_proj.weight.view(-1)[-1] += 1
    changed = model_identity(pcm.Model(hf, None))
    assert changed["weights"] != first["weights"] and changed["config"] == first["config"]
    other = tiny_llama(seed=0)
    other.config.rms_norm_eps = 0.1
    assert model_identity(pcm.Model(other, None))["config"] != first["config"]


def test_differences_are_in_words_settings_first():
    stored = {"seed": 0, "torch": "2.10", "model": "m\x1b[2J", "pycotmech": "0.1"}
    settings, versions = differences(stored, {"seed": 1, "torch": "2.11", "model": "n", "pycotmech": "0.1"})
    assert settings == ["seed was 0, now 1", r"model was m\x1b[2J, now n"] and versions == ["torch was 2.10, now 2.11"]


def test_what_a_folder_of_an_earlier_version_does_not_hold_is_not_compared():
    assert agrees({"seed": 0, "pycotmech": "0.1"}, {"seed": 0, "pycotmech": "0.1", "torch": "2.11", "transformers": "5"})
    assert agrees({"seed": 0, "weights": "a"}, {"seed": 0})  # not known before the model is loaded
    assert not agrees({"seed": 0, "weights": "a"}, {"seed": 0, "weights": "b"})


def test_only_versions_can_be_accepted(tmp_path):
    stored, now = {"seed": 0, "torch": "2.10"}, {"seed": 0, "torch": "2.11"}
    with pytest.raises(ValueError, match=r"other versions: torch was 2.10, now 2.11.*--accept-version to continue") as caught:
        refuse_other_settings(tmp_path, stored, now)
    assert "\n" not in str(caught.value)
    assert refuse_other_settings(tmp_path, stored, now, accept_version=True) == ["torch was 2.10, now 2.11"]
    with pytest.raises(ValueError, match=r"other settings: seed was 0, now 1; torch was 2\.10, now 2\.11"):
        refuse_other_settings(tmp_path, stored, {**now, "seed": 1}, accept_version=True)
    assert not agrees(stored, now) and agrees(stored, now, accept_version=True)


def test_a_run_of_another_version_is_continued_only_by_name(tmp_path, monkeypatch):
    experiment.run(SETTINGS, tmp_path)
    before = read(tmp_path)
    newer = {**provenance.versions(), "transformers": "99.0"}
    monkeypatch.setattr(provenance, "versions", lambda: newer)
    with pytest.raises(ValueError, match=r"other versions: transformers was .*, now 99\.0"):
        experiment.run(SETTINGS, tmp_path)
    assert experiment.run(SETTINGS, tmp_path, accept_version=True).done == 0
    assert read(tmp_path).identical(before)
    (accepted,) = (e for e in read_events(tmp_path).events if e["event"] == "accepted")
    assert accepted["versions"][0].endswith("now 99.0")
    with pytest.raises(ValueError, match="other settings: seed was 0, now 1"):
        experiment.run(replace(SETTINGS, seed=1), tmp_path, accept_version=True)


def test_names_are_the_same_whatever_the_folder_holds():
    made = provenance.provenance_of({"model": "m", "seed": 3, "torch": "2"}, {"settings": {"examples": 4}, "threads": 2})
    assert made == {"model": "m", "threads": 2, "versions": {"torch": "2"}, "seed": 3, "arguments": {"examples": 4}}
