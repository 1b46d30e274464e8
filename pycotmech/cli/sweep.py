"""`pycotmech sweep`: one prompt pair, or a few as one result."""

from __future__ import annotations

from dataclasses import asdict, replace
from typing import TYPE_CHECKING, Annotated, Any

from pycotmech.cli import options as o
from pycotmech.cli.output import say_json
from pycotmech.cli.run import expect, keep

if TYPE_CHECKING:
    from pycotmech.model import Model
    from pycotmech.patching import Sweep


def sweep(
    model: o.Model,
    clean: Annotated[str | None, o.plain("The clean prompt.")] = None,
    corrupted: Annotated[str | None, o.plain("The corrupted prompt, aligned with it token for token.")] = None,
    answer: Annotated[str | None, o.plain("The word that follows the clean prompt.")] = None,
    wrong: Annotated[str | None, o.plain("The word that follows the corrupted prompt.")] = None,
    pairs: o.Pairs = None,
    out: Annotated[
        str | None,
        o.plain(
            "Save each pair of --pairs as a separate result in this folder. An interrupted sweep in it is continued.",
            metavar="FOLDER",
        ),
    ] = None,
    direction: o.Direction = "denoise",
    metric: o.Metric = "kl",
    positions: o.Positions = "all",
    controls: o.Controls = True,
    screen: Annotated[
        int | None, o.patch("Patch only the K heads with the largest first-order estimates.", metavar="K")
    ] = None,
    csv: Annotated[str | None, o.written("Write all heads to this CSV file.", metavar="FILE")] = None,
    png: Annotated[str | None, o.written("Draw the heat map into this PNG file.", metavar="FILE")] = None,
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
    top: o.Top = 10,
    as_json: o.Json = False,
    quiet: o.Quiet = False,
    debug: o.Debug = False,
) -> None:
    """Patch every head of one prompt pair (or of several, as one result), and print the strongest.

    With --out, each pair is saved separately in a results folder as soon as it is finished, as with `pycotmech run --pairs`.
    """
    import pycotmech as pcm
    from pycotmech.cli.bars import Bars
    from pycotmech.files.write import replacing, write_text
    from pycotmech.patching.controls import control_arguments
    from pycotmech.runs import Settings, read_pairs
    from pycotmech.runs.pairs import words_read
    from pycotmech.runs.settings import torch_threads
    from pycotmech.runs.work import work_of_pairs

    if top < 1:
        raise ValueError(f"top: got {top}; expected 1 or more")
    settings = Settings(
        model=model, dtype=dtype, device=device, seed=seed, direction=direction, metric=metric,
        positions=o.positions(positions), memory_gb=memory_gb, threads=threads, points=o.points(points),
        controls=controls and pairs is not None,
    )  # fmt: skip
    if pairs is not None or points is None:
        replace(settings, points=None).check()
    else:
        raise ValueError("points: selects pairs of a file; expected --pairs too")
    if (pairs is None) == (clean is None and corrupted is None):
        raise ValueError("clean, corrupted, pairs: expected either --clean and --corrupted, or --pairs")
    if pairs is None and (clean is None or corrupted is None):
        raise ValueError(f"{'clean' if clean is None else 'corrupted'}: missing; a pair needs --clean and --corrupted")
    o.check_plan_for(plan_for, dry_run or estimate)
    if out is not None:
        for name, value in {"csv": csv, "png": png, "screen": screen}.items():
            if value is not None:
                raise ValueError(
                    f"{name}: cannot be combined with --out, whose folder contains tables and figures; expected none"
                )
        if pairs is None:
            raise ValueError("out: keeps the results of a file of pairs; expected --pairs too")
        kept = replace(settings, pairs=o.path(pairs, "pairs"))
        how: dict[str, Any] = {"verify": verify, "accept_version": accept_version}
        how |= {"engine": engine, "workers": workers, "ray_address": ray_address}
        if dry_run or estimate:
            expect(kept, out, as_json=estimate or as_json, plan_for=plan_for, **how)
        else:
            keep(kept, out, top, quiet, as_json, **how)
        return
    for name, value in {"engine": engine, "workers": workers, "ray_address": ray_address}.items():
        if value is not None:
            raise ValueError(f"{name}: is for runs into a folder; expected --pairs and --out too")
    files = {"csv": None, "png": None} if dry_run or estimate else {"csv": csv, "png": png}  # their folders would be made
    table, picture = (o.new_file(path, name) for name, path in files.items())
    if picture is not None and not picture.suffix:
        raise ValueError(f"png: {picture} has no suffix; expected a name such as heads.png")
    file = o.path(pairs, "pairs")
    read = None if file is None else read_pairs(file, metric=metric)
    if read is not None and (part := settings.with_points_of(len(read)).points) is not None:
        read = read[part.start : part.stop]

    loaded = pcm.Model.from_pretrained(model, dtype=dtype, device=device)
    bars = Bars(quiet)
    given: dict[str, Any] = {"clean": clean, "corrupted": corrupted, "answer": answer, "wrong": wrong}
    if read is not None:
        work = work_of_pairs(loaded, read, replace(settings, points=None))  # names the line of a pair that cannot be swept
        given = {name: [getattr(pair, name) for pair in read] for name in ("clean", "corrupted", *words_read(metric))}
        given |= control_arguments([other for row in work.others for other in row]) if controls else {}
    arguments: dict[str, Any] = {
        **given, "direction": direction, "metric": metric, "positions": settings.positions, "memory_gb": memory_gb,
        "seed": seed,
    }  # fmt: skip
    if dry_run or estimate:
        with torch_threads(threads):
            _expect(loaded, arguments, screen, plan_for, as_json=estimate or as_json)
        return
    with torch_threads(threads):
        n_heads = screen or loaded.cfg.n_layers * loaded.cfg.n_heads
        bars.begin("patching", n_heads, "head")
        result = pcm.patch_heads(
            loaded, **arguments, screen=screen,
            progress=lambda done, total: bars.at(int(n_heads * done / max(1, total))),
        )  # fmt: skip
        bars.end()
    if table is not None:
        write_text(table, result.to_dataframe().to_csv(index=False, lineterminator="\n"))
    if picture is not None:
        with replacing(picture) as temporary:
            result.plot(path=str(temporary))
    written = [path for path in (table, picture) if path is not None]
    if as_json:
        say_json({**_found(result, top), "notes": list(loaded.notes), "files": written})
    elif not quiet:
        for note in loaded.notes:
            o.say(f"Note: {note}.")
        o.say(_text(result, top))
        for path in written:
            o.say(f"written: {path}")


