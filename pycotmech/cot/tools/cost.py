"""What an analysis costs: predicted before it runs, and counted while it runs."""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Self

from pycotmech.cost.demand import VARIANT_LAUNCHES, Counts, Demand
from pycotmech.model.config import ModelConfig, layer_flop, logits_flop
from pycotmech.model.sizes import CPU
from pycotmech.model.work import Tally, counted
from pycotmech.patching.pairs import aligned
from pycotmech.patching.shared_runs import shared_runs
from pycotmech.stats import bootstrap

if TYPE_CHECKING:
    from pycotmech.cot.tools.cells import Cells
    from pycotmech.model import Model


@dataclass(frozen=True)
class Cost(Counts):
    """Work, additive, except that of memory the largest part counts.

    forwards: passes of one whole prompt through the model, as a hook-based program would count them.
    token_forwards: rows through all the layers: what is really computed. flop: of the matrix products of these rows and of
        the unembedding. memory: bytes held at once beyond the model.
    passes: passes of few rows through all layers, each of which waits for the weights, beside those of full blocks.
    wide: FLOP of other products, in float32; traffic: bytes that steps which are no products read and write. Neither is part
        of `flop`, and no meter counts them; both take time.
    """

    forwards: float = 0.0
    token_forwards: float = 0.0
    flop: float = 0.0
    memory: float = 0.0
    passes: float = 0.0
    wide: float = 0.0
    traffic: float = 0.0

    def __add__(self, other: Self) -> Self:
        return replace(super().__add__(other), memory=max(self.memory, other.memory))

    def __mul__(self, times: float) -> Self:
        """So many times the same, one after another."""
        return replace(super().__mul__(times), memory=self.memory)

    __rmul__ = __mul__

    def demand(self, cfg: ModelConfig, keys: float) -> Demand:
        """The same as a demand on a machine (`pycotmech.cost`). keys: that a row sees in each layer, on average."""
        rows = self.token_forwards * cfg.n_layers
        logits = self.flop - rows * layer_flop(cfg).linear
        passes = cfg.n_layers * (self.passes + math.ceil(self.token_forwards / CPU.row_block))
        unembedded = max(logits, 0.0) / logits_flop(cfg)
        return Demand(
            rows, passes, rows * keys, unembedded=unembedded, wide=self.wide, traffic=self.traffic,
            launches=VARIANT_LAUNCHES * passes,
        )  # fmt: skip

    def __str__(self) -> str:
        return f"{self.forwards:,.0f} forwards, {self.token_forwards:,.0f} token-forwards, {self.flop / 1e12:,.2f} TFLOP"


@dataclass(frozen=True)
class Workload:
    """The sizes on which costs depend: examples and steps that count, prompt lengths in tokens.

    length: mean prompt length T; suffix: mean number of positions from the first one that differs between clean and
    corrupted to the end; shared: tokens that every prompt begins with; longest: mean over examples of the longest of its
    prompts (0: not known, taken for `length`); inductive: how many of the cells are steps of induction.
    swept: positions from the first one that differs to the end, of the sweeps that all cells need (steps of an example under
    one replacement need one; 0: not known, one for each cell); sweeps: how many these are (0: not known); together: the most
    cells that one of them answers.
    beginnings: solutions begun, at their start and after each sentence, whose next step counts (0: not known); left: tokens
    that the gold solution has after one, on average.
    """

    examples: int
    cells: int
    length: float
    suffix: float
    shared: int
    longest: float = 0.0
    inductive: int = 0
    swept: float = 0.0
    sweeps: int = 0
    together: int = 0
    beginnings: int = 0
    left: float = 0.0

    def reported(self, *, fewest: int = bootstrap.HALVED) -> Workload:
        """Of the examples that are reported on, where sets of heads are chosen on the others. fewest: examples from which on
        there are two halves."""
        part = self.examples if self.examples < fewest else self.examples - self.examples // 2
        cells, inductive = (round(n * part / self.examples) for n in (self.cells, self.inductive))
        return replace(self, examples=part, cells=cells, inductive=inductive)

    @property
    def texts(self) -> float:
        """Positions of the examples' longest prompts after the shared beginning."""
        return self.examples * ((self.longest or self.length) - self.shared)


