"""Every reference to a page of docs/ leads somewhere: links of the pages, and "docs/protocol.md, E5" in the code."""

from __future__ import annotations

import importlib
import importlib.util
import re
import types
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGES = [
    *sorted(ROOT.glob("*.md")),
    *sorted((ROOT / "docs").rglob("*.md")),
    *sorted(ROOT.glob("*/README.md")),
    *sorted(ROOT.glob("pycotmech/*/README.md")),
]
CODE = [p for folder in ("pycotmech", "kernels", "tests", "benchmarks", "examples") for p in (ROOT / folder).rglob("*.py")]


def headings(page: Path) -> list[str]:
    return re.findall(r"^#+ (.+)$", page.read_text(), re.M)


def anchor(heading: str) -> str:
    """As GitHub makes it."""
    return re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.relative_to(ROOT).as_posix())
def test_links_lead_somewhere(page):
    text = re.sub(r"```.*?```", "", page.read_text(), flags=re.S)
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if re.match(r"[a-z]+:", target):
            continue
        path, _, fragment = target.partition("#")
        there = (page.parent / path).resolve() if path else page
        assert there.exists(), f"{page.name}: no {target}"
        if fragment:
            assert fragment in map(anchor, headings(there)), f"{page.name}: no heading {target}"


def test_references_of_the_code_lead_somewhere():
    protocol = (ROOT / "docs" / "protocol.md").read_text()
    known = {h.split()[0] for h in headings(ROOT / "docs" / "protocol.md")} | set(re.findall(r"^\| (F\d+) \|", protocol, re.M))
    found = 0
    for path in CODE:
        text = path.read_text()
        for page in re.findall(r"\bdocs/[a-z_]+\.md", text):
            assert (ROOT / page).exists(), f"{path.relative_to(ROOT)}: {page}"
        for word in re.findall(r"docs/protocol\.md, ([A-Z]\w*)(?![\w\"])", text):
            assert word in known, f"{path.relative_to(ROOT)}: docs/protocol.md, {word}"
            found += 1
    assert found > 5 and {"E1", "E12", "F1", "F18", "Cost", "Checks", "Task"} <= known


ROOTS = {
    "pycotmech": "pycotmech",
    "pcm": "pycotmech",
    "cot": "pycotmech.cot",
    "ops": "pycotmech.ops",
    "stats": "pycotmech.stats",
}
NOT_THERE = {"pcm.cot.first_token"}  # CONTRIBUTING.md adds it


def test_names_in_backticks_exist():
    found = set()
    for path in [p for p in (*PAGES, *CODE) if p.name != "CHANGELOG.md"]:  # which has names of earlier versions
        found |= set(re.findall(rf"`((?:{'|'.join(ROOTS)})(?:\.\w+)+)", path.read_text()))
    assert len(found) > 30
    for name in found - NOT_THERE:
        first, *rest = name.split(".")
        if (ROOT / name).exists() or rest[-1] == "py":
            continue
        there = importlib.import_module(ROOTS[first])
        for word in rest:
            if not hasattr(there, word):
                assert isinstance(there, types.ModuleType) and importlib.util.find_spec(f"{there.__name__}.{word}"), name
                importlib.import_module(f"{there.__name__}.{word}")
            there = getattr(there, word)
