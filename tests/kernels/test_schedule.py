"""In which order tiles of causal attention start, how evenly that keeps the multiprocessors of a GPU busy, into how many parts
few rows split their keys, and how much work the top keys take.

Simulated: a tile takes as long as it has tiles of keys (or rows) to read, and starts on the first multiprocessor that is free.
"""

import heapq

import pytest
import torch

pytest.importorskip("triton", reason="the kernels need triton")
from pycotmech.kernels import configs, launch, prefix_attn, tiles

from tests.kernels import rounds

MULTIPROCESSORS = 132  # of an H100
H, D, BLOCK = 32, 128, 128


def until_done(durations: list[float]) -> float:
    """Time until all are done."""
    free = [0.0] * MULTIPROCESSORS
    for d in durations:
        heapq.heappush(free, heapq.heappop(free) + d)
    return max(free)


def over_ideal(durations: list[float]) -> float:
    """Time until all are done, over that of multiprocessors that are always busy."""
    return until_done(durations) / (sum(durations) / MULTIPROCESSORS)


def order(T: int) -> list[tuple[int, int]]:
    """(tile, head) of each program."""
    n, together = -(-T // BLOCK), launch.heads_together(H, T, D, 1, 2)
    return [tiles.placed.fn(pid, n, together) for pid in range(n * H)]


@pytest.mark.parametrize("T", [1024, 2048, 4096, 8192, 16384])
def test_multiprocessors_end_together(T):
    assert over_ideal([T // BLOCK - tile for tile, _ in order(T)]) <= 1.06


@pytest.mark.parametrize("T", [1024, 2048, 4096, 8192, 16384])
def test_so_they_do_in_the_search_for_top_keys(T):
    """Part of a program's time, that of ranking its lists, is the same for all."""
    lengths = torch.full((BLOCK, rounds.LANES), 4)
    assert over_ideal([rounds.cycles(lengths, T - BLOCK * (tile + 1)) for tile, _ in order(T)]) <= 1.06


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


def split_time(rows: int, keys: int, heads: int, key_heads: int) -> tuple[float, float]:
    """In keys that a program reads one after the other: time of few rows over shared keys, whole and split."""
    block_r = configs.TILES["prefix_few"]["sm_90"][0][0] // (heads // key_heads)
    programs = -(-rows // block_r) * key_heads
    n = prefix_attn.splits(programs, keys, MULTIPROCESSORS)
    parts = [-(-keys // n)] * (programs * n)
    return until_done([keys] * programs), until_done(parts) + (prefix_attn.JOIN_KEYS if n > 1 else 0)


@pytest.mark.parametrize("key_heads", [32, 8])
def test_splitting_the_keys_of_few_rows_pays(key_heads):
    gains = {}
    for rows in range(1, 41):
        for keys in (128, 512, 1024, 2048, 8192, 32768):
            whole, split = split_time(rows, keys, 32, key_heads)
            assert split <= whole, (rows, keys)
            gains[rows, keys] = whole / split
    assert min(gains[rows, 2048] for rows in range(1, 41)) > 1.9
    assert min(gains[rows, 32768] for rows in range(1, 41)) > 3.7
    assert all(gains[rows, 512] == 1 for rows in range(1, 41))


def test_many_rows_are_not_split():
    assert prefix_attn.splits(132, 32768, MULTIPROCESSORS) == prefix_attn.splits(67, 32768, MULTIPROCESSORS) == 1
    assert prefix_attn.splits(66, 32768, MULTIPROCESSORS) == 2
    assert prefix_attn.splits(4, 1025, MULTIPROCESSORS) == prefix_attn.splits(4, 1280, MULTIPROCESSORS)


@pytest.mark.parametrize("name", rounds.MADE_UP)
def test_most_tiles_take_few_rounds(name):
    """Of 8 that a tile may take. Keys are read backwards, the first ones early: scores that rise or fall are soon done."""
    scores = rounds.MADE_UP[name](2048, torch.Generator().manual_seed(0))
    most = {"independent": 4.5, "near keys": 2, "increasing": 1.4, "decreasing": 2, "equal": 8}
    assert rounds.rounds(scores).float().mean() <= most[name]


@pytest.mark.parametrize("name", ["independent", "near keys", "equal"])
def test_lists_of_top_keys_are_short(name):
    """No program needs rounds, whatever the scores, and its time is that of its products and lists."""
    scores = rounds.MADE_UP[name](2048, torch.Generator().manual_seed(0))
    share, longest, failed = rounds.shares(lambda m0: scores[m0 : m0 + BLOCK], 2048)
    assert failed == 0 and longest <= (32 if name == "equal" else 18)
    assert share <= (0.57 if name == "equal" else 0.5)


def test_programs_with_a_long_list_are_counted():
    scores = torch.where(torch.arange(2048) % 16 == 3, torch.arange(2048.0), -1).expand(2048, -1)
    share, _, failed = rounds.shares(lambda m0: scores[m0 : m0 + BLOCK], 2048)
    assert failed == 15 / 16 and share > 2  # from row 243 on the bin has 16 keys
