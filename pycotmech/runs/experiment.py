"""The main job: make examples, grade them, patch every head at every step that the model gets right, keep the results.

`run` does what its settings say into a folder and can be stopped and started again at any moment. Each sweep is one example
at one step: the prompt up to a word of the solution, and its counterfactual.
"""

from __future__ import annotations

import itertools
import json
import os
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from pycotmech._warnings import warn
from pycotmech._words import plural
from pycotmech.display import Described, Facts
from pycotmech.files.write import replacing
from pycotmech.runs.folder import open_folder, opening, refuse_other_settings
from pycotmech.runs.pairs import PromptPair, read_pairs
from pycotmech.runs.progress import ProgressReporter, StrongestHead
from pycotmech.runs.provenance import facts_of, model_identity
from pycotmech.runs.settings import Points, Settings, torch_threads
from pycotmech.runs.store import ResultAxes, SweepState, SweepStore, stored_about, stored_identity
from pycotmech.runs.work import EXAMPLES_FILE, SweepUnit, SweepWork, work_of_pairs, work_of_task
from pycotmech.runs.workers import Engine, EngineChoice, PatchUnit, Unit, UnitQueue, open_engine, threads_of

if TYPE_CHECKING:
    from pycotmech.model import Model


@dataclass(frozen=True)
class RunOutcome(Described):
    """What a run did. failures: sweeps that could not be done, with the reason; they stay pending."""

    folder: Path
    done: int
    resumed: int
    failures: list[str]

    def described(self) -> Facts:
        counts = {"sweeps done": f"{self.done}", "done before": f"{self.resumed}", "failed": f"{len(self.failures)}"}
        return Facts(
            f"Run in {self.folder}",
            [*counts.items(), *(("failed", why) for why in self.failures[:10])],
            go_on=opening(self.folder),
        )


def run(
    settings: Settings,
    out: str | os.PathLike,
    *,
    verify: bool = False,
    accept_version: bool = False,
    engine: str | None = None,
    workers: int | None = None,
    ray_address: str | None = None,
    points: slice | tuple[int, int] | None = None,
    progress: ProgressReporter | None = None,
) -> RunOutcome:
    """Does what the settings say, keeps it in the folder `out`, and goes on where an earlier run of the same stopped.

    verify: whether to read every weight for the model's digest even if it is known from the files' sizes and times.
    accept_version: whether to go on with results of other versions of pycotmech, PyTorch or transformers.
    engine, workers, ray_address: who does the work (`pycotmech.runs.workers.EngineChoice`): "serial" is this process; "local"
    and "ray" have workers with a replica of the model each. None: local if there are several workers, otherwise serial. This
    process alone writes to the folder. The same threads and memory give the same bits whatever the engine and the number of
    workers.
    points: a part of the examples, which replaces that of the settings; `pycotmech.runs.merge` puts the folders of parts
    together.
    Raises ValueError, FileNotFoundError or PermissionError naming the setting, before the model is loaded where possible
    and before the first sweep otherwise; BlockingIOError where another process writes to the folder. KeyboardInterrupt (also
    from SIGTERM if the caller arranges it) leaves everything finished in place and ends the workers.
    Cost: one forward pass per example, then one sweep (`patch_heads_each`) for the steps of an example that are right and have
    the same word replaced. Controls (`Settings.controls`) add about a tenth: a random control of 6 % of the heads and the run
    of the next example's prompt, and the sham position.
    """
    progress = progress or ProgressReporter()
    choice = EngineChoice(engine, workers, ray_address)
    settings, pairs = checked_settings(settings, choice, points)
    with open_folder(out) as folder:
        stored, identity = stored_identity(folder), settings.identity()
        refuse_other_settings(folder, stored, identity, accept_version=accept_version)

        from pycotmech.model import Model

        # Replicas are on the device; this process only makes their units.
        model = Model.from_pretrained(
            settings.model, dtype=settings.dtype, device=settings.device if choice.engine == "serial" else "cpu"
        )
        with torch_threads(settings.threads):
            work = work_of_task(model, settings) if pairs is None else work_of_pairs(model, pairs, settings)
            digests = model_identity(model, verify=verify)
            identity |= {**digests, "prompts": work.digest()}
            accepted = refuse_other_settings(folder, stored, identity, accept_version=accept_version)
            if not holds_records(folder / EXAMPLES_FILE, work.records()):
                write_records(folder / EXAMPLES_FILE, work.records())
            plan = _execution(choice, settings, folder if stored is not None else None, progress)
            if stored is None:
                store = _new_store(folder, work, model, identity, settings, plan)
            else:
                store = SweepStore.resume(folder)
            if accepted:
                store.events.write("accepted", versions=accepted)
            with open_engine(choice, settings, model, memory_gb=plan["memory_gb"], identity=digests) as workers_of_run:
                _grade(work, store, workers_of_run, progress)
                outcome = _sweep(work, store, workers_of_run, folder, settings, progress)
            keep_views(model, work, folder, settings, progress)
            return outcome


