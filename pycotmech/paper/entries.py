"""The analyses in the order in which they run: what each needs from the ones before it, and what it costs."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from types import ModuleType
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from pycotmech import cot
from pycotmech.cot.analyses import (
    answer_sources,
    answer_writers,
    attention_by_source,
    context_abidance,
    copy_heads,
    decision_heads,
    decision_horizon,
    functional_rift,
    head_overlap,
    induction_heads,
    information_flow,
    isolation,
    knock_out,
    pair_probes,
    patch_steps,
    relation_heads,
)
from pycotmech.cot.analyses.select_heads import Selection, select_heads
from pycotmech.cot.tools.cost import Cost, Workload
from pycotmech.cot.tools.head_sets import scores_of
from pycotmech.cot.tools.result import HALVED, Analysis, Progress
from pycotmech.stats import bootstrap

if TYPE_CHECKING:
    from pycotmech.cot import Examples, Graded
    from pycotmech.model import Model
    from pycotmech.model.config import ModelConfig

CostOf = Callable[["ModelConfig", Workload], Cost]

_SCORES = {"patch_steps": ("effect", "size"), "decision_heads": ("gain", "size"), "copy_heads": ("copying", "value")}
"""Whose heads are compared: the variable by which each ranks them, and whether by its size or its value. A head whose
restoration is strongly negative works against the step, and a run without it is no longer the model's."""


