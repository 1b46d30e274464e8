"""How a sweep is cut so that it fits the memory it may use, and what it costs."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch

from pycotmech.model.families import LlamaFamily, ModelConfig
from pycotmech.model.run import ROW_BLOCK

_SHARE_OF_FREE = 0.5


@dataclass(frozen=True)
class Plan:
    """What a sweep did, or will do.

    token_forwards: layer-rows divided by the number of layers: the work in whole forward passes of one token.
    hooked_token_forwards: the same for one hooked forward pass per variant.
    """

    examples: int
    variants: int
    chunks: int
    rows: int
    token_forwards: float
    hooked_token_forwards: float
    flop: float
    bytes_in_flight: int
    budget_bytes: int

    def __str__(self) -> str:
        return (
            f"{self.variants} variants of {self.examples} example(s) in {self.chunks} chunk(s), {self.rows} rows: "
            f"{self.token_forwards:,.0f} token-forwards (one hooked forward per variant: {self.hooked_token_forwards:,.0f}), "
            f"{self.flop / 1e12:.2f} TFLOP, {self.bytes_in_flight / 2**30:.2f} GiB in flight "
            f"of {self.budget_bytes / 2**30:.1f} GiB allowed"
        )


def memory_budget(memory_gb: float | None, device: torch.device) -> int:
    """Bytes a sweep may use beyond the model: what the user set, or half of what is free on the device."""
    if memory_gb is not None:
        if not memory_gb > 0:
            raise ValueError(f"memory_gb: got {memory_gb}; expected a positive number of gigabytes")
        return int(memory_gb * 2**30)
    return int(free_bytes(device) * _SHARE_OF_FREE)


def free_bytes(device: torch.device) -> int:
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    try:
        for line in Path("/proc/meminfo").read_text().splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
    except OSError:
        pass
    return 4 * 2**30  # neither Linux nor CUDA: a size that every machine has


def row_bytes(family: LlamaFamily) -> int:
    """A residual row in flight, and its entries in the row tables."""
    return family.cfg.d_model * family.resid_dtype.itemsize + 7 * 8


def block_bytes(family: LlamaFamily) -> int:
    """Temporaries of one block of rows: projections and the MLP's hidden layer."""
    cfg = family.cfg
    widest = 3 * cfg.d_mlp + 4 * cfg.d_model + (cfg.n_heads + 2 * cfg.n_key_value_heads) * cfg.d_head
    return ROW_BLOCK * widest * family.dtype.itemsize


def base_bytes(family: LlamaFamily, length: int, rows: int, kept: int) -> int:
    """Keys and values of one base of `length` positions, and `kept` values per layer and row."""
    cfg = family.cfg
    return cfg.n_layers * (length * 2 * cfg.n_key_value_heads * cfg.d_head + rows * kept) * family.resid_dtype.itemsize


def layer_flop(cfg: ModelConfig, keys: float) -> float:
    """Floating-point operations of one row in one layer that attends to `keys` keys."""
    heads = cfg.n_heads * cfg.d_head
    linear = cfg.d_model * (2 * heads + 2 * cfg.n_key_value_heads * cfg.d_head + 3 * cfg.d_mlp)
    return 2 * linear + 4 * heads * keys


def cut(sizes: list[int], limit: int) -> list[tuple[int, int]]:
    """Consecutive ranges whose sizes add up to at most `limit` each (a single item may exceed it)."""
    out, start, total = [], 0, 0
    for i, size in enumerate(sizes):
        if i > start and total + size > limit:
            out.append((start, i))
            start, total = i, 0
        total += size
    return [*out, (start, len(sizes))] if sizes else []
