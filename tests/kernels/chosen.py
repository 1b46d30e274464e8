"""Scores chosen to try the search for top keys (`kernels/extract_topk.py`), in the interpreter and on a GPU."""

from __future__ import annotations

import torch
from torch import Tensor

from tests.kernels import dense
from tests.kernels.cases import Run
from tests.kernels.poison import islands

T, S = 100, 330  # one program
KEYS = torch.arange(S)
PATTERNS = {
    # scores of the keys for a row, all of them exact in bfloat16
    "equal": torch.zeros(S),
    "rising": KEYS % 256.0,
    "falling": 256.0 - KEYS % 256,
    "two values": (KEYS % 7 == 0).float(),
    # seven keys above the bound, and five in other tiles that equal it: the lowest of them is the eighth
    "ties across tiles": 9.0 * (KEYS < 7) + 5.0 * (KEYS % 64 == 55),
    "the eighth is the best of its tile": 200.0 * (KEYS < 7) + 100.0 * (KEYS == 231) + 99.0 * (KEYS == 80) + KEYS % 50,
    "seven in one bin": 200.0 * (KEYS % 48 == 5) + KEYS % 50,
    "pairs": 50.0 * (KEYS // 2 % 32 == 3) + KEYS % 2,
    "near": -((S - KEYS) // 2).float(),
    "first keys": 100.0 * (KEYS < 3),
}
ONE_BIN = torch.where(KEYS % 16 == 3, KEYS // 2, -5.0)
"""Twenty keys above a bound that no other bin helps to raise, all of them in one list."""
LIMITS = {"window": 75, "topk": 5, "starts": torch.tensor([240], dtype=torch.int32)}
OPTIONS = {"all keys": {}, "window and padding": LIMITS}


def tensors(patterns: list[Tensor], rows: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """q [1, 1, T, 32] and k [1, 1, S, 32] whose row i has the scores of pattern rows[i], by default i % n."""
    rows = torch.arange(T) % len(patterns) if rows is None else rows
    k = torch.zeros(S, 32)
    k[:, : len(patterns)] = torch.stack(patterns, 1)
    return torch.eye(32)[rows][None, None].bfloat16(), k[None, None].bfloat16()


def check(run: Run, q: Tensor, k: Tensor, *, topk=8, starts=None, window=0, softcap=0.0, scale=1 / 32, slack=1.0) -> None:
    """The keys of float64, equal scores with the lowest key first, and their weights."""
    tail = (None, 0, None, starts, scale, False, topk, window, softcap)
    want = dense.extract(q, k, k, *tail)
    p, i = run("attn_extract", *islands((q, k, k, *tail)))[6:]
    assert torch.equal(i.cpu().long(), want["topk_i"])
    torch.testing.assert_close(p.cpu().double(), want["topk_p"], rtol=5e-6 * slack, atol=1e-7)
