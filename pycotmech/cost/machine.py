"""The machine at hand as a device, after two short measurements: its kernels at the shapes of a model, and one forward pass."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from pycotmech import ops
from pycotmech.cost.demand import Demand, resid_dtype
from pycotmech.cost.devices import DataSheet, Device
from pycotmech.cost.questions import prompts
from pycotmech.display import Described, Facts
from pycotmech.engine.metrics import kl_from
from pycotmech.model.config import ModelConfig, layer_flop
from pycotmech.model.run import forward_packed
from pycotmech.model.sizes import CPU
from pycotmech.model.work import counted

if TYPE_CHECKING:
    from pycotmech.model import Model

Clock = Callable[[], float]

_ROWS = (8, 64, 512, 2048)
"""Rows that go through the products of a layer together."""
_WEIGHTS = 64 * 2**20
"""Bytes of the weights that the products of few rows take turns with, so that they come from memory as a model's do."""
_LONG = 0.5
"""Seconds from which on a measurement is not repeated."""
_FORWARD = 512
"""Rows of the forward pass."""
_KEYS, _OWN = 512, 32
"""Of attention: keys that rows share, and rows of a variant."""
_SUMMARY = 1024
"""Tokens whose attention is summarised, and a quarter of them."""
_LOGITS = 64
"""Rows of logits."""


@dataclass(frozen=True)
class Measured(Described):
    """A machine and what it did at the shapes of one model, in its dtype and with the threads that were set.

    cfg: the model's sizes. layer: seconds of one layer without its attention by the rows that go through it together.
    attention: FLOP/s of attention over shared and own keys; statistics: FLOP/s of the statistics of attention weights, counted
    as attention's own, and row_statistics: seconds of each row beside. logits: seconds of a row of logits of the whole
    vocabulary and its divergence. wide: FLOP/s of large products in float32; copy: bytes/s that a copy reads and writes.
    factor: time of a forward pass of the model itself over what its parts took.
    """

    name: str
    cfg: ModelConfig
    layer: tuple[tuple[int, float], ...]
    attention: float
    statistics: float
    row_statistics: float
    logits: float
    wide: float
    copy: float
    factor: float = 1.0

    def described(self) -> Facts:
        speeds = {"attention": self.attention, "statistics of attention": self.statistics, "wide products": self.wide}
        layers = {f"{rows} rows": f"{1e3 * seconds:.3g} ms" for rows, seconds in self.layer}
        return Facts(
            f"{self.name}, at the sizes of a model of {self.cfg.n_layers} layers of {self.cfg.d_model}",
            {
                **{name: f"{flop / 1e9:,.1f} GFLOP/s" for name, flop in speeds.items()},
                "copies": f"{self.copy / 1e9:,.1f} GB/s",
                "a row of logits": f"{1e3 * self.logits:.3g} ms",
                "one layer": layers,
            },
        )

    def layer_seconds(self, rows: float) -> float:
        """Of so many rows through one layer, without attention: on a line between the sizes that were measured, those of the
        first below it, and in proportion to the rows beyond the last."""
        at, seconds = np.array(self.layer).T
        if rows >= at[-1]:
            return float(seconds[-1] * rows / at[-1])
        return float(np.interp(rows, at, seconds))

    def seconds(self, cfg: ModelConfig, demand: Demand) -> float:
        """See `Device`. Raises ValueError for a model of other sizes or another dtype than was measured."""
        if cfg != self.cfg:
            raise ValueError(
                f"cfg: got {cfg}; this machine was measured for {self.cfg}; expected the same, or another `measured`"
            )
        at_once = min(demand.layer_rows / max(demand.passes, 1e-9), CPU.row_block) if demand.passes else CPU.row_block
        passes = demand.layer_rows / at_once if at_once else 0.0
        per_key = layer_flop(cfg).per_key
        found = passes * self.layer_seconds(at_once)
        found += demand.keys * per_key / self.attention + demand.weighed * per_key / self.statistics
        found += demand.summarised * self.row_statistics + demand.wide / self.wide + demand.traffic / self.copy
        return self.factor * found + demand.unembedded * self.logits


def measured(
    cfg: ModelConfig, *, device: torch.device | str = "cpu", name: str = "", clock: Clock = time.perf_counter
) -> Measured:
    """This machine's kernels at the shapes of a model, from random numbers: nothing of a model is needed. Takes about a second
    for a model of 135 million parameters and some ten at the sizes of Llama-2 7B; memory: the weights of one layer, at least 64
    MiB, and the inputs and outputs of 2,048 rows."""
    place = torch.device(device)
    with torch.no_grad():
        make = _Maker(cfg, place, clock)
        weights = make.weights()
        layer = tuple((rows, make.layer_seconds(weights, rows)) for rows in _ROWS)
        del weights
        attention = make.attention()
        statistics, row_statistics = make.statistics(attention)
        logits, wide, copy = make.logits(), make.wide(), make.copy()
    threads = torch.get_num_threads()
    name = name or (f"this machine, {threads} thread{'s' * (threads != 1)}" if place.type == "cpu" else f"this {place}")
    return Measured(name, cfg, layer, attention, statistics, row_statistics, logits, wide, copy)


