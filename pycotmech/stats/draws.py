"""Random sets of heads with as many heads in each layer as the sets they are compared with.

Heads of some layers matter more than those of others, so that a random set of the same size but of other layers differs from
a chosen one in its layers first of all.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


def relabelled(masks: NDArray[np.bool_], rng: np.random.Generator) -> NDArray[np.bool_]:
    """Sets [..., L, H] with the heads of each layer in a random order, the same for all sets.

    Each keeps its number of heads in each layer, and any two keep the number that they share.
    """
    order = rng.random(masks.shape[-2:]).argsort(-1)
    return masks[..., np.arange(masks.shape[-2])[:, None], order]


def layer_matched(
    masks: NDArray[np.bool_], rng: np.random.Generator, *, within: NDArray[np.bool_] | None = None
) -> NDArray[np.bool_]:
    """Random sets with the layer counts of masks [step, L, H]. Steps that share a mask and what it is drawn from share the set.

    within: bool of the same shape, the heads to draw from, which hold those of `masks`; None: all heads.
    """
    out = np.zeros_like(masks)
    pools = np.ones_like(masks) if within is None else within
    drawn: dict[bytes, NDArray[np.bool_]] = {}
    for mask, pool, one in zip(masks, pools, out):
        key = mask.tobytes() + pool.tobytes()
        if key not in drawn:
            order = np.where(pool, rng.random(mask.shape), np.inf).argsort(1)  # of each layer's heads, the pool's first
            taken = np.arange(mask.shape[1]) < mask.sum(1)[:, None]
            drawn[key] = np.zeros_like(mask)
            np.put_along_axis(drawn[key], order, taken, 1)
        one[:] = drawn[key]
    return out
