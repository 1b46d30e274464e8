"""Runs the analyses into a folder and saves each as soon as it is done, so that the same command continues an earlier run."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pycotmech.cost import DataSheet, device_named, speed_and_device
from pycotmech.cot.analyses.patch_steps import PatchSteps
from pycotmech.cot.tools.registry import Description
from pycotmech.display import Described, Facts
from pycotmech.files.write import subfolder
from pycotmech.paper import plan as planning
from pycotmech.paper.analyst import OPENER
from pycotmech.paper.claims import Claim, Verdict
from pycotmech.paper.entries import chosen
from pycotmech.paper.estimate import PaperEstimate, estimate
from pycotmech.paper.one_setting import (
    Prepared,
    SettingOutcome,
    finished,
    identity_of,
    prepare,
    stored,
    stored_facts,
    work_through,
)
from pycotmech.paper.settings import EASY, HARDER, HARDER_EXAMPLES, TaskSetting, entries_of_harder, named
from pycotmech.paper.settings_table import needs_of, plan_of_settings
from pycotmech.paper.summary import write_summary
from pycotmech.paper.views import keep_views
from pycotmech.runs.folder import checked_path, open_folder, opening, refuse_other_settings
from pycotmech.runs.progress import ProgressReporter
from pycotmech.runs.provenance import model_identity
from pycotmech.runs.settings import Settings, torch_threads
from pycotmech.runs.status import SETTINGS
from pycotmech.runs.workers import Engine, EngineChoice, open_engine, threads_of

if TYPE_CHECKING:
    from pycotmech.cot.tools.result import Analysis
    from pycotmech.model import Model

DEFAULT_EXAMPLES = 8
"""Number of examples if neither they nor minutes are given."""
_PILOT = 4
"""Number of examples from which the time of more is predicted."""


@dataclass(frozen=True)
class PaperOutcome(Described):
    """What a run of the paper's analyses did.

    results: analyses by name. verdicts: each claim with its verdict, from all results of the folder.
    resumed: names of analyses that were done before.
    failures: by name, why an analysis could not be done; those of a harder setting are named "setting: analysis".
    harder: outcomes of the harder settings by name, of this run and of earlier ones in this folder.
    expected: what the run would do and need, if it stopped after the plan.
    """

    folder: Path
    results: dict[str, Analysis]
    plan: planning.CostPlan
    verdicts: list[tuple[Claim, Verdict]]
    resumed: list[str]
    failures: dict[str, str]
    harder: dict[str, SettingOutcome] = field(default_factory=dict)
    expected: PaperEstimate | None = None

    def described(self) -> Facts:
        claims = {claim.text: f"{verdict.word}: {verdict.evidence}" for claim, verdict in self.verdicts}
        failed = {f"failed: {name}": why for name, why in self.failures.items()}
        facts = {"analyses": ", ".join(self.results) or "none", "claims": claims, **failed}
        return Facts(f"The paper's analyses in {self.folder}", facts, go_on=opening(self.folder))


def run(
    settings: Settings,
    out: str | os.PathLike,
    *,
    only: tuple[str, ...] | None = None,
    tasks: Sequence[str] = (EASY,),
    minutes: float | None = None,
    pilot: str | os.PathLike | None = None,
    progress: ProgressReporter | None = None,
    say: Callable[[str], None] | None = None,
    plan_only: bool = False,
    plan_for: str | None = None,
    verify: bool = False,
    accept_version: bool = False,
    engine: str | None = None,
    workers: int | None = None,
    ray_address: str | None = None,
) -> PaperOutcome:
    """Runs all analyses of the paper, or those in `only` and what they need, on the model and task of the settings.

    Writes into the folder `out`: data/<analysis>.zarr, tables/<analysis>.csv, figures/<analysis>.png (and further figures of an
    analysis as figures/<analysis>_<name>.png), summary.md and paper.json.
    An analysis that fails does not stop the others. It is named in `failures`, and the next run tries it again. Damaged data is
    computed again, and missing tables and figures are made again.

    tasks: names of settings of the task (`paper.settings.HARDER`); "easy" is that of `settings`, "all" stands for every
        setting, "none" for the easy one alone. A harder setting has 8 examples (or as many as the easy one, if fewer) and the
        analyses of E1, E5 and E8 that claims need. Its results go to settings/<name>/ in the same layout, and the summary
        compares all settings that are there. If a setting cannot be made, or the model gets nothing right in it, the summary
        says so and the others run.
    minutes: a time budget. If the settings give no number of examples, it is the largest even number whose predicted time, with
        all settings, fits; a folder that holds results keeps its number. None: 8 examples.
    pilot: another results folder, from which the plan predicts how many examples each claim needs; None: `out`, if it holds
        results.
    say: called with the plan before the first analysis starts, and with the findings of each analysis.
    plan_only: whether to stop after the plan and write nothing.
    plan_for: a GPU by name (`pycotmech.cost.DEVICES`) for which the plan's times are predicted, from its data sheet, with
        those of the authors' loops; only with plan_only. None: this machine, measured.
    verify: whether to read every weight for the model's digest even if it is known from the files' sizes and times.
    accept_version: whether to go on with results of other versions of pycotmech, PyTorch or transformers.
    engine, workers, ray_address: who does the analyses (`pycotmech.runs.workers.EngineChoice`). A unit of work is an analysis:
        those that need no other one run at once, and the longest decides how much several workers gain. With the same threads
        and memory the numbers are the same to the last bit.
    Raises ValueError, FileNotFoundError or PermissionError naming the setting, before the first analysis; BlockingIOError
    if another process writes to the folder.
    """
    settings.check()
    choice = EngineChoice(engine, workers, ray_address)
    choice.check()
    settings = replace(settings, controls=False)  # E1 has controls always; no other analysis has any
    if settings.pairs is not None:
        raise ValueError("pairs: the paper's analyses need the task; expected none")
    if minutes is not None and not minutes > 0:
        raise ValueError(f"minutes: got {minutes}; expected a positive number")
    if minutes is not None and settings.examples is not None:
        raise ValueError("minutes: chooses the number of examples, which is given as well; expected one of the two")
    if pilot is not None and not Path(pilot).is_dir():
        raise FileNotFoundError(f"pilot: there is no folder {os.fspath(pilot)}; expected the folder of an earlier run")
    if settings.examples is None and minutes is None:
        settings = replace(settings, examples=DEFAULT_EXAMPLES)
    if plan_for is not None and not plan_only:
        raise ValueError(f"plan_for: got {plan_for!r} for analyses that are run here; expected it with plan_only")
    planned = None if plan_for is None else device_named(plan_for, "plan_for")
    easy, harder = named(tasks)
    entries = chosen(only)
    asked = {None: entries if easy else []} | {s: [e for e in entries_of_harder() if e in entries] for s in harder}
    opened: AbstractContextManager[Path] = nullcontext(checked_path(out)) if plan_only else open_folder(out)
    with opened as folder:
        reporter, told = progress or ProgressReporter(), say or (lambda text: None)
        work = _Work(settings, folder, asked, minutes, pilot, reporter, told, choice, verify, accept_version, planned)
        return work.run(plan_only)


@dataclass
class _Work:
    """One call of `run`. asked: the analyses of each setting; the key None is the easy one, which comes first."""

    settings: Settings
    folder: Path
    asked: Mapping[TaskSetting | None, list[Description]]
    minutes: float | None
    pilot: str | os.PathLike | None
    progress: ProgressReporter
    say: Callable[[str], None]
    choice: EngineChoice
    verify: bool = False
    accept_version: bool = False
    device: DataSheet | None = None

    def _refuse(self, identity: Mapping[str, Any] | None, now: Mapping[str, Any]) -> None:
        refuse_other_settings(self.folder, identity, now, accept_version=self.accept_version)

    def run(self, plan_only: bool) -> PaperOutcome:
        from pycotmech.model import Model

        folder = self.folder
        identity = stored_facts(folder).get("identity")
        if self.settings.examples is None and identity is not None:
            self.settings = replace(self.settings, examples=identity["examples"])
        if self.settings.examples is not None:
            self._refuse(identity, self.settings.identity())
        s = self.settings
        model = Model.from_pretrained(s.model, dtype=s.dtype, device=s.device)
        threads = threads_of(self.choice, s)
        with torch_threads(s.threads if self.choice.engine == "serial" else threads):
            of_model = model_identity(model, verify=self.verify)
            forward, device = speed_and_device(model, self.device)
            make = partial(planning.make, model.cfg, device=device, flop_per_second=forward, authors=self.device is not None)
            if s.examples is None:
                self.settings = self._fitted(model, of_model, make)
                self._refuse(identity, self.settings.identity())
            easy = prepare(model, self.settings, of_model)
            self._refuse(identity, easy.identity)
            prepared, failed = self._prepared(model, of_model)
            plan = make(self.asked[None], easy.workload)
            plans = {k.name: make(self.asked[k], p.workload) for k, p in prepared.items()}
            self.say(str(easy.right))
            self.say(str(plan))
            if prepared or failed:
                tasks = {k.name: p.task for k, p in prepared.items()}
                self.say(plan_of_settings(easy.task, plan, tasks, plans, {k: o.failure for k, o in failed.items()}))
            pilot = stored(EASY, folder if self.pilot is None else Path(self.pilot), None, self.progress)
            if pilot is not None:
                self.say(needs_of(pilot.verdicts, easy.task.examples))
            how = {"engine": self.choice.engine, "workers": self.choice.n_workers(threads), "threads": threads}
            if plan_only:
                asked = {EASY: (self.asked[None], plan)} | {k.name: (self.asked[k], plans[k.name]) for k in prepared}
                places = {EASY: (folder, easy)} | {k.name: (folder / SETTINGS / k.name, p) for k, p in prepared.items()}
                done = {name: finished(place, its.identity) for name, (place, its) in places.items()}
                failures = {name: o.failure for name, o in failed.items()}
                return PaperOutcome(
                    folder, {}, plan, [], [], {}, expected=estimate(folder, model, asked, done, failures, **how)
                )
            seconds = {line.name: line.seconds for line in plan.lines}
            with self._engine(model, of_model) as engine:
                outcome = work_through(
                    model, EASY, easy, folder, self.asked[None], self.progress, self.say, seconds, self.accept_version, engine,
                    how,
                )  # fmt: skip
                found = dict(failed)
                write = lambda: self._write(folder, model, easy, plan, outcome, found)  # noqa: E731
                write()
                if isinstance(patched := outcome.results.get("patch_steps"), PatchSteps):
                    identity, memory_gb = easy.identity, self.settings.memory_gb
                    keep_views(folder, model, easy.examples, identity, patched, self.progress, memory_gb=memory_gb)
                for setting, its in prepared.items():
                    found[setting.name] = self._harder(model, setting, its, plans[setting.name], engine, how)
                    write()
            for setting in HARDER:
                if setting not in self.asked:
                    of = identity_of(setting.of(self.settings), of_model)
                    earlier = stored(
                        setting.name, folder / SETTINGS / setting.name, of, self.progress, accept_version=self.accept_version
                    )
                    found |= {} if earlier is None else {setting.name: earlier}
            found = {h.name: found[h.name] for h in HARDER if h.name in found}
            write()
        failures = dict(outcome.failures)
        failures |= {f"{name}: {a}": why for name, o in found.items() for a, why in o.failures.items()}
        return PaperOutcome(folder, outcome.done, plan, outcome.verdicts, outcome.resumed, failures, found)

    def _prepared(
        self, model: Model, of_model: Mapping[str, Any]
    ) -> tuple[dict[TaskSetting, Prepared], dict[str, SettingOutcome]]:
        """Returns the harder settings that can be made, and the outcomes of those that cannot."""
        prepared, failed = {}, {}
        for setting in self.asked:
            if setting is None:
                continue
            try:
                of = setting.of(self.settings)
                of.check()
                prepared[setting] = prepare(model, of, of_model)
            except ValueError as error:
                failed[setting.name] = SettingOutcome(setting.name, failure=str(error))
        return prepared, failed

    def _engine(self, model: Model, of_model: Mapping[str, str]) -> AbstractContextManager[Engine | None]:
        """The workers that do the analyses; None if this process does them."""
        if self.choice.engine == "serial":
            return nullcontext()
        s = self.settings
        return open_engine(self.choice, s, model, memory_gb=s.memory_gb, identity=of_model, opener=OPENER, alike=False)

    def _harder(
        self,
        model: Model,
        setting: TaskSetting,
        prepared: Prepared,
        plan: planning.CostPlan,
        engine: Engine | None,
        how: Mapping[str, Any],
    ) -> SettingOutcome:
        """Runs a harder setting in its folder."""
        try:
            with open_folder(subfolder(subfolder(self.folder, SETTINGS), setting.name)) as folder:
                self.say(f"setting {setting.name}: {setting.why}")
                found = work_through(
                    model, setting.name, prepared, folder, self.asked[setting], self.progress, self.say,
                    {line.name: line.seconds for line in plan.lines}, self.accept_version, engine, how,
                )  # fmt: skip
                self._write(folder, model, prepared, plan, found, {})
                return found
        except ValueError as error:  # its folder holds other results
            return SettingOutcome(setting.name, task=prepared.task, failure=str(error))

    def _write(
        self,
        folder: Path,
        model: Model,
        prepared: Prepared,
        plan: planning.CostPlan,
        outcome: SettingOutcome,
        harder: Mapping[str, SettingOutcome],
    ) -> None:
        write_summary(folder, model=model, right=prepared.right, plan=plan, outcome=outcome, harder=harder)

    def _fitted(self, model: Model, of_model: Mapping[str, Any], make: Callable[..., planning.CostPlan]) -> Settings:
        """Returns the settings with the largest even number of examples whose predicted time fits."""
        assert self.minutes is not None
        few = replace(self.settings, examples=_PILOT)
        pilot = prepare(model, few, of_model)
        fixed = 0.0
        for setting, entries in self.asked.items():
            if setting is not None:
                try:
                    prepared = prepare(model, setting.of(few), of_model)
                except ValueError:
                    continue
                sized = planning.for_examples(prepared.workload, HARDER_EXAMPLES, _PILOT)
                fixed += make(entries, sized).seconds

        def seconds(n: int) -> float:
            sized = planning.for_examples(pilot.workload, n, _PILOT)
            return fixed + make(self.asked[None], sized).seconds

        return replace(self.settings, examples=planning.most_examples(seconds, 60 * self.minutes))