def of_model(model: Model, forward: float | None = None, *, clock: Clock = time.perf_counter) -> Measured:
    """This machine with this model: its kernels, and then one forward pass of the model itself, which corrects them.

    forward: what `measured_speed` has found; None: it is measured. clock: gives the seconds; `time.process_time` where other
    work disturbs, and one thread is used.
    """
    found = measured(model.cfg, device=model.device, clock=clock)
    forward = measured_speed(model, clock=clock) if forward is None else forward
    cfg, rows = model.cfg, min(_FORWARD, model.cfg.n_ctx)
    seconds = rows * cfg.n_layers * layer_flop(cfg).linear / forward
    return replace(found, factor=seconds / found.seconds(cfg, prompts(cfg, [rows])))


def speed_and_device(model: Model, planned: DataSheet | None = None) -> tuple[float, Device]:
    """Returns the FLOP/s of large products and the device that times are predicted for: `planned`, by its data sheet, or this
    machine with this model, after two forward passes of 512 tokens and kernels at the model's shapes."""
    if planned is not None:
        return planned.rate(model.cfg.dtype), planned
    forward = measured_speed(model)
    return forward, of_model(model, forward)


def measured_speed(model: Model, *, clock: Clock | None = None) -> float:
    """FLOP/s of this model's own matrix products here, in its dtype: the faster of two short runs, all rows through all
    layers. The products are counted while they run."""
    rows = min(_FORWARD, model.cfg.n_ctx)
    tokens = torch.randint(model.cfg.d_vocab, (rows,), generator=torch.Generator().manual_seed(0))
    best = 0.0
    for _ in range(2):
        with counted(model.family) as tally:
            start = (clock or time.perf_counter)()
            forward_packed(model.family, [tokens], read=torch.arange(rows))
            _wait(model.device)
            seconds = (clock or time.perf_counter)() - start
        best = max(best, tally.flop / seconds)
    return best


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


