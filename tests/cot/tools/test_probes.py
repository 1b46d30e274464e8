"""Probes on data whose answer is known."""

import numpy as np
import pytest
import torch
from sklearn.metrics import f1_score

from pycotmech.cot.tools.probes import (
    Projection,
    balanced,
    fit_bilinear,
    fit_linear,
    fit_mlps,
    fit_surface,
    macro_f1,
    pair_kernel,
)
from tests.reference.close import assert_allclose, assert_close


def halves(x, y, seed=0):
    """(train x, train y, test x, test y, held out of the training part)."""
    order = np.random.default_rng(seed).permutation(len(x))
    n = len(x) // 2
    train, test = order[:n], order[n:]
    return x[train], y[train], x[test], y[test], np.arange(n) % 5 == 0


def accuracies(x, y, classes=3):
    a, b, c, d, held = halves(x, y)
    turned = Projection.fit(a)
    linear = fit_linear(turned(a), b, held, classes)
    stack = torch.from_numpy(turned(a).astype(np.float32))[None]
    mlps, _ = fit_mlps(stack, torch.from_numpy(b)[None], torch.from_numpy(held), classes, seed=0)
    with torch.no_grad():
        said = mlps(torch.from_numpy(turned(c).astype(np.float32))[None])[0].argmax(-1).numpy()
    return float((linear(turned(c)).argmax(1) == d).mean()), float((said == d).mean())


def test_both_solve_what_a_line_separates():
    """docs/protocol.md, Checks: linear = MLP on a linearly separable toy."""
    rng = np.random.default_rng(1)
    x = rng.normal(size=(1600, 20))
    logits = x @ rng.normal(size=(20, 3))
    clear = np.diff(np.sort(logits, 1)[:, 1:])[:, 0] > 2
    linear, mlp = accuracies(x[clear], logits[clear].argmax(1))
    assert linear > 0.97 and mlp > 0.97


def test_the_mlp_solves_what_no_line_separates():
    """docs/protocol.md, Checks: MLP > linear on XOR."""
    rng = np.random.default_rng(2)
    bits = rng.integers(2, size=(1200, 2))
    x = np.concatenate((4.0 * bits - 2, rng.normal(size=(1200, 6))), 1) + 0.3 * rng.normal(size=(1200, 8))
    linear, mlp = accuracies(x, bits[:, 0] ^ bits[:, 1], classes=2)
    assert linear < 0.6 and mlp > 0.95


def test_shuffled_labels_leave_chance():
    rng = np.random.default_rng(3)
    x, y = rng.normal(size=(1200, 60)), rng.integers(3, size=1200)
    assert accuracies(x, y) == pytest.approx((1 / 3, 1 / 3), abs=0.06)


def test_what_is_held_out_is_not_fitted():
    """Of labels that mean nothing, those held out are told no better than by chance, however well the others are learnt."""
    rng = np.random.default_rng(5)
    x, y = rng.normal(size=(400, 300)), rng.integers(3, size=400)
    held = np.arange(400) % 4 == 0
    z = Projection.fit(x)(x).astype(np.float32)
    assert fit_linear(z, y, held).held_out < 0.5
    _, accuracy = fit_mlps(torch.from_numpy(z)[None], torch.from_numpy(y)[None], torch.from_numpy(held))
    assert accuracy[0] < 0.5


def test_side_by_side_is_one_by_one():
    rng = np.random.default_rng(4)
    x = torch.from_numpy(rng.normal(size=(2, 90, 5)).astype(np.float32))
    y = torch.from_numpy(rng.integers(3, size=(2, 90)))
    held = torch.arange(90) % 5 == 0
    both, _ = fit_mlps(x, y, held, steps=60, seed=1)
    for k in range(2):
        one, _ = fit_mlps(x[k : k + 1], y[k : k + 1], held, steps=60, seed=1)
        assert_close(both(x)[k], one(x[k : k + 1])[0], atol=1e-4, rtol=1e-3)


@pytest.mark.parametrize("shape", [(40, 300), (300, 12)])
def test_the_projection_keeps_distances_and_ignores_what_is_constant(shape):
    rng = np.random.default_rng(5)
    x = rng.normal(size=shape) * rng.uniform(0.1, 9, size=shape[1])
    x[:, 3] = 7.0
    z = np.delete((x - x.mean(0)) / np.where(x.std(0) > 0, x.std(0), 1), 3, 1)
    turned = Projection.fit(x, components=400)(x)
    ratio = (turned @ turned.T) / np.where(np.abs(z @ z.T) > 1e-3, z @ z.T, np.nan)
    assert_allclose(ratio[np.isfinite(ratio)], np.nanmedian(ratio), rtol=1e-5)
    assert np.square(turned).mean() == pytest.approx(1)


