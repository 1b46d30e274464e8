"""Counted work: what each climb reports is what goes through the family's parts."""

import threading

import pytest
import torch

import pycotmech as pcm
from pycotmech.engine.decode import Runs
from pycotmech.model.config import layer_flop, logits_flop
from pycotmech.model.work import counted
from tests.reference.stages import observe
from tests.reference.tiny import tiny_llama

T = 24
GENERATOR = torch.Generator().manual_seed(0)
CLEAN = torch.randint(61, (T,), generator=GENERATOR)
CORRUPTED = torch.cat((CLEAN[:15], (CLEAN[15:16] + 1) % 61, CLEAN[16:]))


def decode(model):
    runs = Runs(model.family, None, [3, 2], T + 1, takes=[(0, 1, 1)])
    runs.advance([CLEAN, CLEAN])
    runs.advance([CLEAN[:1], CLEAN[1:2]])


PAIR = dict(metric="logit_diff", answer=7, wrong=11, normalize=False)
CALLS = {
    "run": lambda m: m.run(CLEAN),
    "run, batch": lambda m: m.run(torch.stack((CLEAN, CORRUPTED)), capture=("z",), positions=[-1]),
    "heads": lambda m: pcm.patch_heads(m, CLEAN, CORRUPTED),
    "heads, q": lambda m: pcm.patch_heads(m, CLEAN, CORRUPTED, site="q", by_position=True),
    "residual": lambda m: pcm.patch_residual(m, CLEAN, CORRUPTED, site="resid_post"),
    "paths": lambda m: pcm.path_patch(m, CLEAN, CORRUPTED, senders=[(0, 1), (1, 3)], receivers=[(2, 3)], **PAIR),
    "paths, MLPs frozen": lambda m: pcm.path_patch(m, CLEAN, CORRUPTED, receivers="logits", freeze_mlps=True, **PAIR),
    "attention": lambda m: pcm.attention_summary(m, CLEAN, segments={"first": slice(0, 5)}),
    "ablation": lambda m: pcm.ablate_heads(m, CLEAN, [(0, 1)], kind="zero"),
    "decode": decode,
}


@pytest.fixture(scope="module")
def model():
    return pcm.Model(tiny_llama(n_layers=3, n_key_value_heads=2))


@pytest.mark.parametrize("call", CALLS)
def test_reported_work_is_what_goes_through_the_parts(call, model, monkeypatch):
    cfg, seen = model.cfg, dict.fromkeys(("qkv", "attn_out", "mlp_out", "logits"), 0)

    def note(name, flop):
        def through(_layer, x):
            seen[name] += len(x) * flop

        return through

    row = layer_flop(cfg)
    for name, flop in {"qkv": row.qkv, "attn_out": row.attn_out, "mlp_out": row.mlp}.items():
        observe(monkeypatch, model.family, name, note(name, flop))
    logits = model.family.logits

    def read(x, token_ids=None):
        seen["logits"] += len(x) * logits_flop(cfg, None if token_ids is None else len(token_ids))
        return logits(x, token_ids)

    monkeypatch.setattr(model.family, "logits", read)
    model.prefixes.clear()
    with counted(model.family) as tally:
        CALLS[call](model)
    assert tally.flop == sum(seen.values()) > 0
    assert tally.layer_rows == seen["mlp_out"] / row.mlp
    assert tally.token_forwards == tally.layer_rows / 3


def test_tallies_nest_and_count_one_model_in_one_thread(model):
    other = pcm.Model(tiny_llama(n_layers=2))
    with counted(model.family) as outer, counted(other.family) as others:
        with counted(model.family) as inner:
            model.run(CLEAN)
        model.run(CLEAN)
        thread = threading.Thread(target=model.run, args=(CLEAN,))
        thread.start(), thread.join()
    model.run(CLEAN)
    assert outer.token_forwards == 2 * inner.token_forwards == 2 * T and others.flop == 0
