"""Attribution patching: estimates every patch to first order, from one backward pass. A screen for the exact sweep.

A patch moves an activation a of the base run to that of the source run. To first order the metric changes by
(a_source - a_base) . dm/da, with the slope taken at the base run, and one backward pass gives the slopes of all heads and
positions at once (Nanda 2023, "Attribution Patching"; Syed, Rager and Conmy 2023, arXiv 2310.10348).

It is an approximation. It is worst where the model bends most: a softmax that is nearly 0 or 1 between the two runs, a
normalisation whose input is replaced as a whole, a probability near 0 or 1. It never replaces the exact sweep;
`Attribution.agreement` says how far to trust it, and `patch_heads(screen=k)` uses it to choose what is swept.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from numbers import Integral
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from transformers import DynamicCache

from pycotmech._choices import did_you_mean
from pycotmech.display import Described, Facts
from pycotmech.engine.bases import common_prefix
from pycotmech.engine.metrics import ExampleMetric, Metric
from pycotmech.model.arguments import check_model
from pycotmech.model.families.base import Family
from pycotmech.model.prompts import Tokens
from pycotmech.model.twin import twin_of
from pycotmech.patching.edits import check_heads, heads_of, parse_edit_site
from pycotmech.patching.pair_layout import PairLayout
from pycotmech.patching.pair_sweep import prepare_sweep
from pycotmech.patching.question import Direction, PairQuestion
from pycotmech.patching.results import PlaceResult, Sweep, largest

if TYPE_CHECKING:
    from pycotmech.model import Model

SITES = ("z", "q", "k", "v")
"""Where slopes are taken: tensors that the Hugging Face model itself passes on."""

_OVERLAPS = (5, 10, 20)


def attribute_heads(
    model: Model,
    clean: Tokens | Sequence[Tokens],
    corrupted: Tokens | Sequence[Tokens],
    *,
    direction: Direction = "denoise",
    site: Literal["z", "q", "k", "v"] | str = "z",
    positions: Sequence[int] | None = None,
    by_position: bool = False,
    metric: Metric = "kl",
    answer: int | str | Sequence[int | str] | None = None,
    wrong: int | str | Sequence[int | str] | None = None,
    normalize: bool = True,
    read: int | Sequence[int] = -1,
) -> Attribution:
    """Estimates, to first order, what `patch_heads` measures for every head: (source - base) . slope at the base run.

    Arguments as in `patch_heads`. site: "z", "q", "k", "v", or a TransformerLens hook name of one of them. With grouped
        queries k and v have one entry for each key-value head.
    metric: what it reads must have a slope at the base run. "kl" has none in direction "noise", where the base run is the
        clean run and KL at its minimum. A callable must be differentiable by PyTorch.

    Returns an `Attribution`: .values and .effect on the scale of `Sweep`'s, [L, H], or [L, T, H] by position; the positions
        of a head add up to it.
    Raises ValueError naming the argument, before anything is run; and afterwards if the slope is 0 at every head.
    Cost: for each pair two forward passes and one backward, the Hugging Face model's own (with SDPA), over the positions
        from the first difference to the one read; what comes before runs once, without a slope, and what all prompts
        share once per model, as in `patch_heads`. The number of heads and positions costs nothing. Memory: what a backward
        pass keeps, for each of those positions and layers about 2 d_model + 2 n_heads d_head + 3 d_mlp + T numbers, and
        each layer's keys and values of the whole prompt. The weights get no gradient; hooks are honoured, flags left as
        found.
    An approximation: see the module's text. Source: Nanda 2023; Syed et al. 2023, arXiv 2310.10348.
    """
    check_model(model)
    name, layer = parse_edit_site(site)
    _check_site(name, site)
    sweep = prepare_sweep(
        model, clean, corrupted,
        site=name, places=check_heads(None, model.cfg.n_layers, heads_of(model.cfg, name), layer),
        positions=positions, by_position=by_position, direction=direction, metric=metric, answer=answer, wrong=wrong,
        normalize=normalize, read=read,
    )  # fmt: skip
    return attribute(sweep.question, sweep.layout)


def _check_site(name: str, site: str) -> None:
    if name not in SITES:
        raise ValueError(
            f"site: got {site!r}; an attribution is taken at {', '.join(map(repr, SITES))} "
            f"(of one query head's keys or values, and of patterns, only the exact sweep is there){did_you_mean(site, SITES)}"
        )


def check_screen(screen: int, name: str, site: str, n_heads: int) -> None:
    """Raises ValueError if `patch_heads` cannot sweep the best `screen` of its heads."""
    if isinstance(screen, bool) or not isinstance(screen, Integral) or not 1 <= screen <= n_heads:
        raise ValueError(
            f"screen: got {screen!r}; expected how many of the {n_heads} heads to sweep, 1..{n_heads}, or None for all"
        )
    if name not in SITES:
        raise ValueError(f"screen: got {screen} for site {site!r}; a screen is there for {', '.join(map(repr, SITES))}")


@dataclass(frozen=True)
class Agreement(Described):
    """How an attribution compares with the exact sweep, over its n entries above the noise floor.

    spearman, pearson: correlation of ranks, and of the effects themselves; NaN for fewer than two entries.
    top: k -> share of the k largest exact |effect|s that are among the k largest estimates of all entries that were swept;
        NaN where fewer than k entries are above the floor.
    sign: share of entries whose estimate has the right sign.
    """

    n: int
    spearman: float
    pearson: float
    top: dict[int, float]
    sign: float

    def described(self) -> Facts:
        overlaps = {f"of the top {k}": f"{share:.0%} found" for k, share in self.top.items() if share == share}
        correlations = {"rank correlation": f"{self.spearman:.3f}", "Pearson": f"{self.pearson:.3f}"}
        return Facts(f"{self.n} entries above the noise floor", {**correlations, "right sign": f"{self.sign:.0%}", **overlaps})

    def __str__(self) -> str:
        overlaps = ", ".join(f"{share:.0%} of the top {k}" for k, share in self.top.items() if share == share)
        return (
            f"{self.n} entries above the noise floor: rank correlation {self.spearman:.3f}, Pearson {self.pearson:.3f}, "
            f"right sign {self.sign:.0%}{'; found ' + overlaps if overlaps else ''}"
        )


@dataclass(frozen=True, kw_only=True, eq=False)
class Attribution(PlaceResult):
    """First-order estimates of what patching one head at a time does. B examples, L layers, H heads, T positions.

    values [L, H] float32: estimate of `Sweep.values` (corrupted 0, clean 1 if normalised); [L, T, H] by position. NaN in
        layers that were not asked for.
    effect: estimate of `Sweep.effect`, the distance from the base run; 0 where nothing can change.
    raw_change [L, H], or [B, L, H] for a list of pairs: the estimated change of the metric itself, float64.
    clean_metric, corrupted_metric [B]: the metric of the two runs.
    """

    raw_change: NDArray[np.float64]

    _SHOWN = "estimate"
    _GO_ON = (
        ("pcm.patch_heads(model, clean, corrupted, screen=20)", "sweeps the 20 heads with the largest estimates exactly"),
        ("attribution.agreement(sweep)", "compares the estimates with an exact sweep"),
    )

    def agreement(self, sweep: Sweep) -> Agreement:
        """Compares with the exact sweep of the same prompts and arguments; of a screened one, where it is exact.

        Raises ValueError if the sweep is of another model, site, direction, metric, scale or shape.
        """
        for name in ("model_name", "site", "direction", "metric", "normalized", "by_position", "shape"):
            estimated, swept = getattr(self, name), getattr(sweep, name)
            if estimated != swept:
                raise ValueError(f"sweep: its {name} is {swept!r}, the attribution's is {estimated!r}; expected the same")
        if len(self.clean_metric) != len(sweep.clean_metric):
            raise ValueError(f"sweep: of {len(sweep.clean_metric)} pairs, the attribution of {len(self.clean_metric)}")
        from scipy.stats import rankdata

        swept = ~(np.isnan(sweep.effect) | np.isnan(self.effect))
        exact, estimate = sweep.effect[swept].astype(np.float64), self.effect[swept].astype(np.float64)
        above = np.abs(exact) > sweep.noise_floor
        n, a, b = int(above.sum()), exact[above], estimate[above]
        order = [largest(np.where(use, np.abs(x), np.nan), max(_OVERLAPS)) for x, use in ((exact, above), (estimate, True))]
        return Agreement(
            n=n,
            spearman=_correlation(rankdata(a), rankdata(b)),
            pearson=_correlation(a, b),
            top={k: len(set(order[0][:k]) & set(order[1][:k])) / k if n >= k else float("nan") for k in _OVERLAPS},
            sign=float((np.sign(a) == np.sign(b)).mean()) if n else float("nan"),
        )

    def strongest(self, k: int) -> list[tuple[int, int]]:
        """The k heads (layer, head) with the largest estimates, strongest first; by position: at their best position."""
        score = np.abs(self.effect)
        found = largest(np.fmax.reduce(score, 1) if self.by_position else score, k)
        return [(l, h) for l, h in found]

    def _title(self) -> str:
        return f"Estimate, to first order: {super()._title()}"

    def _data(self) -> dict[str, Any]:
        axes = ("example", *self.axes) if self.raw_change.ndim > self.effect.ndim else self.axes
        return {**super()._data(), "raw_change": (axes, self.raw_change)}

    def _heading(self) -> list[str]:
        return [
            f"{self.model_name}: {self.site}, attribution patching (first order), {self.direction}, metric {self.metric}, "
            f"{' x '.join(self.axes)} {list(self.shape)}",
            self._runs(),
        ]


def _correlation(a: NDArray, b: NDArray) -> float:
    a, b = a - a.mean() if len(a) else a, b - b.mean() if len(b) else b
    scale = float(np.sqrt((a @ a) * (b @ b)))
    return float(a @ b) / scale if scale > 0 else float("nan")


# ---- slopes ----------------------------------------------------------------------------------------------------------


def attribute(question: PairQuestion, layout: PairLayout) -> Attribution:
    """The attribution of a sweep's places, on the scale of the sweep."""
    if question.metric == "kl" and question.direction == "noise":
        raise ValueError(
            "metric: 'kl' has no slope in direction 'noise': the base run is the clean run, where KL(P_clean || P) is at its "
            "minimum, so that to first order nothing changes; use metric 'logit_diff' or 'prob', or direction 'denoise'"
        )
    changes, both = [], []
    hf = _differentiable_twin(question.family, layout.site)
    with torch.inference_mode(False), torch.enable_grad():
        prompts = [t[: p.first] for p in question.pairs for t in (p.clean, p.corrupted)]
        shared = common_prefix(prompts)
        kept = question.prefixes.key_values(prompts[0][:shared], question.budget.room)  # the sweep's, if there is one
        layers = () if kept is None else enumerate(zip(kept.k, kept.v, strict=True))
        past = []
        for l, (k, v) in layers:
            device = question.family.device_of(l)
            k, v = (t.transpose(0, 1)[None].to(device) for t in (k, v))  # [1, n_key_value_heads, shared, d_head]
            past.append((k, v))
        for i in range(len(question.pairs)):
            change, *metrics = _changes(question, layout, hf, i, past, shared)
            changes.append(change)
            both.append(metrics)
    change, (clean, corrupted) = torch.stack(changes), torch.tensor(both, dtype=torch.float64).T
    values, effect = question.scale(clean, corrupted).estimated(change)
    return Attribution(
        values=layout.shaped(values, 1).float().numpy(),
        effect=layout.shaped(effect, 1).float().numpy(),
        raw_change=(layout.shaped(change[0], 1) if question.single else layout.shaped(change, 2)).numpy(),
        **question.facts(clean, corrupted),
        site=layout.site,
        by_position=layout.by_position,
        token_texts=question.token_texts(range(len(question.pairs))) if layout.by_position else None,
    )


