"""Each export is read by the peer's own code. EAP-IG and Neuronpedia's loader are in no registry: their fields are asserted in
`tests/exports`."""

from __future__ import annotations

import json
import re

import numpy as np
import pytest
import torch

import pycotmech as pcm
from pycotmech.exports import activation_cache, circuitsvis_attention, circuitsvis_values, write_circuitsvis
from pycotmech.model.sites import SITES

pytestmark = pytest.mark.peers

IDS = torch.tensor([1, 17, 23, 5, 99, 42, 7])
HOSTILE = ["</script><script>alert(1)</script>", "<!--<script>", "\x1b[2J", "<s>", "a", "b", "c"]


def test_circuitsvis_draws_attention_and_values(tmp_path):
    model = pcm.Model.from_pretrained("tiny-cot")
    drawn = circuitsvis_attention(model, IDS, layer=2)
    write_circuitsvis(tmp_path / "attention.html", {**drawn, "tokens": HOSTILE})
    write_circuitsvis(tmp_path / "values.html", circuitsvis_values(np.ones((4, 7, 8)), HOSTILE))
    for name, element in (("attention.html", "AttentionHeads"), ("values.html", "TextNeuronActivations")):
        page = (tmp_path / name).read_text("utf-8")
        properties = page.rpartition(f"CircuitsVis.{element},")[2].rpartition("\n    )\n")[0]
        found = json.loads(properties)
        assert found["tokens"][0] == "\\x3c/script>\\x3cscript>alert(1)\\x3c/script>"
        assert not re.search(r"<(/?script|!--)", properties, re.I) and "\x1b" not in page
        assert "Content-Security-Policy" in page and "unpkg.com" not in properties
    assert np.allclose(json.loads((tmp_path / "attention.html").read_text("utf-8").rpartition("CircuitsVis.AttentionHeads,")[2]
                                  .rpartition("\n    )\n")[0])["attention"], drawn["attention"])  # fmt: skip


def test_transformer_lens_has_the_same_activations(tiny_cot_path):
    from transformer_lens import ActivationCache
    from transformer_lens.model_bridge import TransformerBridge
    from transformers import AutoModelForCausalLM, AutoTokenizer

    hf = AutoModelForCausalLM.from_pretrained(tiny_cot_path, dtype=torch.float32).eval()
    tokenizer = AutoTokenizer.from_pretrained(tiny_cot_path)
    bridge = TransformerBridge.boot_transformers(str(tiny_cot_path), hf_model=hf, tokenizer=tokenizer)
    model = pcm.Model.from_transformer_lens(bridge)
    ours = activation_cache(model.run(IDS, capture=SITES))
    _, theirs = bridge.run_with_cache(IDS[None])
    for name, value in ours.items():
        assert value.shape == theirs[name].shape and torch.allclose(value.float(), theirs[name], atol=1e-4), name
    read = ActivationCache(ours, bridge)
    assert torch.equal(read["z", 1], ours["blocks.1.attn.hook_z"]) and read["resid_post", -1].shape == (1, 7, 256)


def test_datasets_saves_what_is_read(tmp_path):
    import datasets

    rows = [{"clean": "a b", "corrupted": "a c", "correct_idx": 5}, {"clean": "c d", "corrupted": "c e", "correct_idx": 6}]
    datasets.Dataset.from_list(rows).save_to_disk(tmp_path / "pairs")
    assert [(p.clean, p.answer) for p in pcm.read_pairs(tmp_path / "pairs")] == [("a b", 5), ("c d", 6)]
    datasets.Dataset.from_list(rows).select([1]).save_to_disk(tmp_path / "second")
    assert [p.clean for p in pcm.read_pairs(tmp_path / "second")] == ["c d"]
    datasets.Dataset.from_list(rows).to_parquet(tmp_path / "pairs.parquet")
    assert [p.answer for p in pcm.read_pairs(tmp_path / "pairs.parquet")] == [5, 6]
    datasets.DatasetDict(train=datasets.Dataset.from_list(rows)).save_to_disk(tmp_path / "splits")
    with pytest.raises(ValueError, match="holds the splits train; give the folder of one of them"):
        pcm.read_pairs(tmp_path / "splits")
