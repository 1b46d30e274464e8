"""Docstrings in the house's style as Markdown.

In a docstring a parameter, a field or a word such as "Raises" begins a line, and what continues it is indented:

    site: "z" (the head's output before W_O), "q", "k",
        "v", "pattern".
    Returns a `Sweep`: .values [L, H].

Such lines become a list. What would be markup by accident (`<z W_O>`, `x[l][h]`) is shown as it stands.
"""

from __future__ import annotations

import re
from collections.abc import Collection

ENTRY = re.compile(r"^(?P<names>\*{0,2}\w+(?:(?: \[[^\]]*\])?, \*{0,2}\w+)*(?: \[[^\]]*\])?): (?P<text>.*)$")
"""A line that begins with one or several names, perhaps with their shape, and a colon."""

SECTION = re.compile(r"^(Returns|Raises|Cost|Source|Exact|Errors|Here|Refused)\b")


def markdown(text: str, parameters: Collection[str] = ()) -> str:
    """A docstring as Markdown. parameters: names that are set in bold inside a line too, where a sentence begins with them."""
    text = re.sub(r"\n\s*\nTests: (?:.+\n?)*", "\n", text.strip())  # for those who work on the package
    out: list[str] = []
    listed = False
    for paragraph in re.split(r"\n\s*\n", text):
        lines = paragraph.splitlines()
        if all(line.startswith("    ") for line in lines):
            out += ["", *lines, ""]  # an example in code
            continue
        out.append("")
        for line in lines:
            entry = ENTRY.match(line)
            if entry and not SECTION.match(line):
                out += [] if listed else [""]
                out.append(f"* **{escaped(entry['names'])}**: {escaped(entry['text'])}")
                listed = True
            elif SECTION.match(line):
                word = SECTION.match(line)[1]  # type: ignore[index]
                out += ["", f"**{word}**{escaped(line[len(word) :])}"]
                listed = False
            elif line.startswith("    ") and out[-1]:
                item = re.match(r"\s+- (.*)", line)
                out.append(
                    f"    * {escaped(item[1])}" if item and listed else ("    " if listed else "") + escaped(line.strip())
                )
            elif listed and not out[-1].endswith((".", ":", ";")):  # in the middle of a sentence
                out.append("    " + escaped(line))
            elif listed:
                out += ["", escaped(line.strip())]
                listed = False
            else:
                out.append(escaped(line))
        listed = False
    found = re.sub(r"\n{3,}", "\n\n", "\n".join(out)).strip() + "\n"
    if parameters:
        name = "|".join(map(re.escape, parameters))
        found = re.sub(rf"(?<=[.;] )((?:{name})(?:, (?:{name}))*): ", r"**\1**: ", found)
    return found


def escaped(text: str) -> str:
    """Text outside of backticks without characters that Markdown would take as markup."""
    parts = text.split("`")
    for i in range(0, len(parts), 2):
        parts[i] = re.sub(r"([\[\]<>*|])", r"\\\1", parts[i]).replace(r"\>", "&gt;").replace(r"\<", "&lt;")
    return "`".join(parts)
