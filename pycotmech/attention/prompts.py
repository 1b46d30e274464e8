"""The forms in which prompts are given: one, a batch, a list."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from pycotmech.model.prompts import Tokens, is_prompt, resolve_positions, unpacked

if TYPE_CHECKING:
    from pycotmech.model import Model


def is_list_of_prompts(tokens: Tokens | Sequence[Tokens]) -> bool:
    """Whether these are several prompts of any lengths, each with a result of its own."""
    return isinstance(tokens, (list, tuple)) and (not tokens or not is_prompt(tokens))


def checked(model: Model, tokens: Tokens) -> tuple[Tensor, bool]:
    """(ids [B, T] on the CPU, whether a batch was given); ValueError names `tokens`."""
    tokens = unpacked(tokens)
    if isinstance(tokens, Tensor) and tokens.ndim == 2:
        if not len(tokens):
            raise ValueError(f"tokens: the batch is empty, got shape {list(tokens.shape)}; expected [B, T]")
        return torch.stack([model.to_tokens(row) for row in tokens]), True
    return model.to_tokens(tokens)[None], False


def chosen_rows(rows: slice | range | int | Sequence[int] | Tensor | None, T: int) -> list[int] | None:
    """Row positions counted from the front, in the order given; None: every row. ValueError names `rows`."""
    if rows is None:
        return None
    if isinstance(rows, slice):
        rows = range(*rows.indices(T))
    found = resolve_positions(rows, T, argument="rows")
    if not found:
        raise ValueError("rows: no row is chosen; expected positions, or None for all")
    return found
