"""Arguments of CircuitsVis, and what hostile tokens become in them; `tests/peers/test_exports.py` draws them."""

from __future__ import annotations

import sys

import numpy as np
import pytest
import torch

import pycotmech as pcm
from pycotmech.exports import circuitsvis_attention, circuitsvis_values, write_circuitsvis
from tests.reference.tiny import tiny_llama

HOSTILE = ["</script><script>alert(1)</script>", "<!--", "\x1b[2J", "a\u202eb", "<s>", "<|end|>", " plain"]
SHOWN = ["\\x3c/script>\\x3cscript>alert(1)\\x3c/script>", "\\x3c!--", "\\x1b[2J", "a\\u202eb", "<s>", "<|end|>", " plain"]


class Words:
    """A tokenizer of hostile words."""

    bos_token_id = None

    def __call__(self, text):
        return {"input_ids": [0]}

    def decode(self, ids):
        return HOSTILE[ids[0]]


def test_attention_of_a_layer():
    hf = tiny_llama(n_heads=4, n_key_value_heads=2)
    hf.set_attn_implementation("eager")
    ids = torch.arange(len(HOSTILE))
    expected = hf(ids[None], output_attentions=True).attentions[1][0, [2, 0]].detach()
    found = circuitsvis_attention(pcm.Model(hf, Words()), ids, layer=np.int64(1), heads=np.array([2, 0]))
    assert np.allclose(found["attention"], expected, atol=1e-5) and found["attention"].dtype == np.float32
    assert found["tokens"] == SHOWN and found["attention_head_names"] == ["L1H2", "L1H0"]


def test_values_by_position():
    values = np.arange(2 * 7 * 4, dtype=float).reshape(2, 7, 4)
    values[0, 0, 0] = np.nan
    found = circuitsvis_values(values, HOSTILE)
    assert found["activations"].shape == (7, 2, 4) and found["activations"][3, 1, 2] == values[1, 3, 2]
    assert found["activations"][0, 0, 0] == 0 and found["tokens"] == SHOWN


def test_bad_arguments_are_named(tmp_path, monkeypatch):
    model = pcm.Model(tiny_llama(n_heads=4, n_key_value_heads=2))
    for call, message in (
        (lambda: circuitsvis_attention(model, [1, 2], layer=9), "layer: got 9"),
        (lambda: circuitsvis_attention(model, [1, 2], layer=0, heads=[4]), "heads: got 4; expected 0 to 3"),
        (lambda: circuitsvis_values(np.zeros((2, 3)), ["a"]), "values: got shape [2, 3]"),
        (lambda: circuitsvis_values(np.zeros((2, 3, 1)), ["a"]), "tokens: got 1; expected 3 texts"),
    ):
        with pytest.raises(ValueError) as caught:
            call()
        assert message in str(caught.value)
    monkeypatch.setitem(sys.modules, "circuitsvis", None)
    with pytest.raises(ImportError, match="circuitsvis is not installed: pip install"):
        write_circuitsvis(tmp_path / "page.html", {})
