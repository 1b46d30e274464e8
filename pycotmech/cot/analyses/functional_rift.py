"""Finds where along the layers the residual stream turns from what was learnt in pretraining to what the prompt says.

The logit lens is applied at every position, to the memorised next word and to the next words seen in the prompt
(docs/protocol.md, E11).
"""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass
from os import PathLike
from typing import TYPE_CHECKING, ClassVar, Literal

import numpy as np
import torch
import xarray as xr
from numpy.typing import NDArray
from torch import Tensor

from pycotmech.cot.task.examples import Examples
from pycotmech.cot.task.steps import Graded
from pycotmech.cot.tools.cells import choose
from pycotmech.cot.tools.cost import Cost, Workload, forwards_cost, metered, rows_cost
from pycotmech.cot.tools.registry import Description
from pycotmech.cot.tools.result import Analysis, Progress, counting
from pycotmech.engine import planner
from pycotmech.model.arguments import check_common
from pycotmech.model.config import ModelConfig
from pycotmech.model.run import KeyValues, forward_packed
from pycotmech.stats import bootstrap
from pycotmech.stats.averages import nanmean
from pycotmech.stats.change import abruptness, change_point, crossing, rise_at, rise_interval

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure

    from pycotmech.model import Model

CURVES = ("prior", "context", "other", "prior_top1", "context_top1", "contextual")
_LOGIT_ROWS = 256
_AHEAD = 512
"""Words whose memorised next word is looked up in one pass."""


