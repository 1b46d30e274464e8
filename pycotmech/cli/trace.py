"""`pycotmech trace`: which sentences and heads matter in chains of thought."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from pycotmech.cli import options as o
from pycotmech.cli.output import first_page, plain, say_json


def trace(
    model: o.Model,
    traces: Annotated[
        str,
        o.plain(
            'A JSONL file of {"prompt", "completion", "answer"}, or {"messages"}, or token ids with boundaries.', metavar="FILE"
        ),
    ],
    out: o.Out,
    splitter: Annotated[
        str, o.analysed("How the text is split into sentences: sentencex, or published (the rule of Thought Anchors).")
    ] = "sentencex",
    cue: Annotated[
        str | None,
        o.analysed("The text that asks for the answer, such as ' So the answer is'. It replaces the one of each trace."),
    ] = None,
    definition: Annotated[
        str,
        o.analysed(
            "Which tokens cannot attend to a suppressed sentence: rows_after (later ones), or published (its own tokens too)."
        ),
    ] = "rows_after",
    top: Annotated[int, o.analysed("The number of receiver heads.")] = 20,
    proximity: Annotated[
        int, o.analysed("The distance in sentences below which attention does not count in vertical scores.")
    ] = 4,
    controls: Annotated[
        int,
        o.analysed(
            "The number of controls per sentence: spans of the same length, at the same distance before what is measured."
        ),
    ] = 1,
    skip_unusable: Annotated[
        bool,
        o.analysed("Leave out lines of which no trace can be made, and say which; otherwise they are an error."),
    ] = False,
    plan: Annotated[bool, o.how("Print the plan and its cost, and stop.", "--plan")] = False,
    dtype: o.Dtype = "auto",
    device: o.Device = "cpu",
    seed: o.Seed = 0,
    memory_gb: o.Memory = None,
    threads: o.Threads = None,
    as_json: o.Json = False,
    quiet: o.Quiet = False,
    debug: o.Debug = False,
) -> None:
    """Analyse chains of thought: receiver heads, what each sentence causes, early answers, and whether the chain is used.

    The plan and its cost are printed first. Every finished analysis is saved in OUT: after Ctrl-C, the same command continues
    from there.
    """
    from pycotmech.cli.bars import Bars, stopped
    from pycotmech.cli.report import page_at_end
    from pycotmech.runs.trace_run import TraceSettings, run_traces

    file = o.path(traces, "traces")
    assert file is not None
    asked = TraceSettings(
        model=model, traces=file, splitter=splitter, cue=cue, definition=definition, top=top, proximity=proximity,
        controls=controls, skip_unusable=skip_unusable, dtype=dtype, device=device, seed=seed, memory_gb=memory_gb,
        threads=threads,
    )  # fmt: skip
    bars, silent = Bars(quiet), quiet or as_json
    say = None if silent else lambda text: o.say(f"{text}\n")
    try:
        outcome = run_traces(asked, out, plan_only=plan, progress=bars, say=say)
    except KeyboardInterrupt:
        stopped(bars, out)
        raise
    if not plan:
        page_at_end(outcome.folder)
    if as_json:
        results = {name: found.findings() for name, found in outcome.results.items()}
        found: dict[str, Any] = {"folder": outcome.folder, "plan": {**plain(outcome.plan), "seconds": outcome.plan.seconds}}
        found |= {"findings": results, "resumed": outcome.resumed, "failures": outcome.failures}
        say_json(found | {"open": first_page(outcome.folder)})
    if plan:
        return
    if not silent:
        if outcome.resumed:
            o.say(f"already finished: {', '.join(outcome.resumed)}")
        o.say(f"figures, tables and data are in {out}; open {first_page(outcome.folder)}")
    for name, why in outcome.failures.items():
        o.say(f"pycotmech: failed: {name}: {why}", err=True)
    if outcome.failures:
        raise typer.Exit(1)
