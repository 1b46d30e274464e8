"""What GGUF calls the parts and sizes of each architecture, and the transformers configuration that is equal to them."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from pycotmech.model.config_check import check_config
from pycotmech.model.gguf_header import PackedTensor

FREQUENCIES = "rope_freqs.weight"
_NO_ORDER = ("vocab_size", "tensor_data_layout")  # hyperparameters that say nothing the tensors do not say


class Hyperparameters:
    """The keys of one architecture in a file. Each is taken once; what is left was not understood."""

    def __init__(self, path: Path, values: Mapping[str, Any], architecture: str) -> None:
        self.path, self.prefix = path, f"{architecture}."
        self.left = {k.removeprefix(self.prefix): v for k, v in values.items() if k.startswith(self.prefix)}

    def take(self, key: str, default: Any = None) -> Any:
        """A value, or the default. Raises ValueError where there is neither, or where layers differ in it."""
        value = self.left.pop(key, default)
        if isinstance(value, list):  # one value per layer; only equal ones have a counterpart
            if len(set(value)) != 1:
                raise ValueError(f"{self.path} has {self.prefix}{key} that differs between layers: {value}")
            value = value[0]
        if value is None:
            raise ValueError(f"{self.path} does not say {self.prefix}{key}")
        return value

    def done(self) -> None:
        """Raises ValueError naming what was not taken."""
        unknown = sorted(set(self.left) - set(_NO_ORDER))
        if unknown:
            names = ", ".join(unknown)
            raise ValueError(f"{self.path} has hyperparameters that are not understood: {names} (of {self.prefix[:-1]})")


class Llama:
    """Llama, and what others share with it. Queries and keys lie in pairs of a rotary plane."""

    interleaved: ClassVar[bool] = True
    """Whether the rows of the query and key projections are in pairs of a rotary plane."""
    norm_offset: ClassVar[float] = 0.0
    """What the file has added to the weights of norms."""
    causal_lm: ClassVar[str] = "LlamaForCausalLM"
    config_class: ClassVar[str] = "LlamaConfig"
    top: ClassVar[dict[str, str]] = {"token_embd": "model.embed_tokens", "output_norm": "model.norm", "output": "lm_head"}
    block: ClassVar[dict[str, str]] = {
        "attn_norm": "input_layernorm",
        "attn_q": "self_attn.q_proj",
        "attn_k": "self_attn.k_proj",
        "attn_v": "self_attn.v_proj",
        "attn_output": "self_attn.o_proj",
        "ffn_norm": "post_attention_layernorm",
        "ffn_gate": "mlp.gate_proj",
        "ffn_up": "mlp.up_proj",
        "ffn_down": "mlp.down_proj",
    }
    sizes: ClassVar[dict[str, str]] = {
        "hidden_size": "embedding_length",
        "num_hidden_layers": "block_count",
        "num_attention_heads": "attention.head_count",
        "intermediate_size": "feed_forward_length",
        "max_position_embeddings": "context_length",
    }
    optional: ClassVar[dict[str, str]] = {
        "num_key_value_heads": "attention.head_count_kv",
        "rms_norm_eps": "attention.layer_norm_rms_epsilon",
    }

    def config(
        self, path: Path, values: Mapping[str, Any], packed: Mapping[str, PackedTensor], layers: int, special: Mapping[str, Any]
    ) -> Any:
        """The transformers configuration. layers: of how many the file has tensors. special: ids of special tokens."""
        import transformers

        given = Hyperparameters(path, values, values["general.architecture"])
        fields = {field: given.take(key) for field, key in self.sizes.items()}
        fields["num_key_value_heads"] = given.take(self.optional["num_key_value_heads"], fields["num_attention_heads"])
        fields["rms_norm_eps"] = given.take(self.optional["rms_norm_eps"])
        names = {field: given.prefix + key for field, key in {**self.optional, **self.sizes}.items()}
        check_config(fields, source=path, layers=layers, names=names)
        d_head = given.take(
            "attention.key_length",
            given.left.get("rope.dimension_count", fields["hidden_size"] // fields["num_attention_heads"]),
        )
        for key in ("attention.value_length", "rope.dimension_count"):
            if given.take(key, d_head) != d_head:
                raise ValueError(f"{path} has {given.prefix}{key} other than the head size {d_head}; this has no counterpart")
        if given.take("expert_count", 0) or given.take("expert_used_count", 0):
            raise ValueError(f"{path} is a mixture of experts; supported here: dense models")
        if "token_embd.weight" not in packed:
            raise ValueError(f"{path} has no tensor token_embd.weight")
        fields |= dict(
            architectures=[self.causal_lm],
            dtype="float32",
            vocab_size=packed["token_embd.weight"].shape[0],
            head_dim=d_head,
            attention_bias="blk.0.attn_q.bias" in packed,
            tie_word_embeddings="output.weight" not in packed,
            **self._more(given, packed, d_head, fields["max_position_embeddings"]),
            **special,
        )
        check_config(fields, source=path, layers=layers, names=names)
        given.done()
        return getattr(transformers, self.config_class)(**fields)

    def _more(
        self, given: Hyperparameters, packed: Mapping[str, PackedTensor], d_head: int, n_positions: int
    ) -> dict[str, Any]:
        """Fields that the architecture has besides."""
        rope = rope_parameters(given, packed.get(FREQUENCIES), d_head, n_positions)
        return {"mlp_bias": "blk.0.ffn_up.bias" in packed, "rope_parameters": rope}


class Gemma3(Llama):
    """Gemma 3 (text): four norms a layer, whose weights the file has 1 added to, norms of queries and keys, windows.

    The file does not say the rotary base of layers with a window, nor which layers these are: both are Gemma 3's own.
    """

    interleaved = False
    norm_offset = 1.0
    causal_lm = "Gemma3ForCausalLM"
    config_class = "Gemma3TextConfig"
    block: ClassVar[dict[str, str]] = {
        **Llama.block,
        "attn_q_norm": "self_attn.q_norm",
        "attn_k_norm": "self_attn.k_norm",
        "post_attention_norm": "post_attention_layernorm",
        "ffn_norm": "pre_feedforward_layernorm",
        "post_ffw_norm": "post_feedforward_layernorm",
    }
    _WINDOW_BASE = 10000.0

    def _more(
        self, given: Hyperparameters, packed: Mapping[str, PackedTensor], d_head: int, n_positions: int
    ) -> dict[str, Any]:
        full = rope_parameters(given, packed.get(FREQUENCIES), d_head, n_positions)
        windowed = {"rope_type": "default", "rope_theta": self._WINDOW_BASE}
        return {
            "sliding_window": given.take("attention.sliding_window"),
            "rope_parameters": {"full_attention": full, "sliding_attention": windowed},
        }


ARCHITECTURES: dict[str, Llama] = {"gemma3": Gemma3(), "llama": Llama()}
"""By what `general.architecture` says."""


def rope_parameters(given: Hyperparameters, frequencies: PackedTensor | None, d_head: int, n_positions: int) -> dict[str, Any]:
    """transformers' rope_parameters; takes every rope key out of what was given."""
    path, left = given.path, given.left
    for key in ("rope.freq_base", "rope.scaling.factor", "rope.scale_linear"):
        if not isinstance(left.get(key, 1.0), int | float):
            raise ValueError(f"{path} has {given.prefix}{key} {left[key]!r}; expected a number")
    theta = float(left.pop("rope.freq_base", 10000.0))
    kind = left.pop("rope.scaling.type", "none")
    factor = float(left.pop("rope.scaling.factor", left.pop("rope.scale_linear", 1.0)))
    left.pop("rope.scaling.original_context_length", None)
    left.pop("rope.scaling.finetuned", None)
    if kind not in ("none", "linear") or (kind == "none" and factor != 1.0):
        raise ValueError(f"{path} scales rotary frequencies by {kind!r} (factor {factor:g}); supported: none, linear")
    scaled = kind == "linear" and factor != 1.0
    plain = {"rope_type": "default", "rope_theta": theta}
    if frequencies is None:
        return {"rope_type": "linear", "rope_theta": theta, "factor": factor} if scaled else plain
    divisors = np.asarray(frequencies.data, dtype=np.float32)
    if divisors.shape != (d_head // 2,) or scaled:
        raise ValueError(
            f"{path} has {FREQUENCIES} of shape {list(divisors.shape)} and linear factor {factor:g}, "
            f"expected {[d_head // 2]} and 1"
        )
    if np.all(divisors == 1):
        return plain
    llama3 = {
        "rope_type": "llama3",
        "rope_theta": theta,
        "factor": float(divisors.max()),
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
    }
    if np.allclose(divisors, _llama3_divisors(llama3, d_head), rtol=1e-5, atol=0):
        return llama3
    # Any other divisors: the one kind of transformers that takes them as they are, for every length.
    return {
        "rope_type": "longrope",
        "rope_theta": theta,
        "factor": 1.0,
        "attention_factor": 1.0,
        "short_factor": divisors.tolist(),
        "long_factor": divisors.tolist(),
        "original_max_position_embeddings": n_positions,
    }


def _llama3_divisors(rope: dict[str, Any], d_head: int) -> np.ndarray:
    """What Llama 3.1 divides each frequency by: 1 for short waves, `factor` for long ones, a blend between."""
    wavelength = 2 * math.pi * rope["rope_theta"] ** (np.arange(0, d_head, 2) / d_head)
    low, high, factor = rope["low_freq_factor"], rope["high_freq_factor"], rope["factor"]
    share = (rope["original_max_position_embeddings"] / wavelength - low) / (high - low)
    share = share.clip(0.0, 1.0)
    return 1 / (share + (1 - share) / factor)
