"""Cut attention between segments against one hooked float64 forward each."""

import numpy as np
import pytest
import torch

import pycotmech as pcm
from tests.reference.tiny import tiny_llama
from tests.reference.truth import double, edited_logits, kl, logits_of

L, H, T = 3, 4, 14
SEGMENTS = {"shots": slice(0, 4), "question": slice(4, 9), "chain": [9, 10, 11], "end": -1}


@pytest.fixture(scope="module")
def case():
    hf = tiny_llama(n_heads=H, n_key_value_heads=2, n_layers=L)
    return pcm.Model(hf), double(hf), torch.randint(61, (T,), generator=torch.Generator().manual_seed(4))


def truth(hf64, tokens, places, queries, keys):
    edits = [("edge", l, h, queries, keys) for l, h in places]
    return kl(logits_of(hf64, tokens, keep=1)[0], edited_logits(hf64, tokens, edits))


def test_all_layers_at_once(case):
    model, hf64, tokens = case
    cases = [
        (dict(from_="question", to="end"), range(4, 9), [13], range(L)),
        (dict(from_=["shots", "question"], to=["chain", "end"]), range(9), [9, 10, 11, 13], range(L)),
        (dict(from_=slice(0, 4), to=[5, 6]), range(4), [5, 6], range(L - 1)),  # not the query read: not in the last layer
        (dict(from_=[8, 12], to=slice(6, 14), layers=[2, 0]), [8, 12], range(6, 14), [0, 2]),  # a query sees itself left out
    ]
    for arguments, keys, queries, layers in cases:
        result = pcm.knock_out_edges(model, tokens, segments=SEGMENTS, **arguments)
        expected = truth(hf64, tokens, [(l, None) for l in layers], list(queries), list(keys))
        assert len(result) == 1 and expected > 1e-3 and result.effect[0] == pytest.approx(expected, rel=1e-4), arguments
        assert result.from_ == tuple(keys) and result.to == tuple(queries)
        assert sorted(result.places[0]) == [(l, None) for l in sorted(layers)]
    assert "attention of 8 positions to 2 cut" in str(result)


def test_each_layer_and_each_head(case):
    model, hf64, tokens = case
    arguments = dict(from_="question", to="end", segments=SEGMENTS)
    by_layer = pcm.knock_out_edges(model, tokens, each="layer", **arguments)
    expected = [truth(hf64, tokens, [(l, None)], [13], list(range(4, 9))) for l in range(L)]
    assert np.abs(by_layer.effect - expected).max() < 1e-4 * max(expected)
    assert list(by_layer.to_dataframe()["layer"]) == [0, 1, 2] and by_layer.names == ("L0", "L1", "L2")
    by_head = pcm.knock_out_edges(model, tokens, each="head", **arguments)
    frame = by_head.to_dataframe()
    places = list(zip(frame["layer"], frame["head"], strict=True))
    assert places == [(l, h) for l in range(L) for h in range(H)]
    expected = [truth(hf64, tokens, [place], [13], list(range(4, 9))) for place in places]
    assert np.abs(by_head.effect - expected).max() < 1e-4 * max(expected)
    some = pcm.knock_out_edges(model, tokens, heads=[(2, 1), (0, 3), (2, 0)], each="layer", **arguments)
    expected = [truth(hf64, tokens, heads, [13], list(range(4, 9))) for heads in ([(2, 1), (2, 0)], [(0, 3)])]
    assert np.abs(some.effect - expected).max() < 1e-4 * max(expected) and some.names == ("L2", "L0")


def test_wrong_arguments(case, monkeypatch):
    model, _, tokens = case
    monkeypatch.setattr(model.family, "embed", lambda tokens: pytest.fail("ran before the arguments were checked"))
    bad = [
        (dict(from_="answer"), "from_: got the name 'answer'; the segments are 'shots', 'question', 'chain', 'end'"),
        (dict(to="end", segments=None), "from_: got the name 'question'; no segments were given"),
        (dict(from_="end", to="chain"), "the queries end at position 11, before the first key 13; nothing to cut"),
        (dict(to=[14]), "to: 14 is outside a prompt of 14 tokens"),
        (dict(segments={"question": [4], "end": [4]}), "segments: 'end' and 'question' overlap at position 4"),
        (dict(each="position"), "each: got 'position'"),
        (dict(heads=[(0, 1)], layers=[0]), "heads, layers: got both"),
        (dict(heads=[(0, 4)]), r"heads: \(0, 4\) is out of range"),
        (dict(layers=[3]), "layers: got 3; expected 0 to 2"),
        (dict(layers=[0.5]), "layers: got 0.5 of type float; expected an integer"),
        (dict(layers="all"), "layers: got 'all'; expected a list of layers"),
        (dict(layers=1), "layers: got 1; expected a list of layers"),
        (dict(layers=[2], to="chain"), "its edit does not reach what is read"),  # asked for, and it can change nothing: said
        (dict(layers=[]), "layers: the cut reaches what is read in none"),
    ]
    for arguments, message in bad:
        with pytest.raises((ValueError, TypeError), match=message):
            pcm.knock_out_edges(model, tokens, **{"from_": "question", "to": "end", "segments": SEGMENTS, **arguments})
