"""What a sentence causes: attention to it is cut, and predictions at later sentences are compared with the untouched run.

Thought Anchors (arXiv 2506.19143, section 5) masks the keys of a sentence in all heads of all layers, and takes KL at
temperature 0.6 between what is predicted at each later token with and without the mask; the logarithm is averaged over the
tokens of a sentence, and the mean of each later sentence is taken off. Its mask holds for the sentence's own tokens too, which
then see only what lies before it. Here, by default, rows begin after the sentence: its own tokens are as they were, only
what flows from it to later tokens is cut, and every row sees a key. `definition="published"` is theirs.

A distribution belongs to the token at which it is made, as published: the first token of the next sentence is predicted at the
last of this one.

Any cut changes something, and the more the nearer it is. The control of a sentence is therefore a span of as many tokens whose
effect is measured on tokens that are exactly as far after it: span and tokens are shifted together towards the beginning. What
a sentence changes beyond that is not explained by length and distance. The published normalisation takes off the mean effect
on each later sentence, which says nothing of either.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from os import PathLike
from typing import TYPE_CHECKING, Any, Literal, get_args

import numpy as np
import torch
import xarray as xr
from numpy.typing import NDArray
from torch import Tensor

from pycotmech._choices import check_choice
from pycotmech._words import plural
from pycotmech.engine import planner
from pycotmech.engine.metrics import log_probability
from pycotmech.model.arguments import check_common, check_integer
from pycotmech.patching.edits import check_heads
from pycotmech.stats.averages import nanmean
from pycotmech.traces import cut_runs
from pycotmech.traces.cut_runs import Cut, Where
from pycotmech.traces.parts import Parts, key_of
from pycotmech.traces.result import TraceAnalysis, check_trace, lines_of

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure

    from pycotmech.model import Model
    from pycotmech.traces.trace import Trace

Definition = Literal["rows_after", "published"]
PUBLISHED_TEMPERATURE = 0.6
_LESS = {"distance": "the mean at its distance", "later": "the later sentence's mean", "control": "the control's"}
"""What is taken off, by the name of the normalisation."""

REACH = 4
"""How far a control's span may begin before its sentence, in lengths of the sentence."""

_LEAST = 1e-9
"""What is added to a KL before its logarithm is taken, as published."""


