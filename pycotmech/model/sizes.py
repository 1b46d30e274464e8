"""How much goes through a model together, by device: from the rows at which its products cost as much as reading the weights.

Reading a weight of 2 bytes pays off when 2 FLOP for each of n rows take as long, so n is the device's FLOP by the byte: its
ridge point (Williams et al. 2009). Below it a pass waits for memory; well above it nothing is gained.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

_RIDGE = {(8, 0): 156, (9, 0): 266, (10, 0): 280}
"""FLOP by the byte of 16-bit products, by compute capability: of an A100, an H100 and a B200. That of an H100 is from rates
that others measured (798 TFLOP/s, 3.0 TB/s), the others are from data sheets."""
_OTHER = 160
"""Of any other GPU: that of an A100, about."""

_ABOVE = 1.5
"""From so many times the ridge point on a product is taken to be limited by arithmetic."""

KEYS, ROWS = 256, 64
"""Passes that differ by less, in shared keys and in kept rows, have buffers of one size where they are replayed."""

_LARGEST_MAPPED = 31 * 2**20
"""Bytes just below glibc's largest limit for mapped allocations (DEFAULT_MMAP_THRESHOLD_MAX)."""


@dataclass(frozen=True)
class Sizes:
    """segment: tokens of a prefix that are computed, and kept, together. Smaller: more is shared between prompts that part
        late, and weights are read more often.
    pass_rows: what a second pass through the model must save, in rows: about those that cost as much as reading the weights.
    row_block: rows that go through the stages of a layer together: bounds temporary memory, keeps matrix products large.
    """

    segment: int
    pass_rows: int
    row_block: int


CPU = Sizes(segment=128, pass_rows=128, row_block=2048)
_BLOCK = 16
"""So many times the other sizes are a block of rows."""


def for_device(device: torch.device) -> Sizes:
    """The sizes of a device. Cost: none; a GPU's compute capability is known to PyTorch."""
    if device.type != "cuda":
        return CPU
    return for_ridge(_RIDGE.get(torch.cuda.get_device_capability(device), _OTHER))


def for_ridge(flop_by_the_byte: float) -> Sizes:
    """The sizes of a device with this ridge point: the power of two at or above the rows at which arithmetic is the limit."""
    rows = 1 << max(0, int(_ABOVE * flop_by_the_byte) - 1).bit_length()
    return Sizes(segment=rows, pass_rows=rows, row_block=_BLOCK * rows)


def keep_freed_memory() -> None:
    """Lets the C library keep memory that a block of rows frees for the next block.

    glibc maps every large allocation anew, or gives the freed end of the heap back to the system, and the system clears each
    page when it is touched again: a tenth of a sweep of a small model. Both limits follow the largest allocation that was
    ever mapped and freed, up to 32 MiB; this is one. The memory that is kept is at most twice that. Other C libraries: nothing.
    """
    torch.empty(_LARGEST_MAPPED, dtype=torch.uint8, device="cpu")
