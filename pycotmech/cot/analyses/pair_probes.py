"""Probes pairs of residual streams, layer by layer, for how two words are related (docs/protocol.md, E9)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from os import PathLike
from typing import TYPE_CHECKING, ClassVar, Literal, get_args

import numpy as np
import xarray as xr
from numpy.typing import NDArray
from torch import Tensor

from pycotmech._choices import check_choice, unknown_choice
from pycotmech.cot.task.entailed import ENTAILED
from pycotmech.cot.task.relations import CLASSES, Question, Unrelated
from pycotmech.cot.tools.cost import Cost, Workload, metered
from pycotmech.cot.tools.probe_tasks import Fits, Task, split_questions
from pycotmech.cot.tools.probes import (
    COMPONENTS,
    HIDDEN,
    fit_surface,
    macro_f1,
)
from pycotmech.cot.tools.question_runs import (
    Features,
    Piece,
    every_forward,
    pair_table,
    question_length,
    questions_cost,
    questions_of,
    surface,
)
from pycotmech.cot.tools.registry import Description
from pycotmech.cot.tools.result import Analysis, Progress, interval_table
from pycotmech.model.arguments import check_common, check_integer
from pycotmech.model.config import ModelConfig, layer_flop
from pycotmech.model.random_twin import random_twin
from pycotmech.stats import bootstrap

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure

    from pycotmech.cot.task.examples import Examples
    from pycotmech.cot.task.steps import Graded
    from pycotmech.model import Model

QUESTIONS = 100
Probe = Literal["linear", "bilinear", "mlp"]
Definition = Literal["right", "paper"]
LOWER = 2 / 3
"""Part of the depths among which a probe is chosen: the paper's claim is about the lower and middle layers."""


