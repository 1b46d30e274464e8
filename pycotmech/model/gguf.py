"""GGUF files of the llama architecture as Hugging Face checkpoints: float32 safetensors, configuration, tokenizer.

A GGUF file differs from the checkpoint it was made from in three ways that matter: weights are in quantised blocks, the
rows of the query and key projections are in another order (pairs of a rotary plane next to each other, not half a head
apart), and Llama 3's frequency scaling is a tensor of factors. All three are undone here; a tensor or a hyperparameter
that is not understood is an error, since passing over one would give another model.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from pycotmech.model._checkpoint import check_tensors
from pycotmech.model.config_check import check_config

if TYPE_CHECKING:
    from gguf import GGUFReader, ReaderTensor
    from transformers import LlamaConfig

ARCHITECTURES = ("llama",)
_SHARD_BYTES = 2 << 30

_TOP = {"token_embd": "model.embed_tokens", "output_norm": "model.norm", "output": "lm_head"}
_BLOCK = {
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
_OF_BLOCK = re.compile(r"blk\.\d{1,9}\.")
_SIZES = {
    "hidden_size": "embedding_length",
    "num_hidden_layers": "block_count",
    "num_attention_heads": "attention.head_count",
    "intermediate_size": "feed_forward_length",
    "max_position_embeddings": "context_length",
}
_KEY_VALUE_HEADS = "attention.head_count_kv"
_EPSILON = "attention.layer_norm_rms_epsilon"
_FREQUENCIES = "rope_freqs.weight"
_NO_ORDER = ("vocab_size", "tensor_data_layout")  # hyperparameters that say nothing the tensors do not say


@dataclass(frozen=True)
class GgufModel:
    """What a GGUF file holds, with its weights still packed.

    config: the equal transformers configuration.
    tensors: Hugging Face name -> packed tensor.
    prepend_bos: whether the file says that prompts begin with BOS; None where it says nothing.
    quantisation: the block formats of its weights, most used first, e.g. ("Q4_1", "F32", "Q8_0").
    has_tokenizer: whether it carries a vocabulary.
    """

    path: Path
    config: LlamaConfig
    tensors: dict[str, ReaderTensor]
    prepend_bos: bool | None
    quantisation: tuple[str, ...]
    has_tokenizer: bool


def read_gguf(path: Path) -> GgufModel:
    """Reads the header of a GGUF file and accounts for each of its tensors and hyperparameters.

    Raises ValueError for a damaged file, another architecture, or anything in it that has no counterpart.
    Cost: no weight is touched; about 1 s for a vocabulary of 50,000.
    """
    reader = _open(path)
    values = {key: _value(field) for key, field in reader.fields.items() if not key.startswith("tokenizer.ggml.")}
    architecture = values.get("general.architecture")
    if architecture not in ARCHITECTURES:
        raise ValueError(
            f"{path} is a GGUF file of the architecture {architecture!r}; supported here: {', '.join(ARCHITECTURES)}"
        )
    packed = {tensor.name: tensor for tensor in reader.tensors}
    config = _config(path, values, packed, _special_ids(reader))
    tensors = _rename(path, packed, config)
    counts: dict[str, int] = {}
    for tensor in tensors.values():
        counts[tensor.tensor_type.name] = counts.get(tensor.tensor_type.name, 0) + 1
    bos = reader.fields.get("tokenizer.ggml.add_bos_token")
    return GgufModel(
        path=path,
        config=config,
        tensors=tensors,
        prepend_bos=None if bos is None else bool(_value(bos)),
        quantisation=tuple(sorted(counts, key=lambda kind: -counts[kind])),
        has_tokenizer="tokenizer.ggml.tokens" in reader.fields,
    )


def weights(model: GgufModel) -> Iterator[tuple[str, np.ndarray]]:
    """Yields (Hugging Face name, float32 array) for each tensor, one at a time, rows in Hugging Face's order."""
    from gguf.quants import dequantize

    for name, tensor in model.tensors.items():
        try:
            array = dequantize(tensor.data, tensor.tensor_type)
        except NotImplementedError as error:
            kind = tensor.tensor_type.name
            raise ValueError(f"{tensor.name} in {model.path} is in {kind} blocks, which gguf cannot read") from error
        array = np.asarray(array, dtype=np.float32)
        if ".q_proj." in name:
            array = _unpermute(array, model.config.num_attention_heads)
        elif ".k_proj." in name:
            array = _unpermute(array, model.config.num_key_value_heads or model.config.num_attention_heads)
        yield name, np.ascontiguousarray(array)


