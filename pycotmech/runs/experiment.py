"""The main job: make examples, grade them, patch every head at every step that the model gets right, keep the results.

`Settings` says what to do, `run` does it into a folder and can be stopped and started again at any moment. Each sweep is one
example at one step: the prompt up to a word of the solution, and its counterfactual.
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
import re
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

from pycotmech import __version__
from pycotmech.runs import Axes, PromptPair, Results, State, read_pairs
from pycotmech.runs.pairs import words_read
from pycotmech.runs.store import identity as stored_identity

if TYPE_CHECKING:
    from pycotmech.model import Model

EXAMPLES_FILE = "examples.jsonl"
DEFAULT_EXAMPLES = 10
DEFAULT_SHOTS = {"tiny-cot": 4}
"""Demonstrations in front, by model, where 8 is not right: tiny-cot was trained with up to 4."""

_TASK = ("examples", "steps", "shots", "hops", "style", "order", "ontology", "distractors")


@dataclass(frozen=True)
class Settings:
    """What a run does. None: the default of the task (examples 10, all steps, shots 8, hops 2, ...).

    pairs: a JSONL file of the user's own prompt pairs instead of the task; the fields of the task have no meaning then.
    positions: where heads are patched, negative from the end; None: everywhere.
    """

    model: str
    pairs: Path | None = None
    examples: int | None = None
    steps: tuple[int, ...] | None = None
    shots: int | None = None
    hops: int | None = None
    style: str | None = None
    order: str | None = None
    ontology: str | None = None
    distractors: int | None = None
    dtype: str = "auto"
    device: str = "cpu"
    seed: int = 0
    direction: str = "denoise"
    metric: str = "kl"
    positions: tuple[int, ...] | None = None
    memory_gb: float | None = None
    threads: int | None = None

    def check(self) -> None:
        """Raises ValueError, naming the setting, for what is wrong whatever the model may be."""
        for name, allowed in _choices().items():
            value = getattr(self, name)
            if value is not None and value not in allowed:
                raise ValueError(f"{name}: got {value!r}; expected one of {', '.join(allowed)}")
        for name, least in (("examples", 1), ("shots", 0), ("hops", 1), ("distractors", 0), ("threads", 1), ("seed", 0)):
            value = getattr(self, name)
            if value is not None and value < least:
                raise ValueError(f"{name}: got {value}; expected {least} or more")
        if self.memory_gb is not None and not self.memory_gb > 0:
            raise ValueError(f"memory_gb: got {self.memory_gb}; expected a positive number of gigabytes")
        if self.positions is not None and not self.positions:
            raise ValueError("positions: the list is empty; expected positions, or none for all")
        if self.pairs is not None:
            for name in _TASK:
                if getattr(self, name) is not None:
                    raise ValueError(f"{name}: has no meaning with pairs, which are prompts of their own")
        for step in self.steps or ():
            if not 0 <= step < self.n_steps:
                raise ValueError(f"steps: got {step}; expected 0..{self.n_steps - 1} for {self._hops} hops")
        if self.steps is not None and not self.steps:
            raise ValueError(f"steps: the list is empty; expected numbers in 0..{self.n_steps - 1}")

    @property
    def _hops(self) -> int:
        return 2 if self.hops is None else self.hops

    @property
    def n_steps(self) -> int:
        return 4 * self._hops + 2

    @property
    def chosen_steps(self) -> list[int]:
        return sorted(set(self.steps)) if self.steps is not None else list(range(self.n_steps))

    def task(self) -> dict[str, Any]:
        """Arguments of `cot.make_examples`, without n and the tokenizer."""
        from pycotmech.cot.task.wording import DEFAULT_ORDER

        style = self.style or "every"
        return {
            "hops": self._hops,
            "shots": DEFAULT_SHOTS.get(self.model, 8) if self.shots is None else self.shots,
            "ontology": self.ontology or "fictional",
            "style": style,
            "order": self.order or DEFAULT_ORDER.get(style),
            "distractors": self.distractors or 0,
            "seed": self.seed,
        }

    def identity(self) -> dict[str, Any]:
        """What two runs must agree on to share a results folder. Threads and memory change nothing beyond rounding."""
        out: dict[str, Any] = {"model": self.model, "dtype": self.dtype, "device": self.device}
        if self.pairs is not None:
            out["pairs"] = f"{self.pairs.name} (sha256 {_sha256(self.pairs.read_bytes())[:16]})"
            out["seed"] = self.seed
        else:
            out["examples"] = DEFAULT_EXAMPLES if self.examples is None else self.examples
            out |= {"steps": self.chosen_steps, **self.task()}
        out |= {"direction": self.direction, "metric": self.metric}
        out["positions"] = "all" if self.positions is None else list(self.positions)
        return {**out, "pycotmech": __version__}


@dataclass(frozen=True)
class Cell:
    """One sweep to do: an aligned pair of prompts. where: for messages."""

    clean: Any
    corrupted: Any
    answer: int | str | None
    wrong: int | str | None
    where: str


@dataclass(frozen=True)
class Work:
    """Everything there is to sweep: cells [examples][steps], their axes, and the examples as JSON lines."""

    cells: list[list[Cell]]
    names: list[str]
    steps: list[int]
    kinds: list[str]
    records: list[dict[str, Any]]
    examples: Any
    """The task's `cot.Examples`; None for pairs."""


