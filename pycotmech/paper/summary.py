"""Writes the summary page: each claim with what this model shows, every analysis, and what it cost."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pycotmech.files.text import markdown, printable
from pycotmech.files.write import write_text
from pycotmech.paper.one_setting import SettingOutcome
from pycotmech.paper.plan import CostPlan, shown_time
from pycotmech.paper.settings import HARDER
from pycotmech.paper.settings_table import needed, settings_table

if TYPE_CHECKING:
    from pycotmech.cot import Graded
    from pycotmech.model import Model


def write_summary(
    folder: Path,
    *,
    model: Model,
    right: Graded,
    plan: CostPlan,
    outcome: SettingOutcome,
    harder: Mapping[str, SettingOutcome],
) -> Path:
    """Writes summary.md into the folder. harder: outcomes of the harder settings by name, if any were run."""
    lines = [
        f"# {markdown(model.name)} compared with “How to think step-by-step” (arXiv 2402.18312)",
        "",
        f"{markdown(repr(model))}. The paper's figures are for Llama-2 7B; another model need not agree.",
        *(f"Note: {markdown(note)}." for note in model.notes),
        "",
        "## The paper's claims, and what this model shows",
        "",
        "| claim | here | evidence | what could bear it out by accident | examples |",
        "|---|---|---|---|---|",
    ]
    for claim, verdict in outcome.verdicts:
        null = f"{claim.null}: {verdict.null}" if verdict.null else claim.null
        evidence, null = (printable(text).replace("|", "\\|") for text in (verdict.evidence, null))
        lines.append(f"| {claim.text} ({claim.source}) | **{verdict.word}** | {evidence} | {null} | {needed(verdict)} |")
    if harder:
        lines += ["", "## The claims in harder settings", "", *(f"* {h.name}: {h.why}" for h in HARDER if h.name in harder), ""]
        lines += settings_table([outcome, *harder.values()])
    lines += ["", "## Which steps it gets right", "", "```", str(right), "```", ""]
    for name, result in outcome.results.items():
        lines += [f"## {result.title} ({markdown(result.about['source'])})", "", f"{markdown(result.definition_words)}.", ""]
        lines += [f"* {printable(line)}" for line in result.findings()]
        lines += ["", f"![{result.title}](figures/{name}.png)", ""]
        for other in result.figures():
            lines += [f"![{result.title}, {other}](figures/{name}_{other}.png)", ""]
        lines += [f"All numbers: tables/{name}.csv, data/{name}.zarr", ""]
    if outcome.failures:
        lines += ["## Not done", "", *(f"* {name}: {printable(why)}" for name, why in outcome.failures.items()), ""]
    lines += ["## What it cost", "", *cost_table(plan, outcome.costs), ""]
    path = folder / "summary.md"
    write_text(path, "\n".join(lines))
    return path


def cost_table(plan: CostPlan, costs: Mapping[str, Any]) -> list[str]:
    """Returns our work, counted and predicted, and the authors' for the same examples and steps (docs/protocol.md, Cost)."""
    lines = [
        "| analysis | paper | token-forwards | predicted | TFLOP | time | authors' forwards | token-forwards | TFLOP |",
        "|---|---|--:|--:|--:|--:|--:|--:|--:|",
    ]
    for line in plan.lines:
        counted = costs.get(line.name, {})
        ours = [
            f"{counted['token_forwards']:,.0f}" if "token_forwards" in counted else "",
            f"{line.ours.token_forwards:,.0f}",
            f"{counted['flop'] / 1e12:,.2f}" if "flop" in counted else "",
            shown_time(counted["seconds"]) if "seconds" in counted else "",
        ]
        theirs = [f"{line.authors.forwards:,.0f}", f"{line.authors.token_forwards:,.0f}", f"{line.authors.flop / 1e12:,.1f}"]
        lines.append(f"| {line.name} | {line.source} | {' | '.join([*ours, *theirs])} |")
    lines += [
        "",
        "FLOP of matrix products with weights; attention's own products are not counted on either side. The authors read "
        "writers, sources and context-abidance off their graphs: all of their E8 is counted once, at information_flow.",
    ]
    return lines
