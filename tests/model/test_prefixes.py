"""Kept keys and values of prompt beginnings: the same to the last bit, never those of other weights, within their limit."""

import copy
import threading

import numpy as np
import pytest
import torch

import pycotmech as pcm
from pycotmech.model import prefixes, sizes
from pycotmech.model.run import forward_packed
from pycotmech.model.sizes import Sizes
from tests.reference.tiny import tiny_llama

ROOM = 2**30


@pytest.fixture(autouse=True)
def _short_segments(monkeypatch):
    monkeypatch.setattr(sizes, "CPU", Sizes(segment=8, pass_rows=128, row_block=2048))


@pytest.fixture
def forwards(monkeypatch):
    """The number of tokens of each forward pass that a prefix cost."""
    seen = []
    plain = prefixes.forward_packed
    monkeypatch.setattr(
        prefixes, "forward_packed", lambda f, s, past, **k: seen.append(sum(map(len, s))) or plain(f, s, past, **k)
    )
    return seen


def prompts(n=2, length=40, shared=29, seed=0):
    generator = torch.Generator().manual_seed(seed)
    first = torch.randint(61, (length,), generator=generator)
    out = [first]
    for i in range(1, n):
        other = first.clone()
        other[shared:] = (other[shared:] + i) % 61
        out.append(other)
    return out


def equal(a, b):
    return torch.equal(a.k, b.k) and torch.equal(a.v, b.v)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_values_are_the_models_and_bitwise_the_same_cold_and_warm(dtype, forwards):
    model = pcm.Model(tiny_llama(n_heads=4, n_key_value_heads=2, dtype=dtype))
    tokens = prompts(1)[0]
    cold = model.prefixes.key_values(tokens[:29], ROOM)
    assert forwards == [8, 8, 8, 5]
    whole = forward_packed(model.family, [tokens[:29]]).key_values(0, None)
    near = 1e-5 if dtype == torch.float32 else 0.1
    assert (cold.k.float() - whole.k).abs().max() < near and (cold.v.float() - whole.v).abs().max() < near
    warm = model.prefixes.key_values(tokens[:29], ROOM)
    assert forwards == [8, 8, 8, 5] and equal(cold, warm)
    # Whatever was asked for before: a longer beginning, a shorter one, one that parts in the middle of a segment.
    model.prefixes.clear()
    for n, other in ((37, tokens), (18, tokens), (29, prompts(2, shared=20)[1])):
        model.prefixes.key_values(other[:n], ROOM)
    forwards.clear()
    assert equal(model.prefixes.key_values(tokens[:29], ROOM), cold) and forwards == [5]
    model.prefixes.key_values(tokens[:29], ROOM).k.zero_()  # what a call gets is its own
    assert equal(model.prefixes.key_values(tokens[:29], ROOM), cold)
    assert model.prefixes.key_values(tokens[:0], ROOM) is None


def test_sweeps_are_bitwise_the_same_cold_and_warm(forwards):
    model = pcm.Model(tiny_llama(n_heads=4, n_key_value_heads=2, n_layers=3))
    clean, corrupted = prompts()
    heads = [(0, 1), (2, 3)]
    calls = [
        lambda: pcm.patch_heads(model, clean, corrupted),
        lambda: pcm.patch_heads(model, clean, corrupted, site="k", direction="noise", positions=[-1]),
        lambda: pcm.patch_residual(model, clean, corrupted),
        lambda: pcm.sweep(model, clean, [pcm.Variant((pcm.Edit("z", 1, 2, [33], 0.0),))]),
        lambda: pcm.ablate_heads(model, clean, heads, positions=[30, 35]),
    ]
    cold = []
    for call in calls:
        model.prefixes.clear()
        cold.append(call())
    assert sum(forwards) == 29 * 3 + 33 + 30
    forwards.clear()
    for call, expected in zip(calls, cold, strict=True):
        result = call()
        assert np.array_equal(result.raw, expected.raw) and result.noise_floor == expected.noise_floor
    assert forwards == [5, 8, 1]  # kept from the last call: 30 tokens; not yet 24..28 as an end, nor 24..31 and 32


