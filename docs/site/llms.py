"""Writes docs/llms.txt, an overview of the pages for language models, from the navigation of mkdocs.yml (llmstxt.org).

python docs/site/llms.py
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import yaml

ROOT = Path(__file__).resolve().parents[2]
TARGET = ROOT / "docs" / "llms.txt"
AT_ROOT = {"contributing.md": "CONTRIBUTING.md", "changelog.md": "CHANGELOG.md", "benchmarks.md": "benchmarks/README.md"}
"""Page of the site -> its file, of those that stand outside of docs/."""


def navigation() -> list:
    """The entries of `nav`, without reading what only MkDocs understands."""
    text = (ROOT / "mkdocs.yml").read_text("utf-8")
    return yaml.safe_load(text[text.index("\nnav:") :])["nav"]


def pages(entries: list, section: str = "") -> Iterator[tuple[str, str]]:
    """(section, path of the page) in the order of the navigation."""
    for entry in entries:
        if isinstance(entry, str):
            yield section, entry
            continue
        ((title, inside),) = entry.items()
        if isinstance(inside, list):
            yield from pages(inside, title)
        else:
            yield section, inside


def source(page: str) -> Path:
    return ROOT / AT_ROOT[page] if page in AT_ROOT else ROOT / "docs" / page


def title_and_summary(page: str) -> tuple[str, str]:
    """The heading of a page, and the first sentence of its text."""
    text = source(page).read_text("utf-8")
    title = re.search(r"^# (.+)$", text, re.M)
    assert title is not None, f"{page}: no heading"
    for paragraph in text[title.end() :].strip().split("\n\n"):
        if re.match(r"[A-Za-z`*]", paragraph) and not paragraph.startswith(("* ", "```")):
            words = re.sub(r"\[([^\]]+)\]\([^)]*\)", r"\1", " ".join(paragraph.split())).replace("**", "")
            return title[1].replace("`", ""), re.split(r"(?<=[.?!])\s", words)[0].rstrip(":")
    return title[1].replace("`", ""), ""


def text() -> str:
    out = [
        "# pycotmech",
        "",
        "> Exact, fast activation patching and attention analyses of chain-of-thought reasoning in open language models: "
        "all heads of all layers in one pass, with the numbers that one hooked forward pass for each head gives.",
        "",
        "`import pycotmech as pcm`; the main call is `pcm.patch_heads(model, clean, corrupted)`, in the shell `pycotmech run`.",
    ]
    last = None
    for section, page in pages(navigation()):
        if section != last:
            out += ["", f"## {section or 'Overview'}", ""]
            last = section
        title, summary = title_and_summary(page)
        out.append(f"- [{title}]({page})" + (f": {summary}" if summary else ""))
    return "\n".join(out) + "\n"


if __name__ == "__main__":
    TARGET.write_text(text(), "utf-8")
