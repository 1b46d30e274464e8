"""Metrics on logits."""

import pytest
import torch

from pycotmech.engine.metrics import kl_from
from tests.reference.truth import kl


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_kl_is_that_of_the_definition_and_leaves_the_logits_alone(dtype):
    logits = torch.randn(5, 301, generator=torch.Generator().manual_seed(0)).to(dtype)
    before = logits.clone()
    found = kl_from(logits[0], logits)  # one of the rows itself
    assert torch.equal(logits, before)
    assert found.tolist() == pytest.approx([kl(logits[0], row) for row in logits], abs=1e-12)
