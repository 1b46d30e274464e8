"""Where heads look from the position that is read: few-shot block, question, generated text (docs/protocol.md, E7), three ways.

Plain attention says where a head looks, not what it takes from there: a head that rests on the first token gives it most of
its weight and takes nothing. Two more measures are
therefore given: the value-weighted contribution of each source to what the head writes, and the decomposition of the whole
layer, residual stream included: the contributions of ALTI (Ferrando, Gallego and Costa-jussa 2022), layer by layer. ALTI
goes on to multiply the layers' matrices (its roll-out) to reach the input tokens. That takes the contributions at every
position of every layer, not only of those that are read, and is not done here. A source is whatever its positions hold in
that layer, wherever it came from in the layers below.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from os import PathLike
from typing import TYPE_CHECKING, Any, ClassVar, Literal, NamedTuple

import torch
import xarray as xr
from torch import Tensor

from pycotmech._choices import check_choice
from pycotmech.cot.tools.activations import (
    SOURCES,
    Prompt,
    TextActivations,
    by_example,
    head_mask,
    text_activations,
    text_activations_cost,
    texts_of,
)
from pycotmech.cot.tools.cells import choose
from pycotmech.cot.tools.cost import Cost, Workload, forwards_cost, metered
from pycotmech.cot.tools.registry import Description
from pycotmech.cot.tools.result import Analysis, Progress, counting, top_cells
from pycotmech.model.arguments import check_common
from pycotmech.model.config import ModelConfig
from pycotmech.model.families.base import Family
from pycotmech.stats import bootstrap

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure

    from pycotmech.cot.task.examples import Examples
    from pycotmech.cot.task.steps import Graded
    from pycotmech.model import Model

Norm = Literal["l1", "l2"]


class Shares(NamedTuple):
    """Of one text, for n positions read; the last axis is `SOURCES`."""

    mass: Tensor  # [n, L, H, G] attention weight
    written: Tensor  # [n, L, H, G] size of the sum over a source of a_j v_j W_O
    layer: Tensor  # [n, L, G] share of each source in attention's output plus the residual stream


class Layer(NamedTuple):
    """The transformed vectors of one layer at n positions: resid_mid less the output bias is the sum of `vectors` over T."""

    vectors: Tensor  # [n, T, d]
    contributions: Tensor  # [n, T], rows sum to 1


def decompose(family: Family, acts: TextActivations, l: int, reads: Sequence[int], *, norm: Norm = "l1") -> Layer:
    """Layer-wise contributions: what each position brings to one layer's attention block at the positions read.

    vectors[j] = sum over heads of a_j v_j W_O, and the residual stream for the position itself. A contribution is how much
    nearer the sum is to this vector than to nothing, max(0, |y| - |y - vector|), taken as a share (Ferrando et al. 2022,
    equations 10 and 11, without the layer norm that a pre-norm model does not have there, and without the roll-out over
    layers). Where a norm follows attention, vectors are divided as it divides their sum.
    """
    pattern = acts.pattern(l, reads)
    values = acts.values(l)
    transformed = _transformed(family, values, family.output_matrix(l))
    scale = _scale(family, l, pattern, values.repeat_interleave(family.cfg.group, 1))
    return _decompose(pattern, transformed, scale, acts.at("resid_pre", l, reads), reads, norm)


def shares(family: Family, acts: TextActivations, prompts: Sequence[Prompt], *, norm: Norm = "l1") -> Shares:
    """The shares of the sources at the last positions of prompts that begin the text. Cost: attention of one row
    for each, and W_O of every value once."""
    cfg, G, T = family.cfg, len(SOURCES), len(acts)
    reads = [p.read for p in prompts]
    member = torch.zeros(len(prompts), T, G, dtype=family.resid_dtype)
    for i, prompt in enumerate(prompts):
        labels = torch.from_numpy(prompt.labels())
        member[i, torch.arange(len(labels)), labels] = 1
    member = member.to(family.device)
    mass = torch.empty(len(prompts), cfg.n_layers, cfg.n_heads, G, dtype=family.resid_dtype, device=family.device)
    written, layer = torch.empty_like(mass), torch.empty_like(mass[:, :, 0])
    for l in range(cfg.n_layers):
        pattern, values = acts.pattern(l, reads), acts.values(l).to(family.resid_dtype)
        matrix = family.output_matrix(l)
        mass[:, l] = torch.einsum("nht,ntg->nhg", pattern, member)
        per_head = values.repeat_interleave(cfg.group, 1)
        scale = _scale(family, l, pattern, per_head)
        for g in range(G):
            out = torch.einsum("nhd,hde->nhe", _weighted(pattern * member[:, None, :, g], per_head), matrix)
            written[:, l, :, g] = (out if scale is None else out * scale[:, None]).norm(dim=-1)
        transformed, resid = _transformed(family, values, matrix), acts.at("resid_pre", l, reads)
        found = _decompose(pattern, transformed, scale, resid, reads, norm)
        layer[:, l] = torch.einsum("nt,ntg->ng", found.contributions, member)
    return Shares(mass, written, layer)


def _weighted(pattern: Tensor, values: Tensor) -> Tensor:
    """Patterns [n, H, T] times values by query head [T, H, D]: [n, H, D]."""
    return torch.einsum("nht,thd->nhd", pattern, values.to(pattern.dtype))


def _scale(family: Family, l: int, pattern: Tensor, values: Tensor) -> Tensor | None:
    """`Family.added_scale` of the rows read; nothing is computed for a projection that adds its output as it is."""
    return None if family.is_plain_projection(l) else family.added_scale(l, _weighted(pattern, values))


def _transformed(family: Family, values: Tensor, matrix: Tensor) -> Tensor:
    """Values [T, Hkv, D] through W_O by query head: [T, H, d]."""
    per_head = values.to(family.resid_dtype).repeat_interleave(family.cfg.group, 1)
    return torch.einsum("thd,hde->the", per_head, matrix)


def _decompose(
    pattern: Tensor, transformed: Tensor, scale: Tensor | None, resid: Tensor, reads: Sequence[int], norm: Norm
) -> Layer:
    """scale [n, d]: what attention's output is multiplied by before it is added, if it is."""
    vectors = torch.bmm(pattern.permute(2, 0, 1), transformed).transpose(0, 1).contiguous()  # [n, T, d]
    if scale is not None:
        vectors *= scale[:, None]
    at = torch.arange(len(reads), device=vectors.device)
    vectors[at, torch.tensor(reads, device=vectors.device)] += resid.to(vectors.dtype)
    total = vectors.sum(1)
    order = 1 if norm == "l1" else 2
    left = (total[:, None] - vectors).norm(p=order, dim=-1)
    nearer = (total.norm(p=order, dim=-1)[:, None] - left).clamp_min(0)
    return Layer(vectors, nearer / nearer.sum(1, keepdim=True))


