"""Sets of heads, and score arrays of heads as the analyses give them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import reduce
from operator import and_, or_
from typing import Any

import numpy as np
import torch
import xarray as xr
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from pycotmech._choices import did_you_mean, shortened
from pycotmech.cot.tools.result import Analysis
from pycotmech.display import Arrays, Displayed, View
from pycotmech.patching.results import Sweep
from pycotmech.stats.averages import nanmean

Head = tuple[int, int]


@dataclass(frozen=True, eq=False)
class HeadSet(Displayed):
    """Some of a model's heads. mask: bool [L, H]. `a & b`, `a | b`, `a - b` and `~a` are sets again.

    order: the heads, the most important first, where there is such an order; else by layer and head.
    chosen_on: the numbers of the examples that the set was chosen on, where they are known.
    """

    mask: NDArray[np.bool_] = field(repr=False)
    name: str = ""
    order: tuple[Head, ...] = field(default=(), repr=False)
    chosen_on: tuple[int, ...] = field(default=(), repr=False)

    def __post_init__(self) -> None:
        mask = np.asarray(self.mask)
        if mask.dtype != np.bool_ or mask.ndim != 2:
            raise ValueError(f"mask: got {mask.dtype} {list(mask.shape)}; expected bool [L, H]")
        object.__setattr__(self, "mask", mask)
        if not self.order:
            object.__setattr__(self, "order", tuple((int(l), int(h)) for l, h in np.argwhere(mask)))

    @classmethod
    def of(cls, heads: Any, shape: Sequence[int], *, name: str = "", argument: str = "heads") -> HeadSet:
        """A set from what users have: a HeadSet, a bool array or tensor [L, H], or (layer, head) pairs, most important first.

        shape: (L, H) of the model. Raises TypeError or ValueError naming `argument`.
        """
        L, H = shape
        chosen_on: tuple[int, ...] = ()
        if isinstance(heads, HeadSet):
            mask, order, chosen_on, name = heads.mask, heads.order, heads.chosen_on, name or heads.name
        elif isinstance(heads, (np.ndarray, Tensor, xr.DataArray)) and str(heads.dtype).endswith("bool"):
            mask, order = np.asarray(heads), ()
        else:
            try:
                pairs = [(int(l), int(h)) for l, h in heads]
            except (TypeError, ValueError):
                got = type(heads).__name__
                raise TypeError(f"{argument}: got {got}; expected a HeadSet, bool [{L}, {H}], or (layer, head) pairs") from None
            wrong = [p for p in pairs if not (0 <= p[0] < L and 0 <= p[1] < H)]
            if wrong or len(set(pairs)) < len(pairs):
                what = f"{wrong[0]}" if wrong else "one head twice"
                raise ValueError(f"{argument}: got {what}; expected different heads of {L} layers x {H} heads")
            mask = np.zeros((L, H), bool)
            order = tuple(pairs)
            for pair in pairs:
                mask[pair] = True
        if mask.shape != (L, H):
            raise ValueError(f"{argument}: got a set of shape {list(mask.shape)}; the model has [{L}, {H}]")
        return cls(mask, name, order, chosen_on)

    def view(self) -> View:
        """Where the heads are, and their places in the order."""
        rank = np.full(self.mask.shape, np.nan)
        for i, head in enumerate(self.order):
            rank[head] = i + 1
        heads = ", ".join(f"L{l}H{h}" for l, h in self.order[:20]) + (" …" if len(self) > 20 else "")
        return View(
            title=f"{self.name or 'A set'}: {len(self)} of {self.mask.size} heads", values=self.mask.astype(float),
            axes=("layer", "head"), label="in the set", share=True, beside={"place in the order": rank}, by_size=False,
            facts=(heads,) if heads else (),
            go_on=(("pcm.ablate_heads(model, tokens, heads=list(heads))", "what the model does without them"),),
        )  # fmt: skip

    def to_xarray(self) -> xr.Dataset:
        """mask [layer, head], and rank [layer, head]: places in the order from 1, NaN outside the set."""
        return Arrays(
            data={
                "mask": (("layer", "head"), self.mask),
                "rank": (("layer", "head"), self.view().beside["place in the order"]),
            },
            coords={axis: np.arange(n) for axis, n in zip(("layer", "head"), self.mask.shape, strict=True)},
            attrs={"title": self.view().title, "source": "docs/protocol.md, E6"},
        ).dataset()

    def __len__(self) -> int:
        return int(self.mask.sum())

    def __iter__(self) -> Iterator[Head]:
        return iter(self.order)

    def __contains__(self, head: Head) -> bool:
        return bool(self.mask[head])

    def _with(self, other: HeadSet, mask: NDArray, sign: str) -> HeadSet:
        known = dict.fromkeys((*self.order, *other.order))
        named = f"({self.name} {sign} {other.name})" if self.name and other.name else ""
        chosen_on = tuple(sorted({*self.chosen_on, *other.chosen_on}))
        return HeadSet(mask, named, tuple(head for head in known if mask[head]), chosen_on)

    def __and__(self, other: HeadSet) -> HeadSet:
        return self._with(other, self.mask & other.mask, "&")

    def __or__(self, other: HeadSet) -> HeadSet:
        return self._with(other, self.mask | other.mask, "|")

    def __sub__(self, other: HeadSet) -> HeadSet:
        return self._with(other, self.mask & ~other.mask, "-")

    def __invert__(self) -> HeadSet:
        return HeadSet(~self.mask, f"~{self.name}" if self.name else "", (), self.chosen_on)

    def __repr__(self) -> str:
        return f"HeadSet({self.name or 'unnamed'}: {len(self)} of {self.mask.size} heads)"


def set_combinations(main: Any, others: Sequence[Any], *, shape: tuple[int, int]) -> dict[str, HeadSet]:
    """The five sets that the authors keep, from a main set and two or more others (docs/protocol.md, E6).

    common: in all of them; only_main: in none of the others; only_other: in one of the others, not in main; other: in one of
    the others; common_only_main: common and only_main together. shape: (L, H).
    """
    m = HeadSet.of(main, shape, argument="main")
    rest = [HeadSet.of(o, shape, argument=f"others[{i}]") for i, o in enumerate(others)]
    if not rest:
        raise ValueError("others: got none; expected at least one other set")
    either, common = union(rest), intersection(rest)
    found = {"common": m & common, "only_main": m - either, "only_other": either - m, "other": either}
    found["common_only_main"] = found["common"] | found["only_main"]
    return {name: HeadSet(s.mask, name, s.order, s.chosen_on) for name, s in found.items()}


def union(sets: Sequence[HeadSet]) -> HeadSet:
    """All heads of any of the sets, over the steps of one kind for example."""
    return reduce(or_, sets)


def intersection(sets: Sequence[HeadSet]) -> HeadSet:
    """The heads that are in all of the sets."""
    return reduce(and_, sets)


@dataclass(frozen=True, eq=False)
class Scores:
    """Scores of heads: values [n, S, L, H], NaN where there is none; axes of length 1 were averaged before.

    examples, steps: what the axes count, None where the scores were averages already. name: in words.
    labelled: whether `examples` are numbers that the scores came with, and not just 0, 1, ...
    """

    values: NDArray[np.float64] = field(repr=False)
    examples: tuple[int, ...] | None
    steps: tuple[int, ...] | None
    name: str
    labelled: bool = False

    @property
    def shape(self) -> tuple[int, int]:
        """(L, H)."""
        return self.values.shape[2:]  # type: ignore[return-value]

    @property
    def scored(self) -> NDArray[np.int64]:
        """Rows of the examples that have a score of any head at any step: where no step counts there is none."""
        return np.flatnonzero(np.isfinite(self.values).any((1, 2, 3)))

    def checked(self, shape: tuple[int, int]) -> Scores:
        """The same. Raises ValueError if they are of heads of another shape."""
        if self.shape != shape:
            raise ValueError(f"scores: got heads {list(self.shape)}; the model has {list(shape)}")
        return self

    def at(self, step: int | None) -> Scores:
        """Those of one step; None: as they are."""
        if step is None:
            return self
        if self.steps is None or step not in self.steps:
            have = "no steps" if self.steps is None else f"steps {list(self.steps)}"
            raise ValueError(f"step: got {step}; the scores have {have}")
        i = self.steps.index(step)
        one = self.values[:, i : i + 1]
        return Scores(one, self.examples, (step,), f"{self.name}, step {step}", self.labelled)

    def of(self, examples: Iterable[int]) -> Scores:
        """Those of some examples, by the numbers in `examples`."""
        assert self.examples is not None
        keep = [i for i, e in enumerate(self.examples) if e in set(examples)]
        return Scores(self.values[keep], tuple(self.examples[i] for i in keep), self.steps, self.name, self.labelled)

    def mean(self, rows: ArrayLike | None = None) -> NDArray[np.float64]:
        """[L, H]: the mean over steps of each step's mean over examples (`rows`: of these, repeats count)."""
        chosen = self.values if rows is None else self.values[np.asarray(rows)]
        return nanmean(nanmean(chosen))

    def by_example(self) -> NDArray[np.float64]:
        """[n, L, H]: each example's mean over its steps."""
        return nanmean(np.moveaxis(self.values, 1, 0))


