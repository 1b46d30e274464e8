"""The traces that come with the package: they are read with the tokenizer of their model, and say what made them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import pycotmech as pcm
from pycotmech.traces import Trace
from tests.reference.tiny import tiny_llama

FOLDER = Path(pcm.__file__).parent / "data" / "traces"


def lines(name: str) -> list[dict]:
    return [json.loads(line) for line in (FOLDER / f"{name}.jsonl").read_text("utf-8").splitlines()]


@pytest.mark.parametrize(
    ("name", "n", "sentences"),
    [("smollm2-135m", 8, 5), ("smollm2-135m-long", 2, 12), ("smollm2-135m-cot", 6, 4), ("gemma3-270m", 6, 5)],
)
def test_they_say_what_made_them(name, n, sentences):
    assert len(lines(name)) == n
    for record in lines(name):
        assert record["model"] == name.removesuffix("-long") and isinstance(record["seed"], int)
        assert len(record["sentences"]) >= sentences
        assert record["answer"] in record["completion"]
        assert "".join(record["sentences"]) in record["prompt"] + record["completion"]


@pytest.mark.parametrize("name", ["smollm2-135m", "smollm2-135m-long", "smollm2-135m-cot"])
def test_they_are_read_and_complete(name, smollm2):
    model = pcm.Model(tiny_llama(d_vocab=len(smollm2), n_positions=2048), smollm2, name=name, prepend_bos=False, check=False)
    for trace, record in zip(Trace.from_jsonl(model, FOLDER / f"{name}.jsonl"), lines(name), strict=True):
        assert trace.n_sentences == len(record["sentences"]) and trace.seed == record["seed"]
        assert smollm2.decode(trace.answer_tokens).strip() == trace.answer_text == record["answer"]
