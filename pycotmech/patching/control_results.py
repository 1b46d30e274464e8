"""What the controls of a sweep found: self-patches, patches from an unrelated prompt, and the sham position."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from pycotmech.display import Described, Facts
from pycotmech.stats.null_effects import ENOUGH, LEVEL, null_threshold


@dataclass(frozen=True, kw_only=True, eq=False)
class Controls(Described):
    """The controls of a sweep over B pairs, on the scale of its effects.

    random: the effect of each head with activations of another prompt of equal length in place of the source run's, at the
        same positions, in the shape of the sweep's `effect`; over several pairs the mean change of those in which it was
        measured, in units of the mean difference between both runs. NaN where it was not.
    random_raw: the metric itself, in the shape of the sweep's `raw`.
    sham [B]: the largest |effect| of a patch at the position before the first difference, where both runs are the same: 0
        exactly. NaN for pairs that differ at position 0.
    self_patches [B, n]: effects of patching a head by itself, moved by one unit in the last place, around their mean.
    share: the share of the heads whose random control was measured, of each pair.
    missing: by number of the pair, which controls could not be measured, and why.
    """

    random: NDArray[np.float32]
    random_raw: NDArray[np.float64] = field(repr=False)
    sham: NDArray[np.float64]
    self_patches: NDArray[np.float64] = field(repr=False)
    share: float
    missing: dict[int, str] = field(default_factory=dict)

    @property
    def n_random(self) -> int:
        """Number of random controls."""
        return int(np.count_nonzero(~np.isnan(self.random_raw)))

    @cached_property
    def threshold(self) -> float:
        """The size that 5 % at most of the random controls exceed (`stats.null_effects.null_threshold`); NaN without any."""
        return null_threshold(self.random)

    @property
    def largest(self) -> float:
        """The largest |random control|: beyond it lies any one of N heads without an effect with probability N / (m + N) at
        most, m being the number of controls. NaN without any."""
        return largest_measured(np.abs(self.random))

    def described(self) -> Facts:
        parts = [line.partition(": ") for line in str(self).split("; ")]
        return Facts("Controls of a sweep", [(name, value) if found else ("", name) for name, found, value in parts])

    def __str__(self) -> str:
        lines = []
        if self.n_random:
            measured = int(np.count_nonzero(~np.isnan(self.random)))
            share = f"{1 - LEVEL:.0%} of |effect| up to {self.threshold:.2g}, " if measured >= ENOUGH else ""
            few = "" if measured >= ENOUGH else f" (a share of {1 - LEVEL:.0%} needs {ENOUGH} or more)"
            lines.append(f"random control of {self.n_random} heads: {share}at most {self.largest:.2g}{few}")
        if np.isfinite(self.sham).any():
            lines.append(f"sham position: {largest_measured(self.sham):.2g}")
        lines.append(f"self-patches: at most {np.abs(self.self_patches).max():.2g}")
        lines += [f"pair {i}: {reason}" for i, reason in self.missing.items()]
        return "; ".join(lines)


def largest_measured(values: NDArray[np.floating]) -> float:
    """The largest value that was measured, others being NaN; NaN for none."""
    measured = values[~np.isnan(values)]
    return float(measured.max()) if measured.size else float("nan")
