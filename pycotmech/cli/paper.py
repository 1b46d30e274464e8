"""`pycotmech paper`: all analyses of the paper on one model."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Annotated, Any

import typer

from pycotmech.cli import options as o
from pycotmech.cli.output import first_page, plain, say_json

if TYPE_CHECKING:
    from pycotmech.paper import PaperOutcome
    from pycotmech.paper.claims import Claim, Verdict


def paper(
    model: o.Model,
    out: o.Out,
    examples: o.Examples = None,
    only: Annotated[
        str | None,
        o.analysed("The analyses to run, together with those they depend on, such as patch_steps,E8 (all by default)."),
    ] = None,
    settings: Annotated[
        str,
        o.analysed(
            "The settings of the task, separated by commas: easy, distractors, shuffled, competing, three_hops, four_hops, "
            "wording_each, wording_all, wording_paper; or all; or none, which means only easy. A harder setting has 8 examples "
            "and the analyses of E1, E5 and E8 that claims need."
        ),
    ] = "easy",
    minutes: Annotated[
        float | None,
        o.task("A time limit instead of --examples: use the largest even number whose predicted time fits, with all settings."),
    ] = None,
    pilot: Annotated[
        str | None,
        o.how("An earlier results folder, from which the plan predicts how many examples each claim needs.", metavar="FOLDER"),
    ] = None,
    shots: o.Shots = None,
    style: o.Style = None,
    order: o.Order = None,
    ontology: o.Ontology = None,
    plan: Annotated[bool, o.how("Print the plan and its cost, and stop.", "--plan")] = False,
    dtype: o.Dtype = "auto",
    device: o.Device = "cpu",
    seed: o.Seed = 0,
    memory_gb: o.Memory = None,
    threads: o.Threads = None,
    verify: o.Verify = False,
    accept_version: o.AcceptVersion = False,
    engine: o.Engine = None,
    workers: o.Workers = None,
    ray_address: o.RayAddress = None,
    dry_run: o.DryRun = False,
    estimate: o.Estimate = False,
    plan_for: o.PlanFor = None,
    as_json: o.Json = False,
    quiet: o.Quiet = False,
    debug: o.Debug = False,
) -> None:
    """Run all analyses of the paper, and compare each of its claims with what this model shows.

    The plan and its cost are printed first and, if there are earlier results, the number of examples that each claim needs.
    Every finished analysis is saved in OUT: after Ctrl-C, the same command continues from there.
    """
    from pycotmech import paper as analyses
    from pycotmech.cli.bars import Bars, stopped
    from pycotmech.cli.report import page_at_end
    from pycotmech.runs import Settings

    tasks = tuple(part.strip() for part in settings.split(",") if part.strip())
    asked = Settings(
        model=model, examples=examples, shots=shots, style=style, order=order, ontology=ontology, dtype=dtype, device=device,
        seed=seed, memory_gb=memory_gb, threads=threads,
    )  # fmt: skip
    names = None if only is None else tuple(part.strip() for part in only.split(",") if part.strip())
    alone = dry_run or estimate
    o.check_plan_for(plan_for, plan or alone, "--plan, --dry-run or --estimate")
    silent, bars = quiet or as_json or estimate, Bars(quiet)
    try:
        outcome = analyses.run(
            asked, out, only=names, tasks=tasks, minutes=minutes, pilot=o.path(pilot, "pilot"), progress=bars,
            plan_only=plan or alone, plan_for=plan_for, say=None if silent else lambda text: o.say(f"{text}\n"),
            verify=verify, accept_version=accept_version, engine=engine, workers=workers, ray_address=ray_address,
        )  # fmt: skip
    except KeyboardInterrupt:
        stopped(bars, out)
        raise
    if not (plan or alone):
        page_at_end(outcome.folder)
    if alone and outcome.expected is not None:
        if estimate or as_json:
            say_json(outcome.expected.to_dict())
        else:
            o.say(outcome.expected)
    elif as_json:
        say_json(_found(outcome))
    if plan or alone:
        return
    if not silent:
        if outcome.resumed:
            o.say(f"already finished: {', '.join(outcome.resumed)}")
        for claim, verdict in outcome.verdicts:
            o.say(f"* {claim.text}\n  {verdict.word}: {verdict.evidence}")
        for name, found in outcome.harder.items():
            words = [f"{claim.name}: {v.word}" for claim, v in found.verdicts if all(n in found.results for n in claim.needs)]
            o.say(f"* setting {name}: {found.failure or '; '.join(words)}")
        o.say(f"\nfigures, tables and data are in {out}; open {first_page(outcome.folder)}")
    for name, why in outcome.failures.items():
        o.say(f"pycotmech: failed: {name}: {why}", err=True)
    if outcome.failures:
        raise typer.Exit(1)


def _found(outcome: PaperOutcome) -> dict[str, Any]:
    """The plan and the verdicts in JSON values."""

    def of(verdicts: Iterable[tuple[Claim, Verdict]]) -> list[dict[str, Any]]:
        return [
            {"claim": claim.name, "text": claim.text, "verdict": verdict.word, "evidence": verdict.evidence}
            for claim, verdict in verdicts
        ]

    plan = outcome.plan
    return {
        "folder": outcome.folder,
        "plan": {**plain(plan), "seconds": plan.seconds, "memory": plan.memory},
        "claims": of(outcome.verdicts),
        "settings": {
            name: {"failure": found.failure, "claims": of(found.verdicts)} for name, found in outcome.harder.items()
        },
        "analyses": sorted(outcome.results), "resumed": outcome.resumed, "failures": outcome.failures,
        "open": first_page(outcome.folder),
    }  # fmt: skip