def workload(cells: Cells) -> Workload:
    """Of the cells an analysis works on."""
    steps = [cell.step for cell in cells]
    lengths = [len(step.clean) for step in steps]
    suffixes = [len(step.clean) - min(step.differs) for step in steps]
    n = len(steps)
    used = int(cells.right.any(1).sum())
    longest: dict[int, int] = {}
    for cell in cells:
        longest[cell.e] = max(longest.get(cell.e, 0), len(cell.step.clean))
    mean = sum(longest.values()) / used
    inductive = sum(step.kind == "induction" for step in steps)
    swept, sweeps, together = 0, 0, 0
    for e in longest:
        pairs = [aligned(cell.step.clean, cell.step.corrupted) for cell in cells if cell.e == e]
        runs = shared_runs(pairs)
        swept += sum(pairs[run.host].read + 1 - pairs[run.host].first for run in runs)
        sweeps += len(runs)
        together = max(together, *(len(run.readers) for run in runs))
    shared, left = len(cells.examples.shared_ids), _left(cells)
    return Workload(
        used, n, sum(lengths) / n, sum(suffixes) / n, shared, mean, inductive, float(swept), sweeps, together,
        len(left), sum(left) / max(len(left), 1),
    )  # fmt: skip


def _left(cells: Cells) -> list[int]:
    """Tokens of the gold solution after each beginning whose next step counts: the solution's start and the ends of its
    sentences. A sentence ends with a word of a step and a full stop of one token."""
    out = []
    for e, example in enumerate(cells.examples):
        counts = {cells.steps[s] for s in cells.right[e].nonzero().flatten().tolist()}
        start, sentence = example.segments["generated"].start, -1
        for step in example.steps:
            if step.prefix_text.count(".") > sentence:
                sentence = step.prefix_text.count(".")
                if step.index in counts:
                    out.append(len(example.full_ids) - start)
            start = step.answer_span.stop + 1
    return out


def rows_cost(
    cfg: ModelConfig, rows: float, *, forwards: float = 0.0, read: float = 0.0, memory: float = 0.0, passes: float = 0.0
) -> Cost:
    """Cost of `rows` rows through all layers, of which `read` go through the whole unembedding. passes: as in `Cost`."""
    flop = rows * cfg.n_layers * layer_flop(cfg).linear + read * logits_flop(cfg)
    return Cost(forwards, rows, float(flop), memory, passes)


def forwards_cost(cfg: ModelConfig, workload: Workload, forwards: float, *, read: float = 1.0, memory: float = 0.0) -> Cost:
    """Cost of so many passes of a whole prompt. read: how often each position goes through the unembedding."""
    rows = forwards * workload.length
    return rows_cost(cfg, rows, forwards=forwards, read=rows * read, memory=memory)


class Meter:
    """What was really computed while it was on: rows through the parts of the layers, rows through the unembedding."""

    def __init__(self, tally: Tally) -> None:
        self.seconds = 0.0
        self._tally = tally

    @property
    def flop(self) -> float:
        return float(self._tally.flop)

    @property
    def token_forwards(self) -> float:
        return self._tally.token_forwards

    def cost(self, forwards: float = 0.0) -> Cost:
        return Cost(forwards, self.token_forwards, self.flop)


@contextlib.contextmanager
def metered(model: Model) -> Iterator[Meter]:
    """Counts the work of this model, as the engine reports it. Attention's own products are not counted.

    A row counts as a layer-row with its MLP, the largest part of a layer. What calls the Hugging Face model itself is not
    seen: the engine does not. Meters may be nested; each sees everything within it.
    """
    start = time.perf_counter()
    with counted(model.family) as tally:
        meter = Meter(tally)
        try:
            yield meter
        finally:
            meter.seconds = time.perf_counter() - start
