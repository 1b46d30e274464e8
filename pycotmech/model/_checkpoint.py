"""Checks on a checkpoint folder: what a loader would pass over in silence is an error here, by name.

transformers fills missing weights with random numbers and drops those it does not know. Names, shapes and dtypes are in
the headers of the safetensors files, so they are compared with the model before any weight is read.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from transformers import PreTrainedModel

from pycotmech.files.text import parse_json

Header = tuple[str, tuple[int, ...]]
"""Dtype and shape of a tensor, as a safetensors file says."""

DTYPES = {"F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16"}
_LAYER = re.compile(
    r"(?:language_model\.)?(?:model\.(?:language_model\.)?layers|(?:gpt_neox\.)?layers|(?:transformer\.)?h)\.(\d{1,9})\."
)
_PICKLED = ("*.bin", "*.pt", "*.pth", "*.ckpt")
_DERIVED = "rotary_emb.inv_freq"  # a buffer in old Llama checkpoints; it follows from the configuration


def weight_files(folder: Path) -> list[Path]:
    """The safetensors files of a checkpoint, one or the shards of its index. Raises where there is none to read."""
    single, index = folder / "model.safetensors", folder / "model.safetensors.index.json"
    if single.is_file():
        return [single]
    if index.is_file():
        try:
            names = sorted(set(parse_json(index.read_text("utf-8"))["weight_map"].values()))
        except (ValueError, KeyError, AttributeError, TypeError) as error:
            raise ValueError(f"{index} is not an index of safetensors shards ({error})") from error
        for name in names:  # a stranger's index must not point outside of its folder
            if not isinstance(name, str) or "\0" in name or Path(name).is_absolute() or ".." in Path(name).parts:
                raise ValueError(f"{index} names the shard {name!r:.100}; expected a file in the folder")
        missing = [name for name in names if not (folder / name).is_file()]
        if missing:
            raise FileNotFoundError(f"{folder} lacks {_shortened(missing)}, named in {index.name}: an incomplete download")
        return [folder / name for name in names]
    if (folder / "adapter_config.json").is_file():
        raise ValueError(f"{folder} holds an adapter, not a model: merge it into its base model and save that")
    pickled = [path.name for pattern in _PICKLED for path in sorted(folder.glob(pattern))]
    if pickled:
        raise ValueError(
            f"{folder} holds its weights only as {_shortened(pickled)}, a pickle, which can run code when it is opened "
            "and is never read here; convert it to safetensors (model.save_pretrained(folder) in transformers)"
        )
    raise FileNotFoundError(f"{folder} has no weights: model.safetensors or model.safetensors.index.json is expected")


def read_headers(files: Iterable[Path]) -> dict[str, Header]:
    """Every tensor's dtype (as safetensors calls it) and shape. Raises ValueError naming a damaged file."""
    found: dict[str, Header] = {}
    for path in files:
        try:
            with safe_open(path, framework="pt") as file:
                for name in file.keys():  # noqa: SIM118 (not a dict: it cannot be iterated)
                    view = file.get_slice(name)
                    found[name] = (view.get_dtype(), tuple(view.get_shape()))
        except SafetensorError as error:
            raise ValueError(f"{path} is truncated or damaged ({error}); copy or download it again") from error
    return found


def count_layers(names: Iterable[str]) -> int:
    """Of how many decoder layers these tensors are: one more than the highest number among their names."""
    return max((int(found[1]) + 1 for name in names if (found := _LAYER.match(name))), default=0)


def named_as_in(model: PreTrainedModel, found: Mapping[str, Header]) -> dict[str, Header]:
    """The tensors by the names that a model has them under: some checkpoints leave out the name of the trunk, and some hold
    buffers that transformers does not read."""
    expected, trunk = model.state_dict().keys(), model.base_model_prefix
    unread = [re.compile(pattern) for pattern in model._keys_to_ignore_on_load_unexpected or ()]
    out = {}
    for name, header in found.items():
        full = f"{trunk}.{name}" if name not in expected and f"{trunk}.{name}" in expected else name
        if full in expected or not any(pattern.search(full) for pattern in unread):
            out[full] = header
    return out


def check_tensors(
    found: Mapping[str, Header],
    expected: Mapping[str, tuple[int, ...]],
    *,
    tied: Iterable[str] = (),
    source: object,
) -> None:
    """Raises ValueError unless the checkpoint has exactly the model's tensors, in its shapes and in a float dtype.

    tied: names that may be absent, since the model takes them from another tensor.
    """
    missing = [name for name in expected if name not in found and name not in set(tied)]
    extra = [name for name in found if name not in expected and not name.endswith(_DERIVED)]
    wrong = [
        f"{name} is {list(found[name][1])}, expected {list(shape)}"
        for name, shape in expected.items()
        if name in found and found[name][1] != tuple(shape)
    ]
    coded = [f"{name} is {found[name][0]}" for name in expected if name in found and found[name][0] not in DTYPES]
    faults = []
    if missing:
        faults.append(f"{len(missing)} missing: {_shortened(missing)}")
    if extra:
        faults.append(f"{len(extra)} unexpected: {_shortened(extra)}")
    if wrong:
        faults.append(f"{len(wrong)} of the wrong shape: {_shortened(wrong)}")
    if coded:
        faults.append(f"{len(coded)} in a quantised or unknown dtype: {_shortened(coded)}")
    if faults:
        raise ValueError(f"the tensors in {source} do not match its configuration: " + "; ".join(faults))


def check_loading_info(info: Mapping[str, Iterable], *, source: object) -> None:
    """Raises ValueError where transformers reports a weight that it made up or left out."""
    words = {"missing_keys": "missing", "unexpected_keys": "unexpected", "mismatched_keys": "of the wrong shape"}
    faults = []
    for key, word in words.items():
        names = sorted(name if isinstance(name, str) else str(name[0]) for name in info.get(key) or ())
        names = [name for name in names if not name.endswith(_DERIVED)]
        if names:
            faults.append(f"{len(names)} {word}: {_shortened(names)}")
    faults += [str(message) for message in info.get("error_msgs") or ()]
    if faults:
        raise ValueError(f"the tensors in {source} do not match its configuration: " + "; ".join(faults))


def check_finite(model: torch.nn.Module, *, source: object) -> None:
    """Raises ValueError naming the first weight that holds a NaN or an infinity.

    Cost: one pass over the weights without temporaries (20 ms for 135 M parameters): a NaN shows in the extremes.
    """
    for name, weight in model.named_parameters():
        if weight.numel() and weight.is_floating_point():
            low, high = torch.aminmax(weight)
            if not (torch.isfinite(low) and torch.isfinite(high)):
                kind = "NaN" if low.isnan() or high.isnan() else "infinite"
                raise ValueError(f"{name} in {source} holds {kind} values: the checkpoint is damaged")


def _shortened(names: list[str], limit: int = 4) -> str:
    return ", ".join(names[:limit]) + (f" and {len(names) - limit} more" if len(names) > limit else "")
