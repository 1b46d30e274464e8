"""Which heads write the answer, and from which sentences: direct logit attribution, split by the sentence attended.

What a head adds to a logit is linear in its z, and z is a sum over the keys that it attends to. With the run's own attention
weights and final norm, a head's contribution is therefore a sum over sentences: the prompt, each sentence of the reasoning, and
the cue.
"""

from __future__ import annotations

from os import PathLike
from typing import TYPE_CHECKING

import numpy as np
import torch
import xarray as xr
from numpy.typing import NDArray
from torch import Tensor

from pycotmech.cot.tools.result import top_cells
from pycotmech.engine import planner
from pycotmech.lens.readout import LogitReadout
from pycotmech.lens.request import token_text
from pycotmech.model.arguments import check_common
from pycotmech.model.run import forward_packed
from pycotmech.traces.result import TraceAnalysis, check_trace, lines_of

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure

    from pycotmech.model import Model
    from pycotmech.traces.trace import Trace

FIRST, PROMPT, CUE = "first token", "prompt", "cue"


class AnswerPaths(TraceAnalysis):
    """What heads add to the answer's logit, by the sentence that they attend to.

    data [part, layer, head]: contribution, to the logit of the answer's first token, less the mean over the vocabulary; mass,
    the attention weight. part: the first token, the prompt, "sentence 0" ..., the cue (with what stands before the answer).
    """

    name, title = "answer_paths", "Who writes the answer, and from where"
    source = "Elhage et al. 2021, direct logit attribution; docs/protocol.md, E8"
    label = "contribution to the answer's logit"

    @property
    def values(self) -> NDArray[np.float64]:
        """[L, H]: what each head adds to the answer's logit."""
        return self.data["contribution"].sum("part").transpose("layer", "head").values

    @property
    def sources(self) -> xr.DataArray:
        """[part]: the sum over heads of what they add from each part."""
        return self.data["contribution"].sum(("layer", "head"))

    def shown(self) -> xr.Dataset:
        return xr.Dataset({"mean": self.data["contribution"].transpose("part", "layer", "head")})

    def table(self) -> pd.DataFrame:
        """A line for each part: part, text, contribution, mass (the mean over heads)."""
        import pandas as pd

        parts = self.data["part"].values.tolist()
        texts = dict(zip([f"sentence {i}" for i in range(len(parts))], self.about["sentences"][0]))
        mass = self.data["mass"].mean(("layer", "head")).values
        return pd.DataFrame(
            {"part": parts, "text": [texts.get(p, "") for p in parts], "contribution": self.sources.values, "mass": mass}
        )

    def findings(self) -> list[str]:
        heads = ", ".join(f"L{l}H{h} {v:+.2f}" for l, h, v in top_cells(self.data["contribution"].sum("part"), 5))
        table = self.table().nlargest(3, "contribution")
        parts = ", ".join(f"{r.part} {r.contribution:+.2f}" for r in lines_of(table))
        return [f"writers of {self.about['settings']['token']!r}: {heads}", f"taken from: {parts} (logits, sum over heads)"]

    def plot(self, *, path: str | PathLike | None = None) -> Figure:
        """The heads as a map, and the parts as bars."""
        from pycotmech.figures.frame import PALETTE, finished, small
        from pycotmech.figures.heatmap import map_of_heads
        from pycotmech.figures.library import Figure

        parts = self.data["part"].values.tolist()
        figure = Figure(figsize=(10.0, 4.2), layout="constrained")
        left, right = figure.subplots(1, 2, width_ratios=(2, 3))
        map_of_heads(figure, left, self.values, title="writers", label="share of the answer's logit")
        right.bar(np.arange(len(parts)), self.sources.values, color=PALETTE[1])
        step = max(1, len(parts) // 25)
        right.set_xticks(np.arange(0, len(parts), step), [p.replace("sentence ", "") for p in parts[::step]], rotation=90)
        small(right, title="sources", across="prompt, sentences, cue", up="logits, sum over heads")
        return finished(figure, f"{self.about['model']}: {self.title}", self.small_print(), path=path)


@torch.no_grad()
def answer_paths(model: Model, trace: Trace, *, memory_gb: float | None = None) -> AnswerPaths:
    """Splits the logit of the answer's first token, where it is predicted, by head and by the sentence attended: [part, L, H].

    Raises ValueError naming the argument, also for a trace without an answer; NotImplementedError for a model whose output
    projection or unembedding carries something that is not linear.
    Cost: one forward pass, one attention pattern of one row for each layer, and (parts x L) rows through W_O.
    Source: direct logit attribution (Elhage et al. 2021).
    """
    check_common(model, memory_gb=memory_gb)
    check_trace(trace, model.cfg.d_vocab)
    family, cfg, at = model.family, model.cfg, trace.answered.start - 1
    token, wide = int(trace.tokens[at + 1]), model.family.resid_dtype
    tokens = trace.tokens[: at + 1]
    past = model.prefixes.key_values(tokens[: trace.prompt.stop], planner.memory_budget(memory_gb, *model.family.devices))
    assert past is not None
    rest = tokens[len(past) :]
    if len(rest) == 0:
        raise ValueError("trace: the answer follows the prompt at once; expected reasoning before it")
    last = torch.tensor([len(rest) - 1])
    packed = forward_packed(family, [rest], past, sites=("q", "z"), keep=last, read=last)
    keys, angles = packed.key_values(0, past), family.rotary(torch.arange(at + 1, device=family.device))
    names, labels = _parts(trace, at)
    readout = LogitReadout(family)
    factor = readout.factor(packed.resid_final)  # [1, 1]
    rows = family.unembedding_rows([token]).to(wide) - family.unembedding_mean()
    direction = readout.directions(rows)[0] * factor[0]  # [d]
    contribution = torch.zeros(len(names), cfg.n_layers, cfg.n_heads, dtype=torch.float64)
    mass = torch.zeros_like(contribution)
    where = torch.tensor([at], device=family.device)
    for l in range(cfg.n_layers):
        q = packed.sites["q"][l].clone()  # [1, H, D]
        family.rotate(l, angles, where, q)
        weights = family.pattern(l, q, keys.k[l], [at])[0]  # [H, T]
        values = keys.v[l].to(weights.dtype).repeat_interleave(cfg.n_heads // cfg.n_key_value_heads, 1)  # [T, H, D]
        by_key = weights.T[..., None] * values  # [T, H, D]
        z = torch.zeros(len(names), *by_key.shape[1:], dtype=by_key.dtype, device=by_key.device)
        z.index_add_(0, labels.to(z.device), by_key)  # [parts, H, D]
        written = torch.einsum("phd,hdo->pho", z.to(wide), family.output_matrix(l))  # [parts, H, d]
        scale = family.added_scale(l, packed.sites["z"][l])
        written = written if scale is None else written * scale
        contribution[:, l] = (written @ direction).double().cpu()
        mass[:, l] = torch.zeros(len(names), cfg.n_heads, dtype=torch.float64).index_add_(0, labels, weights.T.double().cpu())
    data = xr.Dataset(
        {"contribution": (("part", "layer", "head"), contribution.numpy()), "mass": (("part", "layer", "head"), mass.numpy())},
        coords={"part": names, "layer": np.arange(cfg.n_layers), "head": np.arange(cfg.n_heads)},
    )
    words = "direct contribution to the logit of the answer's first token, less the mean over the vocabulary, by key attended"
    return AnswerPaths.of_traces(model, [trace], data, words, {"token": token_text(model, token)})


def _parts(trace: Trace, at: int) -> tuple[list[str], Tensor]:
    """The names of the parts, and the part of each key 0 .. at: int64 [at + 1]."""
    S = trace.n_sentences
    names = [FIRST, PROMPT, *(f"sentence {i}" for i in range(S)), CUE]
    labels = trace.labels()[: at + 1].long()
    out = torch.where(labels >= 0, labels + 2, 1)
    out[trace.reasoning.stop :] = S + 2
    out[0] = 0
    return names, out
