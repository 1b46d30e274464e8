"""Means by role, against words counted by hand in prompts of unequal token lengths."""

import numpy as np
import pytest
import torch

import pycotmech as pcm
from pycotmech.cot.tools.means import head_means
from tests.reference.tiny import tiny_llama


@pytest.fixture(scope="module")
def model(byte_bpe):
    """A random model on a tokenizer that cuts words into many tokens."""
    hf = tiny_llama(d_vocab=len(byte_bpe), n_positions=1024, dtype=torch.float64, n_key_value_heads=2)
    return pcm.Model(hf, byte_bpe, check=False)


def made(model, n=2, seed=1, **kwargs):
    return pcm.cot.make_examples(n, shots=2, tokenizer=model.tokenizer, bos=False, seed=seed, **kwargs)


def token_words(model, example):
    """(number of the word, which of its tokens, of how many) for each token, by cutting at spaces: no regular expressions."""
    out, seen = [], []
    text, at = example.full_text, 0
    ids = example.full_ids.tolist()
    pieces = [model.tokenizer.decode([i]) for i in ids]
    assert "".join(pieces) == text
    word = -1
    for piece in pieces:
        new = piece[0] in " \n.,:" or at == 0 or text[at - 1] == "\n"
        word += new
        seen.append(word)
        at += len(piece)
    for i, w in enumerate(seen):
        out.append((w, seen[:i].count(w), seen.count(w)))
    return out


def test_means_are_over_the_same_word_whatever_its_length(model):
    examples = made(model)
    over = [made(model, 1, seed) for seed in (11, 12, 13)]
    lengths = {len(e[0].full_ids) for e in over} | {len(e.full_ids) for e in examples}
    assert len(lengths) > 1  # positions counted from either end would be those of other words
    means = head_means(model, examples, over=over)
    assert means.by == "word" and means.prompts == 3 and "given examples of the fictional ontology" in means.source
    runs = [model.run(e[0].full_ids, capture=("z",), positions=[-1])["z"] for e in over]
    places = [token_words(model, e[0]) for e in over]
    for e, example in enumerate(examples):
        for p, (word, j, n) in enumerate(token_words(model, example)):
            z = []
            for run, place in zip(runs, places):
                mine = [i for i, (w, *_) in enumerate(place) if w == word]
                m = len(mine)
                z.append(run[:, mine[m - 1 if n == 1 else round(j * (m - 1) / (n - 1))]])
            assert (means.z[:, means.roles[e][p]] - torch.stack(z).mean(0)).abs().max() < 1e-12


def test_prompts_made_for_it_have_other_words_and_blocks(model):
    examples = made(model)
    means = head_means(model, examples, n=2, seed=5)
    again = head_means(model, examples, n=2, seed=5)
    assert torch.equal(means.z, again.z) and means.prompts == 2 and "its own few-shot block" in means.source
    assert (means.z - head_means(model, examples, n=2, seed=6).z).abs().max() > 0.1
    z = model.run(examples[0].full_ids, capture=("z",), positions=[-1])["z"]
    shared = len(examples.shared_ids)
    off = (means.z[:, means.roles[0]] - z).abs().amax((0, 2, 3))
    assert off[1:shared].median() > 0.1  # the few-shot block is ablated too


def test_mean_over_the_prompt_itself_is_the_prompt(model):
    examples = made(model, 1)
    means = head_means(model, examples, over=examples)
    z = model.run(examples[0].full_ids, capture=("z",), positions=[-1])["z"]
    assert (means.z[:, means.roles[0]] - z).abs().max() < 1e-11


def test_prompts_that_share_the_block_leave_it_as_it_is(model):
    examples = made(model, 3)
    means = head_means(model, examples.only([examples[0]]), over=examples.only(list(examples)[1:]))
    z = model.run(examples[0].full_ids, capture=("z",), positions=[-1])["z"]
    off = (means.z[:, means.roles[0]] - z).abs().amax((0, 2, 3))
    shared = len(examples.shared_ids)
    assert off[:shared].max() < 1e-11 and off[shared:].max() > 0.1 and means.prompts == 2


def test_sentences_in_no_order_are_matched_by_kind_of_word(model):
    examples = made(model, 2, order="shuffled")
    over = made(model, 2, seed=9, order="shuffled")
    means = head_means(model, examples, over=over)
    assert means.by == "kind" and "the same kind in the same part" in str(means)
    # The commas of the generated text: one role, its mean over all of them in both prompts.
    total = []
    for example in over:
        z = model.run(example.full_ids, capture=("z",), positions=[-1])["z"]
        ids = [model.tokenizer.decode([i]) for i in example.full_ids.tolist()]
        total += [z[:, p] for p, piece in enumerate(ids) if piece == "," and p >= example.segments["generated"].start]
    roles = means.roles[0]
    ids = [model.tokenizer.decode([i]) for i in examples[0].full_ids.tolist()]
    commas = [p for p, piece in enumerate(ids) if piece == "," and p >= examples[0].segments["generated"].start]
    assert len(commas) == 2 and len({int(roles[p]) for p in commas}) == 1 and len(total) == 4
    assert (means.z[:, roles[commas[0]]] - torch.stack(total).mean(0)).abs().max() < 1e-11


@pytest.mark.parametrize("style", ["every", "paper"])
def test_the_false_ontology_has_the_same_roles(model, style):
    examples = made(model, 1, style=style)
    means = head_means(model, examples, over=made(model, 1, seed=4, style=style, ontology="false"))
    assert means.by == "word" and "false ontology" in means.source and np.isfinite(means.z.numpy()).all()


def test_bad_input(model):
    examples = made(model, 1)
    bare = pcm.Model(model.hf, check=False)
    with pytest.raises(ValueError, match="mean: the model has no tokenizer"):
        head_means(bare, examples)
    with pytest.raises(ValueError, match="n: got 0"):
        head_means(model, examples, n=0)
    with pytest.raises(TypeError, match="mean: expected what"):
        head_means(model, examples, over=[])
    one_hop = pcm.cot.make_examples(1, shots=2, hops=1, order="shuffled", tokenizer=model.tokenizer, bos=False)
    no_shots = pcm.cot.make_examples(1, shots=0, hops=1, order="shuffled", tokenizer=model.tokenizer, bos=False, seed=3)
    with pytest.raises(ValueError, match="no prompt to average over has a word for the role"):
        head_means(model, one_hop, over=no_shots)


def test_a_tokenizer_that_cuts_otherwise_is_refused(model, tiny_cot):
    examples = pcm.cot.make_examples(1, shots=2, tokenizer=tiny_cot)
    with pytest.raises(ValueError, match="the model's tokenizer cuts example 0 otherwise"):
        head_means(model, examples)