def test_changed_weights_are_seen(forwards):
    hf = tiny_llama(n_heads=4)
    model = pcm.Model(hf)
    tokens = prompts(1)[0][:24]
    layer = hf.model.layers[0]

    def replace():
        layer.self_attn.k_proj.weight = torch.nn.Parameter(layer.self_attn.k_proj.weight * 2)

    def in_place():
        with torch.no_grad():
            layer.mlp.up_proj.weight[3, 4] += 1.0

    def through_data():
        layer.mlp.down_proj.weight.data += 0.01 * torch.randn(48, 1) @ torch.randn(1, 80)

    def one_head_through_data():
        layer.self_attn.o_proj.weight.data[:, 16:32] = 0

    def constant():
        layer.input_layernorm.variance_epsilon = 0.5

    before = model.prefixes.key_values(tokens, ROOM)
    for change in (replace, in_place, through_data, one_head_through_data, constant):
        model.prefixes.key_values(tokens, ROOM)
        forwards.clear()
        change()
        after = model.prefixes.key_values(tokens, ROOM)
        assert sum(forwards) == 24, change.__name__
        fresh = pcm.Model(hf).prefixes.key_values(tokens, ROOM)
        assert equal(after, fresh) and not torch.equal(after.k, before.k), change.__name__
        before = after


def test_nothing_is_kept_for_a_model_that_carries_hooks(forwards):
    hf = tiny_llama(n_heads=4)
    model = pcm.Model(hf)
    tokens = prompts(1)[0][:16]
    model.prefixes.key_values(tokens, ROOM)
    scale = [2.0]
    handle = hf.model.layers[0].self_attn.v_proj.register_forward_hook(lambda module, args, out: out * scale[0])
    doubled = model.prefixes.key_values(tokens, ROOM)
    scale[0] = 3.0  # no tensor of the model shows this
    tripled = model.prefixes.key_values(tokens, ROOM)
    assert len(model.prefixes) == 0 and not torch.equal(doubled.k, tripled.k)
    assert torch.allclose(tripled.v[0], doubled.v[0] * 1.5, atol=1e-5)
    handle.remove()
    forwards.clear()
    model.prefixes.key_values(tokens, ROOM)
    assert forwards == [8, 8] and len(model.prefixes) == 2


def test_the_same_tokens_behind_others_are_not_taken_for_them(forwards):
    """A segment's keys and values depend on all that stands in front of it."""
    model = pcm.Model(tiny_llama(n_heads=4))
    tokens = prompts(1)[0][:24]
    other = tokens.clone()
    other[3] = (other[3] + 1) % 61
    first = model.prefixes.key_values(tokens, ROOM)
    second = model.prefixes.key_values(other, ROOM)
    assert forwards == [8] * 6 and not torch.equal(first.v[1, 16:], second.v[1, 16:])
    assert equal(second, pcm.Model(model.hf).prefixes.key_values(other, ROOM))
    repeated = torch.cat((tokens[:8], tokens[:8]))  # nor those of another position
    assert equal(model.prefixes.key_values(repeated, ROOM), pcm.Model(model.hf).prefixes.key_values(repeated, ROOM))


def test_threads_are_part_of_what_is_kept(forwards):
    model = pcm.Model(tiny_llama(n_heads=4))
    tokens, n = prompts(1)[0][:16], torch.get_num_threads()
    try:
        for threads in (1, 2, 1):
            torch.set_num_threads(threads)
            model.prefixes.key_values(tokens, ROOM)
    finally:
        torch.set_num_threads(n)
    assert forwards == [8, 8, 8, 8]


