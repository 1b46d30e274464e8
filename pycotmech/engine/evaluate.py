"""Variants to numbers: how they join, self-patches for the noise floor, pieces that fit the budget, the metric of each."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import ClassVar, Protocol

import torch
from torch import Tensor

from pycotmech.engine import planner
from pycotmech.engine.bases import Bases, Stage
from pycotmech.engine.graphs import graphs_of, reserved
from pycotmech.engine.metrics import ExampleMetric
from pycotmech.engine.row_edits import RowEdits
from pycotmech.engine.rows import Joining, Variants
from pycotmech.engine.staircase import Staircase
from pycotmech.model import work
from pycotmech.model.climb import ROW_BLOCK
from pycotmech.model.config import ModelConfig
from pycotmech.model.families.base import Family
from pycotmech.model.run import site_dtype, site_shape
from pycotmech.model.work import LayerRows

N_SELF_PATCHES = 8
"""Self-patches per example from which the noise floor is read, spread over the layers."""

SELF_PATCH_SITES = ("resid_mid", "z")
"""What bases keep for them."""

_LOGIT_ROWS = 256
"""Rows of the unembedding's output that exist at once."""


def read_counts(base: Tensor, reads: Sequence[Sequence[int]]) -> Tensor:
    """At how many positions each variant of these bases [N] is read. reads: the positions of each base."""
    return torch.tensor([len(at) for at in reads])[base]


def self_patches(cfg: ModelConfig, seed: int, example: int) -> Tensor:
    """(layer, head) of the self-patches [N_SELF_PATCHES, 2]: layers evenly spread, heads drawn by the seed."""
    generator = torch.Generator().manual_seed(seed * 1_000_003 + example)
    layers = torch.linspace(0, cfg.n_layers - 1, N_SELF_PATCHES).round().long()
    return torch.stack((layers, torch.randint(cfg.n_heads, (N_SELF_PATCHES,), generator=generator)), 1)


def self_patch_signs(bases: Bases, seed: int, chunk: int) -> Tensor:
    """Random directions of the self-patches' steps, +1 or -1, for each row, head and channel: [sum of rows, H, D]."""
    generator = torch.Generator().manual_seed(seed * 7_919 + chunk)
    return torch.randint(2, bases.sites["z"].shape[1:], generator=generator) * 2 - 1


class Joins(Protocol):
    """How variants join, as `Evaluator.run` asks for it: `of` gives the rows of the variants numbered first..end - 1, which
    are numbered from 0."""

    @property
    def bases(self) -> Bases: ...

    def of(self, first: int, end: int) -> Callable[[Joining], Tensor]: ...


@dataclass(frozen=True)
class HeadJoins:
    """Gives the rows with which variants join: the base's, or moved by the difference in one head's z.

    moves [N]: variants that join by a difference: z of `head` [N] becomes the source run's, or for those in `control` [N]
        (self-patches) moves by one unit in the last place. Where `editable`, everywhere (-1), or at the rows whose label, or
        position where none are given, is `position` [N].
    """

    family: Family
    bases: Bases
    control: Tensor  # [N] bool
    moves: Tensor  # [N] bool
    head: Tensor  # [N]
    position: Tensor  # [N]
    editable: Tensor  # [sum of rows] bool
    signs: Tensor  # [sum of rows, H, D]
    only_controls: bool  # whether none but self-patches move
    labels: Tensor | None = None  # [sum of rows]

    on_device: ClassVar[tuple[str, ...]] = (
        "bases", "control", "moves", "head", "position", "editable", "signs", "labels",
    )  # fmt: skip

    @classmethod
    def on_device_of(
        cls,
        family: Family,
        bases: Bases,
        *,
        control: Tensor,
        moves: Tensor,
        head: Tensor,
        position: Tensor,
        editable: Tensor,
        signs: Tensor,
        labels: Tensor | None = None,
    ) -> HeadJoins:
        """From tensors on the CPU: what decides what is computed is known before rows go through the layers."""
        only_controls = not bool((moves & ~control).any())
        tensors = [t.to(family.device) for t in (control, moves, head, position, editable, signs)]
        return cls(family, bases, *tensors, only_controls, None if labels is None else labels.to(family.device))

    def of(self, first: int, end: int) -> HeadJoins:
        """For the variants numbered first..end - 1, which are numbered from 0."""
        return replace(self, **{name: getattr(self, name)[first:end] for name in ("control", "moves", "head", "position")})

    def __call__(self, joining: Joining) -> Tensor:
        l, index = joining.layer, joining.index
        if joining.stage != Stage.MID:
            return self.bases.sites[joining.stage.site][l][index]
        return self._moved(l, index, joining.variant, joining.position)

    def _moved(self, l: int, index: Tensor, variant: Tensor, position: Tensor) -> Tensor:
        head, control = self.head[variant].clamp(min=0), self.control[variant]
        wide, z = self.family.resid_dtype, self.bases.sites["z"][l]
        before = z[index, head].to(wide)
        if self.only_controls:
            dz = torch.zeros_like(before)
        else:
            dz = self.bases.source["z"][l][index, head].to(wide).sub_(before)
        if self._picks(index):
            mine = control.nonzero().flatten()
            dz[mine] = self.signs[index[mine], head[mine]] * ulp(before[mine], z.dtype)
        else:
            dz = torch.where(control[:, None], self.signs[index, head] * ulp(before, z.dtype), dz)
        only = self.position[variant]
        position = position if self.labels is None else self.labels[index]
        # Those that do not move get a difference of 0.
        dz *= (self.moves[variant] & self.editable[index] & ((only < 0) | (only == position)))[:, None]
        return self.family.join(l, self.bases.sites["resid_mid"][l][index], z, dz, head, index)

    @staticmethod
    def _picks(rows: Tensor) -> bool:
        """Whether to compute for some rows only: a GPU would have to say how many there are, and the program to wait for it."""
        return rows.device.type == "cpu"


