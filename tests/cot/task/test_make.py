"""The rows "Data generator", "Subtask split" and "Counterfactuals" of the specification: no violation is allowed."""

import os
import random
import subprocess
import sys
from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from pycotmech.cot import Example, Examples, TooFewWords, make_examples
from pycotmech.cot.task import vocabulary as words
from tests.cot.task.promises import KIND, NOUNS, check, split, written_words
from tests.cot.task.prover import prove, singular

SETTINGS = [
    dict(),
    dict(shots=16),
    dict(shots=0),
    dict(hops=1, shots=3),
    dict(hops=3, shots=4),
    dict(hops=4, shots=2),
    dict(order="backward", shots=2),
    dict(order="shuffled", shots=2),
    dict(order="shuffled", shots=0),
    dict(order="membership_first", shots=2),
    dict(order="shuffled", shots=2, distractors=3),
    dict(shots=2, distractors=1),
    dict(shots=2, distractors=5),
    dict(shots=2, definition="paper"),
    dict(shots=2, competing=1),
    dict(shots=2, competing=1, order="shuffled", distractors=1),
    dict(shots=1, competing=2, hops=1),
]


@pytest.mark.parametrize("kwargs", SETTINGS, ids=lambda k: "-".join(f"{a}={b}" for a, b in k.items()) or "default")
@pytest.mark.parametrize("style", ["every", "paper"])
@pytest.mark.parametrize("n", [2, pytest.param(6, marks=pytest.mark.slow)])
def test_no_violation_fictional(tokenizer, style, kwargs, n):
    check(make_examples(n, tokenizer=tokenizer, style=style, seed=1, **kwargs), tokenizer)


@pytest.mark.parametrize(
    "kwargs",
    [
        dict(),
        dict(shots=0, order="shuffled"),
        dict(hops=3, shots=2),
        dict(shots=2, distractors=2),
        dict(shots=2, definition="paper"),
    ],
)
@pytest.mark.parametrize("style", ["every", "paper"])
def test_no_violation_false_ontology(smollm2, style, kwargs):
    examples = make_examples(8, tokenizer=smollm2, style=style, ontology="false", seed=1, **kwargs)
    check(examples, smollm2)
    for example in examples:
        for text in [example.prompt, *(s.corrupted_text for s in example.steps)]:
            assert_false(split(examples, text)[0])
    for shot in examples.few_shot.replace("### Input:\n", "").splitlines():
        if "True or false" in shot:
            assert_false(shot.split(" True or false")[0])


@pytest.mark.parametrize(
    "kwargs", [{}, dict(order="shuffled", competing=1), dict(hops=3, distractors=2), dict(shots=0)], ids=str
)
@pytest.mark.parametrize("style", ["each", "all"])
def test_no_violation_in_other_wordings(smollm2, style, kwargs):
    for definition in ("exact", "paper"):
        options = {"shots": 2, "definition": definition} | kwargs
        check(make_examples(3, tokenizer=smollm2, style=style, seed=1, **options), smollm2)
    check(make_examples(8, tokenizer=smollm2, style=style, ontology="false", seed=1, shots=1), smollm2)


@pytest.mark.parametrize("hops", [1, 2, 3])
def test_a_competing_chain_ends_in_the_wrong_answer(tiny_cot, hops):
    """Derived from the text alone: the other entity reaches, in as many rules, the property that a false query asks for."""
    asked_of_other = 0
    for example in make_examples(20, tokenizer=tiny_cot, hops=hops, shots=1, competing=1):
        sentences = [
            s.replace("Every ", "").replace(" a ", " ").split(" is ") for s in example.question.rstrip(".").split(". ")
        ]
        (other,) = [a for a, _ in sentences if a in KIND and KIND[a] == "entity" and a != example.words["E"]]
        asked = example.query.split()[-1].rstrip(".")
        steps, reached = prove(example.question, f"True or false: {other} is {asked}.", NOUNS)
        assert len(steps) == len(example.steps) and reached != example.label
        assert not set(steps) & set(prove(example.question, example.query, NOUNS)[0])
        asked_of_other += reached
        places = [i for i, (a, b) in enumerate(sentences) if {a, b} & set(steps)]
        assert len(places) == hops + 1 and len(sentences) == 2 * (hops + 1)
    assert asked_of_other == 10