class FunctionalRift(Analysis):
    """Curves over the depth 0 (embedding), 1 (after layer 0), ..., L.

    data [example, step, depth], means over the positions of the question and the text up to the step: `prior`, the lens's
    probability of the next word memorised in pretraining; `context`, of the likeliest of the words that followed the same
    word earlier in the prompt; over positions where there is such a word and it is not the memorised one. `other`, the null of
    `context`: of the likeliest of as many words that never followed the word, drawn from the prompt so far by their
    frequency there. `prior_top1`,
    `context_top1`: how often these are the lens's first choice. `contextual`, over all positions: how often its first
    choice is a word of the prompt so far. `positions` [example, step]: how many positions `prior` and `context` are over.
    """

    name, title = "functional_rift", "Pretraining prior against in-context prior, layer by layer"
    source = "E11 (operational definition)"
    label, share, by_size = "probability or share", True, False
    ranges: ClassVar = {**dict.fromkeys(CURVES, bootstrap.SHARE), "positions": bootstrap.COUNT}

    def curves(self) -> xr.Dataset:
        """Means over examples of the means over their steps, with intervals: <curve>, <curve>_low, <curve>_high [depth]."""
        out = {}
        for name in CURVES:
            by_example = self.data[name].mean("step").transpose("example", "depth")
            found = bootstrap.mean_interval(by_example.values, within=bootstrap.SHARE)
            for part, value in (("", found.mean), ("_low", found.low), ("_high", found.high)):
                out[f"{name}{part}"] = ("depth", value)
        return xr.Dataset(out, coords={"depth": self.data["depth"]})

    def beyond(self) -> tuple[bootstrap.Interval, bootstrap.Interval]:
        """At the last depth: `other`, and how much `context` is above it, means over examples with intervals."""
        last = self.data[["context", "other"]].isel(depth=-1).mean("step")
        context, other = (last[name].values for name in ("context", "other"))
        return (
            bootstrap.mean_interval(other, within=bootstrap.SHARE),
            bootstrap.mean_interval(context - other, within=bootstrap.SHARES_APART),
        )

    def rift(self, *, step: int | None = None, draws: int = 500, seed: int = 0) -> Rift:
        """Where context minus prior jumps, over examples drawn anew; of one step, or of all steps together.

        Of any curve, noise too, some split of the depths fits best: the change is NaN unless the rise over it is above 0
        beyond its interval (`rise_interval`).
        """
        data = self.data if step is None else self.data.sel(step=[step])
        d = (data["context"] - data["prior"]).mean("step").transpose("example", "depth").values
        used = d[np.isfinite(d).all(1)]
        if len(used) == 0:
            nothing = (np.nan, np.nan, np.nan)
            return Rift(*nothing, None, None, None, np.nan, (np.nan, np.nan), nothing, 0)

        def places(index: NDArray[np.int64]) -> tuple[float, float, float]:
            curve = used[index].mean(0)
            at = change_point(curve)
            return at, crossing(curve), abruptness(curve, at)

        layers = (1.0, used.shape[1] - 1.0)
        found = bootstrap.statistic_interval(
            places, len(used), within=(layers, layers, bootstrap.SHARE), draws=draws, seed=seed
        )
        (change, cross, abrupt), low, high = (x.tolist() for x in found[:3])
        drawn = bootstrap.resampled(len(used), draws=draws, seed=seed) @ used / len(used)
        rise = (
            rise_interval(used.mean(0), drawn, len(used))
            if len(used) > 1
            else (float(rise_at(used[0], change)), np.nan, np.nan)
        )
        if np.isnan(change) or rise[1] <= 0:
            change, abrupt = np.nan, np.nan
            low[0], high[0], low[2], high[2] = (np.nan,) * 4
        ends = bootstrap.mean_interval(used[:, [0, -1]], within=bootstrap.SHARES_APART, seed=seed)
        return Rift(
            change,
            low[0],
            high[0],
            None if np.isnan(cross) else (cross, low[1], high[1]),
            bootstrap.above_zero(-ends.high[0], -ends.low[0], len(used)),
            bootstrap.above_zero(ends.low[1], ends.high[1], len(used)),
            abrupt,
            (low[2], high[2]),
            rise,
            len(used),
        )

    def shown(self) -> xr.Dataset:
        found = self.curves()
        parts = {"mean": "", "low": "_low", "high": "_high"}
        axis = xr.DataArray(list(CURVES), dims="curve", name="curve")
        curves = {end: xr.concat([found[f"{name}{part}"] for name in CURVES], axis) for end, part in parts.items()}
        return xr.Dataset(curves)

    def table(self) -> pd.DataFrame:
        """One row per step, and one for all: step, kind, n, change (depth), low, high, crossing and abruptness (each with
        name_low and name_high), turned."""
        import pandas as pd

        rows = []
        for step, kind in [(None, "all"), *zip(self.data["step"].values.tolist(), self.data["kind"].values)]:
            r = self.rift(step=step)
            where = ("all" if step is None else step, kind, r.n, r.change, r.low, r.high)
            rows.append((*where, *(r.crossing or (np.nan,) * 3), r.abruptness, *r.abrupt, r.turned))
        names = ["step", "kind", "n", "change", "low", "high"]
        names += [f"{name}{end}" for name in ("crossing", "abruptness") for end in ("", "_low", "_high")]
        return pd.DataFrame(rows, columns=[*names, "turned"])

    def findings(self) -> list[str]:
        """Where the change lies with its interval, whether the prompt takes over, how abrupt the change is."""
        r, last = self.rift(), int(self.data["depth"].max())
        if r.n == 0:
            return ["no position has a memorised next word and another one in the prompt: nothing can be said"]
        lines = [
            f"context minus prior changes most at depth {r.words('change')} of {last} (n = {r.n}); {r.words('abruptness')} of "
            "its rise lies within one layer of it"
            if np.isfinite(r.change)
            else r.none_found()
        ]
        if r.crossing and r.ahead:
            at, low, high = r.crossing
            depth = f"{at:.0f}{bootstrap.ends(low, high, '{:.0f}')}"
            lines.append(f"from depth {depth} on the prompt's next word is ahead of the memorised one")
        elif r.ahead:
            lines.append("the prompt's next word is ahead of the memorised one at every depth")
        elif r.ahead is None:
            lines.append("it is open which of the two next words is ahead at the end")
        else:
            lines.append("the prompt's next word never stays ahead of the memorised one")
        other, more = self.beyond()
        lines.append(
            f"at the last layer as many other words of the prompt have a probability of {other.words('{:.3f}')}, "
            f"the prompt's next word {more.words('{:+.3f}')} beyond that"
        )
        curves = self.curves()
        ends = ", ".join(
            f"{name} {c[0]:.3f} -> {c.max():.3f} (depth {c.argmax()}) -> {c[-1]:.3f}"
            for name, c in ((name, curves[name].values) for name in ("prior", "context", "contextual"))
        )
        return [*lines, f"embedding -> largest -> last layer: {ends}"]

    def plot(self, *, path: str | PathLike | None = None) -> Figure:
        """Both curves over the layers with their intervals, the change and its interval; below, each step's difference."""
        from pycotmech.figures.curves import line_with_band
        from pycotmech.figures.frame import PALETTE, finished
        from pycotmech.figures.library import Figure

        curves, r = self.curves(), self.rift()
        figure = Figure(figsize=(7.5, 5.6), layout="constrained")
        above, below = figure.subplots(2, 1, sharex=True, height_ratios=(3, 2))
        depth = self.data["depth"].values
        words = {
            "prior": "memorised next word",
            "context": "next word seen in the prompt",
            "other": "as many other words of the prompt",
            "contextual": "any word of the prompt",
        }
        colours = {"prior": "#b2182b", "context": "#2166ac", "other": "#92c5de", "contextual": "0.55"}
        for name, colour in colours.items():
            style = "--" if name == "contextual" else "-"
            values = (curves[f"{name}{end}"].values for end in ("", "_low", "_high"))
            line_with_band(above, depth, *values, alpha=0.18, linestyle=style, color=colour, label=words[name])
        if np.isfinite(r.change):
            above.axvspan(r.low - 0.5, r.high + 0.5, color="gold", alpha=0.3, lw=0, label="change, 95 % interval")
        above.set_ylabel("lens: probability\n(dashed: share of first choices)")
        above.legend(fontsize=8, frameon=False, ncols=3, loc="lower center", bbox_to_anchor=(0.5, 1.0))
        difference = (self.data["context"] - self.data["prior"]).mean("example")
        tints: dict[str, str] = {}
        for i in range(self.data.sizes["step"]):
            kind = str(self.data["kind"].values[i])
            label = None if kind in tints else f"steps of {kind}"
            colour = tints.setdefault(kind, PALETTE[len(tints) % 3])
            below.plot(depth, difference.isel(step=i), lw=1, color=colour, label=label)
        below.axhline(0, color="0.4", lw=0.8)
        below.set_ylabel("context − prior")
        below.set_xlabel("depth (0: embedding)")
        below.locator_params(axis="x", integer=True)
        below.legend(fontsize=7, frameon=False, ncols=3)
        return finished(figure, f"{self.about['model']}: {self.title}", self.small_print("context", marks="bands"), path=path)


