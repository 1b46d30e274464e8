"""Runs the analyses of traces into a folder, a plan first; the same command continues an earlier run.

The folder holds receiver_heads and chain_use over all traces, and for each trace a folder trace_000, ... with suppress,
early_answers and answer_paths: each as <name>.zarr, <name>.csv and <name>.png (and suppress_graph.png); traces.jsonl, what was
analysed; summary.md; events.jsonl; and trace.json, settings and costs. A result is written when it is complete, and is not
computed again. What a long analysis has finished, traces of those over all traces and batches of suppressed sentences, is kept
in <name>.parts until then, so that an interrupted run loses at most one trace's or batch's work.
"""

from __future__ import annotations

import json
import math
import os
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

from pycotmech._choices import check_choice
from pycotmech._words import plural
from pycotmech.display import Described, Facts
from pycotmech.files.arrays import DamagedData
from pycotmech.files.text import markdown
from pycotmech.files.whole import read_sealed, write_sealed
from pycotmech.files.write import subfolder, write_text
from pycotmech.runs.events import EventLog
from pycotmech.runs.folder import checked_path, open_folder, opening, refuse_other_settings
from pycotmech.runs.pair_files.choose import digest_of
from pycotmech.runs.progress import ProgressReporter
from pycotmech.runs.provenance import deciding_versions, facts_of, model_identity
from pycotmech.runs.settings import check_threads, torch_threads
from pycotmech.runs.show import show
from pycotmech.runs.status import TRACE
from pycotmech.traces.parts import Parts

if TYPE_CHECKING:
    from pycotmech.cot.tools.result import Analysis
    from pycotmech.model import Model
    from pycotmech.traces import Trace

_FORMS = (("prompt", "completion"), ("messages",), ("tokens", "sentences"))
"""What a line of a file of traces may have."""


_LINES = 5
"""Lines of which no trace can be made that are shown with the reason."""


@dataclass(frozen=True)
class TraceSettings:
    """What decides the results of a run. traces: a JSON Lines file, as `Trace.from_jsonl` reads it. cue: a text
    in the place of every trace's own cue. skip_unusable: whether lines of which no trace can be made are left out, which the
    plan says; otherwise they are an error. The others are options of
    `receiver_heads`, `suppress` and `is_chain_used`; threads and memory_gb change nothing beyond rounding."""

    model: str
    traces: Path
    splitter: str = "sentencex"
    cue: str | None = None
    definition: str = "rows_after"
    top: int = 20
    proximity: int = 4
    controls: int = 1
    skip_unusable: bool = False
    dtype: str = "auto"
    device: str = "cpu"
    seed: int = 0
    memory_gb: float | None = None
    threads: int | None = None

    def check(self) -> None:
        """Raises ValueError naming the setting, or the line of the file, for what is wrong with any model."""
        from pycotmech.model.arguments import check_integer, check_seed
        from pycotmech.traces.analyses.suppress import Definition
        from pycotmech.traces.reading import records
        from pycotmech.traces.splitting import SPLITTERS

        for name, allowed in (("splitter", SPLITTERS), ("definition", get_args(Definition))):
            check_choice(name, getattr(self, name), allowed)
        for name, least in (("top", 1), ("proximity", 1), ("controls", 0)):
            check_integer(getattr(self, name), name, least)
        check_seed(self.seed)
        if self.memory_gb is not None and not 0 < self.memory_gb < math.inf:
            raise ValueError(f"memory_gb: got {self.memory_gb}; expected a positive number of gigabytes")
        check_threads(self.threads)
        n, wrong = 0, (lambda number, why: None) if self.skip_unusable else None
        for n, (number, record) in enumerate(records(self.traces, wrong), 1):  # noqa: B007
            if not self.skip_unusable and not any(set(names) <= set(record) for names in _FORMS):
                raise ValueError(
                    f"traces: {self.traces}, line {number}: expected prompt and completion, messages, or tokens and sentences"
                )
        if not n:
            raise ValueError(f"traces: {self.traces} holds no trace; expected one JSON object a line")

    def identity(self) -> dict[str, Any]:
        """What two runs must agree on to share a folder."""
        found = {k: v for k, v in asdict(self).items() if k not in ("memory_gb", "threads", "traces")}
        return {**found, "traces": f"{self.traces.name} (sha256 {digest_of(self.traces)[:16]})", **deciding_versions()}


