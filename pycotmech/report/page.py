"""The page: sections of texts, tables and charts as one HTML file that needs nothing else.

Texts and tables are written as HTML here, and can be read, searched and printed without the script. Charts are JSON that
`report.js` draws. All of it may come from a stranger's results folder: texts are escaped, JSON cannot end its script element,
the script writes text nodes only, and the page's own policy (Content-Security-Policy) allows no other script and no network.
"""

from __future__ import annotations

import base64
import hashlib
import html
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib import resources
from typing import TYPE_CHECKING, Any

from pycotmech.files.text import printable
from pycotmech.report.charts import Chart

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True)
class Sentences:
    """A list of findings."""

    lines: Sequence[str]


@dataclass(frozen=True)
class Facts:
    """Names and values, such as settings."""

    rows: Mapping[str, Any]


@dataclass(frozen=True)
class Table:
    """A table. numeric: columns that are aligned to the right. closed: whether only its caption is shown at first."""

    caption: str
    columns: Sequence[str]
    rows: Sequence[Sequence[Any]]
    numeric: Sequence[str] = ()
    closed: bool = False


def table_of(caption: str, frame: pd.DataFrame, *, most: int | None = None) -> Table:
    """A data frame as a closed table, its numbers to the right. most: rows that are shown; None: all."""
    columns = [str(name) for name in frame.columns]
    numeric = [name for name, dtype in zip(columns, frame.dtypes, strict=True) if getattr(dtype, "kind", "O") in "fiu"]
    return Table(caption, columns, (frame if most is None else frame.head(most)).values.tolist(), numeric, closed=True)


@dataclass(frozen=True)
class Note:
    """What the page cannot show, and why."""

    text: str


@dataclass(frozen=True)
class Quote:
    """A prompt or another text in its own words. parts: (label, text)."""

    parts: Sequence[tuple[str, str]]


@dataclass(frozen=True)
class Draw:
    """A chart. compact: whether it is part of a card."""

    chart: Chart
    compact: bool = False


@dataclass(frozen=True)
class Claim:
    """A claim or a question with its verdict, and what that rests on. word: of `WORDS`. more: further lines."""

    text: str
    word: str
    evidence: str
    source: str = ""
    null: str = ""
    more: str = ""
    parts: Sequence[Part] = ()


Part = Sentences | Facts | Table | Note | Quote | Draw | Claim
WORDS = {"borne out": "yes", "yes": "yes", "not borne out": "no", "no": "no", "not decided": "open"}
"""Verdicts, and the class that colours them; the word itself is always there."""


@dataclass(frozen=True)
class Section:
    """A part of the page with an entry in its contents. id: a word. lead: what the section shows, in a sentence or two. short:
    its name in the contents."""

    id: str
    title: str
    parts: Sequence[Part]
    lead: str = ""
    short: str = ""


@dataclass(frozen=True)
class Page:
    """A report. kicker: what kind of results. asked: the question. answer: paragraphs. facts: at the top, such as the model.
    views: what heads attend to and write (`pycotmech.runs.head_views`), for charts of heads."""

    title: str
    kicker: str
    asked: str
    answer: Sequence[str]
    facts: Mapping[str, Any]
    sections: Sequence[Section]
    notes: Sequence[str] = ()
    views: Mapping[str, Any] | None = None
    made: Mapping[str, Any] = field(default_factory=dict)


_LISTED = 3
"""So many steps are a list."""
_LONG = 1200
"""Letters of a quoted text from which on it is scrolled."""