def _changes(
    question: PairQuestion, layout: PairLayout, hf: Any, i: int, past: list[tuple[Tensor, Tensor]], shared: int
) -> tuple[Tensor, float, float]:
    """Pair i: the first-order change of the metric, float64 [L, T or 1, columns]; the clean and the corrupted metric."""
    family, pair, site = question.family, question.pairs[i], layout.site
    past = _extended(family, hf, past, pair.clean[shared : pair.first])
    denoise, rows = question.direction == "denoise", slice(pair.first, pair.read + 1)
    base, source = (pair.corrupted, pair.clean) if denoise else (pair.clean, pair.corrupted)
    with torch.no_grad():
        at_source, _, source_logits = _forward(family, hf, site, base=False, tokens=source[rows], past=past)
    at_base, out, base_logits = _forward(family, hf, site, base=True, tokens=base[rows], past=past)
    clean_logits, corrupted_logits = (source_logits, base_logits) if denoise else (base_logits, source_logits)
    metric = ExampleMetric(question.metric, clean_logits[0] if question.metric == "kl" else None, pair.answer, pair.wrong)
    with torch.no_grad():
        clean, corrupted = (float(metric(x)[0]) for x in (clean_logits, corrupted_logits))
    measured = _differentiable(metric, out.to(family.resid_dtype))[0]
    if not measured.requires_grad:
        raise ValueError(
            "metric: the callable's result does not depend on the logits by operations that PyTorch can differentiate"
        )
    slopes = torch.autograd.grad(measured, at_base, allow_unused=True)
    if not any(slope is not None and bool(slope.any()) for slope in slopes):
        raise ValueError(
            f"metric: {question.metric_name} has slope 0 in the base run of pair {i}, so that to first order nothing "
            "changes; use another metric, such as 'logit_diff', or the exact sweep"
        )

    cfg, T = family.cfg, len(pair.clean)
    columns = heads_of(cfg, site)
    change = torch.zeros(cfg.n_layers, T, columns, dtype=torch.float64)
    for l, (a, b, slope) in enumerate(zip(at_base, at_source, slopes, strict=True)):
        if slope is not None:
            moved = [family.tapped(site, x.detach())[0].double() for x in (a, b, slope)]  # [rows, columns, D] each
            change[l, rows] = ((moved[1] - moved[0]) * moved[2]).sum(-1).cpu()
    change *= layout.reach(i)[..., None]
    change = change if layout.by_position else change.sum(1, keepdim=True)
    change.masked_fill_(~layout.measured, torch.nan)
    return change, 0.0 if question.metric == "kl" else clean, corrupted


