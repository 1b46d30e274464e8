"""What the wrappers share on the host: allocation, which GPU, tensor descriptors, the sign of the scale."""

import contextlib

import torch
import triton

NO_WINDOW = 2**30
"""A window that holds every key."""

_forced: list[str] = []


@contextlib.contextmanager
def as_if_on(arch: str):
    """Takes the launch decisions of another GPU ("sm_90"): for tests, which run its kernels in Triton's interpreter."""
    _forced.append(arch)
    try:
        yield
    finally:
        _forced.pop()


def arch() -> str:
    """The GPU that kernels are launched on: "sm_80", ..., "gfx942"."""
    if _forced:
        return _forced[-1]
    target = triton.runtime.driver.active.get_current_target()
    return f"sm_{target.arch}" if target.backend == "cuda" else str(target.arch)


def empty(shape: tuple[int, ...], dtype: torch.dtype, like: torch.Tensor) -> torch.Tensor:
    return torch.empty(shape, dtype=dtype, device=like.device)


def positive_scale(q: torch.Tensor, scale: float) -> tuple[torch.Tensor, float]:
    """q and scale with the same products and a positive scale: the kernels take the maximum before they scale."""
    if scale > 0:
        return q, scale
    return (-q, -scale) if scale < 0 else (torch.zeros_like(q), 1.0)


_MULTIPROCESSORS = {"sm_80": 108, "sm_86": 84, "sm_90": 132, "sm_100": 148, "sm_120": 188, "gfx942": 304}
"""Of an A100, an RTX 3090, an H100, a B200, an RTX PRO 6000 and an MI300X."""


def multiprocessors(x: torch.Tensor) -> int:
    """Of the GPU that x is on; for a tensor elsewhere those of a GPU of the architecture that is launched for."""
    if x.is_cuda:
        return torch.cuda.get_device_properties(x.device).multi_processor_count
    return _MULTIPROCESSORS.get(arch(), 84)


CACHED = 24 * 2**20
"""Bytes of keys and values that heads which run at the same time may have: half of the second-level cache of an H100."""


def heads_together(n: int, keys: int, D: int, group: int, itemsize: int) -> int:
    """How many of n heads run at the same time (`tiles.placed`): a divisor of n, so that all rounds are alike.

    keys: of each head, whose keys and values `group` heads have in common.
    """
    most = max(1, CACHED * group // (2 * keys * D * itemsize))
    return max(m for m in range(1, min(n, most) + 1) if n % m == 0)


def describable(*tensors: torch.Tensor) -> bool:
    """Whether the tensors satisfy what the hardware asks of a tensor descriptor: 16-byte strides and addresses."""
    return all(
        x.element_size() == 2
        and x.numel() > 0
        and x.stride(-1) == 1
        and all(s > 0 and s * x.element_size() % 16 == 0 for s in x.stride()[:-1])
        and x.data_ptr() % 16 == 0
        for x in tensors
    )


def descriptor(x: torch.Tensor, block: list[int]):
    from triton.tools.tensor_descriptor import TensorDescriptor

    return TensorDescriptor(x, list(x.shape), list(x.stride()), block)
