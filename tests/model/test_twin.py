"""Nothing of the user's model is touched while another thread may be running it."""

import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

import pycotmech as pcm
from pycotmech.model.twin import twin_of
from tests.reference.tiny import tiny_llama

TOKENS = torch.arange(1, 25)


def test_a_twin_computes_the_same_and_its_hooks_stay_its_own():
    hf = tiny_llama(n_heads=4, n_key_value_heads=2)
    fired = []
    hf.model.layers[1].mlp.register_forward_hook(lambda m, a, o: fired.append(m))
    twin = twin_of(hf, ["model.layers.1.mlp", "model.norm"])
    assert [p.data_ptr() for p in twin.parameters()] == [p.data_ptr() for p in hf.parameters()]
    assert twin.model.layers[0] is hf.model.layers[0] and twin.model.layers[1].self_attn is hf.model.layers[1].self_attn
    seen = []
    twin.model.layers[1].mlp.register_forward_hook(lambda m, a, o: seen.append(o))
    before = hf(TOKENS[None]).logits
    assert torch.equal(twin(TOKENS[None]).logits, before)
    assert len(seen) == 1 and len(fired) == 2  # the user's hook fires in both, the twin's own in the twin
    assert len(hf.model.layers[1].mlp._forward_hooks) == 1
    twin.model.layers[1].mlp.up_proj = torch.nn.Linear(48, 80)
    assert torch.equal(hf(TOKENS[None]).logits, before)


def test_construction_while_another_thread_sweeps():
    hf = tiny_llama(n_layers=4, n_heads=4)
    model, corrupted, stop = pcm.Model(hf), TOKENS.flip(0), threading.Event()
    alone = pcm.patch_heads(model, TOKENS, corrupted).values

    def sweeps():
        found = []
        while not stop.is_set():
            found.append(pcm.patch_heads(model, TOKENS, corrupted).values)
        return found

    with ThreadPoolExecutor(1) as pool:
        running = pool.submit(sweeps)
        try:
            for _ in range(40):
                pcm.Model(hf)
        finally:
            stop.set()
        assert len(running.result()) > 0
        assert all((values == alone).all() for values in running.result())


def test_attribution_while_another_thread_sweeps():
    hf = tiny_llama(n_layers=4, n_heads=4)
    model, corrupted, stop = pcm.Model(hf), TOKENS.flip(0), threading.Event()
    alone, screen = pcm.patch_heads(model, TOKENS, corrupted).values, pcm.attribute_heads(model, TOKENS, corrupted).values

    def sweeps():
        found = []
        while not stop.is_set():
            found.append(pcm.patch_heads(model, TOKENS, corrupted).values)
        return found

    with ThreadPoolExecutor(3) as pool:
        running = pool.submit(sweeps)
        try:
            screens = list(pool.map(lambda _: pcm.attribute_heads(model, TOKENS, corrupted).values, range(20)))
        finally:
            stop.set()
        assert all((values == alone).all() for values in running.result())
    assert all((values == screen).all() for values in screens)
    assert hf.config._attn_implementation == "eager"


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_six_threads_construct_at_once(dtype):
    hf = tiny_llama(n_layers=4, n_heads=4, dtype=dtype)
    start = threading.Barrier(6)

    def construct(_):
        start.wait()
        return [pcm.Model(hf) for _ in range(5)]

    with ThreadPoolExecutor(6) as pool:
        models = [m for found in pool.map(construct, range(6)) for m in found]
    assert len(models) == 30
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in hf.modules())
