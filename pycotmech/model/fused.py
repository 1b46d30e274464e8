"""Weights of projections that read the same input, put one after another in memory, so that they can be one product.

Queries, keys and values of a layer are three products of the same rows, and gate and up of an MLP two. Where few rows go
through a model, launching them takes longer than computing them. If the weights lie in one buffer, one product does for all
of them (`families.launches`). The parameters stay what they are and become views of the buffer: `state_dict`,
`save_pretrained`, adapters, hooks and edits in place work as before, and nothing is there twice. What moves or replaces a
parameter (`.to`, an assignment) takes it out of the buffer again; it is then a product of its own.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

SAME_INPUT = (("q_proj", "k_proj", "v_proj"), ("gate_proj", "up_proj"))
"""Names of projections within one module that read the same rows."""


def fuse_weights(model: nn.Module) -> int:
    """Puts weights of projections that read the same input one after another, and their biases; returns how many products a
    forward pass then has less.

    model: its weights are in memory of their own, as they are after loading to a GPU. Modules that are not exactly
    `torch.nn.Linear` are left as they are. Models that others may hold views of should not be changed like this.
    Memory: while it runs, one layer's projections more. Cost: a copy of these weights.
    Raises ValueError, naming `fuse_weights`, for weights that are parts of a larger piece of memory, such as a mapped file,
    which would be read into memory and kept there beside the file's pages, or that have no values; the model is then as it was.
    """
    found = [group for module in model.modules() for names in SAME_INPUT if (group := _projections(module, names))]
    for group in found:
        for m in group:
            _refuse_shared(m.weight)
    for group in found:
        _put_together([m.weight for m in group])
        if biases := [m.bias for m in group if m.bias is not None]:
            _put_together(biases)
    return sum(len(group) - 1 for group in found)


def _projections(module: nn.Module, names: Sequence[str]) -> list[nn.Linear]:
    """The module's parts of these names, if all are plain projections of one dtype; otherwise none."""
    parts = [getattr(module, name, None) for name in names]
    plain = [m for m in parts if type(m) is nn.Linear]
    return plain if len(plain) == len(names) and len({m.weight.dtype for m in plain}) == 1 else []


def _refuse_shared(weight: Tensor) -> None:
    if weight.is_meta:
        raise ValueError("fuse_weights: weights have no values in memory; expected a model that is loaded as a whole")
    if weight.untyped_storage().nbytes() > weight.numel() * weight.element_size():
        raise ValueError(
            "fuse_weights: weights are parts of a larger piece of memory, of a file that is mapped for instance; expected "
            "weights in memory of their own, as on a GPU or with another dtype than the file's"
        )


@torch.no_grad()
def _put_together(tensors: Sequence[Tensor]) -> None:
    """Parameters [n, ...] become views of one buffer [sum of n, ...]."""
    together = torch.cat([t.detach() for t in tensors])
    for t, part in zip(tensors, together.split([len(t) for t in tensors]), strict=True):
        t.data = part
