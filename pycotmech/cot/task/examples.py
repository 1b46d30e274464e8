"""Examples of the fictional-ontology task, their steps and their counterfactuals."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, overload

import torch
from torch import LongTensor

from pycotmech.display import Described, Facts

if TYPE_CHECKING:
    import pandas

_SHOWN = 5
"""Examples that are shown."""

StepKind = Literal["decision", "copying", "induction"]


def step_kind(index: int) -> StepKind:
    """D C, then D C D I for each hop: subtasks of arXiv 2402.18312, carried on to any number of hops."""
    if index < 2:
        return "copying" if index else "decision"
    return ("decision", "copying", "decision", "induction")[(index - 2) % 4]  # type: ignore[return-value]


@dataclass(frozen=True, eq=False)
class Step(Described):
    """One word of the solution: the text before it, the word, and a counterfactual in which another word follows.

    index: 0 .. 4*hops+1. kind: "decision", "copying" or "induction".
    prefix_text: the solution up to this word, without a trailing space ("" at step 0).
    text, corrupted_text: the whole text before the word, few-shot block included.
    clean, corrupted: token ids [T] of these, BOS included if there is one; equal length, different only at `differs`.
    answer, wrong: first token of the word that follows in the clean and in the corrupted text, as cut in that place.
    answer_tokens, wrong_tokens: all its tokens. answer_word, wrong_word: the word as written (number and case).
    replaced: the word that was exchanged and what for, as in the vocabulary: ("lempus", "tumpus").
    occurrences: where the answer's word occurs in `clean` outside the shots, as slices of positions.
    segments: "few_shot", "question", "generated" as slices of positions; they hold every position but a BOS. The frame
        of the prompt ("Answer:", and what a chat template writes after it) is part of the question. What a chat template
        writes before the user's message is part of "few_shot". A segment may be empty ("generated" at step 0).
    answer_span: the positions of the word's tokens in Example.full_ids; `clean` is everything before them.
    standalone: whether tokenising `text` alone gives `clean`; False only for tokenizers that merge across the cut, for
        which `clean` is what the model sees in the full text.
    """

    index: int
    kind: StepKind
    prefix_text: str
    text: str = field(repr=False)
    corrupted_text: str = field(repr=False)
    clean: LongTensor = field(repr=False)
    corrupted: LongTensor = field(repr=False)
    answer: int
    wrong: int
    answer_tokens: tuple[int, ...]
    wrong_tokens: tuple[int, ...]
    answer_word: str
    wrong_word: str
    replaced: tuple[str, str]
    differs: tuple[int, ...]
    occurrences: tuple[slice, ...] = field(repr=False)
    segments: dict[str, slice] = field(repr=False)
    answer_span: slice = field(repr=False)
    standalone: bool = field(repr=False)

    @property
    def summary(self) -> str:
        """The words before it, the word, and what another word in the prompt makes of it, in one line."""
        tail = self.prefix_text if len(self.prefix_text) <= 40 else "…" + self.prefix_text[-39:]
        return (
            f"{tail} → {self.answer_word}; with {self.replaced[1]} for {self.replaced[0]}: {self.wrong_word} "
            f"({len(self.differs)} of {len(self.clean)} tokens differ)"
        )

    def described(self) -> Facts:
        return Facts(
            f"Step {self.index}, {self.kind}: → {self.answer_word}",
            {
                "text before it": self.prefix_text or "(none)",
                "answer": self.answer_word,
                "counterfactual": f"{self.replaced[1]} for {self.replaced[0]}: {self.wrong_word}",
                "tokens": f"{len(self.clean)}, {len(self.differs)} of them differ",
                "segments": ", ".join(f"{name} {s.start}:{s.stop}" for name, s in self.segments.items()),
            },
            go_on=(("pcm.patch_heads(model, step.clean, step.corrupted)", "which heads it depends on"),),
        )

    def __repr__(self) -> str:
        return (
            f"Step({self.index} {self.kind}: {self.prefix_text!r} -> {self.answer_word!r}, "
            f"corrupted {self.replaced[0]} -> {self.replaced[1]}: {self.wrong_word!r}, "
            f"T={len(self.clean)}, {len(self.differs)} differ)"
        )


@dataclass(frozen=True, eq=False)
class Example(Described):
    """One problem with its solution.

    prompt: the text up to the solution: few-shot block, question, query and the frame of the style; no trailing space.
    question: the premises. query: "True or false: E is q." chain: the gold solution with the label at its end.
    label: whether the queried property is the derived one. words: word of each role, E, C1..Ch, p, and q if another.
    full_ids: token ids [T] of prompt and solution, BOS included: one forward pass grades all the steps.
    label_span: the tokens of "True" or "False" in it. segments: as in Step, over full_ids.
    """

    index: int
    question: str
    query: str
    chain: str
    label: bool
    words: dict[str, str]
    steps: tuple[Step, ...] = field(repr=False)
    prompt: str = field(repr=False)
    full_text: str = field(repr=False)
    full_ids: LongTensor = field(repr=False)
    label_span: slice = field(repr=False)
    segments: dict[str, slice] = field(repr=False)

    def __repr__(self) -> str:
        return f"Example({self.index}: {self.question} {self.query} -> {self.chain})"

    def described(self) -> Facts:
        return Facts(
            f"Example {self.index}, {len(self.full_ids)} tokens",
            {
                "question": self.question,
                "query": self.query,
                "solution": self.chain,
                "segments": ", ".join(f"{name} {s.start}:{s.stop}" for name, s in self.segments.items()),
                "steps": {f"{step.index} {step.kind}": step.summary for step in self.steps},
            },
            go_on=(("pcm.patch_heads(model, step.clean, step.corrupted)", "which heads a step depends on"),),
        )

    def describe(self) -> str:
        """The example and its steps, readable."""
        lines = [
            f"Example {self.index}, {len(self.full_ids)} tokens",
            f"  question: {self.question}",
            f"  query:    {self.query}",
            f"  solution: {self.chain}",
            "  segments: " + ", ".join(f"{name} {s.start}:{s.stop}" for name, s in self.segments.items()),
        ]
        for step in self.steps:
            tail = step.prefix_text if len(step.prefix_text) <= 40 else "..." + step.prefix_text[-37:]
            lines.append(
                f"  {step.index:2d} {step.kind:<9} {tail:<40} -> {step.answer_word} | {step.wrong_word}  "
                f"({step.replaced[0]} -> {step.replaced[1]}, {len(step.differs)} of {len(step.clean)} tokens differ)"
            )
        return "\n".join(lines)


@dataclass(frozen=True, eq=False)
class Examples(Sequence[Example], Described):
    """Examples that share one few-shot block: a sequence, with the settings they were made with.

    few_shot: the text of the block, after what the chat template writes before it if there is one.
    shared_ids: its token ids [P], BOS included: every clean and corrupted prompt of
    every example begins with exactly these. bos: whether they begin with a BOS. template, think: as for `make_examples`.
    """

    items: tuple[Example, ...] = field(repr=False)
    hops: int
    shots: int
    ontology: str
    style: str
    order: str
    distractors: int
    seed: int
    definition: str
    bos: bool
    few_shot: str = field(repr=False)
    shared_ids: LongTensor = field(repr=False)
    competing: int = 0
    template: str | None = None
    think: bool = False

    def __len__(self) -> int:
        return len(self.items)

    def __iter__(self) -> Iterator[Example]:
        return iter(self.items)

    @overload
    def __getitem__(self, index: int) -> Example: ...

    @overload
    def __getitem__(self, index: slice) -> Examples: ...

    def __getitem__(self, index: int | slice) -> Example | Examples:
        return self.only(self.items[index]) if isinstance(index, slice) else self.items[index]

    def only(self, items: Sequence[Example]) -> Examples:
        """The same settings with these examples."""
        settings = {name: getattr(self, name) for name in self.__dataclass_fields__ if name != "items"}
        return Examples(items=tuple(items), **settings)

    @property
    def n_steps(self) -> int:
        return 4 * self.hops + 2

    @property
    def kinds(self) -> tuple[StepKind, ...]:
        return tuple(step_kind(i) for i in range(self.n_steps))

    def stacked(self, step: int) -> tuple[LongTensor, LongTensor]:
        """Clean and corrupted token ids of one step, each [B, T]. ValueError if the examples differ in length."""
        if not 0 <= step < self.n_steps:
            raise ValueError(f"step must be in 0 .. {self.n_steps - 1}, got {step}")
        lengths = sorted({len(example.steps[step].clean) for example in self.items})
        if len(lengths) != 1:
            raise ValueError(f"the examples must have one length at step {step} to be stacked, got {lengths}")
        chosen = [example.steps[step] for example in self.items]
        clean = torch.stack([s.clean for s in chosen])
        return clean, torch.stack([s.corrupted for s in chosen])  # type: ignore[return-value]

    def __repr__(self) -> str:
        competing = f"competing={self.competing}, " if self.competing else ""
        if self.template is not None:
            competing += f"template={self.template!r}, think={self.think}, "
        return (
            f"Examples(n={len(self)}, hops={self.hops}, shots={self.shots}, ontology={self.ontology!r}, "
            f"style={self.style!r}, order={self.order!r}, distractors={self.distractors}, seed={self.seed}, "
            f"definition={self.definition!r}, {competing}shared={len(self.shared_ids)} tokens)"
        )

    def described(self) -> Facts:
        made = {
            "task": f"{self.hops} hops, {self.shots} shots, {self.ontology} ontology, style {self.style}, order {self.order}",
            "seed": self.seed,
            "shared few-shot block": f"{len(self.shared_ids)} tokens",
        }
        shown = {f"example {e.index}": f"{e.question} {e.query} → {e.chain}" for e in self.items[:_SHOWN]}
        more = [("", f"… and {len(self) - _SHOWN} more")] if len(self) > _SHOWN else []
        title = f"{len(self)} examples of {self.n_steps} steps"
        return Facts(title, [*made.items(), *shown.items(), *more], go_on=(("examples.to_dataframe()", "a row for each step"),))

    def to_dataframe(self) -> pandas.DataFrame:
        """One row per example and step."""
        import pandas as pd

        rows: list[dict[str, Any]] = [
            {
                "example": example.index,
                "step": step.index,
                "kind": step.kind,
                "prefix": step.prefix_text,
                "answer": step.answer_word,
                "wrong": step.wrong_word,
                "replaced": step.replaced[0],
                "by": step.replaced[1],
                "tokens": len(step.clean),
                "differ": len(step.differs),
                "label": example.label,
            }
            for example in self.items
            for step in example.steps
        ]
        return pd.DataFrame(rows)
