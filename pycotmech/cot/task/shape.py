"""The shape of one problem of the fictional-ontology task: the roles of its words, its premises and their order."""

from __future__ import annotations

import random
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from pycotmech.cot.task.pools import Need
from pycotmech.cot.task.vocabulary import Ontology, Word, truly_is
from pycotmech.cot.task.wording import Membership, Order, Premise, Rule, Style


@dataclass(frozen=True)
class Shape:
    """The shape of one problem: roles of its words, and its sentences before they are put in order."""

    hops: int
    distractors: int
    ontology: Ontology
    style: Style
    order: Order
    competing: int = 0

    def concepts(self) -> list[str]:
        return [f"C{k}" for k in range(1, self.hops + 1)]

    def rules(self, rng: random.Random) -> list[Rule]:
        """C1 is C2, ..., Ch is p: in order of use."""
        ends = [*self.concepts()[1:], "p"]
        return [Rule(a, b, rng.random() < 0.5) for a, b in zip(self.concepts(), ends, strict=True)]

    def others(self, rng: random.Random) -> list[Premise]:
        """Further premises about other words: chains like the real one, from the property rule backwards. `competing` whole
        ones, then `distractors` premises of more."""
        out: list[Premise] = []
        number = self.competing * (self.hops + 1) + self.distractors
        chain = 0
        while len(out) < number:
            chain += 1
            names = [f"x{c}.{chain}" for c in self.concepts()]
            ends = [*names[1:], f"xp.{chain}"]
            rules = [Rule(a, b, rng.random() < 0.5) for a, b in zip(names, ends, strict=True)]
            premises: list[Premise] = [*rules[::-1], Membership(f"xE.{chain}", names[0])]
            out += premises[: number - len(out)]
        return out

    def false_queries(self) -> list[str]:
        """The properties that a query may ask for whose answer is False."""
        if self.competing:
            return [f"xp.{chain + 1}" for chain in range(self.competing)]
        return ["q", "xp.1"] if self.distractors else ["q"]

    def roles(self) -> dict[str, list[str]]:
        """The roles of each kind of word. q is the property of a query that is false."""
        other: list[str] = []
        for premise in self.others(random.Random(0)):
            other += [premise.a, premise.b] if isinstance(premise, Rule) else [premise.entity, premise.concept]
        other = list(dict.fromkeys(other))
        return {
            "entity": ["E", *(key for key in other if key.startswith("xE"))],
            "concept": [*self.concepts(), *(key for key in other if key.startswith("xC"))],
            "property": ["p", "q", *(key for key in other if key.startswith("xp"))],
        }

    def needs(self) -> dict[str, Need]:
        return {kind: Need(item=len(keys) + 1, shot=len(keys)) for kind, keys in self.roles().items()}

    def ordered(self, rng: random.Random, rules: list[Rule], others: list[Premise]) -> list[Premise]:
        """The premises in the order in which the question states them."""
        premises: list[Premise] = [*(rules[::-1] if self.order == "backward" else rules)]
        premises.insert(0 if self.order == "membership_first" else len(premises), Membership("E", "C1"))
        for premise in others:
            premises.insert(rng.randrange(len(premises) + 1), premise)
        if self.order == "shuffled":
            rng.shuffle(premises)
        return premises

    def consistent(self, words: Mapping[str, Word], premises: Iterable[Premise]) -> bool:
        """Whether the premises may be stated: in the false ontology no rule between concepts may be true of the world."""
        if self.ontology != "false":
            return True
        pairs = ((words[p.a], words[p.b]) for p in premises if isinstance(p, Rule))
        return not any(a.kind == b.kind == "concept" and truly_is(a.singular, b.singular) for a, b in pairs)
