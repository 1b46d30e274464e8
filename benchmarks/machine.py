"""The matrix products of a run, recorded with their shapes and run again bare: what the machine itself needs for it.

Bare means: the best library call for the shape, on contiguous random inputs of the same sizes, on the model's own weights
(so that they come from the same memory), in the order of the run. Attention is its two products per group of rows and keys,
in pieces whose scores stay in the cache, without softmax, masks, packing or layouts. What is no matrix product (a row with a
single key of its own) counts nothing.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn import Parameter

from pycotmech import ops

_SCORES = 2**20
"""Scores of one bare product of attention: 2 or 4 MiB, which the caches hold."""

_CAUSAL_ROWS = 128
"""Rows of a long causal sequence that are taken against the same keys."""


@dataclass
class Recording:
    """The products of a run in order, and the seconds that the run spent in the calls that make them."""

    linears: list[tuple[int, Tensor]] = field(default_factory=list)  # rows, weight
    attention: list[tuple[int, int, int, int, torch.dtype]] = field(default_factory=list)  # batch, rows, D, keys
    calls: list[tuple[str, int]] = field(default_factory=list)  # which list, how many of it
    seconds: Counter = field(default_factory=Counter)

    @property
    def flop(self) -> float:
        linear = sum(2.0 * rows * w.numel() for rows, w in self.linears)
        return linear + sum(4.0 * b * m * d * n for b, m, d, n, _ in self.attention)

    def _linear(self, x: Tensor, weight: Tensor) -> None:
        if not isinstance(weight, Parameter) and not isinstance(weight._base, Parameter):
            weight = torch.empty_like(weight).normal_()  # made for this call: only its size is kept
        self.linears.append((x.shape[:-1].numel(), weight))
        self.calls.append(("linear", 1))

    def _groups(self, q: Tensor, k_own: Tensor, rows: Tensor) -> None:
        H, D, Hkv = q.shape[1], q.shape[2], k_own.shape[1]
        found: Counter = Counter()
        own_lo, own_hi, lo, hi = rows.long().T
        for start in lo[hi > lo].unique().tolist():
            at_start = (lo == start) & (hi > lo)
            causal = bool((own_hi == own_lo)[at_start].all())
            _pieces(found, (hi - lo)[at_start], causal)
        table: Counter = Counter()
        for start in own_lo[own_hi - own_lo > 1].unique().tolist():
            table[tuple((own_hi - own_lo)[own_lo == start].tolist())] += 1
        for lengths, times in table.items():
            _pieces(found, torch.tensor(lengths), True, times)
        products = [(Hkv * times, m * (H // Hkv), D, n, q.dtype) for (m, n), times in found.items()]
        self.attention += [p for product in products for p in _cut(product)]
        self.calls.append(("attention", len(self.attention) - sum(n for kind, n in self.calls if kind == "attention")))


def _pieces(found: Counter, keys: Tensor, causal: bool, times: int = 1) -> None:
    """Adds (rows, keys) of rows that see the first `keys` [R] of the same keys."""
    for part in keys.split(_CAUSAL_ROWS) if causal else [keys]:
        found[len(part), int(part.max())] += times


def _cut(product: tuple[int, int, int, int, torch.dtype]) -> Iterator[tuple[int, int, int, int, torch.dtype]]:
    """The same in pieces of at most _SCORES scores."""
    batch, m, d, n, dtype = product
    rows = max(1, min(m, _SCORES // n))
    at_once = max(1, _SCORES // (rows * n))
    for b in range(0, batch, at_once):
        for r in range(0, m, rows):
            yield min(at_once, batch - b), min(rows, m - r), d, n, dtype


@contextmanager
def recorded(*, attention: bool = True) -> Iterator[Recording]:
    """Records the products of what runs inside: `ops.linear`, `ops.head_delta` (one for each head that occurs), and if
    attention, `ops.prefix_attn` and PyTorch's fused attention, whose tables are read row by row: on a GPU each waits for it."""
    out = Recording()
    linear, prefix_attn, sdpa, head_delta = ops.linear, ops.prefix_attn, F.scaled_dot_product_attention, ops.head_delta

    def timed(kind: str, call: Callable, *args, **kwargs):
        start = time.perf_counter()
        result = call(*args, **kwargs)
        out.seconds[kind] += time.perf_counter() - start
        return result

    def record_linear(x, weight, bias=None):
        out._linear(x, weight)
        return timed("linear", linear, x, weight, bias)

    def record_prefix(q, k_shared, v_shared, k_own, v_own, rows, *args, **kwargs):
        if attention:
            out._groups(q, k_own, rows)
        return timed("attention", prefix_attn, q, k_shared, v_shared, k_own, v_own, rows, *args, **kwargs)

    def record_sdpa(q, k, v, *args, **kwargs):
        T, rows = q.shape[2], torch.zeros(q.shape[2], 4, dtype=torch.long)
        rows[:, 1] = torch.arange(1, T + 1)
        for _ in range(q.shape[0] if attention else 0):
            out._groups(q[0].transpose(0, 1), k[0].transpose(0, 1), rows)
        return timed("attention", sdpa, q, k, v, *args, **kwargs)

    def record_delta(dz, heads, w_o):
        D = dz.shape[1]
        for h, rows in enumerate(torch.bincount(heads).tolist()):
            if rows:
                out._linear(dz[:rows], w_o[:, h * D : (h + 1) * D])
        return timed("linear", head_delta, dz, heads, w_o)

    ops.linear, ops.prefix_attn, ops.head_delta = record_linear, record_prefix, record_delta
    F.scaled_dot_product_attention = record_sdpa
    try:
        yield out
    finally:
        ops.linear, ops.prefix_attn, ops.head_delta = linear, prefix_attn, head_delta
        F.scaled_dot_product_attention = sdpa