class _Writer:
    """Writes the parts of a page, and keeps its charts."""

    def __init__(self) -> None:
        self.charts: list[Chart] = []
        self._places: dict[int, int] = {}

    def part(self, part: Part) -> str:
        match part:
            case Sentences(lines):
                return f"<ul class=findings>{''.join(f'<li>{_e(line)}</li>' for line in lines)}</ul>" if lines else ""
            case Facts(rows):
                return _facts(rows)
            case Note(text):
                return f"<p class=note>{_with_code(text)}</p>"
            case Quote(parts):
                return f"<dl class=quote>{''.join(_quoted(label, text) for label, text in parts)}</dl>"
            case Table():
                return self.table(part)
            case Draw(chart, compact):
                return self.chart(chart, compact)
            case Claim():
                return self.claim(part)
        raise TypeError(f"part: got {type(part).__name__}; expected a part of a page")

    def chart(self, chart: Chart, compact: bool) -> str:
        at = self._places.get(id(chart))
        if at is None:  # the same chart may stand at two places
            at = self._places[id(chart)] = len(self.charts)
            self.charts.append(chart)
        name = f"chart {chart['kind']}{' compact' if compact else ''}"
        return f'<figure class="{name}" data-chart={at}><figcaption>{_e(chart["title"])}</figcaption></figure>'

    def table(self, table: Table) -> str:
        right = [name in table.numeric for name in table.columns]
        head = "".join(f"<th scope=col{' class=n' if r else ''}>{_e(name)}</th>" for name, r in zip(table.columns, right))
        body = "".join(
            "<tr>" + "".join(f"<td{' class=n' if r else ''}>{_e(_cell(v))}</td>" for v, r in zip(row, right)) + "</tr>"
            for row in table.rows
        )
        caption = _e(table.caption)
        above = "" if table.closed else f"<caption><span>{caption}</span></caption>"
        inner = (
            f'<div class=scroll tabindex=0 role=group aria-label="{caption}"><table>{above}<thead><tr>{head}</tr></thead>'
            f"<tbody>{body}</tbody></table></div>"
        )
        return f"<details><summary>{caption}</summary>{inner}</details>" if table.closed else inner

    def claim(self, claim: Claim) -> str:
        kind = WORDS.get(claim.word, "open")
        null = f"<dt>What could bear it out by accident</dt><dd>{_by_step(claim.null)}</dd>" if claim.null else ""
        more = f"<p class=more>{_e(claim.more)}</p>" if claim.more else ""
        source = f"<span class=source>{_e(claim.source)}</span>" if claim.source else ""
        parts = "".join(self.part(part) for part in claim.parts)
        return (
            f'<article class="claim {kind}"><header><span class=verdict>{_e(claim.word)}</span>{source}</header>'
            f"<h3>{_e(claim.text)}</h3><dl class=evidence><dt>Evidence</dt><dd>{_by_step(claim.evidence)}</dd>{null}</dl>"
            f"{more}{parts}</article>"
        )

    def section(self, section: Section) -> str:
        name = html.escape(section.id)
        lead = f"<p class=lead>{_e(section.lead)}</p>" if section.lead else ""
        parts = "".join(self.part(part) for part in section.parts)
        head = f'<h2 id="{name}-title">{_e(section.title)}</h2>'
        return f'<section id="{name}" aria-labelledby="{name}-title">{head}{lead}{parts}</section>'


