"""What no family computes yet, by name: a model of this kind is refused from its configuration, before a weight is read."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from typing import Any

_LINEAR = "it has layers of linear attention"
_STATES = "it has layers of a state-space model"
_NO_HEADS = "it has no attention heads"
_CONVOLVED = "it has layers of short convolutions"
_CHUNKED = "it has layers of chunked attention"
_LATENT = "its keys and values are made of a latent row (multi-head latent attention)"
_ALIBI = "its positions are a bias on scores (ALiBi)"

KINDS: dict[str, str] = {
    "bailing_hybrid": _LINEAR,
    "bamba": _STATES,
    "bloom": _ALIBI,
    "deepseek_v2": _LATENT,
    "deepseek_v3": _LATENT,
    "deepseek_v32": _LATENT,
    "falcon_h1": _STATES,
    "falcon_mamba": _NO_HEADS,
    "glm4_moe_lite": _LATENT,
    "granitemoehybrid": _STATES,
    "jamba": _STATES,
    "kimi_linear": _LINEAR,
    "lfm2": _CONVOLVED,
    "lfm2_moe": _CONVOLVED,
    "llama4": _CHUNKED,
    "llama4_text": _CHUNKED,
    "longcat_flash": _LATENT,
    "mamba": _NO_HEADS,
    "mamba2": _NO_HEADS,
    "minicpm3": _LATENT,
    "minimax": _LINEAR,
    "mpt": _ALIBI,
    "nemotron_h": _STATES,
    "olmo_hybrid": _LINEAR,
    "qwen3_5": _LINEAR,
    "qwen3_5_moe": _LINEAR,
    "qwen3_5_moe_text": _LINEAR,
    "qwen3_5_text": _LINEAR,
    "qwen3_next": _LINEAR,
    "recurrent_gemma": "it has layers of a linear recurrence",
    "rwkv": _NO_HEADS,
    "xlstm": _NO_HEADS,
    "zamba": _STATES,
    "zamba2": _STATES,
}
"""model_type -> what it has that no family computes. Any other type without a family has none yet."""

_LAYERS = ("full_attention", "sliding_attention")
_LONGROPE = "longrope"
"""Rotary embeddings with factors for short prompts and for long ones."""
_ORIGINAL = "original_max_position_embeddings"


def why(config: Mapping[str, Any]) -> str:
    """Why there is no family for a configuration's model type, as the rest of a sentence; empty if none has been written."""
    kind = config.get("model_type")
    if kind in KINDS:
        return f": {KINDS[kind]}, which pycotmech does not compute"
    text = config.get("text_config")
    if isinstance(text, Mapping) and text.get("model_type"):
        return f", whose text model is of model_type {text['model_type']!r}"
    return ""


def refuse_kinds(config: Mapping[str, Any], source: str) -> None:
    """Raises, beginning with `source`, NotImplementedError for layers or rotary embeddings that no family computes, and
    ValueError for a window that is no number of keys."""
    layers = config.get("layer_types")
    odd = sorted({str(kind) for kind in layers if kind not in _LAYERS}) if isinstance(layers, list | tuple) else []
    if odd:
        raise NotImplementedError(
            f"{source}: it has layers of {' and '.join(map(repr, odd))} (layer_types); supported: {', '.join(_LAYERS)}"
        )
    window = config.get("sliding_window") if config.get("use_sliding_window", True) else None
    if window is not None and not (isinstance(window, int) and window > 0):
        raise ValueError(f"{source}: sliding_window is {window!r}; expected how many keys a query sees, 1 or more, or null")
    for rope in _ropes(config):
        kind = rope.get("rope_type", rope.get("type"))
        if kind == "dynamic":
            raise NotImplementedError(
                f"{source}: rope_type {kind!r} changes with the length of the prompt; supported: default, linear, llama3, "
                "yarn, and longrope for prompts of its original length"
            )


def rotary_fields(config: Mapping[str, Any], reads: Collection[str]) -> list[tuple[str, Any]]:
    """Names and values of rotary parameters that a family with these fields (`fields`) does not read."""
    return [
        (name, rope[name])
        for rope in _ropes(config)
        for name, nothing in (("partial_rotary_factor", 1), ("llama_4_scaling_beta", 0))
        if rope.get(name) not in (None, nothing) and name not in reads
    ]


def _ropes(config: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    """The rotary parameters of a configuration, which may have some for each kind of layers."""
    for field in ("rope_parameters", "rope_scaling"):
        rope = config.get(field)
        if isinstance(rope, Mapping):
            yield rope
            yield from (part for part in rope.values() if isinstance(part, Mapping))


def has_longrope(config: Mapping[str, Any]) -> bool:
    """Whether some rotary embedding of a configuration chooses its factors anew in each pass."""
    return any(rope.get("rope_type", rope.get("type")) == _LONGROPE for rope in _ropes(config))


def short_rope_length(config: Mapping[str, Any]) -> int | None:
    """How many tokens the longest prompt has for which the rotary embeddings of a configuration stay the same; None: any.

    Beyond this length "longrope" turns by other factors at every position, those of the first tokens too.
    """
    lengths = [
        int(rope.get(_ORIGINAL) or config.get(_ORIGINAL) or config["max_position_embeddings"])
        for rope in _ropes(config)
        if rope.get("rope_type", rope.get("type")) == _LONGROPE and rope.get("short_factor") != rope.get("long_factor")
    ]
    return min(lengths, default=None)
