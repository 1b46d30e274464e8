"""How far each head alone moves the residual stream of its layer towards the answer (docs/protocol.md, E3)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, ClassVar

import numpy as np
import torch
import xarray as xr
from numpy.typing import NDArray
from torch import Tensor

from pycotmech.cot.task.examples import Examples
from pycotmech.cot.task.steps import Graded
from pycotmech.cot.tools.by_head import HeadAnalysis
from pycotmech.cot.tools.cells import choose
from pycotmech.cot.tools.cost import Cost, Workload, forwards_cost, metered, rows_cost
from pycotmech.cot.tools.registry import Description
from pycotmech.cot.tools.result import Progress, counting, labelled
from pycotmech.cot.tools.rows import read_rows, row_head_outputs
from pycotmech.model.arguments import check_common
from pycotmech.model.config import ModelConfig
from pycotmech.model.families.base import Family
from pycotmech.stats import bootstrap

if TYPE_CHECKING:
    from pycotmech.model import Model

_LOGIT_ROWS = 256


class DecisionHeads(HeadAnalysis):
    """The answer's probability by the logit lens, at the position that predicts it.

    data: `p_mid` [example, step, layer] with the whole attention of the layer added, `p_pre` [example, step, layer] with
    none of it, `p_head` [example, step, layer, head] with this head's output alone; `gain` = p_head - p_pre.
    """

    name, title = "decision_heads", "Answer probability that each head alone brings to its layer"
    source = "E3"
    main, label, by_size = "gain", "change of the answer's probability", True
    ranges: ClassVar = {**dict.fromkeys(("p_mid", "p_pre", "p_head"), bootstrap.SHARE), "gain": bootstrap.SHARES_APART}

    def relative(self) -> xr.Dataset:
        """mu = (p_mid - p_head) / p_mid, means over examples first: mean, low, high, n [step, layer, head].

        0: the head alone reaches its layer's probability; negative: it exceeds it, the rest of the layer works against it.
        Source: docs/protocol.md, E3.
        """
        alone = self.data["p_head"].transpose("example", "step", "layer", "head")
        with_all = self.data["p_mid"].transpose("example", "step", "layer").values[..., None]
        return labelled(bootstrap.ratio_interval(with_all - alone.values, with_all), alone)

    def findings(self) -> list[str]:
        """For each step the head that brings most; where in the layers the answer appears."""
        lines = self._strongest()
        for i, step in enumerate(self.data["step"].values):
            curves = self.data["p_mid"].isel(step=i).transpose("example", "layer").values
            curves = curves[np.isfinite(curves).all(1)]
            if len(curves) == 0:
                continue
            within = ((0.0, curves.shape[1] - 1.0), bootstrap.SHARE, bootstrap.SHARE)
            found = bootstrap.statistic_interval(
                lambda index, c=curves: _half_way(c[index].mean(0)), len(curves), within=within
            )
            parts = zip(("{:.0f}", "{:.2f}", "{:.2f}"), *(x.tolist() for x in found[:3]))
            first, peak, last = (
                bootstrap.number(mean, form) + bootstrap.ends(low, high, form) for form, mean, low, high in parts
            )
            lines.append(
                f"step {step} (n = {len(curves)}): after the attention of layer {first} the lens gives half of its largest "
                f"probability of the answer ({peak}; after the last attention {last})"
            )
        return lines


def _half_way(curve: NDArray) -> tuple[float, float, float]:
    """The first layer at half of the largest value, the largest value, the last value."""
    return float(np.argmax(curve >= 0.5 * curve.max())), float(curve.max()), float(curve[-1])


def decision_heads(
    model: Model,
    examples: Examples,
    *,
    steps: Sequence[int] | None = None,
    right: Graded | Tensor | None = None,
    seed: int = 0,
    memory_gb: float | None = None,
    progress: Progress | None = None,
) -> DecisionHeads:
    """The answer's probability from the residual stream before a layer plus one head's output, for every head.

    p_head[l, h] = U(resid_pre[l] + z[l, h] W_O[l, h])[answer], with U the final norm and the unembedding, at the position
    that predicts the answer; its first token, as the model writes it there. Nothing is patched: the model runs once.
    steps, right: as `cells.choose`. seed: not used, kept in the result.
    In a parallel block, which has no resid_mid, p_mid is of resid_pre + attn_out: the layer's attention without its MLP.
    Raises TypeError or ValueError naming the argument.
    Cost: one forward pass per cell after the shared prefix, and L (H + 2) rows through the unembedding.
    Source: docs/protocol.md, E3.
    """
    check_common(model, seed=seed, memory_gb=memory_gb)
    cells = choose(model, examples, steps=steps, right=right)
    cfg, added = model.cfg, "attn_out" if model.cfg.parallel else "resid_mid"
    L, H = cfg.n_layers, cfg.n_heads
    p = {"p_pre": cells.empty(L), "p_mid": cells.empty(L), "p_head": cells.empty(L, H)}
    tick = counting(progress, len(cells))
    with metered(model) as meter:
        for row in read_rows(model, cells, ("resid_pre", added, "z"), memory_gb=memory_gb):
            pre = row.sites["resid_pre"]
            mid = pre + row.sites[added] if cfg.parallel else row.sites[added]
            alone = pre[:, None] + row_head_outputs(model.family, row.sites["z"])
            at = row.cell.e, row.cell.s
            answer = row.cell.step.answer
            for name, rows in (("p_pre", pre), ("p_mid", mid), ("p_head", alone.flatten(0, 1))):
                p[name][at] = probability(model.family, rows, answer).view(p[name].shape[2:]).numpy()
            tick()
    p["gain"] = p["p_head"] - p["p_pre"][..., None]
    words = "probability of the answer by the logit lens of resid_pre plus one head's output, at the last position"
    return DecisionHeads.made(model, cells, p, {"layer": L, "head": H}, words, {"seed": seed}, meter)


def probability(family: Family, rows: Tensor, token: int) -> Tensor:
    """Rows of the residual stream [R, d] -> the probability of a token by the final norm and the unembedding, float64 [R]."""
    out = []
    with torch.no_grad():
        for chunk in rows.split(_LOGIT_ROWS):
            logits = family.logits(chunk)
            out.append(torch.exp(logits[:, token] - torch.logsumexp(logits, -1)).double().cpu())
    return torch.cat(out)


def cost(cfg: ModelConfig, workload: Workload) -> Cost:
    """Predicted: each prompt once after the shared prefix, and the lens of L (H + 2) rows of each."""
    rows = workload.cells * (workload.length - workload.shared) + workload.shared * (cfg.n_layers - 1) / cfg.n_layers
    read = workload.cells * cfg.n_layers * (cfg.n_heads + 2)
    return rows_cost(cfg, rows, forwards=workload.cells, read=read, memory=4.0 * _LOGIT_ROWS * cfg.d_vocab)


def authors_cost(cfg: ModelConfig, workload: Workload) -> Cost:
    """Theirs: one full forward per cell, and the unembedding of all its positions for every head.

    Source: docs/protocol.md, Cost, E3.
    """
    return forwards_cost(cfg, workload, workload.cells, read=1 + cfg.n_layers * cfg.n_heads)


ANALYSIS = Description(DecisionHeads, decision_heads, cost=cost, authors=authors_cost)
