"""From raw metrics to values and effects: the scale, the sign, and the noise floor, for every sweep.

With m the metric, averaged over the examples, and c and k its value in the clean and in the corrupted run:

    values  (m - k) / (c - k) if normalised, otherwise m
    effect  values - (the mean of the self-patches on the same scale), times -1 if normalised and clean values are the base's
    floor   what rounding may change in an effect, 95 of 100 times or more (`Scale.floor`)
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from pycotmech._warnings import warn
from pycotmech.engine.joins import N_JITTERED
from pycotmech.engine.metrics import normalise

COVERAGE = 2.0
"""Standard deviations of rounding that the floor holds. With float64 as the truth, over tiny models, 98 % or more of the
effects' errors are within it, and in the median sweep it is below 4 times their 95th percentile."""

_UNCERTAIN = 0.25
"""Share of the difference between both runs above which rounding is warned of."""

_LEAST_SPAN = 0.05
"""The least share of the difference between both runs that is taken to be left by rounding."""


@dataclass(frozen=True)
class Scaled:
    """values, effect: float64, shaped like the raw metric without the examples."""

    values: Tensor
    effect: Tensor
    noise_floor: float


@dataclass(frozen=True)
class Scale:
    """The ends of the scale. clean, corrupted [B] float64: the metric, named `metric`, of both."""

    metric: str
    clean: Tensor
    corrupted: Tensor
    direction: str
    normalized: bool

    @property
    def sign(self) -> float:
        """Normalised effects are positive towards the source run."""
        return -1.0 if self.normalized and self.direction == "noise" else 1.0

    def values(self, mean: Tensor) -> Tensor:
        """Means over the examples on the scale corrupted 0, clean 1, if normalised."""
        return normalise(self.metric, mean, self.clean.mean(), self.corrupted.mean()) if self.normalized else mean

    def check(self) -> None:
        """Raises ValueError if the metric of a run is no finite number."""
        for run, values in (("clean", self.clean), ("corrupted", self.corrupted)):
            for i in (~values.isfinite()).nonzero().flatten().tolist()[:1]:
                raise _not_finite(self.metric, f"is {float(values[i])} in the {run} run of pair {i}")

    def measured(self, raw: Tensor, self_patches: Tensor, rounding: Tensor) -> Scaled:
        """raw [B, ...], self_patches [B, n]: the metric of every variant and of the self-patches. rounding [B, J, 3]: what
        rounding changes, as `rounding_of_pair` gives it."""
        self.check()
        check_self_patches(self.metric, self_patches)
        values, effect = _against(self.values(self_patches.mean(0)), self.values(raw.mean(0)), self.sign)
        return Scaled(values, effect, self.floor(effect, rounding))

    def control_effects(self, raw: Tensor, self_patches: Tensor) -> Tensor:
        """Effects of controls, raw [B, ...] with NaN where there is none: mean changes over the examples in which each was
        measured, in units of the mean difference over all examples. Over all examples it is what `measured` gives."""
        n = (~raw.isnan()).sum(0)
        change = (raw - self_patches.mean(1).view(-1, *[1] * (raw.ndim - 1))).nan_to_num(nan=0.0).sum(0) / n.clamp(min=1)
        span = self.clean.mean() - self.corrupted.mean() if self.normalized else 1.0
        return (self.sign * change / span).masked_fill(n == 0, torch.nan)

    def pair_effects(self, change: Tensor) -> Tensor:
        """Changes [B, n] of each example's metric on the scale of its own effects."""
        return self.sign * change / (self.clean - self.corrupted)[:, None] if self.normalized else change

    def floor(self, effect: Tensor, rounding: Tensor) -> float:
        """What rounding may change in an effect.

        With e the standard deviation by which rounding moves the metric, the largest of those of the base run, of the source
        run, and of a KL by the logits it is taken from, and q the 95th percentile of |effect|, both in units of c - k: a
        variant and the self-patches are off by e each, and c - k, by which they are divided, by e at both of its ends.

            floor = 2 e sqrt(2 (1 + q^2)) / (1 - 2 e)

        Without normalisation nothing is divided, but a larger change of the metric is off by more: 2 e sqrt(2 (1 + q)) |c - k|.
        """
        _check_rounding(self.metric, rounding)
        span = abs(float(self.clean.mean() - self.corrupted.mean()))
        found = effect[effect.isfinite() & (effect != 0)].abs()
        q = float(torch.quantile(found, 0.95)) if len(found) else 0.0
        off = COVERAGE * _largest_deviation(rounding)
        if not self.normalized:
            return off * math.sqrt(2 * (1 + max(1.0, q / span if span else 1.0)))
        off, q = off / span, max(q, 0.5)
        if off > _UNCERTAIN:
            warn(
                f"clean, corrupted: {self.metric} differs by {span:.2g} between the two runs, and rounding alone may change it "
                f"by {off * span:.2g}; effects are shares of this difference, so they are uncertain; choose another pair, a "
                "wider dtype, or normalize=False"
            )
        return off * math.sqrt(2 * (1 + q**2)) / max(1 - off, _LEAST_SPAN)

    def estimated(self, change: Tensor) -> tuple[Tensor, Tensor]:
        """Values and effects of estimated changes [B, ...] of the metric against the base run."""
        self.check()
        base, effect = (self.corrupted if self.direction == "denoise" else self.clean).mean(), change.mean(0)
        values = self.values(base + effect)
        if self.normalized:
            effect = self.sign * effect / (self.clean.mean() - self.corrupted.mean())
        return values, effect


