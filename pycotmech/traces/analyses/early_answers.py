"""Early answering: the probability of the final answer if the model has to answer after each sentence, by text and by layer.

Lanham et al. 2023 (arXiv 2307.13702, section 2.3) cut the reasoning off after each sentence, ask for the answer there, and look
how often it is the one given after the whole reasoning; the area over that curve says how much of the reasoning the answer
needs. Here the trace is run once and shared as a prefix: what follows each cut is a short continuation, the cue and the answer.
The logit lens at the same places says in which layer the answer can be read, along the trace.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from os import PathLike
from typing import TYPE_CHECKING, ClassVar

import numpy as np
import torch
import xarray as xr
from numpy.typing import NDArray
from torch import Tensor

from pycotmech._words import plural
from pycotmech.engine import planner
from pycotmech.engine.budget import LOGIT_ROWS
from pycotmech.engine.metrics import log_probability
from pycotmech.model.arguments import check_common
from pycotmech.model.run import forward_packed
from pycotmech.stats import bootstrap
from pycotmech.traces.reading import cue_ids
from pycotmech.traces.result import TraceAnalysis, check_trace, shown

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure

    from pycotmech.model import Model
    from pycotmech.traces.trace import Trace


class EarlyAnswers(TraceAnalysis):
    """The final answer when it is asked for after 0, 1, ... S sentences of a trace.

    data [after]: probability, of all tokens of the answer after the cue; same, 1 if each of them is the likeliest; share, of
    the reasoning's tokens that are there. [after, layer]: lens, the probability by the logit lens after each layer, the
    last of which is the model's own; NaN if it was not asked for.
    """

    name, title = "early_answers", "The answer when it is asked for early"
    source = "arXiv 2307.13702, section 2.3"
    label, share, by_size = "probability of the answer", True, False
    ranges: ClassVar = dict.fromkeys(("probability", "same", "lens"), bootstrap.SHARE)

    @property
    def values(self) -> NDArray[np.float64]:
        """[S + 1]: probability of the answer after 0, 1, ... S sentences."""
        return self.data["probability"].values

    @property
    def decided(self) -> int | None:
        """After how many sentences the forced answer is the final one, and stays it to the end; None if it is not even after
        the last."""
        bad = np.flatnonzero(self.data["same"].values < 1)
        first = int(bad[-1]) + 1 if len(bad) else 0
        return first if first < len(self.values) else None

    @property
    def area_over_curve(self) -> float:
        """The area over the curve of `same` against the share of the reasoning, from 0 (the answer needs none of it) to 1."""
        same, share = self.data["same"].values, self.data["share"].values
        return float(1 - (np.diff(share) * (same[1:] + same[:-1]) / 2).sum())  # trapezoids; NumPy 1 has no trapezoid()

    @property
    def decided_layer(self) -> NDArray[np.int64]:
        """[S + 1]: the lowest layer from which on the lens gives the answer more than half the probability; L if none does."""
        lens = self.data["lens"].values
        below = lens < 0.5
        last = np.where(below.any(1), lens.shape[1] - below[:, ::-1].argmax(1), 0)
        return np.where(np.isnan(lens).any(1), -1, last)

    def shown(self) -> xr.Dataset:
        return xr.Dataset({"mean": self.data["probability"]})

    def table(self) -> pd.DataFrame:
        """A line for each number of sentences: after, text of the last of them, share, probability, same, layer (from which on
        the lens says it; -1 without the lens)."""
        import pandas as pd

        texts = ["", *self.about["sentences"][0]]
        columns = {name: self.data[name].values for name in ("share", "probability", "same")}
        return pd.DataFrame({"after": self.data["after"].values, "text": texts, **columns, "layer": self.decided_layer})

    def findings(self) -> list[str]:
        p, S = self.values, len(self.values) - 1
        lines = [
            f"probability of the answer {p[0]:.2f} without reasoning, {p[-1]:.2f} after all "
            f"{plural(S, 'sentence')}; area over the curve {self.area_over_curve:.2f}"
        ]
        if not self.about["settings"]["cue"]:
            lines[0] += "; no cue asks for it, so before its place the model may simply continue to reason"
        at = self.decided
        if at is None:
            lines.append("the answer is not the most likely one even after the full reasoning")
        elif at == 0:
            lines.append("the answer is decided before the reasoning begins")
        else:
            lines.append(f"the answer is decided after sentence {self.sentence(at - 1)} of {S}")
        step = np.diff(p)
        if (step > 0).any():
            j = int(step.argmax())
            lines.append(f"largest rise: {step[j]:+.2f} with sentence {self.sentence(j)}")
        return lines

    def plot(self, *, path: str | PathLike | None = None) -> Figure:
        """The probability along the trace, and by the lens a map [layer, after]."""
        from pycotmech.figures.frame import PALETTE, finished, small
        from pycotmech.figures.library import Figure

        lens = self.data["lens"].transpose("layer", "after").values
        with_lens = bool(np.isfinite(lens).any())
        figure = Figure(figsize=(7.0, 5.6 if with_lens else 3.6), layout="constrained")
        axes = figure.subplots(1 + with_lens, 1, squeeze=False, sharex=True)[:, 0]
        x = np.arange(len(self.values))
        axes[0].plot(x, self.values, color=PALETTE[1], marker="o", ms=3, linewidth=1.3)
        same = self.data["same"].values == 1
        axes[0].plot(x[same], self.values[same], "o", color=PALETTE[2], ms=4, label="the answer is the likeliest")
        axes[0].set_ylim(-0.03, 1.03)
        axes[0].legend(fontsize=7)
        small(axes[0], up="probability of the answer", across="" if with_lens else "sentences before the answer is asked for")
        if with_lens:
            image = axes[1].imshow(lens, origin="lower", aspect="auto", cmap="viridis", vmin=0, vmax=1, interpolation="nearest")
            small(axes[1], up="layer (logit lens)", across="sentences before the answer is asked for")
            scale = figure.colorbar(image, ax=axes[1], pad=0.02)
            scale.set_label("probability", fontsize=8)
            scale.ax.tick_params(labelsize=7)
        return finished(figure, f"{self.about['model']}: {self.title}", self.small_print(), path=path)


def early_answers(
    model: Model,
    trace: Trace,
    *,
    cue: str | Sequence[int] | Tensor | None = None,
    lens: bool = True,
    memory_gb: float | None = None,
    progress: Callable[[float, float], None] | None = None,
) -> EarlyAnswers:
    """Asks for the answer after 0, 1, ... S sentences, and measures the probability of the one that the trace gives.

    cue: what stands between the reasoning and the answer, as token ids or as a text (without a BOS token); None: the trace's
        own, so that after all sentences the run is the trace's. An empty cue asks directly.
    lens: whether the logit lens reads every layer too.
    progress: called with (truncations done, in all).

    Raises TypeError or ValueError naming the argument, also for a trace without an answer.
    Cost: the trace once, and the cue and the answer once for each sentence; with the lens L rows of the unembedding for
    each token of the answer. Memory: within memory_gb (None: half of what is free).
    Source: arXiv 2307.13702, section 2.3; the lens along a trace is ours.
    """
    check_common(model, memory_gb=memory_gb)
    check_trace(trace, model.cfg.d_vocab)
    asked = _cue(model, trace, cue)
    answer, S, L = trace.answer_tokens, trace.n_sentences, model.cfg.n_layers
    suffix = torch.cat((asked, answer[:-1]))
    ends = [trace.reasoning.start, *trace.spans()[:, 1].tolist()]
    probability, same = np.empty(S + 1), np.empty(S + 1)
    by_layer = np.full((S + 1, L), np.nan)
    family, room = model.family, planner.memory_budget(memory_gb, *model.family.devices)
    family.refuse_unsupported()
    keys = model.prefixes.key_values(trace.tokens[: trace.reasoning.stop], room)
    assert keys is not None
    n = len(answer)
    # Each cut is continued from its last token on, so that an empty cue has a row to read.
    continued = [torch.cat((trace.tokens[e - 1 : e], suffix)) for e in ends]
    sites = ("resid_post",) if lens else ()
    row = planner.prompt_bytes(family, 1, 1, sites) + planner.block_bytes(family, 1)
    for a, b in planner.cut([len(c) * row for c in continued], room // 2):
        lengths = torch.tensor([len(c) for c in continued[a:b]])
        stops = lengths.cumsum(0)
        read = (stops[:, None] - n + torch.arange(n)).flatten()
        packed = forward_packed(
            family, continued[a:b], keys, after=[(0, e - 1) for e in ends[a:b]], sites=sites,
            keep=read if lens else None, read=read,
        )  # fmt: skip
        targets = answer.repeat(b - a)
        logp, best = _read(model, packed.resid_final, targets)
        probability[a:b] = np.exp(logp.reshape(-1, n).sum(1))
        same[a:b] = best.reshape(-1, n).all(1)
        for l in range(L if lens else 0):
            found, _ = _read(model, packed.sites["resid_post"][l], targets)
            by_layer[a:b, l] = np.exp(found.reshape(-1, n).sum(1))
        if progress is not None:
            progress(b, S + 1)
    length = trace.reasoning.stop - trace.reasoning.start
    share = np.array([(e - trace.reasoning.start) / length for e in ends])
    data = xr.Dataset(
        {
            "probability": (("after",), probability), "same": (("after",), same), "share": (("after",), share),
            "lens": (("after", "layer"), by_layer),
        },
        coords={"after": np.arange(S + 1), "layer": np.arange(L)},
    )  # fmt: skip
    text = "" if model.tokenizer is None else f" “{shown(model.tokenizer.decode(asked))}”"
    words = f"probability of the trace's answer after a cue of {plural(len(asked), 'token')}{text}"
    return EarlyAnswers.of_traces(model, [trace], data, words, {"cue": asked.tolist(), "lens": lens})


def _cue(model: Model, trace: Trace, cue: str | Sequence[int] | Tensor | None) -> Tensor:
    if cue is None:
        return trace.cue
    _ = trace.answered
    ids = cue_ids(model, cue)
    if len(ids) and not 0 <= int(ids.min()) <= int(ids.max()) < model.cfg.d_vocab:
        raise ValueError(f"cue: holds token ids outside the vocabulary of {model.cfg.d_vocab}; expected 0 and up")
    return ids


@torch.no_grad()
def _read(model: Model, rows: Tensor, targets: Tensor) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    """Log probability of a token at each row [n, d], and whether it is the likeliest."""
    logp, best = [], []
    for a in range(0, len(rows), LOGIT_ROWS):
        logits = model.family.logits(rows[a : a + LOGIT_ROWS].contiguous())
        ids = targets[a : a + LOGIT_ROWS].to(logits.device)
        logp.append(log_probability(logits, ids).cpu())
        best.append((logits.argmax(-1) == ids).cpu())
    return torch.cat(logp).numpy(), torch.cat(best).numpy()