def checked_settings(
    settings: Settings, choice: EngineChoice, points: slice | tuple[int, int] | None
) -> tuple[Settings, list[PromptPair] | None]:
    """Returns the settings with their points, and the pairs if there are any. Raises what `run` raises before a model is
    loaded."""
    if isinstance(points, slice):
        if points.step not in (None, 1):
            raise ValueError(f"points: got {points}; expected a slice without a step")
        points = (points.start or 0, points.stop)
    settings = settings if points is None else replace(settings, points=Points(*points))
    settings.check()
    choice.check()
    pairs = None if settings.pairs is None else read_pairs(settings.pairs, metric=settings.metric)
    return settings.with_points_of(settings.n_examples if pairs is None else len(pairs)), pairs


def write_records(path: Path, records: Iterable[Mapping[str, Any]]) -> None:
    """Writes the lines of examples.jsonl, one by one."""
    with replacing(path) as temporary, temporary.open("w", encoding="utf-8", newline="\n") as file:
        for record in records:
            file.write(_line(record))


def holds_records(path: Path, records: Iterable[Mapping[str, Any]]) -> bool:
    """Whether examples.jsonl is there and holds these lines, undamaged."""
    if path.is_symlink() or not path.is_file():
        return False
    with path.open("rb") as file:
        return all(file.readline() == _line(record).encode("utf-8", "replace") for record in records) and not file.read(1)


def _line(record: Mapping[str, Any]) -> str:
    return json.dumps(record, ensure_ascii=False) + "\n"


def _execution(choice: EngineChoice, settings: Settings, stored: Path | None, progress: ProgressReporter) -> dict[str, Any]:
    """How units are cut and computed, on which rounding depends: what the settings say, otherwise as the stored run did,
    otherwise what this machine suggests. stored: the folder of a run that goes on."""
    import torch

    from pycotmech.engine.planner import memory_budget

    before = {} if stored is None else stored_about(stored).get("plan") or {}
    threads = threads_of(choice, settings)
    memory_gb = settings.memory_gb
    if memory_gb is None and settings.device == "cpu":
        here = round(memory_budget(None, torch.device("cpu")) / 2**30 / choice.n_workers(threads), 3)
        memory_gb = before.get("memory_gb", here)
        if memory_gb > 2 * here:  # more than is free now
            memory_gb = here
    now = {"threads": threads, "memory_gb": memory_gb}
    differ = [f"{name} {before[name]}, now {now[name]}" for name in now if before.get(name) not in (None, now[name])]
    if differ:
        progress.note(
            f"this folder was begun with {' and '.join(differ)}: sweeps done from here on agree with those before within the "
            "noise floor, not to the last bit"
        )
    return {**now, "engine": choice.engine, "workers": choice.n_workers(threads)}


def _new_store(
    folder: Path,
    work: SweepWork,
    model: Model,
    identity: dict[str, Any],
    settings: Settings,
    execution: dict[str, Any],
) -> SweepStore:
    passes = list(work.batches(lambda unit: True, settings))
    plan = {"units": sum(map(len, passes)), "passes": len(passes), **execution}
    about = facts_of(model, vars(settings), plan=plan) | {"threads": execution["threads"]}
    axes = ResultAxes(work.names, work.steps, work.kinds, model.cfg.n_layers, model.cfg.n_heads)
    return SweepStore.create(folder, axes, identity=identity, about=about)