def render(page: Page) -> str:
    """Returns the page as HTML. Its size is that of the script and the styles (50 kB) and of the numbers in its charts."""
    writer = _Writer()
    sections = "".join(writer.section(section) for section in page.sections)
    contents = "".join(f'<li><a href="#{html.escape(s.id)}">{_e(s.short or s.title)}</a></li>' for s in page.sections)
    answer = "".join(f"<p class=summary>{_e(text)}</p>" for text in page.answer)
    notes = "".join(f"<p class=note>{_e(note)}</p>" for note in page.notes)
    data = _json({"charts": writer.charts, "views": page.views})
    style, script = _file("report.css"), _file("report.js")
    policy = (
        f"default-src 'none'; script-src '{_hash(script)}'; style-src 'unsafe-inline'; img-src data:; base-uri 'none'; "
        "form-action 'none'"
    )
    return (
        "<!doctype html>\n"
        '<html lang=en><head><meta charset=utf-8><meta name=viewport content="width=device-width, initial-scale=1">'
        f'<meta http-equiv=Content-Security-Policy content="{policy}"><meta name=color-scheme content="light dark">'
        '<link rel=icon href="data:,"><meta name=generator content=pycotmech>'
        f"<title>{_e(page.title)}</title><style>{style}</style></head>\n"
        '<body><a class=skip href="#main">Skip to the results</a>'
        f'<aside class=side><div class=brand>pycotmech</div><nav aria-label="Contents"><ol>{contents}</ol></nav>'
        "<button type=button id=theme class=plain hidden>Theme</button></aside>\n"
        f"<main id=main tabindex=-1><header class=top><p class=kicker>{_e(page.kicker)}</p><h1>{_e(page.title)}</h1>"
        f"<p class=asked>{_e(page.asked)}</p>{answer}{_facts(page.facts)}{notes}</header>\n{sections}\n"
        f"<footer><details><summary>How it was made</summary>{_facts(page.made)}</details></footer></main>\n"
        f"<noscript><p class=note>The charts need JavaScript; texts and tables are all here.</p></noscript>\n"
        f"<script type=application/json id=report-data>{data}</script>\n<script>{script}</script></body></html>\n"
    )


def capital(text: str) -> str:
    """The text with a capital letter first, unless it begins with a name such as z or patch_steps."""
    first = text.partition(" ")[0]
    is_name = "_" in first or (len(first) == 1 and first != "a")
    return text if is_name else text[:1].upper() + text[1:]


def sentence(text: object) -> str:
    """A note as a sentence: a capital letter first, a full stop at the end."""
    return f"{capital(str(text)).rstrip('.')}."


def _facts(rows: Mapping[str, Any]) -> str:
    shown = "".join(f"<div><dt>{_e(k)}</dt><dd>{_e(_cell(v))}</dd></div>" for k, v in rows.items() if v not in (None, ""))
    return f"<dl class=facts>{shown}</dl>" if shown else ""


def _quoted(label: str, text: str) -> str:
    """A text in its own lines; a long one is scrolled."""
    shown = html.escape(printable(text, lines=True))
    long = f' class=long tabindex=0 role=group aria-label="{_e(label)}"' if len(shown) > _LONG else ""
    inner = f"<div{long}>{shown}</div>" if long else shown
    return f"<dt>{_e(label)}</dt><dd>{inner}</dd>"


def _with_code(text: str) -> str:
    """The text, with what stands between backticks as code."""
    return re.sub("`([^`]+)`", r"<code>\1</code>", _e(text))


def _by_step(text: str) -> str:
    """What is said of several steps ("step 1: ...; step 2: ...") as a list below what stands before it."""
    first, *steps = re.split(r"(?:; |: )(?=step \d+: )", text)
    if len(steps) < _LISTED:
        return _e(text)
    return f"{_e(first)}<ul>{''.join(f'<li>{_e(capital(step))}</li>' for step in steps)}</ul>"


def _e(text: object) -> str:
    """Text as HTML."""
    return html.escape(printable(text))


def _cell(value: Any) -> str:
    """A value as a person reads it."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return "–" if value != value else f"{value:.3g}"
    if isinstance(value, Mapping):
        return ", ".join(f"{k} {_cell(v)}" for k, v in value.items())
    if isinstance(value, list | tuple):
        return ", ".join(_cell(v) for v in value)
    return "–" if value is None else str(value)


def _json(value: Any) -> str:
    """JSON inside a script element: no character of it can end the element, begin a comment or break a line of script."""
    text = json.dumps(value, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    for character in "<>&\u2028\u2029":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return text.encode("utf-8", "backslashreplace").decode("utf-8")


def _file(name: str) -> str:
    return resources.files("pycotmech.report").joinpath(name).read_text("utf-8")


def _hash(script: str) -> str:
    return "sha256-" + base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
