"""Activations by TransformerLens' names; `tests/peers/test_exports.py` compares them with its own cache."""

from __future__ import annotations

import pytest
import torch

import pycotmech as pcm
from pycotmech.exports import activation_cache
from pycotmech.model.sites import SITES, hook_name, parse_site
from tests.reference.tiny import tiny_llama


@pytest.mark.parametrize("tokens", [torch.arange(1, 8), torch.arange(1, 15).view(2, 7)])
def test_names_and_shapes(tokens):
    model = pcm.Model(tiny_llama(n_heads=4, n_key_value_heads=2))
    cfg, acts = model.cfg, model.run(tokens, capture=SITES)
    cache = activation_cache(acts)
    B, T = (1, *tokens.shape)[-2:]
    assert len(cache) == len(SITES) * cfg.n_layers
    assert cache["blocks.1.attn.hook_z"].shape == cache["blocks.0.attn.hook_q"].shape == (B, T, 4, cfg.d_head)
    assert cache["blocks.0.attn.hook_k"].shape == cache["blocks.1.attn.hook_v"].shape == (B, T, 2, cfg.d_head)
    assert cache["blocks.1.hook_resid_post"].shape == (B, T, cfg.d_model)
    for name, value in cache.items():
        site, layer = parse_site(name)
        assert hook_name(site, layer) == name and torch.equal(value if tokens.ndim == 2 else value[0], acts[name])
    assert cache["blocks.1.attn.hook_z"].untyped_storage().data_ptr() == acts["z"].untyped_storage().data_ptr()
