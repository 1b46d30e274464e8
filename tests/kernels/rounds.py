"""How many rounds the top keys take (`kernels/extract_topk.py`): counted on scores, without running the kernel.

`python -m tests.kernels.rounds` counts them on the attention of SmolLM2-135M and on made-up scores, and compares the
instructions of the pass with those of the pass that makes z, from machine code for sm_90.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable

import torch
from torch import Tensor

BLOCK_M, BLOCK_N, TOPK = 128, 64, 8


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


MADE_UP: dict[str, Callable[[int, torch.Generator], Tensor]] = {
    "independent": lambda T, g: torch.randn(T, T, generator=g),
    "increasing": lambda T, g: torch.arange(T).float().expand(T, T),
    "decreasing": lambda T, g: -torch.arange(T).float().expand(T, T),
    "near keys": lambda T, g: torch.randn(T, T, generator=g) - (torch.arange(T)[:, None] - torch.arange(T)).abs() / 100,
    "equal": lambda T, g: torch.zeros(T, T),
}


def attention_scores(T: int, layers: list[int]) -> Tensor:
    """Scores of SmolLM2-135M on text of T tokens: [layers, heads, T, T]."""
    import pycotmech as pcm

    model = pcm.Model.from_pretrained("smollm2-135m")
    examples = pcm.cot.make_examples(1 + T // 600, shots=8, seed=0, tokenizer=model.tokenizer)
    tokens = torch.cat([e.steps[-1].clean for e in examples])[:T]
    assert len(tokens) == T, f"only {len(tokens)} tokens"
    acts = model.run(tokens, capture=("q", "k"), positions=[-1])
    angles = model.family.rotary(torch.arange(T))
    out = []
    for l in layers:
        q, k = acts["q"][l].clone(), acts["k"][l].clone()
        model.family.rotate(l, angles, slice(0, T), q, k)
        k = k.repeat_interleave(q.shape[1] // k.shape[1], 1)
        out.append(torch.einsum("thd,shd->hts", q, k) * model.family.attention(l).scale)
    return torch.stack(out)


def main(lengths: list[int]) -> None:
    for T in lengths:
        g = torch.Generator().manual_seed(0)
        for name, make in MADE_UP.items():
            print(T, name, *(f"{rounds(make(T, g), down=d).float().mean():.2f}" for d in (True, False)), flush=True)
        for l in (1, 5, 10, 15, 20, 25, 29):
            (scores,) = attention_scores(T, [l])
            for d in (True, False):
                means = torch.stack([rounds(head, down=d).float().mean() for head in scores])
                print(T, "smollm2", l, "down" if d else "up", f"{means.mean():.2f} {means.max():.2f}", flush=True)


if __name__ == "__main__":
    main([int(word) for word in sys.argv[1:]] or [1024, 4096])
