"""Which families there are, and which one reads a model."""

from __future__ import annotations

import importlib
from typing import Any

import torch
from torch import nn

from pycotmech.model.families.base import Family
from pycotmech.model.families.fields import unclassified
from pycotmech.model.families.llama import LlamaFamily
from pycotmech.model.families.refused import refuse_kinds, rotary_fields, why
from pycotmech.model.placement import is_placed

FAMILIES: tuple[type[Family], ...] = (LlamaFamily,)

_BY_TYPE = {
    "gemma": "gemma:GemmaFamily",
    "gemma2": "gemma2:Gemma2Family",
    "gemma3_text": "gemma3:Gemma3Family",
    "glm4": "glm4:Glm4Family",
    "gpt2": "gpt2:GPT2Family",
    "gpt_neox": "gpt_neox:GPTNeoXFamily",
    "gpt_oss": "gpt_oss:GptOssFamily",
    "granite": "granite:GraniteFamily",
    "ministral": "mistral:MinistralFamily",
    "ministral3": "ministral3:Ministral3Family",
    "mistral": "mistral:MistralFamily",
    "mixtral": "mixtral:MixtralFamily",
    "olmo2": "olmo2:Olmo2Family",
    "olmo3": "olmo2:Olmo3Family",
    "olmoe": "olmoe:OlmoeFamily",
    "phi": "phi:PhiFamily",
    "phi3": "phi3:Phi3Family",
    "qwen2": "qwen2:Qwen2Family",
    "qwen3": "qwen3:Qwen3Family",
    "qwen3_moe": "qwen3_moe:Qwen3MoeFamily",
    "smollm3": "smollm3:SmolLM3Family",
}
"""model_type -> file and class. Loaded when a model of the type is: each imports its part of transformers."""

SUPPORTED = tuple(sorted({*(name for family in FAMILIES for name in family.model_types), *_BY_TYPE}))
"""Every `model_type` that some family reads."""


def family_class(config: Any, source: str = "model") -> type[Family]:
    """The adapter for a configuration (or its dict), which is checked against it: nothing of a model has to be there yet.

    Raises, beginning with `source`, ValueError for a model type without a family, and for a field that changes what is computed
    and is not one that the family reads; NotImplementedError for kinds of layers and of rotary embeddings that none computes.
    """
    values = config if isinstance(config, dict) else config.to_dict()
    kind = values.get("model_type")
    found = next((family for family in FAMILIES if kind in family.model_types), None)
    if found is None and kind in _BY_TYPE:
        module, name = _BY_TYPE[kind].split(":")
        found = getattr(importlib.import_module(f"pycotmech.model.families.{module}"), name)
    if found is None:
        raise ValueError(f"{source} is of model_type {kind!r}{why(values)}; supported: {', '.join(SUPPORTED)}")
    refuse_kinds(values, source)
    unknown = [f"{name} = {values[name]!r}" for name in unclassified(values, found.reads)]
    unknown += [f"{name} = {value!r} in its rotary parameters" for name, value in rotary_fields(values, found.reads)]
    if unknown:
        raise ValueError(
            f"{source}: the configuration has {', '.join(unknown)}, which models of "
            f"type {kind!r} are not known to have; it may change what they compute, so the model is not run without it"
        )
    return found


def family_of(hf: nn.Module) -> Family:
    """The adapter for a Hugging Face causal language model; ValueError as `family_class`, or if it has no `lm_head`."""
    config = getattr(hf, "config", None)
    if config is None or not hasattr(hf, "lm_head"):
        raise ValueError(
            f"model: {type(hf).__name__} is not supported; expected a Hugging Face causal language model with model_type "
            f"{', '.join(SUPPORTED)}"
        )
    family = family_class(config)
    if not is_placed(hf):
        found = sorted({str(p.device) for p in hf.parameters()})
        if len(found) > 1:
            raise ValueError(
                f"model: its weights are on {' and '.join(found)}, and nothing moves rows between these; expected a model on "
                "one device, or one that was placed by device_map= (accelerate)"
            )
        return family(hf)  # type: ignore[call-arg]
    from pycotmech.model.families.placed import placed

    return placed(family)(hf)  # type: ignore[call-arg]


def without_weights(config: Any) -> Family:
    """The adapter for a model of this transformers configuration that has no values, for its sizes alone: nothing is loaded.

    Raises TypeError for anything else.
    """
    if isinstance(config, nn.Module) or not hasattr(config, "num_hidden_layers"):
        raise TypeError(f"model: got {type(config).__name__}; expected a pycotmech.Model or a transformers configuration")
    from transformers import AutoModelForCausalLM

    with torch.device("meta"):
        return family_of(AutoModelForCausalLM.from_config(config))
