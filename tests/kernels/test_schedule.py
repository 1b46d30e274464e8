"""In which order tiles of causal attention start, and how evenly that keeps the multiprocessors of a GPU busy.

Simulated: a tile takes as long as it has tiles of keys (or rows) to read, and starts on the first multiprocessor that is free.
"""

import heapq

import pytest

pytest.importorskip("triton", reason="the kernels need triton")
from pycotmech.kernels import launch, tiles

MULTIPROCESSORS = 132  # of an H100
H, D, BLOCK = 32, 128, 128


def over_ideal(durations: list[int]) -> float:
    """Time until all are done, over that of multiprocessors that are always busy."""
    free = [0] * MULTIPROCESSORS
    for d in durations:
        heapq.heappush(free, heapq.heappop(free) + d)
    return max(free) / (sum(durations) / MULTIPROCESSORS)


def order(T: int) -> list[tuple[int, int]]:
    """(tile, head) of each program."""
    n, together = -(-T // BLOCK), launch.heads_together(H, T, D, 1, 2)
    return [tiles.placed.fn(pid, n, together) for pid in range(n * H)]


@pytest.mark.parametrize("T", [1024, 2048, 4096, 8192, 16384])
def test_multiprocessors_end_together(T):
    assert over_ideal([T // BLOCK - tile for tile, _ in order(T)]) <= 1.06


def test_one_head_after_the_other_leaves_them_idle():
    """As it was: the longest tiles of the last heads start when the others are nearly done."""
    assert over_ideal([8 - tile for _ in range(H) for tile in range(8)]) > 1.4


@pytest.mark.parametrize("T", [100, 1024, 4096, 32768, 500_000])
def test_every_tile_of_every_head_runs_once(T):
    n, together = -(-T // BLOCK), launch.heads_together(H, T, D, 1, 2)
    pids = range(n * H) if n * H < 10_000 else range(n * together)
    found = {tiles.placed.fn(pid, n, together) for pid in pids}
    assert len(found) == len(pids) and {tile for tile, _ in found} == set(range(n))
    assert {head for _, head in found} == set(range(H if n * H < 10_000 else together))


def test_heads_that_run_together_fit_the_cache():
    assert [launch.heads_together(32, T, 128, 1, 2) for T in (512, 1024, 4096, 8192, 32768)] == [32, 32, 8, 4, 1]
    assert launch.heads_together(32, 8192, 128, 4, 2) == 16 and launch.heads_together(9, 8192, 64, 3, 2) == 9
    assert launch.heads_together(1, 10**6, 256, 1, 4) == 1