def check_self_patches(metric: str, values: Tensor) -> None:
    """Raises ValueError if the metric of a self-patch is no finite number: there would be no noise floor."""
    n = int((~values.isfinite()).sum())
    if n:
        raise _not_finite(metric, f"is no finite number in {n} of {values.numel()} self-patches, which leave the run as it is")


def _check_rounding(metric: str, changes: Tensor) -> None:
    """Warns if the metric is no finite number when rounding moves the logits: there is no noise floor then."""
    if not bool(changes.isfinite().all()):
        warn(
            f"metric: {metric} is no finite number if rounding moves the logits, so there is no noise floor (it is NaN), and "
            "no effect counts as larger than rounding"
        )


def _not_finite(metric: str, what: str) -> ValueError:
    return ValueError(
        f"metric: {metric} {what}; expected a finite number (a weight that is not finite, or a callable that divides by 0, "
        "gives none)"
    )


def unscaled(metric: str, raw: Tensor, self_patches: Tensor, base: Tensor, own: Tensor) -> Scaled:
    """The metric itself, raw [N], and its change against the self-patches [n]: of variants that have no source run.
    base [J], own [J, n]: what rounding changes in the metric of the base run and of some variants."""
    check_self_patches(metric, self_patches)
    _check_rounding(metric, base)
    measured = own[:, own.isfinite().all(0)]  # a variant whose metric is NaN is warned of as such
    off = COVERAGE * _largest_deviation(torch.cat((base[:, None], measured), 1)[None])
    return Scaled(*_against(self_patches, raw, 1.0), 2 * off)


def _largest_deviation(rounding: Tensor) -> float:
    """rounding [B, J, K]: changes of K metrics of B examples, which are averaged; J independent ones of each, first as they are
    and then for shifted tokens. Returns the largest root mean square, of either kind."""
    own, shifted = rounding[:, :N_JITTERED], rounding[:, N_JITTERED:]
    squares = torch.stack([part.square().mean(1).sum(0) for part in (own, shifted)])
    return math.sqrt(float(squares.max())) / len(rounding)


def _against(self_patches: Tensor, values: Tensor, sign: float) -> tuple[Tensor, Tensor]:
    """Values and effects."""
    return values, sign * (values - self_patches.mean())