def ulp(x: Tensor, dtype: torch.dtype) -> Tensor:
    """One unit in the last place of x as a number of `dtype` (0 for 0)."""
    exponent = torch.floor(torch.log2(x.abs().clamp_min(torch.finfo(dtype).tiny)))
    return (torch.exp2(exponent) * torch.finfo(dtype).eps).masked_fill(x == 0, 0)


@dataclass
class Evaluator:
    """Takes variants through the staircase in pieces that fit the budget, and measures what comes out.

    progress: called with (token-forwards done, in all).
    """

    family: Family
    budget: int
    keep_logits: bool
    progress: Callable[[int, int], None] | None
    done: int = field(default=0, init=False)  # layer-rows
    total: int = field(default=1, init=False)

    def base_bytes(self, length: int, rows: int, sites: Iterable[str]) -> int:
        """What one base of `length` positions needs, with these sites kept for `rows` of them, and the directions of its
        self-patches (8 bytes each, three times while they are drawn)."""
        cfg, family = self.family.cfg, self.family
        kept = 0
        for site in sites:
            kept += torch.Size(site_shape(family, site)).numel() * site_dtype(family, site).itemsize
        keys = 2 * cfg.n_key_value_heads * cfg.d_head * family.dtype.itemsize
        signs = 24 * cfg.n_heads * cfg.d_head
        return cfg.n_layers * (length * keys + rows * kept) + rows * signs + length * 2 * cfg.d_head * 4

    def pieces(
        self, lengths: Tensor, held: int | None = None, columns: int | None = None, read: int | None = None
    ) -> list[tuple[int, int]]:
        """Ranges of variants, with `lengths` [N] rows each, that go through the staircase together.

        held: bytes in use besides (the bases and what is kept with them); None: half of the budget. columns: the logits
        that are read, None: all. read: how many rows are read; None: one of each variant. Raises ValueError if one variant
        does not fit in what is left.
        """
        family = self.family
        row, block = planner.row_bytes(family), planner.block_bytes(family, 1)
        budget = self.budget - reserved(family, self.budget)
        if held is None:
            flight = max(1, budget - self.budget // 2 - planner.block_bytes(family))
            return planner.cut((lengths * row).tolist(), flight)
        held += self._logits_bytes(len(lengths) if read is None else read, columns)
        longest = int(lengths.max())
        left = budget - held
        whole = left - max(longest, ROW_BLOCK) * block  # what a full block of temporaries leaves for rows
        flight = whole if whole >= ROW_BLOCK * row else left * row // (row + block)
        if flight < longest * row:
            least = (held + longest * (row + block)) * self.budget / budget
            raise ValueError(
                f"memory_gb: {self.budget / 2**30:.3g} GiB may be used, and one variant of {longest} rows needs "
                f"{math.ceil(least / 2**20) / 2**10:.4g}, of these {held / 2**30:.3g} for the prompts' runs and the logits; "
                "expected that much or more, or fewer positions, shorter prompts, or no logits returned"
            )
        return planner.cut((lengths * row).tolist(), flight)

    def _logits_bytes(self, read: int, columns: int | None) -> int:
        kept = read * self.family.cfg.d_vocab * 4 if self.keep_logits else 0
        columns = None if self.keep_logits else columns
        return kept + planner.logits_bytes(self.family, min(read, _LOGIT_ROWS), columns)

    def in_flight(self, lengths: Tensor, cuts: Sequence[tuple[int, int]], held: int, columns: int | None, read: int) -> int:
        """Bytes of the largest of these pieces, with what is held and the logits of the rows that are read."""
        rows = max(int(lengths[c:d].sum()) for c, d in cuts)
        block = planner.block_bytes(self.family, min(rows, max(ROW_BLOCK, int(lengths.max()))))
        held += self._logits_bytes(read, columns) + reserved(self.family, self.budget)
        return held + rows * planner.row_bytes(self.family) + block

    def plan(
        self,
        tables: Sequence[tuple[Variants, Tensor]],
        pieces: Sequence[Sequence[tuple[int, int]]],
        base_bytes: int,
        examples: int,
        *,
        moves: Sequence[Tensor] | None = None,
        reads: Sequence[Sequence[Sequence[int]]] | None = None,
        columns: int | None = None,
        prompts: planner.Work | None = None,
    ) -> planner.Plan:
        """What is going to be done, for tables of variants and their lengths and the pieces of each.

        base_bytes: held beside the variants. moves: for each table which variants join by a product with W_O [N]; None:
        all. reads: for each table the positions at which each base is read; None: the last of its variants' rows.
        prompts: the work of the prompts' own runs.
        """
        n_layers = self.family.cfg.n_layers
        work, rows, hooked, variants, flight = planner.Work(), 0, 0, 0, 0
        for i, ((v, lengths), cuts) in enumerate(zip(tables, pieces, strict=True)):
            moving = torch.ones_like(v.layer) if moves is None else moves[i]
            read, upto = torch.ones_like(v.layer), v.first + lengths
            if reads is not None:
                read = read_counts(v.base, reads[i])
                upto = torch.tensor([sum(at) + len(at) for at in reads[i]])[v.base]
            for c, d in cuts:
                parts = (t[c:d] for t in (v.layer, v.stage, v.first, lengths, moving, read))
                work += planner.variant_work(self.family, *parts, None if self.keep_logits else columns)
            rows, variants = rows + int(lengths.sum()), variants + len(v)
            hooked += int(upto.sum())
            flight = max(flight, self.in_flight(lengths, cuts, base_bytes, columns, int(read.sum())))
        prompts = prompts or planner.Work()
        plan = planner.Plan(
            examples=examples,
            variants=variants,
            chunks=sum(map(len, pieces)),
            rows=rows,
            token_forwards=work.layer_rows / n_layers,
            hooked_token_forwards=float(hooked),
            flop=work.flop + prompts.flop,
            bytes_in_flight=flight,
            budget_bytes=self.budget,
            base_token_forwards=prompts.layer_rows / n_layers,
            weight_bytes=work.weight_bytes + prompts.weight_bytes,
        )
        self.done, self.total = 0, max(1, round(work.layer_rows))
        return plan

    def run(
        self,
        variants: Variants,
        pieces: Sequence[tuple[int, int]],
        joins: Joins,
        edits: RowEdits,
        metrics: Sequence[ExampleMetric],
    ) -> tuple[Tensor, Tensor | None]:
        """The metric of each variant where it is read, float64 [N] or as many as `Bases.readings` has, and its logits [..., V]
        if they are kept. metrics: one for each position at which a base is read, base after base."""
        read = joins.bases.readings(variants.base)
        values = torch.empty(len(read.number), dtype=torch.float64)
        logits = torch.empty(len(values), self.family.cfg.d_vocab) if self.keep_logits else None
        graphs = graphs_of(self.family)
        for c, d in pieces:
            some, out = variants[torch.arange(c, d)], slice(*read.begins[[c, d]].tolist())
            staircase = Staircase(self.family, joins.bases, some, joins.of(c, d), self.tick, edits.of(c, d))
            final = staircase.run() if graphs is None else graphs.run(staircase, self.budget)
            self.measure(final, read.number[out], metrics, values[out], None if logits is None else logits[out])
        return values, logits

    def measure(
        self, final: Tensor, which: Tensor, metrics: Sequence[ExampleMetric], values: Tensor, logits: Tensor | None = None
    ) -> None:
        """Writes to values [N] what the metric numbered `which` [N] gives for final residual rows [N, d], and to logits [N, V]
        theirs."""
        for e in which.unique().tolist():
            mine = (which == e).nonzero().flatten()
            for rows in mine.split(_LOGIT_ROWS):
                out = self.logits(final[rows.to(final.device)], None if logits is not None else metrics[e].token_ids)
                values[rows] = metrics[e](out).cpu()
                if logits is not None:
                    logits[rows] = out.float().cpu()

    def logits(self, rows: Tensor, token_ids: Iterable[int | None] | None) -> Tensor:
        """Final residual rows [N, d] -> logits [N, V], or [N, len(token_ids)]."""
        tokens = None if token_ids is None else torch.tensor(list(token_ids), device=rows.device)
        with torch.no_grad():
            return self.family.logits(rows, tokens)

    def tick(self, rows: LayerRows) -> None:
        """These rows have gone through one layer: reported as work, and as progress."""
        work.count(self.family, rows)
        self.done += rows.passed
        if self.progress is not None:
            n_layers = self.family.cfg.n_layers
            self.progress(min(self.done, self.total) // n_layers, self.total // n_layers)
