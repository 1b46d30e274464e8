"""Breaks an inductive step in three ways (docs/protocol.md, E2): in its premise, in its rule, or in what follows.

At a step such as "Max is a lempus. Since every lempus is a tumpus, Max is a" the answer needs the premise ("Max is a lempus")
and the rule ("every lempus is a tumpus"). Replacing the answer's word gives another answer; replacing the concept in the
premise alone, or in the rule alone, breaks the chain between them.
"""

from __future__ import annotations

from typing import Any, Literal

from torch import Tensor

from pycotmech.cot.task.examples import Example, Examples, Step
from pycotmech.cot.task.wording import QUANTIFIERS

Corruption = Literal["answer", "premise", "rule"]

_FROM_SUBJECT = 3
"""An inductive step is the third after the one that writes its rule's subject."""


def require_consistent(examples: Examples, use: str) -> None:
    """Raises ValueError if the steps' counterfactuals replace single words only, by which `use` cannot be made: a premise or a
    rule broken from them may stay as it was, or be broken elsewhere."""
    if examples.definition != "exact":
        raise ValueError(
            f"examples: made with definition={examples.definition!r}, whose counterfactuals replace one word in one place; "
            f"{use} is put together from those of definition='exact', which replace a word wherever it occurs"
        )


def corrupted_prompt(example: Example, step: Step, kind: Corruption, tokenizer: Any) -> Tensor:
    """The step's clean prompt [T] with words replaced by others of equally many tokens.

    "answer": the step's own counterfactual. "premise", "rule" (inductive steps only): the concept that both speak of, in the
    premises about the entity alone, or as the subject of rules alone; in the question and in the text so far.
    Raises ValueError if the step is not inductive, or the word does not occur in that part.
    """
    if kind == "answer":
        return step.corrupted
    if step.kind != "induction":
        raise ValueError(f"corruption: {kind!r} breaks inductive steps, step {step.index} is of kind {step.kind!r}")
    subject = example.steps[step.index - _FROM_SUBJECT]
    places = [(span, subject.corrupted[span]) for span in subject.occurrences]
    new = subject.corrupted.new_tensor(subject.wrong_tokens)
    places.append((subject.answer_span, new))
    out, found = step.clean.clone(), False
    for span, tokens in places:
        if _part(tokenizer.decode(step.clean[: span.start]), example.words["E"]) == kind:
            out[span], found = tokens, True
    if not found:
        raise ValueError(f"corruption: no {kind} with {subject.replaced[0]!r} before step {step.index}")
    return out


def _part(before: str, entity: str) -> str:
    """What the sentence is in which a concept follows this text: "premise", "rule" (as its subject), or "other"."""
    before = before.rstrip()
    if before.endswith((".", ":")) or before.split()[-1].lower() in QUANTIFIERS.values():
        return "rule"
    words = before.split()
    verb = -2 if words[-1] in ("a", "an") else -1
    return "premise" if words[verb - 1 : verb] == [entity] and words[verb] == "is" else "other"
