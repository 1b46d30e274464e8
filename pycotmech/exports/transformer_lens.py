"""Activations under the names and in the shapes of a TransformerLens ActivationCache."""

from __future__ import annotations

from torch import Tensor

from pycotmech.model import Activations
from pycotmech.model.sites import hook_name


def activation_cache(acts: Activations) -> dict[str, Tensor]:
    """Returns the activations of `Model.run` by TransformerLens' names of hook points, one for each layer.

    acts: of one text, which becomes a batch of one, or of a batch.
    "blocks.0.hook_resid_pre", "blocks.0.attn.hook_z", ...: [B, T, d] for residual sites, [B, T, H, D] for q and z,
    [B, T, Hkv, D] for k and v. q and k are before the rotary embedding, as there.

    The tensors are views of those in `acts`; nothing is copied. `transformer_lens.ActivationCache(cache, bridge)` takes it.
    """
    out: dict[str, Tensor] = {}
    for site in acts:
        value = acts[site] if acts.tokens.ndim == 2 else acts[site][None]  # [B, L, T, ...]
        out |= {hook_name(site, l): value[:, l] for l in range(value.shape[1])}
    return out
