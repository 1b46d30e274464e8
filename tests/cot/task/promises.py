"""What every example promises, checked by nothing but the texts, the tokenizer and a prover."""

import re

import torch

from pycotmech.cot import Examples
from pycotmech.cot.task import vocabulary as words
from pycotmech.cot.task.examples import step_kind
from tests.cot.task.prover import prove, singular

NOUNS = {word.singular for word in (*words.FICTIONAL, *words.MADE_UP, *words.FALSE)}
KIND = {word.singular: word.kind for word in (*words.ENTITIES, *words.PROPERTIES)} | dict.fromkeys(NOUNS, "concept")


def item_text(examples: Examples, text: str) -> str:
    assert text.startswith(examples.few_shot)
    return text[len(examples.few_shot) :]


def split(examples: Examples, text: str) -> tuple[str, str]:
    """Question and query of a prompt, clean or corrupted, from its text."""
    body = item_text(examples, text).removeprefix("### Input:\n").removeprefix("Facts: ")
    question, rest = body.split(" True or false: ")
    query = "True or false: " + re.split(" Answer:| Reasoning:| Solution:| Let us think", rest)[0]
    return question, query


def written_words(text: str) -> set[str]:
    """The vocabulary words in a text, singular."""
    found = {singular(w) if singular(w) in NOUNS else w for w in text.replace(".", " ").replace(",", " ").split()}
    return found & set(KIND)


def encoded(examples: Examples, tokenizer, text: str) -> list[int]:
    """The ids of a text: with a BOS if the examples have one, unless a chat template wrote it."""
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    bos = [tokenizer.bos_token_id] if examples.bos else []
    return ids if bos and text.startswith(tokenizer.bos_token) else bos + ids


def check(examples: Examples, tokenizer) -> None:
    """Everything an example promises."""
    hops = examples.hops
    bos = [tokenizer.bos_token_id] if examples.bos else []
    shot_words = written_words(examples.few_shot)
    shared = examples.shared_ids.tolist()
    assert len({(e.question, e.query) for e in examples}) == len(examples)
    assert sum(e.label for e in examples) in (len(examples) // 2, (len(examples) + 1) // 2)
    for example in examples:
        full = example.full_ids.tolist()
        assert full[: len(bos)] == bos and full == encoded(examples, tokenizer, example.full_text)
        assert example.full_text.startswith(example.prompt) and example.full_text.endswith(example.chain)
        assert not example.prompt.endswith(" ")
        assert split(examples, example.prompt) == (example.question, example.query)
        assert example.question.count(".") == (hops + 1) * (1 + examples.competing) + examples.distractors
        proof, label = prove(example.question, example.query, NOUNS)
        assert label == example.label == (example.chain.split()[-1] == "True")
        assert shot_words.isdisjoint(written_words(example.question + " " + example.query))
        assert [s.kind for s in example.steps] == [step_kind(i) for i in range(4 * hops + 2)]
        assert len(proof) == len(example.steps) == examples.n_steps
        assert examples.style == "paper" or len(set(re.findall(r"is (an?) ", example.question))) <= 1
        assert list(example.segments) == ["few_shot", "question", "generated"]
        for i, step in enumerate(example.steps):
            assert step.index == i
            check_step(examples, example, step, tokenizer, proof[i], full, shared)


def check_step(examples, example, step, tokenizer, proved, full, shared):
    clean, corrupted = step.clean.tolist(), step.corrupted.tolist()
    bos = full[:1] if examples.bos else []
    # the cut
    assert clean == full[: step.answer_span.start]
    assert step.standalone
    assert clean == encoded(examples, tokenizer, step.text)
    assert corrupted == encoded(examples, tokenizer, step.corrupted_text)
    assert not step.text.endswith(" ") and not step.prefix_text.endswith(" ")
    assert step.text == (example.prompt if step.index == 0 else step.text)
    assert step.text.endswith(step.prefix_text)
    joint = "" if step.text.endswith("\n") else " "
    assert example.full_text.startswith(step.text + joint + step.answer_word)
    assert example.chain.startswith(step.prefix_text)
    # the answer
    assert list(step.answer_tokens) == full[step.answer_span] and step.answer == step.answer_tokens[0]
    assert singular(step.answer_word) == proved.lower() or step.answer_word == proved
    assert step.answer != step.wrong == step.wrong_tokens[0]
    assert len(step.answer_tokens) == len(step.wrong_tokens)
    # the counterfactual
    assert step.clean.dtype == step.corrupted.dtype == torch.long
    assert len(clean) == len(corrupted)
    assert list(step.differs) == [p for p, (a, b) in enumerate(zip(clean, corrupted, strict=True)) if a != b]
    assert step.differs
    at_word = {p for o in step.occurrences for p in range(o.start, o.stop)}
    assert set(step.differs) <= at_word
    assert clean[: len(shared)] == corrupted[: len(shared)] == shared
    old, new = step.replaced
    assert KIND[old] == KIND[new] and old != new
    assert step.answer_word[0].isupper() == step.wrong_word[0].isupper()
    assert new not in written_words(example.full_text)
    for text in (step.text, step.corrupted_text):
        assert all((b[0] in "aeiou") == (a == "an") for a, b in re.findall(r"\b(an?) (\w+)", text))
    question, query = split(examples, step.corrupted_text)
    item = item_text(examples, step.corrupted_text)
    if examples.definition == "exact":
        assert old not in written_words(item)
        other, label = prove(question, query, NOUNS)
        assert label == example.label
        assert other[step.index].lower() == singular(step.wrong_word) or other[step.index] == step.wrong_word
        assert other[step.index] != proved
        # what was generated before the step is what follows from the corrupted premises, too
        prefix = [
            w for w in item.split(query)[1].replace(".", " ").replace(",", " ").split() if w in KIND or singular(w) in NOUNS
        ]
        assert [singular(w) if singular(w) in NOUNS else w for w in prefix] == other[: step.index]
    else:
        before, after = item_text(examples, step.text).split(), item.split()
        changed = [(a.strip(".,"), b.strip(".,")) for a, b in zip(before, after, strict=True) if a != b]
        assert len(changed) == 1
        assert changed[0][0][0].isupper() == changed[0][1][0].isupper()
    # the segments
    few, question_, generated = (step.segments[name] for name in ("few_shot", "question", "generated"))
    assert (few.start, few.stop) == (len(bos), len(shared))
    assert few.stop == question_.start and question_.stop == generated.start and generated.stop == len(clean)
    assert question_.stop == len(example.steps[0].clean)
    for span in step.occurrences:
        assert span.start >= few.stop and span.stop <= len(clean)
