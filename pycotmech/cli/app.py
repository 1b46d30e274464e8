"""The shell: `pycotmech run`, `paper`, `sweep`, `attention`, `report`, `info`. PyTorch comes with what needs it."""

from __future__ import annotations

import os
import signal
import sys
import time
from pathlib import Path
from typing import Annotated, Any

import typer

from pycotmech import __version__

app = typer.Typer(
    name="pycotmech",
    help="How a language model reasons step by step, taken apart exactly and fast.",
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)

_TASK = "The task (instead of --pairs)"
_PATCH = "What is patched and measured"
_RUN = "How it runs"

ModelOption = Annotated[
    str, typer.Option(help="smollm2-135m, smollm2-135m-cot, tiny-cot; a folder, a GGUF file, or a Hugging Face name.")
]
DtypeOption = Annotated[str, typer.Option(help="auto, float32, bfloat16, float16 or float64.", rich_help_panel=_RUN)]
DeviceOption = Annotated[str, typer.Option(help="cpu, cuda, cuda:1, ...", rich_help_panel=_RUN)]
DirectionOption = Annotated[
    str,
    typer.Option(help="denoise: clean heads into the corrupted run; noise: the reverse.", rich_help_panel=_PATCH),
]
MetricOption = Annotated[str, typer.Option(help="kl, logit_diff or prob, read at the last position.", rich_help_panel=_PATCH)]
PositionsOption = Annotated[
    str,
    typer.Option(
        help="Where heads are patched: all, last, or numbers as 12,13,-1 (negative from the end).", rich_help_panel=_PATCH
    ),
]
SeedOption = Annotated[int, typer.Option(help="Of the examples and of the noise floor.", rich_help_panel=_RUN)]
MemoryOption = Annotated[
    float | None, typer.Option("--memory-gb", help="What a sweep may use. Default: half of what is free.", rich_help_panel=_RUN)
]
ThreadsOption = Annotated[int | None, typer.Option(help="Of PyTorch. Default: one per core.", rich_help_panel=_RUN)]
QuietOption = Annotated[bool, typer.Option("--quiet", "-q", help="Say nothing but errors.")]
DebugOption = Annotated[bool, typer.Option("--debug", help="Show the whole traceback of an error.")]
TopOption = Annotated[int, typer.Option(help="Heads shown per step.")]


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"pycotmech {__version__}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version.")] = False,
) -> None: ...


@app.command()
def run(
    model: ModelOption,
    out: Annotated[Path, typer.Option(help="Results folder. An interrupted run in it is gone on with.")],
    examples: Annotated[int | None, typer.Option(help="How many problems. Default: 10.", rich_help_panel=_TASK)] = None,
    pairs: Annotated[
        Path | None,
        typer.Option(
            help='Own prompts: a JSONL file of {"clean", "corrupted", "answer", "wrong", "name"}, text or token ids.',
        ),
    ] = None,
    steps: Annotated[
        str | None, typer.Option(help="Steps of the reasoning, as 0,5,9. Default: all.", rich_help_panel=_TASK)
    ] = None,
    shots: Annotated[
        int | None, typer.Option(help="Demonstrations in front. Default: 8 (tiny-cot: 4).", rich_help_panel=_TASK)
    ] = None,
    hops: Annotated[int | None, typer.Option(help="Rules in the chain. Default: 2.", rich_help_panel=_TASK)] = None,
    style: Annotated[str | None, typer.Option(help="Wording: every (default) or paper.", rich_help_panel=_TASK)] = None,
    order: Annotated[
        str | None,
        typer.Option(help="Of the premises: forward, backward, membership_first or shuffled.", rich_help_panel=_TASK),
    ] = None,
    ontology: Annotated[str | None, typer.Option(help="fictional (default) or false.", rich_help_panel=_TASK)] = None,
    distractors: Annotated[
        int | None, typer.Option(help="Premises that lead nowhere. Default: 0.", rich_help_panel=_TASK)
    ] = None,
    direction: DirectionOption = "denoise",
    metric: MetricOption = "kl",
    positions: PositionsOption = "all",
    dtype: DtypeOption = "auto",
    device: DeviceOption = "cpu",
    seed: SeedOption = 0,
    memory_gb: MemoryOption = None,
    threads: ThreadsOption = None,
    top: TopOption = 5,
    quiet: QuietOption = False,
    debug: DebugOption = False,
) -> None:
    """Find the heads that each reasoning step depends on: make examples, patch every head, report.

    Only examples in which the model gets a step right are patched at that step. Everything finished is kept in OUT at
    once: stop it with Ctrl-C, and the same command goes on from there.
    """
    from pycotmech.runs import experiment

    settings = experiment.Settings(
        model=model, pairs=pairs, examples=examples, steps=_numbers(steps, "steps"), shots=shots, hops=hops, style=style,
        order=order, ontology=ontology, distractors=distractors, dtype=dtype, device=device, seed=seed,
        direction=direction, metric=metric, positions=_positions(positions), memory_gb=memory_gb, threads=threads,
    )  # fmt: skip
    if top < 1:
        raise ValueError(f"top: got {top}; expected 1 or more")
    shown = _Bars(quiet)
    try:
        outcome = experiment.run(settings, out, progress=shown)
    except KeyboardInterrupt:
        shown.end()
        if not quiet:
            typer.echo(f"\nstopped; what is finished is kept in {out}. The same command goes on from there.", err=True)
        raise
    report = _report(out, top, quiet)
    if not quiet:
        typer.echo(f"\n{len(report.files)} files and results.zarr are in {out}; begin with {out / 'summary.md'}")
    for failure in outcome.failures:
        typer.echo(f"pycotmech: not done: {failure}", err=True)
    if outcome.failures:
        raise typer.Exit(1)


