"""Counts the work that is done: rows through the layers, and the floating-point operations of their matrix products.

Whatever takes rows through layers reports them as it goes (`count`); `counted` gives what was reported while it was open.
A pass that is replayed as a CUDA graph reports the rows it was captured with. Attention's own products, and those by which
a variant joins, are not counted.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import NamedTuple, Protocol

from pycotmech.model.config import ModelConfig, layer_flop, logits_flop


class LayerRows(NamedTuple):
    """Rows that went through a layer, or several, and of these the rows for which each part was computed."""

    passed: int = 0
    qkv: int = 0
    attn_out: int = 0
    mlp: int = 0

    def plus(self, other: LayerRows) -> LayerRows:
        """Both together."""
        return LayerRows(*(a + b for a, b in zip(self, other, strict=True)))

    @staticmethod
    def whole(rows: int) -> LayerRows:
        """So many rows through all parts of one layer."""
        return LayerRows(rows, rows, rows, rows)


class _HasSizes(Protocol):
    @property
    def cfg(self) -> ModelConfig: ...


@dataclass
class Tally:
    """Work of one model.

    layer_rows: rows through an MLP, the largest part of a layer, summed over layers. flop: of the matrix products of all
        parts, the unembedding included.
    """

    n_layers: int
    layer_rows: int = 0
    flop: int = 0

    @property
    def token_forwards(self) -> float:
        """The work in passes of one token through all layers."""
        return self.layer_rows / self.n_layers


_open: ContextVar[tuple[tuple[_HasSizes, Tally], ...]] = ContextVar("pycotmech_tallies", default=())


@contextmanager
def counted(family: _HasSizes) -> Iterator[Tally]:
    """Counts the work of this model within the block, in this thread. Tallies may be nested: each counts all within it."""
    tally = Tally(family.cfg.n_layers)
    token = _open.set((*_open.get(), (family, tally)))
    try:
        yield tally
    finally:
        _open.reset(token)


def count(family: _HasSizes, rows: LayerRows) -> None:
    """Reports rows that went through the parts of layers."""
    for owner, tally in _open.get():
        if owner is family:
            row = layer_flop(family.cfg)
            tally.layer_rows += rows.mlp
            tally.flop += rows.qkv * row.qkv + rows.attn_out * row.attn_out + rows.mlp * row.mlp


def count_logits(family: _HasSizes, rows: int, tokens: int | None = None) -> None:
    """Reports rows that went through the unembedding, to the logits of so many tokens (None: of the whole vocabulary)."""
    for owner, tally in _open.get():
        if owner is family:
            tally.flop += rows * logits_flop(family.cfg, tokens)