class _Maker:
    """Makes inputs of a model's shapes on a device, and times kernels on them."""

    def __init__(self, cfg: ModelConfig, device: torch.device, clock: Clock) -> None:
        self.cfg, self.device, self.clock = cfg, device, clock
        self.resid = resid_dtype(cfg)
        self.generator = torch.Generator(device).manual_seed(0)

    def _draw(self, *shape: int, dtype: torch.dtype | None = None) -> Tensor:
        drawn = torch.rand(shape, generator=self.generator, device=self.device, dtype=torch.float32)
        return drawn.sub_(0.5).to(dtype or self.cfg.dtype)

    def _best(self, call: Callable[[], object], times: int = 3) -> float:
        """The shortest time of some runs after one that does not count; of one run alone if it takes long."""
        best = np.inf
        for i in range(times + 1):
            _wait(self.device)
            start = self.clock()
            call()
            _wait(self.device)
            took = self.clock() - start
            if i or took > _LONG:
                best = min(best, took)
            if took > _LONG:
                break
        return float(best)

    def weights(self) -> list[dict[str, Tensor]]:
        """Weights of as many layers as take turns."""
        cfg, heads = self.cfg, self.cfg.n_heads * self.cfg.d_head
        keys = cfg.n_key_value_heads * cfg.d_head
        gates = cfg.n_mlp_matrices - 1
        shapes = {"q": (heads, cfg.d_model), "k": (keys, cfg.d_model), "v": (keys, cfg.d_model), "o": (cfg.d_model, heads)}
        shapes |= {f"up{i}": (cfg.d_mlp, cfg.d_model) for i in range(gates)} | {"down": (cfg.d_model, cfg.d_mlp)}
        first = {name: self._draw(*shape) for name, shape in shapes.items()}
        size = sum(w.nbytes for w in first.values())
        copies = max(1, min(cfg.n_layers, -(-_WEIGHTS // size)))
        return [first, *({name: w.clone() for name, w in first.items()} for _ in range(copies - 1))]

    def layer_seconds(self, weights: list[dict[str, Tensor]], rows: int) -> float:
        """Seconds of one layer without its attention: products, norms, rotation, gate, sums."""
        cfg = self.cfg
        x = self._draw(rows, cfg.d_model, dtype=self.resid)
        norm = torch.ones(cfg.d_model, dtype=cfg.dtype, device=self.device)
        angles = torch.ones(rows, cfg.d_head, dtype=self.resid, device=self.device)
        z = self._draw(rows, cfg.n_heads * cfg.d_head)
        slots = torch.empty(2, rows, cfg.n_key_value_heads * cfg.d_head, dtype=cfg.dtype, device=self.device)

        def run() -> None:
            for layer in weights[: max(1, 4096 // rows)]:
                n = ops.add_rms_norm(x, None, norm, 1e-5)
                q, k, v = (ops.linear(n, layer[name]) for name in "qkv")
                for t in (q, k):
                    ops.rope(t.unflatten(1, (-1, cfg.d_head)), angles, angles)
                slots[0], slots[1] = k, v
                x.add_(ops.linear(z, layer["o"]))
                n = ops.add_rms_norm(x, None, norm, 1e-5)
                up = [ops.linear(n, w) for name, w in layer.items() if name.startswith("up")]
                hidden = ops.swiglu(*up) if len(up) == 2 else torch.nn.functional.gelu(up[0])
                x.add_(ops.linear(hidden, layer["down"]))

        return self._best(run, 3 if rows >= 512 else 6) / len(weights[: max(1, 4096 // rows)])

    def attention(self) -> float:
        """FLOP/s of attention over shared and own keys."""
        cfg, rows = self.cfg, 512
        keys = min(_KEYS, max(cfg.n_ctx - _OWN, _OWN))
        q = self._draw(rows, cfg.n_heads, cfg.d_head)
        k_shared, v_shared = (self._draw(keys, cfg.n_key_value_heads, cfg.d_head) for _ in range(2))
        k_own, v_own = (self._draw(rows, cfg.n_key_value_heads, cfg.d_head) for _ in range(2))
        at = torch.arange(rows)
        begin = at // _OWN * _OWN
        table = torch.stack((begin, at + 1, torch.zeros_like(at), torch.full_like(at, keys)), 1).int().to(self.device)
        seen = float((at + 1 - begin + keys).sum())
        seconds = self._best(lambda: ops.prefix_attn(q, k_shared, v_shared, k_own, v_own, table, checked=True))
        return seen * layer_flop(cfg).per_key / seconds

    def statistics(self, attention: float) -> tuple[float, float]:
        """FLOP/s of masses, entropy, top keys and attention received, counted as attention's, and seconds of each row beside:
        from two lengths. attention: FLOP/s of attention itself, whose time is left out."""
        cfg = self.cfg
        longest = min(_SUMMARY, cfg.n_ctx)
        lengths, seconds = (longest // 4, longest), []
        flop = [T * (T + 1) / 2 * layer_flop(cfg).per_key for T in lengths]
        for T, work in zip(lengths, flop, strict=True):
            q = self._draw(1, cfg.n_heads, T, cfg.d_head)
            k, v = (self._draw(1, cfg.n_key_value_heads, T, cfg.d_head) for _ in range(2))
            segments = (torch.arange(T, device=self.device) * 4 // T).int()

            def run(q=q, k=k, v=v, segments=segments) -> None:
                found = ops.attn_extract(q, k, v, segments=segments, n_segments=4, entropy=True, topk=8)
                ops.attn_colsum(q, k, found.lse)

            seconds.append(max(self._best(run) - work / attention, 1e-9))
        # seconds = T * of_row + flop / rate, at both lengths; neither part is less than nothing.
        each = [s / T for s, T in zip(seconds, lengths, strict=True)]
        per_flop = max(
            (each[1] - each[0]) / (flop[1] / lengths[1] - flop[0] / lengths[0]), 0.2 * each[1] * lengths[1] / flop[1]
        )
        of_row = max(each[1] - per_flop * flop[1] / lengths[1], 0.0)
        return 1 / per_flop, of_row

    def logits(self) -> float:
        """Seconds of one row of logits and its divergence from another."""
        cfg, device = self.cfg, self.device
        step = min(8192, cfg.d_vocab)
        part = self._draw(step, cfg.d_model)
        n = self._draw(_LOGITS, cfg.d_model, dtype=self.resid)
        whole, rest = divmod(cfg.d_vocab, step)
        out = torch.empty(_LOGITS, cfg.d_vocab, dtype=self.resid, device=device)
        clean = self._draw(cfg.d_vocab, dtype=self.resid)

        def run() -> None:
            for i in range(whole + bool(rest)):
                columns = out[:, i * step : min((i + 1) * step, cfg.d_vocab)]
                weight = part[: columns.shape[1]]
                if device.type == "cuda" and part.dtype != self.resid:
                    columns.copy_(torch.mm(n.to(part.dtype), weight.T, out_dtype=self.resid))
                else:
                    columns.copy_(ops.linear(n, weight.to(self.resid)))
            kl_from(clean, out)

        return self._best(run) / _LOGITS

    def wide(self) -> float:
        """FLOP/s of a product of matrices in the residual stream's dtype."""
        rows, d = 512, self.cfg.d_model
        x, w = self._draw(rows, d, dtype=self.resid), self._draw(d, d, dtype=self.resid)
        return 2.0 * rows * d * d / self._best(lambda: ops.linear(x, w))

    def copy(self) -> float:
        """Bytes/s of a copy of numbers that no cache holds, read and written."""
        x = torch.zeros(2**23, dtype=torch.float32, device=self.device)
        y = torch.zeros_like(x)
        return 2 * x.nbytes / self._best(lambda: y.copy_(x))