@dataclass(frozen=True)
class Rift:
    """change: depth of the best single step in context - prior, with its bootstrap interval low .. high; NaN if none is found:
    if context - prior rises nowhere, or the interval of `rise` holds 0. rise: (mean over the depths from the change on minus
    mean over those below, low, high), NaN if nothing rises; the interval is NaN with one example. crossing: (depth,
    low, high) from which context stays ahead of prior, None if it never does. behind, ahead: whether context - prior is
    below 0 at the embedding and above it at the end: True or False beyond the interval, else None. abruptness: share of the
    rise within one layer of the change, with its interval `abrupt`. n: examples."""

    change: float
    low: float
    high: float
    crossing: tuple[float, float, float] | None
    behind: bool | None
    ahead: bool | None
    abruptness: float
    abrupt: tuple[float, float]
    rise: tuple[float, float, float]
    n: int

    def none_found(self) -> str:
        """Why there is no change, in words."""
        rise, low, high = self.rise
        if not np.isfinite(rise):
            return f"no change found: context minus prior rises nowhere (n = {self.n})"
        return (
            f"no change found: the interval of the largest rise of context minus prior from lower to upper layers holds 0, "
            f"{rise:+.2g} [{low:+.2g}, {high:+.2g}] (n = {self.n})"
        )

    @property
    def turned(self) -> bool | None:
        """Whether the prompt takes over: behind at the embedding and ahead at the end. None: open."""
        if self.behind is False or self.ahead is False:
            return False
        return True if self.behind and self.ahead else None

    def words(self, name: Literal["change", "abruptness"]) -> str:
        """A number with its interval, where there is one."""
        value, low, high = (self.change, self.low, self.high) if name == "change" else (self.abruptness, *self.abrupt)
        form = "{:.0f}" if name == "change" else "{:.0%}"
        return bootstrap.number(value, form) + bootstrap.ends(low, high, form)


