"""A digest of all weights of a model, read once.

Reading every weight takes a while (540 MB: about a second), so the digest of a model that was loaded from files is kept in the
user's cache folder, under the path, size and time of each file, and the digest of a model in memory as long as the model.
"""

from __future__ import annotations

import hashlib
import json
import weakref
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pycotmech import __version__
from pycotmech.files.write import write_text
from pycotmech.model.converted import cache_root, sha256_of

if TYPE_CHECKING:
    from torch import Tensor

_FORMAT = 1
"""Part of every key of the cache: raise it when the digest changes what it reads."""
_in_memory: weakref.WeakKeyDictionary[Any, tuple[str, str]] = weakref.WeakKeyDictionary()
"""Digests of models in memory, each with the fingerprint of the weights that it is of."""


@dataclass(frozen=True)
class WeightFiles:
    """Where the weights of a model in memory came from.

    files: all that its weights were read from. dtype: as which. fingerprint: of the weights as they were loaded.
    """

    files: tuple[Path, ...]
    dtype: str
    fingerprint: str


def weights_digest(hf_model: Any, files: WeightFiles | None = None, *, verify: bool = False) -> str:
    """Returns the SHA-256, in hexadecimal digits, of every weight's name, shape, dtype and bytes as they are used.

    files: where the weights came from. If they were edited since, this is seen, except through `tensor.data`.
    verify: whether to read every weight even if the digest of these files, or of this model, is known.
    Where accelerate keeps weights on the disk ("meta" in memory), it is a digest of the files.
    Raises ValueError for such a model that was not loaded from files. Cost: every weight is read once, unless it is known.
    """
    weights = hf_model.state_dict()
    seen = fingerprint(weights)
    known = _in_memory.get(hf_model)
    if known is not None and known[0] == seen and not verify:
        return known[1]
    entry = _entry(files) if files is not None and files.fingerprint == seen else None
    digest = None if verify or entry is None else _remembered(entry)
    if digest is None:
        if any(weight.device.type == "meta" for weight in weights.values()):
            if files is None:
                raise ValueError("model: weights are not in memory, and it was not loaded from files; no digest can be made")
            digest = _digest_of_files(files)
        else:
            digest = _digest(weights)
        if entry is not None:
            _remember(entry, digest)
    _in_memory[hf_model] = (seen, digest)
    return digest


def fingerprint(weights: Mapping[str, Tensor]) -> str:
    """Of names, places in memory and counts of edits, not of values: it changes with any edit that PyTorch counts."""
    edits = {name: 0 if w.is_inference() else w._version for name, w in weights.items()}
    seen = [(name, tuple(w.shape), str(w.dtype), str(w.device), w.data_ptr(), edits[name]) for name, w in weights.items()]
    return hashlib.sha256(repr(seen).encode()).hexdigest()


def _digest(weights: Mapping[str, Tensor]) -> str:
    import torch

    digest = hashlib.sha256()
    for name, weight in weights.items():
        digest.update(f"{name}{tuple(weight.shape)}{weight.dtype}".encode())
        digest.update(weight.detach().contiguous().reshape(-1).view(torch.uint8).cpu().numpy().data)
    return digest.hexdigest()


def _digest_of_files(files: WeightFiles) -> str:
    digest = hashlib.sha256(files.dtype.encode())
    for path in files.files:
        digest.update(f"{path.name}{sha256_of(path)}".encode())
    return digest.hexdigest()


def _entry(files: WeightFiles) -> Path | None:
    """Where the digest of these files, as they are now, is kept. None if one is gone."""
    import transformers

    try:
        found = [(str(path.resolve()), (stat := path.stat()).st_size, stat.st_mtime_ns) for path in files.files]
    except OSError:
        return None
    key = hashlib.sha256(repr((_FORMAT, __version__, transformers.__version__, found, files.dtype)).encode()).hexdigest()
    return cache_root() / "digests" / f"{key[:32]}.json"


def _remembered(entry: Path) -> str | None:
    try:
        digest = json.loads(entry.read_text("utf-8"))["weights"]
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return None
    sound = isinstance(digest, str) and len(digest) == 64 and set(digest) <= set("0123456789abcdef")
    return digest if sound else None


def _remember(entry: Path, digest: str) -> None:
    try:
        entry.parent.mkdir(parents=True, exist_ok=True)
        write_text(entry, json.dumps({"weights": digest}))
    except (OSError, ValueError):
        pass  # without it the next run reads the weights again