class Bare:
    """The products of a recording, ready to run: inputs and outputs are allocated, the fastest call for each shape is known."""

    def __init__(self, recording: Recording) -> None:
        self._buffers: dict[tuple, Tensor] = {}
        self._best: dict[tuple, Callable[[], None]] = {}
        self.steps: list[tuple[str, Callable[[], None]]] = []
        for rows, w in recording.linears:  # at their full size, so that no run makes them
            self._buffer("x", (rows, w.shape[1]), w.dtype), self._buffer("y", (rows, w.shape[0]), w.dtype)
        for product in recording.attention:
            self._attention_buffers(*product)
        linears, attention = iter(recording.linears), iter(recording.attention)
        for kind, n in recording.calls:
            for _ in range(n):
                step = self._linear(*next(linears)) if kind == "linear" else self._attention(*next(attention))
                self.steps.append((kind, step))

    @torch.no_grad()
    def run(self) -> Counter:
        """Seconds in linear layers and in attention."""
        seconds: Counter = Counter()
        for kind, step in self.steps:
            start = time.perf_counter()
            step()
            seconds[kind] += time.perf_counter() - start
        return seconds

    def _buffer(self, name: str, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        """Part of one buffer for each name: what was just written may be in the cache, as in the run itself."""
        n, key = torch.Size(shape).numel(), (name, dtype)
        if key not in self._buffers or self._buffers[key].numel() < n:
            self._buffers[key] = torch.empty(n, dtype=dtype).normal_()
        return self._buffers[key][:n].view(shape)

    def _attention_buffers(self, batch: int, m: int, d: int, n: int, dtype: torch.dtype) -> list[Tensor]:
        shapes = {"q": (batch, m, d), "k": (batch, n, d), "s": (batch, m, n), "z": (batch, m, d)}
        return [self._buffer(name, shape, dtype) for name, shape in shapes.items()]

    @torch.no_grad()
    def _fastest(self, key: tuple, candidates: list[Callable[[], object]]) -> Callable[[], object]:
        if key not in self._best:
            times = [min(_seconds(c) for _ in range(3)) for c in candidates]
            self._best[key] = times.index(min(times))
        return candidates[self._best[key]]

    def _linear(self, rows: int, weight: Tensor) -> Callable[[], object]:
        d_out, d_in = weight.shape
        dtype = weight.dtype

        def mm():
            torch.mm(self._buffer("x", (rows, d_in), dtype), weight.T, out=self._buffer("y", (rows, d_out), dtype))

        def library():
            _LINEAR(self._buffer("x", (rows, d_in), dtype), weight)

        def plain():
            F.linear(self._buffer("x", (rows, d_in), dtype), weight)

        return self._fastest(("linear", d_out, d_in, dtype, rows.bit_length()), [mm, library, plain])

    def _attention(self, batch: int, m: int, d: int, n: int, dtype: torch.dtype) -> Callable[[], object]:
        def buffers():
            return self._attention_buffers(batch, m, d, n, dtype)

        def batched():
            q, k, s, z = buffers()
            torch.bmm(q, k.mT, out=s)
            torch.bmm(s, k, out=z)

        def transposed():
            q, k, s, z = buffers()
            torch.bmm(q, k.view(batch, d, n), out=s)
            torch.bmm(s, k, out=z)

        def one_by_one():
            q, k, s, z = buffers()
            for i in range(batch):
                torch.mm(q[i], k[i].T, out=s[i])
                torch.mm(s[i], k[i], out=z[i])

        def linears():
            q, k, s, _ = buffers()
            for i in range(batch):
                _LINEAR(q[i], k[i])
                _LINEAR(s[i], k[i].view(d, n))

        key = ("attention", batch, m.bit_length(), d, n.bit_length(), dtype)
        return self._fastest(key, [batched, transposed, one_by_one, linears])


_LINEAR = ops.linear


def _seconds(call: Callable[[], object]) -> float:
    start = time.perf_counter()
    call()
    return time.perf_counter() - start
