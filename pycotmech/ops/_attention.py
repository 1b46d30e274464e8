"""What the attention ops share: who sees whom, scores and weights in plain PyTorch, and the checks of their arguments.

Visibility, drawn for T = 3 queries over S = 5 keys (the queries are the last T positions), starts = 1, window = 3:

              keys  0 1 2 3 4
    query 0 (at 2)  . 1 1 . .        key 0 is left padding
    query 1 (at 3)  . 1 1 1 .
    query 2 (at 4)  . . 1 1 1        key 1 has left the window
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor

from pycotmech.ops._arguments import check_float, check_like, check_scores


def wide(dtype: torch.dtype) -> torch.dtype:
    """The dtype of scores, weights and statistics: float32, or float64 in exact runs."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def visible(at: Tensor, S: int, starts: Tensor | None, window: int) -> Tensor:
    """Which keys the queries at the key positions `at` [R] see: bool [B or 1, 1, R, S]."""
    i, j = at[:, None], torch.arange(S, device=at.device)
    seen = j <= i
    if window:
        seen = seen & (i - j < window)
    seen = seen[None, None]
    if starts is not None:
        seen = seen & (j >= starts[:, None, None, None])
    return seen


def grouped(k: Tensor, H: int) -> Tensor:
    """[B, Hkv, S, D] -> [B, H, S, D]: each query head with the keys it reads."""
    return k if k.shape[1] == H else k.repeat_interleave(H // k.shape[1], dim=1)


def capped(s: Tensor, softcap: float) -> Tensor:
    return softcap * torch.tanh(s / softcap) if softcap else s


def scores(q: Tensor, k: Tensor, scale: float, softcap: float) -> Tensor:
    """[B, H, R, D] x [B, Hkv, S, D] -> [B, H, R, S] in the wide dtype, before the mask."""
    dtype = wide(q.dtype)
    return capped(q.to(dtype) @ grouped(k.to(dtype), q.shape[1]).mT * scale, softcap)


def weights(
    q: Tensor, k: Tensor, lse: Tensor, at: Tensor, starts: Tensor | None, scale: float, window: int, softcap: float
) -> Tensor:
    """The attention weights of the query rows q at the positions `at`: [B, H, R, S], zero where a key is invisible."""
    p = (scores(q, k, scale, softcap) - lse[..., None]).exp()
    return torch.where(visible(at, k.shape[2], starts, window), p, 0.0)


def joined(lse: Tensor, sinks: Tensor | None) -> Tensor:
    """The normalisers [..., H, R] of the keys' scores with the sinks [H] among them."""
    return lse if sinks is None else torch.logaddexp(lse, sinks[:, None].to(lse.dtype))


def positions(q: Tensor, k: Tensor) -> Tensor:
    """Key positions of the T queries: the last T of S."""
    return torch.arange(k.shape[2] - q.shape[2], k.shape[2], device=q.device)


def ranked(s: Tensor, topk: int) -> Tensor:
    """Indices of the `topk` largest of the last dim, descending, ties to the lowest index."""
    return s.sort(dim=-1, descending=True, stable=True).indices[..., :topk]


def best(s: Tensor, lse: Tensor, seen: Tensor, topk: int) -> tuple[Tensor, Tensor]:
    """The `topk` heaviest visible keys of each row by score: (weights, int32 keys); unused slots 0 and -1."""
    i = ranked(s.masked_fill(~seen, -torch.inf), topk)
    used = seen.expand_as(s).gather(-1, i)
    p = torch.where(used, (s.gather(-1, i) - lse[..., None]).exp(), 0.0)
    i = torch.where(used, i, -1).int()
    if (short := topk - i.shape[-1]) > 0:
        p, i = torch.nn.functional.pad(p, (0, short)), torch.nn.functional.pad(i, (0, short), value=-1)
    return p, i


def refuse_backward(name: str) -> None:
    """Without this, PyTorch would warn and leave the gradients empty."""

    def backward(ctx, *grads):
        raise NotImplementedError(
            f"{name} has no backward pass: take gradients through PyTorch's own attention, "
            "or with float64 inputs, which run on the differentiable reference"
        )

    torch.library.register_autograd(f"pycotmech::{name}", backward)


def has_values(x: Tensor) -> bool:
    """Whether the values can be looked at now without waiting for a device: not while tracing, not on a GPU."""
    return not (isinstance(x, FakeTensor) or torch.compiler.is_compiling()) and x.device.type == "cpu"


def check_range(name: str, x: Tensor, low: int, high: int, what: str) -> None:
    """Raises unless low <= x <= high. On a GPU the check is queued there and stops the program when it fails."""
    if x.numel() == 0:
        return
    if has_values(x):
        lo, hi = (int(e) for e in torch.aminmax(x))
        if lo < low or hi > high:
            raise ValueError(f"{name} must be {what} ({low} to {high}), got values from {lo} to {hi}")
    elif x.device.type == "cuda" and not isinstance(x, FakeTensor) and not torch.compiler.is_compiling():
        within = ((x >= low) & (x <= high)).all()
        torch._assert_async(within, f"{name} must be {what} ({low} to {high})")  # pyright: ignore[reportPrivateImportUsage]


def check_integers(name: str, x: Tensor, dtype: torch.dtype, shapes: tuple[tuple[int, ...], ...], like: Tensor) -> None:
    if x.dtype != dtype:
        raise TypeError(f"{name} must be {dtype}, got {x.dtype}")
    if tuple(x.shape) not in shapes:
        raise ValueError(f"{name} must be {' or '.join(str(list(s)) for s in shapes)}, got {list(x.shape)}")
    if x.device != like.device:
        raise ValueError(f"{name} is on {x.device}, q on {like.device}")


def check_indices(name: str, x: Tensor, like: Tensor) -> None:
    if x.ndim != 1:
        raise ValueError(f"{name} must have one dim, got {list(x.shape)}")
    check_integers(name, x, torch.int64, (tuple(x.shape),), like)


def check_attention(
    q: Tensor, others: dict[str, Tensor], starts: Tensor | None, scale: float | None, window: int, softcap: float
) -> float:
    """Checks q [B, H, T, D], the keys (and values) in `others` [B, Hkv, S, D] and the options; returns the scale."""
    for name, x in {"q": q, **others}.items():
        check_float(name, x)
        check_like(name, x, "q", q)
        if x.ndim != 4:
            raise ValueError(f"{name} must be [B, heads, tokens, D], got {list(x.shape)}")
        if x.numel() == 0:
            raise ValueError(f"{name} is empty: {list(x.shape)}")
        if x.stride(-1) != 1:
            raise ValueError(f"{name} must be contiguous in its last dim (stride 1), got stride {x.stride(-1)}")
    B, H, T, D = q.shape
    (key, k), *rest = others.items()
    if k.shape[0] != B or k.shape[3] != D:
        raise ValueError(f"{key} must be [{B}, Hkv, S, {D}] (B and D from q), got {list(k.shape)}")
    if H % k.shape[1]:
        raise ValueError(f"q has {H} heads, which is no multiple of the {k.shape[1]} heads of {key}")
    if k.shape[2] < T:
        raise ValueError(f"q has {T} rows but {key} only {k.shape[2]}: the queries are the last T of S keys")
    for name, x in rest:
        if x.shape != k.shape:
            raise ValueError(f"{name} must have the shape of {key}, {list(k.shape)}, got {list(x.shape)}")
    if starts is not None:
        check_integers("starts", starts, torch.int32, ((B,),), q)
        check_range("starts", starts, 0, k.shape[2], "the first valid key of each sequence")
    return check_scores(scale, window, softcap, D)


def check_sinks(sinks: Tensor | None, H: int, like: Tensor) -> Tensor | None:
    """The sinks [H] of the query heads as the kernels take them, contiguous in the wide dtype."""
    if sinks is None:
        return None
    if not sinks.is_floating_point():
        raise TypeError(f"sinks must be floating-point, got {sinks.dtype}")
    if tuple(sinks.shape) != (H,):
        raise ValueError(f"sinks must be [{H}], one for each head of q, got {list(sinks.shape)}")
    if sinks.device != like.device:
        raise ValueError(f"sinks is on {sinks.device}, q on {like.device}")
    return sinks.to(wide(like.dtype)).contiguous()


def check_lse(lse: Tensor, q: Tensor) -> None:
    if lse.dtype != wide(q.dtype) or lse.device != q.device:
        raise TypeError(f"lse must be {wide(q.dtype)} on {q.device}, got {lse.dtype} on {lse.device}")
    if lse.shape != q.shape[:3]:
        raise ValueError(f"lse must be {list(q.shape[:3])} (B, H, T of q), got {list(lse.shape)}")