def _differentiable(metric: ExampleMetric, logits: Tensor) -> Tensor:
    """The metric [N] by operations that have a slope; KL is the textbook's, for the engine's works in place."""
    if metric.metric != "kl" or metric.clean is None:
        return metric(logits)
    log_p = torch.log_softmax(metric.clean.double(), -1)
    return (log_p.exp() * (log_p - torch.log_softmax(logits.double(), -1))).sum(-1)


def _forward(
    family: Family, hf: Any, site: str, *, base: bool, tokens: Tensor, past: list[tuple[Tensor, Tensor]]
) -> tuple[list[Tensor], Tensor, Tensor]:
    """The Hugging Face model's forward over tokens [S] after the past. base: with what a backward pass needs.

    Returns what the family's taps of the site read or give, for each layer [1, S, ...]; the last position's logits [1, V] as
    the model gives them; and once more in float32 without a slope, as sweeps read them.
    """
    found: dict[int | str, Tensor] = {}

    def keep(name: int | str, x: Tensor) -> None:
        found[name] = x

    last = family.cfg.n_layers - 1
    taps = {**{l: family.tap(site, l) for l in range(last + 1)}, "final": family.tap("final", last)}
    handles = []
    for name, (place, end) in taps.items():
        # What a sweep edits: an input before, an output after whatever the user's own hooks on these modules do.
        module = hf.get_submodule(place)
        if end == "input":
            hook = lambda module, args, name=name: keep(name, args[0])  # noqa: E731
            handles.append(module.register_forward_pre_hook(hook, prepend=True))
        else:
            hook = lambda module, args, out, name=name: keep(name, out)  # noqa: E731
            handles.append(module.register_forward_hook(hook))
    try:
        embeds = hf.get_input_embeddings()(tokens[None].to(family.device)).detach().requires_grad_(base)
        P = past[0][0].shape[2] if past else 0
        positions = torch.arange(P, P + len(tokens), device=family.device)[None]
        logits = (
            hf(
                inputs_embeds=embeds,
                past_key_values=_cache(past) if past else None,
                use_cache=bool(past),
                position_ids=positions,
                logits_to_keep=1,
            )
            .logits[0]
            .to(family.device)
        )
    finally:
        for handle in handles:
            handle.remove()
    with torch.no_grad():
        wide = family.logits(found["final"][0, -1:].detach().to(family.device, family.resid_dtype))
    return [found[l] for l in range(family.cfg.n_layers)], logits, wide