def test_balanced_takes_as_many_of_each_in_random_order():
    labels = np.repeat([0, 1, 2], [50, 20, 31])
    taken = balanced(labels, seed=0)
    assert np.bincount(labels[taken]).tolist() == [20, 20, 20] and len(set(taken.tolist())) == 60
    assert (np.diff(labels[taken]) != 0).sum() > 20  # not one class after another
    assert balanced(labels, seed=0).tolist() == taken.tolist() != balanced(labels, seed=1).tolist()


def test_macro_f1_is_scikit_learns():
    rng = np.random.default_rng(6)
    true, said = rng.integers(3, size=(2, 200))
    confusion = np.zeros((3, 3))
    np.add.at(confusion, (true, said), 1)
    assert float(macro_f1(confusion)) == pytest.approx(f1_score(true, said, average="macro"))


def matched(n, d=12, words=10, seed=7):
    """Pairs of vectors: the second holds a word's code in other dims than the first. Label: whether it is the same word."""
    rng = np.random.default_rng(seed)
    codes = rng.normal(size=(words, d))
    turn = np.linalg.qr(rng.normal(size=(d, d)))[0]
    a = rng.integers(words, size=n)
    same = rng.integers(2, size=n)
    b = np.where(same, a, (a + rng.integers(1, words, size=n)) % words)
    first, second = codes[a], codes[b] @ turn
    return first + 0.1 * rng.normal(size=(n, d)), second + 0.1 * rng.normal(size=(n, d)), same


def test_a_bilinear_probe_compares_two_words_and_a_linear_one_cannot():
    first, second, same = matched(900)
    held = np.arange(600) % 5 == 0
    said, held_out = fit_bilinear(first, second, same[:600], np.arange(600) // 10, 2)
    assert (said[600:] == same[600:]).mean() > 0.95 and held_out > 0.95
    x = np.concatenate((first, second), 1)
    linear = fit_linear(x[:600], same[:600], held, 2)
    assert (linear(x[600:]).argmax(1) == same[600:]).mean() < 0.6


def test_a_bilinear_probe_combines_nothing_that_one_word_holds():
    """Two bits of the second word, whose parity says which of two first words it belongs to."""
    rng = np.random.default_rng(8)
    bits = rng.choice((-1.0, 1.0), size=(900, 3))
    label = (bits.prod(1) > 0).astype(int)
    said, _ = fit_bilinear(bits[:, :1], bits[:, 1:], label[:600], np.arange(600) // 10, 2)
    assert (said[600:] == label[600:]).mean() < 0.6


def test_what_is_left_out_was_not_fitted():
    """The accuracy on units left out is that of fits without them."""
    first, second, same = matched(120)
    units = np.arange(90) // 15
    _, held_out = fit_bilinear(first, second, same[:90], units, 2, penalties=(0.1,))
    found = []
    for scaled in (True, False):
        kernel = pair_kernel(first, second, 90, scaled=scaled)[:90]
        size, target = np.trace(kernel) / 90, np.eye(2)[same[:90]] - 0.5
        scores = np.zeros((90, 2))
        for u in range(6):
            a, b = np.flatnonzero(units != u), np.flatnonzero(units == u)
            weights = np.linalg.solve(kernel[np.ix_(a, a)] + 0.1 * size * np.eye(len(a)), target[a])
            scores[b] = kernel[np.ix_(b, a)] @ weights
        found.append((np.square(scores - target).mean(), (scores.argmax(1) == same[:90]).mean()))
    assert held_out == pytest.approx(min(found)[1])


@pytest.mark.parametrize("scaled", [False, True])
def test_the_kernel_is_the_product_of_all_entries(scaled):
    rng = np.random.default_rng(9)
    first, second = rng.normal(size=(30, 4)) * [1, 2, 3, 4], rng.normal(size=(30, 5))
    z = []
    for x in (first, second):
        x = (x - x[:20].mean(0)) / (x[:20].std(0) if scaled else 1)
        z.append(np.concatenate((np.ones((30, 1)), x / np.sqrt(np.square(x[:20]).sum(1).mean())), 1))
    products = np.einsum("ni,nj->nij", *z).reshape(30, -1)
    assert_allclose(pair_kernel(first, second, 20, scaled=scaled), products @ products[:20].T, rtol=1e-9)


def test_bilinear_labels_that_mean_nothing_are_at_chance():
    rng = np.random.default_rng(10)
    first, second = rng.normal(size=(2, 900, 40))
    y = rng.integers(2, size=900)
    said, held_out = fit_bilinear(first, second, y[:600], np.arange(600) // 10, 2)
    assert (said[600:] == y[600:]).mean() == pytest.approx(0.5, abs=0.09) and held_out < 0.65


def test_the_surface_is_read_by_combinations():
    rng = np.random.default_rng(11)
    x = rng.integers(2, size=(900, 6))
    y = x[:, 0] ^ x[:, 1]
    assert (fit_surface(x, y[:600])[600:] == y[600:]).mean() > 0.95
