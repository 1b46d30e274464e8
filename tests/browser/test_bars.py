"""Bars in Chromium: names that do not fit side by side are numbered and listed, and no name is cut off."""

from __future__ import annotations

import pytest

from pycotmech.report import charts
from pycotmech.report.page import Draw, Page, Section, render

pytestmark = pytest.mark.browser

NAMES = ["heads that restore most", "heads that carry the answer", "heads that restore most, in both or neither of the others"]
STEPS = [f"{i} {'induction' if i % 4 == 1 else 'decision'}" for i in range(10)]


@pytest.fixture
def page(tmp_path, opened):
    drawn = [Draw(charts.bars("Bars", "accuracy", names, {"a": [0.5] * len(names)})) for names in (NAMES, STEPS)]
    file = tmp_path / "page.html"
    file.write_text(render(Page("t", "k", "a", [], {}, [Section("s", "S", drawn)])), "utf-8")
    return lambda width: opened(file, width=width).page


def ticks(page, figure: int) -> list[str]:
    return page.locator("figure").nth(figure).locator("svg text.tick[text-anchor=middle]").all_text_contents()


def test_long_names_are_numbered_and_listed_where_they_do_not_fit(page):
    narrow = page(390)
    assert ticks(narrow, 0) == ["1", "2", "3"]
    assert narrow.locator("figure").first.locator(".bar-names li").all_inner_texts() == NAMES
    assert narrow.locator(".bar-names:visible").count() == 1  # steps are a series: some are left out, none is numbered
    assert ticks(narrow, 1)[:2] == ["0", "decision"]
    wide = page(1360)
    assert " ".join(ticks(wide, 0)) == " ".join(NAMES) and wide.locator(".bar-names:visible").count() == 0


def test_no_name_is_cut_off(page):
    narrow = page(390)
    cut = narrow.evaluate(
        """() => [...document.querySelectorAll('svg text.tick')].filter((text) => {
             const box = text.getBoundingClientRect(), around = text.closest('svg').getBoundingClientRect();
             return box.right > around.right + 1 || box.left < around.left - 1; }).map((text) => text.textContent)"""
    )
    assert cut == []
