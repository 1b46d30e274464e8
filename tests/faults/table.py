"""Writes the table in docs/reliability.md from the record that the suite made: `python -m tests.faults.table`."""

from __future__ import annotations

import json
from pathlib import Path

from tests.faults.tally import OUTCOMES
from tests.reference import generated

DOCS = Path(__file__).resolve().parents[2] / "docs"
PAGE, RECORD = DOCS / "reliability.md", DOCS / "reliability.json"


def table(record: dict[str, dict[str, int]]) -> str:
    came = [o for o in OUTCOMES if o != "lost"]
    head = f"| what was done | tried | survived | {' | '.join(came)} | lost |\n|{'---|' * (len(came) + 4)}\n"
    rows = []
    for kind, found in [*record.items(), ("in all", total(record))]:
        tried, lost = sum(found.values()), found.get("lost", 0)
        cells = [kind, tried, tried - lost, *(found.get(o, "") for o in came), lost]
        rows.append(f"| {' | '.join(map(str, cells))} |\n")
    return head + "".join(rows)


def total(record: dict[str, dict[str, int]]) -> dict[str, int]:
    return {o: n for o in OUTCOMES if (n := sum(found.get(o, 0) for found in record.values()))}


def read() -> dict[str, dict[str, int]]:
    return json.loads(RECORD.read_text("utf-8"))


def shown() -> str:
    return generated.shown(PAGE)


if __name__ == "__main__":
    generated.write(PAGE, table(read()))
