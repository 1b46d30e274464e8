"""From raw metrics to values and effects: the scale, the sign, and the noise floor, for every sweep.

With m the metric, averaged over the examples, and c and k its value in the clean and in the corrupted run:

    values  (m - k) / (c - k) if normalised, otherwise m
    effect  values - (the mean of the self-patches on the same scale), times -1 if normalised and clean values are the base's
    floor   the largest |effect| among the self-patches
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from pycotmech.engine.metrics import normalise


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

    def measured(self, raw: Tensor, self_patches: Tensor) -> Scaled:
        """raw [B, ...], self_patches [B, n]: the metric of every variant and of the self-patches."""
        self.check()
        check_self_patches(self.metric, self_patches)
        return _against(self.values(self_patches.mean(0)), self.values(raw.mean(0)), self.sign)

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


def _not_finite(metric: str, what: str) -> ValueError:
    return ValueError(
        f"metric: {metric} {what}; expected a finite number (a weight that is not finite, or a callable that divides by 0, "
        "gives none)"
    )


def unscaled(metric: str, raw: Tensor, self_patches: Tensor) -> Scaled:
    """The metric itself, raw [N], and its change against the self-patches [n]: of variants that have no source run."""
    check_self_patches(metric, self_patches)
    return _against(self_patches, raw, 1.0)


def _against(self_patches: Tensor, values: Tensor, sign: float) -> Scaled:
    base = self_patches.mean()
    return Scaled(values, sign * (values - base), float((self_patches - base).abs().max()))