@app.command()
def sweep(
    model: ModelOption,
    clean: Annotated[str | None, typer.Option(help="The clean prompt.")] = None,
    corrupted: Annotated[str | None, typer.Option(help="The corrupted prompt, aligned with it token for token.")] = None,
    answer: Annotated[str | None, typer.Option(help="The word that follows the clean prompt.")] = None,
    wrong: Annotated[str | None, typer.Option(help="The word that follows the corrupted prompt.")] = None,
    pairs: Annotated[Path | None, typer.Option(help="Several pairs in a JSONL file, put together as one result.")] = None,
    direction: DirectionOption = "denoise",
    metric: MetricOption = "kl",
    positions: PositionsOption = "all",
    screen: Annotated[
        int | None,
        typer.Option(
            help="Sweep only the K heads with the largest first-order estimates.", metavar="K", rich_help_panel=_PATCH
        ),
    ] = None,
    csv: Annotated[Path | None, typer.Option(help="Write all heads to this CSV file.")] = None,
    png: Annotated[Path | None, typer.Option(help="Draw the heat map into this PNG file.")] = None,
    dtype: DtypeOption = "auto",
    device: DeviceOption = "cpu",
    seed: SeedOption = 0,
    memory_gb: MemoryOption = None,
    threads: ThreadsOption = None,
    top: TopOption = 10,
    quiet: QuietOption = False,
    debug: DebugOption = False,
) -> None:
    """Patch every head of one prompt pair (or of a few), and print the strongest."""
    from pycotmech.runs import experiment, read_pairs
    from pycotmech.runs.pairs import words_read

    settings = experiment.Settings(
        model=model, dtype=dtype, device=device, seed=seed, direction=direction, metric=metric,
        positions=_positions(positions), memory_gb=memory_gb, threads=threads,
    )  # fmt: skip
    settings.check()
    if (pairs is None) == (clean is None and corrupted is None):
        raise ValueError("clean, corrupted, pairs: expected either --clean and --corrupted, or --pairs")
    if pairs is None and (clean is None or corrupted is None):
        raise ValueError(f"{'clean' if clean is None else 'corrupted'}: missing; a pair needs --clean and --corrupted")
    for path in (csv, png):
        if path is not None:
            experiment.writable(path.expanduser().resolve().parent)
    several = None if pairs is None else read_pairs(pairs, metric=metric)

    import pycotmech as pcm

    loaded = pcm.Model.from_pretrained(model, dtype=dtype, device=device)
    shown = _Bars(quiet)
    if several is not None:
        experiment.check_cells(loaded, experiment.pairs_work(loaded, several), settings)
    names = ("clean", "corrupted", "answer", "wrong")
    given: dict[str, Any] = dict(zip(names, (clean, corrupted, answer, wrong), strict=True))
    if several is not None:
        names = ("clean", "corrupted", *words_read(metric))
        given = {name: [getattr(pair, name) for pair in several] for name in names}
    with experiment.threads(threads):
        shown.begin("patching", 1)
        result = pcm.patch_heads(
            loaded, given.pop("clean"), given.pop("corrupted"), **given, direction=direction, metric=metric,  # type: ignore[arg-type]
            positions=settings.positions, screen=screen, memory_gb=memory_gb, seed=seed,
            progress=lambda done, total: shown.at(done / max(1, total), ""),
        )  # fmt: skip
        shown.end()
    frame = result.to_dataframe()
    if csv is not None:
        frame.to_csv(csv, index=False)
    if png is not None:
        result.plot(path=str(png))
    if not quiet:
        for note in loaded.notes:
            typer.echo(f"Note: {note}.")
        typer.echo(_sweep_text(result, top))
        for path in (csv, png):
            if path is not None:
                typer.echo(f"written: {path}")