def _expect(model: Model, arguments: dict[str, Any], screen: int | None, plan_for: str | None, *, as_json: bool) -> None:
    """Prints what the sweep would do and need. With a screen, of all heads: which it leaves is known only when it has run."""
    import pycotmech as pcm
    from pycotmech.cost import device_named, of_plan, speed_and_device
    from pycotmech.runs.speed import shown_time

    plan = pcm.plan_heads(model, **arguments)
    speed, device = speed_and_device(model, None if plan_for is None else device_named(plan_for))
    demand = of_plan(model.cfg, plan, metric=arguments.get("metric", "kl"))
    seconds = device.seconds(model.cfg, demand)
    if as_json:
        found = {"flop_per_second": speed, "seconds": seconds, "plan_for": plan_for, "screen": screen}
        return say_json({**asdict(plan), **found})
    at_most = "" if screen is None else f"; of all heads, since the {screen} of the screen are not known yet"
    where = "" if plan_for is None else f" on {plan_for}, by its data sheet,"
    time = f"time: about {shown_time(seconds)}{where} at {speed / 1e9:,.0f} GFLOP/s"
    o.say(f"{plan}{at_most}\n{time}\nnothing was run or written")


def _found(result: Sweep, top: int) -> dict[str, Any]:
    """The sweep in JSON values: every head, and the strongest ones."""
    control = None if result.controls is None or not result.controls.n_random else result.controls.threshold
    strongest = [
        {"layer": layer, "head": head, "effect": effect, "above_floor": abs(effect) > result.noise_floor,
         "beyond_control": None if control is None else abs(effect) > max(control, result.noise_floor)}
        for (layer, head), effect in result.top(top)
    ]  # fmt: skip
    return {
        "model": result.model_name, "site": result.site, "direction": result.direction, "metric": result.metric,
        "normalized": result.normalized, "clean_metric": result.clean_metric, "corrupted_metric": result.corrupted_metric,
        "noise_floor": result.noise_floor, "control": control, "strongest": strongest, "values": result.values,
        "effect": result.effect,
    }  # fmt: skip


def _text(result: Sweep, top: int) -> str:
    lines = [line for line in str(result).splitlines() if not line.startswith("  ")]
    for (layer, head), effect in result.top(top):
        note = "" if abs(effect) > result.noise_floor else "  (rounding)"
        if not note and result.controls is not None and abs(effect) <= result.controls.threshold:
            note = "  (within the control)"
        lines.append(f"  {f'L{layer}H{head}':<8} {effect:+.4f}{note}")
    return "\n".join(lines)
