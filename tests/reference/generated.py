"""Tables in pages of docs/ that a program writes, each between two markers."""

from __future__ import annotations

from pathlib import Path


def _markers(name: str) -> tuple[str, str]:
    return f"<!-- {name}: generated -->\n", f"<!-- end of the {name} -->"


def shown(page: Path, name: str = "table") -> str:
    """What the page has between the markers of this name."""
    begin, end = _markers(name)
    return page.read_text("utf-8").split(begin)[1].split(end)[0]


def write(page: Path, text: str, name: str = "table") -> None:
    """Puts the text between the markers of this name."""
    begin, end = _markers(name)
    before, rest = page.read_text("utf-8").split(begin)
    page.write_text(before + begin + text + end + rest.split(end)[1], "utf-8")
