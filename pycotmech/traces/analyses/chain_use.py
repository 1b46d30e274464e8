"""Is the chain of thought used? What the answer's probability owes to the chain, its sentences, its order, and which heads.

For each trace the answer is asked for, after the trace's own cue,

* with the whole reasoning ("full"), and without any ("none", truncation as in Lanham et al. 2023);
* after another trace's reasoning of as many tokens ("other"): as much text, as much computation, other content;
* after the trace's own sentences in random order ("shuffled").

Which sentences matter is asked by suppression, with spans of the same length and distance as the control; which heads, by
cutting their view of the reasoning one at a time; when the answer is decided, by early answers. Every question gets a verdict
over traces.
"""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from os import PathLike
from typing import TYPE_CHECKING, Any, ClassVar, Literal, NamedTuple

import numpy as np
import torch
import xarray as xr
from numpy.typing import NDArray
from torch import Tensor

from pycotmech.cot.tools.result import Progress, counting
from pycotmech.engine import planner
from pycotmech.engine.metrics import log_probability
from pycotmech.model.arguments import check_common, check_integer
from pycotmech.model.run import forward_packed
from pycotmech.stats import bootstrap, significance
from pycotmech.stats.power import examples_needed
from pycotmech.traces.analyses.early_answers import EarlyAnswers, early_answers
from pycotmech.traces.analyses.head_influence import head_influence
from pycotmech.traces.analyses.suppress import Suppression, suppress
from pycotmech.traces.parts import Parts, key_of
from pycotmech.traces.result import TraceAnalysis, check_trace, checked_traces

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure

    from pycotmech.model import Model
    from pycotmech.traces.trace import Trace

CONDITIONS = ("full", "none", "other", "shuffled")
CONDITION_NAMES = {"full": "its own", "none": "none", "other": "another trace's", "shuffled": "its own, shuffled"}
"""What the reasoning is in each condition, in words."""
WHEN = ("before", "during", "at the end", "never")
SHUFFLES = 4
"""Random orders of a trace's sentences, by default."""
MARGIN = 0.05
"""A fall of the answer's probability below this is none that matters."""
NATS = 0.01
"""A fall of the answer's log probability below this is none that matters."""

ALPHA = 0.05


Word = Literal["yes", "no", "not decided"]


@dataclass(frozen=True)
class Answered:
    """The answer to a question about chains. word: "yes", "no" or "not decided". evidence: the numbers, and of an open
    question why it is open and about how many traces would decide it. needed: that number; None if the question is decided or
    nothing can be said, inf where no feasible number would."""

    question: str
    word: Word
    evidence: str
    needed: float | None = None

    def __str__(self) -> str:
        return f"{self.question} {self.word}: {self.evidence}"


