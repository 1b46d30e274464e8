"""Models of nnterp are taken as they are. nnterp 1.3 needs an nnsight before 0.7, hence an environment of its own."""

from __future__ import annotations

import pytest
import torch

import pycotmech as pcm

pytestmark = pytest.mark.nnterp

IDS = torch.tensor([1, 17, 23, 5, 99, 42, 7])


def test_nnterp(tiny_cot_path):
    import nnterp
    from transformers import AutoModelForCausalLM, AutoTokenizer

    hf = AutoModelForCausalLM.from_pretrained(tiny_cot_path, dtype=torch.float32).eval()
    wrapped = nnterp.StandardizedTransformer(hf, tokenizer=AutoTokenizer.from_pretrained(tiny_cot_path), device_map=None)
    model = pcm.Model.from_nnterp(wrapped)
    expected = pcm.Model.from_pretrained("tiny-cot", dtype="float32").run(IDS).logits
    assert {p.data_ptr() for p in model.hf.parameters()} == {p.data_ptr() for p in hf.parameters()}
    assert torch.equal(model.run(IDS).logits, expected) and model.tokenizer is wrapped.tokenizer
    with wrapped.trace(IDS[None]):
        seen = wrapped.logits.save()
    assert torch.allclose(seen[0], expected, atol=1e-4)
    assert torch.equal(pcm.Model.from_nnsight(wrapped).run(IDS).logits, expected)