@dataclass(frozen=True)
class TracePlan(Described):
    """What a run costs: token-forwards by analysis, and how many of these are done in a second here, on average.

    units: token-forwards by result, "receiver_heads" or "trace_000/suppress"; times: their seconds, predicted from the sizes
    and from short measurements (`pycotmech.cost`), without figures. left_out: what these traces do not allow, and why.
    """

    traces: int
    tokens: int
    sentences: int
    forwards: dict[str, float]
    speed: float
    units: dict[str, float] = field(default_factory=dict)
    left_out: list[str] = field(default_factory=list)
    times: dict[str, float] = field(default_factory=dict)

    @property
    def seconds(self) -> float:
        return sum(map(self.seconds_of, self.forwards))

    def seconds_of(self, analysis: str) -> float:
        """Of one analysis, over all traces."""
        if not self.times:
            return self.forwards[analysis] / self.speed
        return float(sum(seconds for unit, seconds in self.times.items() if unit.rpartition("/")[2] == analysis))

    def __str__(self) -> str:
        lines = [f"{plural(self.traces, 'trace')}, {self.tokens:,} tokens, {self.sentences} sentences"]
        for name, n in self.forwards.items():
            if n == 0:
                continue
            lines.append(f"  {name:<16} {n:>12,.0f} token-forwards, about {_duration(self.seconds_of(name))}")
        lines.append(f"  {'in all':<16} {sum(self.forwards.values()):>12,.0f} token-forwards, about {_duration(self.seconds)}")
        return "\n".join([*lines, *(f"  left out: {line}" for line in self.left_out)])


@dataclass
class TraceOutcome(Described):
    """What a run did. results: by name, "receiver_heads" or "trace_000/suppress"; resumed: those that were there; failures:
    why an analysis could not be made."""

    folder: Path
    plan: TracePlan
    results: dict[str, Analysis] = field(default_factory=dict)
    resumed: list[str] = field(default_factory=list)
    failures: dict[str, str] = field(default_factory=dict)

    def described(self) -> Facts:
        found = {name: "; ".join(result.findings()[:2]) for name, result in self.results.items()}
        failed = {f"failed: {name}": why for name, why in self.failures.items()}
        return Facts(f"Traces in {self.folder}", {**found, **failed}, go_on=opening(self.folder))


def run_traces(
    settings: TraceSettings,
    out: str | os.PathLike,
    *,
    plan_only: bool = False,
    progress: ProgressReporter | None = None,
    say: Callable[[str], None] | None = None,
) -> TraceOutcome:
    """Runs all analyses of the traces in a file, and saves each as soon as it is made.

    plan_only: whether to stop after the plan and write nothing. say: called with the plan, and with the findings of each.
    Raises ValueError, FileNotFoundError or PermissionError naming the setting, before anything is analysed.
    """
    from pycotmech.model import Model
    from pycotmech.traces import Trace

    say, reporter = say or (lambda text: None), progress or ProgressReporter()
    if not settings.traces.is_file():
        raise FileNotFoundError(f"traces: there is no file {settings.traces}; expected a JSON Lines file of traces")
    settings.check()
    folder = checked_path(out)
    stored = _stored(folder)
    refuse_other_settings(folder, stored, settings.identity())
    model = Model.from_pretrained(settings.model, dtype=settings.dtype, device=settings.device)
    with torch_threads(settings.threads):
        unusable: list[tuple[int, str]] = []
        skip = (lambda number, why: unusable.append((number, why))) if settings.skip_unusable else None
        traces = Trace.from_jsonl(model, settings.traces, splitter=settings.splitter, skip=skip)
        if settings.cue is not None:
            traces = [t if t.answer is None else t.with_cue(model, settings.cue) for t in traces]
        identity = json.loads(json.dumps(settings.identity() | model_identity(model)))
        refuse_other_settings(folder, stored, identity)
        plan = plan_of(model, traces, settings)
        plan.left_out[:0] = _unusable(unusable)
        say(str(plan))
        if plan_only:
            return TraceOutcome(folder, plan)
        with open_folder(folder) as opened:
            job = _Run(model, traces, settings, identity, opened, reporter, say, TraceOutcome(opened, plan))
            return job.run()


