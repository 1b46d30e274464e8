"""Sweeps that no model made, for tests of what is kept of them."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np


def sweep_of(seed: int, layers: int = 4, heads: int = 3) -> SimpleNamespace:
    """What the store reads of a sweep, in random numbers."""
    raw = np.random.default_rng(seed).normal(size=(layers, heads))
    return SimpleNamespace(
        raw=raw,
        values=raw.astype("f4"),
        effect=(raw * 2).astype("f4"),
        clean_metric=np.array([1.5]),
        corrupted_metric=np.array([-0.5]),
        noise_floor=1e-6,
        control=np.where(raw > 0, raw, np.nan).astype("f4"),
        sham=0.0,
    )