def scores_of(scores: Any, variable: str | None = None) -> Scores:
    """Scores of heads from what the analyses give.

    scores: an `Analysis` or xarray Dataset with a variable over layer and head (`variable` says which, if there are
        several), per example or step or not; an xarray DataArray of such; a `Sweep` over heads; an array [L, H] of
        averages, [n, L, H] per example or [n, S, L, H] per example and step.
    Raises TypeError or ValueError naming the argument.
    """
    if isinstance(scores, Scores):
        return scores
    if isinstance(scores, Analysis):
        variable = variable or getattr(scores, "main", None) or None
        return _from_dataset(scores.data, variable, scores.name)
    if isinstance(scores, xr.Dataset):
        return _from_dataset(scores, variable, "")
    if isinstance(scores, xr.DataArray):
        return _from_array(scores, str(scores.name or "scores"))
    if isinstance(scores, Sweep):
        return _from_sweep(scores)
    values = scores.detach().cpu().numpy() if isinstance(scores, torch.Tensor) else np.asarray(scores)
    if values.dtype.kind not in "fiu" or values.ndim not in (2, 3, 4):
        got = f"{type(scores).__name__} of shape {list(values.shape)}"
        raise TypeError(f"scores: got {got}; expected an Analysis, a Sweep, or numbers [L, H], [n, L, H] or [n, steps, L, H]")
    values = values.astype(np.float64)
    n = None if values.ndim == 2 else tuple(range(len(values)))
    steps = tuple(range(values.shape[1])) if values.ndim == 4 else None
    wide = values[None, None] if values.ndim == 2 else values[:, None] if values.ndim == 3 else values
    return Scores(wide, n, steps, "scores")


