"""Probes for how two words are related, on pairs of residual streams, layer by layer (docs/protocol.md, E9)."""

from __future__ import annotations

from collections.abc import Sequence
from os import PathLike
from typing import TYPE_CHECKING, ClassVar, Literal, get_args

import numpy as np
import torch
import xarray as xr
from numpy.typing import NDArray
from torch import Tensor

from pycotmech.cot.task.relations import CLASSES, Question, Unrelated, WordPair
from pycotmech.cot.tools.checks import one_of
from pycotmech.cot.tools.cost import Cost, Workload, metered
from pycotmech.cot.tools.probes import (
    COMPONENTS,
    HIDDEN,
    Projection,
    balanced,
    control_labels,
    fit_linear,
    fit_mlps,
    macro_f1,
    majority,
)
from pycotmech.cot.tools.question_runs import (
    Piece,
    every_forward,
    pair_table,
    position,
    questions_cost,
    questions_of,
    runs,
)
from pycotmech.cot.tools.registry import Description
from pycotmech.cot.tools.result import Analysis, Progress, interval_table
from pycotmech.model.arguments import check_common, check_integer
from pycotmech.model.config import ModelConfig
from pycotmech.stats import bootstrap

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure

    from pycotmech.cot.task.examples import Examples
    from pycotmech.cot.task.steps import Graded
    from pycotmech.model import Model

QUESTIONS = 120
Probe = Literal["linear", "mlp"]
Definition = Literal["right", "paper"]
TEST_SHARE, HELD_SHARE = 1 / 3, 0.2
CHANCE = 1 / len(CLASSES)


