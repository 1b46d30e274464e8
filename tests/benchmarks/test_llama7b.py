"""The checks of the Llama-2 7B benchmark fail for sweeps that are wrong: on a small model, the code of the large one."""

import dataclasses
import time
from types import SimpleNamespace

import pytest
import torch

import pycotmech as pcm
from benchmarks import bench_llama7b, llama7b

SIZES = dict(vocab_size=100, hidden_size=128, intermediate_size=160, num_attention_heads=8)
T = 64


def swapped_layers(*args, **kwargs):
    return _moved(pcm.patch_heads(*args, **kwargs), lambda x: x[[1, 0, *range(2, len(x))]])


def swapped_last_layers(*args, **kwargs):
    return _moved(pcm.patch_heads(*args, **kwargs), lambda x: x[[*range(len(x) - 2), -1, -2]])


def shifted_heads(*args, **kwargs):
    return _moved(pcm.patch_heads(*args, **kwargs), lambda x: x.roll(1, 1))


def one_position_less(model, clean, corrupted, *, positions, **kwargs):
    where = list(range(T - llama7b.SUFFIX + 1, T)) if positions is None else [T - 2]
    return pcm.patch_heads(model, clean, corrupted, positions=where, **kwargs)


def swapped_runs(model, clean, corrupted, **kwargs):
    return pcm.patch_heads(model, corrupted, clean, **kwargs)


def _moved(found, move):
    changed = {"raw": move(torch.from_numpy(found.raw)).numpy()}
    if found.logits is not None:
        changed["logits"] = move(found.logits)
    return dataclasses.replace(found, **changed)


WRONG = [swapped_layers, swapped_last_layers, shifted_heads, one_position_less, swapped_runs]


@pytest.fixture(scope="module")
def small():
    return llama7b.cut(3, **SIZES)


@pytest.fixture(scope="module")
def deep():
    return pcm.Model(llama7b.random_llama(llama7b.shape(12, **SIZES), torch.bfloat16), check=False)


@pytest.mark.filterwarnings("ignore:positions. in layer")  # of the position that a wrong sweep takes
@pytest.mark.parametrize("positions", ["last", "suffix"])
class TestExact:
    def test_right_sweep_passes(self, small, positions):
        assert "of the largest effect" in llama7b.check_exactly(small, positions, T)

    @pytest.mark.parametrize("wrong", WRONG, ids=lambda f: f.__name__)
    def test_wrong_sweep_fails(self, small, positions, wrong):
        with pytest.raises(AssertionError, match="effects of the sweep"):
            llama7b.check_exactly(small, positions, T, wrong)


@pytest.mark.parametrize("positions", ["last", "suffix"])
class TestRounding:
    @pytest.fixture
    def case(self, deep, positions):
        clean, corrupted, where = llama7b.prompts(positions, T, SIZES["vocab_size"])
        found = pcm.patch_heads(deep, clean, corrupted, **llama7b.arguments(where))
        hand = llama7b.by_hand(deep, clean, corrupted, where, llama7b.sampled_heads(deep.cfg))
        return deep, clean, corrupted, where, found, hand

    def test_right_sweep_passes(self, case):
        assert "times as far from float32" in llama7b.check_rounding(*case)

    @pytest.mark.parametrize("wrong", [swapped_layers, shifted_heads], ids=lambda f: f.__name__)
    def test_wrong_sweep_fails(self, case, wrong):
        def sampled(model, clean, corrupted, *, heads, **kwargs):  # all heads, so that there is something to mistake
            return wrong(model, clean, corrupted, **kwargs)

        with pytest.raises(AssertionError, match="effects of"):
            llama7b.check_rounding(*case, sweep=sampled)

    @pytest.mark.parametrize("move", [lambda x: x.roll(1, 0), lambda x: x.roll(1, 1)], ids=["layers", "heads"])
    def test_wrong_metrics_fail(self, case, move):
        *prompts, found, hand = case
        with pytest.raises(AssertionError, match="the sweep reads"):
            llama7b.check_rounding(*prompts, _moved(found, move), hand)