@app.command()
def paper(
    model: ModelOption,
    out: Annotated[Path, typer.Option(help="Results folder. An interrupted run in it is gone on with.")],
    examples: Annotated[int | None, typer.Option(help="How many problems. Default: 8.", rich_help_panel=_TASK)] = None,
    only: Annotated[str | None, typer.Option(help="Some analyses and what they need, as patch_steps,E8. Default: all.")] = None,
    shots: Annotated[
        int | None, typer.Option(help="Demonstrations in front. Default: 8 (tiny-cot: 4).", rich_help_panel=_TASK)
    ] = None,
    style: Annotated[str | None, typer.Option(help="Wording: every (default) or paper.", rich_help_panel=_TASK)] = None,
    order: Annotated[
        str | None,
        typer.Option(help="Of the premises: forward, backward, membership_first or shuffled.", rich_help_panel=_TASK),
    ] = None,
    ontology: Annotated[str | None, typer.Option(help="fictional (default) or false.", rich_help_panel=_TASK)] = None,
    plan: Annotated[bool, typer.Option("--plan", help="Only say what it will cost.")] = False,
    dtype: DtypeOption = "auto",
    device: DeviceOption = "cpu",
    seed: SeedOption = 0,
    memory_gb: MemoryOption = None,
    threads: ThreadsOption = None,
    quiet: QuietOption = False,
    debug: DebugOption = False,
) -> None:
    """Run all analyses of the paper, and hold each of its claims against what this model shows.

    Says first what it will cost. Every analysis that is finished is kept in OUT: stop it with Ctrl-C, and the same command
    goes on from there.
    """
    from pycotmech import paper as analyses
    from pycotmech.runs import experiment

    settings = experiment.Settings(
        model=model, examples=examples, shots=shots, style=style, order=order, ontology=ontology, dtype=dtype, device=device,
        seed=seed, memory_gb=memory_gb, threads=threads,
    )  # fmt: skip
    names = None if only is None else tuple(part.strip() for part in only.split(",") if part.strip())
    shown = _Bars(quiet)
    try:
        outcome = analyses.run(
            settings, out, only=names, progress=shown, plan_only=plan,
            say=None if quiet else lambda text: typer.echo(f"{text}\n"),
        )  # fmt: skip
    except KeyboardInterrupt:
        shown.end()
        if not quiet:
            typer.echo(f"\nstopped; what is finished is kept in {out}. The same command goes on from there.", err=True)
        raise
    if plan:
        return
    if not quiet:
        if outcome.resumed:
            typer.echo(f"finished before: {', '.join(outcome.resumed)}")
        for claim in analyses.CLAIMS:
            verdict = claim.verdict(outcome.results)
            typer.echo(f"* {claim.text}\n  {verdict.word}: {verdict.evidence}")
        typer.echo(f"\nfigures, tables and data are in {out}; begin with {out / 'summary.md'}")
    for name, why in outcome.failures.items():
        typer.echo(f"pycotmech: not done: {name}: {why}", err=True)
    if outcome.failures:
        raise typer.Exit(1)


@app.command()
def report(
    folder: Annotated[Path, typer.Argument(help="A results folder of `pycotmech run`, finished or not.")],
    top: TopOption = 5,
    quiet: QuietOption = False,
    debug: DebugOption = False,
) -> None:
    """Build tables, figures and the summary of a results folder again, from what is finished in it."""
    made = _report(folder, top, quiet)
    if not quiet:
        typer.echo(f"\nwritten: {', '.join(p.name for p in made.files)}")


@app.command()
def info(debug: DebugOption = False) -> None:
    """Show versions, what is compiled, and what runs each op on this machine."""
    from pycotmech.cli.info import info as collect

    for title, rows in collect():
        typer.echo(title)
        width = max(len(name) for name, _ in rows)
        for name, value in rows:
            typer.echo(f"  {name:<{width}}  {value}")


