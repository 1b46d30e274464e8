"""Inputs for the tests of the attention ops, and their slowest, most obvious definition."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Case:
    B: int = 1
    H: int = 2
    Hkv: int = 2
    T: int = 7
    S: int = 7
    D: int = 32
    G: int = 0
    C: int = 0
    segment_batch: bool = False
    readout_batch: bool = False
    readout_heads: bool = False
    starts: tuple[int, ...] | None = None
    entropy: bool = True
    topk: int = 0
    window: int = 0
    softcap: float = 0.0
    sinks: float | None = None  # the mean of the heads' sinks
    spread: float = 1.0  # standard deviation of the scores

    def inputs(self, dtype: torch.dtype, seed: int = 0) -> dict[str, Tensor | int | float | bool | None]:
        """The arguments of the public `attn_extract`, q, k and v included."""
        g = torch.Generator().manual_seed(seed)

        def normal(*shape: int) -> Tensor:
            return torch.randn(*shape, generator=g, dtype=torch.float64)

        root = math.sqrt(self.spread)
        out: dict = {
            "q": (normal(self.B, self.H, self.T, self.D) * root).to(dtype),
            "k": (normal(self.B, self.Hkv, self.S, self.D) * root).to(dtype),
            "v": normal(self.B, self.Hkv, self.S, self.D).to(dtype),
        }
        if self.G:
            rows = (self.B, self.S) if self.segment_batch else (self.S,)
            runs = torch.randint(-1, self.G, rows, generator=g)
            out["segments"] = torch.where(torch.rand(rows, generator=g) < 0.3, runs, runs.cummax(-1).values).int()
            out["n_segments"] = self.G
        if self.C:
            shape = (self.B if self.readout_batch else 1, self.H if self.readout_heads else 1, self.S, self.C)
            out["readout"] = normal(*shape).to(torch.float64 if dtype == torch.float64 else torch.float32)
        if self.starts is not None:
            out["starts"] = torch.tensor(self.starts, dtype=torch.int32)
        if self.sinks is not None:
            out["sinks"] = (self.sinks + normal(self.H)).to(torch.float64 if dtype == torch.float64 else torch.float32)
        out.update(entropy=self.entropy, topk=self.topk, window=self.window, softcap=self.softcap)
        return out


def doubled(inputs: dict) -> dict:
    """The same inputs with every floating tensor in float64."""
    return {n: x.double() if isinstance(x, Tensor) and x.is_floating_point() else x for n, x in inputs.items()}


def slow_weights(inputs: dict) -> Tensor:
    """Attention weights by loops over rows in float64: [B, H, T, S], rows without a key all zero."""
    q, k = inputs["q"].double(), inputs["k"].double()
    B, H, T, D = q.shape
    S, group = k.shape[2], H // k.shape[1]
    out = torch.zeros(B, H, T, S, dtype=torch.float64)
    for b in range(B):
        for h in range(H):
            for i in range(T):
                at = i + S - T
                start = 0 if inputs.get("starts") is None else int(inputs["starts"][b])
                if inputs["window"]:
                    start = max(start, at - inputs["window"] + 1)
                keys = range(start, at + 1)
                s = [float(q[b, h, i] @ k[b, h // group, j]) / math.sqrt(D) for j in keys]
                if inputs["softcap"]:
                    s = [inputs["softcap"] * math.tanh(x / inputs["softcap"]) for x in s]
                sink = [] if inputs.get("sinks") is None else [float(inputs["sinks"][h])]
                top = max(s + sink, default=0.0)
                total = sum(math.exp(x - top) for x in s + sink)
                for j, x in zip(keys, s):
                    out[b, h, i, j] = math.exp(x - top) / total
    return out


def error(got: Tensor, want: Tensor) -> float:
    """Ratio of norms, the measure of all these tests; infinite where the result is not finite."""
    if got.shape != want.shape:
        raise AssertionError(f"shape {list(got.shape)}, expected {list(want.shape)}")
    if not torch.isfinite(got).all():
        return math.inf
    want = want.double()
    return float((got.double() - want).norm() / want.norm().clamp_min(1e-30))


SMALL = {
    "plain": Case(),
    "one key": Case(T=1, S=1, topk=2, G=1),
    "grouped": Case(B=2, H=6, Hkv=2, T=9, S=9, D=16, G=3, topk=3),
    "decode": Case(B=2, H=4, Hkv=1, T=1, S=13, G=2, C=2, topk=4),
    "suffix": Case(T=5, S=12, G=4, C=3, topk=8, segment_batch=True),
    "padded": Case(B=2, H=2, Hkv=1, T=8, S=8, G=2, C=1, topk=3, starts=(0, 5)),
    "no keys": Case(B=2, T=6, S=6, G=2, C=2, topk=2, starts=(6, 2)),
    "window": Case(T=9, S=12, window=4, G=2, topk=5),
    "window and padding": Case(B=2, T=9, S=9, window=3, starts=(4, 1), G=2, topk=2),
    "softcap": Case(T=6, S=6, softcap=2.0, spread=4.0, topk=2, G=2),
    "readout per head": Case(B=2, H=4, Hkv=2, T=4, S=6, C=3, readout_batch=True, readout_heads=True, G=2),
    "many keys asked": Case(T=4, S=4, topk=20),
    "sinks": Case(B=2, H=4, Hkv=2, T=6, S=9, G=3, C=2, topk=4, sinks=1.0),
    "sinks and no keys": Case(B=2, T=6, S=6, G=2, C=2, topk=2, starts=(6, 2), sinks=0.0),
    "sinks, window and softcap": Case(T=9, S=12, window=4, softcap=2.0, G=2, topk=3, sinks=-1.0),
}


def pytorch_error(inputs: dict, want: Tensor) -> float:
    """The error of z in PyTorch's own materialised attention in the dtype of the inputs."""
    q, k, v = inputs["q"], inputs["k"], inputs["v"]
    group, S, T = q.shape[1] // k.shape[1], k.shape[2], q.shape[2]
    s = q @ k.repeat_interleave(group, 1).mT * q.shape[-1] ** -0.5
    if inputs["softcap"]:
        s = inputs["softcap"] * torch.tanh(s / inputs["softcap"])
    at, keys = torch.arange(S - T, S)[:, None], torch.arange(S)
    seen = (keys <= at)[None, None]
    if inputs["window"]:
        seen = seen & (at - keys < inputs["window"])
    if inputs.get("starts") is not None:
        seen = seen & (keys >= inputs["starts"][:, None, None, None])
    s = s.masked_fill(~seen, torch.finfo(s.dtype).min)
    if inputs.get("sinks") is not None:
        s = torch.cat((s, inputs["sinks"].to(s.dtype)[:, None, None].expand(*s.shape[:-1], 1)), -1)
    p = torch.softmax(s, -1)[..., :S].masked_fill(~seen, 0)
    return error(p @ v.repeat_interleave(group, 1), want)
