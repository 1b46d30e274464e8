"""The sweeps that a run has to do, and which of them share a pass through the model."""

from __future__ import annotations

import hashlib
import itertools
import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from pycotmech.runs.controls import are_others_after, other_prompts
from pycotmech.runs.pairs import PromptPair
from pycotmech.runs.settings import Points, Settings
from pycotmech.runs.workers.units import GradeUnit, PatchUnit

if TYPE_CHECKING:
    from torch import Tensor

    from pycotmech.cot import Examples
    from pycotmech.cot.task.examples import Step
    from pycotmech.model import Model
    from pycotmech.patching.pairs import Pair


EXAMPLES_FILE = "examples.jsonl"
"""The file of a folder with a record of each example or pair."""

_FOLLOWING = 8
"""How many examples after a part are looked at first for one with prompts of the same length."""


@dataclass(frozen=True)
class SweepUnit:
    """One sweep to do. example, step: its place on the axes. given: the prompts as they came; pair: the same, aligned."""

    example: int
    step: int
    given: PromptPair | Step
    pair: Pair
    where: str


@dataclass(frozen=True)
class SweepWork:
    """All sweeps of a run.

    units: [examples][steps]. names, steps, kinds: of the axes. examples: those of the task; None for the user's pairs. others:
    of each unit the prompt that its random control takes activations from. first: the number of the first example among those
    of which these are a part.
    """

    units: list[list[SweepUnit]]
    names: list[str]
    steps: list[int]
    kinds: list[str]
    examples: Examples | None
    others: list[list[Tensor | None]]
    first: int = 0

    def records(self) -> Iterator[dict[str, Any]]:
        """Yields the examples one by one, as lines of examples.jsonl."""
        if self.examples is None:
            fields = ("name", "clean", "corrupted", "answer", "wrong")
            for i, (unit,) in enumerate(self.units):
                yield {"example": self.first + i, **{name: getattr(unit.given, name) for name in fields}}
            return
        for example in self.examples:
            record = {name: getattr(example, name) for name in ("question", "query", "chain", "label", "words", "prompt")}
            record |= {"full_text": example.full_text, "full_ids": example.full_ids.tolist()}
            steps = [_step_record(example.steps[i]) for i in self.steps]
            yield {"example": example.index, **record, "steps": steps}

    def digest(self) -> str:
        """A digest of all prompts and answers."""
        return prompts_digest(self.records())

    def grading(self, number: int, example: int) -> GradeUnit | None:
        """Returns what grades an example: of the task, whether every token of each step's word is the likeliest one. None for a
        pair without an answer."""
        row = self.units[example]
        where = f"example {self.names[example]}"
        if self.examples is not None:
            item = self.examples[example]
            ids = item.full_ids.tolist()
            spans = [item.steps[s].answer_span for s in self.steps]
            targets = tuple(tuple((p - 1, ids[p]) for p in range(span.start, span.stop)) for span in spans)
            return GradeUnit(number, item.full_ids.numpy(), None, targets, where)
        pair = row[0].pair
        if pair.answer is None:
            return None
        return GradeUnit(number, pair.clean.numpy(), -1, (((0, pair.answer),),), row[0].where)

    def patching(self, number: int, batch: Sequence[SweepUnit]) -> PatchUnit:
        """Returns what a worker needs of sweeps that one run answers."""
        others = [self.others[unit.example][unit.step] for unit in batch]
        return PatchUnit.of(number, [unit.pair for unit in batch], batch[-1].where, others)

    def batches(self, wanted: Callable[[SweepUnit], bool], settings: Settings) -> Iterator[list[SweepUnit]]:
        """The wanted units, in groups that one run of the model answers. It is the same groups whatever is done already."""
        from pycotmech.patching.pairs import targets_of
        from pycotmech.patching.shared_runs import shared_runs

        for row in self.units:
            units = [unit for unit in row if wanted(unit)]
            pairs = [unit.pair for unit in units]
            for run in shared_runs(pairs, [targets_of(pair, settings.positions) for pair in pairs]):
                yield [units[i] for i in run.readers]


def prompts_digest(records: Iterable[Mapping[str, Any]]) -> str:
    """A digest of the prompts and answers of records, as `SweepWork` has them and examples.jsonl holds them."""
    steps = itertools.chain.from_iterable(record.get("steps", [record]) for record in records)
    digest = hashlib.sha256(b"[")
    for i, step in enumerate(steps):
        row = json.dumps([step[name] for name in ("clean", "corrupted", "answer", "wrong")])
        digest.update(f"{', ' if i else ''}{row}".encode())
    digest.update(b"]")
    return digest.hexdigest()[:16]


