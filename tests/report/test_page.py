"""The page as HTML: structure, and text that stays text."""

from __future__ import annotations

import json
import re
from html.parser import HTMLParser

import pytest

from pycotmech.report import charts
from pycotmech.report.page import Claim, Draw, Facts, Note, Page, Quote, Section, Sentences, Table, capital, render
from tests.report.made import HOSTILE

VOID = {"meta", "img", "br", "input", "link"}


class Reader(HTMLParser):
    """Collects elements, and refuses what is not closed."""

    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self.open: list[str] = []
        self.found: list[tuple[str, dict]] = []
        self.text: list[str] = []

    def handle_starttag(self, tag, attrs):
        self.found.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open and self.open.pop() == tag, tag

    def handle_data(self, data):
        self.text.append(data)

    def all(self, tag: str) -> list[dict]:
        return [attrs for name, attrs in self.found if name == tag]


def read(page: str) -> Reader:
    reader = Reader()
    reader.feed(page)
    reader.close()
    assert reader.open == [], reader.open
    return reader


def data_of(page: str) -> dict:
    found = re.search(r"<script type=application/json id=report-data>(.*?)</script>", page, re.S)
    assert found
    return json.loads(found[1])


def written_page(parts: list) -> str:
    return render(Page("t", "k", "a", [], {}, [Section("s", "S", parts)]))


def page_with(text: str) -> Page:
    chart = charts.heads(text, text, (1, 2), [charts.head_map(text, [[0.5, float("nan")]], kind=text)])
    parts = [
        Sentences([text]), Facts({text: text}), Note(text), Quote([(text, text)]), Draw(chart), Draw(chart),
        Table(text, [text], [[text]]), Table(text, [text], [[text]], closed=True),
        Claim(text, "not decided", text, text, text, text, [Draw(chart, compact=True)]),
    ]  # fmt: skip
    views = {"texts": [[text]], "views": [], "count": 1}
    return Page(text, text, text, [text], {text: text}, [Section("one", text, parts, text, text)], [text], views, {text: text})


@pytest.mark.parametrize("text", [HOSTILE, "a \x1b[2J b", "\u2028<!--<script>", "&lt;b&gt;", 'x" onload="y', "\ud800"])
def test_a_text_is_text_wherever_it_stands(text):
    page = render(page_with(text))
    reader = read(page)
    tags = {tag for tag, _ in reader.found}
    assert tags.isdisjoint({"img", "iframe", "object"}) and len(reader.all("script")) == 2
    assert reader.all("link") == [{"rel": "icon", "href": "data:,"}]  # none is asked for
    assert not any(name.startswith("on") for _, attrs in reader.found for name in attrs)
    inside = re.search(r"id=report-data>(.*?)</script>", page, re.S)
    assert inside and not set("<>&\u2028\u2029") & set(inside[1])
    assert data_of(page)["charts"][0]["title"] == text
    page.encode("utf-8")
    assert "\x1b" not in page.replace("\\u001b", "")


def test_the_page_has_its_landmarks_and_its_policy():
    reader = read(render(page_with("plain")))
    assert reader.found[0] == ("html", {"lang": "en"})
    assert len(reader.all("h1")) == 1 and len(reader.all("main")) == 1 and reader.all("nav") == [{"aria-label": "Contents"}]
    policy = next(m["content"] for m in reader.all("meta") if m.get("http-equiv") == "Content-Security-Policy")
    assert "default-src 'none'" in policy and "script-src 'sha256-" in policy and "http" not in policy
    ids = [attrs["id"] for _, attrs in reader.found if "id" in attrs]
    assert len(ids) == len(set(ids))
    assert {a["href"][1:] for a in reader.all("a")} <= set(ids)


def test_the_policy_names_this_script():
    import base64
    import hashlib

    page = render(page_with("plain"))
    script = page[page.rindex("<script>") + len("<script>") : page.rindex("</script>")]
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    assert f"script-src 'sha256-{digest}'" in page


def test_a_chart_that_stands_at_several_places_is_stored_once():
    page = render(page_with("plain"))
    assert len(data_of(page)["charts"]) == 1 and page.count("data-chart=0>") == 3


def test_nothing_is_loaded_and_nothing_is_written_as_markup():
    page = render(page_with("plain"))
    script = page[page.rindex("<script>") :]
    for word in (
        "innerHTML",
        "outerHTML",
        "insertAdjacentHTML",
        "document.write",
        "eval(",
        "new Function",
        "fetch(",
        "import(",
    ):
        assert word not in script, word
    assert not re.search(r"""(src|href)=["']?(https?:)?//""", page) and "url(" not in page and "@import" not in page


def test_numbers_that_are_not_finite_are_null():
    assert charts.numbers([1.23456789, float("nan"), float("inf"), 3.0]) == [1.235, None, None, 3]
    with pytest.raises(TypeError, match="expected a part of a page"):
        render(Page("t", "k", "a", [], {}, [Section("s", "t", ["no part"])]))  # pyright: ignore


def test_what_is_said_of_several_steps_is_a_list():
    evidence = "holds at 1 of 3; step 1: 5 < 6; n = 3; step 2: b, <b>; step 3: c"
    written = written_page([Claim("T", "no", evidence, null="others: step 1: x; step 2: y")])
    assert (
        "<dd>holds at 1 of 3<ul><li>Step 1: 5 &lt; 6; n = 3</li><li>Step 2: b, &lt;b&gt;</li><li>Step 3: c</li></ul></dd>"
        in written
    )
    assert "<dd>others: step 1: x; step 2: y</dd>" in written  # two are no list


def test_what_stands_between_backticks_is_code():
    assert "<p class=note>run <code>pycotmech report &lt;DIR&gt;</code> or ` alone</p>" in written_page(
        [Note("run `pycotmech report <DIR>` or ` alone")]
    )


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("a probe at depth 3", "A probe at depth 3"),
        ("z of one head", "z of one head"),
        ("patch_steps is", "patch_steps is"),
        ("the", "The"),
    ],
)
def test_sentences_begin_with_a_capital(text, shown):
    assert capital(text) == shown
