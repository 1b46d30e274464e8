"""How variants join the staircase: with the base's rows, or moved by the difference in one head's z; and the controls: the
self-patches, against which effects are taken, and the jittered copies of the base run, from which the noise floor is read."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import ClassVar, Protocol

import torch
from torch import Tensor

from pycotmech.engine.bases import ROWS, Bases, Stage
from pycotmech.engine.rows import Joining, Variants
from pycotmech.model.config import ModelConfig
from pycotmech.model.families.base import Family

N_SELF_PATCHES = 8
"""Self-patches per example against which effects are taken, spread over the layers."""

N_JITTERED = 4
"""Jittered copies per example of the base run, from which the noise floor is read."""

N_CONTROLS = N_SELF_PATCHES + N_JITTERED

SELF_PATCH_SITES = ("resid_mid", "z")
"""What bases keep for them."""


def controls_of(cfg: ModelConfig, seed: int, example: int) -> Tensor:
    """(layer, head, stream of noise) of the controls [N_CONTROLS, 3]: first the self-patches, layers evenly spread, heads drawn
    by the seed, stream -1; then the jittered copies, which join in layer 0."""
    generator = torch.Generator().manual_seed(seed * 1_000_003 + example)
    layers = torch.linspace(0, cfg.n_layers - 1, N_SELF_PATCHES, dtype=torch.float32).round().long()
    heads = torch.randint(cfg.n_heads, (N_SELF_PATCHES,), generator=generator)
    plain = torch.stack((layers, heads, torch.full_like(heads, -1)), 1)
    streams = example * N_JITTERED + torch.arange(N_JITTERED)
    return torch.cat((plain, torch.stack((torch.zeros_like(streams), torch.zeros_like(streams), streams), 1)))


def with_controls(variants: Variants, controls: Tensor, base: int, first: int) -> Variants:
    """The variants, then the controls [n, 3] of one base from position `first` on."""
    n = len(controls)
    return Variants(
        base=torch.cat((variants.base, torch.full((n,), base))),
        layer=torch.cat((variants.layer, controls[:, 0])),
        stage=torch.cat((variants.stage, torch.full((n,), int(Stage.MID)))),
        first=torch.cat((variants.first, torch.full((n,), first))),
    )


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
    other [L, sum of rows, H, D] as `Bases.sites` has z: of an unrelated prompt, from which the variants in `from_other` [N]
        take z in place of the source run's; None: no variant does.
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
    other: Tensor | None = None  # [L, sum of rows, H, D]
    from_other: Tensor | None = None  # [N] bool

    on_device: ClassVar[tuple[str, ...]] = (
        "bases", "control", "moves", "head", "position", "editable", "signs", "labels", "other", "from_other",
    )  # fmt: skip
    padded: ClassVar[dict[str, tuple[int, int]]] = {
        "editable": (0, ROWS), "signs": (0, ROWS), "labels": (0, ROWS), "other": (1, ROWS),
    }  # fmt: skip

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
        other: Tensor | None = None,
        from_other: Tensor | None = None,
    ) -> HeadJoins:
        """From tensors on the CPU: what decides what is computed is known before rows go through the layers."""
        only_controls = not bool((moves & ~control).any())
        to = family.device
        return cls(
            family, bases, control.to(to), moves.to(to), head.to(to), position.to(to), editable.to(to), signs.to(to),
            only_controls, *(None if t is None else t.to(to) for t in (labels, other, from_other)),
        )  # fmt: skip

    def of(self, first: int, end: int) -> HeadJoins:
        """For the variants numbered first..end - 1, which are numbered from 0."""
        names = ("control", "moves", "head", "position", *(() if self.from_other is None else ("from_other",)))
        return replace(self, **{name: getattr(self, name)[first:end] for name in names})

    def __call__(self, joining: Joining) -> Tensor:
        l, index, variant = joining.layer, joining.index, joining.variant
        if joining.stage != Stage.MID:
            return self.bases.sites[joining.stage.site][l].index_select(0, index)
        head, control = self.head[variant].clamp(min=0), self.control[variant]
        wide, z = self.family.resid_dtype, self.bases.sites["z"][l]
        before = z[index, head].to(wide)
        if self.only_controls:
            dz = torch.zeros_like(before)
        else:
            dz = self._values(l, index, head, variant).to(wide).sub_(before)
        if self._picks(index):
            chosen = control.nonzero().flatten()
            dz[chosen] = self.signs[index[chosen], head[chosen]] * ulp(before[chosen], z.dtype)
        else:
            dz = torch.where(control[:, None], self.signs[index, head] * ulp(before, z.dtype), dz)
        only = self.position[variant]
        position = joining.position if self.labels is None else self.labels[index]
        # Those that do not move get a difference of 0.
        dz *= (self.moves[variant] & self.editable[index] & ((only < 0) | (only == position)))[:, None]
        return self.family.join(l, self.bases.sites["resid_mid"][l].index_select(0, index), z, dz, head, index)

    def _values(self, l: int, index: Tensor, head: Tensor, variant: Tensor) -> Tensor:
        """z [R, D] that these rows take: the source run's, or the other prompt's."""
        values = self.bases.source["z"][l][index, head]
        if self.other is None or self.from_other is None:
            return values
        of_other = self.from_other[variant]
        if not self._picks(index):
            return torch.where(of_other[:, None], self.other[l][index, head], values)
        chosen = of_other.nonzero().flatten()
        values[chosen] = self.other[l][index[chosen], head[chosen]]
        return values

    @staticmethod
    def _picks(rows: Tensor) -> bool:
        """Whether to compute for some rows only: a GPU would have to say how many there are, and the program to wait for it."""
        return rows.device.type == "cpu"


def ulp(x: Tensor, dtype: torch.dtype) -> Tensor:
    """One unit in the last place of x as a number of `dtype` (0 for 0)."""
    exponent = torch.floor(torch.log2(x.abs().clamp_min(torch.finfo(dtype).tiny)))
    return (torch.exp2(exponent) * torch.finfo(dtype).eps).masked_fill(x == 0, 0)
