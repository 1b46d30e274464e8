"""Metrics on logits."""

import pytest
import torch

from pycotmech.engine.metrics import kl_from, log_probability
from tests.reference.truth import kl


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_kl_is_that_of_the_definition_and_leaves_the_logits_alone(dtype):
    logits = torch.randn(5, 301, generator=torch.Generator().manual_seed(0)).to(dtype)
    before = logits.clone()
    found = kl_from(logits[0], logits)  # one of the rows itself
    assert torch.equal(logits, before)
    assert found.tolist() == pytest.approx([kl(logits[0], row) for row in logits], abs=1e-12)


def test_log_probability_of_one_token_and_of_one_for_each_row():
    logits = torch.randn(4, 301, generator=torch.Generator().manual_seed(1))
    want = torch.log_softmax(logits.double(), -1)
    assert log_probability(logits, 7).tolist() == pytest.approx(want[:, 7].tolist(), abs=1e-12)
    tokens = torch.tensor([3, 0, 300, 3])
    assert log_probability(logits, tokens).tolist() == pytest.approx(want[range(4), tokens].tolist(), abs=1e-12)
    assert torch.equal(log_probability(logits, torch.full((4,), 7)), log_probability(logits, 7))
