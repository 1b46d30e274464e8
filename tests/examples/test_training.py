"""The training scripts: the shipped model speaks their vocabulary, and a few steps of each leave what `load` reads."""

from __future__ import annotations

import importlib
import os
import random
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors import safe_open

from pycotmech.model.aliases import ALIASES
from pycotmech.model.loading import load

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"


@pytest.fixture
def example(monkeypatch):
    """Imports a script or its helper from examples/ by name."""
    monkeypatch.syspath_prepend(EXAMPLES)
    yield importlib.import_module
    for name in ("ontology_text", "train_tiny_cot", "train_smollm2_cot_adapter"):
        sys.modules.pop(name, None)


def run(script: str, *options: object) -> str:
    command = [sys.executable, str(EXAMPLES / script), *map(str, options)]
    environment = os.environ | {"PYTHONPATH": str(EXAMPLES.parent)}  # this tree, whatever is installed
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_problems_read_as_the_recipe_says(example):
    text = example("ontology_text")
    options = {"wrapper": "inline", "shuffle": False}
    problem = text.make_problem(random.Random(0), ["lempus", "tumpus"], wording="every", **options)
    a, b, name = problem.prompt.split()[5], problem.prompt.split()[1], problem.answer.split()[0]
    p = problem.prompt.split()[3][:-1]
    assert {a, b} == {"lempus", "tumpus"}
    assert problem.prompt.startswith(f"Every {b} is {p}. Every {a} is a {b}. {name} is a {a}. True or false: {name} is ")
    asked = problem.prompt.split("False: ")[-1].split(" is ")[-1].split(".")[0]
    steps = f"{name} is a {a}. Since every {a} is a {b}, {name} is a {b}. Since every {b} is {p}, {name} is {p}."
    assert problem.answer == f"{steps} {asked == p}"
    assert len(set(text.nouns(150))) == 150 and tuple(text.nouns(17)) == tuple(text.PRONTOQA_NOUNS)


@pytest.mark.parametrize("wording", ["paper", "every"])
@pytest.mark.parametrize("hops", [0, 1, 2])
def test_labels_are_right_and_balanced(example, wording, hops):
    text = example("ontology_text")
    rng, labels = random.Random(1), []
    for _ in range(200):
        problem = text.make_problem(rng, text.nouns(17), wording=wording, hops=hops, distractors=2, shuffle=True)
        asked = problem.prompt.rsplit("True or false: ", 1)[1].split(".")[0]
        concluded = problem.answer.split(".")[-2].split(", ")[-1].strip()
        label = problem.answer.rsplit(" ", 1)[1]
        assert (label == "True") == (asked == concluded)
        labels.append(label == "True")
    assert 70 < sum(labels) < 130


def test_tiny_cot_speaks_the_vocabulary_of_its_script(example):
    script, loaded = example("train_tiny_cot"), load("tiny-cot")
    tokenizer = script.build_tokenizer(script.nouns(script.N_NOUNS))
    assert tokenizer.get_vocab() == loaded.tokenizer.get_vocab()
    batches = script.Batches(tokenizer.get_vocab(), script.nouns(script.N_NOUNS), tokens=0, seed=3)
    steps, whole = script.evaluate(loaded.model, batches, rows=40, shots=0, wording="every", wrapper="inline")
    assert min(steps[:10]) > 0.85 and whole > 0.8
    with torch.no_grad():
        for weight in loaded.model.parameters():
            weight.copy_(weight.roll(1, 0))
    assert script.evaluate(loaded.model, batches, rows=10, shots=0, wording="every", wrapper="inline")[1] == 0


def test_only_answers_count_and_tested_links_stay_out(example):
    script = example("train_tiny_cot")
    words = script.nouns(script.N_NOUNS)
    tokenizer = script.build_tokenizer(words)
    batches = script.Batches(tokenizer.get_vocab(), words, tokens=3000, seed=3)
    ids, counts = batches.problems(shots=1, wording="paper", wrapper="authors", hops=2, distractors=0)
    assert (ids[:, 0] == script.BOS).all() and not counts[:, 0].any()
    answers = tokenizer.decode(ids[0][counts[0]])
    assert "True or false" not in answers and answers.count("True") + answers.count("False") == 2
    names = [tokenizer.decode(row).split("Response")[-1].split() for row in ids]
    links = [(answer[3].strip("."), answer[9].strip(".")) for answer in names]
    assert len(links) > 20 and not any(script.is_tested(*link) for link in links)
    assert any(script.is_tested(a, b) for a in words for b in words)
    ids, counts = batches.drills("inline")
    assert (counts.sum(1) == 1).all()
    assert {tokenizer.decode([token]) for token in ids[counts]} == {"True", "False"}
    ids, counts = batches.repeats()
    n = (ids.shape[1] - 1) // 2
    assert torch.equal(ids[:, 1 : n + 1], ids[:, n + 1 :]) and counts[:, n + 2 :].all() and counts.sum() == (n - 1) * len(ids)


@pytest.mark.slow
def test_a_few_steps_leave_a_model_that_loads(tmp_path):
    said = run("train_tiny_cot.py", "--steps", 40, "--tokens", 256, "--every", 20, "--rows", 4, "--out", tmp_path / "m")
    assert "step 20" in said and "step 40" in said
    loaded = load(tmp_path / "m")
    assert loaded.tokenizer.get_vocab() == load("tiny-cot").tokenizer.get_vocab()
    run("train_tiny_cot.py", "--steps", 40, "--tokens", 256, "--every", 90, "--rows", 4, "--out", tmp_path / "again")
    again = load(tmp_path / "again")
    assert all(torch.equal(a, b) for a, b in zip(loaded.model.parameters(), again.model.parameters()))


@pytest.mark.slow
def test_a_few_steps_leave_an_adapter_of_the_shipped_kind(tmp_path):
    path = tmp_path / "adapter.safetensors"
    said = run("train_smollm2_cot_adapter.py", "--steps", 20, "--batch", 1, "--rows", 1, "--out", path)
    assert "step 20" in said and "whole answer right" in said
    with safe_open(path, framework="pt") as ours, safe_open(ALIASES["smollm2-135m-cot"].adapter, framework="pt") as shipped:
        assert set(ours.keys()) == set(shipped.keys())
        assert ours.metadata()["scale"] == shipped.metadata()["scale"]
        for name in shipped.keys():  # noqa: SIM118 (not a dict)
            assert ours.get_slice(name).get_shape() == shipped.get_slice(name).get_shape()
            assert ours.get_slice(name).get_dtype() == shipped.get_slice(name).get_dtype()
