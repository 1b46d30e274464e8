"""Two steps in one text, of different kinds by name, that use the same planted heads or others.

"... A B ... C D ... A" -> B, and after that "C" -> D: induction twice. A and B are words of one half of the vocabulary, C and D
of the other.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from pycotmech.cot.task.examples import Example, Examples, Step
from tests.reference.planted.circuit import WRITE, Circuit
from tests.reference.planted.models import Head, Planted
from tests.reference.planted.words import BOS, CONTENT, WORDS

KINDS = ("decision", "copying")
HALVES = (CONTENT[: len(CONTENT) // 2], CONTENT[len(CONTENT) // 2 :])
N_PAIRS = 5
"""Pairs of words in a prompt, of each half."""


class TwoSteps(Examples):
    """Examples whose solution has two steps."""

    @property
    def n_steps(self) -> int:
        return 2

    @property
    def kinds(self):
        return KINDS

    def only(self, items: Sequence[Example]) -> TwoSteps:
        return two_steps(items, self.seed)


def two_steps(items: Sequence[Example], seed: int) -> TwoSteps:
    return TwoSteps(
        items=tuple(items), hops=0, shots=0, ontology="planted", style="planted", order="planted", distractors=0, seed=seed,
        definition="exact", bos=True, few_shot="", shared_ids=items[0].full_ids[:1],
    )  # fmt: skip


def two_circuits(*, apart: bool, n_layers: int = 4, n_heads: int = 4, seed: int = 0) -> Planted:
    """apart: each half of the words has a previous-token head and a writer of its own, in the same layers; otherwise one pair
    of heads serves both halves."""
    c = Circuit(n_layers=n_layers, n_heads=n_heads, seed=seed)
    heads: dict[str, Head] = {}
    for i, words in enumerate(HALVES if apart else (CONTENT,)):
        previous, writer = heads[f"previous {i}"], heads[f"writer {i}"] = (0, 1 + 2 * i), (2, 2 - 2 * i)
        c.offset(previous, 1)
        c.copy(previous, "token", "previous", words=words)
        c.match(writer, "token", "previous")
        c.rest(writer)
        c.copy(writer, "token", "answer", words=words, weight=WRITE)
    model = c.finish(torch.float32, f"planted-two-steps{'-apart' if apart else ''}")
    return Planted("two_circuits", model, heads, make=lambda g: None)  # type: ignore[arg-type, return-value]


def two_step_examples(n: int, *, seed: int = 0) -> TwoSteps:
    """n prompts with two steps each. In a step's counterfactual the first words of its pair and of another pair of its half
    change places, so that the other's second word follows."""
    g = torch.Generator().manual_seed(seed)
    return two_steps([_example(i, g) for i in range(n)], seed)


def _example(index: int, g: torch.Generator) -> Example:
    def shuffled(items):
        return [items[i] for i in torch.randperm(len(items), generator=g).tolist()]

    pairs = []
    for words in HALVES:
        drawn = shuffled(words)[: 2 * N_PAIRS]
        pairs += list(zip(drawn[::2], drawn[1::2], strict=True))
    prompt = [BOS, *(w for pair in shuffled(pairs) for w in pair)]
    asked = [pairs[0], pairs[N_PAIRS]]  # one of each half
    others = [pairs[1], pairs[N_PAIRS + 1]]
    full = [*prompt, *(w for pair in asked for w in pair)]
    parts = {"few_shot": slice(1, 1), "question": slice(1, len(prompt))}
    steps = []
    for s, (pair, other) in enumerate(zip(asked, others, strict=True)):
        end = len(prompt) + 2 * s + 1
        clean = torch.tensor(full[:end])
        corrupted, places = clean.clone(), [prompt.index(pair[0]), prompt.index(other[0])]
        corrupted[places] = clean[places[::-1]]
        answer, wrong, replaced = WORDS[pair[1]], WORDS[other[1]], (WORDS[pair[0]], WORDS[other[0]])
        step = Step(
            index=s, kind=KINDS[s], prefix_text=_text(full[len(prompt) : end]), text=_text(full[1:end]),
            corrupted_text=_text(corrupted.tolist()[1:]), clean=clean, corrupted=corrupted, answer=pair[1], wrong=other[1],
            answer_tokens=(pair[1],), wrong_tokens=(other[1],), answer_word=answer, wrong_word=wrong, replaced=replaced,
            differs=tuple(sorted(places)), occurrences=(slice(places[0] + 1, places[0] + 2),),
            segments={**parts, "generated": slice(len(prompt), end)}, answer_span=slice(end, end + 1), standalone=True,
        )  # fmt: skip
        steps.append(step)
    return Example(
        index=index, question=_text(prompt[1:]), query="", chain=_text(full[len(prompt) :]), label=True,
        words={"E": WORDS[asked[0][0]]}, steps=tuple(steps), prompt=_text(prompt[1:]), full_text=_text(full[1:]),
        full_ids=torch.tensor(full), label_span=slice(len(full) - 1, len(full)),
        segments={**parts, "generated": slice(len(prompt), len(full))},
    )  # fmt: skip


def _text(tokens: Sequence[int]) -> str:
    return " ".join(WORDS[t] for t in tokens)
