"""Heads that look at the answer where it occurs in the prompt, and write it (docs/protocol.md, E4)."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import TYPE_CHECKING, ClassVar, Literal, get_args

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pycotmech._choices import check_choice
from pycotmech._words import plural
from pycotmech.cot.task.examples import Examples
from pycotmech.cot.task.steps import Graded
from pycotmech.cot.tools.by_head import HeadAnalysis
from pycotmech.cot.tools.cells import choose
from pycotmech.cot.tools.cost import Cost, Workload, forwards_cost, metered, rows_cost
from pycotmech.cot.tools.registry import Description
from pycotmech.cot.tools.result import Progress, counting
from pycotmech.cot.tools.rows import ReadRow, read_rows, row_head_outputs, word_spans
from pycotmech.lens.readout import LogitReadout
from pycotmech.model.arguments import check_common
from pycotmech.model.config import ModelConfig
from pycotmech.model.families.base import Family
from pycotmech.stats import bootstrap

if TYPE_CHECKING:
    from pycotmech.model import Model

Definition = Literal["exact", "paper"]


class CopyHeads(HeadAnalysis):
    """Attention to the answer's word, and what is written of it.

    data: `attention` [example, step, layer, head], of the position that predicts the answer to the last occurrence of its word,
    all its tokens; `attention_all` to all occurrences outside the shots; `written`, what the head adds to the
    answer's logit; `copying` = attention * written where both are positive, else 0: it looks there and writes it.
    NaN where the word does not occur before.
    """

    name, title = "copy_heads", "Heads that attend to the answer's word and write it"
    source = "E4"
    main, label, by_size = "copying", "attention × logit written", False
    ranges: ClassVar = {"attention": bootstrap.SHARE, "attention_all": bootstrap.SHARE, "copying": bootstrap.COUNT}

    def findings(self) -> list[str]:
        """For each step the strongest copier with its attention and what it writes; how attention and writing agree."""
        lines = []
        for step, words, result, l, h in self.strongest():
            look, adds, product = (
                bootstrap.mean_interval(result.data[name].sel(step=step, layer=l, head=h).values, within=self.ranges.get(name))
                for name in ("attention", "written", "copying")
            )
            lines.append(
                f"{words}: L{l}H{h} attends to the word with {look.words('{:.2f}')} of its attention and adds "
                f"{adds.words('{:+.2f}')} to the answer's logit (product {product.words('{:.2f}')})"
            )
        a, w = (self.data[name].transpose("example", ...).values for name in ("attention", "written"))
        known = np.isfinite(a).any((1, 2, 3)) & np.isfinite(w).any((1, 2, 3))
        a, w = a[known], w[known]
        if len(a):
            found = bootstrap.statistic_interval(lambda i: _correlation(a[i], w[i]), len(a), within=bootstrap.SHARES_APART)
            if np.isfinite(found.mean):
                lines.append(
                    f"correlation of attention and writing over heads and steps: {found.words('{:.2f}')} "
                    f"(n = {plural(len(a), 'example')})"
                )
        return lines


def _correlation(a: NDArray, b: NDArray) -> float:
    """Of two scores [n, ...], each averaged over the first axis; NaN where one of them does not vary."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # a step of which no example counts
        x, y = np.nanmean(a, 0).ravel(), np.nanmean(b, 0).ravel()
    fine = np.isfinite(x) & np.isfinite(y)
    x, y = x[fine], y[fine]
    return float(np.corrcoef(x, y)[0, 1]) if len(x) > 2 and x.std() > 0 and y.std() > 0 else np.nan


