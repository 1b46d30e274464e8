"""GGUF files as Hugging Face checkpoints: float32 safetensors, configuration, tokenizer.

A GGUF file differs from the checkpoint it was made from in ways that matter: weights are in quantised blocks; of a Llama the
rows of the query and key projections are in another order (pairs of a rotary plane next to each other, not half a head
apart), and Llama 3's frequency scaling is a tensor of factors; of a Gemma 1 is added to the weights of norms. All of this is
undone here. A tensor or a hyperparameter that is not understood is an error, since passing over one would give another model.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from pycotmech.model._checkpoint import check_tensors
from pycotmech.model.gguf_architectures import ARCHITECTURES, FREQUENCIES, Llama
from pycotmech.model.gguf_header import Header, PackedTensor, read_header

if TYPE_CHECKING:
    from transformers import PreTrainedConfig

_SHARD_BYTES = 2 << 30
_OF_BLOCK = re.compile(r"blk\.\d{1,9}\.")


@dataclass(frozen=True)
class GgufModel:
    """What a GGUF file holds, with its weights still packed.

    architecture: how its parts are called and stored. config: the equal transformers configuration.
    tensors: Hugging Face name -> packed tensor.
    prepend_bos: whether the file says that prompts begin with BOS; None where it says nothing.
    quantisation: the block formats of its weights, most used first, e.g. ("Q4_1", "F32", "Q8_0").
    has_tokenizer: whether it carries a vocabulary.
    """

    path: Path
    architecture: Llama
    config: PreTrainedConfig
    tensors: dict[str, PackedTensor]
    prepend_bos: bool | None
    quantisation: tuple[str, ...]
    has_tokenizer: bool


def read_gguf(path: Path) -> GgufModel:
    """Reads the header of a GGUF file and accounts for each of its tensors and hyperparameters.

    Raises ValueError for a damaged file, another architecture, or anything in it that has no counterpart.
    Cost: no weight is touched; half a second for a vocabulary of 262,144.
    """
    header = read_header(path)
    name = header.values.get("general.architecture")
    architecture = ARCHITECTURES.get(name) if isinstance(name, str) else None
    if architecture is None:
        raise ValueError(f"{path} is a GGUF file of the architecture {name!r}; supported here: {', '.join(ARCHITECTURES)}")
    packed = header.tensors
    layers = max((int(tensor.split(".")[1]) + 1 for tensor in packed if _OF_BLOCK.match(tensor)), default=0)
    config = architecture.config(path, header.values, packed, layers, _special_ids(header))
    tensors = _rename(path, architecture, packed, config)
    counts: dict[str, int] = {}
    for tensor in tensors.values():
        counts[tensor.kind.name] = counts.get(tensor.kind.name, 0) + 1
    bos = header.values.get("tokenizer.ggml.add_bos_token")
    return GgufModel(
        path=path,
        architecture=architecture,
        config=config,
        tensors=tensors,
        prepend_bos=None if bos is None else bool(bos),
        quantisation=tuple(sorted(counts, key=lambda kind: -counts[kind])),
        has_tokenizer="tokenizer.ggml.tokens" in header.values,
    )


def weights(model: GgufModel) -> Iterator[tuple[str, np.ndarray]]:
    """Yields (Hugging Face name, float32 array) for each tensor, one at a time, rows in Hugging Face's order."""
    from gguf.quants import dequantize

    architecture, config = model.architecture, model.config
    for name, tensor in model.tensors.items():
        try:
            array = dequantize(tensor.data, tensor.kind)
        except NotImplementedError as error:
            raise ValueError(
                f"{tensor.name} in {model.path} is in {tensor.kind.name} blocks, which gguf cannot read"
            ) from error
        array = np.asarray(array, dtype=np.float32)
        if architecture.interleaved and ".q_proj." in name:
            array = _unpermute(array, config.num_attention_heads)
        elif architecture.interleaved and ".k_proj." in name:
            array = _unpermute(array, config.num_key_value_heads or config.num_attention_heads)
        elif architecture.norm_offset and name.endswith("norm.weight"):
            array = array - np.float32(architecture.norm_offset)
        yield name, np.ascontiguousarray(array)


def float32_bytes(model: GgufModel) -> int:
    return 4 * sum(tensor.n_elements for tensor in model.tensors.values())


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
        (folder / "model.safetensors.index.json").write_text(json.dumps(index, indent=1), "utf-8", newline="\n")
    if model.has_tokenizer:
        from transformers import AutoTokenizer
        from transformers.models.auto.tokenization_auto import TOKENIZER_MAPPING

        # AutoTokenizer would read every field of Gemma's file once more to find this class: 40 s for 262,144 tokens.
        kind: Any = TOKENIZER_MAPPING.get(type(model.config), None) or AutoTokenizer
        kind.from_pretrained(str(model.path.parent), gguf_file=model.path.name).save_pretrained(folder)


def _special_ids(header: Header) -> dict[str, int | None]:
    names = {"bos": "bos", "eos": "eos", "padding": "pad"}
    found = {ours: header.values.get(f"tokenizer.ggml.{theirs}_token_id") for theirs, ours in names.items()}
    return {f"{name}_token_id": None if value is None else int(value) for name, value in found.items()}


def _rename(
    path: Path, architecture: Llama, packed: dict[str, PackedTensor], config: PreTrainedConfig
) -> dict[str, PackedTensor]:
    """Hugging Face's names for the tensors of the file; raises unless they are exactly the model's, in its shapes."""
    import torch
    import transformers

    top, block = architecture.top, architecture.block
    renamed: dict[str, PackedTensor] = {}
    for name, tensor in packed.items():
        head, *middle, kind = name.split(".")
        if name == FREQUENCIES:
            continue
        if not middle and head in top:
            renamed[f"{top[head]}.{kind}"] = tensor
        elif head == "blk" and len(middle) == 2 and middle[0].isdecimal() and middle[1] in block:
            renamed[f"model.layers.{middle[0]}.{block[middle[1]]}.{kind}"] = tensor
        else:
            kind = config.model_type
            raise ValueError(f"{path} has a tensor that a {kind} model does not: {name}")
    with torch.device("meta"):
        model = getattr(transformers, architecture.causal_lm)(config)
        expected = {name: tuple(weight.shape) for name, weight in model.state_dict().items()}
    found = {name: ("F32", tensor.shape) for name, tensor in renamed.items()}
    tied = ("lm_head.weight",) if config.tie_word_embeddings else ()
    check_tensors(found, expected, tied=tied, source=path)
    return renamed


def _unpermute(rows: np.ndarray, n_heads: int) -> np.ndarray:
    """[H, D/2, 2] rows, planes next to each other -> [H, 2, D/2], the two halves of each head."""
    return rows.reshape(n_heads, -1, 2, *rows.shape[1:]).swapaxes(1, 2).reshape(rows.shape)