def assert_false(question: str) -> None:
    """No sentence about two kinds is true: checked against the taxonomy written out once more."""
    parents = dict(words.TRUE_PARENT)
    for sentence in question.rstrip(".").split(". "):
        found = [singular(w) for w in sentence.split() if singular(w) in parents or singular(w) == "animal"]
        if len(found) == 2:
            up = parents.get(found[0])
            while up is not None:
                assert up != found[1], sentence
                up = parents.get(up)


@pytest.mark.parametrize("style", ["every", "paper"])
@pytest.mark.parametrize("n", [50, pytest.param(150, marks=pytest.mark.slow)])
def test_no_violation_in_hundreds(tiny_cot, smollm2, style, n):
    for tokenizer in (tiny_cot, smollm2):
        check(make_examples(n, tokenizer=tokenizer, style=style, seed=7, shots=1), tokenizer)


@settings(max_examples=15, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(
    seed=st.integers(0, 2**40),
    hops=st.integers(1, 4),
    shots=st.integers(0, 5),
    distractors=st.integers(0, 4),
    competing=st.integers(0, 1),
    style=st.sampled_from(["every", "paper"]),
    order=st.sampled_from(["forward", "backward", "membership_first", "shuffled"]),
    definition=st.sampled_from(["exact", "paper"]),
    bos=st.booleans(),
)
def test_no_violation_anywhere(tiny_cot, seed, hops, shots, distractors, competing, style, order, definition, bos):
    examples = make_examples(
        4,
        tokenizer=tiny_cot,
        seed=seed,
        hops=hops,
        shots=shots,
        distractors=distractors,
        competing=competing,
        style=style,
        order=order,
        definition=definition,
        bos=bos,
    )
    check(examples, tiny_cot)


def test_vocabularies():
    assert len(words.ENTITIES) == 9 and len(words.FICTIONAL) == 17 and len(words.PROPERTIES) == 45
    assert len(words.PROPERTY_FAMILIES) == 13 and len(words.FALSE) == 19
    everything = [*NOUNS, *(w.singular for w in (*words.ENTITIES, *words.PROPERTIES))]
    assert len(everything) == len(set(everything))
    assert len(words.MADE_UP) > 400
    plurals = {w.singular: w.plural for w in words.FALSE}
    assert plurals["sheep"] == "sheep" and plurals["butterfly"] == "butterflies" and plurals["moth"] == "moths"
    assert words.Word("concept", "impus").article == "an" and words.Word("concept", "wumpus").article == "a"
    assert words.truly_is("cat", "animal") and words.truly_is("moth", "arthropod") and not words.truly_is("cat", "dog")


def test_words_of_an_item_begin_with_different_tokens():
    """Also the word that stands in: the first token, here a letter, tells it from all of its kind, not just the answer."""
    for example in make_examples(60, tokenizer=merging(), distractors=1, shots=0):
        for kind in ("entity", "concept", "property"):
            old = [w for w in example.words.values() if KIND[w] == kind]
            for new in {s.replaced[1] for s in example.steps if KIND[s.replaced[1]] == kind}:
                assert len({w[0] for w in [*old, new]}) == len(old) + 1


@pytest.mark.parametrize("name", ["sentencepiece_like", "byte_bpe"])
def test_no_violation_false_ontology_of_uneven_words(name, request):
    """Where no class is large enough items draw from all words: of unequal lengths, but one article."""
    tokenizer = request.getfixturevalue(name)
    examples = make_examples(40, tokenizer=tokenizer, ontology="false", shots=0)
    check(examples, tokenizer)
    assert len({len(e.full_ids) for e in examples}) > 1


def test_layout_of_style_every(tiny_cot):
    example = make_examples(1, tokenizer=tiny_cot, shots=1)[0]
    w = example.words
    e, a, b, p = w["E"], w["C1"], w["C2"], w["p"]
    asked = p if example.label else w["q"]
    shot, item = example.full_text.split("\n")
    assert item == (
        f"{e} is a {a}. Every {a} is a {b}. Every {b} is {p}. True or false: {e} is {asked}. Answer: {e} is a {a}. "
        f"Since every {a} is a {b}, {e} is a {b}. Since every {b} is {p}, {e} is {p}. {example.label}"
    )
    assert shot.count(".") == item.count(".") and shot.split()[-1] in ("True", "False")
    assert [s.answer_word for s in example.steps] == [e, a, a, b, e, b, b, p, e, p]


def test_layout_of_style_paper(tiny_cot):
    seen = set()
    for example in make_examples(40, tokenizer=tiny_cot, shots=0, style="paper"):
        w = example.words
        e, a, b, p = w["E"], w["C1"], w["C2"], w["p"]
        property_rule, link, member = example.question.rstrip(".").split(". ")
        assert property_rule in (f"{b.capitalize()} is {p}", f"{b.capitalize()}es are {p}")
        assert link in (f"{a.capitalize()} is {b}", f"{a.capitalize()}es are {b}es")
        assert member == f"{e} is {a}"
        assert example.prompt == (f"### Input:\n{example.question} {example.query} Let us think step by step.\n### Response:\n")
        assert example.chain == f"{member}. {link}. {e} is {b}. {property_rule}. {e} is {p}. {example.label}"
        seen.add((" are " in property_rule, " are " in link))
    assert len(seen) == 4


@pytest.mark.parametrize("style", ["every", "paper"])
def test_order_of_premises(tiny_cot, style):
    def told(order):
        out = []
        for example in make_examples(20, tokenizer=tiny_cot, style=style, shots=0, hops=3, order=order):
            w = example.words
            ranks = {(w["C1"], w["C2"]): 1, (w["C2"], w["C3"]): 2, (w["C3"], w["p"]): 3, (w["E"], w["C1"]): 0}
            sentences = [s.split() for s in example.question.rstrip(".").split(". ")]
            pairs = [
                [singular(x) if singular(x) in NOUNS else x for x in s if x not in ("Every", "is", "are", "a")]
                for s in sentences
            ]
            out.append(tuple(ranks[tuple(pair)] for pair in pairs))
        return out

    assert set(told("forward")) == {(1, 2, 3, 0)}
    assert set(told("backward")) == {(3, 2, 1, 0)}
    assert set(told("membership_first")) == {(0, 1, 2, 3)}
    assert len(set(told("shuffled"))) > 10
    assert told(None) == told("membership_first" if style == "every" else "backward")


def test_what_the_authors_replace(tiny_cot):
    """definition="paper": the table of the specification, for a false label (0 query, 1 M, 2 S, 3 S, 4-5 solution, ...)."""
    example = next(e for e in make_examples(2, tokenizer=tiny_cot, style="paper", shots=0, definition="paper") if not e.label)
    w = example.words

    def changed(step):
        body = (
            step.corrupted_text.removeprefix("### Input:\n")
            .replace(" Let us think step by step.\n### Response:\n", " | ")
            .split()
        )
        old = step.text.removeprefix("### Input:\n").replace(" Let us think step by step.\n### Response:\n", " | ").split()
        (index,) = [i for i, (x, y) in enumerate(zip(old, body, strict=True)) if x != y]
        return index, old.index("|")

    # tokens of the question: 0-2 P, 3-5 S, 6-8 M, 9-14 query ("True or false: E is q."), 15 bar, 16 on the solution
    expected = [12, 8, 3, 5, 16, 21, 0, 2, 22, 27]
    for step, index in zip(example.steps, expected, strict=True):
        assert changed(step) == (index, 15), step
        assert step.replaced[0] == w[["E", "C1", "C1", "C2", "E", "C2", "C2", "p", "E", "p"][step.index]]
    # a true label: the query holds the property, and is scanned first
    example = next(e for e in make_examples(2, tokenizer=tiny_cot, style="paper", shots=0, definition="paper") if e.label)
    assert changed(example.steps[7]) == (14, 15)


def test_definitions_agree_on_everything_but_the_corrupted_prompt(tiny_cot):
    exact = make_examples(10, tokenizer=tiny_cot)
    paper = make_examples(10, tokenizer=tiny_cot, definition="paper")
    for a, b in zip(exact, paper, strict=True):
        assert a.full_text == b.full_text
        for s, t in zip(a.steps, b.steps, strict=True):
            assert (s.answer, s.wrong_tokens, s.replaced) == (t.answer, t.wrong_tokens, t.replaced)
            assert set(t.differs) <= set(s.differs)
    assert any(s.differs != t.differs for a, b in zip(exact, paper) for s, t in zip(a.steps, b.steps))


def test_one_length_in_style_every(tiny_cot, smollm2):
    for tokenizer in (tiny_cot, smollm2):
        examples = make_examples(30, tokenizer=tokenizer)
        clean, corrupted = examples.stacked(5)
        assert clean.shape == corrupted.shape == (30, len(examples[0].steps[5].clean))
        assert torch.equal(clean[3], examples[3].steps[5].clean)
        assert torch.equal(corrupted[3], examples[3].steps[5].corrupted)
    uneven = make_examples(30, tokenizer=smollm2, style="paper", ontology="false", shots=0)
    with pytest.raises(ValueError, match="one length"):
        uneven.stacked(0)
    with pytest.raises(ValueError, match=r"step must be in 0 \.\. 9, got 10"):
        examples.stacked(10)


def fingerprint(examples: Examples) -> list:
    return [(e.full_text, e.full_ids.tolist(), [(s.corrupted.tolist(), s.wrong, s.differs) for s in e.steps]) for e in examples]


def test_deterministic_and_stable_in_n(tiny_cot):
    first = make_examples(12, tokenizer=tiny_cot, seed=3, order="shuffled", distractors=2, shots=3)
    random.seed(0)
    torch.manual_seed(5)
    again = make_examples(12, tokenizer=tiny_cot, seed=3, order="shuffled", distractors=2, shots=3)
    fewer = make_examples(5, tokenizer=tiny_cot, seed=3, order="shuffled", distractors=2, shots=3)
    other = make_examples(12, tokenizer=tiny_cot, seed=4, order="shuffled", distractors=2, shots=3)
    assert fingerprint(first) == fingerprint(again)
    assert fingerprint(first)[:5] == fingerprint(fewer)
    assert first.few_shot != other.few_shot and fingerprint(first) != fingerprint(other)


@pytest.mark.slow  # tests/test_absent_packages.py compares those of a process that it starts anyway
def test_independent_of_the_hash_seed(tiny_cot):
    code = (
        "import sys; from transformers import AutoTokenizer; from pycotmech.cot import make_examples;"
        "e = make_examples(3, tokenizer=AutoTokenizer.from_pretrained(sys.argv[1]), shots=2, distractors=2);"
        "print([x.full_text for x in e], [s.corrupted_text for x in e for s in x.steps])"
    )
    run = [sys.executable, "-c", code, tiny_cot.name_or_path]
    env = {**os.environ, "PYTHONHASHSEED": "1"}
    there = subprocess.run(run, env=env, capture_output=True, text=True, check=True).stdout
    here = make_examples(3, tokenizer=tiny_cot, shots=2, distractors=2)
    texts = ([x.full_text for x in here], [s.corrupted_text for x in here for s in x.steps])
    assert there == f"{texts[0]} {texts[1]}\n"


def test_bos(tiny_cot, smollm2, sentencepiece_like, byte_bpe):
    asked = [
        (tiny_cot, None, False),
        (tiny_cot, True, True),
        (smollm2, None, False),
        (sentencepiece_like, None, True),
        (sentencepiece_like, False, False),
    ]
    for tokenizer, bos, want in asked:
        examples = make_examples(2, tokenizer=tokenizer, bos=bos, shots=2)
        assert examples.bos == want
        for example in examples:
            for step in example.steps:
                assert (step.clean[0] == tokenizer.bos_token_id) == want == (step.corrupted[0] == tokenizer.bos_token_id)
                assert step.segments["few_shot"].start == want
    with_bos = make_examples(2, tokenizer=tiny_cot, bos=True)
    without = make_examples(2, tokenizer=tiny_cot, bos=False)
    assert with_bos[0].full_ids[1:].tolist() == without[0].full_ids.tolist() and with_bos[0].full_ids[0] == 1
    assert with_bos.shared_ids.tolist() == [1, *without.shared_ids.tolist()]
    with pytest.raises(ValueError, match="bos=True, but the tokenizer has no bos_token"):
        make_examples(1, tokenizer=byte_bpe, bos=True)


def test_shots_are_balanced_and_share_no_words_while_there_are_enough(smollm2):
    examples = make_examples(1, tokenizer=smollm2, shots=8)
    shots = examples.few_shot.splitlines()
    assert len(shots) == 8
    assert sum(shot.endswith("True") for shot in shots) == 4
    concepts = [written_words(shot) & NOUNS for shot in shots]
    assert sum(map(len, concepts)) == len(set.union(*concepts)) == 16
    for shot in shots:
        question, rest = shot.split(" True or false: ")
        query, solution = ("True or false: " + rest).split(" Answer: ")
        proof, label = prove(question, query, NOUNS)
        told = [w for w in solution.replace(".", " ").replace(",", " ").split() if w in KIND]
        assert told == proof and solution.endswith(str(label))


def test_sequence(tiny_cot):
    examples = make_examples(6, tokenizer=tiny_cot, shots=1)
    assert len(examples) == 6 and isinstance(examples[0], Example) and isinstance(examples[1:3], Examples)
    assert [e.index for e in examples[1:3]] == [1, 2] and examples[1:3].few_shot == examples.few_shot
    assert examples[-1] is examples[5] and [e.index for e in examples] == list(range(6))
    assert examples.kinds == ("decision", "copying") + ("decision", "copying", "decision", "induction") * 2
    text = examples[0].describe()
    assert examples[0].question in text and text.count("\n") == 14 and "n=6" in repr(examples)
    assert examples[0].question in repr(examples[0]) and "induction" in repr(examples[0].steps[5])
    table = examples.to_dataframe()
    assert len(table) == 60 and table["kind"].tolist()[:10] == list(examples.kinds)


def test_numbers_of_numpy_are_numbers(tiny_cot):
    found = make_examples(np.int64(2), shots=np.int32(1), seed=np.int64(3), tokenizer=tiny_cot)
    want = make_examples(2, shots=1, seed=3, tokenizer=tiny_cot)
    assert [e.steps[-1].text for e in found] == [e.steps[-1].text for e in want]


def test_errors_name_the_argument(tiny_cot):
    def bad(error, match, **kwargs):
        with pytest.raises(error, match=match):
            make_examples(**({"n": 1, "tokenizer": tiny_cot} | kwargs))

    bad(ValueError, "n: got 0; expected 1 or more", n=0)
    bad(TypeError, "n: got 1.0 of type float; expected an integer", n=1.0)
    bad(TypeError, "shots: got True of type bool", shots=True)
    bad(ValueError, "hops: got 0; expected 1 or more", hops=0)
    bad(ValueError, "distractors: got -1; expected 0 or more", distractors=-1)
    bad(ValueError, "ontology: got 'true'; expected one of fictional, false", ontology="true")
    bad(ValueError, "competing: got -1; expected 0 or more", competing=-1)
    bad(ValueError, "style: got 'x'; expected one of every, paper, each, all", style="x")
    bad(ValueError, "order: got 'fwd'; expected one of forward, backward, membership_first, shuffled", order="fwd")
    bad(ValueError, "definition: got 'x'; expected one of", definition="x")
    bad(TypeError, "seed: got '0' of type str; expected an integer", seed="0")
    bad(TypeError, "bos must be None, True or False, got 'yes'", bos="yes")
    bad(TypeError, "tokenizer must be a Hugging Face tokenizer, got NoneType", tokenizer=None)


def test_too_few_words_says_what_would_do(tiny_cot, smollm2):
    with pytest.raises(TooFewWords, match=r"19 words of kind 'concept'.*these work: style='every', ontology='fictional'"):
        make_examples(1, tokenizer=tiny_cot, ontology="false")
    with pytest.raises(TooFewWords, match="kind 'entity'"):
        make_examples(1, tokenizer=tiny_cot, distractors=60)
    with pytest.raises(TooFewWords, match="used before: ask for fewer"):
        make_examples(10_000, tokenizer=only(3, entities=3), hops=1, shots=0)


_EVERY = "Every every is a an Since True False or false Answer . , :"


def only(nouns, entities=9, fixed=_EVERY):
    """A word-level tokenizer that knows a few words."""
    some = [w.singular for w in words.FICTIONAL if w.article == "a"][:nouns]
    names = [w.singular for w in words.ENTITIES][:entities]
    known = ["<unk>", *fixed.split(), *names, *some, *(w.singular for w in words.PROPERTIES[:3])]
    tokenizer = Tokenizer(models.WordLevel({w: i for i, w in enumerate(dict.fromkeys(known))}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Punctuation()])
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="<unk>")


