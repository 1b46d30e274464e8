"""Settings: their bounds, and threads that are left as they were."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch

import pycotmech as pcm
from pycotmech.runs import Settings
from pycotmech.runs.settings import torch_threads
from tests.reference.tiny import tiny_llama


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"threads": 100_000}, f"threads: got 100000; expected at most {os.cpu_count()}"),
        ({"threads": 0}, "threads: got 0; expected 1 or more"),
        ({"seed": 2**62}, f"seed: got {2**62}; expected at most {2**32 - 1}"),
        ({"seed": -1}, "seed: got -1; expected 0 or more"),
    ],
)
def test_numbers_beyond_their_bounds_are_refused(given, message):
    with pytest.raises(ValueError) as caught:
        Settings(model="tiny-cot", **given).check()
    assert message in str(caught.value)


def test_the_largest_seed_works():
    Settings(model="tiny-cot", seed=2**32 - 1).check()
    model = pcm.Model(tiny_llama(seed=0), None)
    pcm.patch_heads(model, torch.tensor([1, 2, 3]), torch.tensor([1, 4, 3]), seed=2**32 - 1)


def test_threads_are_left_as_they_were():
    before = torch.get_num_threads()
    with pytest.raises(RuntimeError), torch_threads(1):
        assert torch.get_num_threads() == 1
        raise RuntimeError
    assert torch.get_num_threads() == before
    with pytest.raises(ValueError, match="threads: got 100000"), torch_threads(100_000):
        pass


def test_a_template_is_said_only_if_there_is_one():
    """Folders that were made before templates are continued."""
    plain = Settings("tiny-cot").identity()
    assert "template" not in plain and "think" not in plain
    chat = Settings("tiny-cot", template="chat", think=True)
    chat.check()
    assert chat.identity() == {**plain, "template": "chat", "think": True}
    with pytest.raises(ValueError, match="think: got True without a template"):
        Settings("tiny-cot", think=True).check()
    with pytest.raises(ValueError, match="template: got 'turns'; expected one of chat"):
        Settings("tiny-cot", template="turns").check()
    with pytest.raises(ValueError, match="template: has no meaning with pairs"):
        Settings("tiny-cot", pairs=Path("x.jsonl"), template="chat").check()