@dataclass(frozen=True, eq=False)
class AttentionBySource(Analysis):
    """mass [example, step, layer, head, source]: attention weight of the position that is read; sums to 1 over sources,
        or to what an attention sink leaves of it.
    written, same axes: size of what the head takes from the source and writes (the vectors add up, their sizes need not).
    contribution [example, step, layer, source]: share in the layer's attention block, residual stream included, as in ALTI
    without its roll-out over layers; sums to 1.

    Sources: few_shot, question, generated; "first" is the first token, "itself" the position that is read.
    """

    name = "attention_by_source"
    title = "Attention of the position that is read, by source"
    source = "E7; contributions: Ferrando et al. 2022"
    label, share, by_size = "share of attention", True, False
    ranges: ClassVar = {"mass": bootstrap.SHARE, "contribution": bootstrap.SHARE, "written": bootstrap.COUNT}

    def by_step(self) -> xr.Dataset:
        """Mean over layers and heads by step and source, over examples with intervals: mass and contribution, each with
        mean, low, high, n [step, source]; written as its share among the sources."""
        out = {}
        sizes = self.data["written"]
        for name, values in {
            "mass": self.data["mass"].mean(("layer", "head")),
            "written": (sizes / sizes.sum("source", skipna=False)).mean(("layer", "head")),
            "contribution": self.data["contribution"].mean("layer"),
        }.items():
            found = bootstrap.mean_interval(values.transpose("example", "step", "source").values, within=bootstrap.SHARE)
            for key, value in found._asdict().items():
                out[f"{name}_{key}"] = (("step", "source"), value)
        return xr.Dataset(out, coords={k: self.data[k] for k in ("step", "kind", "source")})

    def shown(self) -> xr.Dataset:
        return self.interval("mass")

    def table(self) -> pd.DataFrame:
        """One row per step and source: mass, written and contribution with low and high, and n."""
        import pandas as pd

        found, rows = self.by_step(), []
        for i, step in enumerate(found["step"].values):
            for g, source in enumerate(found["source"].values):
                row = {"step": int(step), "kind": str(found["kind"].values[i]), "source": str(source)}
                for name in ("mass", "written", "contribution"):
                    row |= {name: float(found[f"{name}_mean"][i, g])}
                    row |= {f"{name}_{k}": float(found[f"{name}_{k}"][i, g]) for k in ("low", "high")}
                rows.append(row | {"n": int(found["mass_n"][i, g])})
        return pd.DataFrame(rows)

    def heads(
        self, source: str, *, step: int | None = None, k: int = 10, held_out: bool = True
    ) -> list[tuple[int, int, float]]:
        """The heads that write most from a source: [(layer, head, mean size), ...]; step None: mean over all steps.

        held_out: heads are ranked on one half of the examples that count, and the sizes are of the other; with fewer than
        four that count, and with False, both are of all of them.
        """
        check_choice("source", source, SOURCES)
        parts = self.at_step("written", step, held_out=held_out)
        if parts is None:
            return []
        chosen, reported = (
            part.data["written"].sel(source=source).mean(("example", "step")) for part in (parts.choosing, parts.reporting)
        )
        return [(int(l), int(h), float(reported.sel(layer=l, head=h))) for l, h, _ in top_cells(chosen, k)]

    def plot(self, *, path: str | PathLike | None = None) -> Figure:
        """Above, by step: attention, what heads write, the layers' decomposition. Below, by layer, over all steps."""
        from pycotmech.figures.bars import stacked_bars, stacked_layers
        from pycotmech.figures.frame import framed, saved

        found, steps = self.by_step(), self.step_ticks()
        sizes = self.data["written"]
        layers = {
            "mass": self.data["mass"].mean(("example", "step", "head")),
            "written": (sizes / sizes.sum("source", skipna=False)).mean(("example", "step", "head")),
            "contribution": self.data["contribution"].mean(("example", "step")),
        }
        labels = {
            "mass": "attention weight",
            "written": "size of what is written",
            "contribution": "layer-wise contribution, residual included",
        }
        title = f"{self.about['model']}: {self.title.lower()}"
        figure, axes = framed(2, 3, title, self.small_print("mass"), width=3.4, height=2.4)
        for j, name in enumerate(labels):
            stacked_bars(axes[0, j], found[f"{name}_mean"].values, steps, SOURCES, title=labels[name], across="step")
            stacked_layers(axes[1, j], layers[name].transpose("layer", "source").values, SOURCES, across="layer")
        axes[0, 0].set_ylabel("share"), axes[1, 0].set_ylabel("share")
        handles, names = axes[0, 0].get_legend_handles_labels()
        figure.legend(handles, names, loc="outside right center", fontsize=8, frameon=False)
        return saved(figure, path)

    def findings(self) -> list[str]:
        """For each kind of step, how attention and the decomposition are shared out, and how far apart they are."""
        out = []
        for kind in dict.fromkeys(map(str, self.data["kind"].values)):
            where = [i for i, k in enumerate(self.data["kind"].values) if str(k) == kind]
            here = self.data.isel(step=where)
            words = []
            for name, values in (
                ("attention", here["mass"].mean(("layer", "head"))),
                ("layer-wise contribution", here["contribution"].mean("layer")),
            ):
                by_example = values.mean("step").transpose("example", "source").values
                one = bootstrap.mean_interval(by_example, within=bootstrap.SHARE)
                parts = [
                    f"{s.replace('_', '-')} {one.mean[g]:.0%}{bootstrap.ends(one.low[g], one.high[g])}"
                    for g, s in enumerate(SOURCES)
                ]
                words.append(f"{name}: {', '.join(parts)}")
            n = int(here["mass"].isel(layer=0, head=0, source=0).notnull().any("step").sum())
            out.append(f"{kind} steps (n = {n} examples): {'; '.join(words)}")
        return out