def copy_heads(
    model: Model,
    examples: Examples,
    *,
    steps: Sequence[int] | None = None,
    right: Graded | Tensor | None = None,
    definition: Definition = "exact",
    seed: int = 0,
    memory_gb: float | None = None,
    progress: Progress | None = None,
) -> CopyHeads:
    """Attention of every head from the position that predicts the answer to the answer's word, and its logit contribution.

    definition "exact": the word's places are found by word (in any number and case, all its tokens, outside the shots), and
        `written` is the head's direct contribution to the answer's logit with the true final norm of the run: summed over
        heads, embedding and MLPs it is the logit itself.
    definition "paper": the last place of the answer's first token by id, wherever it is (docs/protocol.md, Flaws, F8), and
        `written` is the plain product of the head's output with the answer's row of the unembedding, without the norm's weights
        (F13).
    steps, right: as `cells.choose`.
    Raises TypeError or ValueError naming the argument.
    Cost: one forward pass per cell after the shared prefix; the weights of one row, L H T numbers.
    Source: docs/protocol.md, E4.
    """
    check_common(model, seed=seed, memory_gb=memory_gb)
    check_choice("definition", definition, get_args(Definition))
    cells = choose(model, examples, steps=steps, right=right)
    cfg = model.cfg
    shape = (cfg.n_layers, cfg.n_heads)
    found = {name: cells.empty(*shape) for name in ("attention", "attention_all", "written")}
    tick = counting(progress, len(cells))
    with metered(model) as meter:
        for row in read_rows(model, cells, ("z",), attention=True, memory_gb=memory_gb):
            at = row.cell.e, row.cell.s
            step = row.cell.step
            spans = _by_id(step.clean, step.answer) if definition == "paper" else word_spans(step)
            assert row.attention is not None
            if spans:
                weights = [row.attention[..., s].sum(-1).double() for s in spans]
                found["attention"][at] = weights[-1].cpu().numpy()
                found["attention_all"][at] = torch.stack(weights).sum(0).cpu().numpy()
            found["written"][at] = written(model.family, row, step.answer, raw=definition == "paper").cpu().numpy()
            tick()
    found["copying"] = found["attention"].clip(min=0) * found["written"].clip(min=0)
    words = "attention of the last position to the last place of " + (
        "the answer's word; direct logit contribution with the true final norm"
        if definition == "exact"
        else "its first token's id; product with W_U, no norm"
    )
    settings = {"definition": definition, "seed": seed}
    return CopyHeads.made(model, cells, found, {"layer": shape[0], "head": shape[1]}, words, settings, meter)


def _by_id(tokens: Tensor, token: int) -> list[slice]:
    return [slice(p, p + 1) for p in (tokens == token).nonzero().flatten().tolist()]


@torch.no_grad()
def written(family: Family, row: ReadRow, token: int, *, raw: bool = False) -> Tensor:
    """What each head adds to a token's logit at the row that is read, float64 [L, H].

    The final norm divides by the root mean square of the whole row, so the logit is a sum over what was added to the row
    (raw: the plain product with the unembedding's row, neither divided nor weighted). NotImplementedError or ValueError if
    what is attached to the unembedding or the final norm makes it something else.
    """
    direction = family.unembedding_rows(token).double()
    out = row_head_outputs(family, row.sites["z"]).double()
    if not raw:
        readout, final = LogitReadout(family), row.final[None]
        readout.check_norm(final)
        direction = readout.directions(direction) * readout.factor(final.double())[0]
    return out @ direction


def cost(cfg: ModelConfig, workload: Workload) -> Cost:
    """Predicted: each prompt once after the shared prefix."""
    rows = workload.cells * (workload.length - workload.shared) + workload.shared * (cfg.n_layers - 1) / cfg.n_layers
    held = 4.0 * cfg.n_layers * cfg.n_heads * workload.length
    return rows_cost(cfg, rows, forwards=workload.cells, memory=held)


def authors_cost(cfg: ModelConfig, workload: Workload) -> Cost:
    """Theirs: one full forward per cell, with all attention patterns kept for the examples of one step.

    Source: docs/protocol.md, Cost, E4.
    """
    patterns = 4.0 * cfg.n_layers * cfg.n_heads * workload.length**2 * workload.examples
    return forwards_cost(cfg, workload, workload.cells, memory=patterns)


ANALYSIS = Description(CopyHeads, copy_heads, cost=cost, authors=authors_cost)