def _from_dataset(data: xr.Dataset, variable: str | None, name: str) -> Scores:
    usable = [str(k) for k, v in data.items() if {"layer", "head"} <= set(v.dims) and v.dtype.kind == "f"]
    if variable is None and len(usable) == 1:
        variable = usable[0]
    if variable is None or variable not in usable:
        raise ValueError(
            f"variable: got {variable!r}; expected one of those over layer and head: {shortened(usable) or 'none'}"
            f"{did_you_mean(variable, usable)}"
        )
    return _from_array(data[variable], f"{name} {variable}".strip())


def _from_array(array: xr.DataArray, name: str) -> Scores:
    further = set(array.dims) - {"example", "step", "layer", "head"}
    if further or not {"layer", "head"} <= set(array.dims):
        raise ValueError(f"scores: {name} has the axes {list(array.dims)}; expected layer and head, and example or step")
    examples, steps = (tuple(int(i) for i in array[d].values) if d in array.dims else None for d in ("example", "step"))
    for d in ("step", "example"):
        array = array if d in array.dims else array.expand_dims(d)
    values = array.transpose("example", "step", "layer", "head").values.astype(np.float64)
    return Scores(values, examples, steps, name, labelled=examples is not None)


def _from_sweep(sweep: Sweep) -> Scores:
    if sweep.axes != ("layer", "head"):
        raise ValueError(f"scores: the sweep is over {' x '.join(sweep.axes)}; expected one over layer and head")
    name = f"effect of patching {sweep.site}"
    effect = sweep.effect.astype(np.float64)
    if sweep.raw.ndim == 2:
        return Scores(effect[None, None], None, None, name)
    ends = (sweep.corrupted_metric, sweep.clean_metric)
    base, source = ends if sweep.direction == "denoise" else ends[::-1]
    effects = sweep.raw - base[:, None, None]
    if sweep.normalized:
        effects = effects / (source.mean() - base.mean())
    effects = effects + (effect - effects.mean(0))  # the mean is the sweep's own, taken against its self-patches
    return Scores(effects[:, None], tuple(range(len(effects))), None, name)
