"""Path patching: the effect of one head on another, or on the output, along the direct path between them.

Wang et al. 2022 (arXiv 2211.00593), section 3.1 and appendix B; Goldowsky-Dill et al. 2023 (arXiv 2304.05969).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal, Unpack

import torch

from pycotmech._choices import did_you_mean
from pycotmech.engine.budget import Budget
from pycotmech.engine.metrics import Metric, check_metric
from pycotmech.engine.planner import Plan, memory_budget
from pycotmech.engine.senders import INPUTS
from pycotmech.model.arguments import check_model
from pycotmech.model.families.registry import without_weights
from pycotmech.model.prompts import Tokens
from pycotmech.patching.edits import check_heads
from pycotmech.patching.pairs import Pair, targets_of
from pycotmech.patching.path_layout import PathLayout, Paths, Span
from pycotmech.patching.path_results import PathSweep
from pycotmech.patching.path_sweep import cut_paths, run_paths
from pycotmech.patching.question import Direction, Progress, QuestionOptions, ask

if TYPE_CHECKING:
    from pycotmech.model import Model

Head = tuple[int, int]

Input = Literal["q", "k", "v"]


class PathOptions(QuestionOptions, total=False):
    """The options of `path_patch` that do not choose its paths."""

    per_query_head: bool
    freeze_mlps: bool


def path_patch(
    model: Model,
    clean: Tokens | Sequence[Tokens],
    corrupted: Tokens | Sequence[Tokens],
    *,
    senders: Sequence[Head] | None = None,
    receivers: Literal["logits", "all"] | Sequence[Head] = "logits",
    receiver_input: Input | Sequence[Input] | None = None,
    per_query_head: bool = True,
    positions: Literal["read"] | Sequence[int] | None = None,
    direction: Direction = "denoise",
    metric: Metric = "kl",
    answer: int | str | Sequence[int | str] | None = None,
    wrong: int | str | Sequence[int | str] | None = None,
    normalize: bool = True,
    read: int | Sequence[int] = -1,
    freeze_mlps: bool = False,
    memory_gb: float | None = None,
    seed: int = 0,
    progress: Progress | None = None,
) -> PathSweep:
    """Patches the direct path from each sender head to each receiver, one path at a time, exactly, and reads a metric.

    A path is measured in two runs of the base prompt:
    1. z of the sender is replaced by its value in the source run, at `positions`. z of every other head is frozen to its value
       in the base run, and MLPs are recomputed (or frozen too). The receiver's projection turns the residual stream of this
       run into a new q, k or v.
    2. The receiver's q, k or v is replaced by this value, and everything downstream of the receiver is recomputed as usual.
    A path to the logits needs only the first run, at whose end the metric is read: every head above the sender is frozen.

    clean, corrupted: token ids [T] or strings, aligned token for token; or two lists of them.
    senders: (layer, head); None: all heads. receivers: "logits", (layer, head) of query heads, or "all" heads. A sender
        must be in a layer below the receiver; otherwise its effect is 0.
    receiver_input: "q", "k", "v", or several of them, each replaced on its own; None: all three. None for "logits".
    per_query_head: with grouped queries, the key or value is replaced for the receiver only; False: for the whole group of its
        key-value head, so the heads of a group have equal entries.
    positions: where the sender is replaced (negative from the end), and with it the receiver's input; None: everywhere;
        "read": where the metric is read.
    direction: "denoise": base = corrupted, source = clean; "noise": the reverse. metric, answer, wrong, normalize, read,
        memory_gb, seed, progress: as in `patch_heads`.
    freeze_mlps: MLPs keep the base run's output in the first run, so the residual stream changes by dz W_O only.

    Returns a `PathSweep`: .values [senders] for "logits", else [inputs, senders, receivers]; .plan says what it took. For a
    list of pairs raw has the examples first.
    Raises ValueError naming the argument, before anything is run.
    Cost: the first run of all senders is one pass of rows upward that calls MLPs only, and the attention of the layers with
    receivers; each path then costs the layers above its receiver, for the positions from the first one replaced on. Exact:
    two hooked forwards per path give the same numbers.
    """
    check_model(model)
    paths = check_paths(model.cfg, senders, receivers, receiver_input, per_query_head, freeze_mlps)
    question = ask(
        model, clean, corrupted, direction=direction, metric=metric, answer=answer, wrong=wrong, normalize=normalize,
        read=read, memory_gb=memory_gb, seed=seed, progress=progress,
    )  # fmt: skip
    spans = [Span(pair.read, _targets(pair, positions)) for pair in question.pairs]
    for span in spans:
        if not bool(paths.reach(model.cfg, span).any()):
            where = (
                "the logits" if paths.receivers is None else f"{', '.join(paths.inputs)} of receivers in layers {paths.layers}"
            )
            raise ValueError(
                f"positions: senders replaced at {span.targets} reach nothing that is read by way of {where}; "
                f"the metric is read at position {span.read}"
            )
    if paths.receivers is None:  # no head hands on what a sender does elsewhere
        spans = [Span(span.read, [span.read]) for span in spans]
    return run_paths(question, PathLayout(model.family, paths, spans, len(question.shared), seed))


def path_patch_all(
    model: Model,
    clean: Tokens | Sequence[Tokens],
    corrupted: Tokens | Sequence[Tokens],
    *,
    receiver_input: Input | Sequence[Input] | None = None,
    positions: Literal["read"] | Sequence[int] | None = "read",
    **options: Unpack[PathOptions],
) -> PathSweep:
    """Every sender-receiver pair of the model as one sweep: `path_patch` with all heads as senders and as receivers.

    positions: by default the sender is replaced where the metric is read, and there alone: one row for each path. None:
        everywhere, at a cost that grows with the number of positions. All other options are those of `path_patch`.

    Returns a `PathSweep`: .values [inputs, H L, H L], senders and receivers in order of (layer, head); 0 where the sender
    does not lie below the receiver.
    Cost: for L layers of H heads about (H L)^2 / 2 paths for each input, each of which costs on average a third of the
    layers for one row: see `plan_paths` for the figures of a model.
    """
    for name in ("senders", "receivers"):
        if name in options:
            raise ValueError(f"{name}: all heads are senders and receivers here; path_patch takes a choice of them")
    return path_patch(
        model, clean, corrupted, receivers="all", receiver_input=receiver_input, positions=positions, **options
    )  # fmt: skip


def plan_paths(
    model: Model | Any,
    n_tokens: int,
    *,
    n_differ: int | None = None,
    senders: Sequence[Head] | None = None,
    receivers: Literal["logits", "all"] | Sequence[Head] = "all",
    receiver_input: Input | Sequence[Input] | None = None,
    per_query_head: bool = True,
    positions: Literal["read"] | Sequence[int] | None = "read",
    metric: Metric = "kl",
    freeze_mlps: bool = False,
    memory_gb: float | None = None,
) -> Plan:
    """What `path_patch` would do for one pair of prompts of `n_tokens` tokens that differ in the last `n_differ` (None: in
    the last one): paths, rows, floating-point operations, memory. Nothing is run.

    model: a Model, or a transformers configuration: nothing of a large model has to be loaded to know what it would cost.
    The runs of the two prompts, and of their shared prefix, are not counted.
    """
    family = model.family if hasattr(model, "family") else without_weights(model)
    if not n_tokens > 0:
        raise ValueError(f"n_tokens: got {n_tokens}; expected at least 1")
    n_differ = 1 if n_differ is None else n_differ
    if not 0 < n_differ <= n_tokens:
        raise ValueError(f"n_differ: got {n_differ}; expected 1..{n_tokens}, the number of tokens")
    if not callable(metric) and metric not in ("kl", "logit_diff", "prob"):
        check_metric(metric, None, None)
    paths = check_paths(family.cfg, senders, receivers, receiver_input, per_query_head, freeze_mlps)
    tokens = torch.zeros(n_tokens, dtype=torch.long)
    pair = Pair(tokens, tokens, n_tokens - n_differ, n_tokens - 1, None, None)
    span = Span(pair.read, [pair.read] if paths.receivers is None else _targets(pair, positions))
    columns = 2 if metric == "logit_diff" else None
    budget = Budget(family, memory_budget(memory_gb, torch.device("cpu")), columns)
    return cut_paths(PathLayout(family, paths, [span], n_tokens - n_differ, 0), budget)[1]


def check_paths(
    cfg, senders: Sequence[Head] | None, receivers, receiver_input, per_query_head: bool, freeze_mlps: bool
) -> Paths:
    """The paths that are asked for. Raises ValueError naming the argument."""
    L, H = cfg.n_layers, cfg.n_heads
    chosen = check_heads(senders, L, H, argument="senders")
    if isinstance(receivers, str):
        if receivers not in ("logits", "all"):
            hint = did_you_mean(receivers, ("logits", "all"))
            raise ValueError(f"receivers: got {receivers!r}; expected 'logits', 'all' or a list of (layer, head){hint}")
        wanted = None if receivers == "logits" else check_heads(None, L, H)
    elif receivers is None:
        raise ValueError("receivers: got None; expected 'logits', 'all' or a list of (layer, head)")
    else:
        wanted = check_heads(receivers, L, H, argument="receivers")
    if wanted is None:
        if receiver_input is not None:
            raise ValueError(f"receiver_input: got {receiver_input!r} for receivers 'logits', which have none; expected None")
        return Paths(chosen, None, (), per_query_head, freeze_mlps)
    given = (
        INPUTS if receiver_input is None else (receiver_input,) if isinstance(receiver_input, str) else tuple(receiver_input)
    )
    if not given or any(i not in INPUTS for i in given) or len(set(given)) < len(given):
        raise ValueError(f"receiver_input: got {receiver_input!r}; expected 'q', 'k', 'v', or several of them, each once")
    lowest, highest = min(l for l, _ in chosen), max(l for l, _ in wanted)
    if lowest >= highest:
        raise ValueError(
            f"receivers: the highest lies in layer {highest}, the lowest sender in layer {lowest}; "
            "expected a receiver in a layer above a sender"
        )
    return Paths(chosen, wanted, given, per_query_head, freeze_mlps)


def _targets(pair: Pair, positions: Literal["read"] | Sequence[int] | None) -> list[int]:
    if isinstance(positions, str):
        if positions != "read":
            raise ValueError(f"positions: got {positions!r}; expected 'read', a list of positions, or None for all")
        return [pair.read]
    return targets_of(pair, positions)
