"""Analyses that are done one after another in this process, or by workers at once."""

from __future__ import annotations

import itertools
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from pycotmech._warnings import warn
from pycotmech.cot.tools.registry import Description, Given
from pycotmech.paper.analyst import AnalysisUnit
from pycotmech.runs.progress import ProgressReporter
from pycotmech.runs.settings import Settings
from pycotmech.runs.workers import Engine, Unit, UnitQueue

if TYPE_CHECKING:
    from pycotmech.cot import Examples, Graded
    from pycotmech.cot.tools.result import Analysis
    from pycotmech.model import Model


@dataclass(frozen=True)
class Attempt:
    """What became of an analysis: its result, or why there is none. seconds: that it took."""

    entry: Description
    result: Analysis | None = None
    failure: str = ""
    seconds: float = 0.0


def one_by_one(
    model: Model,
    settings: Settings,
    examples: Examples,
    right: Graded,
    entries: Sequence[Description],
    done: Mapping[str, Analysis],
    progress: ProgressReporter,
) -> Iterator[Attempt]:
    """Yields the attempts at these analyses in their order. done: results by name, to which the caller adds each result as it
    comes; an analysis that needs one that is not there is not tried."""
    for number, entry in enumerate(entries, 1):
        if failure := _missing(entry, done):
            yield Attempt(entry, failure=failure)
            continue
        given = Given(model, examples, right, tuple(settings.chosen_steps), settings.seed, settings.memory_gb, done)
        start = time.perf_counter()
        progress.begin(f"{entry.name} ({number} of {len(entries)} analyses)", 1)
        try:
            found = Attempt(entry, entry.run(given, lambda at, total: progress.at(at / max(total, 1))))
        except (ValueError, NotImplementedError) as error:  # of this analysis: the others can be done
            found = Attempt(entry, failure=str(error))
        finally:
            seconds = time.perf_counter() - start
            progress.end()
        _show_finding(found, progress)
        yield replace(found, seconds=seconds)


def at_once(
    engine: Engine,
    settings: Settings,
    right: Graded,
    entries: Sequence[Description],
    done: Mapping[str, Analysis],
    seconds: Mapping[str, float],
    progress: ProgressReporter,
) -> Iterator[Attempt]:
    """Yields the attempts in the order in which they end. engine: of workers that are analysts (`pycotmech.paper.analyst`).

    Each begins when what it needs is done: those that became ready last go first, since others may wait for them, and of these
    the one that is predicted to take longest. done: as in `one_by_one`.
    """
    waiting = {entry.name: entry for entry in entries}
    begun: dict[int, Description] = {}
    numbers, ended = itertools.count(), 0

    def ready() -> list[Unit]:
        names = [name for name, entry in waiting.items() if not _missing(entry, done)]
        units: list[Unit] = []
        for name in sorted(names, key=lambda n: -seconds.get(n, 0.0)):
            number, entry = next(numbers), waiting.pop(name)
            begun[number] = entry
            units.append(AnalysisUnit(number, name, settings, right, {n: done[n] for n in entry.needs}))
        return units

    def watch(unit: Unit, share: float) -> None:
        progress.at(ended, unit.where)

    queue = UnitQueue(ready())
    progress.begin("analyses", len(entries), "analysis")
    try:
        for answer in engine.answers(queue, watch):
            ended += 1
            for text in answer.warnings:
                warn(text)
            attempt = Attempt(begun.pop(answer.unit), answer.result, answer.error or "", answer.seconds)
            _show_finding(attempt, progress)
            yield attempt
            queue.put_first(ready())
    finally:
        progress.end()
    for entry in waiting.values():
        yield Attempt(entry, failure=_missing(entry, done))


def _show_finding(attempt: Attempt, progress: ProgressReporter) -> None:
    if progress.shows and attempt.result is not None and (findings := attempt.result.findings()):
        progress.found(f"{attempt.entry.name}: {findings[0]}")


def _missing(entry: Description, done: Mapping[str, Analysis]) -> str:
    """Says what an analysis needs and has not got; empty if it has all of it."""
    missing = [name for name in entry.needs if name not in done]
    return f"needs {', '.join(missing)}" if missing else ""
