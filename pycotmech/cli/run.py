"""`pycotmech run`: the main job."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Annotated, Any

import typer

from pycotmech._words import plural
from pycotmech.cli import options as o
from pycotmech.cli.output import first_page, report_of, say_json

if TYPE_CHECKING:
    from pycotmech.runs import Settings


def run(
    model: o.Model,
    out: o.Out,
    examples: o.Examples = None,
    minutes: o.Minutes = None,
    pairs: o.Pairs = None,
    steps: Annotated[str | None, o.task("The steps of the reasoning, such as 0,5,9 (all by default).")] = None,
    shots: o.Shots = None,
    hops: Annotated[int | None, o.task("The number of rules in the chain (2 by default).")] = None,
    style: o.Style = None,
    order: o.Order = None,
    ontology: o.Ontology = None,
    distractors: Annotated[int | None, o.task("The number of premises that lead nowhere (0 by default).")] = None,
    template: o.Template = None,
    think: o.Think = False,
    direction: o.Direction = "denoise",
    metric: o.Metric = "kl",
    positions: o.Positions = "all",
    controls: o.Controls = True,
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
    points: o.Points = None,
    dry_run: o.DryRun = False,
    estimate: o.Estimate = False,
    plan_for: o.PlanFor = None,
    top: o.Top = 5,
    as_json: o.Json = False,
    quiet: o.Quiet = False,
    debug: o.Debug = False,
) -> None:
    """Find the heads that each reasoning step depends on: make examples, patch every head, report.

    A step is patched only in examples in which the model gets it right. Everything finished is saved in OUT at once: after
    Ctrl-C, the same command continues from there.
    """
    from pycotmech.runs import Settings

    settings = Settings(
        model=model, pairs=o.path(pairs, "pairs"), examples=examples, steps=o.numbers(steps, "steps"), shots=shots, hops=hops,
        style=style, order=order, ontology=ontology, distractors=distractors, dtype=dtype, device=device, seed=seed,
        direction=direction, metric=metric, positions=o.positions(positions), memory_gb=memory_gb, threads=threads,
        points=o.points(points), controls=controls, template=template, think=think,
    )  # fmt: skip
    how: dict[str, Any] = {"verify": verify, "accept_version": accept_version}
    how |= {"engine": engine, "workers": workers, "ray_address": ray_address}
    o.check_plan_for(plan_for, dry_run or estimate)
    if minutes is not None:
        settings = within_minutes(settings, out, minutes, quiet, **how)
    if dry_run or estimate:
        expect(settings, out, as_json=estimate or as_json, plan_for=plan_for, **how)
    else:
        keep(settings, out, top, quiet, as_json, **how)


def within_minutes(settings: Settings, out: str, minutes: float, quiet: bool, *, verify: bool = False, **how: Any) -> Settings:
    """Returns the settings with as many examples as fit into a time. how: arguments of `estimate_run`."""
    from pycotmech.runs.estimate import examples_within

    n = examples_within(settings, out, minutes, **how)
    if not quiet:
        o.say(f"{plural(n, 'example')} fit into {minutes:g} min", err=True)
    return replace(settings, examples=n)


def expect(settings: Settings, out: str, *, as_json: bool, verify: bool = False, **how: Any) -> None:
    """Prints what a run into a results folder would do and need. how: arguments of `estimate_run`."""
    from pycotmech.runs.estimate import estimate_run

    expected = estimate_run(settings, out, **how)
    if as_json:
        say_json(expected.to_dict())
    else:
        o.say(expected)


def keep(
    settings: Settings, out: str, top: int, quiet: bool, as_json: bool = False, minutes: float | None = None, **how: Any
) -> None:
    """Runs into a results folder and shows its report. minutes: after so long no further sweep begins. how: arguments of
    `runs.run`. Raises typer.Exit(1) if a sweep could not be done."""
    from pycotmech.cli.bars import Bars, stopped
    from pycotmech.cli.report import page_at_end, shown_report
    from pycotmech.runs import experiment

    if top < 1:
        raise ValueError(f"top: got {top}; expected 1 or more")
    bars = Bars(quiet, minutes)
    try:
        outcome = experiment.run(settings, out, progress=bars, **how)
    except KeyboardInterrupt:
        stopped(bars, out)
        raise
    report = shown_report(outcome.folder, top, quiet or as_json)
    page_at_end(outcome.folder)
    if as_json:
        found = {"folder": outcome.folder, "done": outcome.done, "resumed": outcome.resumed, "failures": outcome.failures}
        found |= {"files": [path.name for path in report.files], "open": first_page(outcome.folder)}
        say_json({**found, "report": report_of(outcome.folder)})
    elif not quiet:
        o.say(f"\n{len(report.files)} files and results.zarr are in {out}; open {first_page(outcome.folder)}")
    for failure in outcome.failures:
        o.say(f"pycotmech: failed: {failure}", err=True)
    if outcome.failures:
        raise typer.Exit(1)
