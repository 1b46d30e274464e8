"""The planted models do what they say: checked on Hugging Face's own forward passes, without the library's analyses."""

from __future__ import annotations

import functools

import pytest
import torch
from torch import Tensor

import pycotmech as pcm
from tests.attention.patterns import patterns
from tests.reference import planted
from tests.reference.planted import Planted, Prompt
from tests.reference.truth import hooked, logits_of

N = 120
WRITERS = {"parallel": ("question", "generated")}
"""Roles that write the answer; "writer" where there is one."""
NOT_NEEDED = {"copying": {"decoy"}, "parallel": {"question", "generated", "marker"}}
"""Planted roles without which the answer still comes."""
MOVED: dict[str, dict] = {
    "induction": {"previous": (0, 7), "writer": (3, 0), "n_layers": 5, "n_heads": 8, "seed": 3},
    "copying": {"writer": (0, 0), "decoy": (0, 1), "n_layers": 2, "n_heads": 2, "seed": 4},
    "bigram": {"table": 0, "previous": (0, 0), "writer": (2, 1), "n_layers": 4, "n_heads": 2, "seed": 5},
    "parallel": {"marker": (0, 0), "question": (2, 1), "generated": (2, 0), "n_layers": 3, "n_heads": 2, "seed": 6},
    "relation": {"previous": (0, 1), "relate": (2, 0), "writer": (4, 1), "n_layers": 5, "n_heads": 2, "seed": 7},
}
CASES = [(name, moved) for name in planted.ALL for moved in (False, True)]


@functools.cache
def built(name: str, moved: bool = False) -> tuple[Planted, list[Prompt], Tensor]:
    p = planted.ALL[name](**(MOVED[name] if moved else {}))
    prompts = p.prompts(N, seed=1)
    return p, prompts, torch.stack([prompt.tokens for prompt in prompts])


@torch.no_grad()
def last_logits(p: Planted, tokens: Tensor, *, without=()) -> Tensor:
    """[B, V], with z of these heads set to zero."""
    D = p.model.cfg.d_head

    def silence(layer):
        def hook(_module, args):
            x = args[0].clone()
            for l, h in without:
                if l == layer:
                    x[..., h * D : (h + 1) * D] = 0
            return (x,)

        return hook

    layers = p.model.hf.model.layers
    with hooked(*[layer.self_attn.o_proj.register_forward_pre_hook(silence(l)) for l, layer in enumerate(layers)]):
        return p.model.hf(tokens, use_cache=False, logits_to_keep=1).logits[:, 0]


def accuracy(logits: Tensor, prompts: list[Prompt], word: str = "answer") -> float:
    return (logits.argmax(-1) == torch.tensor([getattr(q, word) for q in prompts])).double().mean().item()


@pytest.mark.parametrize("name, moved", CASES)
def test_the_answer_is_right_and_the_corrupted_prompt_has_another(name, moved):
    p, prompts, tokens = built(name, moved)
    assert accuracy(last_logits(p, tokens), prompts) > 0.99
    assert accuracy(last_logits(p, torch.stack([q.corrupted for q in prompts])), prompts, "wrong") > 0.99
    for q in prompts:
        assert q.answer != q.wrong and q.answer != q.tokens[-1] and q.differs
        assert q.tokens[q.positions["answer"]] == q.answer and len(q.tokens) == len(tokens[0])
    assert len({q.answer for q in prompts}) >= 9  # no constant answer would do


@pytest.mark.parametrize("name, moved", CASES)
def test_planted_heads_look_where_they_were_told(name, moved):
    p, prompts, tokens = built(name, moved)
    found = patterns(p.model.hf, tokens[:20])
    rows = torch.arange(20)
    for role, place in p.looks.items():
        l, h = p.heads[role]
        keys = torch.tensor([q.positions[place] for q in prompts[:20]])
        assert found[rows, l, h, -1, keys].min() > 0.9, role
        if name != "induction" and name != "bigram":  # elsewhere they rest on the first token
            assert found[:, l, h, 1:-1, 0].mean() > 0.9, role
    if "previous" in p.heads:
        l, h = p.heads["previous"]
        assert found[:, l, h].diagonal(-1, 1, 2).min() > 0.9
    for l, h in p.noise_heads:
        assert found[:, l, h, -1].max() < 0.5


@pytest.mark.parametrize("name, moved", CASES)
def test_the_answer_needs_the_planted_heads_and_no_others(name, moved):
    p, prompts, tokens = built(name, moved)
    prompts, tokens = prompts[:60], tokens[:60]
    plain = last_logits(p, tokens)
    rows, answers = torch.arange(60), torch.tensor([q.answer for q in prompts])
    for role, head in p.heads.items():
        share = accuracy(last_logits(p, tokens, without=[head]), prompts)
        if role in NOT_NEEDED.get(name, ()):
            assert share > 0.99, role
        else:
            assert share < 0.15, role
    writers = [p.heads[role] for role in WRITERS.get(name, ("writer",))]
    assert accuracy(last_logits(p, tokens, without=writers), prompts) < 0.15
    unplanted = last_logits(p, tokens, without=p.noise_heads)
    assert accuracy(unplanted, prompts) > 0.99
    assert (unplanted - plain)[rows, answers].abs().max() < 0.15 * plain[rows, answers].min()