def work_of_task(model: Model, settings: Settings) -> SweepWork:
    """Makes the examples of the fictional-ontology task, each with the steps of the settings."""

    def rows(of: Examples) -> list[list[SweepUnit]]:
        out = []
        for e, example in enumerate(of):
            steps = [example.steps[i] for i in settings.chosen_steps]
            where = [f"example {example.index}, step {step.index}" for step in steps]
            out.append([_unit(model, e, s, step, where[s], settings.positions) for s, step in enumerate(steps)])
        return out

    more = _FOLLOWING
    while True:
        examples, following = _with_following(model, settings, more)
        units = rows(examples)
        listed, n = [*units, *rows(following)], len(units)
        if len(listed) == settings.n_examples or are_others_after(listed, n, settings.direction):
            break
        more *= 8  # of an example's length there is none so soon, in the whole run either
    kinds: list[str] = [examples.kinds[i] for i in settings.chosen_steps]
    others = other_prompts(listed, settings.direction)[:n]
    names = [str(e.index) for e in examples]
    return SweepWork(units, names, settings.chosen_steps, kinds, examples, others, examples[0].index)


def work_of_pairs(model: Model, pairs: Sequence[PromptPair], settings: Settings) -> SweepWork:
    """Takes each of the user's pairs as an example with one step. Of settings with points, only those pairs."""
    first, stop = (0, len(pairs)) if settings.points is None else (settings.points.start, settings.points.stop or len(pairs))
    rows = [[_unit(model, i - first, 0, pair, pair.where, settings.positions)] for i, pair in enumerate(pairs)]
    others = other_prompts(rows, settings.direction)[first:stop]
    return SweepWork(rows[first:stop], [pair.name for pair in pairs[first:stop]], [0], ["pair"], None, others, first)


def _with_following(model: Model, settings: Settings, more: int) -> tuple[Examples, Examples]:
    """The examples of the settings, and so many more that follow them in the whole run (the first ones follow the last), from
    which controls of a part take activations as in the whole run."""
    if settings.points is None:
        examples = make_examples(model, settings)
        return examples, examples[:0]
    start, stop = settings.points.start, settings.points.stop or settings.n_examples
    made = make_examples(model, replace(settings, points=Points(0, min(settings.n_examples, stop + more))))
    after = [*made[stop:], *made[: min(start, stop + more - len(made))]]
    return made[start:stop], made.only(after)


def make_examples(model: Model, settings: Settings) -> Examples:
    """Makes the examples of the settings; of settings with points, only those. Raises ValueError for a model without a
    tokenizer."""
    from pycotmech import cot

    if model.tokenizer is None:
        raise ValueError(f"model: {model.name} has no tokenizer, so no examples can be made; give pairs of token ids")
    points = settings.points or Points()
    n = settings.n_examples if points.stop is None else points.stop
    bos = model.prepend_bos if settings.template is None else None  # a chat template writes its own, or none
    # Those before the first are made too, since each depends on the ones before it.
    return cot.make_examples(n, tokenizer=model.tokenizer, bos=bos, **settings.task())[points.start :]


def _unit(
    model: Model, example: int, step: int, given: PromptPair | Step, where: str, positions: Sequence[int] | None
) -> SweepUnit:
    """Raises ValueError, saying where, for a pair that cannot be swept: before the first sweep, not after a hundred."""
    from pycotmech.patching.pairs import make_pairs, targets_of

    try:
        (pair,), _ = make_pairs(model, given.clean, given.corrupted, answer=given.answer, wrong=given.wrong, read=-1)
        targets_of(pair, positions)
    except ValueError as error:
        message = re.sub(r"\b(clean|corrupted|answer|wrong)\[0\]", r"\1", str(error))  # of one pair, not of a list
        raise ValueError(f"{where}: {message}") from None
    return SweepUnit(example, step, given, pair, where)


def _step_record(step: Step) -> dict[str, Any]:
    words = ("kind", "prefix_text", "text", "corrupted_text", "answer", "answer_word", "wrong", "wrong_word")
    ids = {"clean": step.clean.tolist(), "corrupted": step.corrupted.tolist()}
    return {"step": step.index, **{name: getattr(step, name) for name in words}, **ids}
