"""The traces that come with the package: they are read with the tokenizer of their model, and say what made them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import pycotmech as pcm
from pycotmech.traces import Trace
from tests.reference.tiny import tiny_llama

FOLDER = Path(pcm.__file__).parent / "data" / "traces"


@pytest.mark.parametrize("name", ["smollm2-135m", "smollm2-135m-cot"])
def test_they_are_read_and_complete(name, smollm2):
    model = pcm.Model(tiny_llama(d_vocab=len(smollm2), n_positions=2048), smollm2, name=name, prepend_bos=False, check=False)
    file = FOLDER / f"{name}.jsonl"
    traces = Trace.from_jsonl(model, file)
    assert len(traces) >= 5
    for trace, line in zip(traces, file.read_text("utf-8").splitlines(), strict=True):
        record = json.loads(line)
        assert trace.n_sentences >= 4 and record["model"] == name and isinstance(trace.seed, int)
        assert smollm2.decode(trace.answer_tokens).strip() == trace.answer_text == record["answer"]
