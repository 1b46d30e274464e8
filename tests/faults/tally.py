"""Counts of what was tried, and what came of it: the record that docs/reliability.md shows."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

OUTCOMES = ("same bits", "made again", "reported", "not read", "noise floor", "lost")
"""What can come of a fault: the results are those of an undisturbed run to the last bit; the damaged file is made again; it is
reported and not read; only people read it; the results agree within the noise floor; a result is lost or wrong."""


class Tally:
    """Counts by kind of fault."""

    def __init__(self) -> None:
        self.counts: dict[str, Counter[str]] = {}

    def add(self, kind: str, outcome: str) -> None:
        assert outcome in OUTCOMES
        self.counts.setdefault(kind, Counter())[outcome] += 1

    def write(self, path: Path) -> None:
        """Replaces the kinds that were tried now; the others stay as they are."""
        kept = json.loads(path.read_text("utf-8")) if path.is_file() else {}
        kept |= {kind: {o: found[o] for o in OUTCOMES if found[o]} for kind, found in self.counts.items()}
        path.write_text(json.dumps(dict(sorted(kept.items())), indent=1) + "\n", "utf-8")
