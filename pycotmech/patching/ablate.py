"""Ablates heads: replaces their output z by zero, by a mean, or by that of another prompt."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Literal, Unpack

import torch
from torch import Tensor

from pycotmech._choices import check_choice
from pycotmech._words import plural
from pycotmech.model.arguments import check_model
from pycotmech.model.prompts import Tokens, listed, resolve_positions
from pycotmech.patching.edits import Edit, Variant, check_heads
from pycotmech.patching.sweep import SweepOptions, prepare_variants, sweep
from pycotmech.patching.variant_results import Ablation

if TYPE_CHECKING:
    from pycotmech.model import Model

Heads = tuple[tuple[int, int], ...]

AblationKind = Literal["zero", "mean", "resample"]


def ablate_heads(
    model: Model,
    tokens: Tokens,
    heads: Sequence[tuple[int, int]] | Sequence[Sequence[tuple[int, int]]],
    *,
    kind: AblationKind = "zero",
    mean: Tensor | Sequence[Tokens] | None = None,
    roles: Sequence[int] | Tensor | None = None,
    resample: Tokens | Sequence[Tokens] | None = None,
    positions: Sequence[int] | None = None,
    each: bool = False,
    **options: Unpack[SweepOptions],
) -> Ablation:
    """Replaces z of a set of heads, all at once, and reads a metric against the untouched run.

    tokens: token ids [T] or a string. heads: (layer, head); or a list of such sets, each a result of its own, all in one
        sweep. positions: where z is replaced; None: everywhere.
    kind: "zero"; "mean"; "resample": z of another prompt of the same length.
    mean: the means themselves, a tensor [L, H, D] or [L, T, H, D]; or a list of prompts (or token ids [B, T]), over whose
        examples and positions z is averaged.
    roles: with prompts that all have the length T, a label for each position [T]: z is averaged over the positions with
        the same label only (a label of its own for each position gives means by position).
    resample: the other prompt, or a list of prompts from which `seed` draws one.
    each: every head on its own instead of all at once: one result for each, in one sweep.
    options: metric, answer, wrong, clean, read, memory_gb, return_logits, seed, progress, as in `sweep`; "kl" is taken from
        the untouched run.

    Returns an `Ablation`: .effect [1], [len(heads)] with `each`, or one for each set; .replaced_by and .n_averaged say what
    z was replaced by.
    Raises ValueError naming the argument, before anything is run.
    Cost: as `sweep`; a mean over prompts costs one forward pass of each.
    """
    check_model(model)
    check_choice("kind", kind, ("zero", "mean", "resample"))
    for argument, given, of in (("mean", mean, "mean"), ("resample", resample, "resample")):
        if (given is not None) != (kind == of):
            need = "needs" if kind == of else "takes no"
            raise ValueError(f"{argument}: kind {kind!r} {need} {argument}=")
    cfg = model.cfg
    sets = _sets(heads, cfg.n_layers, cfg.n_heads, each)
    chosen = list(dict.fromkeys(head for one in sets for head in one))
    base = model.to_tokens(tokens)
    where = list(range(len(base))) if positions is None else resolve_positions(positions, len(base))
    if roles is not None and (kind != "mean" or (isinstance(mean, Tensor) and mean.is_floating_point())):
        raise ValueError("roles: only a mean that is taken over prompts can be taken by role; expected None")
    nothing = _variants(sets, each, where, lambda l, h: 0.0)
    prepare_variants(model, tokens, nothing, **options)  # errors come before anything is run
    n_averaged = None
    if kind == "zero":
        z, words = torch.zeros(cfg.n_layers, cfg.n_heads, cfg.d_head), "zero"
    elif kind == "resample":
        z, where, words = _resampled(model, base, resample, where, options.get("seed", 0))
    elif isinstance(mean, Tensor) and mean.is_floating_point():
        z, words = mean, f"a mean given as a tensor {list(mean.shape)}"
        shapes = [[cfg.n_layers, *t, cfg.n_heads, cfg.d_head] for t in ([], [len(base)])]
        if list(z.shape) not in shapes:
            raise ValueError(f"mean: got a tensor of shape {list(z.shape)}; expected {shapes[0]} or {shapes[1]}")
    else:
        z, words, n_averaged = _mean(model, mean, roles, len(base))
    variants = _variants(sets, each, where, lambda l, h: z[l, h] if z.ndim == 3 else z[l, where, h])
    return sweep(model, tokens, variants, **options).extended(
        Ablation,
        kind=kind,
        heads=tuple(chosen),
        sets=tuple(sets),
        each=each,
        replaced_by=words,
        n_averaged=n_averaged,
    )


def _variants(
    sets: Sequence[Heads], each: bool, positions: list[int], value: Callable[[int, int], Tensor | float]
) -> list[Variant]:
    return [
        Variant(
            tuple(Edit("z", l, h, positions, value(l, h)) for l, h in heads),
            name="L{}H{}".format(*heads[0]) if each else f"{plural(len(heads), 'head')}",
        )
        for heads in sets
    ]


def _sets(heads, n_layers: int, n_heads: int, each: bool) -> list[Heads]:
    """The sets of heads that are replaced together, each checked: every head on its own with `each`."""
    if not isinstance(heads, Iterable):
        raise TypeError(f"heads: got {heads!r}; expected (layer, head) pairs, or a list of sets of them")
    given = list(heads)
    if given and all(isinstance(h, Sequence) and (len(h) == 0 or isinstance(h[0], Sequence)) for h in given):
        if each:
            raise ValueError("each: got True for a list of sets, each of which is a result of its own; expected one set")
        return [tuple(check_heads(list(one), n_layers, n_heads, argument=f"heads[{i}]")) for i, one in enumerate(given)]
    chosen = check_heads(given, n_layers, n_heads)
    return [(head,) for head in chosen] if each else [tuple(chosen)]


def _resampled(model: Model, base: Tensor, other, where: list[int], seed: int) -> tuple[Tensor, list[int], str]:
    """z [L, T, H, D] of another prompt; the positions where it can differ; which prompt it is, in words."""
    prompts, _ = listed(other, argument="resample")
    if isinstance(other, Sequence) and not len(other):
        raise ValueError("resample: got nothing; expected a prompt, or a list with at least one")
    all_tokens = [model.to_tokens(p, argument=f"resample[{i}]") for i, p in enumerate(prompts)]
    for i, t in enumerate(all_tokens):
        if len(t) != len(base):
            raise ValueError(f"resample[{i}] has {len(t)} tokens, tokens has {len(base)}; expected equal lengths")
    i = int(torch.randint(len(prompts), (1,), generator=torch.Generator().manual_seed(seed)))
    differs = (all_tokens[i] != base).nonzero().flatten().tolist()
    useful = [p for p in where if differs and p >= differs[0]]  # before it both runs are the same
    if not useful:
        raise ValueError(f"resample[{i}] is the same prompt as tokens up to the positions; nothing would change")
    z = model.run(all_tokens[i], capture=("z",), positions=[-1])["z"]  # type: ignore[index]
    return z, useful, f"z of resample[{i}] of {plural(len(prompts), 'prompt')}, seed {seed}"


def _mean(model: Model, prompts, roles, length: int) -> tuple[Tensor, str, int]:
    """Mean z over prompts: [L, H, D], or by role [L, T, H, D]; in words; the number of prompts."""
    prompts, single = listed(prompts, argument="mean")
    if single or not prompts:
        got = "one prompt" if single and len(prompts[0]) else "an empty list"
        raise ValueError(f"mean: got {got}; expected a tensor of means, or a list of prompts")
    all_tokens = [model.to_tokens(p, argument=f"mean[{i}]") for i, p in enumerate(prompts)]
    if roles is None:
        labels, label = 1, None
    else:
        label = torch.as_tensor(roles)
        if label.shape != (length,):
            raise ValueError(f"roles: got shape {list(label.shape)}; expected one label for each of {length} positions")
        for i, t in enumerate(all_tokens):
            if len(t) != length:
                raise ValueError(f"mean[{i}] has {len(t)} tokens, but roles are given for {length}; expected equal lengths")
        label = label.unique(return_inverse=True)[1]
        labels = int(label.max()) + 1
    cfg = model.cfg
    total = torch.zeros(labels, cfg.n_layers, cfg.n_heads, cfg.d_head, dtype=torch.float64)
    count = torch.zeros(labels, dtype=torch.float64)
    for t in all_tokens:
        z = model.run(t, capture=("z",), positions=[-1])["z"].double().cpu().transpose(0, 1)  # type: ignore[index]
        role = torch.zeros(len(t), dtype=torch.long) if label is None else label
        total.index_add_(0, role, z)
        count.index_add_(0, role, torch.ones(len(t), dtype=torch.float64))
    means = total / count[:, None, None, None]
    over = f"the mean of z over {plural(len(all_tokens), 'prompt')}"
    if label is None:
        return means[0], f"{over} and all their positions", len(all_tokens)
    return means[label].transpose(0, 1), f"{over} and the positions of the same of {plural(labels, 'role')}", len(all_tokens)