class Suppression(TraceAnalysis):
    """What cutting attention to a sentence changes later in a trace.

    data: kl, log_kl [later, earlier], the mean over the later sentence's tokens of KL(P || P with the earlier one cut), in
    nats, and of log(KL + 1e-9); NaN where nothing can change. control_kl, control_log_kl [later, earlier]: the same with the
    span that is cut and the tokens that are measured shifted towards the beginning by one offset, so that length and distance
    stay; the mean over offsets; NaN where there is no room. answer_change, control_answer_change [earlier]: by how much the
    log probability of the trace's answer falls; as the control, that of the tokens that stand where the shift takes the answer.
    NaN without an answer.
    """

    name, title = "suppress", "What each sentence causes"
    source = "arXiv 2506.19143, section 5"
    label = "KL divergence (nat)"

    @property
    def values(self) -> NDArray[np.float64]:
        """[S, S] (later, earlier): mean KL in nats."""
        return self.data["kl"].values

    def normalised(self, by: Literal["distance", "later", "control"] = "distance", *, log: bool = True) -> NDArray[np.float64]:
        """[S, S]: log KL (log=False: KL) less its mean over the pairs at the same distance; or over the earlier sentences of
        each later one, as published ("later"); or less the control's."""
        name = "log_kl" if log else "kl"
        x = self.data[name].values
        if by == "control":
            return x - self.data[f"control_{name}"].values
        if by == "later":
            return x - nanmean(x, 1)[:, None]
        if by != "distance":
            raise ValueError(f"by: got {by!r}; expected 'distance', 'later' or 'control'")
        out = x.copy()
        for d in range(1, len(x)):
            i = np.arange(d, len(x))
            out[i, i - d] -= nanmean(x[i, i - d])
        return out

    def effects(self, *, log: bool = True) -> NDArray[np.float64]:
        """[S]: the mean over later sentences of what cutting each sentence changes, normalised by distance."""
        return nanmean(self.normalised("distance", log=log))

    def shown(self) -> xr.Dataset:
        return xr.Dataset({"mean": self.data["kl"]})

    def table(self) -> pd.DataFrame:
        """A line for each sentence: sentence, text, tokens, kl (mean over later sentences), control_kl, effect (log KL
        normalised by distance), answer_change, control_answer_change."""
        import pandas as pd

        d = self.data
        return pd.DataFrame(
            {
                "sentence": d["earlier"].values,
                "text": self.about["sentences"][0],
                "tokens": d["length"].values,
                "kl": nanmean(d["kl"].values),
                "control_kl": nanmean(d["control_kl"].values),
                "effect": self.effects(),
                "answer_change": d["answer_change"].values,
                "control_answer_change": d["control_answer_change"].values,
            }
        )

    def findings(self) -> list[str]:
        table, x = self.table(), self.values
        known, S = np.isfinite(x), len(x)
        lines = []
        if known.any():
            lines.append(f"{plural(int(known.sum()), 'pair')} of {S} sentences; mean KL {x[known].mean():.3g} nats")
            control = self.data["control_kl"].values
            both = known & np.isfinite(control)
            if both.any():
                more = float((x[both] > control[both]).mean())
                lines[0] += (
                    f", of spans as long and as far elsewhere {control[both].mean():.3g} (a sentence changes more in "
                    f"{more:.0%} of pairs)"
                )
        else:
            lines.append(f"{plural(S, 'sentence')}: there is no later one that a cut could change")
        # With two sentences the only pair is the mean at its distance, from which it differs by 0 whatever it is.
        best = table.dropna(subset=["effect"]).nlargest(3, "effect")
        if S > 2 and len(best):
            named = ", ".join(f"{self.sentence(int(r.sentence))} ({r.effect:+.2f})" for r in lines_of(best))
            lines.append(f"largest effect on later sentences, log KL less the mean at its distance: {named}")
        if np.isfinite(self.data["answer_change"].values).any():
            best = table.dropna(subset=["answer_change"]).nlargest(3, "answer_change")
            named = ", ".join(
                f"{self.sentence(int(r.sentence))} ({r.answer_change:z.2f} nats{self._control(r.control_answer_change)})"
                for r in lines_of(best)
            )
            lines.append(f"the answer's log probability falls most without: {named}")
        return lines

    @staticmethod
    def _control(value: float) -> str:
        return f", control {value:.2f}" if np.isfinite(value) else ", without a control"

    def plot(self, *, by: Literal["distance", "later", "control"] = "distance", path: str | PathLike | None = None) -> Figure:
        """The matrix [later, earlier], normalised, and below it the effect of each sentence."""
        from pycotmech.traces.figures import matrix_figure

        found = self.normalised(by)
        return matrix_figure(
            found, nanmean(found), diverging=True, label=f"log KL less {_LESS[by]}", below="mean",
            title=f"{self.about['model']}: {self.title}", lines=self.small_print(), path=path,
        )  # fmt: skip

    def graph(self, *, by: Literal["distance", "later", "control"] = "distance", top: int = 1) -> pd.DataFrame:
        """The strongest edges of the sentence graph: for each sentence the `top` earlier ones whose cut changes it most, at log
        KL normalised by `by`, of those above 0. Columns later, earlier, effect, kl."""
        import pandas as pd

        check_integer(top, "top", 1)
        found, rows = self.normalised(by), []
        for i in range(1, len(found)):
            for j in np.argsort(-np.nan_to_num(found[i, :i], nan=-np.inf), kind="stable")[:top]:
                if found[i, j] > 0:
                    rows.append({"later": i, "earlier": int(j), "effect": float(found[i, j]), "kl": float(self.values[i, j])})
        return pd.DataFrame(rows, columns=["later", "earlier", "effect", "kl"])

    def plot_graph(
        self,
        *,
        by: Literal["distance", "later", "control"] = "distance",
        top: int = 1,
        path: str | PathLike | None = None,
    ) -> Figure:
        """The sentence graph: `graph` as arcs, and the mean over later sentences as the size of the nodes."""
        from pycotmech.traces.figures import graph_figure

        edges = self.graph(by=by, top=top)[["later", "earlier", "effect"]]
        return graph_figure(
            edges.itertuples(index=False, name=None), nanmean(self.normalised(by)), self.about["sentences"][0],
            title=f"{self.about['model']}: what each sentence depends on", lines=self.small_print(), path=path,
            edge_label=f"the {plural(top, 'earlier sentence')} whose cut changes a sentence most, log KL less {_LESS[by]}",
            node_label="the mean of that over all later sentences",
        )  # fmt: skip

    def figures(self) -> Mapping[str, Callable[..., Figure]]:
        return {"graph": self.plot_graph}


