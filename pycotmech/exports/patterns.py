"""Attention patterns of a text, layer by layer and some rows at a time, and its tokens as they are shown."""

from __future__ import annotations

from collections.abc import Callable, Container
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from pycotmech.files.text import printable
from pycotmech.lens.request import token_text
from pycotmech.model.run import watch

if TYPE_CHECKING:
    from pycotmech.model import Model

_ENTRIES = 1 << 24
"""Entries of a pattern that are held at a time: 64 MiB in float32."""


def watch_patterns(
    model: Model, tokens: Tensor, see: Callable[[int, int, Tensor], None], layers: Container[int] | None = None
) -> None:
    """Shows the attention weights of a text, tokens [T], to `see`.

    see: (layer, first row, weights [n, H, T] of rows first .. first + n - 1), for all rows of the layers; on the model's
        device, 0 above the diagonal.
    layers: which; None: all.
    Cost: a forward pass without logits, and T x T products for each head of these layers.
    """
    family, T = model.family, len(tokens)
    step = max(1, _ENTRIES // (model.cfg.n_heads * T))

    def attend(l: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        attention = family.attention(l)
        if layers is None or l in layers:
            rows, keys = (t[0].transpose(0, 1).to(family.resid_dtype) for t in (q, k))  # [T, heads, D]
            for first in range(0, T, step):
                n = min(step, T - first)
                positions = torch.arange(first, first + n, device=q.device)
                see(l, first, attention.pattern(rows[first : first + n].contiguous(), keys, positions))
        return attention.extract(q, k, v).z

    with torch.no_grad():
        watch(family, tokens[None], attend)


def token_texts(model: Model, tokens: Tensor) -> list[str]:
    """Returns the text of each token, control characters as escapes; its id if the model has no tokenizer."""
    return [printable(token_text(model, int(token))) for token in tokens]
