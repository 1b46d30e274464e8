"""The main job: make examples, grade them, patch every head at every step that the model gets right, keep the results.

`run` does what its settings say into a folder and can be stopped and started again at any moment. Each sweep is one example
at one step: the prompt up to a word of the solution, and its counterfactual.
"""

from __future__ import annotations

import json
import os
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from pycotmech.files.write import write_text
from pycotmech.runs.folder import open_folder, refuse_other_settings
from pycotmech.runs.pairs import read_pairs, words_read
from pycotmech.runs.progress import ProgressReporter
from pycotmech.runs.provenance import facts_of, model_identity
from pycotmech.runs.settings import Settings, torch_threads
from pycotmech.runs.store import ResultAxes, SweepState, SweepStore, stored_identity
from pycotmech.runs.work import SweepUnit, SweepWork, work_of_pairs, work_of_task

if TYPE_CHECKING:
    from pycotmech.model import Model

EXAMPLES_FILE = "examples.jsonl"


@dataclass(frozen=True)
class RunOutcome:
    """What a run did. failures: sweeps that could not be done, with the reason; they stay pending."""

    folder: Path
    done: int
    resumed: int
    failures: list[str]


def run(
    settings: Settings,
    out: str | os.PathLike,
    *,
    verify: bool = False,
    accept_version: bool = False,
    progress: ProgressReporter | None = None,
) -> RunOutcome:
    """Does what the settings say, keeps it in the folder `out`, and goes on where an earlier run of the same stopped.

    verify: whether to read every weight for the model's digest even if it is known from the files' sizes and times.
    accept_version: whether to go on with results of other versions of pycotmech, PyTorch or transformers.

    Raises ValueError, FileNotFoundError or PermissionError naming the setting, before the model is loaded where possible
    and before the first sweep otherwise; BlockingIOError where another process writes to the folder. KeyboardInterrupt (also
    from SIGTERM if the caller arranges it) leaves everything finished in place.
    Cost: one forward pass per example, then one sweep (`patch_heads_each`) for the steps of an example that are right and have
    the same word replaced. Controls (`Settings.controls`) add about a tenth: a random control of 6 % of the heads and the run
    of the next example's prompt, and the sham position.
    """
    progress = progress or ProgressReporter()
    settings.check()
    pairs = None if settings.pairs is None else read_pairs(settings.pairs, metric=settings.metric)
    with open_folder(out) as folder:
        stored, identity = stored_identity(folder), settings.identity()
        refuse_other_settings(folder, stored, identity, accept_version=accept_version)

        from pycotmech.model import Model

        model = Model.from_pretrained(settings.model, dtype=settings.dtype, device=settings.device)
        with torch_threads(settings.threads):
            work = work_of_task(model, settings) if pairs is None else work_of_pairs(model, pairs, settings)
            identity |= {**model_identity(model, verify=verify), "prompts": work.digest()}
            accepted = refuse_other_settings(folder, stored, identity, accept_version=accept_version)
            if not (folder / EXAMPLES_FILE).is_file():
                lines = "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in work.records)
                write_text(folder / EXAMPLES_FILE, lines)
            store = SweepStore.resume(folder) if stored is not None else _new_store(folder, work, model, identity, settings)
            if accepted:
                store.events.write("accepted", versions=accepted)
            _grade(model, work, store, progress)
            return _sweep(model, work, store, folder, settings, progress)


def _new_store(folder: Path, work: SweepWork, model: Model, identity: dict[str, Any], settings: Settings) -> SweepStore:
    passes = list(work.batches(lambda unit: True, settings))
    plan = {"units": sum(map(len, passes)), "passes": len(passes), "memory_gb": settings.memory_gb}
    about = facts_of(model, vars(settings), plan=plan)
    axes = ResultAxes(work.names, work.steps, work.kinds, model.cfg.n_layers, model.cfg.n_heads)
    return SweepStore.create(folder, axes, identity=identity, about=about)


def _grade(model: Model, work: SweepWork, store: SweepStore, progress: ProgressReporter) -> None:
    """Keeps which steps the model gets right, and skips the others. Of a pair: whether the answer is the likeliest token."""
    todo = [e for e, row in enumerate(store.graded()) if (row < 0).all()]
    progress.begin("grading", len(todo), "example")
    for i, example in enumerate(todo):
        progress.at(i, f"example {example}")
        right = work.grade(model, example)
        if right is not None:
            store.grade(example, right)
    progress.end()
    if work.examples is not None:
        for example, step in np.argwhere((store.graded() == 0) & (store.state() == SweepState.PENDING)):
            store.skip(int(example), int(step))


def _sweep(
    model: Model, work: SweepWork, store: SweepStore, folder: Path, settings: Settings, progress: ProgressReporter
) -> RunOutcome:
    state = store.state()
    resumed, total = int((state == SweepState.FINISHED).sum()), int((state == SweepState.PENDING).sum())
    queue: list[list[SweepUnit]] = []
    for batch in work.batches(lambda unit: state[unit.example, unit.step] != SweepState.SKIPPED, settings):
        pending = [unit for unit in batch if state[unit.example, unit.step] == SweepState.PENDING]
        # A batch is kept as a whole; one that is done in part was done one by one, because it could not be done together.
        queue += [batch] if len(pending) == len(batch) else [[unit] for unit in pending]
    if resumed:
        progress.note(f"{resumed} sweeps are finished already; {total} to do")
    done, failures = 0, []
    progress.begin("patching", total, "sweep")
    while queue:
        batch = queue.pop(0)
        start = time.perf_counter()
        try:
            sweeps = _patched(model, work, batch, settings, progress, done + len(failures))
        except ValueError as error:  # of one pair, as a metric that is equal in both runs: the others can be done
            if len(batch) > 1:
                queue[:0] = [[unit] for unit in batch]
            else:
                failures.append(f"{batch[0].where}: {error}")
                store.fail(batch[0].example, [batch[0].step], str(error))
            continue
        seconds = (time.perf_counter() - start) / len(batch)
        store.finish(batch[0].example, [unit.step for unit in batch], sweeps, seconds)
        done += len(batch)
    progress.end()
    return RunOutcome(folder, done, resumed, failures)


def _patched(
    model: Model, work: SweepWork, batch: list[SweepUnit], settings: Settings, progress: ProgressReporter, before: int
) -> list[Any]:
    """The sweeps of a batch. before: how many sweeps were done before it, for the progress."""
    from pycotmech.patching import patch_heads_each
    from pycotmech.patching.controls import control_arguments

    where, pairs = batch[-1].where, [unit.pair for unit in batch]
    progress.at(before, where)
    return patch_heads_each(
        model, [pair.clean for pair in pairs], [pair.corrupted for pair in pairs],
        direction=settings.direction, positions=settings.positions, metric=settings.metric,  # type: ignore[arg-type]
        **{name: [getattr(pair, name) for pair in pairs] for name in words_read(settings.metric)},
        memory_gb=settings.memory_gb, seed=settings.seed,
        **(control_arguments([work.others[unit.example][unit.step] for unit in batch]) if settings.controls else {}),
        progress=lambda done, total: progress.at(before + len(batch) * done / max(1, total), where),
    )  # fmt: skip
