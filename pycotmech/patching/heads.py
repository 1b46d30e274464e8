"""Patches every head of every layer, one at a time, exactly (docs/protocol.md, E1 and E2)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Literal, Unpack, get_args

from pycotmech._choices import did_you_mean
from pycotmech.engine.metrics import Metric
from pycotmech.engine.planner import Plan
from pycotmech.engine.row_edits import PER_QUERY
from pycotmech.model.arguments import check_model
from pycotmech.model.prompts import Tokens
from pycotmech.model.sites import KEY_VALUE_SITES
from pycotmech.patching.attribution import attribute, check_screen
from pycotmech.patching.controls import ControlChoice, ControlSource
from pycotmech.patching.edits import check_heads, heads_of, parse_edit_site
from pycotmech.patching.pair_sweep import PairSweep, prepare_sweep
from pycotmech.patching.position_groups import PositionGroups
from pycotmech.patching.question import Direction, PairOptions
from pycotmech.patching.results import Sweep

if TYPE_CHECKING:
    from pycotmech.model import Model

HeadSite = Literal["z", "q", "k", "v", "pattern"]
HEAD_SITES: tuple[str, ...] = get_args(HeadSite)


class HeadOptions(PairOptions, total=False):
    """The options of `patch_heads`."""

    site: HeadSite | str
    positions: Sequence[int] | None
    by_position: bool
    groups: PositionGroups | Sequence[PositionGroups] | None
    per_query_head: bool
    heads: Sequence[tuple[int, int]] | None
    screen: int | None
    controls: ControlChoice
    control_source: ControlSource
    control_share: float


def patch_heads(
    model: Model,
    clean: Tokens | Sequence[Tokens],
    corrupted: Tokens | Sequence[Tokens],
    *,
    direction: Direction = "denoise",
    site: HeadSite | str = "z",
    positions: Sequence[int] | None = None,
    by_position: bool = False,
    groups: PositionGroups | Sequence[PositionGroups] | None = None,
    per_query_head: bool = False,
    metric: Metric = "kl",
    answer: int | str | Sequence[int | str] | None = None,
    wrong: int | str | Sequence[int | str] | None = None,
    normalize: bool = True,
    read: int | Sequence[int] = -1,
    heads: Sequence[tuple[int, int]] | None = None,
    screen: int | None = None,
    memory_gb: float | None = None,
    return_logits: bool = False,
    seed: int = 0,
    progress: Callable[[int, int], None] | None = None,
    controls: ControlChoice = None,
    control_source: ControlSource = None,
    control_share: float = 1.0,
) -> Sweep:
    """Patches one head at a time with its activation from the other run, for all heads, and reads a metric.

    clean, corrupted: token ids [T] or strings, aligned token for token; or two lists of them. Prompts of a list share the
        computation of their common prefix.
    direction: "denoise" puts clean activations into the corrupted run, "noise" the reverse.
    site: "z" (the head's output before W_O), "q", "k" (before the rotary embedding), "v", "pattern" (weights after the
        softmax); or a TransformerLens hook name, which selects the heads of its layer. With grouped queries, k and v have
        one entry per key-value head, and a patch changes them for the whole group. per_query_head: it changes them for one
        query head only, and there is one entry per query head.
    positions: the positions that are patched (negative from the end); None: all. by_position: each position is patched
        separately. For a pattern, these are the queries.
    groups: {"question": slice(575, 610), ...}, or one such mapping per example with the same names: each group of positions
        is patched separately. Groups must not overlap, and positions in no group are not patched. If a group cannot change
        anything in any example, there is a warning.
    metric: "kl" (KL(P_clean || P)), "logit_diff", "prob", or a callable on logits [N, V] of one example -> [N].
    answer, wrong: token id, string, or one per example. read: the position where the metric is read, or one per example.
    heads: (layer, head) to patch; None: all.
    screen: k: only the k heads with the largest first-order estimates are patched (`attribute_heads`; by position, at their
        best position), exactly. The others are NaN, and `Sweep.estimate` has the estimates of all heads. For z, q, k and v,
        and a metric with a nonzero gradient at the base run.
    memory_gb: the memory that the sweep may use; None: half of the free memory.
    seed: for the directions of the self-patches, and for the heads that are drawn for controls. progress: called with
        (token-forwards done, total).
    controls: None, "all", or some of ("self", "random", "sham"), for site z. `Sweep.controls` has the results.
        "self": a head patched with its own output; every sweep has these, and `noise_floor` uses them as its zero.
        "random": each head patched with the activations of another prompt of equal length instead of the source run's, at the
        same positions from the first difference on, in the same pass. Only effects larger than 95 % of the random controls
        (`Sweep.beyond`) are specific to this prompt. A head whose effect has the distribution of the controls exceeds this
        threshold with a probability of at most 0.05; `Controls.largest` is a bound for all heads at once.
        "sham": a patch at the position before the first difference, which cannot change anything.
    control_source: the other prompt (clean if denoising, corrupted if noising), one per pair, None for pairs without one.
        None: for each pair, the next pair of the same length with a different prompt. A pair without one has no random
        control, and `Controls.missing` says so.
    control_share: the share of the heads whose random control is measured, drawn for each pair by the seed and the other
        prompt, evenly over the layers. 1: every head has its own control. Runs over many examples measure 6 %.

    Returns a `Sweep`: .values [L, H] ([L, T, H] by position, [L, G, H] for groups; 0 where nothing can change), on a scale
    where the corrupted run is 0 and the clean run is 1; Hkv instead of H for k and v.
    Raises ValueError naming the argument, before anything is run.
    Cost: the shared prefix once; the rest of both prompts (of a list: once for pairs that begin another one; for z at all
        positions their sweep too); and about (L - 1) / 2 of L layers for each variant's positions after the first difference
        (for q, k, v and pattern also the attention of the layer where it joins). Memory within `memory_gb`. A screen costs
        what `attribute_heads` costs, and saves the variants it leaves out. Random controls cost `control_share` of the
        variants and the run of another prompt, the sham position two variants and a run; `plan_heads` counts them.
    Exact: one hooked forward per head gives the same numbers.
    """
    check_model(model)
    sweep = _prepare(
        model, clean, corrupted, site=site, heads=heads, per_query_head=per_query_head, screen=screen, positions=positions,
        by_position=by_position, groups=groups, direction=direction, metric=metric, answer=answer, wrong=wrong,
        normalize=normalize, read=read, memory_gb=memory_gb, return_logits=return_logits, seed=seed, progress=progress,
        controls=controls, control_source=control_source, control_share=control_share,
    )  # fmt: skip
    if screen is None:
        return sweep.run()
    estimates = attribute(sweep.question, sweep.layout)
    layout = replace(sweep.layout, places=sorted(estimates.strongest(screen)))
    return replace(PairSweep(sweep.question, layout).run(), estimate=estimates.effect)


def patch_heads_each(
    model: Model, clean: Sequence[Tokens], corrupted: Sequence[Tokens], **options: Unpack[HeadOptions]
) -> list[Sweep]:
    """`patch_heads` of a list of pairs, with a `Sweep` for each of them in place of one over all; the same arguments.

    Pairs whose prompts begin those of another one, such as the steps of one chain of thought under the same replacement, are
    read off the other's runs: for z at all positions they cost no sweep of their own. Each `Sweep.plan` is that of the call.
    Raises what `patch_heads` raises; ValueError for a single pair or a screen, which is made over all pairs.
    """
    check_model(model)
    if (screen := options.get("screen")) is not None:
        raise ValueError(f"screen: got {screen}; heads are screened over all pairs at once; expected None")
    sweep = _prepare(model, clean, corrupted, **options)
    if sweep.question.single:
        raise ValueError("clean, corrupted: got one pair; expected two lists (patch_heads gives one pair's sweep)")
    return sweep.run_each()


def plan_heads(
    model: Model,
    clean: Tokens | Sequence[Tokens],
    corrupted: Tokens | Sequence[Tokens],
    **options: Unpack[HeadOptions],
) -> Plan:
    """Returns what `patch_heads` would do with the same arguments (chunks, rows, work and memory) without running it.

    Raises what `patch_heads` raises before it runs anything, also for a budget that is too small; ValueError for a screen,
    whose heads are known only when it has run.
    """
    check_model(model)
    if (screen := options.get("screen")) is not None:
        raise ValueError(f"screen: got {screen}; which heads it leaves is known only when it has run; expected None")
    return _prepare(model, clean, corrupted, **options).cut()[1]


def _prepare(
    model: Model,
    clean: Tokens | Sequence[Tokens],
    corrupted: Tokens | Sequence[Tokens],
    *,
    site: str = "z",
    heads: Sequence[tuple[int, int]] | None = None,
    per_query_head: bool = False,
    screen: int | None = None,
    groups: PositionGroups | Sequence[PositionGroups] | None = None,
    **options: Any,
) -> PairSweep:
    """The sweep that these arguments of `patch_heads` ask for, checked."""
    name, layer = parse_edit_site(site)
    if name not in HEAD_SITES:
        hint = did_you_mean(site, HEAD_SITES)
        raise ValueError(f"site: got {site!r}; heads are patched at 'z', 'q', 'k', 'v' or 'pattern'{hint}")
    if per_query_head:
        if name not in KEY_VALUE_SITES:
            raise ValueError(f"per_query_head: got True for site {site!r}; expected it for k and v only")
        name = PER_QUERY[name]
    places = check_heads(heads, model.cfg.n_layers, heads_of(model.cfg, name), layer)
    if screen is not None and groups is not None:
        raise ValueError("screen: heads are screened over all positions or position by position; expected None with groups=")
    if screen is not None:
        check_screen(screen, name, site, len(places))
    return prepare_sweep(model, clean, corrupted, site=name, places=places, groups=groups, **options)
