"""The statistics of one layer's attention: what the summary of a prompt and the capture of a forward pass both read."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor

from pycotmech.model.families.attention import LayerAttention
from pycotmech.ops.attn_extract import INLINE_TOPK
from pycotmech.ops.attn_topk import MAX_TOPK

Readout = Literal["value_norm"] | Tensor | np.ndarray | Callable[[int, Tensor, Tensor], Tensor]


class LayerStatistics(NamedTuple):
    """Of one layer; R rows of B sequences over S keys. Absent statistics have last size 0 or are None."""

    mass: Tensor  # [B, H, R, G]
    entropy: Tensor | None  # [B, H, R]
    lse: Tensor  # [B, H, R]
    largest: Tensor  # [B, H, R]
    top_keys: Tensor  # [B, H, R, k] int32
    top_weights: Tensor  # [B, H, R, k]
    received: Tensor | None  # [B, H, S]
    read: Tensor | None  # [B, H, R, C]
    sink: Tensor | None = None  # [B, H, R], of layers with attention sinks

    def on_cpu(self) -> LayerStatistics:
        """The same on the CPU: a program waits for a GPU once, not once for each statistic."""
        if self.lse.device.type == "cpu":
            return LayerStatistics(*(None if x is None else x.detach() for x in self))  # type: ignore[arg-type]
        moved = iter(in_one_copy([x for x in self if x is not None]))
        return LayerStatistics(*(None if x is None else next(moved) for x in self))  # type: ignore[arg-type]


def in_one_copy(tensors: Sequence[Tensor]) -> list[Tensor]:
    """Tensors of one device on the CPU, brought there as the bytes of all in a single copy."""
    order = sorted(range(len(tensors)), key=lambda i: -tensors[i].element_size())  # every one begins at a multiple of its size
    parts = [tensors[i].detach().contiguous().flatten().view(torch.uint8) for i in order]
    pieces = torch.cat(parts).cpu().split([len(p) for p in parts])
    out = list(tensors)
    for i, piece in zip(order, pieces, strict=True):
        out[i] = piece.view(tensors[i].dtype).view(tensors[i].shape)
    return out


@dataclass(frozen=True)
class Wanted:
    """Which statistics are asked for, checked at once."""

    top_k: int = 8
    entropy: bool = True
    received: bool = True
    readout: Readout | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.top_k, int) or not 0 <= self.top_k <= MAX_TOPK:
            raise ValueError(f"top_k: got {self.top_k!r}; expected 0 to {MAX_TOPK}")
        r = self.readout
        if isinstance(r, str) and r != "value_norm":
            raise ValueError(f"readout: got {r!r}; expected 'value_norm', an array [T, C], or a callable (layer, k, v)")
        if r is not None and not isinstance(r, (str, Tensor, np.ndarray)) and not callable(r):
            raise TypeError(f"readout: got {type(r).__name__}; expected 'value_norm', an array [T, C], or a callable")

    def features(self, layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor | None:
        """The per-key features to average with the weights: [B or 1, H or 1, S, C] as `attn_extract` takes them."""
        if self.readout is None:
            return None
        dtype = torch.float64 if q.dtype == torch.float64 else torch.float32
        if isinstance(self.readout, str):
            norms = torch.linalg.vector_norm(v, dim=-1, dtype=dtype)  # [B, Hkv, S]
            return norms.repeat_interleave(q.shape[1] // v.shape[1], 1)[..., None].contiguous()
        if isinstance(self.readout, (Tensor, np.ndarray)):
            found = torch.as_tensor(self.readout)[None, None]
        else:
            found = torch.as_tensor(self.readout(layer, k, v))
        if found.ndim != 4 or found.shape[2] != k.shape[2]:
            raise ValueError(
                f"readout: got {list(found.shape)}; expected one row of features for each of the {k.shape[2]} tokens "
                "([T, C], or [B or 1, H or 1, T, C] from a callable)"
            )
        return found.to(dtype=dtype, device=q.device).contiguous()


def read_layer(
    layer: int,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    wanted: Wanted,
    labels: Tensor,
    n_segments: int,
    rows: Tensor | None = None,
    z_unused: bool = False,
    starts: Tensor | None = None,
    attention: LayerAttention,
) -> tuple[Tensor, LayerStatistics]:
    """(z, statistics) of one layer's attention: z [B, H, T, D], statistics of the query rows `rows` (int64 [R]; None: all).

    q, k, v, starts: as for `ops.attn_extract`. attention: what the layer makes of its scores.
    labels: int32 [S] or [B, S], on the device of q.
    z_unused: attention is computed for the rows that are asked for and those after them only, and so is z.
    Cost: one attention; another half for column sums, and another half for more than 8 top keys. With rows, both of these
    begin at the first row that is asked for.
    """
    first = 0 if rows is None else int(rows.min())
    tail = q[:, :, first:]
    own_topk = wanted.top_k if rows is None and wanted.top_k <= INLINE_TOPK else 0
    out = attention.extract(
        tail if z_unused else q,
        k,
        v,
        segments=labels,
        n_segments=n_segments,
        readout=wanted.features(layer, q, k, v),
        entropy=wanted.entropy,
        topk=own_topk,
        starts=starts,
    )
    lse = (out.lse if z_unused else out.lse[:, :, first:]).contiguous()
    top_p, top_i = out.topk_p, out.topk_i
    if wanted.top_k > own_topk:
        top_p, top_i = attention.top_keys(tail, k, lse, topk=wanted.top_k, starts=starts)
    elif not z_unused:
        top_p, top_i = top_p[:, :, first:], top_i[:, :, first:]
    received = None
    if wanted.received:
        times = None
        if rows is not None:  # a row that is named twice counts twice
            times = torch.bincount(rows - first, minlength=tail.shape[2])[None, None].to(lse)
        received = attention.received(tail, k, lse, weights=times, starts=starts)

    def kept(x: Tensor, at: int) -> Tensor:
        return x if rows is None else x[:, :, rows - at]

    offset = first if z_unused else 0  # of the rows that attention was computed for
    statistics = LayerStatistics(
        mass=kept(out.mass, offset),
        entropy=kept(out.entropy, offset) if wanted.entropy else None,
        lse=kept(out.lse, offset),
        largest=kept(out.pmax, offset),
        top_keys=kept(top_i, first),
        top_weights=kept(top_p, first),
        received=received,
        read=None if wanted.readout is None else kept(out.read, offset),
        sink=None if attention.sinks is None else (attention.sinks.to(lse)[:, None] - kept(out.lse, offset)).exp(),
    )
    return out.z, statistics