def suppress(
    model: Model,
    trace: Trace,
    *,
    heads: Sequence[tuple[int, int]] | None = None,
    layers: Sequence[int] | None = None,
    definition: Definition = "rows_after",
    temperature: float | None = None,
    controls: int = 1,
    seed: int = 0,
    memory_gb: float | None = None,
    progress: Callable[[float, float], None] | None = None,
    parts: Parts | None = None,
) -> Suppression:
    """Cuts attention to each sentence in turn and measures the change of the predictions at every later one: [S, S].

    heads: (layer, head) in which attention is cut; or layers, in all heads of which it is. None, None: everywhere.
    definition: "rows_after", tokens after the sentence do not see it; "published", its own tokens do not see it either.
    temperature: by which logits are divided before KL; None: 1, and 0.6 with definition="published".
    controls: for each sentence so many offsets are drawn with the seed; by each the sentence's span and the tokens that are
        measured are shifted towards the beginning. The shifted span does not overlap the sentence, may lie in the prompt (not
        on the first token), and is at most `REACH` lengths away, as rows that see more tokens feel each of them less; measured
        tokens stay in the reasoning. 0: none.
    progress: called with (rows done, rows in all).
    parts: where finished batches of cuts are kept, so that the same call after an interruption computes the others only.

    Raises TypeError or ValueError naming the argument, before anything is run.
    Cost: the trace once; for each sentence and control the tokens after the sentence, once through the layers (of `layers` or
    `heads`, from the lowest of these on) and the unembedding. Memory: within memory_gb (None: half of what is free); no
    logits are kept.
    Source: arXiv 2506.19143, section 5 and its code, which keeps the 100 likeliest tokens of each distribution; here all count.
    """
    check_common(model, seed=seed, memory_gb=memory_gb)
    check_trace(trace, model.cfg.d_vocab)
    check_integer(controls, "controls", 0)
    check_choice("definition", definition, get_args(Definition))
    if temperature is None:
        temperature = PUBLISHED_TEMPERATURE if definition == "published" else 1.0
    if not 0 < temperature < float("inf"):
        raise ValueError(f"temperature: got {temperature}; expected a positive number")
    where = cut_layers(model, heads, layers)
    job = _job(trace, definition, controls, seed)
    chosen = {l: None if h is None else list(h) for l, h in where.items()}
    key = key_of(
        "suppress", model, [trace], where=chosen, temperature=temperature, controls=controls, seed=seed, rows=definition
    )
    found = _measured(model, trace, job, where, temperature, memory_gb, progress, parts, key)
    S, named = trace.n_sentences, ("kl", "log_kl", "answer_change")
    data: dict[str, Any] = {}
    for name in named:
        dims = ("later", "earlier") if name != "answer_change" else ("earlier",)
        own, control = found[name][..., :S], found[name][..., S:]
        data[name] = (dims, own)
        data[f"control_{name}"] = (dims, _control_means(control, job.of, S))
    data["length"] = (("earlier",), np.diff(trace.spans(), axis=1)[:, 0])
    settings = {
        "definition": definition, "temperature": temperature, "controls": controls, "seed": seed,
        "heads": None if heads is None else [list(map(int, h)) for h in heads],
        "layers": None if layers is None else [int(l) for l in layers],
    }  # fmt: skip
    rows = "tokens after it" if definition == "rows_after" else "its own tokens and those after it"
    scope = "all heads" if heads is None and layers is None else "the chosen heads" if layers is None else "the chosen layers"
    words = f"attention of {rows} to a sentence cut in {scope}; KL at temperature {temperature:g}"
    coords = {"later": np.arange(S), "earlier": np.arange(S)}
    return Suppression.of_traces(model, [trace], xr.Dataset(data, coords=coords), words, settings)


