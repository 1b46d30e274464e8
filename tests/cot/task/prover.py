"""Derives the solution of a problem from its sentences alone. Shares no code with the generator of the problems."""

import re

_PLURAL = {"sheep": "sheep", "butterflies": "butterfly"}


def singular(word: str) -> str:
    word = word.lower()
    if word in _PLURAL:
        return _PLURAL[word]
    if word.endswith("puses"):
        return word[:-2]
    return word[:-1] if word.endswith("s") and not word.endswith("pus") else word


def prove(question: str, query: str, nouns: set[str]) -> tuple[list[str], bool]:
    """The words of the steps in order (singular, as in the vocabulary), and the label.

    Raises ValueError where the premises do not determine the solution.
    """
    rules: dict[str, list[str]] = {}
    for sentence in re.split(r"\.\s*", question.strip().rstrip(".")):
        match = re.fullmatch(r"(?:(?:Every|Each|All) )?(\w+) (?:is|are)(?: an?)? (\w+)", sentence)
        if match is None:
            raise ValueError(f"cannot be parsed: {sentence!r}")
        a, b = match.groups()
        a = singular(a) if singular(a) in nouns else a
        b = singular(b) if singular(b) in nouns else b
        rules.setdefault(a, []).append(b)
    match = re.fullmatch(r"True or false: (\w+) is (\w+)\.", query)
    if match is None:
        raise ValueError(f"cannot be parsed: {query!r}")
    entity, asked = match.groups()
    steps, at = [], entity
    while at in rules:
        if len(rules[at]) != 1:
            raise ValueError(f"{at!r} leads to {rules[at]}: not one solution")
        to = rules[at][0]
        steps += [entity, to] if at == entity else [at, to, entity, to]
        at = to
        if len(steps) > 100:
            raise ValueError("the rules go round in a circle")
    if not steps or at in nouns:
        raise ValueError(f"the chain ends at {at!r}, which is no property")
    return steps, asked == at