class ChainUse(TraceAnalysis):
    """What the answers of traces owe to their reasoning.

    data: probability [trace, condition], of the answer; answer_change, control_answer_change [trace, sentence], by how much
    its log probability falls without attention to a sentence, and as the control that of other tokens without attention to a
    span as long and as far before them; influence [trace, layer, head], by how much it falls if a head does not see the
    reasoning from after it; early [trace, after], its probability after so many sentences; decided [trace], after how many it
    is the likeliest and stays so, -1 for never; sentences [trace], how many there are. NaN where a trace has fewer.
    """

    name, title = "chain_use", "Is the chain of thought used?"
    source = "arXiv 2307.13702 and 2506.19143; the controls are ours"
    label, share, by_size = "probability of the answer", True, False
    ranges: ClassVar = {"probability": bootstrap.SHARE, "early": bootstrap.SHARE}

    def falls(self, condition: str) -> bootstrap.Interval:
        """By how much the probability of the answer falls in a condition ("none", "other", "shuffled"), over traces."""
        return bootstrap.mean_interval(self._fall(condition), within=bootstrap.SHARES_APART)

    def _fall(self, condition: str) -> NDArray[np.float64]:
        p = self.data["probability"]
        return p.sel(condition="full").values - p.sel(condition=condition).values

    def when(self) -> dict[str, bootstrap.Interval]:
        """The share of traces whose answer is decided before the reasoning, during it, at its end, or never."""
        return {
            name: bootstrap.mean_interval((self._when() == i).astype(float), within=bootstrap.SHARE)
            for i, name in enumerate(WHEN)
        }

    def _when(self) -> NDArray[np.int64]:
        at, S = self.data["decided"].values, self.data["sentences"].values
        return np.select([at < 0, at == 0, at >= S], [3, 0, 2], 1)

    def decided_by(self, shares: NDArray) -> NDArray[np.float64]:
        """The share of traces whose answer is decided, to the end, once these shares of the sentences are there: [n] -> [n]."""
        at, S = self.data["decided"].values[:, None], self.data["sentences"].values[:, None]
        return ((at >= 0) & (at <= np.asarray(shares) * S + 1e-9)).mean(0)

    def excess(self) -> NDArray[np.float64]:
        """[trace, sentence]: by how much more the answer's log probability falls than the control's. A control that rises
        counts as one that stays, or a sentence without any effect would seem to have one."""
        return self.data["answer_change"].values - np.maximum(self.data["control_answer_change"].values, 0)

    def heads(self, *, alpha: float = ALPHA, margin: float = NATS) -> list[tuple[int, int]]:
        """Heads through which the reasoning raises the answer's log probability by more than `margin` (nats), beyond chance: by
        sign flips of traces, family-wise at `alpha`. Raises ValueError naming alpha for too few traces."""
        values = self.data["influence"].transpose("trace", "layer", "head").values
        if len(values) < (least := significance.fewest(alpha)):
            raise ValueError(
                f"alpha: got {alpha:g}, which sign flips of {len(values)} traces cannot reach; expected {least} traces or more"
            )
        p = significance.p_values(values - margin, alpha=alpha, seed=self.about["settings"]["seed"])
        return [(int(l), int(h)) for l, h in np.argwhere(p <= alpha)]

    def verdicts(self, *, margin: float = MARGIN) -> list[Answered]:
        """The answers to five questions. margin: what a fall of probability has to exceed.

        Of an open question the number of traces that would decide it with a probability of 80 % is predicted, as if further
        traces were like these: from few traces an order of magnitude.
        """
        return [self._depends(margin), self._order(margin), self._sentences(), self._through(), self._decided()]

    def _depends(self, margin: float) -> Answered:
        parts, found, needed = [], [], []
        for condition, where in (("none", "without it"), ("other", "with another trace's in its place")):
            fall = self.falls(condition)
            parts.append(_above(fall, margin, bootstrap.SHARES_APART))
            found.append(f"the answer's probability falls by {fall.words('{:z.2f}')} {where}{parts[-1].because}")
            needed += [examples_needed(self._fall(condition), margin)] if parts[-1].word == "not decided" else []
        word: Word = "not decided"
        if all(part.word == "yes" for part in parts):
            word = "yes"
        elif any(part.word == "no" for part in parts):
            word = "no"
        n = self.data.sizes["trace"]
        evidence = f"{'; '.join(found)} (n = {n} traces)"
        return _answered("Does the answer depend on the chain?", word, evidence, n, float(np.max([0.0, *needed])))

    def _order(self, margin: float) -> Answered:
        fall = self.falls("shuffled")
        found = _above(fall, margin, bootstrap.SHARES_APART)
        evidence = f"the answer's probability falls by {fall.words('{:z.2f}')} with sentences shuffled{found.because}"
        needed = examples_needed(self._fall("shuffled"), margin)
        return _answered("Does the order of its sentences matter?", found.word, evidence, self.data.sizes["trace"], needed)

    def _sentences(self) -> Answered:
        question, excess = "Do single sentences carry it?", self.excess()
        known = np.isfinite(excess)
        if not known.any():
            why = "no control was asked for" if self.about["settings"]["controls"] == 0 else "no sentence has room for one"
            return Answered(question, "not decided", f"there are no control spans to compare sentences with: {why}")
        strongest = np.where(known.any(1), np.where(known, excess, -np.inf).max(1), np.nan)
        means = np.array([_finite_mean(row) for row in excess])
        mean = bootstrap.mean_interval(means)
        found = _above(mean, NATS)
        named = []
        for t in np.argsort(-np.nan_to_num(strongest, nan=-np.inf), kind="stable")[:3]:
            if np.isfinite(strongest[t]):
                j = int(np.nanargmax(excess[t]))
                named.append(f"{self.about['traces'][t]}, sentence {self.sentence(j, int(t))} ({excess[t, j]:+.2f} nats)")
        evidence = (
            "without attention to a sentence the answer's log probability falls, on average, by "
            f"{mean.words('{:.2f}')} nats more than that of other tokens without a span of its length and distance"
            f"{found.because}; most: {'; '.join(named)}"
        )
        return _answered(question, found.word, evidence, int(np.isfinite(means).sum()), examples_needed(means, NATS))

    def _through(self) -> Answered:
        question = "Are there heads through which it reaches the answer?"
        values = self.data["influence"].transpose("trace", "layer", "head").values
        n, mean = len(values), values.mean(0)
        l, h = np.unravel_index(int(mean.argmax()), mean.shape)
        largest = f"the largest mean fall is {mean[l, h]:.2f} nats, without L{l}H{h}"
        if n < (least := significance.fewest(ALPHA)):
            evidence = f"{largest}; whether that is beyond chance takes {least} traces or more, and there are {n}"
            return Answered(question, "not decided", evidence)
        found = self.heads()
        if not found:
            high = bootstrap.mean_interval(values).high
            evidence = (
                f"none of {mean.size} heads, cut one at a time, lowers the answer's log probability by more than {NATS:g} nats "
                f"beyond chance; {largest} (n = {n} traces)"
            )
            word: Word = "no" if (high <= NATS).all() else "not decided"
            # The head that stands out most decides first; as many tests as there are heads leave each its part of alpha.
            z = (mean - NATS) / np.maximum(values.std(0), 1e-12)
            l, h = np.unravel_index(int(z.argmax()), z.shape)
            needed = examples_needed(values[:, l, h], NATS, level=1 - ALPHA / mean.size) if z[l, h] > 0 else np.inf
            return _answered(question, word, evidence, n, needed)
        best = sorted(found, key=lambda p: -mean[p])[:5]
        named = ", ".join(f"L{l}H{h} {mean[l, h]:.2f}" for l, h in best)
        return Answered(
            question, "yes",
            f"{len(found)} of {mean.size} heads (family-wise p <= {ALPHA:g}, n = {n} traces); the log probability falls most, "
            f"in nats, without {named}",
        )  # fmt: skip

    def _decided(self) -> Answered:
        shares = self.when()
        evidence = "decided " + ", ".join(f"{name} {share.words()}" for name, share in shares.items())
        before, early = shares["before"], (self._when() == 0).astype(float)
        word: Word = "not decided"
        if np.isfinite(before.low):
            word = "yes" if before.low > 0.5 else "no" if before.high < 0.5 else "not decided"
        needed = examples_needed(early, 0.5, share=True)
        return _answered("Is the answer decided before the reasoning, in most traces?", word, evidence, len(early), needed)

    def shown(self) -> xr.Dataset:
        return self.interval("probability", over="trace")

    def table(self) -> pd.DataFrame:
        """A line for each trace: trace, sentences, full, none, other, shuffled (probabilities), decided, sentence (that with
        the largest excess), excess."""
        import pandas as pd

        d, excess = self.data, self.excess()
        best = [int(np.nanargmax(row)) if np.isfinite(row).any() else -1 for row in excess]
        columns: dict[str, Any] = {"trace": self.about["traces"], "sentences": d["sentences"].values}
        columns |= {c: d["probability"].sel(condition=c).values for c in CONDITIONS}
        columns |= {"decided": d["decided"].values, "sentence": best}
        columns["excess"] = [row[j] if j >= 0 else np.nan for row, j in zip(excess, best)]
        return pd.DataFrame(columns)

    def findings(self) -> list[str]:
        return [str(verdict) for verdict in self.verdicts()]

    def plot(self, *, path: str | PathLike | None = None) -> Figure:
        """The probability in each condition and along the reasoning, and the share of traces that are decided by then."""
        from pycotmech.figures.bars import bars_with_intervals
        from pycotmech.figures.frame import PALETTE, finished, small
        from pycotmech.figures.library import Figure

        figure = Figure(figsize=(9.5, 4.0), layout="constrained")
        left, right = figure.subplots(1, 2, width_ratios=(2, 3))
        found = self.interval("probability", over="trace").sel(condition=list(CONDITIONS))
        ticks = [textwrap.fill(CONDITION_NAMES[c], 9) for c in CONDITIONS]  # in two lines: names lie beside one another
        bars_with_intervals(left, found, ticks, across="reasoning, mean over traces", up="probability of the answer")
        grid = np.linspace(0, 1, 41)
        curves, label = [], "probability, each trace"
        for row, S in zip(self.data["early"].values, self.data["sentences"].values):
            curves.append(np.interp(grid, np.arange(S + 1) / S, row[: S + 1]))
            right.plot(np.arange(S + 1) / S, row[: S + 1], color=PALETTE[1], alpha=0.25, linewidth=0.8, label=label)
            label = None
        right.plot(grid, np.mean(curves, 0), color=PALETTE[0], linewidth=1.8, label="mean probability")
        right.step(grid, self.decided_by(grid), where="post", color=PALETTE[2], linewidth=1.4, label="share of traces decided")
        right.set_ylim(-0.03, 1.03)
        right.legend(fontsize=8)
        small(right, across="share of the sentences before the answer is asked for", up="probability, or share of traces")
        lines = ["error bars: 95 % intervals over traces", *self.small_print()]
        return finished(figure, f"{self.about['model']}: {self.title}", lines, path=path)