def test_unknown_words_are_never_used():
    tokenizer = only(5)
    examples = make_examples(20, tokenizer=tokenizer, shots=0)
    for example in examples:
        assert 0 not in example.full_ids
    with pytest.raises(TooFewWords, match="does not know 'Since', which style 'every' needs"):
        make_examples(1, tokenizer=only(5, fixed=_EVERY.replace("Since ", "")), shots=0)


def test_tokenizer_that_merges_the_line_ends():
    """A piece for two newlines: the few-shot block alone ends in another token than inside the text."""
    examples = make_examples(5, tokenizer=merging(), style="paper", shots=2)
    for example in examples:
        assert torch.equal(example.full_ids[: len(examples.shared_ids)], examples.shared_ids)
    check(examples, merging())


def test_tokenizer_that_merges_a_word_with_the_text_before_it():
    """A piece for "Response:\n" and the name behind it: no prompt can be cut there, so such names are not used."""
    tokenizer = merging("\nMax", "\nAlex", " is small")
    examples = make_examples(30, tokenizer=tokenizer, style="paper", shots=2)
    check(examples, tokenizer)
    assert not any("small" in e.words.values() for e in examples)


def merging(*pieces):
    """Every character a token with the space before it, but for two newlines and the given pieces, which are one."""
    vocab = {w: i for i, w in enumerate(["<unk>", "\n\n", *pieces])}
    for code in range(32, 127):
        vocab.setdefault(chr(code), len(vocab))
    for letter in "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ":
        vocab.setdefault(" " + letter, len(vocab))
    vocab.setdefault("\n", len(vocab))
    scored = [(piece, -1.0 if len(piece) > 1 else -5.0) for piece in vocab]
    tokenizer = Tokenizer(models.Unigram(scored, unk_id=0))
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="<unk>")


