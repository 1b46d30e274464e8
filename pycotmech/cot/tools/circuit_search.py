"""Searches for a small set of heads that does what the whole model does, with all other heads ablated.

Sets are evaluated exactly, by a run of the model with all other heads ablated, and never by a sum of single effects.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np
import torch
from numpy.typing import NDArray

from pycotmech.cot.tools.cells import Cell
from pycotmech.cot.tools.means import HeadMeans
from pycotmech.engine.ablated import AblatedRuns

if TYPE_CHECKING:
    from pycotmech.model import Model

Head = tuple[int, int]
Against = Literal["counterfactual", "competitor"]
N_SIZES = 16
"""Number of sizes of nested sets that are tried before heads are removed one by one."""


class KeptLogits:
    """F of Wang et al. 2022: the logit difference answer - other word of each of n cells, with only sets of heads kept.

    shared: number of tokens of the few-shot block. means: replacements of the other heads; None: zero. everywhere: whether
        heads are ablated in the few-shot block too.
    against: the other word. "counterfactual": the word that is right in the corrupted prompt, which need not occur in the clean
        one. "competitor": of the words that answer the example's other steps, the one that the whole model finds likeliest.
    Results are cached by set. Raises ValueError if an example has no competitor.
    """

    def __init__(
        self,
        model: Model,
        cells: Sequence[Cell],
        *,
        shared: int,
        means: HeadMeans | None,
        everywhere: bool,
        against: Against,
        memory_gb: float | None,
    ) -> None:
        self.shape = (model.cfg.n_layers, model.cfg.n_heads)
        prompts = [cell.step.clean for cell in cells]
        self._family = model.family
        self._runs = AblatedRuns(
            model.family,
            prompts,
            [[len(p) - 1] for p in prompts],
            shared=min(shared, *(len(p) - 1 for p in prompts)),
            fill=None if means is None else means.z,
            roles=None if means is None else [means.roles[c.e][: len(p)] for c, p in zip(cells, prompts, strict=True)],
            everywhere=everywhere,
            memory_gb=memory_gb,
        )
        self._done: dict[bytes, NDArray[np.float64]] = {}
        answers = [cell.step.answer for cell in cells]
        if against == "counterfactual":
            others = [[cell.step.wrong] for cell in cells]
        else:
            others = [sorted({s.answer for s in cell.example.steps} - {cell.step.answer}) for cell in cells]
            if not all(others):
                raise ValueError("against: 'competitor' needs examples with another answer; expected 'counterfactual'")
        tokens = sorted({*answers, *(t for row in others for t in row)})
        self._tokens = torch.tensor(tokens, device=model.device)
        whole = self._logits(np.ones((1, *self.shape), bool))[0]  # [n, tokens]
        column = {t: i for i, t in enumerate(tokens)}
        self._answer = torch.tensor([column[t] for t in answers])
        best = [max(row, key=lambda t, at=i: float(whole[at, column[t]])) for i, row in enumerate(others)]
        self._other = torch.tensor([column[t] for t in best])

    @property
    def evaluations(self) -> int:
        """Number of different sets that were run."""
        return len(self._done)

    @property
    def rows(self) -> int:
        """Number of rows that go through the layers for one set."""
        return self._runs.rows

    def __call__(self, kept: NDArray[np.bool_]) -> NDArray[np.float64]:
        """kept: bool [N, L, H], which heads are not ablated. Returns the logit differences [N, n]."""
        keys = [np.packbits(mask).tobytes() for mask in kept]
        new = {key: i for i, key in enumerate(keys) if key not in self._done}
        if new:
            logits = self._logits(kept[list(new.values())])
            at = torch.arange(len(self._answer))
            found = (logits[:, at, self._answer] - logits[:, at, self._other]).numpy()
            self._done.update(zip(new, found, strict=True))
        return np.stack([self._done[key] for key in keys])

    @torch.no_grad()
    def _logits(self, kept: NDArray[np.bool_]) -> torch.Tensor:
        """[N, n, tokens] float64."""
        rows = self._runs.final_each(torch.from_numpy(~kept))
        return self._family.logits(rows.flatten(0, 1), self._tokens).double().cpu().unflatten(0, rows.shape[:2])


@dataclass(frozen=True, eq=False)
class Search:
    """A set that was found. kept: bool [L, H]. finished: whether no head of it can be left out, so that the budget did not end
    the search. allowed: how far from F(M) its F may be, on the cells that it was chosen on."""

    kept: NDArray[np.bool_]
    finished: bool
    allowed: float


def search(
    values: Callable[[NDArray[np.bool_]], NDArray[np.float64]],
    order: Sequence[Head],
    shape: tuple[int, int],
    *,
    tolerance: float,
    evaluations: int,
) -> Search:
    """Finds a set of heads C with |F(M) - F(C)| <= tolerance |F(M) - F(no head)| of which no head can be left out.

    values: F by cell, [N, L, H] -> [N, n]; the mean over cells counts. order: all heads, those that are tried first in front.
    1. Nested sets of the first heads of `order`, of about `N_SIZES` sizes: the smallest that is faithful.
    2. Every head of the set is left out by itself. Those without which the set stays faithful go, as many at once as can, the
       least important first; and again, until there is none.
    evaluations: runs of sets that the second part may take; when they are spent the search ends as it is.
    """

    def means(masks: Sequence[NDArray[np.bool_]]) -> NDArray[np.float64]:
        return values(np.stack(masks)).mean(1)

    n = shape[0] * shape[1]
    sizes = np.unique(np.geomspace(1, n, N_SIZES).round().astype(int))
    nested = [nothing(shape), *(of_heads(order[:k], shape) for k in sizes)]
    found = means(nested)
    whole, allowed = float(found[-1]), tolerance * abs(float(found[-1] - found[0]))
    kept = next(mask for mask, value in zip(nested[1:], found[1:], strict=True) if abs(value - whole) <= allowed)
    rank = {head: i for i, head in enumerate(order)}
    while kept.sum() > 1:
        heads = sorted(members(kept), key=lambda head: -rank[head])
        if evaluations < len(heads):
            heads = heads[: max(evaluations, 0)]
        if not heads:
            return Search(kept, False, allowed)
        evaluations -= len(heads)
        without = means([but(kept, [head]) for head in heads])
        change = np.abs(without - whole)
        order_of_change = np.argsort(change, kind="stable")
        spare = [heads[i] for i in order_of_change if change[i] <= allowed]
        if not spare:
            return Search(kept, len(heads) == int(kept.sum()), allowed)
        m = min(len(spare), int(kept.sum()) - 1)
        while m > 1:
            evaluations -= 1
            if abs(float(means([but(kept, spare[:m])])[0]) - whole) <= allowed:
                break
            m //= 2
        kept = but(kept, spare[:m])
    return Search(kept, True, allowed)


def worst_subset(
    values: Callable[[NDArray[np.bool_]], NDArray[np.float64]], kept: NDArray[np.bool_], size: int
) -> NDArray[np.bool_]:
    """The subset K of a circuit C that is found by adding, `size` times, the head with which |F(C less K) - F(M less K)| is
    largest: a lower bound on how incomplete the circuit is (Wang et al. 2022, section 4.2). bool [L, H]."""
    subset = np.zeros_like(kept)
    for _ in range(min(size, int(kept.sum()))):
        trials = [subset | of_heads([head], kept.shape) for head in members(kept & ~subset)]
        stack = np.stack(trials)
        gap = np.abs(values(kept & ~stack).mean(1) - values(~stack).mean(1))
        subset = trials[int(gap.argmax())]
    return subset


def of_heads(heads: Sequence[Head], shape: Sequence[int]) -> NDArray[np.bool_]:
    """The mask [L, H] of some heads."""
    mask = nothing(shape)
    for head in heads:
        mask[head] = True
    return mask


def nothing(shape: Sequence[int]) -> NDArray[np.bool_]:
    return np.zeros(tuple(shape), bool)


def but(mask: NDArray[np.bool_], heads: Sequence[Head]) -> NDArray[np.bool_]:
    """The mask without some heads."""
    return mask & ~of_heads(heads, mask.shape)


def members(mask: NDArray[np.bool_]) -> list[Head]:
    """The heads of a mask, by layer and head."""
    return [(int(l), int(h)) for l, h in np.argwhere(mask)]


def layer_matched(mask: NDArray[np.bool_], rng: np.random.Generator) -> NDArray[np.bool_]:
    """A random set with as many heads in each layer as mask [L, H] has, and not the same one where there is another."""
    counts = mask.sum(1)
    others = bool(((counts > 0) & (counts < mask.shape[1])).any())
    while True:
        out = np.zeros_like(mask)
        for l, n in enumerate(counts):
            out[l, rng.choice(mask.shape[1], int(n), replace=False)] = True
        if not others or (out != mask).any():
            return out
