"""Which layers may be corrupted without changing the reasoning that is generated (docs/protocol.md, E12)."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import cycle
from os import PathLike
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

import numpy as np
import torch
import xarray as xr
from numpy.typing import NDArray
from torch import Tensor

from pycotmech._words import plural
from pycotmech.cot.task.corruptions import require_consistent
from pycotmech.cot.task.examples import Example, Examples
from pycotmech.cot.task.steps import Graded
from pycotmech.cot.tools.cells import Cells, choose
from pycotmech.cot.tools.cost import Cost, Workload, forwards_cost, metered, rows_cost
from pycotmech.cot.tools.registry import Description
from pycotmech.cot.tools.result import Analysis, Progress, counting, interval_table
from pycotmech.engine import planner
from pycotmech.engine.decode import Runs
from pycotmech.model.arguments import check_common, check_integer
from pycotmech.model.config import ModelConfig
from pycotmech.model.run import KeyValues
from pycotmech.stats import bootstrap

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure

    from pycotmech.model import Model

MAX_NEW = 50
"""Tokens that are generated at most, as the authors did."""

_SHARES = ("agreement", "gold", "words")


class DecisionHorizon(Analysis):
    """What is generated with one layer's attention taken from another question, after h sentences of the solution.

    data [example, sentences, layer]: `same`, 1 if the text is the one generated without any change; `agreement`, the share
    of its tokens before the first one that differs; `gold`, 1 if it is the gold solution; `words`, the share of its
    words that occur in the gold solution (the authors' measure, docs/protocol.md, Flaws, F17). [example, sentences]:
    `clean_gold`, whether the unchanged run writes the gold solution; `swapped`, as `agreement`, for the other question with
    nothing patched.
    """

    name, title = "decision_horizon", "Layers that may be corrupted without changing the reasoning"
    source = "E12"
    label, share, by_size = "share of texts that stay the same", True, False
    ranges: ClassVar = dict.fromkeys(("same", *_SHARES, "clean_gold", "swapped"), bootstrap.SHARE)

    def shown(self) -> xr.Dataset:
        return self.interval("same")

    def table(self) -> pd.DataFrame:
        """One row per number of sentences and layer: same, low, high, agreement, gold, words (each of these three with name_low
        and name_high), n."""
        found = {name: self.interval(name) for name in ("same", *_SHARES)}
        return interval_table(found, ("sentences", "layer"), main="same")

    def horizon(self, *, share: float = 0.9) -> dict[int, int | None]:
        """For each number of sentences the lowest layer from which on every single layer may be corrupted and at least
        `share` of the texts stay the same; None if there is none."""
        mean = self.data["same"].mean("example").transpose("sentences", "layer")
        out: dict[int, int | None] = {}
        for h, row in zip(self.data["sentences"].values, mean.values):
            bad = np.flatnonzero(~(row >= share))
            first = int(bad[-1]) + 1 if len(bad) else 0
            out[int(h)] = first if first < len(row) else None
        return out

    def findings(self) -> list[str]:
        """For each number of sentences: from which layer on corruption is harmless and which layer does most harm, chosen on
        one half of the examples and reported on the other; the swap."""
        lines, L = [], self.data.sizes["layer"]
        for h in self.data["sentences"].values.tolist():
            here = type(self)(self.data.sel(sentences=[h]), self.about)
            parts = here.apart(here.data["same"].notnull().any(("sentences", "layer")).values)
            if parts is None:
                continue
            same = parts.reporting.data["same"].sel(sentences=h).transpose("example", "layer").values
            first = parts.choosing.horizon()[h]
            worst = int(np.argmin(parts.choosing.data["same"].sel(sentences=h).mean("example").values))
            tail = "no layer from which on any one layer may be corrupted in 9 of 10 texts"
            if first is not None:
                stay = _share(same[:, first:].mean(1))
                tail = f"corrupted in any one layer from {first} of {L} on, {stay} of the texts stay the same"
            lines.append(
                f"after {plural(int(h), 'sentence')}, {parts.words}: {tail}; layer {worst} does most harm "
                f"({_share(same[:, worst])} stay the same); with the whole question exchanged "
                f"{_share(here.data['swapped'].values[:, 0])} of the text stays"
            )
        return lines

    def plot(self, *, path: str | PathLike | None = None) -> Figure:
        """Share of texts that stay the same, by corrupted layer, a line for each number of sentences."""
        from pycotmech.figures.curves import line_with_band
        from pycotmech.figures.frame import PALETTE, finished
        from pycotmech.figures.library import Figure

        found = self.interval("same")
        figure = Figure(figsize=(7.5, 4.4), layout="constrained")
        axis = figure.subplots()
        for h, colour in zip(self.data["sentences"].values, cycle((*PALETTE[1:3], PALETTE[0], *PALETTE[5:]))):
            one = found.sel(sentences=h)
            values = (one[k].values for k in ("layer", "mean", "low", "high"))
            line_with_band(
                axis,
                *values,
                alpha=0.12,
                marker="o",
                ms=3,
                color=colour,
                label=f"{plural(int(h), 'sentence')}, n = {int(one['n'].max())}",
            )
        axis.set_xlabel("layer whose attention comes from the other question")
        axis.locator_params(axis="x", integer=True)
        axis.set_ylabel("share of texts that stay the same")
        axis.set_ylim(-0.03, 1.03)
        axis.legend(fontsize=8, frameon=False, ncols=3, loc="lower center", bbox_to_anchor=(0.5, 1.0))
        return finished(figure, f"{self.about['model']}: {self.title}", self.small_print("same", marks="bands"), path=path)


def _share(values: NDArray) -> str:
    return bootstrap.mean_interval(values, within=bootstrap.SHARE).words()


def decision_horizon(
    model: Model,
    examples: Examples,
    *,
    steps: Sequence[int] | None = None,
    right: Graded | Tensor | None = None,
    max_new: int = MAX_NEW,
    seed: int = 0,
    memory_gb: float | None = None,
    progress: Progress | None = None,
) -> DecisionHorizon:
    """Generates the rest of the solution with z of all heads of one layer, at all positions, from a run on another question.

    The other question is aligned with the first and has other concepts and another property (the same entity); its run gets
    the text that is being generated too, so only what is read from the question differs. Layer by layer, after h = 0, 1,
    ... sentences of the gold solution; greedy, at most max_new tokens and at most as many as the gold rest has.
    steps, right: as `cells.choose`; a beginning counts if the first step after it does.
    Raises ValueError naming the argument; the examples have to be of definition="exact", for the other question is put
    together from their counterfactuals.
    Cost: for each example and h about 1.5 L + 2 runs at once, with their own keys and values: the item's tokens and those
    generated, one row for each; the few-shot block once in all. (The authors recompute every prompt for every token.)
    Source: docs/protocol.md, E12.
    """
    check_common(model, seed=seed, memory_gb=memory_gb)
    check_integer(max_new, "max_new", 1)
    if isinstance(examples, Examples):
        require_consistent(examples, "the other question")
    cells = choose(model, examples, steps=steps, right=right)
    todo = beginnings(cells, model.tokenizer)
    L, numbers = model.cfg.n_layers, sorted({b.sentences for b in todo})
    shape = (len(examples), len(numbers))
    found = {k: np.full((*shape, L), np.nan) for k in ("same", "agreement", "gold", "words")}
    found |= {k: np.full(shape, np.nan) for k in ("clean_gold", "swapped")}
    budget = planner.memory_budget(memory_gb, *model.family.devices)
    with metered(model) as meter:
        past = model.prefixes.key_values(examples.shared_ids, budget)
        groups = _groups(todo, model, budget, max_new)
        tick = counting(progress, len(groups))
        for group in groups:
            for begin, values in zip(group, _generate(model, group, past, len(examples.shared_ids), max_new)):
                for name, value in values.items():
                    found[name][begin.e, numbers.index(begin.sentences)] = value
            tick()
    by_layer = ("example", "sentences", "layer")
    data = {name: (by_layer[: value.ndim], value) for name, value in found.items()}
    axes = {"example": cells.coords["example"], "sentences": numbers, "layer": np.arange(L)}
    words = "z of all heads of one layer from a run on another question; greedy text against the unchanged run's"
    settings = {"max_new": max_new, "seed": seed}
    return DecisionHorizon.made(model, cells, xr.Dataset(data, coords=axes), None, words, settings, meter)


class Beginning(NamedTuple):
    """Where a generation begins: after so many sentences of an example's gold solution, which is `length` tokens in."""

    e: int
    sentences: int
    example: Example
    length: int


def beginnings(cells: Cells, tokenizer: Any) -> list[Beginning]:
    """For each example the beginning of its solution and the ends of its sentences but the last; those whose next step
    counts."""
    out = []
    for e, example in enumerate(cells.examples):
        counts = {cells.steps[s] for s in cells.right[e].nonzero().flatten().tolist()}
        span = example.segments["generated"]
        ends = [p + 1 for p in range(span.start, span.stop) if tokenizer.decode(example.full_ids[p : p + 1]).endswith(".")]
        for h, length in enumerate([span.start, *ends[:-1]]):
            following = [s.index for s in example.steps if s.answer_span.start >= length]
            if following and following[0] in counts:
                out.append(Beginning(e, h, example, length))
    if not out:
        raise ValueError(f"steps: none of {list(cells.steps)} that counts is the first of a sentence; expected such steps")
    return out


def other_question(example: Example) -> Tensor:
    """full_ids [T] with every occurrence of the concepts and the property in the question replaced; the solution as it is.

    Taken from the counterfactuals of the steps; a word keeps its place if each of them would make it equal to another.
    """
    ids, taken, done = example.full_ids.clone(), set(example.words.values()), {example.words["E"]}
    question = example.segments["question"]
    for step in example.steps:  # several steps replace the same word, each by another
        old, new = step.replaced
        if old in done or new in taken:
            continue
        done.add(old)
        taken.add(new)
        for p in step.differs:
            if question.start <= p < question.stop:
                ids[p] = step.corrupted[p]
    return ids


def _groups(todo: list[Beginning], model: Model, budget: int, max_new: int) -> list[list[Beginning]]:
    """Beginnings after equally many sentences that are generated together: keys, values and rows fit the budget."""
    cfg = model.cfg
    ordered = sorted(todo, key=lambda b: (b.sentences, b.e))
    per_token = 2 * cfg.n_layers * cfg.n_key_value_heads * cfg.d_head * model.family.dtype.itemsize + 16 * cfg.d_model
    sizes = [(2 * cfg.n_layers + 2) * (b.length - b.example.segments["question"].start + max_new) * per_token for b in ordered]
    out: list[list[Beginning]] = []
    for a, b in planner.cut(sizes, budget // 2):
        for h in dict.fromkeys(begin.sentences for begin in ordered[a:b]):
            out.append([begin for begin in ordered[a:b] if begin.sentences == h])
    return out


def _generate(model: Model, group: list[Beginning], past: KeyValues | None, P: int, max_new: int) -> list[dict[str, object]]:
    """The results of beginnings that are generated together.

    Runs, in this order: for each the unchanged one, the other question's own, one for each layer; then the givers,
    those of the last layer first, for they need not be computed above their layer.
    """
    L, n = model.cfg.n_layers, len(group)
    clean = [b.example.full_ids[P : b.length] for b in group]
    other = [other_question(b.example)[P : b.length] for b in group]
    gold = [b.example.full_ids[b.length :][:max_new] for b in group]
    longest = max(map(len, gold))
    room = max(map(len, clean)) + longest
    patched = lambda c, l: 2 * n + c * L + l  # noqa: E731
    giver = lambda c, l: 2 * n + n * L + (L - 1 - l) * n + c  # noqa: E731
    takes = [(patched(c, l), giver(c, l), l) for c in range(n) for l in range(L)]
    depth = [L] * (2 * n + n * L) + [l + 1 for l in reversed(range(L)) for _ in range(n)]
    runs = Runs(model.family, past, depth, room, takes)
    texts = [*clean, *other, *(clean[c] for c in range(n) for _ in range(L)), *(other[c] for _ in range(L) for c in range(n))]
    follows = torch.arange(len(depth))  # whose next token each run gets
    for c in range(n):
        for l in range(L):
            follows[giver(c, l)] = patched(c, l)
    written = []
    for i in range(longest):
        final = runs.advance(texts)
        best = torch.cat([model.family.logits(rows).argmax(-1) for rows in final.split(256)]).cpu()
        written.append(best)
        texts = list(best[follows].split(1)) if i + 1 < longest else []
    out = torch.stack(written, 1)  # [runs through all layers, new tokens]
    return [
        _compared(model, gold[c], out[c], out[n + c], torch.stack([out[patched(c, l)] for l in range(L)])) for c in range(n)
    ]


def _compared(model: Model, gold: Tensor, clean: Tensor, swapped: Tensor, patched: Tensor) -> dict[str, object]:
    m = len(gold)
    clean, swapped, patched = clean[:m], swapped[:m], patched[:, :m]
    decode = model.tokenizer.decode
    gold_text = decode(gold)
    return {
        "same": (patched == clean).all(1).double().numpy(),
        "agreement": _before_difference(patched, clean).numpy(),
        "gold": (patched == gold).all(1).double().numpy(),
        "words": np.array([substring_share(decode(text), gold_text) for text in patched]),
        "clean_gold": float((clean == gold).all()),
        "swapped": float(_before_difference(swapped[None], clean)[0]),
    }


def _before_difference(texts: Tensor, clean: Tensor) -> Tensor:
    """Share of tokens before the first that differs, float64 [n]."""
    return (texts == clean).long().cumprod(1).double().mean(1)


def substring_share(text: str, gold: str) -> float:
    """Share of the words of a text that occur somewhere in the gold text (the authors' measure); 0 for an empty text."""
    words = text.split()
    return sum(word in gold for word in words) / len(words) if words else 0.0


_BEGINNINGS, _NEW = 3, 27
"""Beginnings of an example with two hops in our own wording, and tokens left after one, where the workload does not say."""


def _generations(workload: Workload) -> tuple[float, float]:
    """How many texts are begun, and how many tokens are generated in each, at the mean."""
    if not workload.beginnings:
        return _BEGINNINGS * workload.examples, _NEW
    return workload.beginnings, min(workload.left, MAX_NEW)


def cost(cfg: ModelConfig, workload: Workload) -> Cost:
    """Predicted: for each beginning 1.5 L + 2 runs over the item's tokens and those that are generated, which together are the
    longest prompt, the last word, the full stop after it and the label (counted as a token each)."""
    runs, (begun, new) = 1.5 * cfg.n_layers + 2, _generations(workload)
    own = workload.texts / workload.examples + 3
    rows = begun * runs * own
    keys = 2 * cfg.n_layers * cfg.n_key_value_heads * cfg.d_head * 4.0
    memory = workload.examples * (2 * cfg.n_layers + 2) * own * keys
    read = begun * (cfg.n_layers + 2) * new
    return rows_cost(cfg, rows + workload.shared, forwards=rows / workload.length, read=read, memory=memory)


def authors_cost(cfg: ModelConfig, workload: Workload) -> Cost:
    """Theirs: three forwards of the whole text for every generated token, layer and beginning, without a cache.

    Source: docs/protocol.md, Cost, E12.
    Assumed: as many tokens are generated, at the mean, as the gold solution has left after a beginning (for the authors' own
    prompts this gives the forwards that were counted from their outputs to 3 %), in texts as long as the mean prompt.
    """
    begun, new = _generations(workload)
    return forwards_cost(cfg, workload, 3.0 * begun * cfg.n_layers * new)


ANALYSIS = Description(DecisionHorizon, decision_horizon, cost=cost, authors=authors_cost)
