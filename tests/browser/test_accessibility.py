"""axe-core on the page of every kind of folder, in light and dark."""

from __future__ import annotations

import json

import numpy as np
import pytest

from pycotmech import paper
from pycotmech.report import write_report
from pycotmech.runs import Settings
from pycotmech.runs.attention import summarise_text
from pycotmech.runs.trace_run import TraceSettings, run_traces
from tests.report.made import run_folder

pytestmark = pytest.mark.browser
RULES = "{runOnly: ['wcag2a', 'wcag2aa', 'wcag21a', 'wcag21aa', 'wcag22aa', 'best-practice']}"


def make_run(folder):
    return run_folder(folder, layers=8, heads=6, hostile="plain")


def make_paper(folder):
    only = ("patch_steps", "attention_by_source", "answer_writers", "functional_rift", "information_flow", "set_transfer")
    paper.run(Settings(model="tiny-cot", examples=2, steps=(2, 5), threads=1), folder, only=only)
    return folder


def make_trace(folder):
    folder.mkdir()
    rng, lines = np.random.default_rng(0), []
    for i in range(2):
        spans = [[a, a + 3] for a in range(5, 29, 3)]
        lines.append(
            json.dumps(
                {"tokens": [1, *rng.integers(5, 200, 36).tolist()], "sentences": spans, "answer": [31, 33], "name": f"t{i}"}
            )
        )
    (folder / "traces.jsonl").write_text("\n".join(lines))
    run_traces(TraceSettings("tiny-cot", folder / "traces.jsonl", threads=1), folder / "out")
    return folder / "out"


def make_attention(folder):
    summarise_text("The cat is a cat.", folder, model="tiny-cot", segments="begin=1:3", top_k=4)
    return folder


MAKERS = {"run": make_run, "paper": make_paper, "trace": make_trace, "attention": make_attention}


@pytest.fixture(scope="module")
def files(place):
    return {name: write_report(make(place / f"a11y-{name}")) for name, make in MAKERS.items()}


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
@pytest.mark.parametrize("kind", list(MAKERS))
def test_no_violations(opened, files, axe, kind, dark):
    page = opened(files[kind], dark=dark).page
    if page.locator(".cells").count():
        page.locator(".cells [role=gridcell]").nth(1).click()
        page.mouse.move(1, 1)
    page.evaluate(axe)
    found = page.evaluate(f"async () => (await axe.run(document, {RULES})).violations")
    told = [f"{v['id']} ({v['impact']}): {v['nodes'][0]['html'][:160]} {v['nodes'][0]['failureSummary'][:200]}" for v in found]
    assert not told, "\n".join(told)


@pytest.mark.parametrize("kind", list(MAKERS))
def test_nothing_is_wider_than_a_narrow_window(opened, files, kind):
    page = opened(files[kind], width=380, height=800).page
    wide = page.evaluate(
        """[...document.querySelectorAll('main *')].filter(e => e.getBoundingClientRect().right > innerWidth + 1
           && !e.closest('.scroll, .plot, .passage')).map(e => e.outerHTML.slice(0, 120))"""
    )
    assert page.evaluate("document.scrollingElement.scrollWidth <= innerWidth"), wide[:3]


def test_lines_and_matrices_are_read_with_the_keyboard(opened, files):
    page = opened(files["trace"]).page
    plot = page.locator(".matrix-plot").first
    plot.focus()
    page.keyboard.press("ArrowRight")
    assert page.locator(".tip").is_visible() and page.locator(".matrix .sr").first.inner_text()
    line = page.locator(".lines .plot").first
    line.focus()
    page.keyboard.press("ArrowRight")
    page.keyboard.press("ArrowRight")
    assert page.locator(".lines .sr").first.inner_text()
