"""Planted prompts as the analyses take them: examples of one step, the word that the planted heads write."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import torch

from pycotmech.cot.task.examples import Example, Examples, Step
from tests.reference.planted.models import Planted, Prompt
from tests.reference.planted.words import WORDS


class OneStep(Examples):
    """Examples whose solution is one step, of kind "induction". (Those of the task have 4 * hops + 2.)"""

    @property
    def n_steps(self) -> int:
        return 1

    @property
    def kinds(self):
        return ("induction",)

    def only(self, items: Sequence[Example]) -> OneStep:
        return one_step(items, self.seed)


def one_step(items: Sequence[Example], seed: int) -> OneStep:
    return OneStep(
        items=tuple(items), hops=0, shots=0, ontology="planted", style="planted", order="planted", distractors=0, seed=seed,
        definition="exact", bos=True, few_shot="", shared_ids=items[0].full_ids[:1],
    )  # fmt: skip


def examples(planted: Planted, n: int, *, seed: int = 0, words: int = 1, others: bool = False) -> OneStep:
    """n prompts of a planted model (`Planted.prompts`), each an example with one step.

    The step's counterfactual is the prompt's. What stands from "so" on, where it does, is generated text; all else in front
    of the answer is the question; there are no shots, only the BOS is shared. words: of the solution, the answer first; the
    others are what followed it in the prompt, as an induction head goes on.
    others: whether `Example.words` holds the question's words, so that analyses know what else stands in the prompt.
    """
    return one_step([_example(i, p, words, others) for i, p in enumerate(planted.prompts(n, seed))], seed)


def _example(index: int, prompt: Prompt, words: int, others: bool) -> Example:
    tokens, T = prompt.tokens.tolist(), len(prompt.tokens)
    follows = {a: b for a, b in reversed(list(itertools.pairwise(tokens)))}  # after a word's first place
    solution = [prompt.answer]
    while len(solution) < words:
        solution.append(follows[solution[-1]])
    full = torch.tensor(tokens + solution)
    begin = prompt.positions.get("so", T)
    parts = {"few_shot": slice(1, 1), "question": slice(1, begin)}
    places = tuple(slice(p, p + 1) for p in range(T) if tokens[p] == prompt.answer)
    answer, wrong = WORDS[prompt.answer], WORDS[prompt.wrong]
    roles = {"E": WORDS[tokens[-1]]}
    if others:
        roles |= {f"w{i}": WORDS[t] for i, t in enumerate(dict.fromkeys(tokens[1:begin]))}
    step = Step(
        index=0, kind="induction", prefix_text=_text(tokens[begin:]), text=_text(tokens[1:]),
        corrupted_text=_text(prompt.corrupted.tolist()[1:]), clean=prompt.tokens, corrupted=prompt.corrupted,
        answer=prompt.answer, wrong=prompt.wrong, answer_tokens=(prompt.answer,), wrong_tokens=(prompt.wrong,),
        answer_word=answer, wrong_word=wrong, replaced=(answer, wrong), differs=tuple(prompt.differs), occurrences=places,
        segments={**parts, "generated": slice(begin, T)}, answer_span=slice(T, T + 1), standalone=True,
    )  # fmt: skip
    return Example(
        index=index, question=_text(tokens[1:begin]), query="", chain=_text(full.tolist()[begin:]), label=True,
        words=roles, steps=(step,), prompt=_text(tokens[1:begin]), full_text=_text(full.tolist()[1:]),
        full_ids=full, label_span=slice(len(full) - 1, len(full)), segments={**parts, "generated": slice(begin, len(full))},
    )  # fmt: skip


def _text(tokens: Sequence[int]) -> str:
    return " ".join(WORDS[t] for t in tokens)
