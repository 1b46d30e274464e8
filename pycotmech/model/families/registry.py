"""Which families there are, and which one reads a model."""

from __future__ import annotations

from torch import nn

from pycotmech.model.families.base import Family
from pycotmech.model.families.llama import LlamaFamily

FAMILIES: tuple[type[Family], ...] = (LlamaFamily,)


def family_of(hf: nn.Module) -> Family:
    """The adapter for a Hugging Face causal language model; ValueError names the model type and the supported ones."""
    kind = getattr(getattr(hf, "config", None), "model_type", None)
    for family in FAMILIES:
        if kind in family.model_types and hasattr(hf, "lm_head"):
            return family(hf)  # type: ignore[call-arg]
    supported = ", ".join(name for family in FAMILIES for name in family.model_types)
    raise ValueError(
        f"model: {type(hf).__name__} (model_type {kind!r}) is not supported; "
        f"expected a Hugging Face causal language model with model_type {supported}"
    )
