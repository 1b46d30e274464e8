"""Runs the analyses into a folder, each kept as soon as it is done; the same command goes on where an earlier one stopped."""

from __future__ import annotations

import json
import os
import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pycotmech.cot.tools.registry import Description, Given
from pycotmech.paper import plan as planning
from pycotmech.paper.entries import chosen
from pycotmech.paper.summary import write_summary
from pycotmech.runs import experiment

if TYPE_CHECKING:
    from pycotmech.cot.tools.result import Analysis
    from pycotmech.model import Model

ABOUT = "paper.json"
DEFAULT_EXAMPLES = 8


@dataclass(frozen=True)
class Outcome:
    """results: by entry name. resumed: names that were done before. failures: analyses that could not be done, and why."""

    folder: Path
    results: dict[str, Analysis]
    plan: planning.Plan
    resumed: list[str]
    failures: dict[str, str]


def run(
    settings: experiment.Settings,
    out: str | os.PathLike,
    *,
    only: tuple[str, ...] | None = None,
    progress: experiment.Progress | None = None,
    say: Callable[[str], None] | None = None,
    plan_only: bool = False,
) -> Outcome:
    """All analyses of the paper, or those in `only` and what they need, on the model and task of the settings.

    Writes into the folder `out`: data/<analysis>.zarr, tables/<analysis>.csv, figures/<analysis>.png (and others that an
    analysis has, figures/<analysis>_<name>.png), summary.md and paper.json. say: told the plan before the first analysis
    starts, and what each found. plan_only: stops behind the plan.
    An analysis that fails leaves the others as they are; it is named in `failures` and tried again by the next run.
    Raises ValueError, FileNotFoundError or PermissionError naming the setting, before the first analysis.
    """
    settings.check()
    if settings.pairs is not None:
        raise ValueError("pairs: the paper's analyses need the task; expected none")
    entries = chosen(only)
    progress, say = progress or experiment.Progress(), say or (lambda text: None)
    folder = experiment.writable(out)

    from pycotmech.cot.tools.cells import choose, grade
    from pycotmech.cot.tools.cost import workload
    from pycotmech.model import Model

    model = Model.from_pretrained(settings.model, dtype=settings.dtype, device=settings.device)
    with experiment.threads(settings.threads):
        identity = _identity(settings, model)
        _refuse_others(folder, identity)
        examples = make_examples(model, settings)
        right = grade(model, examples)
        cells = choose(model, examples, steps=settings.chosen_steps, right=right)
        plan = planning.make(model, entries, workload(cells))
        say(str(right))
        say(str(plan))
        if plan_only:
            return Outcome(folder, {}, plan, [], {})
        facts = {"identity": identity, "versions": experiment.versions(), "costs": _known_costs(folder)}
        _write_json(folder / ABOUT, facts)
        done: dict[str, Analysis] = {}
        resumed, failures = [], {}
        for entry in entries:
            kept = _kept(folder, entry)
            if kept is not None:
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
                result = entry.run(given, lambda at, total: progress.at(at / max(total, 1), ""))
            except (ValueError, NotImplementedError) as error:  # of this analysis: the others can be done
                failures[entry.name] = str(error)
                continue
            finally:
                progress.end()
            facts["costs"][entry.name] = {"seconds": time.perf_counter() - start, **result.about.get("cost", {})}
            _keep(folder, entry, result)
            _write_json(folder / ABOUT, facts)
            done[entry.name] = result
            say(str(result))
        write_summary(folder, model=model, right=right, plan=plan, results=done, costs=facts["costs"], failures=failures)
    return Outcome(folder, done, plan, resumed, failures)


def make_examples(model: Model, settings: experiment.Settings) -> Any:
    """The examples of the settings; ValueError for a model without a tokenizer."""
    from pycotmech import cot

    if model.tokenizer is None:
        raise ValueError(f"model: {model.name} has no tokenizer, so no examples can be made")
    n = DEFAULT_EXAMPLES if settings.examples is None else settings.examples
    return cot.make_examples(n, tokenizer=model.tokenizer, bos=model.prepend_bos, **settings.task())


def _identity(settings: experiment.Settings, model: Model) -> dict[str, Any]:
    n = DEFAULT_EXAMPLES if settings.examples is None else settings.examples
    return {**settings.identity(), "examples": n, "weights": experiment.fingerprint(model)}


def _refuse_others(folder: Path, identity: dict[str, Any]) -> None:
    """Results of other settings are neither mixed with these nor overwritten."""
    path = folder / ABOUT
    if not path.is_file():
        return
    stored = json.loads(path.read_text("utf-8")).get("identity", {})
    differ = [f"{k} was {stored.get(k)}, now {v}" for k, v in json.loads(json.dumps(identity)).items() if stored.get(k) != v]
    if differ:
        raise ValueError(
            f"out: {folder} holds results of other settings: {'; '.join(differ)}. Give another folder, or the settings of "
            "these results to go on with them"
        )


def _known_costs(folder: Path) -> dict[str, Any]:
    path = folder / ABOUT
    return json.loads(path.read_text("utf-8")).get("costs", {}) if path.is_file() else {}


def _kept(folder: Path, entry: Description) -> Analysis | None:
    if not (folder / "data" / f"{entry.name}.zarr").is_dir():
        return None
    return entry.result.load(folder / "data")


def _keep(folder: Path, entry: Description, result: Analysis) -> None:
    """Table and figure first, the data last and in one move: what `_kept` finds is whole."""
    for name in ("tables", "figures", "data"):
        (folder / name).mkdir(exist_ok=True)
    result.table().to_csv(folder / "tables" / f"{entry.name}.csv", index=False)
    result.plot(path=folder / "figures" / f"{entry.name}.png")
    for name, draw in result.figures().items():
        draw(path=folder / "figures" / f"{entry.name}_{name}.png")
    unfinished = folder / "data" / ".unfinished"
    shutil.rmtree(unfinished, ignore_errors=True)
    path = result.save(unfinished)
    path.replace(folder / "data" / path.name)
    unfinished.rmdir()


def _write_json(path: Path, value: Any) -> None:
    new = path.with_name(f".{path.name}.new")
    new.write_text(json.dumps(value, indent=1, default=str) + "\n", "utf-8")
    new.replace(path)
