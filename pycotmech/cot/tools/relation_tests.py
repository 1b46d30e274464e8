"""How much heads attend along a relation, and the tests that select them (docs/protocol.md, E10)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from pycotmech.cot.task.relations import CLASSES, Question
from pycotmech.stats.averages import nanmean
from pycotmech.stats.significance import sign_flip

RELATIONS = CLASSES[:2]


class RelationTests(NamedTuple):
    """What decides which heads are selected. score, auroc [n, relation, L, H]; null [n, verb, relation, L, H]."""

    score: NDArray
    auroc: NDArray
    null: NDArray
    level: float
    least: float

    def __call__(self, at: NDArray, *, flips: int, seed: int) -> tuple[NDArray, NDArray, NDArray]:
        """On the examples with these numbers: the largest p, whether heads look along the relation, and whether they do so
        beyond every verb [relation, L, H]."""
        tested = self._tested(at)
        p = np.stack([self._p(values, flips, seed) for values, _ in tested])
        passes = np.stack([(p < self.level) & (size >= self.least) for p, (_, size) in zip(p, tested)])
        return p.max(0), passes[0], np.asarray(passes.all(0))

    def selected(self, at: NDArray, *, flips: int, seed: int) -> NDArray[np.bool_]:
        """The last of these. Cost: no test where no head is strong enough."""
        strong = np.all([size >= self.least for _, size in self._tested(at)], axis=0)
        return self(at, flips=flips, seed=seed)[2] if strong.any() else strong

    def _tested(self, at: NDArray) -> list[tuple[NDArray, NDArray]]:
        """Values [n, relation, L, H] whose mean is tested, and the size that has to be large: the score, each verb's gain."""
        score = self.score[at]
        gains = [score - self.null[at, v] for v in range(self.null.shape[1])]
        return [(self.auroc[at] - 0.5, nanmean(score)), *((gain, nanmean(gain)) for gain in gains)]

    def _p(self, values: NDArray, flips: int, seed: int) -> NDArray:
        return np.stack([sign_flip(values[:, r], flips=flips, seed=seed) for r in range(len(RELATIONS))])


def relation_scores(
    questions: Sequence[Question], weight: list[NDArray], lift: list[NDArray]
) -> tuple[NDArray, NDArray, NDArray]:
    """score and auroc [questions, relation, L, H], attention [questions, class, L, H]; NaN where a question lacks a class."""
    shape = weight[0].shape[1:]
    auroc = np.full((len(questions), len(RELATIONS), *shape), np.nan)
    mean = np.full((len(questions), len(CLASSES), *shape), np.nan)
    for i, question in enumerate(questions):
        labels = np.array([p.label for p in question.pairs])
        for c in set(labels.tolist()):
            mean[i, c] = weight[i][labels == c].mean(0)
        for r in range(len(RELATIONS)):
            here, other = _compared(question, r)
            if here.any() and other.any():
                a, b = lift[i][here][:, None], lift[i][other][None]
                auroc[i, r] = ((a > b) + 0.5 * (a == b)).mean((0, 1))
    return differences(questions, weight), auroc, mean


def differences(questions: Sequence[Question], weight: Sequence[NDArray]) -> NDArray:
    """The mean over a question's pairs of a relation less that over unrelated ones: [questions, relation, L, H]."""
    out = np.full((len(questions), len(RELATIONS), *weight[0].shape[1:]), np.nan)
    for i, question in enumerate(questions):
        for r in range(len(RELATIONS)):
            here, other = _compared(question, r)
            if here.any() and other.any():
                out[i, r] = weight[i][here].mean(0) - weight[i][other].mean(0)
    return out


def _compared(question: Question, relation: int) -> tuple[NDArray, NDArray]:
    """Which pairs are of a relation, and which are unrelated ones at their distance: bool [pairs] each."""
    labels = np.array([p.label for p in question.pairs])
    matched = np.array([p.matched for p in question.pairs])
    return labels == relation, (labels == 2) & ((matched == relation) | (matched < 0))