class PairProbes(Analysis):
    """Accuracy over the depth 0 (embedding), 1 (after layer 0), ..., L, on questions that no probe has seen.

    data, on the axes example (test questions), depth, probe: `confusion` [.., label, predicted], counts; `control`, accuracy
    of the same probe on labels drawn at random for each pair of words; `across`, share of a sentence's subject and another
    sentence's object that are called unrelated, as they are: at chance or below, the probe reads the words' roles and not
    their relation (NaN where a question has none). `neighbours` [example]: accuracy of a rule without a model, the commonest
    label for the two tokens before each word; only what is above it takes more than local syntax. `held_out` [depth,
    probe]: accuracy on the part of the training set that chose penalty and stopping. `part` [question]: "train", "held" (of
    the training set) or "test". `pair_*` [pair]: every pair's question, label, distance, words.
    """

    name, title = "pair_probes", "How two words are related, read from their residual streams"
    source = "E9"
    ranges: ClassVar = dict.fromkeys(("control", "across", "neighbours"), bootstrap.SHARE)

    def accuracy(self) -> xr.Dataset:
        """mean, low, high [depth, probe]: right answers among all pairs of the test questions."""
        confusion = self._confusion()
        hits = np.diagonal(confusion, axis1=-2, axis2=-1).sum(-1)
        return self._labelled(bootstrap.ratio_interval(hits, confusion.sum((-2, -1)), within=bootstrap.SHARE))

    def f1(self, *, draws: int = 500, seed: int = 0) -> xr.Dataset:
        """Macro-F1 of all pairs of the test questions, which are resampled for the interval: mean, low, high [depth, probe]."""
        confusion = self._confusion()
        n = len(confusion)
        found = macro_f1(confusion.sum(0))
        weights = bootstrap.resampled(n, draws=draws, seed=seed)
        drawn = macro_f1(np.tensordot(weights, confusion, 1))
        number = np.full(found.shape, n)
        ends = bootstrap.widened(found, *bootstrap.percentiles(drawn), number, within=bootstrap.SHARE)
        ends = bootstrap.with_width(found, *ends, number, within=bootstrap.SHARE)
        return self._labelled(bootstrap.Interval(found, *ends, number))

    def selectivity(self) -> xr.Dataset:
        """Accuracy less that on the control task, question by question: mean, low, high [depth, probe]."""
        gain = self._by_question() - self._values("control")
        return self._labelled(bootstrap.mean_interval(gain, within=bootstrap.SHARES_APART))

    def best(self, probe: str, *, upto: float = np.inf) -> int:
        """The depth (of those up to a depth) where a probe did best on held-out training questions; the earliest of several."""
        held = self.data["held_out"].sel(probe=probe, depth=self.data["depth"] <= upto)
        return int(held["depth"].values[int(np.argmax(held.values))])

    def table(self) -> pd.DataFrame:
        """One row per probe and depth: probe, depth, accuracy, low, high, macro_f1, control, selectivity, across (each of these
        four with name_low and name_high), best (by held-out questions), n (test questions)."""
        found = {"accuracy": self.accuracy(), "macro_f1": self.f1(), "control": self.interval("control")}
        found |= {"selectivity": self.selectivity(), "across": self.interval("across")}
        best = lambda at: {"best": at["depth"] == self.best(at["probe"])}  # noqa: E731
        return interval_table(found, ("probe", "depth"), main="accuracy", more=best)

    def findings(self) -> list[str]:
        """For each probe its depth of choice, the gain over the embedding, selectivity, the end of the model, and roles."""
        s = self.about["settings"]
        n, accuracy = self.data.sizes["example"], self.accuracy()
        rule = self.data["neighbours"].values
        known = bootstrap.mean_interval(rule, within=bootstrap.SHARE)
        lines = [f"{s['train']} training questions, {n} test questions, {s['samples']} training pairs; chance {CHANCE:.3f}"]
        lines[0] += f"; the two tokens before each word alone give {known.words('{:.3f}')}"
        accuracies = self._by_question()
        depths = self.data["depth"].values.tolist()
        chosen: dict[str, int] = {}
        for j, probe in enumerate(self.data["probe"].values.tolist()):
            best = self.best(probe)
            i = chosen[probe] = depths.index(best)
            at = accuracy.isel(depth=i, probe=j)
            gain, beyond = accuracies[:, i, j] - accuracies[:, 0, j], accuracies[:, i, j] - rule
            drop, selective = accuracies[:, -1, j] - accuracies[:, i, j], (accuracies - self._values("control"))[:, i, j]
            inside = bootstrap.ends(at["low"], at["high"], "{:.3f}")
            lines.append(
                f"{probe}: {float(at['mean']):.3f}{inside} at depth {best} of {depths[-1]}, "
                f"{float(accuracy['mean'].isel(depth=0, probe=j)):.3f} at depth {depths[0]}: {_change(gain)}; "
                f"over the tokens before {_change(beyond)}; "
                f"over its control task {_change(selective)}; from there to depth {depths[-1]} {_change(drop)}"
            )
            across = bootstrap.mean_interval(self._values("across")[:, i, j], within=bootstrap.SHARE)
            if np.isfinite(across.mean):
                called = across.words("{:.2f}")
                verdict = (
                    "it goes by more than roles, be it the relation or the distance, which is larger in these"
                    if across.low > CHANCE
                    else "it reads the words' roles rather than their relation"
                    if across.high < 0.5
                    else "whether it goes by more than roles is open"
                )
                lines.append(
                    f"{probe}: calls {called} of unrelated subjects and objects of different sentences unrelated: {verdict}"
                )
        if len(chosen) == 2:
            (a, i), (b, j) = chosen.items()
            names = self.data["probe"].values.tolist()
            difference = accuracies[:, j, names.index(b)] - accuracies[:, i, names.index(a)]
            lines.append(f"{b} less {a}, each at its depth: {_change(difference)}")
        return lines

    def plot(self, *, path: str | PathLike | None = None) -> Figure:
        """Accuracy over the depth with its interval, the control task, and what is called unrelated across sentences."""
        from pycotmech.figures.curves import line_with_band
        from pycotmech.figures.frame import PALETTE, framed, saved, small

        s = self.about["settings"]
        lines = [
            f"n = {s['train']} questions to train on, {self.data.sizes['example']} to test on; {self.about['definition']}",
            *self.about["notes"],
        ]
        figure, axes = framed(1, 2, f"{self.about['model']}: {self.title}", lines, width=4.6, height=3.4, sharex=True)
        left, right = axes[0]
        found, depth = self.accuracy(), self.data["depth"].values
        control, across = self.data["control"].mean("example"), self.data["across"].mean("example")
        for j, probe in enumerate(self.data["probe"].values.tolist()):
            colour = PALETTE[1 - j]
            values = (found[k].isel(probe=j).values for k in ("mean", "low", "high"))
            line_with_band(left, depth, *values, color=colour, label=probe)
            left.plot(depth, control.isel(probe=j), "--", color=colour, lw=1, label=f"{probe}, control task")
            right.plot(depth, across.isel(probe=j), color=colour, label=probe)
        left.axhline(float(self.data["neighbours"].mean()), color="0.3", lw=0.9, ls="-.", label="tokens before alone")
        for axis in (left, right):
            axis.axhline(CHANCE, color="0.5", lw=0.8, ls=":")
            axis.set_ylim(0, 1.02)
        small(left, title="accuracy (dotted: chance)", across="depth (0: embedding)", up="share of pairs")
        across_title = "subject and object of different sentences"
        small(right, title=across_title, across="depth (0: embedding)", up="share called unrelated")
        left.legend(fontsize=7)
        right.legend(fontsize=7)
        return saved(figure, path)

    # ---- parts -----------------------------------------------------------------------------------------------------

    def _values(self, name: str) -> NDArray:
        return self.data[name].transpose("example", "depth", "probe").values

    def _confusion(self) -> NDArray:
        return self.data["confusion"].transpose("example", "depth", "probe", "label", "predicted").values

    def _by_question(self) -> NDArray:
        confusion = self._confusion()
        with np.errstate(invalid="ignore"):
            return np.diagonal(confusion, axis1=-2, axis2=-1).sum(-1) / confusion.sum((-2, -1))

    def _labelled(self, found: bootstrap.Interval) -> xr.Dataset:
        coords = {"depth": self.data["depth"], "probe": self.data["probe"]}
        return xr.Dataset({k: (("depth", "probe"), v) for k, v in found._asdict().items()}, coords=coords)