@dataclass(frozen=True)
class Given:
    """What an analysis gets: the model, the examples and which of their steps are right, settings, earlier results."""

    model: Model
    examples: Examples
    right: Graded | Tensor
    steps: tuple[int, ...]
    seed: int
    memory_gb: float | None
    done: Mapping[str, Analysis]

    def call(
        self,
        function: Callable[..., Any],
        progress: Progress | None,
        *first: Any,
        steps: Sequence[int] | bool = True,
        **more: Any,
    ) -> Any:
        """An analysis with what all of them take. steps: some of the steps; or whether it is made on steps at all."""
        common = {"right": self.right, "seed": self.seed, "memory_gb": self.memory_gb, "progress": progress}
        if steps is not False:
            common["steps"] = self.steps if steps is True else tuple(steps)
        return function(self.model, self.examples, *first, **common, **more)

    def sets(self, *, choosing: bool = False) -> dict[str, Selection]:
        """The third of all heads that each score puts first, all steps pooled, by the score's name. choosing: by the scores
        of the choosing half alone."""
        third = max(1, self.model.cfg.n_layers * self.model.cfg.n_heads // 3)
        found = {name: self.selection(name, third) for name in _SCORES}
        return {name: s.of(self.choosing) for name, s in found.items()} if choosing else found

    def selection(self, name: str, k: int | None) -> Selection:
        """The k heads that a result puts first; None: nested sets, about 12 from none to all."""
        variable, by = _SCORES[name]
        return select_heads(self.done[name], variable=variable, k=k, by=by, name=name, seed=self.seed)

    @property
    def halves(self) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Examples with a step that counts, by place, to choose sets on and to report on: the halves of `knock_out_curve`;
        all of these and all of these if they are few."""
        counts = np.flatnonzero(_table(self.right)[:, list(self.steps)].any(1).numpy())
        if len(counts) < HALVED:
            return counts, counts
        choosing, reporting = bootstrap.halves(len(counts), seed=self.seed)
        return counts[choosing], counts[reporting]

    @property
    def choosing(self) -> tuple[int, ...]:
        """The numbers of the examples to choose on."""
        return tuple(self.examples[int(i)].index for i in self.halves[0])

    def reporting(self) -> Given:
        """The same with the examples to report on only."""
        rows = [int(i) for i in self.halves[1]]
        items = [self.examples[i] for i in rows]
        return replace(self, examples=self.examples.only(items), right=_table(self.right)[rows])


@dataclass(frozen=True)
class Entry:
    """One analysis of the command.

    name: of its result and its files. source: the paper's experiments. run: makes the result. load: its class, which reads a
    stored one back. cost, authors: predicted for our function and for the authors' loops. needs: entries that come first.
    """

    name: str
    source: str
    run: Callable[[Given, Progress | None], Analysis]
    load: type[Analysis]
    cost: CostOf
    authors: CostOf
    needs: tuple[str, ...] = field(default=())


def _plain(source: str, module: ModuleType, load: type[Analysis], *, steps: bool = True) -> Entry:
    """An analysis that needs no other and no options of its own."""
    name = load.name
    return Entry(
        name,
        source,
        lambda given, progress: given.call(getattr(cot, name), progress, steps=steps),
        load,
        module.cost,
        module.authors_cost,
    )


def _induction(given: Given, progress: Progress | None) -> Analysis:
    kinds = given.examples.kinds
    steps = [i for i in given.steps if kinds[i] == "induction"]
    if not steps:
        raise ValueError(f"steps: none of {list(given.steps)} is a step of induction, which is what E2 looks at")
    return given.call(cot.induction_heads, progress, steps=steps, answer=given.done["patch_steps"])


def _knock_out(given: Given, progress: Progress | None) -> Analysis:
    return given.call(cot.knock_out_curve, progress, given.selection("patch_steps", None), order=("least", "most"))


def _overlap(given: Given, progress: Progress | None) -> Analysis:
    return head_overlap.head_overlap(given.sets(), model=given.model.name, seed=given.seed)


def _keep_only(given: Given, progress: Progress | None) -> Analysis:
    sets = {name: selection[0] for name, selection in given.sets(choosing=True).items()}
    main, *others = sets.values()
    shape = (given.model.cfg.n_layers, given.model.cfg.n_heads)
    combined = isolation.set_combinations(main, others, shape=shape)
    kept = {name: s for name, s in (sets | combined).items() if len(s)}
    return given.reporting().call(cot.keep_only, progress, kept)


def _remove(given: Given, progress: Progress | None) -> Analysis:
    within = given.sets(choosing=True)["patch_steps"][0]
    scores = scores_of(given.done["copy_heads"], "copying").of(given.choosing)
    return given.reporting().call(cot.remove, progress, within, scores, name="the heads that patching puts first")


def _table(right: Graded | Tensor) -> Tensor:
    return right if isinstance(right, Tensor) else right.right


def _half(w: Workload) -> Workload:
    """Of the examples that are reported on."""
    part = w.examples if w.examples < HALVED else w.examples - w.examples // 2
    return replace(w, examples=part, cells=round(w.cells * part / w.examples), inductive=round(w.inductive * part / w.examples))


def _sources(given: Given, progress: Progress | None) -> Analysis:
    return given.call(cot.answer_sources, progress, flow=given.done["information_flow"])


_SWEPT = tuple(_SCORES)

ENTRIES: tuple[Entry, ...] = (
    _plain("E1", patch_steps, patch_steps.PatchSteps),
    Entry(
        "induction_heads",
        "E2",
        _induction,
        induction_heads.InductionHeads,
        lambda cfg, w: induction_heads.cost(cfg, w, answer=True),
        induction_heads.authors_cost,
        ("patch_steps",),
    ),
    _plain("E3", decision_heads, decision_heads.DecisionHeads),
    _plain("E4", copy_heads, copy_heads.CopyHeads),
    Entry(
        "knock_out_curve",
        "E5",
        _knock_out,
        knock_out.KnockOutCurve,
        lambda cfg, w: knock_out.cost(cfg, w, orders=2),
        lambda cfg, w: knock_out.authors_cost(cfg, w, orders=2),
        ("patch_steps",),
    ),
    Entry("head_overlap", "E6", _overlap, head_overlap.HeadOverlap, head_overlap.cost, head_overlap.authors_cost, _SWEPT),
    Entry(
        "keep_only",
        "E6",
        _keep_only,
        isolation.Isolation,
        lambda cfg, w: isolation.cost(cfg, _half(w), sets=8),
        lambda cfg, w: isolation.authors_cost(cfg, _half(w)),
        _SWEPT,
    ),
    Entry(
        "remove",
        "E6",
        _remove,
        isolation.Removal,
        lambda cfg, w: isolation.cost(cfg, _half(w), sets=11),
        lambda cfg, w: isolation.authors_cost(cfg, _half(w), sets=11, mains=1),
        ("patch_steps", "copy_heads"),
    ),
    _plain("E7", attention_by_source, attention_by_source.AttentionBySource),
    _plain("E8", answer_writers, answer_writers.AnswerWriters),
    _plain("E8", information_flow, information_flow.InformationFlow),
    Entry(
        "answer_sources",
        "E8",
        _sources,
        answer_sources.AnswerSources,
        lambda cfg, w: answer_sources.cost(cfg, w, flow=True),
        answer_sources.authors_cost,
        ("information_flow",),
    ),
    _plain("E8", context_abidance, context_abidance.ContextAbidance),
    _plain("E9", pair_probes, pair_probes.PairProbes, steps=False),
    _plain("E10", relation_heads, relation_heads.RelationHeads, steps=False),
    _plain("E11", functional_rift, functional_rift.FunctionalRift),
    _plain("E12", decision_horizon, decision_horizon.DecisionHorizon),
)


def chosen(only: tuple[str, ...] | None) -> list[Entry]:
    """The entries to run, in order: all, or those named (by name or by the paper's number) with what they need.

    Raises ValueError naming the argument.
    """
    if only is None:
        return list(ENTRIES)
    known = {e.name: e for e in ENTRIES}
    names: set[str] = set()
    for word in only:
        found = [e.name for e in ENTRIES if word == e.name or word.upper() == e.source]
        if not found:
            raise ValueError(f"only: got {word!r}; expected some of {', '.join(known)}, or E1 to E12")
        names |= set(found)
    if not names:
        raise ValueError(f"only: got none; expected some of {', '.join(known)}")
    while more := {n for name in names for n in known[name].needs} - names:
        names |= more
    return [e for e in ENTRIES if e.name in names]
