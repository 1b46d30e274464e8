"""The forms in which prompts and positions are given: strings, token ids, batches, lists, what a tokenizer returned."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from numbers import Integral
from typing import Any

import numpy as np
import torch
from torch import Tensor

Tokens = Tensor | np.ndarray | Sequence[int] | str | Mapping[str, Any]
"""One prompt: token ids [T], a string if the model has a tokenizer, or what a tokenizer returned for one string."""


def unpacked(prompts: Any, *, argument: str = "tokens") -> Any:
    """The token ids in a tokenizer's output, without padding; anything else as it is.

    Ids of one string (also [1, T], as with return_tensors="pt") are one prompt; a tensor [B, T] of equal lengths stays one;
    other batches become a list. Raises ValueError, naming `argument`, for a mapping without input_ids.
    """
    if hasattr(prompts, "ids") and hasattr(prompts, "type_ids"):  # of the tokenizers library
        return prompts.ids
    if not isinstance(prompts, Mapping):
        return prompts
    if "input_ids" not in prompts:
        raise ValueError(
            f"{argument}: got a {type(prompts).__name__} with the keys {list(prompts)}; expected a prompt, or a tokenizer's "
            "output with input_ids"
        )
    ids, mask = prompts["input_ids"], prompts.get("attention_mask")
    nested = ids.ndim == 2 if isinstance(ids, Tensor | np.ndarray) else len(ids) > 0 and not is_prompt(ids)
    if not nested:
        ids, mask = [ids], None if mask is None else [mask]
    if mask is not None:
        padded = [np.asarray(row) == 0 for row in mask]
        if any(row.any() for row in padded):
            ids = [torch.as_tensor(row)[torch.as_tensor(~away)] for row, away in zip(ids, padded, strict=True)]
    return ids[0] if len(ids) == 1 else ids if isinstance(ids, Tensor) else list(ids)


def is_prompt(value: object) -> bool:
    """Whether this is one prompt, not several: a string, ids [T] as a tensor, an array or a list of integers."""
    if isinstance(value, str):
        return True
    if isinstance(value, Mapping):
        unpacked_value = unpacked(value)
        return not isinstance(unpacked_value, Mapping) and is_prompt(unpacked_value)
    if isinstance(value, (Tensor, np.ndarray)):
        return value.ndim <= 1
    if not isinstance(value, Sequence):
        return False
    return len(value) == 0 or value[0] is None or isinstance(value[0], Integral) or getattr(value[0], "ndim", 1) == 0


def listed(prompts: Any, *, argument: str) -> tuple[list[Any], bool]:
    """Prompts as a list, and whether one was given rather than several.

    Raises TypeError, naming `argument`, for something that is neither.
    """
    prompts = unpacked(prompts, argument=argument)
    if is_prompt(prompts):
        return [prompts], True
    if not isinstance(prompts, Tensor | np.ndarray | Sequence):
        raise TypeError(f"{argument}: got {type(prompts).__name__}; expected a prompt (token ids [T] or a string), or a list")
    return list(prompts), False


def token_ids(prompt: Any, *, argument: str = "tokens") -> Tensor:
    """One prompt of token ids as a tensor [T] on the CPU.

    Raises ValueError, naming `argument`, for anything else and for an empty prompt.
    """
    if isinstance(prompt, (list, tuple)):
        wrong = [p for p in prompt if isinstance(p, bool) or not hasattr(p, "__index__")]
        if wrong:
            raise ValueError(
                f"{argument}: got {wrong[0]!r} of type {type(wrong[0]).__name__} among the token ids; expected integers [T]"
            )
    try:
        # PyTorch takes no array whose strides are negative.
        tokens = torch.as_tensor(np.ascontiguousarray(prompt) if isinstance(prompt, np.ndarray) else prompt)
    except (TypeError, ValueError, RuntimeError, OverflowError) as error:
        raise ValueError(
            f"{argument}: got {type(prompt).__name__}; expected integer token ids [T] or a string ({error})"
        ) from error
    if tokens.numel() == 0:
        raise ValueError(f"{argument}: the prompt is empty; expected at least one token")
    if tokens.ndim != 1 or tokens.dtype == torch.bool or tokens.is_floating_point() or tokens.is_complex():
        raise ValueError(f"{argument}: expected integer token ids [T], got {tokens.dtype} of shape {list(tokens.shape)}")
    if tokens.is_meta:
        raise ValueError(f"{argument}: got a tensor on the meta device, which has no values; expected token ids [T]")
    return tokens.long().cpu()


def resolve_positions(positions: int | Sequence[int] | Tensor, T: int, *, argument: str = "positions") -> list[int]:
    """Positions counted from the first token; negative ones count from the end.

    Raises ValueError if one is outside the prompt or is no integer (a mask of booleans names no positions).
    """
    given = positions.tolist() if isinstance(positions, (Tensor, np.ndarray)) else positions
    out = []
    for p in given if isinstance(given, Iterable) else [given]:
        if isinstance(p, bool | np.bool_) or not hasattr(p, "__index__"):
            raise ValueError(f"{argument}: got {p!r} of type {type(p).__name__}; expected integers, negative from the end")
        if not -T <= p < T:
            raise ValueError(f"{argument}: {p} is outside a prompt of {T} tokens; expected {-T}..{T - 1}")
        out.append(int(p) % T)
    return out


def ranges_of(positions: Iterable[int]) -> list[tuple[int, int]]:
    """Positions as half-open ranges of consecutive ones, ascending."""
    known = set(positions)
    starts = sorted(p for p in known if p - 1 not in known)
    ends = sorted(p + 1 for p in known if p + 1 not in known)
    return list(zip(starts, ends, strict=True))
