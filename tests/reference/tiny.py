"""Random tiny Llama models for tests: every part matters to the output, nothing is left at zero or one."""

from __future__ import annotations

import torch
from transformers import LlamaConfig, LlamaForCausalLM


def tiny_llama(
    *,
    n_layers: int = 2,
    n_heads: int = 4,
    n_key_value_heads: int | None = None,
    d_head: int = 16,
    d_model: int = 48,
    d_mlp: int = 80,
    d_vocab: int = 61,
    n_positions: int = 256,
    seed: int = 0,
    dtype: torch.dtype = torch.float32,
    attention_bias: bool = False,
    mlp_bias: bool = False,
    tied: bool = False,
    rope_parameters: dict | None = None,
    attn_implementation: str = "eager",
) -> LlamaForCausalLM:
    """A seeded LlamaForCausalLM in eval mode on the CPU, weights without gradients.

    Weights are drawn in float32 and rounded to `dtype`, so that one seed gives the same model in every dtype. They are
    large enough for peaked attention (with the usual 0.02 every pattern is flat and a wrong head looks right); norm
    weights spread around 1 and biases are not zero. d_model is not n_heads * d_head by default: code that confuses the
    two fails. n_key_value_heads below n_heads gives grouped queries.
    """
    config = LlamaConfig(
        vocab_size=d_vocab,
        hidden_size=d_model,
        intermediate_size=d_mlp,
        num_hidden_layers=n_layers,
        num_attention_heads=n_heads,
        num_key_value_heads=n_heads if n_key_value_heads is None else n_key_value_heads,
        head_dim=d_head,
        max_position_embeddings=n_positions,
        attention_bias=attention_bias,
        mlp_bias=mlp_bias,
        tie_word_embeddings=tied,
        rope_parameters=rope_parameters or {"rope_type": "default", "rope_theta": 10000.0},
        bos_token_id=1,
        eos_token_id=2,
        pad_token_id=2,
        attn_implementation=attn_implementation,
    )
    model = LlamaForCausalLM(config)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            noise = torch.randn(weight.shape, generator=generator)
            if name.endswith("norm.weight"):
                weight.copy_(1 + 0.2 * noise)
            elif name.endswith("bias"):
                weight.copy_(0.1 * noise)
            elif "embed_tokens" in name or "lm_head" in name:
                weight.copy_(noise / d_model**0.25)
            else:
                # Unit variance out of unit variance in; queries and keys twice that, for peaked attention.
                gain = 2.0 if "q_proj" in name or "k_proj" in name else 1.0
                weight.copy_(gain * noise / weight.shape[1] ** 0.5)
            weight.data = weight.to(dtype)
    # Only the weights: model.to(dtype) would round the rotary frequencies too, which from_pretrained keeps in float32.
    model.config.dtype = dtype
    return model.eval().requires_grad_(False)


def same_model(a: torch.nn.Module, b: torch.nn.Module) -> bool:
    """Whether two models have bit-equal weights and buffers, in equal dtypes under equal names."""
    ours, theirs = (
        dict(a.named_parameters()) | dict(a.named_buffers()),
        dict(b.named_parameters()) | dict(b.named_buffers()),
    )
    return ours.keys() == theirs.keys() and all(
        ours[name].dtype == theirs[name].dtype and torch.equal(ours[name], theirs[name]) for name in theirs
    )
