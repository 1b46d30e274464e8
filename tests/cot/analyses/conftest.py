"""A model that reasons, and examples of the task for it."""

import pytest
import torch

import pycotmech as pcm


@pytest.fixture(scope="package")
def model():
    return pcm.Model.from_pretrained("tiny-cot")


@pytest.fixture(scope="package")
def examples(model):
    return pcm.cot.make_examples(3, shots=2, tokenizer=model.tokenizer, bos=model.prepend_bos, seed=4)


@pytest.fixture(scope="package")
def every(examples):
    """right=: every step of every example counts."""
    return torch.ones(len(examples), examples.n_steps, dtype=torch.bool)
