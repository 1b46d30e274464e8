"""Settings of the task besides the easy one: harder problems, and problems in other words."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from pycotmech._choices import unknown_choice
from pycotmech.cot.tools.registry import Description
from pycotmech.paper.entries import ENTRIES, chosen
from pycotmech.runs.settings import Settings

EASY = "easy"
"""Name of the setting of the run itself."""
HARDER_EXAMPLES = 8
"""Number of examples in each harder setting, or that of the run itself if it has fewer."""


@dataclass(frozen=True)
class TaskSetting:
    """A setting of the task. changes: arguments of `cot.make_examples` that differ. why: a sentence on what is harder."""

    name: str
    changes: Mapping[str, Any] = field(hash=False)
    why: str

    def of(self, settings: Settings) -> Settings:
        """Returns the settings of a run in this setting of the task."""
        return replace(settings, examples=min(HARDER_EXAMPLES, settings.n_examples), **self.changes)


HARDER: tuple[TaskSetting, ...] = (
    TaskSetting("distractors", {"distractors": 2}, "Two rules about other concepts are between those of the chain."),
    TaskSetting(
        "shuffled", {"order": "shuffled"}, "The premises are in random order, so copying them one after another fails."
    ),
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
    """Returns whether the easy setting is among these names, and the harder settings among them.

    "all" stands for every setting, "none" for the easy one alone. Raises ValueError naming the argument for an unknown name.
    """
    known = {s.name: s for s in HARDER}
    asked = {n for name in names for n in ((EASY, *known) if name == "all" else (EASY,) if name == "none" else (name,))}
    if wrong := sorted(asked - {EASY, *known}):
        raise ValueError(unknown_choice("tasks", wrong[0], (EASY, *known, "all", "none"), several=True))
    if not asked:
        raise ValueError(f"tasks: got none; expected some of {', '.join((EASY, *known))}, or all, or none")
    return EASY in asked, tuple(s for s in HARDER if s.name in asked)


def entries_of_harder() -> list[Description]:
    """Returns the analyses of a harder setting: E1, E5, and those of E8 that claims need."""
    return chosen(tuple(e.name for e in ENTRIES if e.source in ("E1", "E5") or (e.source == "E8" and e.claims)))