class PairProbes(Analysis):
    """Accuracy over the depth 0 (embedding), 1 (after layer 0), ..., L, on questions that no probe has seen.

    data, on the axes example (test units: questions of the same words, or a single question), depth, probe:

    * `confusion` [.., label, predicted]: counts.
    * `random`: accuracy of the same probes on a model of the same shape with random weights.
    * `stated`: their accuracy on pairs at the same places that one sentence relates, or none; NaN without such pairs.
    * `surface` [example]: accuracy of a random forest that sees places, distance and neighbours of both words, but no model.
    * `held_out`, `random_held_out` [depth, probe]: accuracy on held-out training questions, by which choices are made.
    * `part` [question]: "train", "held" (of the training set) or "test"; `unit` [question].
    * `pair_*` [pair]: the question, label, distance and words of every pair.
    """

    name, title = "pair_probes", "How two words are related, read from their residual streams"
    source, label, share, by_size = "E9", "accuracy", True, False
    ranges: ClassVar = dict.fromkeys(("random", "stated", "surface"), bootstrap.SHARE)

    @property
    def chance(self) -> float:
        """Accuracy at chance."""
        return 1 / self.data.sizes["label"]

    def accuracy(self) -> xr.Dataset:
        """Returns the share of right answers among all pairs of the test questions: mean, low, high, n [depth, probe]."""
        confusion = self._confusion()
        hits = np.diagonal(confusion, axis1=-2, axis2=-1).sum(-1)
        return self._labelled(bootstrap.ratio_interval(hits, confusion.sum((-2, -1)), within=bootstrap.SHARE))

    shown = accuracy

    def by_unit(self) -> xr.DataArray:
        """Accuracy [example, depth, probe] on the pairs of each test unit."""
        confusion = self._confusion()
        with np.errstate(invalid="ignore"):
            share = np.diagonal(confusion, axis1=-2, axis2=-1).sum(-1) / confusion.sum((-2, -1))
        coords = {name: self.data[name] for name in ("depth", "probe")}
        return xr.DataArray(share, dims=("example", "depth", "probe"), coords=coords)

    def f1(self, *, draws: int = 500, seed: int = 0) -> xr.Dataset:
        """Macro-F1 of all pairs of the test units, which are resampled for the interval: mean, low, high [depth, probe]."""
        confusion = self._confusion()
        n = len(confusion)
        found = macro_f1(confusion.sum(0))
        weights = bootstrap.resampled(n, draws=draws, seed=seed)
        drawn = macro_f1(np.tensordot(weights, confusion, 1))
        number = np.full(found.shape, n)
        ends = bootstrap.widened(found, *bootstrap.percentiles(drawn), number, within=bootstrap.SHARE)
        ends = bootstrap.with_width(found, *ends, number, within=bootstrap.SHARE)
        return self._labelled(bootstrap.Interval(found, *ends, number))

    def best(self, probe: str, *, upto: float = np.inf) -> int:
        """Returns the depth, up to `upto`, at which a probe did best on held-out training questions; the earliest of ties."""
        held = self.data["held_out"].sel(probe=probe, depth=self.data["depth"] <= upto)
        return int(held["depth"].values[int(np.argmax(held.values))])

    def choice(self, *, share: float = LOWER, held_out: str = "held_out") -> tuple[str, int]:
        """Returns the probe and depth that did best on held-out training questions; the earliest depth of ties.

        share: depths from 1 to this share of all layers are candidates; if there is none, the embedding. held_out:
        "random_held_out" chooses on the random weights instead.
        """
        depths = self.data["depth"].values
        held = self.data[held_out].transpose("depth", "probe").values
        among = (depths > 0) & (depths <= share * self.about["settings"]["n_layers"])
        among = among if among.any() else depths == 0
        i, j = np.unravel_index(int(np.argmax(np.where(among[:, None], np.nan_to_num(held), -1))), held.shape)
        return str(self.data["probe"].values[j]), int(depths[i])

    def baselines(self) -> dict[str, NDArray]:
        """Returns the accuracy [example] of each null: surface, best probe on the embedding, best probe on random weights."""
        probe, _ = self.choice(share=0)
        weights = self.data["random"].sel(dict(zip(("probe", "depth"), self.choice(held_out="random_held_out"))))
        return {
            "surface": self.data["surface"].values,
            "embedding": self.by_unit().sel(probe=probe, depth=0).values,
            "random weights": weights.values,
        }

    def gains(self) -> dict[str, bootstrap.Interval]:
        """Accuracy of the choice less that of each baseline, unit by unit."""
        probe, depth = self.choice()
        here = self.by_unit().sel(probe=probe, depth=depth).values
        within = bootstrap.SHARES_APART
        return {name: bootstrap.mean_interval(here - x, within=within) for name, x in self.baselines().items()}

    def table(self) -> pd.DataFrame:
        """One row per probe and depth: probe, depth, accuracy, low, high, macro_f1, random, stated (each of these three with
        name_low and name_high), best (by held-out questions), n (test units)."""
        found = {"accuracy": self.accuracy(), "macro_f1": self.f1(), "random": self.interval("random")}
        found["stated"] = self.interval("stated")
        best = lambda at: {"best": at["depth"] == self.best(at["probe"])}  # noqa: E731
        return interval_table(found, ("probe", "depth"), main="accuracy", more=best)

    def findings(self) -> list[str]:
        """The chosen probe and its accuracy, its gain over each baseline, and whether it could find a stated relation."""
        s, n = self.about["settings"], self.data.sizes["example"]
        probe, depth = self.choice()
        last, at = s["n_layers"], {"probe": probe, "depth": depth}
        accuracy, gains = self.accuracy().sel(at), self.gains()
        inside = bootstrap.ends(accuracy["low"], accuracy["high"], "{:.3f}")
        lines = [
            f"{s['train']} training questions with {s['samples']} pairs, {n} test units; chance {self.chance:.3f}",
            f"{probe}: {float(accuracy['mean']):.3f}{inside} at depth {depth} of {last}, the best of the lower two thirds on "
            "held-out training questions",
        ]
        for name, values in self.baselines().items():
            lines.append(f"{name} {alone(values, '{:.3f}')}: the probe is {gains[name].words('{:+.3f}')} above")
        lines.append(self.conclusion())
        known = bootstrap.mean_interval(self.data["stated"].sel(at).values, within=bootstrap.SHARE)
        if np.isfinite(known.mean):
            found = (
                f"on words that one sentence relates, at the same places, the same probe's accuracy is {known.words('{:.3f}')}"
            )
            lines.append(found + ("" if known.low > self.chance else ": it might have missed a relation that is there"))
        if s["definition"] == "paper":
            lines.append(
                "these classes differ in their surface, so no accuracy on them shows that a model encodes the relation: "
                "only what exceeds the surface can come from the model, and whether that is the relation remains open"
            )
        return lines

    def conclusion(self) -> str:
        """Returns in one sentence whether the streams hold the relation beyond what the baselines give."""
        gains = self.gains()
        without = [name for name, gain in gains.items() if gain.low <= 0]
        if without:
            return f"no gain remains above {', '.join(without)}: it is not shown that the streams encode the relation"
        if unknown := [name for name, gain in gains.items() if not np.isfinite(gain.low)]:
            return f"what {', '.join(unknown)} give is unknown: it is not shown that the streams encode the relation"
        return "the streams encode more of the relation than surface, embedding and random weights do"

    def plot(self, *, path: str | PathLike | None = None) -> Figure:
        """Accuracy over the depth with its interval, beside the baselines; and on pairs that one sentence relates."""
        from pycotmech.cot.analyses.pair_probes_figure import figure
        from pycotmech.figures.frame import saved

        return saved(figure(self), path)

    # ---- parts -----------------------------------------------------------------------------------------------------

    def _confusion(self) -> NDArray:
        return self.data["confusion"].transpose("example", "depth", "probe", "label", "predicted").values

    def _labelled(self, found: bootstrap.Interval) -> xr.Dataset:
        coords = {"depth": self.data["depth"], "probe": self.data["probe"]}
        return xr.Dataset({k: (("depth", "probe"), v) for k, v in found._asdict().items()}, coords=coords)


