"""What the documentation site is made of: its navigation, the reference, drawings and llms.txt. It is built by `make docs`."""

from __future__ import annotations

import re
import types
import xml.etree.ElementTree as ElementTree
from collections import Counter
from pathlib import Path

import pytest

from tests.docs import site_parts

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
llms, drawings, names = (site_parts.load(name) for name in ("llms", "drawings", "names"))


CONSTANTS = (
    "pcm.__version__", "pcm.ops.cpp_missing", "pcm.cost.DEVICES", "pcm.report.FILE", "pcm.paper.CLAIMS", "pcm.paper.EASY",
    "pcm.paper.ENTRIES", "pcm.paper.HARDER",
)  # fmt: skip
"""Public names of what is neither a function nor a class; their pages say in a heading what they are."""


def listed_names() -> Counter:
    """How often the reference lists each public name: as a directive, or, without one, in a heading."""
    found: Counter = Counter()
    for path in (DOCS / "reference").glob("*.md"):
        text = path.read_text("utf-8")
        found.update(re.findall(r"^::: (\S+)$", text, re.M))
        for heading in re.findall(r"^#+ (.+)$", text, re.M):
            found.update(re.findall(r"`(pcm\.[\w.]+)`", heading))
    return found


def test_every_public_name_is_in_the_reference_once():
    expected = names.public()
    assert len(expected) == len(set(expected)) > 100
    listed = listed_names()
    assert not (missing := Counter(expected) - listed), f"add `::: NAME` to a page in docs/reference: {sorted(missing)}"
    assert not (more := listed - Counter(expected)), f"listed twice, or not public: {sorted(more)}"


def test_public_names_are_documented():
    """What has no docstring would be missing on its page."""
    for name in names.public():
        found = names.resolve(name)
        if callable(found):
            assert found.__doc__, name
            assert names.place(name).startswith("pycotmech.")
        else:
            assert isinstance(found, types.ModuleType) or name in CONSTANTS, name


def test_the_navigation_names_pages_once():
    pages = [page for _, page in llms.pages(llms.navigation())]
    assert len(pages) == len(set(pages)) > 40
    assert all(llms.source(page).is_file() for page in pages)


def test_llms_txt_follows_the_navigation():
    assert llms.TARGET.read_text("utf-8") == llms.text(), "run `python docs/site/llms.py`"


@pytest.mark.parametrize("name", drawings.DRAWINGS)
def test_drawings_are_those_of_the_program(name):
    text = drawings.path_of(name).read_text("utf-8")
    assert text == drawings.DRAWINGS[name](), "run `python docs/site/drawings.py`"
    root = ElementTree.fromstring(text)
    parts = {child.tag.rpartition("}")[2]: child.text for child in root}
    assert parts["title"] and parts["desc"]  # for those who do not see it


def test_figures_are_described_where_they_are_shown():
    for path in DOCS.rglob("*.md"):
        for words, target in re.findall(r"!\[([^\]]*)\]\(([^)]+)\)", path.read_text("utf-8")):
            assert len(words) > 10, f"{path.name}: {target} has no description"