def main() -> None:
    """The console script: one line and exit code 2 for bad input, 130 when stopped by Ctrl-C."""
    signal.signal(signal.SIGTERM, _stop)
    debug = "--debug" in sys.argv
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    _register_others()
    try:
        sys.exit(app(prog_name="pycotmech", standalone_mode=False) or 0)
    except (KeyboardInterrupt, typer.Abort):
        sys.exit(130)
    except Exception as error:
        if hasattr(error, "format_message"):  # the command line itself is wrong
            _fail_usage(error)
        if debug:
            raise
        expected = isinstance(error, (ValueError, TypeError, OSError, NotImplementedError, ImportError))
        _fail(str(error) or type(error).__name__, 2 if expected else 1, "" if expected else f" ({type(error).__name__})")


def _fail_usage(error: Any) -> None:
    if type(error).__name__ == "NoArgsIsHelpError":
        error.show()
        sys.exit(error.exit_code)
    context = getattr(error, "ctx", None)
    command = context.command_path if context is not None else "pycotmech"
    _fail(error.format_message(), error.exit_code, f" ({command} --help shows what there is)")


def _fail(text: str, code: int, hint: str = "") -> None:
    print(f"pycotmech: error: {' '.join(text.split())}{hint}", file=sys.stderr)
    sys.exit(code)


def _stop(number: int, frame: Any) -> None:
    raise KeyboardInterrupt


def _register_others() -> None:
    """Commands that live beside what they show. Their modules load PyTorch, so `--help` only gets their names."""
    if not (Path(__file__).parent / "attention.py").is_file():
        return
    if sys.argv[1:2] == ["attention"]:
        from pycotmech.cli.attention import register

        register(app)
    else:
        app.command("attention", help="Show where heads look: attention by segment, row and top key.")(lambda: None)


def _numbers(text: str | None, name: str) -> tuple[int, ...] | None:
    if text is None:
        return None
    try:
        return tuple(int(part) for part in text.split(",") if part.strip())
    except ValueError:
        raise ValueError(f"{name}: got {text!r}; expected numbers with commas between them, as 0,5,9") from None


def _positions(text: str) -> tuple[int, ...] | None:
    if text == "all":
        return None
    if text == "last":
        return (-1,)
    try:
        return _numbers(text, "positions")
    except ValueError:
        raise ValueError(f"positions: got {text!r}; expected all, last, or numbers as 12,13,-1") from None


def _report(folder: Path, top: int, quiet: bool) -> Any:
    from pycotmech.runs.report import build_report

    made = build_report(folder, top=top)
    if not quiet:
        typer.echo(f"\n{made.headline}.")
        for note in made.notes:
            typer.echo(f"Note: {note}.")
        typer.echo(f"\n{made.table}\n\n{made.legend}\n")
        for sentence in made.sentences:
            typer.echo(f"* {sentence}")
    return made


def _sweep_text(result: Any, top: int) -> str:
    lines = str(result).splitlines()
    lines = [line for line in lines if not line.startswith("  ")]
    for (layer, head), effect in result.top(top):
        note = "" if abs(effect) > result.noise_floor else "  (rounding)"
        lines.append(f"  {f'L{layer}H{head}':<8} {effect:+.4f}{note}")
    return "\n".join(lines)


class _Bars:
    """Progress on a terminal; a line now and then elsewhere; nothing if quiet."""

    _EVERY = 30.0  # seconds between lines where there is no terminal

    def __init__(self, quiet: bool) -> None:
        self.quiet, self.bar, self.said = quiet, None, time.monotonic()

    def note(self, text: str) -> None:
        if not self.quiet:
            typer.echo(text, err=True)

    def begin(self, what: str, total: int) -> None:
        self.what, self.total = what, total
        if not self.quiet and total and sys.stderr.isatty():
            from tqdm import tqdm

            self.bar = tqdm(
                total=total, desc=what, leave=False, dynamic_ncols=True, unit="sweep" if what == "patching" else "example",
                bar_format="{desc} {percentage:3.0f}%|{bar}| {n:.1f}/{total} [{elapsed}<{remaining}, {rate_fmt}] {postfix}",
            )  # fmt: skip

    def at(self, done: float, where: str) -> None:
        if self.bar is not None:
            self.bar.set_postfix_str(where, refresh=False)
            self.bar.update(done - self.bar.n)
        elif not self.quiet and time.monotonic() - self.said > self._EVERY:
            self.said = time.monotonic()
            self.note(f"{self.what}: {done:.1f} of {self.total}, {where}")

    def end(self) -> None:
        if self.bar is not None:
            self.bar.close()
            self.bar = None


if __name__ == "__main__":
    main()
