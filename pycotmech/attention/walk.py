"""One pass upward through a model for work that looks at the attention of each layer and needs nothing else.

Between layers only the residual stream is held: queries, keys and values of one layer at a time, no logits. Rows go through
projections and MLPs in blocks, so that temporary memory does not grow with the prompt.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from pycotmech import ops
from pycotmech.model import work
from pycotmech.model.families.llama import LlamaFamily
from pycotmech.model.run import blocks

Attend = Callable[[int, Tensor, Tensor, Tensor], Tensor | None]
"""(layer, q [B, H, T, D], k and v [B, Hkv, T, D]) -> z [B, H, T, D]; q and k are rotated. What the last layer returns is
not used. The tensors are overwritten by the next layer: copy what is to be kept."""


@torch.no_grad()
def walk(family: LlamaFamily, tokens: Tensor, attend: Attend) -> None:
    """Runs tokens [B, T] through all layers, with `attend` in the place of attention.

    Memory: the residual stream, and q, k, v and z of one layer. Cost: a forward pass without the last layer's output
    projection and MLP, and without the unembedding.
    """
    cfg = family.cfg
    B, T = tokens.shape
    R = B * T
    cos, sin = family.rotary(torch.arange(T, device=family.device).repeat(B))
    x = family.embed(tokens.to(family.device).flatten())
    q, k, v = (
        torch.empty(R, heads, cfg.d_head, dtype=family.dtype, device=family.device)
        for heads in (cfg.n_heads, cfg.n_key_value_heads, cfg.n_key_value_heads)
    )
    q4, k4, v4 = (t.unflatten(0, (B, T)).transpose(1, 2) for t in (q, k, v))  # views: filled by the loop below
    for l in range(cfg.n_layers):
        for a, b in blocks(R):
            q[a:b], k[a:b], v[a:b] = family.qkv(l, x[a:b])
            ops.rope(q[a:b], cos[a:b], sin[a:b])
            ops.rope(k[a:b], cos[a:b], sin[a:b])
        z = attend(l, q4, k4, v4)
        if l == cfg.n_layers - 1:
            work.count(family, work.LayerRows(qkv=R))
            return
        rows = z.transpose(1, 2).flatten(0, 1)  # [R, H, D]
        del z
        for a, b in blocks(R):
            x[a:b] += family.attn_out(l, rows[a:b])
            x[a:b] += family.mlp_out(l, x[a:b])
        work.count(family, work.LayerRows.whole(R))
        del rows