def test_the_limit(forwards):
    model = pcm.Model(tiny_llama(n_heads=4))
    first, second = prompts(2, length=32, shared=0)
    model.prefixes.key_values(first, ROOM)
    whole = model.prefixes.nbytes
    assert whole == 2 * 2 * 32 * 4 * 16 * 4 and "4 segments" in repr(model.prefixes)
    model.prefixes.limit = whole
    model.prefixes.key_values(second[:16], ROOM)
    assert model.prefixes.nbytes == whole
    forwards.clear()
    model.prefixes.key_values(second[:16], ROOM)
    assert forwards == []  # the most recently used are kept
    model.prefixes.key_values(first, ROOM)
    assert forwards == [8, 8]  # the two that had to go; the two behind them are found again
    model.prefixes.limit = None
    model.prefixes.key_values(first, whole // 2 * 8)  # an eighth of the room of the call
    assert model.prefixes.nbytes == whole // 2
    model.prefixes.limit = 0
    forwards.clear()
    for _ in range(2):
        model.prefixes.key_values(first, ROOM)
    assert forwards == [8] * 8 and model.prefixes.nbytes == 0
    model.prefixes.limit = None
    model.prefixes.key_values(first, ROOM)
    model.prefixes.clear()
    assert model.prefixes.nbytes == 0 and len(model.prefixes) == 0


def test_weights_made_in_inference_mode_count_no_changes_so_nothing_is_kept(forwards):
    with torch.inference_mode():
        hf = tiny_llama(n_heads=4)
        model = pcm.Model(hf)
    tokens = prompts(1)[0][:16]
    before = model.prefixes.key_values(tokens, ROOM)
    with torch.inference_mode():
        hf.model.layers[0].self_attn.v_proj.weight[3, 4] += 1.0
    after = model.prefixes.key_values(tokens, ROOM)
    assert not torch.equal(before.v, after.v) and len(model.prefixes) == 0 and forwards == [8] * 4
    clean, corrupted = prompts()
    assert np.isfinite(pcm.patch_heads(model, clean, corrupted).raw).all()


def test_a_copy_of_a_model_has_its_own(forwards):
    model = pcm.Model(tiny_llama(n_heads=4))
    tokens = prompts(1)[0][:16]
    model.prefixes.limit = 12345678
    model.prefixes.key_values(tokens, ROOM)
    other = copy.deepcopy(model)
    assert other.prefixes.limit == 12345678 and len(other.prefixes) == 0 and other.prefixes.family is other.family
    assert equal(other.prefixes.key_values(tokens, ROOM), model.prefixes.key_values(tokens, ROOM))
    assert forwards == [8] * 4 and len(model.prefixes) == 2


def test_threads_may_share_it():
    """One looks at its size while others fill and empty it; each gets the keys and values of its own tokens."""
    model, failed = pcm.Model(tiny_llama(n_heads=4)), []
    asked = prompts(3, shared=4)
    expected = [model.prefixes.key_values(t, ROOM) for t in asked]
    model.prefixes.limit = model.prefixes.nbytes // 2
    done = threading.Event()

    def watched(call):
        try:
            call()
        except Exception as error:
            failed.append(error)

    def fill(i):
        for _ in range(6):
            assert equal(model.prefixes.key_values(asked[i], ROOM), expected[i])

    def look():
        while not done.wait(1e-4):
            _ = model.prefixes.nbytes, repr(model.prefixes)

    fillers = [threading.Thread(target=watched, args=(lambda i=i: fill(i),)) for i in range(3)]
    watcher = threading.Thread(target=watched, args=(look,))
    for thread in (*fillers, watcher):
        thread.start()
    for thread in fillers:
        thread.join()
    done.set()
    watcher.join()
    assert not failed


@pytest.mark.parametrize("library", ["cuda", "mkldnn"])
def test_a_precision_that_the_user_sets_for_one_library_stops_nothing(library):
    clean, corrupted = torch.arange(1, 25), torch.arange(1, 25)
    corrupted[20] = 50
    model = pcm.Model(tiny_llama(n_layers=2))
    before = pcm.patch_heads(model, clean, corrupted)
    matmul = getattr(torch.backends, library).matmul
    found, matmul.fp32_precision = matmul.fp32_precision, "ieee" if library == "mkldnn" else "tf32"
    try:
        after = pcm.patch_heads(model, clean, corrupted)
    finally:
        matmul.fp32_precision = found
    assert (before.values == after.values).all()
