"""Writes the table in docs/families.md from the record that the suite made: `python -m tests.reference.family_table`."""

from __future__ import annotations

import json
from pathlib import Path

from tests.reference import generated
from tests.reference.small_families import FAMILIES
from tests.reference.watch import BY_PYTORCH, FUNCTIONS

DOCS = Path(__file__).resolve().parents[2] / "docs"
PAGE, RECORD = DOCS / "families.md", DOCS / "families.json"


def cell(found: dict[str, dict]) -> str:
    """The largest relative error in float64 and in float32."""
    shown = [found.get(dtype, {}) for dtype in ("float64", "float32")]
    if not any(shown):
        return ""
    if any("refused" in x for x in shown):
        return "refused"
    return " / ".join(power(x["error"]) if x else "-" for x in shown)


def power(error: float) -> str:
    """1.1e-7 -> 1e-7."""
    return f"{error:.0e}".replace("e-0", "e-") if error else "0"


def kernels(name: str, record: dict[str, dict]) -> str:
    """Kernels that every family's test reached."""
    found = [r[name]["float32"]["kernels"] for r in record.values() if "kernels" in r.get(name, {}).get("float32", {})]
    common = set(found[0]).intersection(*found[1:]) if found else set()
    more = {k for kernels in found for k in kernels} - common
    shown = [f"`{k}`" for k in sorted(common)] + [f"`{k}` (some)" for k in sorted(more)]
    return ", ".join([*shown, *(["PyTorch's own attention, with its backward pass"] if name in BY_PYTORCH else [])])


def table(record: dict[str, dict]) -> str:
    names = [name for name, _ in FUNCTIONS.values()]
    head = f"| function | kernels | {' | '.join(f'`{f}`' for f in record)} |\n|{'---|' * (len(record) + 2)}\n"
    rows = (
        f"| `{name}` | {kernels(name, record)} | {' | '.join(cell(r.get(name, {})) for r in record.values())} |\n"
        for name in names
    )
    return head + "".join(rows)


def read() -> dict[str, dict]:
    """The record by family, empty for one that was not recorded; that of the family made for the tests is not shown."""
    known = json.loads(RECORD.read_text(encoding="utf-8")) if RECORD.is_file() else {}
    return {family: known.get(family, {}) for family in sorted(FAMILIES) if family != "windowed"}


def shown() -> str:
    return generated.shown(PAGE)


if __name__ == "__main__":
    generated.write(PAGE, table(read()))