def is_chain_used(
    model: Model,
    traces: Sequence[Trace],
    *,
    shuffles: int = SHUFFLES,
    controls: int = 1,
    seed: int = 0,
    memory_gb: float | None = None,
    progress: Progress | None = None,
    done: Sequence[tuple[Suppression, EarlyAnswers]] | None = None,
    parts: Parts | None = None,
) -> ChainUse:
    """Asks whether the answers of traces depend on their reasoning, on which sentences, through which heads, and from when on.

    traces: two or more, with answers. The other trace's reasoning is drawn among those with another answer, if there are any.
    shuffles: random orders of each trace's sentences, over which the probability is averaged. controls: as in `suppress`.
    seed: of these draws. done: results of `suppress` and `early_answers` for each trace, if they are known.
    progress: called with (traces done, in all).
    parts: where finished traces are kept, so that the same call after an interruption computes the others only.

    Raises TypeError or ValueError naming the argument, before anything is run.
    Cost: for each trace `suppress`, `early_answers`, `head_influence` of the reasoning on the answer, and 2 + shuffles runs of
    its reasoning.
    """
    check_common(model, seed=seed, memory_gb=memory_gb)
    check_integer(shuffles, "shuffles", 1)
    used = [check_trace(t, model.cfg.d_vocab) for t in checked_traces(traces)]
    if len(used) < 2:
        raise ValueError("traces: got one; expected two or more, so that one's reasoning can be put in another's place")
    for i, trace in enumerate(used):
        if trace.answer is None:
            raise ValueError(f"traces[{i}]: {trace.title} has no answer; expected traces made with answer=")
    if done is not None and len(done) != len(used):
        raise ValueError(f"done: got {len(done)} for {len(used)} traces; expected one pair for each")
    n, S, cfg = len(used), max(t.n_sentences for t in used), model.cfg
    key = key_of("chain_use", model, used, shuffles=shuffles, controls=controls, seed=seed)
    data: dict[str, NDArray[Any]] = {
        "probability": np.full((n, len(CONDITIONS)), np.nan), "answer_change": np.full((n, S), np.nan),
        "control_answer_change": np.full((n, S), np.nan), "influence": np.full((n, cfg.n_layers, cfg.n_heads), np.nan),
        "early": np.full((n, S + 1), np.nan), "decided": np.full(n, -1, dtype=np.int64), "done": np.zeros(n, dtype=bool),
    }  # fmt: skip
    data |= {} if parts is None else parts.read(key)
    rng = np.random.default_rng(seed)
    tick = counting(progress, n)
    notes = set()
    for i, trace in enumerate(used):
        others = [t for t in used if t is not trace and not torch.equal(t.answer_tokens, trace.answer_tokens)]
        if not others:
            notes.add("all traces have the same answer, so another trace's reasoning may lead to it too")
            others = [t for t in used if t is not trace]
        # Drawn for every trace, finished or not, so that the later ones have the same draws.
        other = others[int(rng.integers(len(others)))]
        orders = [rng.permutation(trace.n_sentences) for _ in range(shuffles)]
        if data["done"][i]:
            tick()
            continue
        data["probability"][i] = _conditions(model, trace, other, orders, memory_gb)
        cut, early = done[i] if done is not None else (
            suppress(model, trace, controls=controls, seed=seed, memory_gb=memory_gb),
            early_answers(model, trace, lens=False, memory_gb=memory_gb),
        )  # fmt: skip
        for name in ("answer_change", "control_answer_change"):
            data[name][i, : trace.n_sentences] = cut.data[name].values
        data["early"][i, : trace.n_sentences + 1] = early.values
        data["decided"][i] = -1 if early.decided is None else early.decided
        data["influence"][i] = head_influence(model, trace, source="reasoning", memory_gb=memory_gb).values
        data["done"][i] = True  # the last, as parts may be written at any time
        if parts is not None:
            parts.keep(key, data)
        tick()
    dims = {
        "probability": ("trace", "condition"), "answer_change": ("trace", "sentence"),
        "control_answer_change": ("trace", "sentence"), "influence": ("trace", "layer", "head"), "early": ("trace", "after"),
        "decided": ("trace",),
    }  # fmt: skip
    variables: dict[str, Any] = {name: (of, data[name]) for name, of in dims.items()}
    variables |= {"sentences": (("trace",), np.array([t.n_sentences for t in used]))}
    axes: dict[str, Any] = {"trace": np.arange(n), "condition": list(CONDITIONS), "sentence": np.arange(S)}
    axes |= {"after": np.arange(S + 1), "layer": np.arange(cfg.n_layers), "head": np.arange(cfg.n_heads)}
    words = "probability of the trace's answer after its own cue, with the reasoning changed"
    settings = {"shuffles": shuffles, "controls": controls, "seed": seed}
    return ChainUse.of_traces(model, used, xr.Dataset(variables, coords=axes), words, settings, sorted(notes))


