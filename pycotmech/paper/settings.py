"""Settings of the task beside the easy one: the same problems made harder, and problems in other words."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from pycotmech.cot.tools.registry import Description
from pycotmech.paper.entries import ENTRIES, chosen
from pycotmech.runs.settings import Settings

EASY = "easy"
"""The setting of the run itself."""
HARDER_EXAMPLES = 8
"""Examples in each of the others, or those of the run itself if these are fewer."""


@dataclass(frozen=True)
class TaskSetting:
    """changes: what it changes of the arguments of `cot.make_examples`. why: what a claim has to survive in it."""

    name: str
    changes: Mapping[str, Any] = field(hash=False)
    why: str

    def of(self, settings: Settings) -> Settings:
        """The settings of a run in it."""
        return replace(settings, examples=min(HARDER_EXAMPLES, settings.n_examples), **self.changes)


HARDER: tuple[TaskSetting, ...] = (
    TaskSetting("distractors", {"distractors": 2}, "Two rules about other concepts stand between those of the chain."),
    TaskSetting("shuffled", {"order": "shuffled"}, "The premises stand in no order, so that copying them in turn does not do."),
    TaskSetting(
        "competing", {"competing": 1}, "A second chain about another entity ends in the property that a false query asks for."
    ),
    TaskSetting("three_hops", {"hops": 3}, "The chain has three rules, and fourteen steps."),
    TaskSetting("four_hops", {"hops": 4}, "The chain has four rules, and eighteen steps."),
    TaskSetting(
        "wording_each", {"style": "each", "order": None}, "The same sentences in other words: each, because, reasoning."
    ),
    TaskSetting("wording_all", {"style": "all", "order": None}, "Rules are about plurals, conclusions about a singular."),
    TaskSetting(
        "wording_paper", {"style": "paper", "order": None}, "The authors' wording and order, without articles or quantifiers."
    ),
)


def named(names: Sequence[str]) -> tuple[bool, tuple[TaskSetting, ...]]:
    """Whether the easy setting is among these names, and the others: "all" is all of them, "none" the easy one alone.

    Raises ValueError naming the argument for a name that is not known.
    """
    known = {s.name: s for s in HARDER}
    asked = {n for name in names for n in ((EASY, *known) if name == "all" else (EASY,) if name == "none" else (name,))}
    if wrong := sorted(asked - {EASY, *known}):
        raise ValueError(f"tasks: got {wrong[0]!r}; expected some of {', '.join((EASY, *known))}, or all, or none")
    if not asked:
        raise ValueError(f"tasks: got none; expected some of {', '.join((EASY, *known))}, or all, or none")
    return EASY in asked, tuple(s for s in HARDER if s.name in asked)


def entries_of_harder() -> list[Description]:
    """The analyses of a harder setting: E1, E5, and of E8 what claims need."""
    return chosen(tuple(e.name for e in ENTRIES if e.source in ("E1", "E5") or (e.source == "E8" and e.claims)))
