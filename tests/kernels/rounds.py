"""How much work the top keys take (`kernels/extract_topk.py`): counted on scores, without running the kernel.

`python -m tests.kernels.rounds` counts the rounds, the lengths of the lists and the programs whose lists are too short on the
attention of SmolLM2-135M and on made-up scores, and estimates the time of the pass, with a bound and without, over that of
the pass that makes z and the entropy, from machine code for sm_90.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

BLOCK_M, BLOCK_N, TOPK = 128, 64, 8
BINS, LANES, FULL = 16, 4, 15


def rounds(scores: Tensor, *, topk: int = TOPK, block_m: int = BLOCK_M, block_n: int = BLOCK_N, down: bool = True) -> Tensor:
    """The rounds of every tile that is read, of one head with the scores [T, T], whose entries above the diagonal are not
    looked at. down: whether keys are read as the kernel does, from the last to the first but for the first tile, which comes
    second after those of the diagonal; otherwise from the first to the last."""
    T = len(scores)
    found = []
    for m0 in range(0, T, block_m):
        m1 = min(m0 + block_m, T)
        block = scores[m0:m1, :m1].masked_fill(torch.arange(m1) > torch.arange(m0, m1)[:, None], -math.inf)
        best = torch.full((m1 - m0, topk), -math.inf)
        tiles = list(block.split(block_n, 1))
        if down:
            full = (m0 + 1) // block_n
            before = [*reversed(tiles[1:full])]
            tiles = [*reversed(tiles[full:]), *before[:1], *tiles[: min(full, 1)], *before[1:]]
        for tile in tiles:
            ranked = tile.topk(min(topk, tile.shape[1]), dim=1).values
            worst = best.flip(1)[:, : ranked.shape[1]]  # the i-th best of a tile meets the slots that i - 1 better ones left
            beats = (ranked >= worst) if down else (ranked > worst)
            found.append((beats & ranked.isfinite()).sum(1).max())
            best = torch.cat((best, ranked), 1).topk(topk, dim=1).values
    return torch.stack(found)


def lists(scores: Tensor, at: Tensor, *, topk: int = TOPK) -> Tensor:
    """The lengths [R, LANES] of the lists of rows with the scores [R, S], at key positions `at` [R]."""
    S = -(-scores.shape[1] // BLOCK_N) * BLOCK_N
    s = torch.nn.functional.pad(scores.float(), (0, S - scores.shape[1]))
    s = s.masked_fill(torch.arange(S) > at[:, None], -math.inf)
    bound = s.unflatten(1, (-1, BINS)).amax(1).topk(topk, dim=1).values[:, -1, None, None]
    n = torch.zeros(len(s), LANES, dtype=torch.int64)
    for half in s.unflatten(1, (-1, 4, LANES, 2)).amax(4).unbind(1):  # [R, 4, LANES] pairs of half a tile
        hit = torch.where((n >= topk)[:, None], half > bound, half >= bound) & half.isfinite() & (n <= FULL)[:, None]
        n += hit.sum(1)
    return n


@dataclass(frozen=True)
class Instructions:
    """Of a warp, in machine code for sm_90 by Triton 3.9.0, tiles of 128 rows and 64 keys, heads of 128, no limits."""

    tile: int = 240  # of scores, on and below the bound
    diagonal: int = 385
    eight_pairs: int = 363  # of the lists, after the first eight: read, sorted and merged by two threads to a row
    rest: int = 1218  # of a program
    round: int = 243
    tile_of_rounds: int = 115


COUNTED = Instructions()
SLOTS = 2 / (2 / 3)
"""Cycles of a multiprocessor for an instruction of eight warps: four issue at a time, and a third of the slots is empty."""
TILE_OF_Z = 4 * BLOCK_M * BLOCK_N * 128 / (390e12 / 132 / 1.755e9)
"""Cycles of a multiprocessor for a tile of the pass that makes z and the entropy, at 390 TFLOP/s."""


def tiles(m0: int) -> int:
    """Tiles of the 128 rows from m0 on, two of them on the diagonal."""
    return (m0 + BLOCK_M) // BLOCK_N


def cycles(lengths: Tensor, m0: int, n_rounds: float = TOPK) -> float:
    """Cycles of a program whose 128 rows begin at m0 and have lists of these lengths [128, LANES]; n_rounds: of a tile, where
    a list is too short."""
    chunks = -(-int(lengths.sum(1).max()) // 8)
    n = (tiles(m0) - 2) * COUNTED.tile + 2 * COUNTED.diagonal + COUNTED.rest + max(0, chunks - 1) * COUNTED.eight_pairs
    if lengths.max() > FULL:
        n += tiles(m0) * (COUNTED.tile_of_rounds + n_rounds * COUNTED.round)
    return n * SLOTS


def shares(scores: Callable[[int], Tensor], T: int, every: int = 1) -> tuple[float, float, float]:
    """(share of the time of z and entropy, pairs in the longest row of a program, share of programs with rounds) over every
    n-th program of a head of T rows. scores: those [128, S] of the rows from m0 on."""
    starts = range(0, T, BLOCK_M)[every - 1 :: every]
    spent, whole, longest, failed = 0.0, 0.0, 0.0, 0
    for m0 in starts:
        n = lists(scores(m0), torch.arange(m0, m0 + BLOCK_M))
        spent, whole = spent + cycles(n, m0), whole + tiles(m0) * TILE_OF_Z
        longest, failed = longest + float(n.sum(1).max()), failed + int(n.max() > FULL)
    return spent / whole, longest / len(starts), failed / len(starts)


def share_of_rounds(n_rounds: float) -> float:
    """The share without a bound."""
    return (COUNTED.tile_of_rounds + n_rounds * COUNTED.round) * SLOTS / TILE_OF_Z


MADE_UP: dict[str, Callable[[int, torch.Generator], Tensor]] = {
    "independent": lambda T, g: torch.randn(T, T, generator=g),
    "increasing": lambda T, g: torch.arange(T).float().expand(T, T),
    "decreasing": lambda T, g: -torch.arange(T).float().expand(T, T),
    "near keys": lambda T, g: torch.randn(T, T, generator=g) - (torch.arange(T)[:, None] - torch.arange(T)).abs() / 100,
    "equal": lambda T, g: torch.zeros(T, T),
}


def queries_and_keys(T: int, layers: list[int]) -> tuple[Tensor, Tensor]:
    """Scaled queries and keys of SmolLM2-135M on text of T tokens: [layers, heads, T, D] each."""
    import pycotmech as pcm

    model = pcm.Model.from_pretrained("smollm2-135m")
    examples = pcm.cot.make_examples(1 + T // 600, shots=8, seed=0, tokenizer=model.tokenizer)
    tokens = torch.cat([e.steps[-1].clean for e in examples])[:T]
    assert len(tokens) == T, f"only {len(tokens)} tokens"
    acts = model.run(tokens, capture=("q", "k"), positions=[-1])
    angles = model.family.rotary(torch.arange(T))
    queries, keys = [], []
    for l in layers:
        q, k = acts["q"][l].clone(), acts["k"][l].clone()
        model.family.rotate(l, angles, slice(0, T), q, keys=(k,))
        queries.append(q.transpose(0, 1) * model.family.attention(l).scale)
        keys.append(k.repeat_interleave(q.shape[1] // k.shape[1], 1).transpose(0, 1))
    return torch.stack(queries), torch.stack(keys)


LAYERS = (1, 5, 10, 15, 20, 25, 29)


def say(name: str, found: list[tuple[float, float, float]]) -> None:
    share, longest, failed = (torch.tensor(x) for x in zip(*found))
    print(
        f"{name}: {longest.mean():.1f} pairs ({longest.min():.1f} to {longest.max():.1f}), {failed.mean():.4f} of programs "
        f"with rounds (up to {failed.max():.4f}), time {share.mean():.2f} ({share.min():.2f} to {share.max():.2f})",
        flush=True,
    )


def main(lengths: list[int]) -> None:
    g = torch.Generator().manual_seed(0)
    for T in lengths:
        every = max(1, T // 4096)
        if T <= 4096:
            for name, make in MADE_UP.items():
                s = make(T, g)
                n = float(rounds(s).float().mean())
                print(f"{T} {name}, without a bound: {n:.2f} rounds, time {share_of_rounds(n):.2f}")
                say(f"{T} {name}", [shares(lambda m0, s=s: s[m0 : m0 + BLOCK_M], T)])
        else:
            say(f"{T} independent", [shares(lambda m0, T=T: torch.randn(BLOCK_M, T, generator=g), T, every)])
        if T > 8192:
            continue  # what the model was trained for
        for layer, q, k in zip(LAYERS, *queries_and_keys(T, [*LAYERS])):
            say(f"{T} layer {layer}", [shares(lambda m0, a=a, b=b: a[m0 : m0 + BLOCK_M] @ b.T, T, every) for a, b in zip(q, k)])
            if T <= 4096:
                n = torch.stack([rounds(a @ b.T).float().mean() for a, b in zip(q, k)])
                print(f"{T} layer {layer}, without a bound: {n.mean():.2f} rounds ({n.min():.2f} to {n.max():.2f})", flush=True)


if __name__ == "__main__":
    main([int(word) for word in sys.argv[1:]] or [1024, 2048, 4096, 8192, 16384])
