"""What a probe of pairs of words learns: questions in parts to train, hold out and test on, and the fits at all depths."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from pycotmech.cot.task.relations import Question, WordPair
from pycotmech.cot.tools.probes import Projection, balanced, fit_bilinear, fit_linear, fit_mlps
from pycotmech.cot.tools.question_runs import Features
from pycotmech.cot.tools.result import Progress

TEST_SHARE, HELD_SHARE = 0.4, 0.2
"""Shares of the questions that are tested on, and of the others those that are held out of training."""

Sample = tuple[int, WordPair]
"""The number of a question, and one of its pairs."""


class Split(NamedTuple):
    """units [questions]: numbers of the units. test: the units to test on. parts [questions]: "train", "held" or "test"."""

    units: NDArray
    test: NDArray
    parts: NDArray


def split_questions(questions: Sequence[Question], rng: np.random.Generator) -> Split:
    """Of units, so that questions of the same words are in one part."""
    named = [("unit", q.unit) if q.unit >= 0 else ("question", i) for i, q in enumerate(questions)]
    number = {name: i for i, name in enumerate(dict.fromkeys(named))}
    units, n = np.array([number[name] for name in named]), len(number)
    order = rng.permutation(n)
    n_test = max(2, round(n * TEST_SHARE))
    test, train = np.sort(order[:n_test]), np.sort(order[n_test:])
    held = rng.permutation(train)[: max(1, round(len(train) * HELD_SHARE))]
    parts = np.where(np.isin(units, test), "test", np.where(np.isin(units, held), "held", "train"))
    return Split(units, test, parts)


class Task(NamedTuple):
    """What a probe learns. samples: the training pairs, then the test pairs, classes equally many in each; labels of all;
    fitted: the labels that training sees; held, units [training samples]."""

    samples: list[Sample]
    n_train: int
    labels: NDArray
    fitted: NDArray
    held: NDArray
    units: NDArray

    @classmethod
    def of(cls, pairs: Sequence[Sequence[WordPair]], split: Split, classes: int, seed: int, shuffled: bool) -> Task:
        tested = split.parts == "test"
        train, test = (balanced_samples(pairs, np.flatnonzero(tested == part), seed + part, classes) for part in (False, True))
        labels = np.array([p.label for _, p in (*train, *test)])
        fitted = labels[: len(train)]
        if shuffled:
            fitted = np.random.default_rng((seed, 1)).permutation(fitted)
        asked = np.array([q for q, _ in train])
        return cls([*train, *test], len(train), labels, fitted, split.parts[asked] == "held", split.units[asked])

    def _tested(self, split: Split) -> list[NDArray]:
        """For each test unit its test samples."""
        unit = split.units[[q for q, _ in self.samples[self.n_train :]]]
        return [np.flatnonzero(unit == u) for u in split.test]

    def by_unit(self, values: NDArray, split: Split) -> NDArray:
        """Mean over the pairs of each test unit: [..., test samples] -> [units, ...], NaN where a unit has none."""
        none = np.full(values.shape[:-1], np.nan)
        return np.stack([values[..., rows].mean(-1) if len(rows) else none for rows in self._tested(split)])

    def confusion(self, predictions: NDArray, split: Split, classes: int) -> NDArray:
        """[depth, probe, test samples] -> counts [units, depth, probe, label, predicted]."""
        labels, eye = self.labels[self.n_train :], np.eye(classes)
        counts = eye[labels][:, :, None] * eye[predictions][..., None, :]  # [depth, probe, samples, label, predicted]
        return np.stack([counts[:, :, rows].sum(2) for rows in self._tested(split)])


def balanced_samples(pairs: Sequence[Sequence[WordPair]], chosen: NDArray, seed: int, classes: int) -> list[Sample]:
    """Equally many pairs of each class from these questions, in random order."""
    flat = [(q, p) for q in chosen.tolist() for p in pairs[q]]
    if not flat:
        raise ValueError("questions: those of one part have no pairs; expected some of each class")
    return [flat[i] for i in balanced(np.array([p.label for _, p in flat]), classes=classes, seed=seed)]


class Fits(NamedTuple):
    """Fits probes of these kinds at all depths."""

    kinds: Sequence[str]
    classes: int
    components: int
    seed: int

    def __call__(self, x: Features, task: Task, first: int, progress: Progress | None) -> tuple[NDArray, NDArray]:
        """What the probes say of the test samples, [depth, probe, samples], and their accuracy on what is held out, [depth,
        probe]. The task's samples are those of x from number `first` on."""
        n, y, held = task.n_train, task.fitted, task.held
        own = slice(first, first + len(task.samples))
        predictions = np.zeros((len(x), len(self.kinds), len(task.samples) - n), dtype=np.int64)
        held_out = np.zeros((len(x), len(self.kinds)))
        flat = []
        for d in range(len(x)):
            if "bilinear" in self.kinds:
                k = self.kinds.index("bilinear")
                one, other = x.sides(d)
                found, held_out[d, k] = fit_bilinear(one[own], other[own], y, task.units, self.classes)
                predictions[d, k] = found[n:]
            if {"linear", "mlp"} & set(self.kinds):
                features = x[d][own]
                flat.append(Projection.fit(features[:n], self.components)(features).astype(np.float32))
            if "linear" in self.kinds:
                k = self.kinds.index("linear")
                probe = fit_linear(flat[d][:n], y, held, self.classes)
                predictions[d, k], held_out[d, k] = probe(flat[d][n:]).argmax(1), probe.held_out
            if progress is not None:
                progress(d + 1, len(x) + 1)
        if "mlp" in self.kinds:
            k, width = self.kinds.index("mlp"), max(z.shape[1] for z in flat)
            padded = torch.from_numpy(np.stack([np.pad(z, ((0, 0), (0, width - z.shape[1]))) for z in flat]))
            labels = torch.from_numpy(y).expand(len(x), -1)
            mlps, held_out[:, k] = fit_mlps(padded[:, :n], labels, torch.from_numpy(held), self.classes, seed=self.seed)
            with torch.no_grad():
                predictions[:, k] = mlps(padded[:, n:]).argmax(-1).numpy()
        return predictions, held_out
