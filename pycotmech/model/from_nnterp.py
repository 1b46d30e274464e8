"""The Hugging Face model in a model of nnterp, which is one of nnsight with standard names."""

from __future__ import annotations

from typing import Any

from torch import nn

from pycotmech.model.from_nnsight import from_nnsight
from pycotmech.model.twin import is_of


def from_nnterp(wrapped: Any) -> tuple[nn.Module, Any]:
    """Returns the Hugging Face model in an `nnterp.StandardizedTransformer`, its weights shared, and its tokenizer.

    nnterp's names are aliases on nnsight's side; the Hugging Face model keeps its own, which is what is returned.
    Raises TypeError for what is no nnterp model, otherwise as `from_nnsight`.
    """
    if not is_of(wrapped, "nnterp"):
        raise TypeError(f"wrapped: got {type(wrapped).__name__}; expected an nnterp.StandardizedTransformer")
    return from_nnsight(wrapped)
