"""Measures attention from one word to another, in questions and in the same sentences with other verbs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pycotmech.cot.task.relations import Question
from pycotmech.cot.task.verbs import reworded
from pycotmech.cot.tools.activations import TextActivations
from pycotmech.cot.tools.head_probe import Rows, read_positions
from pycotmech.cot.tools.question_runs import runs
from pycotmech.cot.tools.result import Progress
from pycotmech.model.config import ModelConfig

if TYPE_CHECKING:
    from pycotmech.model import Model


class Seen(NamedTuple):
    """The results of `look`."""

    weight: list[NDArray]  # by question [pairs, L, H]: attention to all tokens of the first word
    lift: list[NDArray]  # the same in multiples of even attention
    null: list[NDArray]  # by question [verbs, pairs, L, H]: the weight with another verb
    rows: list[Rows]  # by question, at the probe's depth
    mean_z: Tensor  # [L, 2, H, D]: of the first position, of all others; over the choosing half


def with_others(model: Model, questions: Sequence[Question], n: int) -> tuple[tuple[str, ...], list[Question]]:
    """Returns the names of the other verbs, and the questions with their tokens for each verb."""
    counts = {len(q.others) for q in questions}
    if counts == {0}:
        names, others = reworded(questions, tokenizer=model.tokenizer, bos=model.prepend_bos, n=n)
        return names, [replace(q, others=rows) for q, rows in zip(questions, others, strict=True)]
    if len(counts) > 1 or any(len(o) != len(q.tokens) for q in questions for o in q.others):
        raise ValueError("questions: others: expected as many for each question, each as long as its tokens, or none at all")
    return tuple(f"verb {i + 1}" for i in range(counts.pop())), list(questions)


def look(
    model: Model, questions: Sequence[Question], depth: int, choose: NDArray, memory_gb: float | None, progress: Progress | None
) -> Seen:
    """Runs every question, as it is and with each of its `others`.

    The null of a pair is its weight with another verb, scaled as if the verb got as much attention as in the question. A head
    that attends more to one verb than to another leaves less attention for the words around it, whatever these say.
    depth: of the residual stream that is kept. choose: indices of the questions over which mean z is taken.
    """
    cfg, family = model.cfg, model.family
    weight, lift, null, rows = [], [], [], []
    total = torch.zeros(cfg.n_layers, 2, cfg.n_heads, cfg.d_head, dtype=family.resid_dtype, device=model.device)
    count = torch.zeros(2)
    chosen = set(choose.tolist())
    # Each question is followed by itself with other verbs, so that they share beginnings and batches.
    texts = [(i, replace(q, tokens=tokens)) for i, q in enumerate(questions) for tokens in (q.tokens, *q.others)]
    verbs = [_differs(q) for q in questions]
    free = np.ones(0)
    for number, acts in runs(model, [q for _, q in texts], ("q", "z", "resid_post"), memory_gb=memory_gb, whole=True):
        i = texts[number][0]
        found, elsewhere = _weights(acts, questions[i], verbs[i], cfg)
        if number and texts[number - 1][0] == i:  # with another verb
            with np.errstate(invalid="ignore", divide="ignore"):
                scaled = np.where(elsewhere > 0, found / elsewhere * free, found)
            null[i].append(np.minimum(scaled, 1.0))
            continue
        free = elsewhere
        for l in range(cfg.n_layers if i in chosen else 0):
            z = acts.everywhere("z", l).to(family.resid_dtype)
            total[l, 0] += z[0]
            total[l, 1] += z[1:].sum(0)
        if i in chosen:
            count += torch.tensor([1.0, len(acts) - 1.0])
        even = np.array([(p.first.stop - p.first.start) / p.second.stop for p in questions[i].pairs])
        weight.append(found)
        lift.append(found / even[:, None, None])
        null.append([])
        where = read_positions(questions[i])
        rows.append((where, acts.at("resid_post", depth - 1, where).float().cpu().numpy()))
        if progress is not None:
            progress(0.6 * (i + 1) / len(questions), 1.0)
    mean = total / count.to(total.dtype).to(total.device)[None, :, None, None]
    return Seen(weight, lift, [np.stack(x) if x else np.zeros((0, *w.shape)) for x, w in zip(null, weight)], rows, mean)


def _differs(question: Question) -> list[int]:
    """Returns the positions at which a question's tokens differ with another verb."""
    apart = torch.stack([o != question.tokens for o in question.others]).any(0) if question.others else torch.zeros(0)
    return apart.nonzero().flatten().tolist()


def _weights(acts: TextActivations, question: Question, verbs: list[int], cfg: ModelConfig) -> tuple[NDArray, NDArray]:
    """Returns the attention of every pair, and what its row gives to all tokens except verbs: [pairs, L, H] each."""
    pairs = question.pairs
    read = sorted({p.second.stop - 1 for p in pairs})
    found, free = np.zeros((2, len(pairs), cfg.n_layers, cfg.n_heads))
    at = [read.index(p.second.stop - 1) for p in pairs]
    for l in range(cfg.n_layers):
        pattern = acts.pattern(l, read)  # [rows, H, T]
        others = [t for t in range(pattern.shape[-1]) if t not in verbs]
        other = pattern[..., others].sum(-1).cpu().numpy()
        for j, p in enumerate(pairs):
            found[j, l] = pattern[at[j], :, p.first].sum(-1).cpu().numpy()
            free[j, l] = other[at[j]]
    return found, free