def _change(difference: NDArray) -> str:
    """The mean of a difference of shares over questions, in words."""
    found = bootstrap.mean_interval(difference, within=bootstrap.SHARES_APART)
    text = found.words("{:+.3f}")
    return text if found.low > 0 or found.high < 0 or found.n < 2 else f"{text}, no change beyond the interval"


def pair_probes(
    model: Model,
    examples: Examples | None = None,
    *,
    questions: int | Sequence[Question] = QUESTIONS,
    shots: int = 0,
    depths: Sequence[int] | None = None,
    probe: Sequence[Probe] = ("linear", "mlp"),
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
    """Probes on the concatenated residual streams [x_i ; x_j] of two words: related, negatively related or unrelated.

    A third of the questions is for testing and no question is in both parts; in each part the classes are equally many, in
    random order. Linear: penalised logistic regression; mlp: two hidden layers. Both see the same features, standardised and
    projected to the `components` principal axes of the training set; penalty and stopping are chosen on a fifth of the
    training questions.

    examples: whose style, ontology and demonstrations the questions take; None: as `cot.task.relations.make_questions` has it.
    questions: how many to make, or your own. shots: demonstrations before it, those of the examples if these have as many.
    depths: 0 (embedding), 1 (after layer 0) .. n_layers; None: all. probe: which.
    piece: the token at which each word is read. None: its last one, at which all of the word has been seen.
    unrelated: which unrelated pairs, as for `make_questions`; None: "both". In those of "matched" the second word is mostly
        a subject, where in related pairs it is what is said of one: to know its role is enough. In those of "roles" it is
        in the same role, but further away. With half of each, only the relation itself separates the classes.
    shuffled: permute the labels of the training questions, as a control.
    definition: "paper" takes the authors' pairs: properties too, the next unrelated word whatever its distance, and first
        pieces. Their off-by-one, their single vectors for pairs and their duplicates are in neither (docs/protocol.md, Flaws,
        F1 to F4).
    right: not used: pairs are in the question, and no answer is predicted.
    Raises TypeError or ValueError naming the argument.
    Cost: one pass of each question, a probe of each kind for each depth on the relation and on the control task.
    Memory: one batch of residual streams, and the rows of the pairs at all depths.
    """
    check_common(model, seed=seed, memory_gb=memory_gb)
    cfg = model.cfg
    one_of("definition", definition, get_args(Definition))
    paper = definition == "paper"
    read: Piece = piece or ("first" if paper else "last")
    one_of("piece", piece, (*get_args(Piece), None))
    kinds = (probe,) if isinstance(probe, str) else tuple(probe)
    if not kinds or len(set(kinds)) < len(kinds) or not set(kinds) <= set(get_args(Probe)):
        raise ValueError(f"probe: got {probe!r}; expected 'linear', 'mlp' or both")
    at = list(range(cfg.n_layers + 1)) if depths is None else [int(d) for d in depths]
    if not at or at != sorted(set(at)) or not 0 <= at[0] <= at[-1] <= cfg.n_layers:
        raise ValueError(f"depths: got {at}; expected ascending numbers in 0..{cfg.n_layers}")
    check_integer(components, "components", 1)
    chosen: Unrelated = unrelated or ("next" if paper else "both")
    kept = questions_of(model, examples, questions, shots=shots, properties=paper, unrelated=chosen, least=6, seed=seed)
    rng = np.random.default_rng(seed)
    order = rng.permutation(len(kept))
    n_test = max(2, round(len(kept) * TEST_SHARE))
    test, train = np.sort(order[:n_test]), np.sort(order[n_test:])
    held = set(rng.permutation(train)[: max(1, round(len(train) * HELD_SHARE))].tolist())
    samples = _samples(kept, train, seed), _samples(kept, test, seed + 1)
    everything = [*samples[0], *samples[1], *((q, p) for q in test.tolist() for p in kept[q].across)]
    n_train, n_all = len(samples[0]), len(samples[0]) + len(samples[1])
    with metered(model) as meter:
        x = Features(model, kept, everything, at, read, memory_gb, progress)
    labels = np.array([p.label for _, p in everything])
    control = control_labels([p.words for _, p in everything], seed=seed)
    targets = np.stack((labels, control))
    if shuffled:
        targets[:, :n_train] = targets[:, rng.permutation(n_train)]
    inner = np.array([q in held for q, _ in samples[0]])
    said, held_out = _fitted(x, targets[:, :n_train], inner, kinds, components, seed, progress)  # [task, depth, probe, samples]
    cues = [_cues(kept[q].tokens.tolist(), p) for q, p in everything[:n_all]]
    ruled = majority(cues, targets[0, :n_train])[n_train:] == labels[n_train:n_all]
    data = _counted(test, everything[n_train:], n_all - n_train, said[..., n_train:], labels[n_train:], control[n_train:])
    data["held_out"] = (("depth", "probe"), held_out)
    question = np.array([q for q, _ in samples[1]])
    data["neighbours"] = ("example", [ruled[question == q].mean() if (question == q).any() else np.nan for q in test])
    data["part"] = ("question", np.array([_part(q, test, held) for q in range(len(kept))]))
    for key, value in pair_table(kept).items():
        data[key] = value
    coords = {"example": test, "depth": at, "probe": list(kinds), "label": list(CLASSES), "predicted": list(CLASSES)}
    settings = {
        "questions": len(kept), "train": len(train), "samples": n_train, "shots": shots, "piece": read, "unrelated": chosen,
        "components": components, "hidden": HIDDEN, "shuffled": shuffled, "seed": seed,
    }  # fmt: skip
    source = {
        "both": "unrelated pairs half at the distances and half in the roles of related ones",
        "matched": "unrelated pairs at the distances of related ones",
        "roles": "unrelated pairs of one sentence's subject and another's object, which are further apart",
        "next": "unrelated pairs the next ones, as the authors chose them",
        "own": "pairs as given",
    }[chosen if isinstance(questions, int) else "own"]
    front = f", {shots} shots before" if shots else ""
    words = f"[x_i ; x_j] at each word's {read} piece, split by question, equal classes; {source}{front}"
    n_pairs = sum(len(q.pairs) for q in kept)
    facts = PairProbes.facts(model, examples, len(kept), n_pairs, words, settings, meter)
    return PairProbes(xr.Dataset(data, coords=coords), facts)


Sample = tuple[int, WordPair]


def _cues(tokens: Sequence[int], pair: WordPair) -> list[tuple[int, ...]]:
    """The two tokens before both words, and the last of these."""
    starts = (pair.first.start, pair.second.start)
    return [tuple(tokens[s - k] if s >= k else -1 for s in starts for k in range(1, n + 1)) for n in (2, 1)]


def _part(question: int, test: NDArray, held: set[int]) -> str:
    return "test" if question in test else "held" if question in held else "train"


def _samples(questions: Sequence[Question], chosen: NDArray, seed: int) -> list[Sample]:
    """Equally many pairs of each class from these questions, in random order."""
    flat = [(q, p) for q in chosen.tolist() for p in questions[q].pairs]
    if not flat:
        raise ValueError("questions: those of one part have no pairs; expected some of each class")
    return [flat[i] for i in balanced(np.array([p.label for _, p in flat]), seed=seed)]


class Features:
    """The features of pairs at each depth: [samples, 2 d], made from rows that are kept once."""

    @torch.no_grad()
    def __init__(
        self,
        model: Model,
        questions: Sequence[Question],
        samples: Sequence[Sample],
        depths: Sequence[int],
        piece: Piece,
        memory_gb: float | None = None,
        progress: Progress | None = None,
    ) -> None:
        wanted: dict[int, set[int]] = {}
        for q, p in samples:
            wanted.setdefault(q, set()).update((position(p.first, piece), position(p.second, piece)))
        rows = {(q, at): i for i, (q, at) in enumerate((q, at) for q in sorted(wanted) for at in sorted(wanted[q]))}
        self.pairs = np.array([[rows[q, position(word, piece)] for word in (p.first, p.second)] for q, p in samples])
        self.rows = np.empty((len(depths), len(rows), model.cfg.d_model), dtype=np.float32)
        used = sorted(wanted)
        for done, (i, acts) in enumerate(runs(model, [questions[q] for q in used], ("resid_post",), memory_gb=memory_gb), 1):
            q = used[i]
            at = sorted(wanted[q])
            to = slice(rows[q, at[0]], rows[q, at[-1]] + 1)
            for j, depth in enumerate(depths):
                if depth:
                    here = acts.at("resid_post", depth - 1, at)
                else:
                    here = model.family.embed(acts.tokens[at].to(model.device), torch.tensor(at, device=model.device))
                self.rows[j, to] = here.float().cpu().numpy()
            if progress is not None:
                progress(0.5 * done / len(used), 1.0)

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, depth: int) -> NDArray:
        """Of the depth with this number."""
        return self.rows[depth][self.pairs].reshape(len(self.pairs), -1)


