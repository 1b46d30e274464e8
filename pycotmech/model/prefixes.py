"""Keys and values of the beginnings of prompts, kept between calls: a few-shot block is computed once, not once per sweep.

A beginning is computed in segments (`Sizes.segment`) counted from the first token, and a last one of what remains. Each
segment's numbers depend on the tokens up to its end and on nothing else, so what a call gets is the same to the last bit
whether it was found here or computed for it: results do not depend on what was run before.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Hashable, Sequence

import torch
from torch import Tensor

from pycotmech.display import Described, Facts
from pycotmech.model.families.base import Family
from pycotmech.model.precision import matmul_precision
from pycotmech.model.run import KeyValues, Replay, forward_packed

_SHARE_OF_ROOM = 8
"""A call's memory budget divided by this may be kept."""

_SAMPLES = 256
"""Values of each weight that are compared before kept keys and values are believed."""


class Prefixes(Described):
    """The keys and values of prompt beginnings of one model, the most recently used up to a limit.

    They are dropped when a weight is replaced or changed in place (by its version counter, or at one of 256 places spread
    over it: an edit through `.data` that misses all of them is not seen, `clear()` after one). Nothing is kept for a model
    that carries hooks, adapters or other projections than the library's own, whose weights were made in inference mode or are
    loaded as they are needed, for they may change unseen.

    limit: bytes; None: an eighth of what the call that asks may use; 0: nothing is kept. Threads may share one; a copy, as
    of a model that is copied or sent to another process, begins with nothing kept.
    """

    def __init__(self, family: Family) -> None:
        self.family = family
        self.limit: int | None = None
        self._segments: OrderedDict[Hashable, Tensor] = OrderedDict()  # -> [2, L, S, Hkv, D]
        self._weights: tuple | None = None
        self._sample: Tensor | None = None
        self._lock = threading.RLock()

    @property
    def nbytes(self) -> int:
        """What is kept, in bytes."""
        with self._lock:
            return sum(s.numel() * s.element_size() for s in self._segments.values())

    def __len__(self) -> int:
        """How many segments are kept."""
        return len(self._segments)

    def described(self) -> Facts:
        limit = "an eighth of a call's memory" if self.limit is None else f"{self.limit / 2**20:,.1f} MiB"
        kept = {"segments": f"{len(self)}", "memory": f"{self.nbytes / 2**20:,.1f} MiB", "limit": limit}
        return Facts("Beginnings of prompts whose keys and values are kept", kept)

    def __repr__(self) -> str:
        return f"Prefixes({len(self)} segments, {self.nbytes / 2**20:.1f} MiB)"

    def __reduce__(self):
        return Prefixes, (self.family,), {"limit": self.limit}

    def clear(self) -> None:
        """Forgets everything; the next call computes its prefix anew."""
        with self._lock:
            self._segments.clear()
            self._weights = self._sample = None

    def key_values(self, tokens: Tensor, room: int, replay: Replay | None = None) -> KeyValues | None:
        """Keys and values of `tokens` [P] from position 0 on; None for P = 0. room: bytes that the call may use. replay: as in
        `forward_packed`; what is computed with it and without it is kept apart.

        Cost: a forward pass of the segments that are not kept, and a copy of all.
        """
        if len(tokens) == 0:
            return None
        cfg, family = self.family.cfg, self.family
        with self._lock:
            limit = room // _SHARE_OF_ROOM if self.limit is None else self.limit
            keep = limit > 0 and self._trusted()
            ids, setting = tokens.cpu(), (*_setting(), replay is not None)
            out = torch.empty(
                2, cfg.n_layers, len(ids), cfg.n_key_value_heads, cfg.d_head, dtype=family.dtype, device=family.device
            )
            # Each pass loads all the weights that are kept elsewhere.
            step = len(ids) if family.offloaded else family.sizes.segment
            for a in range(0, len(ids), step):
                b = min(a + step, len(ids))
                key = (setting, ids[:b].numpy().tobytes())
                found = self._segments.get(key) if keep else None
                if found is None:
                    past = KeyValues(out[0, :, :a], out[1, :, :a]) if a else None
                    packed = forward_packed(family, [ids[a:b]], past, replay=replay)
                    found = torch.stack((packed.k, packed.v))
                    if keep:
                        self._segments[key] = found
                else:
                    self._segments.move_to_end(key)
                out[:, :, a:b] = found
            while self.nbytes > limit:
                self._segments.popitem(last=False)
        return KeyValues(out[0], out[1])

    def _trusted(self) -> bool:
        """Whether what is kept may be used and added to: drops it where the weights are others now."""
        if self.family.offloaded or not self.family.is_plain():
            self.clear()
            return False
        tensors = self.family.tensors()
        if any(t.is_inference() for t in tensors):  # these count no versions
            self.clear()
            return False
        weights = (*((t.data_ptr(), t._version, t.shape) for t in tensors), *self.family.constants())
        sample = _samples(tensors)
        if weights != self._weights or self._sample is None or not torch.equal(sample, self._sample):
            self.clear()
            self._weights, self._sample = weights, sample
        return True


@torch.no_grad()
def _samples(tensors: Sequence[Tensor]) -> Tensor:
    """Values of all tensors, those of one dtype put together before they are widened: a few launches on a GPU, not one each."""
    by_dtype: dict[torch.dtype, list[Tensor]] = {}
    for t in tensors:
        by_dtype.setdefault(t.dtype, []).append(_sampled(t).to(tensors[0].device))
    return torch.cat([torch.cat(parts).double() for parts in by_dtype.values()])


def _sampled(t: Tensor) -> Tensor:
    """Up to `_SAMPLES` values of a tensor, as a view where it is contiguous."""
    flat = t.detach().reshape(-1) if t.is_contiguous() else t.detach().flatten()
    # An odd step visits every column of a matrix whose width is a power of two.
    step = max(1, len(flat) // _SAMPLES) | 1
    return flat[::step][:_SAMPLES]


def _setting() -> tuple:
    """What rounding depends on, besides weights and tokens."""
    return (
        torch.get_num_threads(),
        *matmul_precision(),
        torch.backends.mkldnn.enabled,
        torch.is_autocast_enabled("cpu"),
        torch.is_autocast_enabled("cuda"),
    )
