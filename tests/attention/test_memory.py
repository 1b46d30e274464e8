"""Peak memory of the summary beside that of a plain forward pass, each in a process of its own."""

from __future__ import annotations

import pytest

from tests.attention.measured import measure

LIMIT = 1.35


@pytest.mark.slow
@pytest.mark.parametrize(("model", "tokens"), [("smollm2-shape", 8192), ("llama2-2-layers", 4096)])
def test_the_summary_needs_at_most_a_third_more_than_a_plain_forward(model, tokens):
    """Everything asked for: four segments, entropy, eight top keys, attention received, all rows of all heads."""
    plain = measure("sdpa", model=model, tokens=tokens, threads=2, runs=1)
    ours = measure("ours", model=model, tokens=tokens, threads=2, runs=1)
    assert ours.peak <= LIMIT * plain.peak, (ours.peak / 2**20, plain.peak / 2**20)


def test_nothing_of_size_t_by_t_is_held():
    """At 4,096 tokens the patterns of 8 heads of one layer are 512 MiB. What may be held beside the weights: the results
    (4 layers x 8 heads x 4,096 rows x 24 numbers, 12 MiB) and the working set of a layer."""
    found = measure("ours", model="narrow", tokens=4096, runs=1)
    results = 4 * 8 * 4096 * (3 + 4 + 16 + 1) * 4
    assert found.peak - found.before < results + 64 * 2**20, (found.peak - found.before) / 2**20