def test_widened_logits_are_those_of_the_model_in_float32(deep):
    """The truth by layers is that of hooked forwards of a float32 copy."""
    clean, corrupted, where = llama7b.prompts("suffix", T, SIZES["vocab_size"])
    heads = [(0, 3), (6, 1), (6, 2), (11, 7)]
    wide = llama7b.random_llama(llama7b.shape(12, **SIZES), torch.bfloat16).float()
    truth = llama7b.by_hand(pcm.Model(wide, check=False), clean, corrupted, where, heads).logits
    torch.testing.assert_close(llama7b.widened_logits(deep.hf, clean, corrupted, heads, where), truth, atol=2e-5, rtol=0)


def test_part_is_spread_over_all_heads(small):
    cfg = small.cfg
    assert llama7b.part(cfg, None) is None and llama7b.part(cfg, 24) is None
    assert llama7b.part(cfg, 6) == [(0, 0), (0, 4), (1, 0), (1, 4), (2, 0), (2, 4)]
    with pytest.raises(ValueError, match=r"heads: got 25; .* expected 1\.\.24"):
        llama7b.part(cfg, 25)
    some = llama7b.part(cfg, 6)
    assert set(llama7b.sampled_heads(cfg, some)) <= set(some)


def test_staircase_seconds_are_part_of_a_sweep(small):
    clean, corrupted, where = llama7b.prompts("last", T, SIZES["vocab_size"])
    with llama7b.staircase_seconds() as seconds:
        pcm.patch_heads(small, clean, corrupted, **llama7b.arguments(where))
    assert len(seconds) == 1 and seconds[0] > 0


def test_peak_memory_counts_from_where_it_is_forgotten():
    llama7b.forget_peak()
    before = llama7b.peak_gib()
    block = torch.ones(2**26)  # 256 MiB
    assert 0.2 < llama7b.peak_gib() - before < 0.3
    del block
    llama7b.forget_peak()
    assert llama7b.peak_gib() - before < 0.1


class Timer:
    """What pytest-benchmark's fixture does for the benchmark."""

    name = "timed"

    def pedantic(self, call, rounds):
        assert rounds == 1
        start = time.perf_counter()
        result = call()
        self.stats = SimpleNamespace(stats=SimpleNamespace(min=time.perf_counter() - start))
        return result


@pytest.mark.parametrize(("positions", "n_heads", "bare"), [("last", None, False), ("suffix", 24, True)])
def test_whole_benchmark(small, deep, positions, n_heads, bare, monkeypatch):
    """Every step says its figures as it ends; a part of the heads is called one wherever a figure of it stands."""
    monkeypatch.setattr(llama7b, "cut", lambda layers: small)
    monkeypatch.setattr(llama7b, "model", lambda layers: deep)
    monkeypatch.setattr(llama7b, "check_exactly", lambda model, positions: check_exactly(model, positions, T))
    monkeypatch.setattr(llama7b, "prompts", lambda positions, T, d_vocab=100: prompts(positions, T, d_vocab))
    options = {"--layers": 12, "--heads": n_heads, "--no-bare": bare}
    request = SimpleNamespace(config=SimpleNamespace(getoption=options.get))
    timer, said, rows = Timer(), [], []
    bench_llama7b.test_all_heads(
        positions, T, timer, lambda what, seconds, **more: rows.append((what, seconds, more)), said.append, request
    )
    what, seconds, more = rows[0]
    starts = [next(i for i, line in enumerate(said) if part in line) for part in STEPS if bare or part != "sweep/bare"]
    assert starts == sorted(starts) and seconds == timer.stats.stats.min and more["baseline_seconds"] > 0
    if n_heads is None:
        assert "all 96 heads" in what and "EXTRAPOLATED" not in more["note"] and "sweep/bare" not in more["note"]
        return
    assert "PART: 24 of 96 heads" in what and "PART" in timer.name and "sweep/bare" in more["note"]
    in_full = float(more["note"].split("all heads EXTRAPOLATED: ")[1].split(" s")[0])
    assert seconds - 0.5 < in_full < 6 * seconds + 0.5  # four times the heads, and the runs of the prompts; in whole seconds


STEPS = ("exact: ", "of weights after", "token-forwards", "peak memory", "sweep/bare", "hooked forwards of", "rounding: ")
check_exactly, prompts = llama7b.check_exactly, llama7b.prompts