def cut_layers(model: Model, heads: Sequence[tuple[int, int]] | None, layers: Sequence[int] | None) -> Where:
    """Layer -> heads (None: all), ascending. Raises ValueError naming the argument."""
    cfg = model.cfg
    if heads is not None and layers is not None:
        raise ValueError("heads, layers: got both; expected one of them, or none for all layers")
    if layers is not None:
        chosen = sorted({check_integer(l, "layers", 0, cfg.n_layers - 1) for l in layers})
        if not chosen:
            raise ValueError("layers: got none; expected at least one")
        return dict.fromkeys(chosen)
    if heads is None:
        return cut_runs.every_layer(cfg.n_layers)
    out: dict[int, list[int]] = {}
    for l, h in sorted(check_heads(list(heads), cfg.n_layers, cfg.n_heads)):
        out.setdefault(l, []).append(h)
    return out


@dataclass(frozen=True)
class _Job:
    """cuts: those of the sentences that tokens follow, then the controls. of: the sentence of each cut; shift: by how much it
    was shifted, 0 for the sentence itself; place: its column among S sentences and the controls."""

    cuts: list[Cut]
    of: list[int]
    shift: list[int]
    place: list[int]
    columns: int


def _job(trace: Trace, definition: Definition, controls: int, seed: int) -> _Job:
    rng = np.random.default_rng(seed)
    spans, S = trace.spans().tolist(), trace.n_sentences
    begin, end = trace.reasoning.start, measured_end(trace)
    cuts, of, extra = [], [], []
    for j, (a, b) in enumerate(spans):
        if b >= end:
            continue
        first = a if definition == "published" else b
        cuts.append(Cut(first, end, a, b))
        of.append(j)
        # A shift of 1 token would cut nearly the same span; one beyond `least` would take measured tokens into the prompt.
        length, least = b - a, max(1 - a, begin - b, -REACH * (b - a))
        for _ in range(controls if least <= -length else 0):
            s = int(rng.integers(least, -length + 1))
            extra.append((Cut(first + s, end + s, a + s, b + s), j, s))
    n = len(cuts)
    return _Job(
        cuts + [cut for cut, _, _ in extra], of + [j for _, j, _ in extra], [0] * n + [s for _, _, s in extra],
        of + list(range(S, S + len(extra))), S + len(extra),
    )  # fmt: skip


def measured_end(trace: Trace) -> int:
    """The first token that nothing is read at: after the reasoning, or where the last token of the answer is predicted."""
    return trace.reasoning.stop if trace.answer is None else trace.answer.stop - 1