def alone(accuracy: NDArray, form: str = "{:.0%}") -> str:
    """Returns an accuracy [example] in words, without an interval if it is a constant by construction: if the questions of a
    unit have the same predictions, half of these are right."""
    known = accuracy[np.isfinite(accuracy)]
    if len(known) and np.ptp(known) == 0 and 0 < known[0] < 1:
        return f"{form.format(known[0])} in each unit"
    return bootstrap.mean_interval(accuracy, within=bootstrap.SHARE).words(form)


def pair_probes(
    model: Model,
    examples: Examples | None = None,
    *,
    questions: int | Sequence[Question] = QUESTIONS,
    shots: int = 0,
    depths: Sequence[int] | None = None,
    probe: Sequence[Probe] | None = None,
    piece: Piece | None = None,
    unrelated: Unrelated | None = None,
    components: int = COMPONENTS,
    shuffled: bool = False,
    definition: Definition = "right",
    right: Graded | Tensor | None = None,
    seed: int = 0,
    memory_gb: float | None = None,
    progress: Progress | None = None,
) -> PairProbes:
    """Probes the residual streams x_i, x_j of two words: do they hold that the words are related, though no sentence says so?

    A pair joins a first word with a last word of a chain ("A is M", "M is B", "B is C": A and C, M and C), either of the same
    chain or of two chains (`cot.task.entailed.make_entailed`). Each pair occurs in both classes at the same places, in texts
    that differ only in some subjects, so that surface and embedding are at chance. A probe shows something only if it is above
    both, and above the same probe on a model with random weights.

    Two fifths of the questions are test questions; questions of the same words stay together. Each part has the same number of
    pairs of each class, in random order. Penalty, stopping and depth are chosen on held-out training questions: each unit in
    turn for the bilinear probe, a fifth of the questions for the others. The probes are

    * bilinear: kernel ridge regression on all products of an entry of x_i with an entry of x_j. It is the simplest probe that
      can compare two vectors, and cannot follow a chain by itself.
    * mlp: two hidden layers on [x_i ; x_j], standardised and projected to the `components` principal axes of the training set.
      It can follow a chain by itself.
    * linear: penalised logistic regression on the same features. It cannot compare two vectors.

    examples: their style, ontology and demonstrations are used for the questions; None: the defaults of `make_entailed`.
    questions: how many to make (rounded up to fours), or your own, with the classes `cot.task.entailed.ENTAILED`
        (`cot.task.relations.CLASSES` for the paper's definition). For your own questions the surface may be above chance.
    shots: number of demonstrations before each question; those of the examples if these have as many.
    depths: 0 (embedding, always included), 1 (after layer 0) .. n_layers; None: all.
    probe: kinds of probes; None: bilinear, or linear and mlp for the paper's definition.
    piece: the token at which each word is read; None: its last token, which has seen the whole word.
    shuffled: whether to permute the labels of the training questions, as a control.
    definition: "paper" takes the authors' three classes (related, negated, unrelated) and their pairs, with properties and
        first tokens. It cannot show that a model holds a relation: related words stand in one sentence and others do not, so
        that distance and neighbouring tokens tell the classes apart. The authors' off-by-one error, their single vectors for
        pairs and their duplicates are not reproduced (docs/protocol.md, Flaws, F1 to F4).
    unrelated: which unrelated pairs the paper's definition takes, as for `make_questions`; None: "next", the authors' choice.
    right: not used, since no answer is predicted. Raises TypeError or ValueError naming the argument.
    Cost: one pass of each question through the model, and one through a model with random weights; for each depth one probe of
    each kind on both, and one on stated pairs.
    Memory: a batch of residual streams, the rows of the pairs at all depths, and a copy of the layers' weights.
    """
    check_common(model, seed=seed, memory_gb=memory_gb)
    cfg = model.cfg
    check_choice("definition", definition, get_args(Definition))
    paper = definition == "paper"
    classes = CLASSES if paper else ENTAILED
    read: Piece = piece or ("first" if paper else "last")
    check_choice("piece", piece, (*get_args(Piece), None))
    if unrelated is not None and not paper:
        raise ValueError(f"unrelated: got {unrelated!r}; expected None, unless the definition is 'paper'")
    usual = ("linear", "mlp") if paper else ("bilinear",)
    kinds = (probe,) if isinstance(probe, str) else tuple(usual if probe is None else probe)
    if not kinds or len(set(kinds)) < len(kinds) or not set(kinds) <= set(get_args(Probe)):
        raise ValueError(unknown_choice("probe", probe, get_args(Probe), several=True))
    at = list(range(cfg.n_layers + 1)) if depths is None else [int(d) for d in depths]
    if not at or at != sorted(set(at)) or not 0 <= at[0] <= at[-1] <= cfg.n_layers:
        raise ValueError(f"depths: got {at}; expected ascending numbers in 0..{cfg.n_layers}")
    at = sorted({0, *at})
    check_integer(components, "components", 1)
    kept = questions_of(
        model, examples, questions, shots=shots, properties=paper, unrelated=unrelated or "next", classes=classes,
        least=6 if paper else 16, seed=seed,
    )  # fmt: skip
    split = split_questions(kept, np.random.default_rng(seed))
    task = Task.of([q.pairs for q in kept], split, len(classes), seed, shuffled)
    known = Task.of([q.stated for q in kept], split, len(classes), seed, shuffled) if any(q.stated for q in kept) else None
    fit = Fits(kinds, len(classes), components, seed)
    step = _steps(progress, 5 if known else 4)
    samples = [*task.samples, *(known.samples if known else ())]
    with metered(model) as meter:
        x = Features(model, kept, samples, at, read, memory_gb, step())
    predictions, held_out = fit(x, task, 0, step())
    right_of = lambda t, predictions: t.by_unit(predictions == t.labels[t.n_train :], split)  # noqa: E731
    axes = ("example", "depth", "probe")
    nothing = np.full((len(split.test), len(at), len(kinds)), np.nan)
    stated = right_of(known, fit(x, known, len(task.samples), step())[0]) if known else nothing
    del x
    drawn = _random(model, kept, task, at, read, memory_gb, seed, step())
    random, random_held_out = nothing, nothing[0]
    if drawn is not None:
        guessed, random_held_out = fit(drawn[0], task, 0, step())
        random = right_of(task, guessed)
    seen = fit_surface(surface(kept, task.samples), task.fitted, seed=seed)[task.n_train :]
    data: dict[str, tuple] = {
        "confusion": ((*axes, "label", "predicted"), task.confusion(predictions, split, len(classes))),
        "random": (axes, random),
        "stated": (axes, stated),
        "surface": ("example", right_of(task, seen)),
        "held_out": (axes[1:], held_out),
        "random_held_out": (axes[1:], random_held_out),
        "part": ("question", split.parts),
        "unit": ("question", split.units),
    }
    data |= pair_table(kept)
    coords = {"example": split.test, "depth": at, "probe": list(kinds), "label": list(classes), "predicted": list(classes)}
    settings = {
        "questions": len(kept), "train": int((split.parts != "test").sum()), "samples": task.n_train, "shots": shots,
        "piece": read, "unrelated": unrelated or ("next" if paper else None), "components": components, "hidden": HIDDEN,
        "shuffled": shuffled, "definition": definition, "n_layers": cfg.n_layers, "seed": seed,
    }  # fmt: skip
    made = "pairs as given"
    if isinstance(questions, int | np.integer):
        made = "words of a chain that no sentence relates, at the same places in both classes"
        made = f"{unrelated or 'next'} unrelated pairs, the authors' classes" if paper else made
    front = f", {shots} shots before" if shots else ""
    words = f"x_i, x_j at each word's {read} piece, split by question, equal classes; {made}{front}"
    facts = PairProbes.facts(model, examples, len(kept), sum(len(q.pairs) for q in kept), words, settings, meter)
    if drawn is not None:
        facts["cost"] = {k: v + getattr(drawn[1], k) for k, v in facts["cost"].items()}
    return PairProbes(xr.Dataset(data, coords=coords), facts)