def functional_rift(
    model: Model,
    examples: Examples,
    *,
    steps: Sequence[int] | None = None,
    right: Graded | Tensor | None = None,
    start: int | None = None,
    seed: int = 0,
    memory_gb: float | None = None,
    progress: Progress | None = None,
) -> FunctionalRift:
    """The logit lens after every layer, at every position of question and solution, on two kinds of next word.

    b_i = argmax P(v | start, s_i), the model's own next word for s_i without a prompt; I_i = the words that followed s_i
    earlier in the prompt. prior = mean of U(x_i)[b_i], context = mean of the largest U(x_i)[v] over v in I_i; over the
    positions where I_i holds something and not b_i (docs/protocol.md, E11: an operational definition, for the authors
    released none). Beside them, as their null, the largest U(x_i)[v] over as many words v of the prompt up to s_i that are
    neither in I_i nor b_i, drawn in proportion to how often they stand there.
    steps, right: as `cells.choose`; a step's positions are those of the item up to the word it predicts.
    start: the token before s_i when b_i is looked up; None: the model's BOS if its prompts begin with one, else the
        tokenizer's <|endoftext|>, BOS or EOS, whichever exists first.
    Raises TypeError or ValueError naming the argument.
    Cost: one pass of each example after the shared prefix, a pass of 2 tokens for each different token, and L + 1 rows
    of unembedding for each position. Memory: the suffix's residual stream of one example, 256 rows of logits.
    """
    check_common(model, seed=seed, memory_gb=memory_gb)
    cfg = model.cfg
    if start is not None and not 0 <= start < cfg.d_vocab:
        raise ValueError(f"start: got {start}; expected a token id in 0..{cfg.d_vocab - 1}")
    cells = choose(model, examples, steps=steps, right=right)
    first = _start(model, cells.examples.bos) if start is None else int(start)
    found = {name: cells.empty(cfg.n_layers + 1) for name in CURVES}
    found["positions"] = cells.empty()
    by_example = cells.by_example()
    tick = counting(progress, len(by_example))
    with metered(model) as meter:
        shared = examples.shared_ids
        past = model.prefixes.key_values(shared, planner.memory_budget(memory_gb, *model.family.devices))
        ends = {e: max(len(cell.step.clean) for cell in group) for e, group in by_example.items()}
        seen = torch.cat([examples[e].full_ids[len(shared) : end] for e, end in ends.items()]).unique()
        memorised = memorised_next(model, seen, first)
        for e, group in by_example.items():
            at = position_curves(model, examples[e].full_ids[: ends[e]], past, memorised, seed=seed)
            for cell in group:
                for name, value in at.upto(len(cell.step.clean)).items():
                    found[name][cell.e, cell.s] = value
                found["positions"][cell.e, cell.s] = int(at.used[: len(cell.step.clean) - at.first].sum())
            tick()
    shown = "nothing" if first is None else f"token {first}"
    words = f"lens on the next word memorised after {shown} and on those seen earlier in the prompt, where they differ"
    settings = {"start": first, "seed": seed}
    return FunctionalRift.made(model, cells, found, {"depth": cfg.n_layers + 1}, words, settings, meter)


def _start(model: Model, bos: bool) -> int | None:
    tokenizer = model.tokenizer
    if bos:
        return tokenizer.bos_token_id
    vocabulary = tokenizer.get_vocab()
    known = [vocabulary.get("<|endoftext|>"), tokenizer.bos_token_id, tokenizer.eos_token_id]
    return next((i for i in known if i is not None), None)


def memorised_next(model: Model, tokens: Tensor, start: int | None) -> dict[int, int]:
    """token -> argmax P(v | start, token), for different tokens [n]: the bigram that a model knows without a prompt."""
    out: dict[int, int] = {}
    front = torch.tensor([] if start is None else [start], dtype=torch.long)
    for chunk in tokens.split(_AHEAD):
        texts = [torch.cat((front, t[None])) for t in chunk]
        ends = torch.tensor([len(t) for t in texts]).cumsum(0) - 1
        final = forward_packed(model.family, texts, read=ends).resid_final
        with torch.no_grad():
            best = model.family.logits(final).argmax(-1)
        out |= dict(zip(chunk.tolist(), best.tolist(), strict=True))
    return out


@dataclass(frozen=True)
class PositionCurves:
    """The lens at the positions of one prompt: each curve [positions, depth]; used [positions]: where prior and context
    are defined. first: the first position."""

    first: int
    used: NDArray[np.bool_]
    values: Mapping[str, NDArray]

    def upto(self, end: int) -> dict[str, NDArray]:
        """Means over the positions before `end`, [depth] each; NaN where none is used."""
        n = end - self.first
        used = self.used[:n]
        out = {}
        for name, value in self.values.items():
            rows = value[:n] if name == "contextual" else value[:n][used]
            out[name] = nanmean(rows) if len(rows) else np.full(value.shape[1], np.nan)
        return out