def _fitted(
    x: Features, targets: NDArray, held: NDArray, kinds: Sequence[str], components: int, seed: int, progress: Progress | None
) -> tuple[NDArray, NDArray]:
    """What the probes say of every sample, [task, depth, probe, samples], and their held-out accuracy on the relation.

    targets [task, training samples]; the training samples are the first ones of x.
    """
    n = targets.shape[1]
    said = np.zeros((len(targets), len(x), len(kinds), len(x.pairs)), dtype=np.int64)
    held_out = np.zeros((len(x), len(kinds)))
    flat = []
    for j in range(len(x)):
        features = x[j]
        z = Projection.fit(features[:n], components)(features).astype(np.float32)
        flat.append(z)
        if "linear" in kinds:
            for t, y in enumerate(targets):
                probe = fit_linear(z[:n], y, held)
                said[t, j, kinds.index("linear")] = probe(z).argmax(1)
                if t == 0:
                    held_out[j, kinds.index("linear")] = probe.held_out
        if progress is not None:
            progress(0.5 + 0.3 * (j + 1) / len(x), 1.0)
    if "mlp" in kinds:
        width = max(z.shape[1] for z in flat)
        padded = torch.from_numpy(np.stack([np.pad(z, ((0, 0), (0, width - z.shape[1]))) for z in flat]))
        for t, y in enumerate(targets):
            labels = torch.from_numpy(y).expand(len(x), -1)
            mlps, accuracy = fit_mlps(padded[:, :n], labels, torch.from_numpy(held), seed=seed)
            with torch.no_grad():
                said[t, :, kinds.index("mlp")] = mlps(padded).argmax(-1).numpy()
            if t == 0:
                held_out[:, kinds.index("mlp")] = accuracy
    if progress is not None:
        progress(1.0, 1.0)
    return said, held_out


