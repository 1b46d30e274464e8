"""A policy without reasoning, which copies the question's premises one after another in the order in which they stand.

Decisions that it gets right need no choice between premises. A head that serves them may serve copying alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from pycotmech.cot.task.examples import Example
from pycotmech.cot.task.wording import QUANTIFIERS


class CopiedInOrder(NamedTuple):
    """right [n, decisions]: whether the policy names the gold word, for each example and each decision that chooses a premise.

    steps [decisions]: the numbers of these steps, 0, 2, 6, ...; the decisions between them repeat the entity of the query, so
        that nothing is chosen there.
    chance: the mean share of these decisions that a premise drawn at random gets right.
    """

    right: NDArray[np.bool_]
    steps: tuple[int, ...]
    chance: float

    @property
    def share(self) -> float:
        return float(self.right.mean())


def copied_in_order(examples: Sequence[Example]) -> CopiedInOrder:
    """Returns what the policy gets right at the decisions that choose a premise, with the gold text before each.

    It first names the subject of the question's first premise, and then that of the premise after the one that the solution
    stated last; after the question's last premise it has no answer. It is derived from the texts alone, without a forward pass.
    """
    if len(examples) == 0:
        raise ValueError("examples: got none; expected at least one")
    right, chance, steps = [], [], []
    for example in examples:
        premises = [_ends(sentence) for sentence in example.question.rstrip(".").split(". ")]
        steps = [0, *range(2, len(example.steps), 4)]  # of D C, then D C D I for each hop, the decisions before a C
        row, at = [], 0
        for i in steps:
            stated = (example.steps[i].answer_word.casefold(), example.steps[i + 1].answer_word.casefold())
            row.append(at < len(premises) and premises[at][0] == stated[0])
            chance.append(np.mean([subject == stated[0] for subject, _ in premises]))
            at = premises.index(stated) + 1
        right.append(row)
    return CopiedInOrder(np.array(right, dtype=bool), tuple(steps), float(np.mean(chance)))


def _ends(sentence: str) -> tuple[str, str]:
    """Subject and object of a premise, in lower case."""
    words = sentence.split()
    return words[words[0].lower() in QUANTIFIERS.values()].casefold(), words[-1].casefold()
