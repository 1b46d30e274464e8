"""Writes the tables of docs/findings.md from E1 in a results folder of `pycotmech paper`.

`python -m benchmarks.findings FOLDER`. The section "Strongest ten heads of each step" is replaced; the sentences around it are
written by hand.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Sequence
from pathlib import Path

from pycotmech.cot.analyses.patch_steps import PatchSteps
from pycotmech.files.write import write_text

PAGE = Path(__file__).parents[1] / "docs" / "findings.md"
TITLE = "## Strongest ten heads of each step"
INTRO = """\
The tables give the restoration on the examples that were not used for ranking. The control of a step is the value that 95 % of
the heads do not exceed with the next example's activations instead of the clean ones ([patching.md](patching.md#controls)). The
control of a head is its own, if it was measured. Heads within floor or control do not count as effects."""


def section(found: PatchSteps, k: int = 10) -> str:
    """Returns the section: for each step its k strongest heads, with noise floor and control."""
    parts = [TITLE, "", INTRO, ""]
    table, n = found.table(k), found.data.sizes["example"]
    for step, rows in table.groupby("step", sort=True):
        first = rows.iloc[0]
        right = int(found.data["effect"].sel(step=step).notnull().any(("layer", "head")).sum())
        control = "no control" if math.isnan(first["control"]) else f"control {first['control']:.3f}"
        reported = f"reported on {first['n']}" if first["held_out"] else f"ranked and reported on {first['n']}"
        floor = f"noise floor {first['floor']:.3f}"
        parts += [
            f"**Step {step}, {first['kind']}**: right in {right} of {n}, {floor}, {control}, {reported}.",
            "",
            "| head | restoration | control of the head | beyond floor and control |",
            "|---|---|---|---|",
        ]
        for row in rows.to_dict("records"):
            own = "" if math.isnan(row["head_control"]) else f"{row['head_control']:+.3f}"
            within = "within the floor" if abs(row["mean"]) <= row["floor"] else "within the control"
            value = f"{row['mean']:+.3f} [{row['low']:+.3f}, {row['high']:+.3f}]"
            parts.append(f"| L{row['layer']}H{row['head']} | {value} | {own} | {'yes' if row['beyond'] else within} |")
        parts.append("")
    return "\n".join(parts)


def replaced(page: str, text: str) -> str:
    """Returns the page with this section in place of its own. Raises ValueError if it has none."""
    if TITLE not in page:
        raise ValueError(f"page: there is no section {TITLE!r}")
    before, after = page.split(TITLE, 1)
    rest = after.find("\n## ")
    return before + text + ("" if rest < 0 else after[rest:])


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.findings", description="Writes the tables of docs/findings.md.")
    parser.add_argument("folder", type=Path, help="The results folder of `pycotmech paper`.")
    parser.add_argument("--page", type=Path, default=PAGE, help="The page whose section is replaced.")
    given = parser.parse_args(arguments)
    found = PatchSteps.load(given.folder / "data")
    write_text(given.page, replaced(given.page.read_text(encoding="utf-8"), section(found)))


if __name__ == "__main__":
    main()