def test_spans_are_those_of_the_words(smollm2):
    for example in make_examples(10, tokenizer=smollm2, style="paper", shots=1):
        for step in example.steps:
            assert smollm2.decode(step.answer_tokens).strip() == step.answer_word
            assert smollm2.decode(step.wrong_tokens).strip() == step.wrong_word
            for span in step.occurrences:
                assert singular(smollm2.decode(step.clean[span]).strip()).lower() == step.replaced[0].lower()
                assert singular(smollm2.decode(step.corrupted[span]).strip()).lower() == step.replaced[1].lower()
            spans = sorted((s.start, s.stop) for s in step.occurrences)
            assert all(a[1] <= b[0] for a, b in pairwise(spans))
        assert smollm2.decode(example.full_ids[example.label_span]).strip() == str(example.label)
        assert smollm2.decode(example.full_ids[example.segments["generated"]]) == example.chain


@pytest.mark.parametrize("style", ["every", "paper"])
def test_spaces_in_or_outside_the_characters_of_a_token(byte_bpe, trimmed_bpe, style):
    """Tokenizers differ in whether a token's characters hold its leading space; the examples must not."""
    text = "It is a lempus."
    assert (
        byte_bpe(text, return_offsets_mapping=True)["offset_mapping"]
        != (trimmed_bpe(text, return_offsets_mapping=True)["offset_mapping"])
    )
    with_space = make_examples(5, tokenizer=byte_bpe, style=style, shots=1)
    trimmed = make_examples(5, tokenizer=trimmed_bpe, style=style, shots=1)
    check(trimmed, trimmed_bpe)
    assert fingerprint(with_space) == fingerprint(trimmed)