def _grade(work: SweepWork, store: SweepStore, engine: Engine, progress: ProgressReporter) -> None:
    """Keeps which steps the model gets right, and skips the others. Of a pair: whether the answer is the likeliest token."""
    todo = [e for e, row in enumerate(store.graded()) if (row < 0).all()]
    progress.begin("grading", len(todo), "example")
    units = (unit for number, e in enumerate(todo) if (unit := work.grading(number, e)) is not None)
    done = 0

    def watch(unit: Unit, share: float) -> None:
        progress.at(done, unit.where)

    for answer in engine.answers(UnitQueue(units), watch):
        if answer.right is None:
            raise RuntimeError(f"example {work.names[todo[answer.unit]]} cannot be graded: {answer.error}")
        store.grade(todo[answer.unit], answer.right)
        done += 1
    progress.end()
    if work.examples is not None:
        for example, step in np.argwhere((store.graded() == 0) & (store.state() == SweepState.PENDING)):
            store.skip(int(example), int(step))


def keep_views(model: Model, work: SweepWork, folder: Path, settings: Settings, progress: ProgressReporter) -> None:
    """Keeps for the report what the strongest heads attend to and write (`pycotmech.runs.head_views`), if the model is where
    the sweeps were computed: on the processor a model that has replicas on GPUs would take too long."""
    from pycotmech.runs.views_of_run import keep_views_of_run

    if settings.device != "cpu" and model.device.type == "cpu":
        progress.note(
            "the report shows no texts of heads: the model of this process is on the CPU, its replicas are not; "
            f"pycotmech report {folder} --heads loads it there and stores them"
        )
        return
    keep_views_of_run(folder, model, work.records(), progress, memory_gb=settings.memory_gb)


def _sweep(
    work: SweepWork, store: SweepStore, engine: Engine, folder: Path, settings: Settings, progress: ProgressReporter
) -> RunOutcome:
    state = store.state()
    resumed, total = int((state == SweepState.FINISHED).sum()), int((state == SweepState.PENDING).sum())
    batches: dict[int, list[SweepUnit]] = {}  # by number of the unit, of those that are being done
    numbers = itertools.count()

    def numbered(batch: list[SweepUnit]) -> PatchUnit:
        number = next(numbers)
        batches[number] = batch
        return work.patching(number, batch)

    def units() -> Iterator[PatchUnit]:
        for batch in work.batches(lambda unit: state[unit.example, unit.step] != SweepState.SKIPPED, settings):
            pending = [unit for unit in batch if state[unit.example, unit.step] == SweepState.PENDING]
            # A batch is kept as a whole; one that is done in part was done one by one, because it could not be done together.
            for part in [batch] if len(pending) == len(batch) else [[unit] for unit in pending]:
                yield numbered(part)

    if resumed:
        progress.note(f"already finished: {plural(resumed, 'sweep')}; {total} to do")
    done, failures, strongest, finding = 0, [], StrongestHead(), ""
    progress.begin("patching", total, "sweep")
    queue = UnitQueue(units())

    def watch(unit: Unit, share: float) -> None:
        progress.at(done + len(failures) + len(batches[unit.number]) * share, unit.where)

    for answer in engine.answers(queue, watch):
        batch = batches.pop(answer.unit)
        steps = [unit.step for unit in batch]
        for text in answer.warnings:
            warn(text)
        for text in answer.notes:
            progress.note(text)
        if answer.error is None:
            store.finish(batch[0].example, steps, answer.sweeps, answer.seconds / len(batch))
            done += len(batch)
            for unit, sweep in zip(batch, answer.sweeps, strict=True):
                name = "pairs" if work.examples is None else f"step {work.steps[unit.step]}"
                finding = strongest.add(name, sweep.effect, sweep.noise_floor)
            progress.found(finding)
            if progress.enough():
                queue.drop()
        elif len(batch) > 1 and not answer.final:  # of one pair, as a metric that is equal in both runs: the others can be done
            queue.put_first([numbered([unit]) for unit in batch])
        else:
            failures += [f"{unit.where}: {answer.error}" for unit in batch]
            store.fail(batch[0].example, steps, answer.error)
    progress.end()
    return RunOutcome(folder, done, resumed, failures)
