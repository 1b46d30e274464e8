"""Runs the analyses into a folder, each kept as soon as it is done; the same command goes on where an earlier one stopped."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pycotmech.cot.tools.registry import Description, Given
from pycotmech.files.arrays import DamagedData, open_group
from pycotmech.files.write import replacing, subfolder, write_text
from pycotmech.paper import plan as planning
from pycotmech.paper.claims import CLAIMS, Claim, Verdict
from pycotmech.paper.entries import ENTRIES, ON_REQUEST, chosen
from pycotmech.paper.summary import write_summary
from pycotmech.runs.folder import checked_path, open_folder, refuse_other_settings
from pycotmech.runs.progress import ProgressReporter
from pycotmech.runs.settings import Settings, model_identity, torch_threads, versions
from pycotmech.runs.work import make_examples

if TYPE_CHECKING:
    from pycotmech.cot.tools.result import Analysis

ABOUT = "paper.json"
DEFAULT_EXAMPLES = 8


@dataclass(frozen=True)
class PaperOutcome:
    """What a run of the paper's analyses did.

    results: by entry name. verdicts: each claim, against all results of the folder. resumed: names that were done before.
    failures: analyses that could not be done, and why.
    """

    folder: Path
    results: dict[str, Analysis]
    plan: planning.CostPlan
    verdicts: list[tuple[Claim, Verdict]]
    resumed: list[str]
    failures: dict[str, str]


def run(
    settings: Settings,
    out: str | os.PathLike,
    *,
    only: tuple[str, ...] | None = None,
    progress: ProgressReporter | None = None,
    say: Callable[[str], None] | None = None,
    plan_only: bool = False,
) -> PaperOutcome:
    """Runs all analyses of the paper, or those in `only` and what they need, on the model and task of the settings.

    Writes into the folder `out`: data/<analysis>.zarr, tables/<analysis>.csv, figures/<analysis>.png (and others that an
    analysis has, figures/<analysis>_<name>.png), summary.md and paper.json. say: called with the plan before the first analysis
    starts, and with what each found. plan_only: stops after the plan and writes nothing.
    An analysis that fails leaves the others as they are; it is named in `failures` and tried again by the next run. Data that
    is damaged is computed again, and tables and figures that are missing are made again.
    Raises ValueError, FileNotFoundError or PermissionError naming the setting, before the first analysis; BlockingIOError
    where another process writes to the folder.
    """
    settings.check()
    if settings.pairs is not None:
        raise ValueError("pairs: the paper's analyses need the task; expected none")
    if settings.examples is None:
        settings = replace(settings, examples=DEFAULT_EXAMPLES)
    entries = chosen(only)
    opened: AbstractContextManager[Path] = nullcontext(checked_path(out)) if plan_only else open_folder(out)
    with opened as folder:
        return _run(settings, folder, entries, progress or ProgressReporter(), say or (lambda text: None), plan_only)


def _run(
    settings: Settings,
    folder: Path,
    entries: list[Description],
    progress: ProgressReporter,
    say: Callable[[str], None],
    plan_only: bool,
) -> PaperOutcome:
    from pycotmech.cot.tools.cells import choose, grade
    from pycotmech.cot.tools.cost import workload
    from pycotmech.model import Model

    facts = _stored_facts(folder)
    stored, identity = facts.get("identity"), settings.identity()
    refuse_other_settings(folder, stored, identity)
    model = Model.from_pretrained(settings.model, dtype=settings.dtype, device=settings.device)
    with torch_threads(settings.threads):
        identity |= model_identity(model, stored)
        identity = json.loads(json.dumps(identity))
        refuse_other_settings(folder, stored, identity)
        examples = make_examples(model, settings)
        right = grade(model, examples)
        cells = choose(model, examples, steps=settings.chosen_steps, right=right)
        plan = planning.make(model, entries, workload(cells))
        say(str(right))
        say(str(plan))
        if plan_only:
            return PaperOutcome(folder, {}, plan, [], [], {})
        costs: dict[str, Any] = facts.get("costs", {})
        facts = {"identity": identity, "versions": versions(), "costs": costs}
        _write_json(folder / ABOUT, facts)
        done: dict[str, Analysis] = {}
        resumed, failures = [], {}
        for entry in entries:
            kept = _kept(folder, entry, identity, progress)
            if kept is not None:
                _show(folder, entry, kept, missing_only=True)
                costs.setdefault(entry.name, dict(kept.about.get("cost", {})))
                done[entry.name] = kept
                resumed.append(entry.name)
                continue
            missing = [name for name in entry.needs if name not in done]
            if missing:
                failures[entry.name] = f"needs {', '.join(missing)}"
                continue
            given = Given(model, examples, right, cells.steps, settings.seed, settings.memory_gb, done)
            start = time.perf_counter()
            progress.begin(entry.name, 1)
            try:
                result = entry.run(given, lambda at, total: progress.at(at / max(total, 1)))
            except (ValueError, NotImplementedError) as error:  # of this analysis: the others can be done
                failures[entry.name] = str(error)
                continue
            finally:
                progress.end()
            costs[entry.name] = {"seconds": time.perf_counter() - start, **result.about.get("cost", {})}
            # Table and figures first, the data last and in one move: what `_kept` finds is complete.
            _show(folder, entry, result)
            replace(result, about={**result.about, "identity": identity}).save(subfolder(folder, "data"))
            _write_json(folder / ABOUT, facts)
            done[entry.name] = result
            say(str(result))
        every = (*ENTRIES, *ON_REQUEST)
        others = {e.name: _kept(folder, e, identity, progress) for e in every if e.name not in done and e not in entries}
        results = {e.name: r for e in every if (r := done.get(e.name) or others.get(e.name)) is not None}
        verdicts = [(claim, claim.verdict(results)) for claim in CLAIMS]
        write_summary(
            folder, model=model, right=right, plan=plan, results=results, verdicts=verdicts, costs=costs, failures=failures
        )
        _write_json(folder / ABOUT, facts)
    return PaperOutcome(folder, done, plan, verdicts, resumed, failures)


def _stored_facts(folder: Path) -> dict[str, Any]:
    """What paper.json holds; where it is lost or damaged, the identity that the results hold themselves."""
    try:
        facts = json.loads((folder / ABOUT).read_text("utf-8"))
    except (OSError, ValueError, RecursionError):
        facts = {}
    if isinstance(facts, dict) and isinstance(facts.get("identity"), dict):
        return facts if isinstance(facts.get("costs"), dict) else {"identity": facts["identity"]}
    kept = sorted((folder / "data").glob("*.zarr"))
    for path in kept:
        try:
            about = json.loads(str(open_group(path).attrs.get("about")))
        except ValueError:
            continue
        if isinstance(about, dict) and isinstance(about.get("identity"), dict):
            return {"identity": about["identity"]}
    if kept:
        raise ValueError(
            f"out: {folder} holds data but no readable {ABOUT}, so nothing says of which settings they are. Move its data "
            "away, or give another folder"
        )
    return {}


def _kept(folder: Path, entry: Description, identity: Mapping[str, Any], progress: ProgressReporter) -> Analysis | None:
    """The stored result of these settings; None where there is none or it is damaged."""
    try:
        result = entry.result.load(folder / "data")
    except FileNotFoundError:
        return None
    except DamagedData as error:
        progress.note(f"{error}: {entry.name} counts as not done")
        return None
    # Folders begun by earlier versions hold results that do not say it themselves.
    of = result.about.get("identity", identity if "config" not in identity else None)
    return result if of == identity else None


def _show(folder: Path, entry: Description, result: Analysis, *, missing_only: bool = False) -> None:
    """Writes the table and the figures of a result."""
    figures = {entry.name: result.plot, **{f"{entry.name}_{name}": draw for name, draw in result.figures().items()}}
    table = subfolder(folder, "tables") / f"{entry.name}.csv"
    if not (missing_only and table.is_file()):
        write_text(table, result.table().to_csv(index=False))
    for name, draw in figures.items():
        path = subfolder(folder, "figures") / f"{name}.png"
        if not (missing_only and path.is_file()):
            with replacing(path) as temporary:
                draw(path=temporary)


def _write_json(path: Path, value: Any) -> None:
    write_text(path, json.dumps(value, indent=1, default=str) + "\n")