def _extended(family: Family, hf: Any, past: list[tuple[Tensor, Tensor]], tokens: Tensor) -> list[tuple[Tensor, Tensor]]:
    """Keys and values of each layer, [1, Hkv, P, D], of the past and of the tokens after it; nothing else is kept."""
    if not len(tokens):
        return past
    cache = _cache(past)
    with torch.no_grad():
        P = past[0][0].shape[2] if past else 0
        positions = torch.arange(P, P + len(tokens), device=family.device)[None]
        hf.base_model(tokens[None].to(family.device), past_key_values=cache, use_cache=True, position_ids=positions)
    return [(layer.keys, layer.values) for layer in cache.layers]  # pyright: ignore


def _cache(past: list[tuple[Tensor, Tensor]]) -> DynamicCache:
    """A new cache that holds the past, which itself stays as it is: a cache grows by concatenation."""
    cache = DynamicCache()
    for l, (k, v) in enumerate(past):
        cache.update(k, v, l)
    return cache


def _differentiable_twin(family: Family, site: str) -> nn.Module:
    """The Hugging Face model with an attention that has a backward pass, and no recomputation of layers (it drops the cache).

    The attention that the model came with may have no backward pass, or keep whole patterns for it. The model itself stays as
    it is, so that other threads may run it.
    """
    last = family.cfg.n_layers - 1
    tapped = {family.tap(site, l)[0] for l in range(last + 1)} | {family.tap("final", last)[0]}
    set_here = {
        name for name, m in family.hf.named_modules() if hasattr(m, "config") or getattr(m, "gradient_checkpointing", False)
    }
    twin = twin_of(family.hf, tapped | set_here)
    configs: dict[int, Any] = {}
    for name in set_here:
        module: Any = twin.get_submodule(name)
        if hasattr(module, "gradient_checkpointing"):
            module.gradient_checkpointing = False
        if hasattr(module, "config"):
            module.config = configs.setdefault(id(module.config), copy.copy(module.config))
    for config in configs.values():
        config._attn_implementation = family.differentiable_attention()
    return twin
