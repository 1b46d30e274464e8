"""CircuitsVis: attention patterns and values of heads as the arguments of its functions, and as pages."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import Tensor

from pycotmech.exports.patterns import token_texts, watch_patterns
from pycotmech.files.text import printable
from pycotmech.files.write import write_text
from pycotmech.model.arguments import check_integer, check_model
from pycotmech.model.prompts import Tokens

if TYPE_CHECKING:
    from pycotmech.model import Model

_ENDS_SCRIPT = re.compile(r"<(?=/?script|!--)", re.I)
"""What would end the script, or begin a comment in it, into which CircuitsVis writes its arguments as they are."""

_PAGE = (
    '<!doctype html>\n<meta charset="utf-8">\n<meta http-equiv="Content-Security-Policy" content="default-src \'none\'; '
    "script-src 'unsafe-inline' 'unsafe-eval'; style-src 'unsafe-inline'; img-src data: blob:\">\n"
    "<title>CircuitsVis</title>\n"
)
"""A page may run its own script, and may load nothing."""


def circuitsvis_attention(model: Model, tokens: Tokens, *, layer: int, heads: Sequence[int] | None = None) -> dict[str, Any]:
    """Returns the arguments of `circuitsvis.attention.attention_heads` for one layer.

    tokens: ids [T] or a text. heads: which; None: all.
    "attention": [H, T, T] float32, rows are queries; "tokens": texts, made safe to show; "attention_head_names": L{l}H{h}.
    Raises TypeError or ValueError naming the argument. Cost: a forward pass without logits, and the patterns of the layer.
    """
    check_model(model)
    ids = model.to_tokens(tokens)
    chosen = list(range(model.cfg.n_heads)) if heads is None else list(heads)
    chosen = [check_integer(h, "heads", 0, model.cfg.n_heads - 1) for h in chosen]
    layer = check_integer(layer, "layer", 0, model.cfg.n_layers - 1)
    parts: list[Tensor] = []

    def see(_layer: int, _first: int, p: Tensor) -> None:
        parts.append(p[:, chosen].float().cpu())

    watch_patterns(model, ids, see, [layer])
    return {
        "attention": torch.cat(parts).transpose(0, 1).contiguous().numpy(),
        "tokens": [_safe(text) for text in token_texts(model, ids)],
        "attention_head_names": [f"L{layer}H{h}" for h in chosen],
        "mask_upper_tri": True,
    }


def circuitsvis_values(values: ArrayLike, tokens: Sequence[str]) -> dict[str, Any]:
    """Returns the arguments of `circuitsvis.activations.text_neuron_activations` for a number of each layer, token and head.

    values: [L, T, H], such as the effects of a sweep with by_position=True; attention received is [L, H, T] and has to be
        transposed. NaN is drawn as 0. tokens: T texts.
    "activations": [T, L, H] float32.
    Raises ValueError naming the argument.
    """
    array = np.nan_to_num(np.asarray(values, dtype=np.float32))
    if array.ndim != 3:
        raise ValueError(f"values: got shape {list(array.shape)}; expected [layers, tokens, heads]")
    if isinstance(tokens, str) or len(tokens) != array.shape[1]:
        raise ValueError(f"tokens: got {len(tokens)}; expected {array.shape[1]} texts, one for each token of values")
    return {
        "tokens": [_safe(text) for text in tokens],
        "activations": np.ascontiguousarray(array.transpose(1, 0, 2)),
        "first_dimension_name": "Layer",
        "second_dimension_name": "Head",
    }


def write_circuitsvis(path: str | os.PathLike, arguments: Mapping[str, Any]) -> None:
    """Writes a page that draws what `circuitsvis_attention` or `circuitsvis_values` returned, with CircuitsVis' own code in it.

    The page loads nothing from elsewhere. Raises ImportError saying what to install; ValueError for other arguments.
    """
    try:
        from circuitsvis import activations, attention  # type: ignore[import-not-found]
    except ImportError as error:
        raise ImportError("circuitsvis is not installed: pip install 'circuitsvis>=1.43,<2'") from error
    given = dict(arguments)
    given["tokens"] = [_safe(text) for text in given.get("tokens", ())]
    if "attention" in given:
        given["attention_head_names"] = [_safe(name) for name in given.get("attention_head_names", ())] or None
        drawn = attention.attention_heads(**given)
    elif "activations" in given:
        drawn = activations.text_neuron_activations(**given)
    else:
        raise ValueError("arguments: expected what circuitsvis_attention or circuitsvis_values returned")
    write_text(path, _PAGE + drawn.local_src + "\n")


def _safe(text: object) -> str:
    """The text with control characters, and what would end a script, as escapes."""
    return _ENDS_SCRIPT.sub("\\\\x3c", printable(text))
