"""Probes on identical data: regularisation and stopping are chosen on questions held out of the training set, and all depths
are fitted together where that is quicker.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pycotmech._optional import optional_import

COMPONENTS = 256
STRENGTHS = (0.001, 0.01, 0.1, 1.0)
"""Inverse penalties among which the linear probe chooses."""
PENALTIES = (0.01, 0.1, 1.0, 10.0)
"""Penalties among which the bilinear probe chooses, in multiples of the mean size of a sample."""
TREES = 200
"""Of the random forest that reads the surface."""
HIDDEN = (64, 32)
_STEPS, _RATE, _DECAY, _DROPOUT, _LOOK, _PATIENCE = 300, 3e-3, 3.0, 0.5, 5, 12


@dataclass(frozen=True)
class Projection:
    """Features [n, F] -> [n, C]: standardised, then turned to the principal axes of the training set. With C at least the
    rank of the training set nothing that a penalised linear probe could use is lost. One unit is the mean spread of an axis."""

    mean: NDArray
    spread: NDArray
    axes: NDArray  # [F, C]

    def __call__(self, x: NDArray) -> NDArray:
        return ((x - self.mean) / self.spread) @ self.axes

    @classmethod
    def fit(cls, x: NDArray, components: int = COMPONENTS) -> Projection:
        """Of a training set [n, F]."""
        mean, spread = x.mean(0), x.std(0)
        spread = np.where(spread > 1e-6 * max(float(spread.max()), 1e-30), spread, np.inf)  # a constant axis carries nothing
        z = ((x - mean) / spread).astype(np.float64)
        small = z @ z.T if len(z) <= z.shape[1] else z.T @ z
        values, vectors = np.linalg.eigh(small)
        order = np.argsort(-values)[:components]
        order = order[values[order] > 1e-9 * max(float(values.max()), 1e-30)]
        axes = vectors[:, order] if len(z) > z.shape[1] else z.T @ vectors[:, order] / np.sqrt(values[order])
        if axes.shape[1] == 0:  # nothing varies
            axes = np.zeros((x.shape[1], 1))
        size = np.sqrt(max(float((z**2).sum() / len(z) / axes.shape[1]), 1e-30))
        return cls(mean, spread, (axes / size).astype(x.dtype))


@dataclass(frozen=True)
class Linear:
    """Multinomial logistic regression: logits [n, classes] = x @ weights + bias."""

    weights: NDArray
    bias: NDArray
    held_out: float
    """Accuracy on the held-out part of the training set, before it was fitted on all of it."""

    def __call__(self, x: NDArray) -> NDArray:
        return x @ self.weights + self.bias


def fit_linear(x: NDArray, y: NDArray, held: NDArray, classes: int = 3, strengths: tuple[float, ...] = STRENGTHS) -> Linear:
    """x [n, C] projected, y [n] labels, held [n]: what is held out to choose the penalty; then fitted on everything."""
    with optional_import():
        from sklearn.linear_model import LogisticRegression

    def fitted(c: float, rows: NDArray) -> tuple[NDArray, NDArray]:
        probe = LogisticRegression(C=c, max_iter=200, tol=1e-3)
        with warnings.catch_warnings():  # not quite converged at the weakest penalty: the held-out part decides
            warnings.simplefilter("ignore")
            probe.fit(x[rows], y[rows])
        weights, bias = np.zeros((x.shape[1], classes)), np.full(classes, -np.inf)
        intercept = np.asarray(probe.intercept_)
        if len(probe.classes_) == 2:
            weights[:, probe.classes_] = np.stack((-probe.coef_[0], probe.coef_[0]), 1) / 2
            bias[probe.classes_] = np.array([-1, 1]) * intercept[0] / 2
        else:
            weights[:, probe.classes_], bias[probe.classes_] = probe.coef_.T, intercept
        return weights, bias

    best, accuracy = strengths[0], -1.0
    for c in strengths:
        weights, bias = fitted(c, ~held)
        here = float(((x[held] @ weights + bias).argmax(1) == y[held]).mean()) if held.any() else 0.0
        if here > accuracy:
            best, accuracy = c, here
    return Linear(*fitted(best, np.ones(len(y), bool)), accuracy)


class Mlps:
    """K perceptrons with two hidden layers, fitted side by side on K feature sets: [K, n, C] -> logits [K, n, classes]."""

    def __init__(self, k: int, width: int, classes: int, hidden: tuple[int, int], seed: int) -> None:
        generator = torch.Generator().manual_seed(seed)
        sizes = (width, *hidden, classes)
        self.parameters: list[Tensor] = []
        for a, b in zip(sizes, sizes[1:]):  # noqa: RUF007
            one = torch.randn(1, a, b, generator=generator) * (2 / a) ** 0.5  # the same start for all
            self.parameters += [one.repeat(k, 1, 1).requires_grad_(), torch.zeros(k, 1, b).requires_grad_()]

    def __call__(self, x: Tensor, dropout: torch.Generator | None = None) -> Tensor:
        layers = list(zip(self.parameters[::2], self.parameters[1::2]))
        for i, (w, b) in enumerate(layers):
            x = torch.baddbmm(b, x, w)
            if i < len(layers) - 1:
                x = x.relu()
                if dropout is not None:
                    keep = torch.rand(1, *x.shape[1:], generator=dropout) >= _DROPOUT
                    x = x * keep / (1 - _DROPOUT)
        return x


def fit_mlps(
    x: Tensor,
    y: Tensor,
    held: Tensor,
    classes: int = 3,
    *,
    hidden: tuple[int, int] = HIDDEN,
    steps: int = _STEPS,
    seed: int = 0,
) -> tuple[Mlps, NDArray]:
    """x [K, n, C] projected, y [K, n], held [n]: each keeps the weights with which it did best on what is held out.

    Returns the perceptrons and their held-out accuracy [K]. AdamW on the whole training set, dropout; at most `steps` steps,
    fewer when none of them has become better for a while.
    """
    K, _, C = x.shape
    mlps = Mlps(K, C, classes, hidden, seed)
    optimiser = torch.optim.AdamW(mlps.parameters, lr=_RATE, weight_decay=_DECAY)
    generator = torch.Generator().manual_seed(seed)
    train = ~held if bool(held.any()) else torch.ones_like(held)
    judged = held if bool(held.any()) else torch.ones_like(held)
    x_train, y_train, x_held, y_held = x[:, train], y[:, train], x[:, judged], y[:, judged]
    best = torch.full((K,), torch.inf)
    accuracy = torch.zeros(K)
    kept = [p.detach().clone() for p in mlps.parameters]
    since = 0
    for step in range(1, steps + 1):
        loss = torch.nn.functional.cross_entropy(mlps(x_train, generator).flatten(0, 1), y_train.flatten()) * K
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        if step % _LOOK:
            continue
        with torch.no_grad():
            logits = mlps(x_held)
            now = torch.nn.functional.cross_entropy(logits.transpose(1, 2), y_held, reduction="none").mean(1)
            better = now < best
            best = torch.where(better, now, best)
            accuracy = torch.where(better, (logits.argmax(-1) == y_held).float().mean(1), accuracy)
            for old, new in zip(kept, mlps.parameters):
                old[better] = new.detach()[better]
        since = 0 if bool(better.any()) else since + 1
        if since >= _PATIENCE:
            break
    mlps.parameters = kept
    return mlps, accuracy.double().numpy()


def pair_kernel(first: NDArray, second: NDArray, n_train: int, *, scaled: bool) -> NDArray:
    """Features [n, d] of the first and of the second words of pairs -> [n, n_train]: how alike pairs are in 1, all entries of
    the first, all of the second, and all products of the two.

    Centred on the training pairs, the first n_train; scaled: every entry has the same spread. Each word's product with itself
    is 1 on average.
    """

    def similar(x: NDArray) -> NDArray:
        z = x.astype(np.float64) - x[:n_train].mean(0)
        if scaled:
            spread = z[:n_train].std(0)
            z = np.where(spread > 1e-6 * max(float(spread.max()), 1e-30), z / np.maximum(spread, 1e-30), 0.0)
        size = float(np.square(z[:n_train]).sum(1).mean())
        return z @ z[:n_train].T / max(size, 1e-30)

    return (1 + similar(first)) * (1 + similar(second))


def fit_bilinear(
    first: NDArray, second: NDArray, y: NDArray, units: NDArray, classes: int, penalties: tuple[float, ...] = PENALTIES
) -> tuple[NDArray, float]:
    """What a penalised bilinear probe says of every pair [n], and its accuracy on training units that it was not fitted on.

    A class's score is a bilinear form in the two words' features [n, d], fitted by least squares to 1 for the class and 0 for
    others (kernel ridge regression): the simplest probe that can compare the two, which no linear one of both beside one
    another can. y, units [m]: labels and units of the training pairs, the first m. Penalty and scaling (`pair_kernel`) are
    those with the smallest squared error where each unit is left out in turn. That takes no further fits: with G the inverse
    of the penalised kernel, the errors of a left-out unit are G_uu^-1 (G target)_u.
    """
    m = len(y)
    target = np.eye(classes)[y] - 1 / classes
    rows = [np.flatnonzero(units == u) for u in np.unique(units)]
    best = (np.inf, 0.0, np.zeros(len(first), dtype=np.int64))
    for scaled in (True, False):
        kernel = pair_kernel(first, second, m, scaled=scaled)
        size = np.trace(kernel[:m]) / m
        for penalty in penalties:
            inverse = np.linalg.inv(kernel[:m] + penalty * size * np.eye(m))
            weights = inverse @ target
            left_out = target.copy()
            for own in rows:
                left_out[own] -= np.linalg.solve(inverse[np.ix_(own, own)], weights[own])
            error = float(np.square(left_out - target).mean())
            if error < best[0]:
                accuracy = float((left_out.argmax(1) == y).mean())
                best = (error, accuracy, (kernel @ weights).argmax(1))
    return best[2], best[1]


def fit_surface(x: NDArray, y: NDArray, *, seed: int = 0) -> NDArray[np.int64]:
    """What a random forest says of every sample [n] by features that need no model [n, F]; y [m]: labels of the first m."""
    with optional_import():
        from sklearn.ensemble import RandomForestClassifier

    forest = RandomForestClassifier(n_estimators=TREES, min_samples_leaf=2, random_state=seed)
    return forest.fit(x[: len(y)], y).predict(x).astype(np.int64)


def balanced(labels: NDArray, *, classes: int = 3, seed: int = 0) -> NDArray[np.int64]:
    """Numbers of equally many samples of each class that occurs, in random order."""
    rng = np.random.default_rng(seed)
    groups = [np.flatnonzero(labels == c) for c in range(classes)]
    least = min((len(g) for g in groups if len(g)), default=0)
    return rng.permutation(
        np.concatenate([rng.choice(g, least, replace=False) for g in groups if len(g)] or [np.zeros(0, int)])
    )


def macro_f1(confusion: NDArray) -> NDArray:
    """[..., true, predicted] counts -> mean over the classes that occur of 2 hits / (predicted + true)."""
    hits = np.diagonal(confusion, axis1=-2, axis2=-1)
    true, predicted = confusion.sum(-1), confusion.sum(-2)
    with np.errstate(invalid="ignore", divide="ignore"):
        scores = np.where(true > 0, 2 * hits / (true + predicted), np.nan)
    return np.nanmean(scores, -1) if np.isfinite(scores).any() else scores[..., 0]
