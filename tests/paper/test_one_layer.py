"""The whole command on a random model of one layer: nothing breaks, and nothing is said of halves that it does not have."""

import numpy as np
import pytest
import torch
from transformers import AutoTokenizer

from pycotmech import paper
from pycotmech.cot.task.steps import Graded
from pycotmech.cot.tools import cells
from pycotmech.paper import ENTRIES
from pycotmech.runs import Settings
from tests.reference.tiny import tiny_llama

BY_LAYER = {"movers", "mixing", "writers", "rift", "abidance"}


@pytest.fixture(scope="module")
def outcome(tiny_cot_path, tmp_path_factory):
    folder = tmp_path_factory.mktemp("one-layer")
    tokenizer = AutoTokenizer.from_pretrained(tiny_cot_path)
    tiny_llama(n_layers=1, n_heads=4, d_vocab=len(tokenizer), n_positions=512).save_pretrained(folder / "model")
    tokenizer.save_pretrained(folder / "model")
    settings = Settings(model=str(folder / "model"), examples=2, shots=1, steps=(2, 5))
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(cells, "grade", every)
        return paper.run(settings, folder / "out")


def every(model, examples):
    """A random model is right nowhere: all steps count."""
    right = torch.ones(len(examples), examples.n_steps, dtype=torch.bool)
    return Graded(right, right[:, 0], "clean", examples.kinds)


def test_everything_runs(outcome):
    assert not outcome.failures and list(outcome.results) == [e.name for e in ENTRIES]
    assert 0 < outcome.plan.flop_per_second < 1e15 and np.isfinite(outcome.plan.seconds)


def test_no_claim_about_the_place_in_the_layers_is_decided(outcome):
    for claim in paper.CLAIMS:
        verdict = claim.verdict(outcome.results)
        assert claim.by_layer == (claim.name in BY_LAYER)
        if claim.by_layer:
            assert verdict.word == "not decided" and "the model has one layer" in verdict.evidence


def test_no_half_of_the_layers_is_spoken_of(outcome):
    results = outcome.results
    (line,) = results["context_abidance"].findings()
    share = float(results["context_abidance"].data["abides"].mean())
    assert f"in the own prompt in {share:.1%}" in line and "in the only layer" in line
    relation = results["relation_heads"]
    relation.data["selected"][:] = True  # whatever was found
    assert np.isnan(relation.first_half().mean)
    text = "\n".join(relation.findings())
    assert "related: the model has one layer" in text and "negated: the model has one layer" in text
    for name, result in results.items():
        words = "\n".join(result.findings())
        assert "half of the layers" not in words.replace("no half of the layers", "") and "layers 0 to" not in words, name
    table = (outcome.folder / "summary.md").read_text("utf-8").split("## Which steps")[0]
    assert "nan" not in table and "n = 1 held out" in table
