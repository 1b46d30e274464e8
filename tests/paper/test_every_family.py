"""All of the paper on every family: a tiny random model of which every step counts as right goes through without a failure."""

import pytest
import torch
from transformers import AutoTokenizer

from pycotmech import paper
from pycotmech.cot.task.steps import Graded
from pycotmech.cot.tools import cells
from pycotmech.paper import ENTRIES
from pycotmech.runs import Settings
from tests.reference.small_families import FAMILIES, small

REFUSED = {"gemma2": {"answer_writers", "context_abidance", "copy_heads", "head_overlap", "keep_only", "remove"}}
"""Of Gemma 2, whose logits are soft-capped and so no sum of what heads write: what needs such a sum, and what needs that."""


def every(model, examples):
    right = torch.ones(len(examples), examples.n_steps, dtype=torch.bool)
    return Graded(right, right[:, 0], "clean", examples.kinds)


@pytest.mark.slow
@pytest.mark.parametrize("family", [family for family in FAMILIES if family != "windowed"])
def test_all_of_the_paper(family, tiny_cot_path, tmp_path, monkeypatch):
    tokenizer = AutoTokenizer.from_pretrained(tiny_cot_path)
    length = "n_positions" if family == "gpt2" else "max_position_embeddings"
    small(family, **{"vocab_size": len(tokenizer), length: 512}).save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    monkeypatch.setattr(cells, "grade", every)
    settings = Settings(model=str(tmp_path / "model"), examples=4, shots=1, steps=(0, 1, 2, 5))
    outcome = paper.run(settings, tmp_path / "out")
    refused = REFUSED.get(family, set())
    assert set(outcome.failures) == refused, outcome.failures
    assert set(outcome.results) == {entry.name for entry in ENTRIES} - refused
    for claim, verdict in outcome.verdicts:
        assert verdict.evidence, claim.name