@dataclass(frozen=True)
class Outcome:
    """What a run did. failures: sweeps that could not be done, with the reason; they stay pending."""

    folder: Path
    done: int
    resumed: int
    failures: list[str]


class Progress:
    """Told what happens; the shell shows it. Every method may be left as it is."""

    def note(self, text: str) -> None: ...

    def begin(self, what: str, total: int) -> None: ...

    def at(self, done: float, where: str) -> None: ...

    def end(self) -> None: ...


def run(settings: Settings, out: str | os.PathLike, *, progress: Progress | None = None) -> Outcome:
    """Does what the settings say and keeps it in the folder `out`; goes on where an earlier run of the same stopped.

    Raises ValueError, FileNotFoundError or PermissionError naming the setting, before the model is loaded where possible
    and before the first sweep otherwise. KeyboardInterrupt (also from SIGTERM if the caller arranges it) leaves everything
    finished in place.
    Cost: one forward pass per example, then one sweep (`patch_heads_each`) for the steps of an example that are right and have
    the same word replaced.
    """
    progress = progress or Progress()
    settings.check()
    pairs = None if settings.pairs is None else read_pairs(settings.pairs, metric=settings.metric)
    folder = writable(out)
    identity = settings.identity()
    _refuse_other_settings(folder, identity)

    from pycotmech.model import Model

    model = Model.from_pretrained(settings.model, dtype=settings.dtype, device=settings.device)
    with threads(settings.threads):
        work = pairs_work(model, pairs) if pairs is not None else task_work(model, settings)
        check_cells(model, work, settings)
        identity |= {"weights": fingerprint(model), "prompts": _prompts_digest(work)}
        _refuse_other_settings(folder, identity)
        results = _open(folder, work, model, identity, settings)
        try:
            return _sweep_all(model, work, results, settings, progress)
        finally:
            results.close()


def _choices() -> dict[str, tuple[str, ...]]:
    """The settings that are one of a few words."""
    from pycotmech.cot.task.vocabulary import Ontology
    from pycotmech.cot.task.wording import Order, Style
    from pycotmech.engine.metrics import MetricName
    from pycotmech.patching.heads import Direction

    words = {"direction": Direction, "metric": MetricName, "style": Style, "order": Order, "ontology": Ontology}
    dtypes = ("auto", "float32", "bfloat16", "float16", "float64")
    return {"dtype": dtypes, **{name: get_args(literal) for name, literal in words.items()}}


def writable(out: str | os.PathLike) -> Path:
    """The folder, made if it is not there. Raises OSError or ValueError where nothing can be written in it."""
    folder = Path(out).expanduser()
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"out: {folder} is a file; expected a folder")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise PermissionError(f"out: nothing can be written in {folder} ({error})") from error
    return folder


def task_work(model: Model, settings: Settings) -> Work:
    """The cells of the fictional-ontology task."""
    from pycotmech.cot import make_examples

    if model.tokenizer is None:
        raise ValueError(f"model: {model.name} has no tokenizer, so no examples can be made; give pairs of token ids")
    n = DEFAULT_EXAMPLES if settings.examples is None else settings.examples
    examples = make_examples(n, tokenizer=model.tokenizer, bos=model.prepend_bos, **settings.task())
    steps = settings.chosen_steps
    cells, records = [], []
    for example in examples:
        chosen = [example.steps[i] for i in steps]
        cells.append(
            [Cell(s.clean, s.corrupted, s.answer, s.wrong, f"example {example.index}, step {s.index}") for s in chosen]
        )
        record = {name: getattr(example, name) for name in ("question", "query", "chain", "label", "words", "prompt")}
        record |= {"full_text": example.full_text, "full_ids": example.full_ids.tolist()}
        records.append({"example": example.index, **record, "steps": [_step_record(s) for s in chosen]})
    kinds = [examples.kinds[i] for i in steps]
    return Work(cells, [str(e.index) for e in examples], steps, kinds, records, examples)