def _measured(
    model: Model,
    trace: Trace,
    job: _Job,
    where: Where,
    temperature: float,
    memory_gb: float | None,
    progress: Callable[[float, float], None] | None,
    parts: Parts | None,
    key: str,
) -> dict[str, NDArray[np.float64]]:
    """kl, log_kl [S, columns], answer_change [columns]; done [columns], whether a column's cut is finished."""
    S, family = trace.n_sentences, model.family
    out: dict[str, NDArray[Any]] = {name: np.full((S, job.columns), np.nan) for name in ("kl", "log_kl")}
    out |= {"answer_change": np.full(job.columns, np.nan), "done": np.zeros(job.columns, dtype=bool)}
    out |= {} if parts is None else parts.read(key)
    left = [n for n in range(len(job.cuts)) if not out["done"][job.place[n]]]
    if not left:
        return out
    end, begin, stop = measured_end(trace), trace.reasoning.start, trace.reasoning.stop
    first = min(cut.first for cut in job.cuts)
    room = planner.memory_budget(memory_gb, *model.family.devices)
    base = cut_runs.untouched(family, model.prefixes, trace.tokens[:end], first, min(where), room)
    # Where the tokens of the answer are predicted.
    reads = [] if trace.answer is None else range(trace.answer.start - 1, trace.answer.stop - 1)
    total = sum(map(len, job.cuts))
    done = total - sum(len(job.cuts[n]) for n in left)
    for indices, begins, x in cut_runs.run_cuts(family, base, [job.cuts[n] for n in left], where, room // 2):
        numbers = [left[i] for i in indices]
        owner = np.repeat(np.arange(len(numbers)), np.diff(begins))
        positions = np.concatenate([np.arange(job.cuts[n].first, job.cuts[n].stop) for n in numbers])
        unshifted = positions - np.array([job.shift[n] for n in numbers])[owner]
        of_answer = np.isin(unshifted, reads)
        of_sentence = (unshifted >= np.array([trace.sentences[job.of[n]].stop for n in numbers])[owner]) & (unshifted < stop)
        values = np.full((len(numbers), end - begin), np.nan)
        change = np.zeros(len(numbers))

        def measure(
            p: int, theirs: Tensor, logits: Tensor, rows: NDArray[np.int64], values=values, change=change, owner=owner,
            of_answer=of_answer, of_sentence=of_sentence,
        ):  # fmt: skip
            told, asked = of_sentence[rows], of_answer[rows]
            if told.any():
                found = cut_runs.divergence(theirs, logits if told.all() else logits[torch.from_numpy(told)], temperature)
                values[owner[rows[told]], p - begin] = found
            if asked.any():
                token = int(trace.tokens[p + 1])
                after = logits if asked.all() else logits[torch.from_numpy(asked)]
                fall = log_probability(theirs[None], token) - log_probability(after, token)
                change[owner[rows[asked]]] += fall.cpu().numpy()

        cut_runs.by_position(family, base, x, positions, of_sentence | of_answer, measure)
        for at, n in enumerate(numbers):
            j, column, shift, mine = job.of[n], job.place[n], job.shift[n] - begin, values[at]
            for i in range(j + 1, S):
                kl = mine[trace.sentences[i].start + shift : trace.sentences[i].stop + shift]
                out["kl"][i, column], out["log_kl"][i, column] = kl.mean(), np.log(kl + _LEAST).mean()
            if reads:
                out["answer_change"][column] = change[at]
            out["done"][column] = True  # the last, as parts may be written at any time
        if parts is not None:
            parts.keep(key, out)
        done += len(positions)
        if progress is not None:
            progress(done, total)
    return out


def _control_means(values: NDArray, of: list[int], S: int) -> NDArray[np.float64]:
    """Columns of controls [..., C] -> [..., S]: the mean over each sentence's."""
    owners = np.array(of[len(of) - values.shape[-1] :], dtype=int) if values.shape[-1] else np.array([], dtype=int)
    out = np.full((*values.shape[:-1], S), np.nan)
    for j in np.unique(owners):
        out[..., j] = nanmean(values[..., owners == j], -1)
    return out
