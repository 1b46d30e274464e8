"""The built site, which `make docs` makes in build/site and then runs this on."""

from __future__ import annotations

import re
from functools import cache
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote

import pytest

from tests.docs import site_parts

ROOT = Path(__file__).parents[2]
SITE = ROOT / "build" / "site"

pytestmark = pytest.mark.docs

LOADS = {("script", "src"), ("link", "href"), ("img", "src"), ("iframe", "src"), ("source", "src")}
"""What a browser fetches by itself."""
POINTS = {"canonical", "next", "prev", "alternate"}
"""Links of a page's head that say where something is, and are not fetched."""


class Page(HTMLParser):
    """Names in a page that can be pointed at, its links, and what it loads."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.ids: set[str] = set()
        self.links: list[str] = []
        self.loads: list[str] = []
        self.images: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = {name: value or "" for name, value in attrs}
        self.ids.add(values.get("id", ""))
        if tag == "a" and "href" in values:
            self.links.append(values["href"])
        if tag == "img":
            self.images.append(values.get("alt", ""))
        if values.get("rel") not in POINTS:
            self.loads += [values[name] for t, name in LOADS if t == tag and name in values]


@cache
def page(path: Path) -> Page:
    return Page(path.read_text("utf-8"))


def pages() -> list[Path]:
    found = [path for path in sorted(SITE.rglob("*.html")) if path.name != "404.html"]
    assert len(found) > 40, "run `make docs`"
    return found


def test_nothing_is_loaded_from_a_network():
    for path in pages():
        far = [url for url in page(path).loads if re.match(r"(https?:)?//", url)]
        assert not far, f"{path.name}: {far}"
    for path in [*SITE.rglob("*.css"), *(SITE / "assets").rglob("*.js")]:
        text = path.read_text("utf-8")
        assert not re.search(r"@import\s*[\"'(]|url\(\s*[\"']?https?:", text), path


def test_links_and_anchors_lead_somewhere():
    for path in pages():
        for link in page(path).links:
            if re.match(r"[a-z]+:", link) or not link:
                continue
            target, _, fragment = link.partition("#")
            there = (path.parent / unquote(target)).resolve() if target else path
            assert there.exists(), f"{path.relative_to(SITE)}: {link}"
            if fragment and there.suffix == ".html":
                assert unquote(fragment) in page(there).ids, f"{path.relative_to(SITE)}: {link}"


def test_every_public_name_can_be_linked_to():
    names = site_parts.load("names")
    reference = {path: page(path).ids for path in (SITE / "reference").glob("*.html")}
    for name in names.public():
        if not callable(names.resolve(name)):
            continue
        found = [path.name for path, ids in reference.items() if names.place(name) in ids]
        assert len(found) == 1, f"{name} ({names.place(name)}): {found}"


def test_parameters_are_listed():
    text = (SITE / "reference" / "patching.html").read_text("utf-8")
    assert re.search(r"<li>\s*<p>?<strong>direction</strong>: ", text) or "<li><strong>direction</strong>: " in text
    assert "*clean" not in text and "::: pcm" not in text


def test_images_are_described_and_pages_are_there_as_markdown():
    assert all(alt for path in pages() for alt in page(path).images)
    listed = re.findall(r"\]\(([^)]+\.md)\)", (SITE / "llms.txt").read_text("utf-8"))
    assert len(listed) > 40 and all((SITE / name).is_file() for name in listed)


def test_blocks_are_highlighted_as_code():
    """A fence that was not understood would stand in the text."""
    for path in pages():
        assert "<p>```" not in path.read_text("utf-8"), path.name
