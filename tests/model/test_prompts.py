"""Every form in which a prompt, an answer or a list of them may be given means the same."""

import warnings

import numpy as np
import pytest
import torch

import pycotmech as pcm
from pycotmech.model.prompts import ranges_of, unpacked
from tests.reference.tiny import tiny_llama

CLEAN, CORRUPTED = "Every wumpus is a lempus . Max is a", "Every wumpus is a zumpus . Max is a"


@pytest.fixture(scope="module")
def model():
    return pcm.Model.from_pretrained("tiny-cot")


@pytest.fixture(scope="module")
def ids(model):
    """What the tokenizer makes of the prompts; token ids get no BOS from the model."""
    return [torch.tensor(model.tokenizer(p)["input_ids"]) for p in (CLEAN, CORRUPTED)]


FORMS = {
    "array": lambda ids, tok: [t.numpy() for t in ids],
    "uint16": lambda ids, tok: [t.numpy().astype(np.uint16) for t in ids],
    "list": lambda ids, tok: [t.tolist() for t in ids],
    "tuple": lambda ids, tok: [tuple(t.tolist()) for t in ids],
    "list of tensors": lambda ids, tok: [list(t) for t in ids],
    "int32": lambda ids, tok: [t.int() for t in ids],
    "tokenizer's output": lambda ids, tok: [tok(p) for p in (CLEAN, CORRUPTED)],
    "tokenizer's output, pt": lambda ids, tok: [tok(p, return_tensors="pt") for p in (CLEAN, CORRUPTED)],
    "tokenizer's output, np": lambda ids, tok: [tok(p, return_tensors="np") for p in (CLEAN, CORRUPTED)],
    "padded": lambda ids, tok: [tok(p, return_tensors="pt", padding="max_length", max_length=30) for p in (CLEAN, CORRUPTED)],
    "dict": lambda ids, tok: [dict(tok(p)) for p in (CLEAN, CORRUPTED)],
    "tokenizers' Encoding": lambda ids, tok: [tok(p).encodings[0] for p in (CLEAN, CORRUPTED)],
}


@pytest.mark.parametrize("form", FORMS)
def test_forms_of_one_prompt(form, model, ids):
    expected = pcm.patch_heads(model, *ids)
    found = pcm.patch_heads(model, *FORMS[form](ids, model.tokenizer))
    assert np.array_equal(found.values, expected.values) and found.raw.shape == expected.raw.shape


def test_a_tokenizer_s_output_in_every_function(model, ids):
    clean, corrupted = (model.tokenizer(p, return_tensors="pt") for p in (CLEAN, CORRUPTED))
    assert torch.equal(model.run(clean).logits, model.run(ids[0]).logits)
    variant = pcm.Variant((pcm.Edit("z", 1, 2, None, 0.0),))
    both = [
        lambda a, b: pcm.sweep(model, a, [variant], clean=b).effect,
        lambda a, b: pcm.ablate_heads(model, a, [(0, 1)], kind="resample", resample=b).effect,
        lambda a, b: pcm.ablate_heads(model, a, [(0, 1)], kind="mean", mean=[a, b]).effect,
        lambda a, b: pcm.knock_out_edges(model, a, from_=[1], to=[-1]).effect,
        lambda a, b: pcm.attention_summary(model, a).mass,
        lambda a, b: pcm.head_scores(model, a).previous,
        lambda a, b: pcm.logit_lens(model, a, positions=-1).logits,
        lambda a, b: pcm.head_logits(model, b).heads,
        lambda a, b: np.array(pcm.check_pair(a, b, model=model).differs),
        lambda a, b: np.array(pcm.check_pair(a, b).differs),
    ]
    for call in both:
        assert np.array_equal(call(clean, corrupted), call(*ids), equal_nan=True)