def float32_bytes(model: GgufModel) -> int:
    return 4 * sum(int(tensor.n_elements) for tensor in model.tensors.values())


def convert(model: GgufModel, folder: Path) -> None:
    """Writes the model into `folder` as transformers would save it: config.json, safetensors, tokenizer files.

    Cost for SmolLM2-135M (98 MB of Q4_1): about 8 s, half of it the tokenizer; memory: one shard of 2 GB at most.
    """
    import json

    from safetensors.numpy import save_file

    model.config.save_pretrained(folder)
    shard: dict[str, np.ndarray] = {}
    places: dict[str, str] = {}
    total = float32_bytes(model)
    single = total <= _SHARD_BYTES

    def flush() -> None:
        name = "model.safetensors" if single else f"model-{len(set(places.values())) + 1:05d}.safetensors"
        save_file(shard, folder / name, metadata={"format": "pt"})
        places.update(dict.fromkeys(shard, name))
        shard.clear()

    size = 0
    for name, array in weights(model):
        if shard and not single and size + array.nbytes > _SHARD_BYTES:
            flush()
            size = 0
        shard[name] = array
        size += array.nbytes
    flush()
    if not single:
        index = {"metadata": {"total_size": total}, "weight_map": places}
        (folder / "model.safetensors.index.json").write_text(json.dumps(index, indent=1), "utf-8")
    if model.has_tokenizer:
        from transformers import AutoTokenizer

        AutoTokenizer.from_pretrained(str(model.path.parent), gguf_file=model.path.name).save_pretrained(folder)


def _open(path: Path) -> GGUFReader:
    from gguf import GGUFReader

    with path.open("rb") as file:
        if file.read(4) != b"GGUF":
            raise ValueError(f"{path} is not a GGUF file: it does not begin with the letters GGUF")
    try:
        return GGUFReader(path)
    except Exception as error:  # the reader indexes into the raw bytes: a short file fails in many ways
        raise ValueError(f"{path} is truncated or damaged ({type(error).__name__}: {error})") from error


def _value(field: Any) -> Any:
    from gguf import GGUFValueType

    parts = [field.parts[i] for i in field.data]
    if field.types[-1] == GGUFValueType.STRING:
        items = [bytes(part).decode("utf-8") for part in parts]
    else:
        items = [part.tolist()[0] for part in parts]
    return items if field.types[0] == GGUFValueType.ARRAY else items[0]


def _special_ids(reader: GGUFReader) -> dict[str, int | None]:
    names = {"bos": "bos", "eos": "eos", "padding": "pad"}
    fields = {ours: reader.fields.get(f"tokenizer.ggml.{theirs}_token_id") for theirs, ours in names.items()}
    return {f"{name}_token_id": None if field is None else int(_value(field)) for name, field in fields.items()}