def plan_of(model: Model, traces: list[Trace], settings: TraceSettings) -> TracePlan:
    """Predicts what the analyses cost, from their sizes and some seconds of measurements at the model's shapes."""
    from pycotmech.cost import speed_and_device
    from pycotmech.runs.trace_cost import demands

    found = demands(model.cfg, traces, proximity=settings.proximity, controls=settings.controls)
    _, device = speed_and_device(model)
    units = {unit: demand.token_forwards(model.cfg) for unit, demand in found.items()}
    times = {unit: device.seconds(model.cfg, demand) for unit, demand in found.items()}
    forwards = {
        name: float(sum(n for unit, n in units.items() if unit.rpartition("/")[2] == name))
        for name in ("receiver_heads", "suppress", "early_answers", "answer_paths", "chain_use")
    }
    speed = sum(units.values()) / max(sum(times.values()), 1e-9)
    tokens, sentences = sum(map(len, traces)), sum(t.n_sentences for t in traces)
    return TracePlan(len(traces), tokens, sentences, forwards, speed, units, _left_out(traces, settings), times)


def _unusable(lines: list[tuple[int, str]]) -> list[str]:
    """Lines of the file of which no trace can be made: the first of them with the reason, of the others the numbers."""
    shown = [f"line {number} of the file: {why}" for number, why in lines[:_LINES]]
    more = ", ".join(str(number) for number, _ in lines[_LINES : 10 * _LINES])
    if len(lines) > _LINES:
        rest = len(lines) - _LINES
        shown.append(f"{plural(rest, 'more line')} of the file: {more}{' and others' if rest > 9 * _LINES else ''}")
    return shown


def _left_out(traces: list[Trace], settings: TraceSettings) -> list[str]:
    """The analyses that these traces do not allow, with the reason and the way out."""
    from pycotmech.traces.analyses.receiver_heads import FEWEST

    out = []
    longest, needed = max(t.n_sentences for t in traces), settings.proximity + FEWEST
    if longest < needed:
        lower = f", or --proximity {longest - FEWEST}" if longest > FEWEST else ""
        out.append(
            f"receiver_heads, as the longest trace has {longest} sentences; at proximity {settings.proximity} it takes a trace "
            f"of {needed}{lower}"
        )
    without = [t.title for t in traces if t.answer is None]
    if without:
        named = ", ".join(without[:3]) + (f" and {len(without) - 3} more" if len(without) > 3 else "")
        out.append(
            f"early_answers and answer_paths of {named}, without an answer; one is found after \\boxed, ####, 'answer is' or "
            "'answer:', or is given in the field answer"
        )
    if len(traces) - len(without) < 2:
        out.append(f"chain_use, which compares traces: it takes two with answers, and there are {len(traces) - len(without)}")
    return out


