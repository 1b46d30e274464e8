"""How fast this machine is: matrix products, memory, and the share of the products that a small sweep reaches."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

_ROWS, _WIDTH = 512, 2048
"""Of the matrix products: large enough for full speed."""
_BYTES = 1 << 28
"""Of the copy by which the bandwidth is measured: more than any cache holds."""
_TOKENS = 96
"""Of the prompt of the sweep; it differs from the middle on."""


@dataclass(frozen=True)
class Speed:
    """products: FLOP/s of matrix products by dtype. bandwidth: bytes a second, read and written. sweep: FLOP/s of the matrix
    products of a small sweep in float32, in all of its time; share: of `products` in float32. seconds: of that sweep; heads: in
    it. threads: of PyTorch. device: where it was measured."""

    device: str
    threads: int
    products: dict[str, float]
    bandwidth: float
    sweep: float
    share: float
    seconds: float
    heads: int

    def __str__(self) -> str:
        products = ", ".join(f"{flop / 1e9:,.0f} GFLOP/s in {dtype}" for dtype, flop in self.products.items())
        return (
            f"{self.device}, threads: {self.threads}\n"
            f"matrix products: {products}\n"
            f"memory: {self.bandwidth / 1e9:,.1f} GB/s\n"
            f"a small sweep: {self.heads} heads in {self.seconds:.2f} s, {self.sweep / 1e9:,.0f} GFLOP/s, "
            f"{100 * self.share:.0f} % of the matrix products (float32)"
        )


def measured(device: str | None = None) -> Speed:
    """Measures all of it in two or three seconds. device: None: the GPU if there is one."""
    on = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    products = {str(dtype).removeprefix("torch."): _products(on, dtype) for dtype in (torch.float32, torch.bfloat16)}
    heads, seconds, flop = _sweep(on)
    name = torch.cuda.get_device_name(on) if on.type == "cuda" else "CPU"
    speed = flop / seconds
    return Speed(name, torch.get_num_threads(), products, _bandwidth(on), speed, speed / products["float32"], seconds, heads)


def _best(run: Callable[[], object], device: torch.device, times: int) -> float:
    """The least seconds of some runs, after one to warm up."""
    found = []
    for _ in range(times + 1):
        start = time.perf_counter()
        run()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        found.append(time.perf_counter() - start)
    return min(found[1:])


def _products(device: torch.device, dtype: torch.dtype) -> float:
    from pycotmech import ops

    x, weight = (torch.randn(n, _WIDTH, device=device).to(dtype) for n in (_ROWS, _WIDTH))
    return 2 * _ROWS * _WIDTH * _WIDTH / _best(lambda: ops.linear(x, weight), device, 3)


def _bandwidth(device: torch.device) -> float:
    source = torch.ones(_BYTES, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    return 2 * _BYTES / _best(lambda: target.copy_(source), device, 3)


def _sweep(device: torch.device) -> tuple[int, float, float]:
    """Heads, seconds and FLOP of a sweep of a random model with the widths of SmolLM2-135M and fewer layers."""
    from transformers import LlamaConfig, LlamaForCausalLM

    import pycotmech as pcm
    from pycotmech.cot.tools.cost import metered

    config = LlamaConfig(
        vocab_size=1024, hidden_size=576, intermediate_size=1536, num_hidden_layers=6, num_attention_heads=9,
        num_key_value_heads=3, max_position_embeddings=256, tie_word_embeddings=True,
    )  # fmt: skip
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        random = LlamaForCausalLM(config).eval()
        random.to(device)  # type: ignore[arg-type]
        model = pcm.Model(random)
        clean = torch.randint(config.vocab_size, (_TOKENS,))
    corrupted: Tensor = clean.clone()
    corrupted[_TOKENS // 2] += 1 - 2 * (corrupted[_TOKENS // 2] > 0).long()
    for _ in range(2):  # the first warms up
        with metered(model) as meter:
            pcm.patch_heads(model, clean, corrupted)
            if device.type == "cuda":
                torch.cuda.synchronize(device)
    return config.num_hidden_layers * config.num_attention_heads, meter.seconds, meter.flop