def _random(
    model: Model, kept: Sequence[Question], task: Task, at: Sequence[int], read: Piece, memory_gb: float | None, seed: int,
    progress: Progress | None,
):  # fmt: skip
    """The features of the same pairs in a model with random weights, and what they cost; None of quantised weights."""
    try:
        twin = random_twin(model, seed=seed)
    except NotImplementedError:
        return None
    with metered(twin) as meter:
        return Features(twin, kept, task.samples, at, read, memory_gb, progress), meter


def _steps(progress: Progress | None, n: int) -> Callable[[], Progress | None]:
    """Returns what gives the progress of one of n parts after the other."""
    begun = iter(range(n))

    def part() -> Progress | None:
        i, report = next(begun), progress
        return None if report is None else lambda done, total: report(i + done / total, n)

    return part


def cost(
    cfg: ModelConfig, workload: Workload, *, questions: int = QUESTIONS, length: float | None = None, shots: int = 0
) -> Cost:
    """Predicted, of the default definition. length: mean tokens of a question after the demonstrations; None: seven tenths of
    an example with two hops, six sentences beside ten of which some are shorter."""
    length = 0.7 * question_length(workload) if length is None else length
    weights = layer_flop(cfg).linear / 2 * cfg.n_layers * cfg.dtype.itemsize
    once = questions_cost(cfg, workload, questions, length, shots)
    return once + once + Cost(memory=once.memory + weights)


def authors_cost(
    cfg: ModelConfig, workload: Workload, *, questions: int = QUESTIONS, length: float | None = None, shots: int = 0
) -> Cost:
    """One forward of the full prompt for each question and shot setting (docs/protocol.md, Cost), probes not counted."""
    return every_forward(cfg, workload, questions, length, shots)


ANALYSIS = Description(PairProbes, pair_probes, cost=cost, authors=authors_cost, claims=("mixing",), steps=False)