@dataclass
class _Run:
    model: Model
    traces: list[Trace]
    settings: TraceSettings
    identity: dict[str, Any]
    folder: Path
    progress: ProgressReporter
    say: Callable[[str], None]
    outcome: TraceOutcome
    costs: dict[str, float] = field(default_factory=dict)
    facts: dict[str, Any] = field(default_factory=dict)

    @property
    def log(self) -> EventLog:
        return EventLog(self.folder)

    def run(self) -> TraceOutcome:
        from pycotmech import traces as t

        s = self.settings
        common: dict[str, Any] = {"memory_gb": s.memory_gb}
        definition: Any = s.definition  # a `Definition`, as the settings have checked
        before, plan = _about(self.folder), self.outcome.plan
        self.costs |= before.get("seconds", {})
        work = {"token_forwards": plan.units, "left_out": plan.left_out, "memory_gb": s.memory_gb}
        self.facts |= facts_of(self.model, vars(s), plan=work)
        self.facts["created"] = before.get("created", self.facts["created"])
        self.facts["prompts"] = digest_of(s.traces)
        self._write_about()
        self.log.begin("resume" if before else "start", "trace", versions=self.facts["versions"])
        self.log.write("plan", units={name: round(seconds, 6) for name, seconds in plan.times.items()})
        lines = "".join(json.dumps(trace.to_record()) + "\n" for trace in self.traces)
        write_text(self.folder / "traces.jsonl", lines)
        if "receiver_heads" in plan.units:
            self._make(
                "", t.ReceiverHeads,
                lambda at, parts: t.receiver_heads(
                    self.model, self.traces, top=s.top, proximity=s.proximity, seed=s.seed, progress=at, parts=parts
                ),
            )  # fmt: skip
        pairs = []
        for i, trace in enumerate(self.traces):
            where = f"trace_{i:03d}"
            cut = self._make(
                where, t.Suppression,
                lambda at, parts, trace=trace: t.suppress(
                    self.model, trace, definition=definition, controls=s.controls, seed=s.seed, progress=at, parts=parts,
                    **common,
                ),
            )  # fmt: skip
            if trace.answer is None:
                continue
            early = self._make(
                where, t.EarlyAnswers, lambda at, _, trace=trace: t.early_answers(self.model, trace, progress=at, **common)
            )
            self._make(where, t.AnswerPaths, lambda at, _, trace=trace: t.answer_paths(self.model, trace, **common))
            if cut is not None and early is not None:
                pairs.append((trace, cut, early))
        if len(pairs) > 1 and "chain_use" in plan.units:
            self._make(
                "", t.ChainUse,
                lambda at, parts: t.is_chain_used(
                    self.model, [p[0] for p in pairs], controls=s.controls, seed=s.seed, progress=at,
                    done=[p[1:] for p in pairs], parts=parts, **common,
                ),
            )  # fmt: skip
        elif "chain_use" in plan.units:
            self._failed("chain_use", "it takes suppress and early_answers of two traces, and these were not made")
        self._write_summary()
        return self.outcome

    def _make(self, where: str, kind: Any, make: Callable[[Callable[[float, float], None], Parts], Analysis]) -> Any:
        """Reads a result, or makes it and saves it; None if it cannot be made, for which the reason is kept. What a long
        analysis has finished is kept in <name>.parts until its result is there."""
        name = f"{where}/{kind.name}" if where else kind.name
        try:
            found = kind.load(self.folder / where)
            if found.about.get("identity") == self.identity:
                self.outcome.results[name] = found
                self.outcome.resumed.append(name)
                place = self._place(where)
                show(found, place, place, damaged_only=True)
                return found
        except (FileNotFoundError, DamagedData):
            pass
        start = time.perf_counter()
        self.progress.begin(name, 1)
        place = self._place(where)
        with Parts(place / f"{kind.name}.parts", self.identity) as parts:
            try:
                found = make(lambda done, total: self.progress.at(done / max(total, 1)), parts)
            except (ValueError, NotImplementedError) as error:  # of this analysis: the others can be made
                self._failed(name, str(error))
                return None
            finally:
                self.progress.end()
            self.costs[name] = time.perf_counter() - start
            if self.progress.shows and (findings := found.findings()):
                self.progress.found(f"{name}: {findings[0]}")
            show(found, place, place)
            # The data last and in one move: a result that is found is complete.
            replace(found, about={**found.about, "identity": self.identity}).save(place)
        self.log.write("finished", unit=name, seconds=round(self.costs[name], 6))
        self.outcome.results[name] = found
        self._write_about()
        self.say(str(found))
        return found

    def _place(self, where: str) -> Path:
        return subfolder(self.folder, where) if where else self.folder

    def _failed(self, name: str, why: str) -> None:
        self.outcome.failures[name] = why
        self.log.write("failed", unit=name, why=why)

    def _write_about(self) -> None:
        write_sealed(self.folder / TRACE, {"identity": self.identity, **self.facts, "seconds": self.costs})

    def _write_summary(self) -> None:
        parts = [f"# Traces of {markdown(self.model.name)}", "", *(f"* {markdown(note)}" for note in self.model.notes), ""]
        parts += ["```", str(self.outcome.plan), "```", ""]
        for name in ("chain_use", "receiver_heads"):
            if name in self.outcome.results:
                found = self.outcome.results[name]
                parts += [f"## {found.title}", "", f"![]({name}.png)", ""]
                parts += [f"* {markdown(line)}" for line in found.findings()] + [""]
        for i, trace in enumerate(self.traces):
            parts += [f"## {markdown(trace.title)}", "", markdown(str(trace)), ""]
            for name in ("suppress", "early_answers", "answer_paths"):
                found = self.outcome.results.get(f"trace_{i:03d}/{name}")
                if found is not None:
                    parts += [f"### {found.title}", ""]
                    for figure in (name, *(f"{name}_{more}" for more in found.figures())):
                        parts += [f"![](trace_{i:03d}/{figure}.png)", ""]
                    parts += [f"* {markdown(line)}" for line in found.findings()] + [""]
        if self.outcome.plan.left_out:
            parts += ["## Left out", "", *(f"* {markdown(line)}" for line in self.outcome.plan.left_out), ""]
        if self.outcome.failures:
            parts += ["## Not made", "", *(f"* {name}: {markdown(why)}" for name, why in self.outcome.failures.items()), ""]
        write_text(self.folder / "summary.md", "\n".join(parts))


def _about(folder: Path) -> dict[str, Any]:
    try:
        return read_sealed(folder / TRACE)
    except FileNotFoundError:
        return {}
    except ValueError as error:
        raise ValueError(f"out: {folder / TRACE} cannot be read ({error}). Give another folder") from error


def _stored(folder: Path) -> dict[str, Any] | None:
    return _about(folder).get("identity")


def _duration(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 120 else f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"
