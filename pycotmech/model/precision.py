"""How precise matrix products of float32 are: PyTorch lets a user round their inputs, process-wide."""

from __future__ import annotations

from collections.abc import Iterable

import torch

_ROUNDED = {"cuda": ("tf32",), "cpu": ("bf16",)}
"""Settings under which inputs are rounded, by kind of device. No processor's library rounds to TF32 where that is allowed."""


def matmul_precision() -> tuple[str, str]:
    """How matrix products of float32 are computed, on a GPU and on the CPU.

    Asked of each library: PyTorch's one answer for all is an error where the user has set one of them.
    """
    return torch.backends.cuda.matmul.fp32_precision, torch.backends.mkldnn.matmul.fp32_precision  # type: ignore[attr-defined]


def refuse_rounded_products(dtype: torch.dtype, devices: Iterable[torch.device]) -> None:
    """Raises ValueError if inputs of products would be rounded on these devices: by autocast, or for a model in float32 by
    PyTorch's settings (TF32 on a GPU, bfloat16 in oneDNN).

    The settings are refused and not switched off: they are the whole process's, and other threads may rely on them. Those of
    float32 leave models in 16 bits alone, whose weights are rounded further than that.
    """
    kinds = {device.type for device in devices}
    for kind in kinds & _ROUNDED.keys():
        if torch.is_autocast_enabled(kind):
            raise ValueError(
                f"model: torch.autocast is on for {kind!r}, which rounds inputs of products to "
                f"{torch.get_autocast_dtype(kind)}; what is called exact would not be. Leave the autocast block, or load the "
                "model in that dtype"
            )
    if dtype != torch.float32:
        return
    on_gpu, on_cpu = matmul_precision()
    for kind, precision, where in (("cuda", on_gpu, "cuda"), ("cpu", on_cpu, "mkldnn")):
        if kind in kinds and precision in _ROUNDED[kind]:
            raise ValueError(
                f"model: its weights are float32 and torch.backends.{where}.matmul.fp32_precision is {precision!r}, which "
                "rounds the inputs of every product; what is called exact would not be. Set it to 'ieee' "
                "(torch.set_float32_matmul_precision('highest')), or load the model in another dtype"
            )
