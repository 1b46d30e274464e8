"""All heads at the shape of SmolLM2-135M in bfloat16: so small that launches, not products, take the time."""

from __future__ import annotations

from transformers import LlamaConfig

from benchmarks.gpu.bench import Bench
from benchmarks.gpu.found import Found
from benchmarks.gpu.sweeps import SMALL, sweeps
from benchmarks.llama7b import shape


def smollm2_shape(**sizes: int) -> LlamaConfig:
    """The configuration of SmolLM2-135M."""
    own = dict(
        vocab_size=49152, hidden_size=576, intermediate_size=1536, num_attention_heads=9, num_key_value_heads=3,
        tie_word_embeddings=True, rope_theta=100000.0,
    )  # fmt: skip
    config = shape(30, **{**own, **sizes})
    config.max_position_embeddings = 65536  # the summary's lengths, without a warning
    return config


def run(bench: Bench, found: Found) -> None:
    sweeps(bench, found, shape(12, num_key_value_heads=2, **SMALL) if bench.small else smollm2_shape())