def attention_by_source(
    model: Model,
    examples: Examples,
    *,
    steps: Sequence[int] | None = None,
    right: Graded | Tensor | None = None,
    keep: Sequence[tuple[int, int]] | Tensor | None = None,
    norm: Norm = "l1",
    seed: int = 0,
    memory_gb: float | None = None,
    progress: Progress | None = None,
) -> AttentionBySource:
    """How much the position that predicts each word takes from the few-shot block, the question and the generated text.

    steps, right: which cells, as in `cells.choose`. norm: of the distances in the decomposition, "l1" (as its authors) or
    "l2".
    keep: the only heads that are left in the run, (layer, head) pairs or bool [L, H]; None: all. The z of the others is
    replaced by its mean over all positions of these prompts but the first, as the authors pruned the model before they looked
    at plain attention, which they call ALTI. At the first token, whose z is unlike that of any other position, it is
    the mean over first tokens: its own z where all prompts begin alike.
    Returns `AttentionBySource`. Raises ValueError naming the argument.
    Cost: the few-shot block once, the text after it once per example, W_O of every value once per example and layer.
    """
    check_common(model, seed=seed, memory_gb=memory_gb)
    check_choice("norm", norm, ("l1", "l2"))
    kept = None if keep is None else head_mask(model.cfg, keep, argument="keep")
    cells = choose(model, examples, steps=steps, right=right)
    cfg, G = model.cfg, len(SOURCES)
    data: dict[str, Any] = {
        "mass": cells.empty(cfg.n_layers, cfg.n_heads, G),
        "written": cells.empty(cfg.n_layers, cfg.n_heads, G),
        "contribution": cells.empty(cfg.n_layers, G),
    }
    groups = by_example(cells, model.tokenizer)
    texts, first = texts_of(groups)
    tick = counting(progress, len(groups))
    with metered(model) as meter:
        for batch in text_activations(model, texts, ("q", "resid_pre"), first=first, keep=kept, memory_gb=memory_gb):
            for i, acts in batch:
                found = shares(model.family, acts, [p for _, p in groups[i]], norm=norm)
                for j, (cell, _) in enumerate(groups[i]):
                    for name, value in zip(data, found, strict=True):
                        data[name][cell.e, cell.s] = value[j].cpu().numpy()
                tick()
    variables = {**data, "contribution": (("example", "step", "layer", "source"), data["contribution"])}
    settings = {"steps": list(cells.steps), "norm": norm, "seed": seed}
    run = "whole model" if kept is None else f"{int(kept.sum())} of {kept.numel()} heads left in the model"
    words = f"{run}, read at the last position; layer-wise contributions by {norm.upper()} distance, as in ALTI without its "
    words += "roll-out over layers"
    axes = {"layer": cfg.n_layers, "head": cfg.n_heads, "source": SOURCES}
    return AttentionBySource.made(model, cells, variables, axes, words, settings, meter)


