"""The analyses in the order in which they run: what each needs from the ones before it, and what it costs."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from pycotmech import cot
from pycotmech.cot.analyses import copy_heads, decision_heads, decision_horizon, functional_rift, patch_steps
from pycotmech.cot.analyses.cost import Cost, Workload
from pycotmech.cot.analyses.result import Analysis, Progress

if TYPE_CHECKING:
    from pycotmech.cot import Examples, Graded
    from pycotmech.model import Model
    from pycotmech.model.families import ModelConfig

CostOf = Callable[["ModelConfig", Workload], Cost]


@dataclass(frozen=True)
class Given:
    """What an analysis gets: the model, the examples and which of their steps are right, settings, earlier results."""

    model: Model
    examples: Examples
    right: Graded
    seed: int
    memory_gb: float | None
    done: Mapping[str, Analysis]

    def call(self, function: Callable[..., Any], progress: Progress | None, **more: Any) -> Any:
        """An analysis with what all of them take."""
        common = {"right": self.right, "seed": self.seed, "memory_gb": self.memory_gb, "progress": progress}
        return function(self.model, self.examples, **common, **more)


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


def _simple(name: str, source: str, function_name: str, module: Any, result: type[Analysis]) -> Entry:
    """An analysis that needs no other and no options of its own."""
    return Entry(
        name,
        source,
        lambda given, progress: given.call(getattr(cot, function_name), progress),
        result,
        module.cost,
        module.authors_cost,
    )


ENTRIES: tuple[Entry, ...] = (
    _simple("patch_steps", "E1", "patch_steps", patch_steps, patch_steps.PatchSteps),
    _simple("decision_heads", "E3", "decision_heads", decision_heads, decision_heads.DecisionHeads),
    _simple("copy_heads", "E4", "copy_heads", copy_heads, copy_heads.CopyHeads),
    _simple("functional_rift", "E11", "functional_rift", functional_rift, functional_rift.FunctionalRift),
    _simple("decision_horizon", "E12", "decision_horizon", decision_horizon, decision_horizon.DecisionHorizon),
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
        found = [e.name for e in ENTRIES if word == e.name or word.upper() in e.source.replace(",", " ").split()]
        if not found:
            raise ValueError(f"only: got {word!r}; expected some of {', '.join(known)}, or E1 to E12")
        names |= set(found)
    while more := {n for name in names for n in known[name].needs} - names:
        names |= more
    return [e for e in ENTRIES if e.name in names]