@torch.no_grad()
def position_curves(
    model: Model, tokens: Tensor, past: KeyValues | None, memorised: Mapping[int, int], *, seed: int = 0
) -> PositionCurves:
    """The curves at every position of a prompt [T] after its computed beginning. seed: of the draws of other words; `other` is
    NaN at positions before which no other word stands."""
    family, P = model.family, 0 if past is None else len(past)
    ids = tokens.tolist()
    follows: dict[int, set[int]] = {}
    for a, b in itertools.pairwise(ids[:P]):
        follows.setdefault(a, set()).add(b)
    if 0 < P < len(ids):
        follows.setdefault(ids[P - 1], set()).add(ids[P])
    context: list[list[int]] = []
    for i in range(P, len(ids)):
        context.append(sorted(follows.get(ids[i], ())))
        if i + 1 < len(ids):
            follows.setdefault(ids[i], set()).add(ids[i + 1])
    prior = [memorised[ids[i]] for i in range(P, len(ids))]
    used = np.array([bool(c) and b not in c for c, b in zip(context, prior)])
    rng = np.random.default_rng(seed)
    others = [
        drawn_others(ids[: P + i + 1], {*context[i], prior[i]}, len(context[i]), rng) if used[i] else []
        for i in range(len(prior))
    ]
    packed = forward_packed(family, [tokens[P:]], past, sites=("resid_post",))
    embedding = family.embed(tokens[P:].to(family.device), torch.arange(P, len(tokens), device=family.device))
    streams = torch.cat((embedding[None], packed.sites["resid_post"]))  # [depth, R, d]
    values = {name: np.full((len(prior), len(streams)), np.nan) for name in CURVES}
    for j, stream in enumerate(streams):
        for a in range(0, len(prior), _LOGIT_ROWS):
            logits = family.logits(stream[a : a + _LOGIT_ROWS])
            best, sums = logits.argmax(-1).tolist(), torch.logsumexp(logits, -1)
            for r in range(len(logits)):
                i = a + r
                values["contextual"][i, j] = best[r] in set(ids[: P + i + 1])
                if used[i]:
                    values["prior"][i, j] = torch.exp(logits[r, prior[i]] - sums[r])
                    values["context"][i, j] = torch.exp(logits[r, context[i]].max() - sums[r])
                    if others[i]:
                        values["other"][i, j] = torch.exp(logits[r, others[i]].max() - sums[r])
                    values["prior_top1"][i, j] = best[r] == prior[i]
                    values["context_top1"][i, j] = best[r] in context[i]
    return PositionCurves(P, used, values)


def drawn_others(seen: Sequence[int], without: Set[int], n: int, rng: np.random.Generator) -> list[int]:
    """Returns n of the different tokens of a prompt that are not excluded, or all if there are fewer.

    A token is drawn in proportion to how often it stands in the prompt: the words that followed a word are frequent ones, and
    a model that repeats frequent words must not look as if it knew which of them follows.
    """
    counts = Counter(token for token in seen if token not in without)
    if not counts:
        return []
    free = sorted(counts)
    weights = np.array([counts[token] for token in free], dtype=np.float64)
    drawn = rng.choice(len(free), min(n, len(free)), replace=False, p=weights / weights.sum())
    return [free[i] for i in drawn]


def cost(cfg: ModelConfig, workload: Workload) -> Cost:
    """Predicted: each example after the prefix, the lens of every position at every depth, some hundred short texts."""
    own = workload.length - workload.shared
    rows = workload.examples * own * 1.2 + workload.shared
    return rows_cost(
        cfg,
        rows,
        forwards=workload.examples,
        read=workload.examples * own * 1.2 * (cfg.n_layers + 1),
        memory=12.0 * _LOGIT_ROWS * cfg.d_vocab,
    )


def authors_cost(cfg: ModelConfig, workload: Workload) -> Cost:
    """A forward and the lens of every position of the whole prompt, for each cell (the authors released no code)."""
    return forwards_cost(cfg, workload, workload.cells, read=cfg.n_layers + 1)


ANALYSIS = Description(FunctionalRift, functional_rift, cost=cost, authors=authors_cost, claims=("rift",))
