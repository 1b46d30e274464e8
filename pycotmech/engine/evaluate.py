"""Takes variants through the layers in pieces, and measures what comes out."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property, partial

import torch
from torch import Tensor

from pycotmech._warnings import warn
from pycotmech._words import plural
from pycotmech.engine import graphs
from pycotmech.engine.budget import LOGIT_ROWS, Pieces
from pycotmech.engine.jitter import Jitter
from pycotmech.engine.joins import Joins
from pycotmech.engine.memory import hint_at_budget
from pycotmech.engine.metrics import ExampleMetric
from pycotmech.engine.planner import Plan
from pycotmech.engine.row_edits import RowEdits
from pycotmech.engine.rows import Variants
from pycotmech.engine.staircase import Staircase
from pycotmech.model import work
from pycotmech.model.families.base import Family
from pycotmech.model.run import Replay
from pycotmech.model.work import LayerRows


class Ticker:
    """Tells a caller's `progress` how many token-forwards of a plan are done.

    progress: called with (token-forwards done, in all); None: nothing is reported.
    """

    def __init__(self, progress: Callable[[int, int], None] | None, plan: Plan, n_layers: int) -> None:
        self.progress, self.n_layers = progress, n_layers
        self.done, self.total = 0, max(1, round(plan.token_forwards * n_layers))  # layer-rows

    def __call__(self, layer_rows: int) -> None:
        """That many rows have gone through one layer."""
        self.done += layer_rows
        if self.progress is not None:
            self.progress(min(self.done, self.total) // self.n_layers, self.total // self.n_layers)


@dataclass(frozen=True)
class Evaluator:
    """Evaluates variants.

    room: bytes that the call may use; replayed graphs take a share of them. keep_logits: whether all logits are returned.
    """

    family: Family
    room: int
    keep_logits: bool
    tick: Ticker

    @cached_property
    def graphs(self) -> graphs.Graphs | None:
        """The graphs of the model, valid for its weights as they are in this call; None where nothing is captured."""
        return graphs.kept.of(self.family)

    @property
    def replay(self) -> Replay | None:
        """What takes passes over prompts (`forward_packed`); None where nothing is captured."""
        return None if self.graphs is None else partial(self.graphs.run, room=self.room)

    def run(
        self,
        variants: Variants,
        pieces: Pieces,
        joins: Joins,
        edits: RowEdits,
        metrics: Sequence[ExampleMetric],
        jitter: Jitter,
        kept: Tensor,
    ) -> tuple[Tensor, Tensor | None, Tensor]:
        """The metric of each variant where it is read, float64 [N] or as many as `Bases.readings` has; its logits [..., V]
        if they are kept; and the final residual rows [M, d] of the variants `kept` [N] bool where they are read.
        metrics: one for each position at which a base is read, base after base. jitter: which variants are jittered."""
        read = joins.bases.readings(variants.base)
        values = torch.empty(len(read.number), dtype=torch.float64)
        logits = torch.empty(len(values), self.family.cfg.d_vocab, dtype=self.family.resid_dtype) if self.keep_logits else None
        chosen = kept[read.variant]
        place = chosen.cumsum(0) - 1  # among the rows that are kept
        rows = torch.empty(int(chosen.sum()), self.family.cfg.d_model, dtype=self.family.resid_dtype, device=self.family.device)
        left = list(reversed(pieces))
        while left:
            c, d = left.pop()
            piece, out = variants[torch.arange(c, d)], slice(*read.begins[[c, d]].tolist())
            try:
                with hint_at_budget(f"{plural(d - c, 'variant')} went through the layers"):
                    staircase = Staircase(
                        self.family, joins.bases, piece, joins.of(c, d), self.count, edits.of(c, d), jitter=jitter.of(c, d)
                    )
                    final = staircase.run() if self.graphs is None else self.graphs.run(staircase, self.room)
                    self.measure(final, read.number[out], metrics, values[out], None if logits is None else logits[out])
                    here = chosen[out].nonzero().flatten()
                    if len(here):
                        to = place[out][here]  # they follow one another
                        rows[int(to[0]) : int(to[-1]) + 1] = final[here.to(final.device)]
            except MemoryError as error:
                if d - c == 1:
                    raise
                warn(f"{error}; continuing with half as many at a time")
                left += [((c + d) // 2, d), (c, (c + d) // 2)]
        return values, logits, rows

    def measure(
        self, final: Tensor, which: Tensor, metrics: Sequence[ExampleMetric], values: Tensor, logits: Tensor | None = None
    ) -> None:
        """Writes to values [N] what the metric numbered `which` [N] gives for final residual rows [N, d], and to logits [N, V]
        theirs."""
        for e in which.unique().tolist():
            for rows in (which == e).nonzero().flatten().split(LOGIT_ROWS):
                out = self.logits(final[rows.to(final.device)], None if logits is not None else metrics[e].token_ids)
                if logits is not None:
                    logits[rows] = out.cpu()
                values[rows] = metrics[e](out).cpu()  # last: a callable may change the logits that it gets

    def logits(self, rows: Tensor, token_ids: Iterable[int | None] | None) -> Tensor:
        """Final residual rows [N, d] -> logits [N, V], or [N, len(token_ids)]."""
        tokens = None if token_ids is None else torch.tensor(list(token_ids), device=rows.device)
        with torch.no_grad():
            return self.family.logits(rows, tokens)

    def count(self, rows: LayerRows) -> None:
        """Reports rows that have gone through one layer, as work and as progress."""
        work.count(self.family, rows)
        self.tick(rows.passed)