def _config(path: Path, values: dict[str, Any], packed: dict[str, Any], special: dict[str, Any]) -> LlamaConfig:
    from transformers import LlamaConfig

    prefix = "llama."
    left = {key.removeprefix(prefix): value for key, value in values.items() if key.startswith(prefix)}

    def take(key: str, default: Any = None) -> Any:
        value = left.pop(key, default)
        if isinstance(value, list):  # one value per layer; only equal ones have a counterpart
            if len(set(value)) != 1:
                raise ValueError(f"{path} has {prefix}{key} that differs between layers: {value}")
            value = value[0]
        if value is None:
            raise ValueError(f"{path} does not say {prefix}{key}")
        return value

    fields = {field: take(key) for field, key in _SIZES.items()}
    fields["num_key_value_heads"] = take(_KEY_VALUE_HEADS, fields["num_attention_heads"])
    fields["rms_norm_eps"] = take(_EPSILON)
    names = {"num_key_value_heads": _KEY_VALUE_HEADS, "rms_norm_eps": _EPSILON, **_SIZES}
    names = {field: prefix + key for field, key in names.items()}
    layers = max((int(name.split(".")[1]) + 1 for name in packed if _OF_BLOCK.match(name)), default=0)
    check_config(fields, source=path, layers=layers, names=names)
    d_model, n_heads, n_positions = (fields[f] for f in ("hidden_size", "num_attention_heads", "max_position_embeddings"))
    d_head = take("attention.key_length", left.get("rope.dimension_count", d_model // n_heads))
    for key in ("attention.value_length", "rope.dimension_count"):
        if take(key, d_head) != d_head:
            raise ValueError(f"{path} has {prefix}{key} other than the head size {d_head}; this has no counterpart")
    if take("expert_count", 0) or take("expert_used_count", 0):
        raise ValueError(f"{path} is a mixture of experts; supported here: dense llama models")
    if "token_embd.weight" not in packed:
        raise ValueError(f"{path} has no tensor token_embd.weight")
    fields |= dict(
        architectures=["LlamaForCausalLM"],
        dtype="float32",
        vocab_size=int(packed["token_embd.weight"].shape[1]),  # GGUF lists dimensions from the innermost
        head_dim=d_head,
        attention_bias="blk.0.attn_q.bias" in packed,
        mlp_bias="blk.0.ffn_up.bias" in packed,
        tie_word_embeddings="output.weight" not in packed,
        rope_parameters=_rope(path, left, packed.get(_FREQUENCIES), d_head, n_positions),
        **special,
    )
    check_config(fields, source=path, layers=layers, names=names)
    unknown = sorted(set(left) - set(_NO_ORDER))
    if unknown:
        raise ValueError(f"{path} has hyperparameters that are not understood: {', '.join(unknown)} (of {prefix[:-1]})")
    return LlamaConfig(**fields)


def _rope(path: Path, left: dict[str, Any], frequencies: Any, d_head: int, n_positions: int) -> dict[str, Any]:
    """transformers' rope_parameters; takes every rope key out of `left`."""
    for key in ("rope.freq_base", "rope.scaling.factor", "rope.scale_linear"):
        if not isinstance(left.get(key, 1.0), int | float):
            raise ValueError(f"{path} has llama.{key} {left[key]!r}; expected a number")
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
            f"{path} has {_FREQUENCIES} of shape {list(divisors.shape)} and linear factor {factor:g}, "
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


def _rename(path: Path, packed: dict[str, ReaderTensor], config: LlamaConfig) -> dict[str, ReaderTensor]:
    """Hugging Face's names for the tensors of the file; raises unless they are exactly the model's, in its shapes."""
    import torch
    from transformers import LlamaForCausalLM

    renamed: dict[str, ReaderTensor] = {}
    for name, tensor in packed.items():
        head, *middle, kind = name.split(".")
        if name == _FREQUENCIES:
            continue
        if not middle and head in _TOP:
            renamed[f"{_TOP[head]}.{kind}"] = tensor
        elif head == "blk" and len(middle) == 2 and middle[0].isdecimal() and middle[1] in _BLOCK:
            renamed[f"model.layers.{middle[0]}.{_BLOCK[middle[1]]}.{kind}"] = tensor
        else:
            raise ValueError(f"{path} has a tensor that a llama model does not: {name}")
    with torch.device("meta"):
        expected = {name: tuple(weight.shape) for name, weight in LlamaForCausalLM(config).state_dict().items()}
    found = {name: ("F32", tuple(int(n) for n in reversed(tensor.shape))) for name, tensor in renamed.items()}
    tied = ("lm_head.weight",) if config.tie_word_embeddings else ()
    check_tensors(found, expected, tied=tied, source=path)
    return renamed


def _unpermute(rows: np.ndarray, n_heads: int) -> np.ndarray:
    """[H, D/2, 2] rows, planes next to each other -> [H, 2, D/2], the two halves of each head."""
    return rows.reshape(n_heads, -1, 2, *rows.shape[1:]).swapaxes(1, 2).reshape(rows.shape)
