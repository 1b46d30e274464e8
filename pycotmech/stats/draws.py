"""Random sets and orders of heads."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


def sets_like(masks: NDArray[np.bool_], rng: np.random.Generator) -> NDArray[np.bool_]:
    """Random sets of the same sizes as masks [set, step, L, H]. Steps of a set that share a mask share the random one."""
    n = masks.shape[-1] * masks.shape[-2]
    out = np.zeros_like(masks)
    for i, steps in enumerate(masks):
        drawn: dict[bytes, NDArray] = {}
        for s, mask in enumerate(steps):
            if mask.tobytes() not in drawn:
                flat = np.zeros(n, bool)
                flat[rng.choice(n, int(mask.sum()), replace=False)] = True
                drawn[mask.tobytes()] = flat.reshape(mask.shape)
            out[i, s] = drawn[mask.tobytes()]
    return out


def shuffled_heads(shape: tuple[int, int], seed: int, draw: int) -> list[tuple[int, int]]:
    """All heads (layer, head) of a model of this shape in a random order, by seed and number of the draw."""
    order = np.random.default_rng([seed, draw]).permutation(shape[0] * shape[1])
    return [(int(i) // shape[1], int(i) % shape[1]) for i in order]
