"""Compares settings of the task: each claim in each setting and pooled, and how many examples decide a claim."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np

from pycotmech.files.text import printable
from pycotmech.paper.claims import Claim, Verdict
from pycotmech.paper.one_setting import SettingOutcome, Task
from pycotmech.paper.plan import CostPlan, shown_time
from pycotmech.stats import bootstrap
from pycotmech.stats.pooled import pooled_interval
from pycotmech.stats.power import examples_needed

_DECIDED = ("borne out", "not borne out")


def settings_table(outcomes: Sequence[SettingOutcome]) -> list[str]:
    """Returns the lines of a table of claims by settings, with the pooled result in the last column.

    A cell has the verdict, the quantity that decides it and the number of examples; it has a dash if the setting's analyses do
    not decide the claim. Pooled: in how many of the settings that decide the claim it is borne out, and, if the claim keeps the
    values of its examples, their mean over settings with its hierarchical bootstrap interval over settings and examples.
    """
    names = [o.name for o in outcomes]
    lines = [f"| | {' | '.join(names)} | pooled |", f"|---|{'---|' * (len(names) + 1)}"]
    tasks = [o.task for o in outcomes]
    lines.append(f"| examples | {' | '.join('' if t is None else str(t.examples) for t in tasks)} | |")
    lines.append(f"| steps that are right | {' | '.join('' if t is None else f'{t.right} of {t.steps}' for t in tasks)} | |")
    copied = ["" if t is None else f"{t.copied:.0%} ({t.chance:.0%})" for t in tasks]
    lines.append(f"| choices of a premise that copying in order gets right (chance) | {' | '.join(copied)} | |")
    claims = {claim.name: claim for o in outcomes for claim, _ in o.verdicts}
    for claim in claims.values():
        found = [_known(o, claim) for o in outcomes]
        if sum(v is not None for v in found) == 0:
            continue
        cells = ["–" if v is None else v.cell("**") for v in found]
        lines.append(f"| {claim.text} | {' | '.join(cells)} | {pooled([v for v in found if v is not None])} |")
    lines.append("")
    lines += [f"* {o.name}: not done: {printable(o.failure)}" for o in outcomes if o.failure]
    lines += [f"* {o.name}: {name} not done: {printable(why)}" for o in outcomes for name, why in o.failures.items()]
    return lines


def _known(outcome: SettingOutcome, claim: Claim) -> Verdict | None:
    """The verdict on a claim in a setting; None if the setting's analyses do not decide it."""
    if not all(name in outcome.results for name in claim.needs):
        return None
    return next((verdict for its, verdict in outcome.verdicts if its.name == claim.name), None)


def pooled(verdicts: Sequence[Verdict]) -> str:
    """Returns what several settings say together, in words."""
    decided = [v for v in verdicts if v.word in _DECIDED]
    held = sum(v.word == "borne out" for v in decided)
    out = f"borne out in {held} of the {len(decided)} settings that decide it" if decided else ""
    known = [v for v in verdicts if v.values is not None]
    if len(known) > 1:
        first = known[0]
        groups = [v.values for v in known if v.values is not None]
        x = pooled_interval(groups, within=bootstrap.SHARE if first.share else None)
        out += f"{'; ' if out else ''}{x.words(first.form)} over {int(x.n)} settings (threshold {first.threshold:g})"
    return out or "decided in none"


def needed(verdict: Verdict) -> str:
    """Returns in words how many examples decide a claim: "decided at n", or about how many it needs; empty without values."""
    n = 0 if verdict.values is None else int(np.isfinite(verdict.values).sum())
    if verdict.word in _DECIDED:
        return f"decided at {n}" if n else ""
    if verdict.values is None:
        return ""
    found = examples_needed(verdict.values, verdict.threshold, share=verdict.share)
    if math.isnan(found):
        return "needs 2 or more examples to plan with"
    if math.isinf(found):
        return "no feasible number decides it"
    return f"needs about {int(found)}" if found > n else "enough for this part; another part is open"


def needs_of(verdicts: Sequence[tuple[Claim, Verdict]], examples: int) -> str:
    """Returns lines of text: how many examples each claim needs, predicted from a pilot's verdicts."""
    lines = [f"examples that the claims need, predicted from earlier results ({examples} are planned):"]
    for claim, verdict in verdicts:
        lines.append(f"  {claim.name:<14} {verdict.word:<14} {needed(verdict) or 'no values to plan with'}")
    return "\n".join(lines)


def plan_of_settings(
    easy: Task, plan: CostPlan, tasks: Mapping[str, Task], plans: Mapping[str, CostPlan], failed: Mapping[str, str]
) -> str:
    """Returns lines of text: the size and predicted cost of each setting, and of all together."""
    lines = [f"{'setting':<14} {'examples':>8} {'steps right':>12} {'copied in order':>16} {'token-forwards':>14} {'time':>9}"]
    rows = [("easy", easy, plan), *((name, task, plans[name]) for name, task in tasks.items())]
    for name, task, its in rows:
        work = sum(line.ours.token_forwards for line in its.lines)
        share = f"{task.copied:.0%} ({task.chance:.0%})"
        right = f"{task.right} of {task.steps}"
        lines.append(f"{name:<14} {task.examples:>8} {right:>12} {share:>16} {work:>14,.0f} {shown_time(its.seconds):>9}")
    lines += [f"{name:<14} cannot be made: {why}" for name, why in failed.items()]
    total = sum(its.seconds for *_, its in rows)
    lines.append(
        f"all settings: about {shown_time(total)}. Copied in order: choices of a premise that this gets right (chance)"
    )
    return "\n".join(lines)
