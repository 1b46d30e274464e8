"""The steps of a chain of thought with a set of heads out of the run: which are still right.

The steps of an example are prefixes of one text, so one run of the whole solution answers all of them, with the gold text in
front of each; the few-shot block is run once for all examples. One set of heads costs one such pass.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pycotmech._choices import check_choice
from pycotmech.cot.task.examples import Examples
from pycotmech.cot.tools.cells import Cells
from pycotmech.cot.tools.cost import Cost, Workload, rows_cost
from pycotmech.cot.tools.means import N_PROMPTS, HeadMeans, head_means
from pycotmech.engine.ablated import AblatedRuns
from pycotmech.model.config import ModelConfig

if TYPE_CHECKING:
    from pycotmech.model import Model

Kind = Literal["mean", "zero"]
Mean = HeadMeans | Examples | Sequence[Examples] | None
Positions = Literal["all", "suffix"]
_READ_BLOCK = 256


class Answers(NamedTuple):
    """What became of the steps, each [n, S], NaN where a step was not asked for.

    right: 1 if every token of the word is the arg-max with the gold text before it. agrees: 1 if the first token that
    follows is the one that follows in the untouched run. log_prob: of the whole word, in nats.
    """

    right: NDArray[np.float64]
    agrees: NDArray[np.float64]
    log_prob: NDArray[np.float64]


class AblatedAnswers:
    """Reads words of prompts under ablation. What it takes is tokens and positions only: any text that answers something.

    prompts: token ids [T_i] beginning with the same `shared` tokens. spans: for each prompt and each of S steps the slice
    of positions of the word that answers it (its tokens are the gold ones), or None for a step that does not count.
    fill, roles, everywhere, memory_gb: as in `AblatedRuns`.
    """

    def __init__(
        self,
        model: Model,
        prompts: Sequence[Tensor],
        spans: Sequence[Sequence[slice | None]],
        *,
        shared: int = 0,
        fill: Tensor | None = None,
        roles: Sequence[Tensor] | None = None,
        everywhere: bool = True,
        memory_gb: float | None = None,
    ) -> None:
        self.model = model
        self.prompts, self.spans = list(prompts), [list(s) for s in spans]
        # A word directly after the shared tokens is read at the last of them, which then has to stay with the prompts.
        first = min((s.start for row in self.spans for s in row if s is not None), default=1)
        self.shared = min(shared, first - 1)
        self._roles = roles
        self._options: dict[str, Any] = dict(shared=self.shared, fill=fill, everywhere=everywhere, memory_gb=memory_gb)
        self._runs: dict[tuple[tuple[int, ...], tuple[int, ...]], tuple[AblatedRuns | None, list, Tensor]] = {}
        self._done: dict[tuple[bytes, tuple[int, ...], tuple[int, ...]], Answers] = {}
        steps = tuple(range(len(self.spans[0])))
        self._first: NDArray | None = None
        self.untouched = self(np.zeros((model.cfg.n_layers, model.cfg.n_heads), bool), steps)

    def __call__(
        self,
        heads: NDArray[np.bool_],
        steps: Sequence[int] | None = None,
        prompts: Sequence[int] | NDArray[np.int64] | None = None,
    ) -> Answers:
        """With these heads ablated, bool [L, H]. What was asked before is known.

        steps, prompts: by number along their axes; None: all. Of the other prompts nothing is computed.
        """
        chosen = tuple(range(len(self.spans[0]))) if steps is None else tuple(steps)
        rows = tuple(range(len(self.spans))) if prompts is None else tuple(int(e) for e in prompts)
        key = (np.packbits(heads).tobytes(), chosen, rows)
        if key not in self._done:
            self._done[key] = self._run(heads, chosen, rows)
        return self._done[key]

    def _run(self, heads: NDArray[np.bool_], steps: tuple[int, ...], rows: tuple[int, ...]) -> Answers:
        if (steps, rows) not in self._runs:
            self._runs[steps, rows] = self._prepared(steps, rows)
        runs, places, gold = self._runs[steps, rows]
        n, S = len(self.spans), len(self.spans[0])
        out = Answers(*(np.full((n, S), np.nan) for _ in range(3)))
        if runs is None:
            return out
        best, logs = self._predicted(runs.final(torch.from_numpy(np.ascontiguousarray(heads))), gold)
        first = np.full((n, S), -1)
        at = 0
        for e, s, length in places:
            here = slice(at, at + length)
            out.right[e, s] = float((best[here] == gold[here]).all())
            out.log_prob[e, s] = float(logs[here].sum())
            first[e, s] = int(best[at])
            at += length
        if self._first is None:
            self._first = first
        asked = ~np.isnan(out.right)
        out.agrees[asked] = (first == self._first)[asked]
        return out

    def _prepared(self, steps: tuple[int, ...], rows: tuple[int, ...]) -> tuple[AblatedRuns | None, list, Tensor]:
        """The runs for some steps of some prompts, (example, step, tokens of the word) in the order they are read, and the gold
        tokens."""
        kept, reads, places, gold = [], [], [], []
        for e in rows:
            row = self.spans[e]
            where = [(s, span) for s in steps if (span := row[s]) is not None]
            if not where:
                continue
            kept.append(e)
            reads.append([p - 1 for _, span in where for p in range(span.start, span.stop)])
            places += [(e, s, span.stop - span.start) for s, span in where]
            gold += [self.prompts[e][span] for _, span in where]
        if not kept:
            return None, [], torch.empty(0)
        roles = None if self._roles is None else [self._roles[e] for e in kept]
        runs = AblatedRuns(self.model.family, [self.prompts[e] for e in kept], reads, roles=roles, **self._options)
        return runs, places, torch.cat(gold)

    @torch.no_grad()
    def _predicted(self, x: Tensor, gold: Tensor) -> tuple[Tensor, Tensor]:
        """Arg-max next token and log-probability of the gold one, for each final residual row."""
        best, logs = [], []
        for a in range(0, len(x), _READ_BLOCK):
            logits = self.model.family.logits(x[a : a + _READ_BLOCK])
            chosen = logits.gather(1, gold[a : a + _READ_BLOCK].to(logits.device)[:, None])[:, 0]
            best.append(logits.argmax(-1).cpu())
            logs.append((chosen - logits.logsumexp(-1)).double().cpu())
        return torch.cat(best), torch.cat(logs)


@dataclass(frozen=True, eq=False)
class AblatedSteps:
    """The cells of an analysis under ablation. answer(heads, steps) -> `Answers`; replaced_by says what was put in."""

    answer: AblatedAnswers
    cells: Cells
    settings: dict[str, object]
    replaced_by: str


def ablated_steps(
    model: Model,
    cells: Cells,
    *,
    kind: Kind = "mean",
    mean: Mean = None,
    n_mean: int = N_PROMPTS,
    positions: Positions = "all",
    seed: int = 0,
    memory_gb: float | None = None,
) -> AblatedSteps:
    """Gets ready to ablate heads in the steps that count.

    kind: "mean" or "zero". mean: a `HeadMeans` of these examples, or what `head_means` takes as `over`; None: of n_mean
    prompts made for it. positions: "all", as the authors did, few-shot block included; "suffix": only after it.
    """
    check_choice("kind", kind, ("mean", "zero"))
    check_choice("positions", positions, ("all", "suffix"))
    if kind == "zero" and mean is not None:
        raise ValueError("mean: kind 'zero' takes no mean; expected None")
    examples = cells.examples
    fill = roles = None
    words, prompts, by = "zero", None, None
    if kind == "mean":
        means = mean if isinstance(mean, HeadMeans) else head_means(model, examples, over=mean, n=n_mean, seed=seed)
        lengths = [len(r) for r in means.roles]
        if lengths != [len(example.full_ids) for example in examples]:
            raise ValueError("mean: its roles are those of other examples; expected means made for these by head_means")
        fill, roles, words, prompts, by = means.z, means.roles, str(means), means.prompts, means.by
    spans = [
        [example.steps[s].answer_span if bool(cells.right[e, i]) else None for i, s in enumerate(cells.steps)]
        for e, example in enumerate(examples)
    ]
    answer = AblatedAnswers(
        model,
        [example.full_ids for example in examples],
        spans,
        shared=len(examples.shared_ids),
        fill=fill,
        roles=roles,
        everywhere=positions == "all",
        memory_gb=memory_gb,
    )
    settings: dict[str, object] = dict(kind=kind, replaced_by=words, mean_prompts=prompts, mean_roles=by, positions=positions)
    return AblatedSteps(answer, cells, settings, words)


def runs_cost(
    cfg: ModelConfig,
    load: Workload,
    sets: float,
    *,
    kind: Kind = "mean",
    n_mean: int = N_PROMPTS,
    apart: float = 0,
    parts: int = 1,
    started: bool = False,
) -> Cost:
    """Of the untouched run, of the means, of `sets` sets of heads for all steps, and of `apart` sets that differ by step.

    parts: the number of steps, each of which runs the shared block again where sets differ by step. started: whether the
    untouched run and the means are there already.
    """
    L, word = cfg.n_layers, 1.5  # tokens of a word, about
    read = load.cells * word

    def one(after: float, parts: int) -> Cost:
        rows = parts * load.shared + after  # all but the last layer, which is computed only where it is read
        return rows_cost(cfg, (rows * (L - 1) + read) / L, forwards=load.cells, read=read)

    total = (sets + (not started)) * one(load.texts + load.examples * (word - 1), 1)
    total = total + apart * one(load.cells * (load.length - load.shared + word - 1), parts)
    if kind == "mean" and not started:
        length = (load.longest or load.length) + word
        total = total + rows_cost(cfg, n_mean * length, forwards=n_mean)
    return total
