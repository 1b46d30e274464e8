"""Checkpoints whose experts are packed as MXFP4 (gpt-oss): transformers restores them, exactly, as ordinary weights.

A block is 32 numbers of four bits (E2M1) with one power of two, its scale. Each product of the two is a number of bfloat16, so
nothing is rounded in bfloat16, float32 or float64.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pycotmech.model import _checkpoint

_BLOCKS, _SCALES = "_blocks", "_scales"
_BLOCK = 32
"""Numbers in a block."""
NOTE = "experts restored from MXFP4 blocks"


def is_packed(config: Mapping[str, Any]) -> bool:
    """Whether the weights of a configuration (as in config.json) are in this format."""
    quantised = config.get("quantization_config")
    return config.get("model_type") == "gpt_oss" and isinstance(quantised, Mapping) and quantised.get("quant_method") == "mxfp4"


def options() -> dict[str, Any]:
    """What `from_pretrained` of transformers takes to restore such weights."""
    from transformers.utils.quantization_config import Mxfp4Config

    return {"quantization_config": Mxfp4Config(dequantize=True)}


def restored(headers: Mapping[str, _checkpoint.Header]) -> dict[str, _checkpoint.Header]:
    """The tensors of a checkpoint as they are once its blocks are restored, in name, dtype and shape: blocks [E, out, n, 16] of
    bytes and scales [E, out, n] of a weight become the weight [E, 32 n, out].

    Other tensors stay as they are, and so do blocks and scales that do not fit each other, which no model expects.
    """
    out = dict(headers)
    for name, (kind, shape) in headers.items():
        scales = headers.get(name.removesuffix(_BLOCKS) + _SCALES)
        bytes_of_a_block = (_BLOCK // 2,)
        if name.endswith(_BLOCKS) and kind == "U8" and scales == ("U8", shape[:-1]) and shape[-1:] == bytes_of_a_block:
            E, rows, n = shape[:-1]
            del out[name], out[name.removesuffix(_BLOCKS) + _SCALES]
            out[name.removesuffix(_BLOCKS)] = ("BF16", (E, _BLOCK * n, rows))
    return out