def pairs_work(model: Model, pairs: Sequence[PromptPair]) -> Work:
    """The cells of the user's own pairs: each pair is an example with one step."""
    cells, records = [], []
    for i, pair in enumerate(pairs):
        cells.append([Cell(pair.clean, pair.corrupted, pair.answer, pair.wrong, pair.where)])
        fields = ("name", "clean", "corrupted", "answer", "wrong")
        records.append({"example": i, **{name: getattr(pair, name) for name in fields}})
    return Work(cells, [p.name for p in pairs], [0], ["pair"], records, None)


def check_cells(model: Model, work: Work, settings: Settings) -> None:
    """Raises ValueError, saying where, for a pair that cannot be swept: before the first sweep, not after a hundred."""
    from pycotmech.model import resolve_positions
    from pycotmech.patching.pairs import make_pairs

    for cell in (cell for row in work.cells for cell in row):
        try:
            (pair,), _ = make_pairs(model, cell.clean, cell.corrupted, answer=cell.answer, wrong=cell.wrong, read=-1)
            if settings.positions is not None:
                reached = resolve_positions(settings.positions, len(pair.clean))
                if max(reached) < pair.first:
                    raise ValueError(
                        f"positions: {list(settings.positions)} all lie in front of position {pair.first}, where the "
                        "prompts first differ; patching there changes nothing"
                    )
        except ValueError as error:
            one = re.sub(r"\b(clean|corrupted|answer|wrong)\[0\]", r"\1", str(error))  # of one pair, not of a list
            raise ValueError(f"{cell.where}: {one}") from None


def fingerprint(model: Model) -> str:
    """A short hash of the weights: of every tensor's name, shape and first 4,096 values."""
    import torch

    digest = hashlib.sha256()
    for name, weight in model.hf.state_dict().items():
        head = weight.detach().flatten()[:4096].to("cpu", torch.float64)
        digest.update(f"{name}{tuple(weight.shape)}".encode() + head.numpy().tobytes())
    return digest.hexdigest()[:16]


def versions() -> dict[str, str]:
    """Of everything that could change a number."""
    import numpy
    import torch
    import transformers

    return {
        "pycotmech": __version__,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "numpy": numpy.__version__,
        "machine": platform.platform(),
    }


# ---- steps of the run ------------------------------------------------------------------------------------------------


def _open(folder: Path, work: Work, model: Model, identity: dict[str, Any], settings: Settings) -> Results:
    import torch

    from pycotmech.ops import describe

    if stored_identity(folder) is not None:
        return Results.resume(folder)
    about = {
        "model": {"name": model.name, "description": repr(model), "notes": list(model.notes)},
        "versions": versions(),
        "ops": {name: where[model.device.type if model.device.type == "cuda" else "cpu"] for name, where in describe().items()},
        "threads": torch.get_num_threads(),
        "settings": {k: str(v) if isinstance(v, Path) else v for k, v in vars(settings).items()},
        "created": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
    }
    lines = "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in work.records)
    _replace(folder / EXAMPLES_FILE, lines)
    axes = Axes(work.names, work.steps, work.kinds, model.cfg.n_layers, model.cfg.n_heads)
    return Results.create(folder, axes, identity=identity, about=json.loads(json.dumps(about)))


def _sweep_all(model: Model, work: Work, results: Results, settings: Settings, progress: Progress) -> Outcome:
    _grade(model, work, results, progress)
    state, graded = results.state(), results.graded()
    resumed = int((state == State.FINISHED).sum())
    todo = []
    for e, row in enumerate(work.cells):
        for s, cell in enumerate(row):
            if state[e, s] != State.PENDING:
                continue
            if work.examples is not None and graded[e, s] == 0:
                results.skip(e, s)
            else:
                todo.append((e, s, cell))
    if resumed:
        progress.note(f"{resumed} sweeps are finished already; {len(todo)} to do")
    done, failures = 0, []
    progress.begin("patching", len(todo))
    queue = _together(model, todo, settings)
    while queue:
        some = queue.pop(0)
        cells, finished = [cell for _, _, cell in some], done + len(failures)
        progress.at(finished, cells[-1].where)
        start = time.perf_counter()
        try:
            sweeps = _sweep(model, cells, settings, _part(progress, finished, len(cells), cells[-1].where))
        except ValueError as error:  # of one pair, as a metric that is equal in both runs: the others can be done
            if len(some) > 1:
                queue = [[one] for one in some] + queue
            else:
                failures.append(f"{cells[0].where}: {error}")
            continue
        seconds = (time.perf_counter() - start) / len(some)
        for (e, s, _), sweep in zip(some, sweeps, strict=True):
            results.finish(e, s, sweep, seconds)
        done += len(some)
    progress.end()
    return Outcome(results.folder, done, resumed, failures)


