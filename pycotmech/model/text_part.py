"""The language model in a model of text and images, as a model of its own: Gemma 3 from 4B on, Mistral Small 3, Ministral 3.

Where a prompt is text, such a model is its language model and nothing else. The vision tower is loaded with it, and not used.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from pycotmech.model.families.one_module import attached
from pycotmech.model.families.registry import SUPPORTED
from pycotmech.model.placement import is_placed

TYPES = ("gemma3", "mistral3")
"""`model_type` of the models whose language model is taken out."""


def text_config(config: dict[str, Any]) -> dict[str, Any]:
    """The fields of the language model in these of a configuration; others as they are."""
    text = config.get("text_config")
    if config.get("model_type") in TYPES and isinstance(text, dict) and text.get("model_type") in SUPPORTED:
        return text
    return config


def text_part(hf: Any) -> nn.Module:
    """The causal language model in a model of text and images, its modules shared; other models as they are.

    Raises ValueError for hooks on what lies around the language model, which would be ignored; NotImplementedError for a model
    that accelerate has placed.
    """
    if getattr(getattr(hf, "config", None), "model_type", None) not in TYPES:
        return hf
    from transformers import AutoModelForCausalLM

    for name, module in (("the model itself", hf), ("model", hf.model)):
        if what := attached(module):
            raise ValueError(
                f"hf_model: {name} carries {what}, which would be ignored, because only its language model is run; remove it, "
                "or put it on a part of the language model"
            )
    if is_placed(hf):
        raise NotImplementedError(
            "hf_model: a model of text and images that was placed by device_map; expected one that is on one device"
        )
    trunk = hf.model.language_model
    with torch.device("meta"):
        alone: Any = AutoModelForCausalLM.from_config(trunk.config)
    alone.model, alone.config, alone.training = trunk, trunk.config, hf.training
    alone.set_output_embeddings(hf.get_output_embeddings())
    return alone
