"""What holds no array: a model, a plan, an estimate, an example. Its facts are shown as HTML in a notebook, and by rich as a
tree in a terminal."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from pycotmech.files.text import printable

if TYPE_CHECKING:
    from rich.tree import Tree

_LONGEST_NAME = 40
"""Characters before a colon that name what comes after it."""


Items = Mapping[str, Any] | Sequence[tuple[str, Any]]


@dataclass(frozen=True)
class Facts:
    """A title, and what is known.

    items: name -> what it is, which may be a mapping with facts of its own; a note has no name.
    go_on: what to ask next, as (code, what it gives).
    """

    title: str
    items: Items
    go_on: Sequence[tuple[str, str]] = ()

    @classmethod
    def of_text(cls, text: str) -> Facts:
        """Of lines of text, the first of which is the title; the others are "name: what it is", or notes."""
        title, *rest = text.splitlines() or [""]
        items = []
        for line in rest:
            name, found, value = line.strip().partition(": ")
            items.append((name, value) if found and len(name) <= _LONGEST_NAME else ("", line.strip()))
        return cls(title, items)


class Described:
    """Shows its facts: `_repr_html_` in a notebook, `rich.print` in a terminal."""

    def described(self) -> Facts:
        """Returns what there is to know, by name. By default the lines of its text."""
        return Facts.of_text(str(self))

    def _repr_html_(self) -> str:
        from pycotmech.display.markup import card, facts, going_on

        found = self.described()
        return card(found.title, facts(pairs(found.items)), going_on(found.go_on), kind=type(self).__name__)

    def __rich__(self) -> Tree:
        from rich.text import Text
        from rich.tree import Tree

        found = self.described()
        tree = Tree(Text(printable(found.title), style="bold"))
        _grow(tree, found.items)
        return tree


def pairs(items: Items) -> list[tuple[str, Any]]:
    """Facts as (name, what it is)."""
    return list(items.items()) if isinstance(items, Mapping) else list(items)


def _grow(tree: Tree, items: Items) -> None:
    """Adds facts to a tree. Texts are no markup."""
    from rich.text import Text

    for name, value in pairs(items):
        if isinstance(value, Mapping):
            _grow(tree.add(Text(printable(name))), value)
        else:
            tree.add(Text(f"{printable(name)}: {printable(value)}" if name else printable(value)))
