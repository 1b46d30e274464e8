"""What sets of heads are called in sentences, tables and figures: words for the names that data and code know them by."""

from __future__ import annotations

import re
from collections.abc import Sequence

SELECTED = {
    "patch_steps": "heads that restore most",
    "decision_heads": "heads that carry the answer",
    "copy_heads": "heads that copy",
}
"""The heads that score highest in an analysis, by its name."""

_COMBINED = {
    "common": "heads in all sets",
    "only_main": "heads in the main set only",
    "only_other": "heads in the other sets only",
    "other": "heads in any of the other sets",
    "common_only_main": "heads in all sets or in the main set only",
}
"""The sets of `set_combinations`."""

_OF_PAPER = {
    "common": "heads in all three sets",
    "only_main": "heads that restore most, in no other set",
    "only_other": "heads in the other two sets only",
    "other": "heads in either of the other two sets",
    "common_only_main": "heads that restore most, in both or neither of the other sets",
}
"""The same where the main set holds the heads that restore most, and the others those of the other two analyses."""

_SCORES = {
    "copy_heads copying": "attention to the answer's word times what the head writes of it",
    "decision_heads gain": "what the head adds to the answer's probability",
    "patch_steps effect": "what the head restores",
}
"""Scores by which heads are ranked, by the name of the analysis and the variable."""

_STEP = re.compile(r"(.+) (\d+)")


def set_words(names: Sequence[str]) -> list[str]:
    """Returns what the sets of these names are called, together: a name that is not known stays as it is.

    "copy_heads 5", the set of step 5, is "heads that copy, step 5". The names of `set_combinations` are known where the set
    has one that nothing else is called, such as only_main.
    """
    names = list(map(str, names))
    known = SELECTED | (_combined(names) if {"only_main", "only_other", "common_only_main"} & set(names) else {})
    found = []
    for name in names:
        of_step = _STEP.fullmatch(name)
        if name not in known and of_step and of_step[1] in known:
            found.append(f"{known[of_step[1]]}, step {of_step[2]}")
        else:
            found.append(known.get(name, name))
    return found


def _combined(names: Sequence[str]) -> dict[str, str]:
    plain = tuple(name for name in names if name not in _COMBINED)
    return _OF_PAPER if plain == tuple(SELECTED) else _COMBINED


def score_words(name: str) -> str:
    """Returns what scores of this name are, such as those of `scores_of`; a name that is not known stays as it is."""
    return _SCORES.get(name, name)