def cost(cfg: ModelConfig, workload: Workload, *, keep: object = None, **options) -> Cost:
    """Predicted: the shared beginning once, each example's own text once; twice if heads are pruned."""
    held = 4.0 * workload.length * cfg.n_heads * cfg.d_model
    runs = (1 if keep is None else 2) * text_activations_cost(cfg, workload, 2, held=held)
    # W_O of every value, and its sums by source: some sixteen goes over a vector for each token of a prompt.
    through = 2.0 * workload.length * cfg.n_heads * cfg.d_head * cfg.d_model * cfg.n_layers
    vectors = 16 * 4.0 * workload.length * cfg.d_model * cfg.n_layers
    return runs + Cost(wide=workload.examples * through, traffic=workload.cells * vectors)


def authors_cost(cfg: ModelConfig, workload: Workload, **options) -> Cost:
    """Theirs: for each example and step the clean run, half a run for the means (of half as many prompts) and the pruned run;
    full patterns of all heads kept for the examples of one step (docs/protocol.md, Cost, E7)."""
    patterns = 4.0 * workload.examples * cfg.n_layers * cfg.n_heads * workload.length**2
    return forwards_cost(cfg, workload, 2.5 * workload.cells, memory=patterns)


ANALYSIS = Description(AttentionBySource, attention_by_source, cost=cost, authors=authors_cost)
