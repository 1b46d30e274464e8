"""Reads the header of a GGUF file: hyperparameters, vocabulary, and where each tensor lies.

The format is that of ggml's documentation, versions 2 and 3, little-endian. A vocabulary of 262,144 words is read in half a
second; `gguf.GGUFReader`, which makes an array for each word, takes half a minute.
"""

from __future__ import annotations

import math
import mmap
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

_SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
_STRING, _ARRAY = 8, 9
_VERSIONS = (2, 3)
_MOST = 2**28
"""Of entries of an array, of keys or of tensors: far more than any model has, and no more than memory holds."""


@dataclass(frozen=True)
class PackedTensor:
    """A tensor as it lies in the file.

    shape: innermost dimension last. kind: a `gguf.GGMLQuantizationType`.
    data: its blocks, as bytes [rows, bytes of a row]; float tensors in their own dtype and shape.
    """

    name: str
    shape: tuple[int, ...]
    kind: Any
    data: np.ndarray

    @property
    def n_elements(self) -> int:
        return math.prod(self.shape)


@dataclass(frozen=True)
class Header:
    """values: every key of the file. tensors: by name, their data mapped and not read."""

    values: dict[str, Any]
    tensors: dict[str, PackedTensor]


def read_header(path: Path) -> Header:
    """Reads a GGUF file's header; the data of its tensors stays in the file.

    Raises ValueError for a file that is not GGUF, of another version or byte order, truncated, or damaged.
    """
    with path.open("rb") as file:
        if file.read(4) != b"GGUF":
            raise ValueError(f"{path} is not a GGUF file: it does not begin with the letters GGUF")
        mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    try:
        return _read(path, _Cursor(mapped, 4))
    except (struct.error, IndexError, UnicodeDecodeError, OverflowError, MemoryError, KeyError) as error:
        raise ValueError(f"{path} is truncated or damaged ({type(error).__name__}: {error})") from error


class _Cursor:
    """Reads one value after another."""

    def __init__(self, buffer: mmap.mmap, at: int) -> None:
        self.buffer, self.at = buffer, at

    def take(self, code: str) -> Any:
        (value,) = struct.unpack_from(f"<{code}", self.buffer, self.at)
        self.at += struct.calcsize(f"<{code}")
        return value

    def count(self, what: str) -> int:
        n = self.take("Q")
        if n > _MOST:
            raise IndexError(f"{n} {what}")
        return n

    def string(self) -> str:
        n = self.count("bytes of a string")
        start, self.at = self.at, self.at + n
        if self.at > len(self.buffer):
            raise IndexError(f"a string of {n} bytes at byte {start}")
        return self.buffer[start : self.at].decode("utf-8")

    def value(self, kind: int) -> Any:
        if kind == _STRING:
            return self.string()
        if kind == _ARRAY:
            of, n = self.take("I"), self.count("entries of an array")
            if of == _ARRAY:  # no model has any, and their depth would be that of calls
                raise IndexError("an array of arrays")
            if of in _SCALARS:
                values = list(struct.unpack_from(f"<{n}{_SCALARS[of]}", self.buffer, self.at))
                self.at += struct.calcsize(f"<{n}{_SCALARS[of]}")
                return values
            return [self.value(of) for _ in range(n)]
        return self.take(_SCALARS[kind])


def _read(path: Path, cursor: _Cursor) -> Header:
    from gguf import GGML_QUANT_SIZES, GGMLQuantizationType

    version = cursor.take("I")
    if version not in _VERSIONS:
        raise ValueError(f"{path} is GGUF of version {version}, or big-endian; supported: 2 and 3, little-endian")
    n_tensors, n_keys = cursor.count("tensors"), cursor.count("keys")
    values: dict[str, Any] = {}
    for _ in range(n_keys):
        key = cursor.string()
        if key in values:
            raise ValueError(f"{path} has the key {key} twice")
        values[key] = cursor.value(cursor.take("I"))
    places = []
    for _ in range(n_tensors):
        name, n_dims = cursor.string(), cursor.take("I")
        if n_dims > 8:
            raise IndexError(f"a tensor of {n_dims} dimensions")
        shape = tuple(cursor.take("Q") for _ in range(n_dims))[::-1]
        places.append((name, shape, cursor.take("I"), cursor.take("Q")))
    alignment = values.get("general.alignment", 32)
    if not isinstance(alignment, int) or alignment < 1:
        raise ValueError(f"{path} has general.alignment {alignment!r}; expected a positive integer")
    start = -(-cursor.at // alignment) * alignment
    tensors: dict[str, PackedTensor] = {}
    whole = np.frombuffer(cursor.buffer, np.uint8)
    for name, shape, number, offset in places:
        if name in tensors:
            raise ValueError(f"{path} has the tensor {name} twice")
        try:
            kind = GGMLQuantizationType(number)
        except ValueError:
            raise ValueError(f"{path}: the tensor {name} is in blocks of the unknown kind {number}") from None
        per_block, block_bytes = GGML_QUANT_SIZES[kind]
        n = math.prod(shape)
        if not shape or shape[-1] % per_block or n > 2**40:
            raise ValueError(f"{path}: the tensor {name} has shape {list(shape)}, but blocks of {kind.name} hold {per_block}")
        size, begin = n // per_block * block_bytes, start + offset
        if begin + size > len(whole):
            missing = begin + size - len(whole)
            raise ValueError(f"{path} is truncated or damaged ({missing} bytes of the tensor {name} are missing)")
        raw = whole[begin : begin + size]
        row = shape[-1] // per_block * block_bytes
        plain = {
            GGMLQuantizationType.F32: np.float32,
            GGMLQuantizationType.F16: np.float16,
            GGMLQuantizationType.F64: np.float64,
        }
        data = raw.view(plain[kind]).reshape(shape) if kind in plain else raw.reshape(*shape[:-1], row)
        tensors[name] = PackedTensor(name, shape, kind, data)
    return Header(values, tensors)
