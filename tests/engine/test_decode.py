"""Generation of many runs at once against recomputing every prompt for every token."""

import pytest
import torch

import pycotmech as pcm
from pycotmech.engine.decode import Runs
from tests.reference.close import assert_close
from tests.reference.tiny import tiny_llama
from tests.reference.truth import double, hooked, logits_of, z_of


def replace_layer(hf, layer, z):
    return hf.model.layers[layer].self_attn.o_proj.register_forward_pre_hook(lambda _m, args: (z.flatten(-2)[None],))


@pytest.mark.parametrize("Hkv", [4, 2])
@pytest.mark.parametrize("shared", [0, 7])
def test_cached_generation_is_uncached_generation(Hkv, shared):
    hf = double(tiny_llama(n_layers=3, n_key_value_heads=Hkv, seed=3))
    model = pcm.Model(hf, check=False)
    g = torch.Generator().manual_seed(0)
    clean = torch.randint(61, (15,), generator=g)
    other = clean.clone()
    other[[shared + 1, shared + 3]] = torch.randint(61, (2,), generator=g)
    L, new = 3, 6

    want = []
    for l in range(L):  # the obvious way: both prompts as a whole, for every token
        a, b, text = clean, other, []
        for _ in range(new):
            with hooked(replace_layer(hf, l, z_of(hf, b)[l])):
                logits = logits_of(hf, a, keep=1)[0]
            text.append(int(logits.argmax()))
            a, b = (torch.cat((t, torch.tensor(text[-1:]))) for t in (a, b))
        want.append(text)

    past = model.prefixes.key_values(clean[:shared], 2**30)
    takes = [(l, 2 * L - 1 - l, l) for l in range(L)]  # givers: the one of the last layer first
    runs = Runs(model.family, past, [L] * L + [l + 1 for l in reversed(range(L))], 15 + new, takes)
    texts = [clean[shared:]] * L + [other[shared:]] * L
    found = [[] for _ in range(L)]
    for _ in range(new):
        final = runs.advance(texts)
        assert len(final) >= L  # givers of the last layer go through all layers too
        best = model.family.logits(final).argmax(-1)
        for l in range(L):
            found[l].append(int(best[l]))
        texts = [best[l : l + 1] for l in range(L)] + [best[l : l + 1] for l in reversed(range(L))]
    assert found == want
    assert len({tuple(t) for t in want}) > 1  # layers differ, so it matters which one is exchanged


def test_ragged_runs_do_not_touch_each_other():
    hf = double(tiny_llama(n_layers=2))
    model = pcm.Model(hf, check=False)
    g = torch.Generator().manual_seed(1)
    prompts = [torch.randint(61, (n,), generator=g) for n in (3, 9, 5)]
    runs = Runs(model.family, None, [2, 2, 2], 12)
    final = runs.advance(prompts)
    more = [torch.tensor([5, 6]), torch.tensor([7]), torch.tensor([8, 9, 10])]
    again = runs.advance(more)
    for i, (p, m) in enumerate(zip(prompts, more)):
        for row, tokens in ((final[i], p), (again[i], torch.cat((p, m)))):
            assert_close(model.family.logits(row[None])[0], logits_of(hf, tokens, keep=1)[0], rtol=1e-8, atol=1e-8)


def test_bad_input():
    family = pcm.Model(tiny_llama(), check=False).family
    with pytest.raises(ValueError, match=r"depth: got \[1, 2\]"):
        Runs(family, None, [1, 2], 4)
    with pytest.raises(ValueError, match="layer 1 is not computed in both runs 0 and 1"):
        Runs(family, None, [2, 1], 4, [(0, 1, 1)])
    runs = Runs(family, None, [2], 4)
    with pytest.raises(ValueError, match="tokens: 5 for run 0, which has 0 of 4"):
        runs.advance([torch.arange(5)])
    runs = Runs(family, None, [2, 2], 4, [(0, 1, 1)])
    with pytest.raises(ValueError, match="tokens: 2 for run 0, 1 for run 1, from which it takes"):
        runs.advance([torch.arange(2), torch.arange(1)])