def _together(model: Model, todo: Sequence[Any], settings: Settings) -> list[list[Any]]:
    """What is swept together: cells of one example that one run answers. todo: (example, step, cell)."""
    from pycotmech.patching.pairs import make_pairs, targets_of
    from pycotmech.patching.shared_runs import shared_runs

    out = []
    for e in dict.fromkeys(e for e, _, _ in todo):
        mine = [entry for entry in todo if entry[0] == e]
        pairs = [
            make_pairs(model, cell.clean, cell.corrupted, answer=cell.answer, wrong=cell.wrong, read=-1)[0][0]
            for _, _, cell in mine
        ]
        runs = shared_runs(pairs, [targets_of(pair, settings.positions) for pair in pairs])
        out += [[mine[i] for i in run.readers] for run in runs]
    return out


def _sweep(model: Model, cells: Sequence[Cell], settings: Settings, progress: Callable[[int, int], None]) -> list[Any]:
    from pycotmech.patching import patch_heads_each

    return patch_heads_each(
        model, [cell.clean for cell in cells], [cell.corrupted for cell in cells],
        direction=settings.direction, positions=settings.positions, metric=settings.metric,
        **{name: [getattr(cell, name) for cell in cells] for name in words_read(settings.metric)},
        memory_gb=settings.memory_gb, seed=settings.seed, progress=progress,
    )  # fmt: skip


def _part(progress: Progress, finished: int, n: int, where: str) -> Callable[[int, int], None]:
    return lambda done, total: progress.at(finished + n * done / max(1, total), where)


def _grade(model: Model, work: Work, results: Results, progress: Progress) -> None:
    """Which steps the model gets right, one forward pass per example; for pairs, whether the answer is the likeliest token."""
    from pycotmech.patching.pairs import make_pairs

    todo = [e for e, row in enumerate(results.graded()) if (row < 0).all()]
    if work.examples is None:
        todo = [e for e in todo if work.cells[e][0].answer is not None]
    progress.begin("grading", len(todo))
    for i, e in enumerate(todo):
        progress.at(i, f"example {e}")
        if work.examples is None:
            cell = work.cells[e][0]
            (pair,), _ = make_pairs(model, cell.clean, cell.corrupted, answer=cell.answer, wrong=cell.wrong, read=-1)
            results.grade(e, [int(model.run(pair.clean, positions=-1).logits[0].argmax()) == pair.answer])  # type: ignore[union-attr]
        else:
            from pycotmech.cot import graded

            right = graded([work.examples[e]], lambda ids: model.run(ids).logits.argmax(-1)).right[0]  # type: ignore[union-attr]
            results.grade(e, [int(right[s]) for s in work.steps])
    progress.end()


def _refuse_other_settings(folder: Path, identity: Mapping[str, Any]) -> None:
    stored = stored_identity(folder)
    if stored is None:
        return
    names = [name for name in dict.fromkeys((*stored, *identity)) if name in identity or name not in ("weights", "prompts")]
    differ = [
        f"{name} was {_show(stored.get(name))}, now {_show(identity.get(name))}"
        for name in names
        if stored.get(name) != identity.get(name)
    ]
    if differ:
        raise ValueError(
            f"out: {folder} holds results of other settings: {'; '.join(differ)}. Give another folder, or the settings of "
            "these results to go on with them"
        )


def _show(value: Any) -> str:
    if value is None:
        return "not set"
    return ",".join(map(str, value)) if isinstance(value, list) else str(value)


def _step_record(step: Any) -> dict[str, Any]:
    words = ("kind", "prefix_text", "text", "corrupted_text", "answer", "answer_word", "wrong", "wrong_word")
    ids = {"clean": step.clean.tolist(), "corrupted": step.corrupted.tolist()}
    return {"step": step.index, **{name: getattr(step, name) for name in words}, **ids}


def _prompts_digest(work: Work) -> str:
    def plain(value: Any) -> Any:
        return value.tolist() if hasattr(value, "tolist") else value

    rows = [[plain(c.clean), plain(c.corrupted), c.answer, c.wrong] for row in work.cells for c in row]
    return _sha256(json.dumps(rows).encode())[:16]


def _sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def _replace(path: Path, text: str) -> None:
    """Writes a text file that is there whole or not at all."""
    temporary = path.with_name(f".{path.name}.new")
    temporary.write_text(text, "utf-8")
    temporary.replace(path)


class threads:
    """Sets torch's threads for a while."""

    def __init__(self, n: int | None) -> None:
        self.n = n

    def __enter__(self) -> None:
        import torch

        self.before = torch.get_num_threads()
        if self.n is not None:
            torch.set_num_threads(self.n)

    def __exit__(self, *_: object) -> None:
        import torch

        torch.set_num_threads(self.before)
