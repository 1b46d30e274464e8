"""Checks on the fields of a Llama configuration, before anything is built from them: one error that names the field.

transformers reads most of these without a look: a zero becomes a ZeroDivisionError, an unknown name a KeyError, and a number
of layers that no file holds is built until memory ends.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from numbers import Integral, Real
from typing import Any

from pycotmech._words import plural

_COUNTS = (
    "vocab_size",
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "head_dim",
    "max_position_embeddings",
)
_MAY_BE_NONE = ("num_key_value_heads", "head_dim")
_FLAGS = ("attention_bias", "mlp_bias", "tie_word_embeddings")
_DTYPES = ("float64", "float32", "float16", "bfloat16", "auto")
_ROPE_LISTS = ("long_factor", "short_factor")
_ROPE_NUMBERS = (
    "rope_theta",
    "factor",
    "low_freq_factor",
    "high_freq_factor",
    "original_max_position_embeddings",
    "attention_factor",
    "beta_fast",
    "beta_slow",
    "partial_rotary_factor",
)


def check_config(
    config: Mapping[str, Any], *, source: object, layers: int | None = None, names: Mapping[str, str] | None = None
) -> None:
    """Raises ValueError naming the first field with which no model can be built.

    config: as in config.json; a field that is absent has transformers' default.
    layers: of how many layers there are tensors; None: unknown.
    names: what the source calls a field, where it has another name for it.
    """

    def refuse(field: str, expected: str) -> None:
        value = config[field]
        shown = repr(value) if len(repr(value)) < 120 else type(value).__name__
        raise ValueError(f"{source}: {(names or {}).get(field, field)} in its configuration is {shown}; expected {expected}")

    for field in _COUNTS:
        value = config.get(field, 1)
        if not (_is_count(value) or (value is None and field in _MAY_BE_NONE)):
            refuse(field, "a positive integer")
    for field in _FLAGS:
        if not isinstance(config.get(field, False), bool):
            refuse(field, "true or false")
    if layers is not None and config.get("num_hidden_layers", layers) > layers:
        refuse("num_hidden_layers", f"at most {layers}: there are tensors of {plural(layers, 'layer')}")
    heads, key_value_heads = config.get("num_attention_heads"), config.get("num_key_value_heads")
    if heads and key_value_heads and heads % key_value_heads:
        refuse("num_key_value_heads", f"a divisor of num_attention_heads, which is {heads}")
    if heads and config.get("hidden_size") and not config.get("head_dim") and config["hidden_size"] % heads:
        refuse(
            "num_attention_heads", f"a divisor of hidden_size, which is {config['hidden_size']}, where head_dim is not given"
        )
    if (config.get("head_dim") or 2) % 2:
        refuse("head_dim", "an even number: rotary embeddings turn pairs of channels")
    epsilon = config.get("rms_norm_eps", 0.0)
    if not _is_number(epsilon) or epsilon < 0:
        refuse("rms_norm_eps", "a small number, 0 or more")
    _check_activation(config, refuse)
    pad, vocabulary = config.get("pad_token_id"), config.get("vocab_size")
    if pad is not None and (not _is_integer(pad) or pad < -1 or (vocabulary is not None and pad >= vocabulary)):
        refuse("pad_token_id", "a token id" + (f" in 0..{vocabulary - 1}" if vocabulary else "") + ", or null")
    theta = config.get("rope_theta")
    if theta is not None and (not _is_number(theta) or theta <= 0):
        refuse("rope_theta", "a positive number")
    dropout = config.get("attention_dropout")
    if dropout is not None and (not _is_number(dropout) or not 0 <= dropout <= 1):
        refuse("attention_dropout", "a number from 0 to 1")
    for field in ("dtype", "torch_dtype"):
        if config.get(field) is not None and str(config[field]).removeprefix("torch.") not in _DTYPES:
            refuse(field, f"one of {', '.join(_DTYPES)}")
    for field in ("rope_parameters", "rope_scaling"):
        _check_rope(config, field, refuse)


def _check_activation(config: Mapping[str, Any], refuse: Any) -> None:
    from transformers.activations import ACT2FN

    name = config.get("hidden_act", "silu")
    if not isinstance(name, str) or name not in ACT2FN:
        refuse("hidden_act", "an activation that transformers has, such as 'silu'")


def _check_rope(config: Mapping[str, Any], field: str, refuse: Any) -> None:
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    rope = config.get(field)
    if rope is None:
        return
    if not isinstance(rope, Mapping):
        refuse(field, "a mapping with rope_type, or null")
    if rope and all(isinstance(kind, Mapping) for kind in rope.values()):  # one for each type of layer
        for part in rope.values():
            _check_rope({field: part}, field, refuse)
        return
    kinds = ("default", *ROPE_INIT_FUNCTIONS)
    kind = rope.get("rope_type", rope.get("type", "default"))
    if kind not in kinds:
        refuse(field, f"a rope_type among {', '.join(kinds)}")
    for name in _ROPE_NUMBERS:
        value = rope.get(name)
        if value is not None and (not _is_number(value) or value <= 0):
            refuse(field, f"a positive number for {name}")
    for name in _ROPE_LISTS:
        values = rope.get(name)
        if values is not None and not (isinstance(values, list) and all(_is_number(v) and v > 0 for v in values)):
            refuse(field, f"a list of positive numbers for {name}")


def _is_integer(value: object) -> bool:
    return isinstance(value, Integral) and not isinstance(value, bool)


def _is_count(value: Any) -> bool:
    return _is_integer(value) and value > 0


def _is_number(value: Any) -> bool:
    return isinstance(value, Real) and not isinstance(value, bool) and math.isfinite(value)