def test_a_tokenizer_s_output_for_several_prompts(model, ids):
    pair = model.tokenizer([CLEAN, CORRUPTED], return_tensors="pt")
    other = model.tokenizer([CORRUPTED, CLEAN])
    found = pcm.patch_heads(model, pair, other)
    assert np.array_equal(found.values, pcm.patch_heads(model, ids, ids[::-1]).values)
    assert model.run(pair).logits.shape[:2] == (2, len(ids[0]))
    both = torch.stack(ids)
    assert np.array_equal(pcm.attention_summary(model, pair).mass, pcm.attention_summary(model, both).mass)
    assert np.array_equal(pcm.head_scores(model, pair).previous, pcm.head_scores(model, both).previous)
    assert np.array_equal(pcm.logit_lens(model, pair).logits, pcm.logit_lens(model, both).logits)
    mean = [pcm.ablate_heads(model, ids[0], [(0, 1)], kind="mean", mean=m).effect for m in (pair, both, ids)]
    assert np.array_equal(mean[0], mean[1]) and np.array_equal(mean[0], mean[2])
    s = next(s for s in range(9) if torch.randint(2, (1,), generator=torch.Generator().manual_seed(s)))  # draws the second
    drawn = [pcm.ablate_heads(model, ids[0], [(0, 1)], kind="resample", resample=m, seed=s).effect for m in (pair, ids)]
    assert np.array_equal(*drawn)
    short = model.tokenizer([CLEAN, "Max is a"], padding=True, return_tensors="pt")
    assert [len(a.tokens) for a in model.run(short)] == [len(ids[0]), 3]
    assert [len(p) for p in unpacked(short)] == [len(ids[0]), 3]


@pytest.mark.parametrize("five", [5, np.int64(5), torch.tensor(5), np.array(5), [5], (5,), torch.tensor([5]), np.array([5])])
def test_forms_of_an_answer(five, model, ids):
    once = dict(metric="prob", answer=5)
    expected = pcm.patch_heads(model, *ids, **once)
    assert np.array_equal(pcm.patch_heads(model, *ids, metric="prob", answer=five).values, expected.values)
    expected = pcm.logit_lens(model, ids[0], answer=5)
    assert np.array_equal(pcm.logit_lens(model, ids[0], answer=five).logits, expected.logits)
    if np.ndim(five) == 0:
        variants = [pcm.Variant((pcm.Edit("z", 1, 2, None, 0.0),))]
        expected = pcm.sweep(model, ids[0], variants, **once)
        assert np.array_equal(pcm.sweep(model, ids[0], variants, metric="prob", answer=five).raw, expected.raw)


def test_a_word_that_the_tokenizer_does_not_know(model):
    for call in (
        lambda **words: pcm.patch_heads(model, CLEAN, CORRUPTED, **words),
        lambda **words: pcm.sweep(model, CLEAN, [pcm.Variant((pcm.Edit("z", 1, 2, None, 0.0),))], **words),
        lambda **words: pcm.path_patch(model, CLEAN, CORRUPTED, **words),
        lambda **words: pcm.attribute_heads(model, CLEAN, CORRUPTED, **words),
    ):
        call(metric="logit_diff", answer="lempus", wrong="zumpus")
        with pytest.raises(ValueError, match=r"answer.*does not know 'rompuss', which becomes '<unk>'"):
            call(metric="prob", answer="rompuss")
        with pytest.raises(ValueError, match=r"wrong.*does not know 'rompuss'"):
            call(metric="logit_diff", answer="lempus", wrong="rompuss")
    unknown = pcm.patch_heads(model, CLEAN, CORRUPTED, metric="prob", answer="<unk>", normalize=False)  # by its own name
    assert unknown.clean_metric < 0.1
    with pytest.warns(UserWarning, match="1 part.*unknown to the tokenizer") as caught:
        model.to_tokens("Max is a rompuss .")
    assert caught[0].filename == __file__


def test_a_prompt_longer_than_the_context():
    model = pcm.Model(tiny_llama(n_positions=40))
    clean = torch.arange(41) % 60
    corrupted = clean.roll(1)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        pcm.patch_heads(model, clean[:40], corrupted[:40])
    for call in (
        lambda: pcm.patch_heads(model, clean, corrupted),
        lambda: model.run(clean),
        lambda: pcm.attention_summary(model, clean),
        lambda: pcm.knock_out_edges(model, clean, from_=[1], to=[-1]),
    ):
        with pytest.warns(UserWarning, match="41 tokens, more than the 40") as caught:
            call()
        assert {w.filename for w in caught if "41 tokens" in str(w.message)} == {__file__}


def test_a_bos_that_is_not_there(model, tiny_cot_path):
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(tiny_cot_path)
    tokenizer.bos_token = None
    with pytest.raises(ValueError, match="prepend_bos: got True, but the tokenizer has no BOS"):
        pcm.Model(model.hf, tokenizer, prepend_bos=True)
    assert pcm.Model(model.hf, tokenizer, prepend_bos=False).prepend_bos is False
    assert pcm.Model(model.hf, None, prepend_bos=True).tokenizer is None


def test_positions_as_ranges():
    assert ranges_of([7, 2, 3, 4, 8, 11]) == [(2, 5), (7, 9), (11, 12)]
    assert ranges_of(range(3)) == [(0, 3)] and ranges_of([]) == []
