"""What benchmarks stand on: a check that sees a wrong value before a figure is printed, and the products that are recorded."""

import numpy as np
import pytest
import torch

import pycotmech as pcm
from benchmarks.by_hand import check_heads, strongest_heads
from benchmarks.machine import Bare, recorded
from pycotmech import ops
from tests.patching.test_heads import SHAPES, pair
from tests.reference.tiny import tiny_llama

READ = dict(answer=7, wrong=11)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_wrong_effect_gives_no_figure(dtype):
    model, (clean, corrupted) = pcm.Model(tiny_llama(**SHAPES["gqa"], dtype=dtype)), pair()
    effects = pcm.patch_heads(model, clean, corrupted, metric="logit_diff", normalize=False, **READ).effect
    heads = strongest_heads(effects, 3)
    assert [l for l, _ in heads] == [0, 2, 3] and all(abs(effects[h]) == np.abs(effects[h[0]]).max() for h in heads)
    check_heads(model.hf, clean, corrupted, heads, effects, **READ)
    for wrong in (np.zeros_like(effects), np.roll(effects, 1, 1), -effects):
        with pytest.raises(AssertionError, match="by hooks; error"):
            check_heads(model.hf, clean, corrupted, heads, wrong, **READ)
        with pytest.raises(AssertionError, match="by hooks; error"):
            check_heads(model.hf, clean, corrupted, heads, np.stack([effects, wrong]), **READ)
    with pytest.raises(AssertionError, match=r"by hooks; error|check nothing"):
        check_heads(model.hf, clean, corrupted, heads, effects, positions=[33], **READ)


def test_a_check_that_can_see_nothing_gives_no_figure():
    model, (clean, corrupted) = pcm.Model(tiny_llama(**SHAPES["gqa"])), pair()
    with pytest.raises(AssertionError, match="they check nothing"):  # a token against itself
        check_heads(model.hf, clean, corrupted, [(0, 0)], np.zeros((4, 6)), answer=7, wrong=7)


def test_products_of_joining_heads_are_recorded_as_they_are_made():
    weight = torch.nn.Parameter(torch.randn(40, 3 * 8), requires_grad=False)
    heads = torch.tensor([2, 0, 2, 2, 0])
    with recorded() as recording:
        ops.head_delta(torch.randn(5, 8), heads, weight)
    assert recording.flop == 2 * 5 * 8 * 40
    assert [(rows, w.data_ptr()) for rows, w in recording.linears] == [
        (2, weight.data_ptr()),
        (3, weight.data_ptr() + 2 * 8 * 4),
    ]
    Bare(recording).run()


def test_what_is_recorded_of_a_sweep_is_its_plan():
    model, (clean, corrupted) = pcm.Model(tiny_llama(**SHAPES["gqa"])), pair()
    with recorded() as recording:
        plan = pcm.patch_heads(model, clean, corrupted, metric="logit_diff", normalize=False, **READ).plan
    linear = sum(2.0 * rows * w.numel() for rows, w in recording.linears)
    assert linear < plan.flop < 1.1 * recording.flop  # attention's products are those of whole tiles