@pytest.mark.parametrize("moved", [False, True])
def test_parallel_writers_take_the_answer_from_their_own_sources(moved):
    p, prompts, _ = built("parallel", moved)
    tokens = torch.stack([q.tokens for q in prompts])
    rows, other = torch.arange(N), torch.tensor([q.wrong for q in prompts])
    for role, sibling in (("question", "generated"), ("generated", "question")):
        changed = tokens.clone()
        changed[rows, torch.tensor([q.positions[f"answer_{role}"] for q in prompts])] = other
        alone = last_logits(p, changed, without=[p.heads[sibling]])
        assert (alone.argmax(-1) == other).double().mean() > 0.99  # it reads what was changed
        assert accuracy(last_logits(p, changed, without=[p.heads[role]]), prompts) > 0.99  # the other one does not


@pytest.mark.parametrize("moved", [False, True])
def test_what_was_known_and_what_stands_in_the_prompt_cross_at_the_planted_layer(moved):
    p, prompts, tokens = built("bigram", moved)
    hf = p.model.hf
    alone = hf(torch.tensor([[planted.BOS, word] for word in p.table]), use_cache=False).logits[:, -1]
    assert torch.equal(alone.argmax(-1), torch.tensor(list(p.table.values())))  # the bigram, with nothing else to go by
    states: list[Tensor] = []
    with hooked(*[layer.register_forward_hook(lambda _m, _a, out: states.append(out)) for layer in hf.model.layers]):
        last_logits(p, tokens)
    known, seen = [], []
    for x in states:
        P = hf.lm_head(hf.model.norm(x[:, -1])).softmax(-1)
        known.append(P[torch.arange(N), [p.table[int(q.tokens[-1])] for q in prompts]].mean().item())
        seen.append(P[torch.arange(N), [q.answer for q in prompts]].mean().item())
    for l, (a, b) in enumerate(zip(known, seen, strict=True)):
        assert (a > 0.9) == (p.layers["table"] <= l < p.layers["rift"]), (l, a)
        assert (b > 0.9) == (l >= p.layers["rift"]), (l, b)
        assert min(a, b) < 0.1


@pytest.mark.parametrize("moved", [False, True])
def test_the_relation_is_read_along_is_and_nowhere_else(moved):
    p, prompts, tokens = built("relation", moved)
    l, h = p.heads["relate"]
    found = patterns(p.model.hf, tokens[:20])[:, l, h]
    weight = {
        kind: torch.stack([found[b, later, earlier] for b, q in enumerate(prompts[:20]) for later, earlier in q.pairs[kind]])
        for kind in ("related", "negated", "unrelated")
    }
    assert weight["related"].min() > 0.9 and len(weight["related"]) == 80
    assert weight["negated"].max() < 0.1 and weight["unrelated"].max() < 0.1


@pytest.mark.parametrize("silent", [False, True])
def test_nothing_is_in_the_empty_model(silent):
    p = planted.nothing(silent=silent)
    prompts = p.prompts(N)
    logits = last_logits(p, torch.stack([q.tokens for q in prompts]))
    assert not p.heads and len(p.noise_heads) == 16
    assert accuracy(logits, prompts) < 0.15
    assert logits.softmax(-1).amax() < 0.2
    shape = planted.parallel().model.cfg
    assert p.model.cfg == shape


def test_models_depend_on_their_seed_alone():
    a, b, c = planted.induction(seed=1), planted.induction(seed=1), planted.induction(seed=2)
    tokens = a.prompts(1)[0].tokens
    assert torch.equal(tokens, c.prompts(1)[0].tokens) and not torch.equal(tokens, a.prompts(1, seed=1)[0].tokens)
    assert torch.equal(logits_of(a.model.hf, tokens), logits_of(b.model.hf, tokens))
    assert not torch.equal(logits_of(a.model.hf, tokens), logits_of(c.model.hf, tokens))


@pytest.mark.parametrize("name", planted.ALL)
def test_in_float64_all_is_float64(name):
    p = planted.ALL[name](dtype=torch.float64)
    q = p.prompts(1)[0]
    ours, theirs = p.model.run(q.tokens).logits, logits_of(p.model.hf, q.tokens)
    assert ours.dtype == torch.float64
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-11)


def test_prompts_are_text_too():
    p = planted.relation()
    q = p.prompts(1)[0]
    assert torch.equal(p.model.to_tokens(q.text), q.tokens)
    sweep = pcm.patch_heads(p.model, q.text, q.corrupted, metric="prob", answer=planted.WORDS[q.answer])
    assert {head for head, _ in sweep.top(2)} == {p.heads["relate"], p.heads["writer"]}
