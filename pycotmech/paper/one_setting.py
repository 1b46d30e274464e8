"""Runs one setting of the task in one folder: its examples, the steps that the model gets right, and the analyses."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pycotmech.cot.task.copying import copied_in_order
from pycotmech.cot.tools.registry import Description
from pycotmech.files.arrays import DamagedData, open_group
from pycotmech.files.text import parse_json
from pycotmech.files.whole import read_sealed, write_sealed
from pycotmech.files.write import subfolder
from pycotmech.paper.attempts import at_once, one_by_one
from pycotmech.paper.claims import CLAIMS, Claim, Verdict
from pycotmech.paper.entries import EVERY
from pycotmech.runs.events import EventLog
from pycotmech.runs.folder import refuse_other_settings
from pycotmech.runs.progress import ProgressReporter
from pycotmech.runs.provenance import agrees, facts_of
from pycotmech.runs.settings import Settings
from pycotmech.runs.show import show
from pycotmech.runs.status import PAPER
from pycotmech.runs.work import make_examples
from pycotmech.runs.workers import Engine

if TYPE_CHECKING:
    from pycotmech.cot import Examples, Graded
    from pycotmech.cot.tools.cost import Workload
    from pycotmech.cot.tools.result import Analysis
    from pycotmech.model import Model


@dataclass(frozen=True)
class Task:
    """The size of a setting, and what is right in it.

    right, steps: number of steps that the model gets right, and of all steps that were asked for.
    copied: share of the decisions between premises that copying them in order gets right (`cot.task.copying`).
    chance: share that a premise drawn at random gets right.
    """

    examples: int
    right: int
    steps: int
    copied: float
    chance: float


@dataclass(frozen=True)
class Prepared:
    """A setting before its analyses. identity: settings and model that its folder's results belong to. workload: the sizes that
    costs depend on."""

    settings: Settings
    identity: dict[str, Any]
    examples: Examples
    right: Graded
    workload: Workload
    task: Task


@dataclass
class SettingOutcome:
    """What was found in one setting of the task.

    results: all analyses that the folder holds, by name. done: those that this run asked for. resumed: names of those that
    were done before. failures: by name, why an analysis could not be done. verdicts: each claim with its verdict.
    task: None if the setting could not be made; `failure` then says why.
    """

    name: str
    results: dict[str, Analysis] = field(default_factory=dict)
    done: dict[str, Analysis] = field(default_factory=dict)
    resumed: list[str] = field(default_factory=list)
    failures: dict[str, str] = field(default_factory=dict)
    verdicts: list[tuple[Claim, Verdict]] = field(default_factory=list)
    costs: dict[str, Any] = field(default_factory=dict)
    task: Task | None = None
    failure: str = ""


def identity_of(settings: Settings, of_model: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the identity that results of these settings and this model carry, as it is read back from a file."""
    return json.loads(json.dumps(settings.identity() | dict(of_model)))


def prepare(model: Model, settings: Settings, of_model: Mapping[str, Any]) -> Prepared:
    """Makes the examples and grades them.

    Raises ValueError naming the argument if the tokenizer has too few words, or the model gets nothing right. Cost: one forward
    pass of each example.
    """
    from pycotmech.cot.tools.cells import choose, grade
    from pycotmech.cot.tools.cost import workload

    examples = make_examples(model, settings)
    right = grade(model, examples)
    cells = choose(model, examples, steps=settings.chosen_steps, right=right)
    copied = copied_in_order(examples)
    n = len(examples)
    task = Task(n, int(cells.right.sum()), n * len(cells.steps), copied.share, copied.chance)
    return Prepared(settings, identity_of(settings, of_model), examples, right, workload(cells), task)