@torch.no_grad()
def _conditions(
    model: Model, trace: Trace, other: Trace, orders: Sequence[NDArray], memory_gb: float | None
) -> NDArray[np.float64]:
    """Probability of the answer in each of `CONDITIONS`. orders: of the sentences, over which "shuffled" is averaged."""
    spans = [trace.tokens[s.start : s.stop] for s in trace.sentences]
    length = trace.reasoning.stop - trace.reasoning.start
    foreign = other.tokens[other.reasoning]
    foreign = foreign.repeat(-(-length // len(foreign)))[:length]
    chains = [trace.tokens[trace.reasoning], trace.tokens[:0], foreign]
    chains += [torch.cat([spans[j] for j in order]) for order in orders]
    found = chain_probabilities(model, trace, chains, memory_gb)
    return np.array([*found[:3], found[3:].mean()])


@torch.no_grad()
def chain_probabilities(
    model: Model, trace: Trace, chains: Sequence[Tensor], memory_gb: float | None = None
) -> NDArray[np.float64]:
    """Probability of a trace's answer after its prompt, each of these chains in the place of its reasoning, and its cue.

    Cost: the prompt once, and each chain.
    """
    family, room = model.family, planner.memory_budget(memory_gb, *model.family.devices)
    begin, answer = trace.reasoning.start - 1, trace.answer_tokens
    past = model.prefixes.key_values(trace.tokens[:begin], room)
    sequences = [torch.cat((trace.tokens[begin : begin + 1], chain, trace.cue, answer[:-1])) for chain in chains]
    row = planner.prompt_bytes(family, 1, 1, ()) + planner.block_bytes(family, 1)
    out = []
    for a, b in planner.cut([len(s) * row for s in sequences], room // 2):
        stops = torch.tensor([len(s) for s in sequences[a:b]]).cumsum(0)
        read = (stops[:, None] - len(answer) + torch.arange(len(answer))).flatten()
        logits = family.logits(forward_packed(family, sequences[a:b], past, read=read).resid_final)
        ids = answer.repeat(b - a).to(logits.device)
        out.append(log_probability(logits, ids).view(b - a, -1).sum(1).exp().cpu())
    return torch.cat(out).numpy()


class _Above(NamedTuple):
    """Whether a number lies above a threshold. because: why that is open, to be added to the evidence; empty if it is not."""

    word: Word
    because: str = ""


def _above(found: bootstrap.Interval, threshold: float, within: bootstrap.Range | None = None) -> _Above:
    """Judges by the interval of a number over traces. within: its range."""
    low, high, n = float(found.low), float(found.high), int(found.n)
    if why := bootstrap.undecidable(low, high, n, threshold, within, unit="trace"):
        return _Above("not decided", f", which decides nothing: {why}")
    if low > threshold:
        return _Above("yes")
    if high <= threshold:
        return _Above("no")
    return _Above("not decided", f", where only more than {threshold:g} counts, and the interval lies on both sides of that")


def _answered(question: str, word: Word, evidence: str, n: int, needed: float) -> Answered:
    """An answer with what an open question needs. n: the traces that it rests on."""
    if word != "not decided" or np.isnan(needed):
        return Answered(question, word, evidence)
    if np.isinf(needed):
        more = "no feasible number of traces like these would decide it"
    elif needed <= n:
        more = f"a few more traces like these may decide it; there are {n}"
    else:
        more = f"about {needed:,.0f} traces like these would decide it; there are {n}"
    return Answered(question, word, f"{evidence}. {more[0].upper()}{more[1:]}", needed)


def _finite_mean(x: NDArray) -> float:
    known = x[np.isfinite(x)]
    return float(known.mean()) if len(known) else float("nan")
