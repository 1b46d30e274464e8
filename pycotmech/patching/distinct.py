"""Rows of integers that occur, each once."""

from __future__ import annotations

import torch
from torch import Tensor


def distinct(*columns: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The rows of columns of integers [n], each once and ascending, as torch.unique(dim=0) of them has it: the rows
    [m, columns], which of these each given row is [n], and how often each occurs [m].

    Cost: a row is sorted as one number, which is much quicker than sorting rows.
    """
    if not len(columns[0]):
        nothing = torch.zeros(0, dtype=torch.long)
        return torch.zeros(0, len(columns), dtype=torch.long), nothing, nothing
    least = [int(column.min()) for column in columns]
    sizes = [int(column.max()) - low + 1 for column, low in zip(columns, least, strict=True)]
    number = torch.zeros_like(columns[0])
    for column, low, size in zip(columns, least, sizes, strict=True):
        number = number * size + (column - low)
    number, inverse, counts = number.unique(return_inverse=True, return_counts=True)
    rows = []
    for low, size in zip(reversed(least), reversed(sizes), strict=True):
        rows.append(number % size + low)
        number = number // size
    return torch.stack(rows[::-1], 1), inverse, counts
