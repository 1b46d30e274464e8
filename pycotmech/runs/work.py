"""The sweeps that a run has to do, and which of them share a pass through the model."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from pycotmech.runs.controls import other_prompts
from pycotmech.runs.pairs import PromptPair
from pycotmech.runs.settings import Settings

if TYPE_CHECKING:
    from torch import Tensor

    from pycotmech.cot import Examples
    from pycotmech.cot.task.examples import Step
    from pycotmech.model import Model
    from pycotmech.patching.pairs import Pair


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

    units: [examples][steps]. names, steps, kinds: of the axes. records: the examples, for examples.jsonl. examples: those of
    the task; None for the user's pairs. others: of each unit the prompt that its random control takes activations from.
    """

    units: list[list[SweepUnit]]
    names: list[str]
    steps: list[int]
    kinds: list[str]
    records: list[dict[str, Any]]
    examples: Examples | None
    others: list[list[Tensor | None]]

    def digest(self) -> str:
        """A digest of all prompts and answers."""

        def plain(value: Any) -> Any:
            return value.tolist() if hasattr(value, "tolist") else value

        givens = [unit.given for row in self.units for unit in row]
        rows = [[plain(g.clean), plain(g.corrupted), g.answer, g.wrong] for g in givens]
        return hashlib.sha256(json.dumps(rows).encode()).hexdigest()[:16]

    def grade(self, model: Model, example: int) -> list[int] | None:
        """Whether the model gets each step of an example right; None for a pair without an answer. Cost: one forward pass."""
        if self.examples is not None:
            from pycotmech.cot import graded

            right = graded([self.examples[example]], lambda ids: model.run(ids).logits.argmax(-1)).right[0]  # type: ignore[union-attr]
            return [int(right[s]) for s in self.steps]
        pair = self.units[example][0].pair
        if pair.answer is None:
            return None
        return [int(model.run(pair.clean, positions=-1).logits[0].argmax()) == pair.answer]  # type: ignore[union-attr]

    def batches(self, wanted: Callable[[SweepUnit], bool], settings: Settings) -> Iterator[list[SweepUnit]]:
        """The wanted units, in groups that one run of the model answers. It is the same groups whatever is done already."""
        from pycotmech.patching.pairs import targets_of
        from pycotmech.patching.shared_runs import shared_runs

        for row in self.units:
            units = [unit for unit in row if wanted(unit)]
            pairs = [unit.pair for unit in units]
            for run in shared_runs(pairs, [targets_of(pair, settings.positions) for pair in pairs]):
                yield [units[i] for i in run.readers]


def work_of_task(model: Model, settings: Settings) -> SweepWork:
    """Makes the examples of the fictional-ontology task, each with the steps of the settings."""
    examples = make_examples(model, settings)
    units, records = [], []
    for e, example in enumerate(examples):
        steps = [example.steps[i] for i in settings.chosen_steps]
        where = [f"example {example.index}, step {step.index}" for step in steps]
        units.append([_unit(model, e, s, step, where[s], settings.positions) for s, step in enumerate(steps)])
        record = {name: getattr(example, name) for name in ("question", "query", "chain", "label", "words", "prompt")}
        record |= {"full_text": example.full_text, "full_ids": example.full_ids.tolist()}
        records.append({"example": example.index, **record, "steps": [_step_record(step) for step in steps]})
    kinds: list[str] = [examples.kinds[i] for i in settings.chosen_steps]
    others = other_prompts(units, settings.direction)
    return SweepWork(units, [str(e.index) for e in examples], settings.chosen_steps, kinds, records, examples, others)


def work_of_pairs(model: Model, pairs: Sequence[PromptPair], settings: Settings) -> SweepWork:
    """Takes each of the user's pairs as an example with one step."""
    units = [[_unit(model, i, 0, pair, pair.where, settings.positions)] for i, pair in enumerate(pairs)]
    fields = ("name", "clean", "corrupted", "answer", "wrong")
    records = [{"example": i, **{name: getattr(pair, name) for name in fields}} for i, pair in enumerate(pairs)]
    return SweepWork(
        units, [pair.name for pair in pairs], [0], ["pair"], records, None, other_prompts(units, settings.direction)
    )


def make_examples(model: Model, settings: Settings) -> Examples:
    """Makes the examples of the settings. Raises ValueError for a model without a tokenizer."""
    from pycotmech import cot

    if model.tokenizer is None:
        raise ValueError(f"model: {model.name} has no tokenizer, so no examples can be made; give pairs of token ids")
    return cot.make_examples(settings.n_examples, tokenizer=model.tokenizer, bos=model.prepend_bos, **settings.task())


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
