"""What a call may use, how its variants are cut to fit, and what they will cost."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from pycotmech.engine import graphs, planner
from pycotmech.engine.planner import Plan, Work
from pycotmech.engine.rows import Variants
from pycotmech.model.families.base import Family
from pycotmech.model.packed import site_bytes

LOGIT_ROWS = 256
"""Rows of the unembedding's output that exist at once."""


@dataclass(frozen=True)
class Batch:
    """Variants whose base runs are held at once.

    lengths [N]: rows of each variant. moves [N] bool: which join by a product with W_O. reads: the positions at which each
    base is read. held: bytes of the base runs and of what is kept with them. passing: bytes at the worst moment while the
    prompts are run.
    """

    variants: Variants
    lengths: Tensor
    moves: Tensor
    reads: Sequence[Sequence[int]]
    held: int
    passing: int = 0

    @cached_property
    def read(self) -> Tensor:
        """At how many positions each variant is read [N]."""
        return torch.tensor([len(at) for at in self.reads])[self.variants.base]

    @property
    def hooked_rows(self) -> int:
        """Rows of one whole forward pass for each variant and position at which it is read."""
        return int(torch.tensor([sum(at) + len(at) for at in self.reads])[self.variants.base].sum())


Pieces = list[tuple[int, int]]
"""Ranges of variants that go through the layers one after another."""


@dataclass(frozen=True)
class Budget:
    """Bytes that a call may use beyond the model.

    columns: how many logits the metric reads; None: all. keep_logits: whether all logits are returned.
    """

    family: Family
    room: int
    columns: int | None = None
    keep_logits: bool = False

    def base_bytes(self, length: int, rows: int, sites: Iterable[str]) -> int:
        """Bytes of one base of `length` positions with these sites kept for `rows` of them, and of the directions of its
        self-patches (8 bytes each, three times while they are drawn)."""
        cfg, family = self.family.cfg, self.family
        kept = sum(site_bytes(family, site) for site in sites)
        keys = 2 * cfg.n_key_value_heads * cfg.d_head * family.dtype.itemsize
        signs = 24 * cfg.n_heads * cfg.d_head
        return cfg.n_layers * (length * keys + rows * kept) + rows * signs + length * 2 * cfg.d_head * 4

    def logits_bytes(self, read: int) -> int:
        """Bytes for the logits of so many rows that are read."""
        kept = read * self.family.cfg.d_vocab * self.family.resid_dtype.itemsize if self.keep_logits else 0
        columns = None if self.keep_logits else self.columns
        return kept + planner.logits_bytes(self.family, min(read, LOGIT_ROWS), columns)

    def pieces(self, batch: Batch) -> Pieces:
        """Ranges of variants that fit. Raises ValueError, naming the least budget, if one variant does not."""
        family, room = self.family, self.room - graphs.kept.reserved(self.family, self.room)
        row, block, at_once = planner.row_bytes(family), planner.block_bytes(family, 1), family.sizes.row_block
        held = batch.held + self.logits_bytes(int(batch.read.sum()))
        longest, left = int(batch.lengths.max()), room - held
        beside_a_block = left - max(longest, at_once) * block
        flight = beside_a_block if beside_a_block >= at_once * row else left * row // (row + block)
        if flight < longest * row or batch.passing > self.room:
            raise self.too_small(f"one variant of {longest} rows", max(held + longest * (row + block), batch.passing), held)
        return planner.cut((batch.lengths * row).tolist(), flight)

    def too_small(self, what: str, needed: int, held: int) -> ValueError:
        """The error that names the least budget. held: of the bytes needed those of the prompts' runs and the logits."""
        least = needed * self.room / (self.room - graphs.kept.reserved(self.family, self.room))
        return ValueError(
            f"memory_gb: {self.room / 2**30:.3g} GiB may be used, and {what} needs {_rounded_up(least / 2**30):.4g}, "
            f"of these {held / 2**30:.3g} for the prompts' runs and the logits; expected that much or more, "
            "or fewer positions, shorter prompts, or no logits returned"
        )

    def plan(self, batches: Sequence[tuple[Batch, Pieces]], *, examples: int, prompts: Work | None = None) -> Plan:
        """What is going to be done. prompts: the work of the prompts' own runs."""
        n_layers, prompts = self.family.cfg.n_layers, prompts or Work()
        columns = None if self.keep_logits else self.columns
        work = Work()
        for batch, pieces in batches:
            v = batch.variants
            for c, d in pieces:
                piece = v[torch.arange(c, d)]
                work += planner.variant_work(
                    self.family, piece, batch.lengths[c:d], batch.moves[c:d], batch.read[c:d], columns
                )  # fmt: skip
        return Plan(
            examples=examples,
            variants=sum(len(batch.variants) for batch, _ in batches),
            chunks=sum(len(pieces) for _, pieces in batches),
            rows=sum(int(batch.lengths.sum()) for batch, _ in batches),
            token_forwards=work.layer_rows / n_layers,
            hooked_token_forwards=float(sum(batch.hooked_rows for batch, _ in batches)),
            flop=work.flop + prompts.flop,
            bytes_in_flight=max(max(self._in_flight(batch, pieces), batch.passing) for batch, pieces in batches),
            budget_bytes=self.room,
            base_token_forwards=prompts.layer_rows / n_layers,
            weight_bytes=work.weight_bytes + prompts.weight_bytes,
        )

    def _in_flight(self, batch: Batch, pieces: Pieces) -> int:
        """Bytes of the largest of these pieces, with what is held and the logits of the rows that are read."""
        rows = max(int(batch.lengths[c:d].sum()) for c, d in pieces)
        at_once = max(self.family.sizes.row_block, int(batch.lengths.max()))
        block = planner.block_bytes(self.family, min(rows, at_once))
        held = batch.held + self.logits_bytes(int(batch.read.sum())) + graphs.kept.reserved(self.family, self.room)
        return held + rows * planner.row_bytes(self.family) + block


def _rounded_up(x: float) -> float:
    """To four significant digits."""
    step = 10.0 ** (math.floor(math.log10(x)) - 3)
    return math.ceil(x / step) * step
