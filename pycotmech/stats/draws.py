"""Layer-matched random sets: as many heads in each layer as the sets that they are compared with.

Heads of some layers matter more than those of others, so a random set of the same size from any layers would differ from a
chosen one mainly in its layers.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


def relabelled(masks: NDArray[np.bool_], rng: np.random.Generator) -> NDArray[np.bool_]:
    """Permutes the heads of each layer at random, with the same permutation for all sets: bool [..., L, H] -> the same shape.

    Each set keeps its number of heads in each layer, and any two sets keep the number of heads that they share.
    """
    order = rng.random(masks.shape[-2:]).argsort(-1)
    return masks[..., np.arange(masks.shape[-2])[:, None], order]


def layer_matched(
    masks: NDArray[np.bool_], rng: np.random.Generator, *, within: NDArray[np.bool_] | None = None
) -> NDArray[np.bool_]:
    """Draws random sets with as many heads in each layer as masks, bool [step, L, H].

    Steps with the same mask and the same heads to draw from share the random set.
    within: bool of the same shape, the heads to draw from, which include those of `masks`; None: all heads.
    """
    out = np.zeros_like(masks)
    pools = np.ones_like(masks) if within is None else within
    drawn: dict[bytes, NDArray[np.bool_]] = {}
    for mask, pool, row in zip(masks, pools, out):
        key = mask.tobytes() + pool.tobytes()
        if key not in drawn:
            order = np.where(pool, rng.random(mask.shape), np.inf).argsort(1)  # of each layer's heads, the pool's first
            taken = np.arange(mask.shape[1]) < mask.sum(1)[:, None]
            drawn[key] = np.zeros_like(mask)
            np.put_along_axis(drawn[key], order, taken, 1)
        row[:] = drawn[key]
    return out