def work_through(
    model: Model,
    name: str,
    prepared: Prepared,
    folder: Path,
    entries: Sequence[Description],
    progress: ProgressReporter,
    say: Callable[[str], None],
    seconds: Mapping[str, float] | None = None,
    accept_version: bool = False,
    engine: Engine | None = None,
    how: Mapping[str, Any] | None = None,
) -> SettingOutcome:
    """Runs the analyses of one setting into its folder, which must be locked. Stored results are read instead of computed.

    seconds: predicted for each analysis, for the folder's log and the order of work. accept_version: see
    `refuse_other_settings`. engine: of workers that do the analyses (`attempts.at_once`); None: this process does. how: facts
    about workers for the record.
    """
    s, identity = prepared.settings, prepared.identity
    facts = stored_facts(folder)
    before = facts.get("identity")
    accepted = refuse_other_settings(folder, before, identity, accept_version=accept_version)
    costs: dict[str, Any] = facts.get("costs", {})
    about = facts_of(model, vars(s), plan={"seconds": dict(seconds or {}), "memory_gb": s.memory_gb, **(how or {})})
    # A folder keeps the versions that it was begun with: results of others go on being accepted by name only.
    facts = {"identity": before if accepted else identity, **about, "task": vars(prepared.task), "costs": costs}
    write_sealed(folder / PAPER, facts)
    log = EventLog(folder)
    log.begin("start" if before is None else "resume", "paper", setting=name, versions=about["versions"])
    if accepted:
        log.write("accepted", versions=accepted)
    log.write("plan", units={entry.name: (seconds or {}).get(entry.name) for entry in entries})
    out = SettingOutcome(name, costs=costs, task=prepared.task)
    waiting = []
    for entry in entries:
        kept = _kept(folder, entry, identity, progress)
        if kept is None:
            waiting.append(entry)
            continue
        show(kept, *_places(folder), damaged_only=True)
        costs.setdefault(entry.name, dict(kept.about.get("cost", {})))
        out.done[entry.name] = kept
        out.resumed.append(entry.name)
    if engine is None:
        attempts = one_by_one(model, s, prepared.examples, prepared.right, waiting, out.done, progress)
    else:
        attempts = at_once(engine, s, prepared.right, waiting, out.done, seconds or {}, progress)
    for attempt in attempts:
        result, unit = attempt.result, attempt.entry.name
        if result is None:
            out.failures[unit] = attempt.failure
            log.write("failed", unit=unit, why=attempt.failure)
            continue
        costs[unit] = {"seconds": attempt.seconds, **result.about.get("cost", {})}
        # Table and figures first, the data last and in one move: what `_kept` finds is complete.
        show(result, *_places(folder))
        replace(result, about={**result.about, "identity": identity}).save(subfolder(folder, "data"))
        log.write("finished", unit=unit, seconds=round(attempt.seconds, 6))
        write_sealed(folder / PAPER, facts)
        out.done[unit] = result
        say(str(result))
    out.done = {e.name: out.done[e.name] for e in entries if e.name in out.done}
    out.failures = {e.name: out.failures[e.name] for e in entries if e.name in out.failures}
    write_sealed(folder / PAPER, facts)
    others = {e.name: _kept(folder, e, identity, progress) for e in EVERY if e.name not in out.done and e not in entries}
    out.results = {e.name: r for e in EVERY if (r := out.done.get(e.name) or others.get(e.name)) is not None}
    out.verdicts = verdicts_of(out.results)
    return out


def stored(
    name: str,
    folder: Path,
    identity: Mapping[str, Any] | None,
    progress: ProgressReporter,
    *,
    accept_version: bool = False,
) -> SettingOutcome | None:
    """Returns what an earlier run left of a setting in its folder; None if there is nothing, or if it has another identity.

    identity: None accepts any. accept_version: whether its versions may differ.
    """
    if not (folder / "data").is_dir():
        return None
    facts = stored_facts(folder)
    own = facts.get("identity")
    if own is None or (identity is not None and not agrees(own, identity, accept_version=accept_version)):
        return None
    results = {e.name: r for e in EVERY if (r := _kept(folder, e, own, progress)) is not None}
    kept: Any = facts.get("task")
    known = isinstance(kept, dict) and set(kept) == set(Task.__dataclass_fields__)
    task = Task(**kept) if known else None
    return SettingOutcome(name, results, verdicts=verdicts_of(results), costs=facts.get("costs", {}), task=task)


def finished(folder: Path, identity: Mapping[str, Any]) -> list[str]:
    """Returns the names of the analyses of this identity that a folder holds, without reading their numbers."""
    return [e.name for e in EVERY if (of := _made_of(folder, e)) and agrees(of, identity, accept_version=True)]


def verdicts_of(results: Mapping[str, Analysis], claims: Iterable[Claim] = CLAIMS) -> list[tuple[Claim, Verdict]]:
    """Returns each claim with its verdict."""
    return [(claim, claim.verdict(results)) for claim in claims]


def stored_facts(folder: Path) -> dict[str, Any]:
    """Returns what paper.json holds; if it is lost or damaged, the identity that the results themselves carry."""
    try:
        facts = read_sealed(folder / PAPER)
    except (OSError, ValueError):
        facts = {}
    if isinstance(facts.get("identity"), dict):
        return facts if isinstance(facts.get("costs"), dict) else {"identity": facts["identity"]}
    kept = sorted((folder / "data").glob("*.zarr"))
    for path in kept:
        try:
            about = parse_json(str(open_group(path).attrs.get("about")))
        except ValueError:
            continue
        if isinstance(about, dict) and isinstance(about.get("identity"), dict):
            return {"identity": about["identity"]}
    if kept:
        raise ValueError(
            f"out: {folder} contains data but no readable {PAPER}, so their settings are unknown. Move its data "
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
    of = result.about.get("identity")
    # Of versions, the folder as a whole has been refused or accepted.
    return result if isinstance(of, dict) and agrees(of, identity, accept_version=True) else None


def _made_of(folder: Path, entry: Description) -> Mapping[str, Any] | None:
    """The identity of a stored result; None if there is none that can be read."""
    path = folder / "data" / f"{entry.name}.zarr"
    try:
        of = parse_json(str(open_group(path).attrs.get("about")))["identity"]
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return of if isinstance(of, dict) else None


def _places(folder: Path) -> tuple[Path, Path]:
    """The folders of tables and of figures, made if they are missing."""
    return subfolder(folder, "tables"), subfolder(folder, "figures")