def _counted(
    test: NDArray, samples: Sequence[Sample], n_pairs: int, said: NDArray, labels: NDArray, control: NDArray
) -> dict[str, tuple]:
    """Counts by test question. samples: the test pairs, then the pairs across; said [task, depth, probe, samples]."""
    _, D, K, _ = said.shape
    C = len(CLASSES)
    confusion = np.zeros((len(test), D, K, C, C))
    right, across = np.full((2, len(test), D, K), np.nan)
    question = np.array([q for q, _ in samples])
    pair = np.arange(len(samples)) < n_pairs
    for e, q in enumerate(test):
        here = np.flatnonzero((question == q) & pair)
        for i in here:
            for c in range(C):
                confusion[e, :, :, labels[i], c] += said[0, ..., i] == c
        if len(here):
            right[e] = (said[1][..., here] == control[here]).mean(-1)
        there = np.flatnonzero((question == q) & ~pair)
        if len(there):
            across[e] = (said[0][..., there] == CLASSES.index("unrelated")).mean(-1)
    axes = ("example", "depth", "probe")
    return {"confusion": ((*axes, "label", "predicted"), confusion), "control": (axes, right), "across": (axes, across)}


def cost(
    cfg: ModelConfig, workload: Workload, *, questions: int = QUESTIONS, length: float | None = None, shots: int = 0
) -> Cost:
    """Predicted. length: mean tokens of a question after the demonstrations; None: as long as an example with two hops."""
    return questions_cost(cfg, workload, questions, length, shots)


def authors_cost(
    cfg: ModelConfig, workload: Workload, *, questions: int = QUESTIONS, length: float | None = None, shots: int = 0
) -> Cost:
    """One forward of the full prompt for each question and shot setting (docs/protocol.md, Cost), probes not counted."""
    return every_forward(cfg, workload, questions, length, shots)


ANALYSIS = Description(PairProbes, pair_probes, cost=cost, authors=authors_cost, claims=("mixing",), steps=False)
