"""The report of a run in Chromium, at 1,024 heads and texts of 2,048 tokens, a fifth of which would run if they were markup."""

from __future__ import annotations

import time

import pytest

from pycotmech.report import write_report
from tests.report.made import run_folder

pytestmark = pytest.mark.browser
L, H, STEPS, T = 32, 32, 10, 2048


@pytest.fixture(scope="module")
def file(place):
    return write_report(run_folder(place / "run", layers=L, heads=H, steps=STEPS, tokens=T))


def cell(page, l, h):
    return page.locator(f".heads [role=gridcell][data-i='{l * H + h}']").first


def test_usable_within_two_seconds(browser, file):
    assert file.stat().st_size < 15 * 2**20
    context = browser.new_context(viewport={"width": 1360, "height": 900})
    page = context.new_page()
    begun = time.perf_counter()
    page.goto(file.resolve().as_uri())
    page.wait_for_selector("html[data-ready=yes]", state="attached", timeout=20_000)
    seconds = time.perf_counter() - begun
    assert page.locator(".heads [role=gridcell]").count() == L * H
    print(f"usable after {seconds:.2f} s, {file.stat().st_size / 2**20:.2f} MiB")
    assert seconds < 2
    context.close()


def test_another_step_is_shown_at_once(opened, file):
    page = opened(file).page
    took = page.evaluate(
        """() => { const b = document.querySelectorAll('.thumbs button'), out = [];
           for (let i = 0; i < b.length; i++) {
             const t = performance.now(); b[i].click(); document.body.offsetHeight; out.push(performance.now() - t);
           }
           return Math.max(...out); }"""
    )
    assert took < 150, took
    assert page.locator(".thumbs button[aria-pressed=true]").inner_text().startswith(f"Step {STEPS - 1}")


def test_hovering_tells_the_numbers(opened, file):
    page = opened(file).page
    cell(page, 16, 16).hover()
    tip = page.locator(".tip")
    assert tip.is_visible()
    text = tip.inner_text()
    assert text.startswith("L16H16") and "interval [" in text and "noise floor" in text and "control" in text
    assert "beyond rounding and control" in text
    cell(page, 0, 0).hover()
    assert tip.inner_text().startswith("L0H0")
    page.mouse.move(2, 2)
    assert not tip.is_visible()


def test_a_click_opens_a_head(opened, file):
    page = opened(file).page
    panel = page.locator(".inspector").first
    cell(page, 3, 5).click()
    assert panel.locator("h3").inner_text().startswith("L3H5") and "is not stored" in panel.inner_text()
    cell(page, 16, 16).click()
    assert panel.locator("h3").inner_text().startswith("L16H16")
    assert panel.locator(".passage mark").count() == 9  # eight keys, and where it reads
    assert panel.locator(".weights").count() == 2 and panel.locator(".weights").first.locator("li").count() == 8
    assert panel.locator(".segmented button").count() == 3
    panel.locator(".segmented button").nth(2).click()
    assert panel.locator(".segmented button").nth(2).get_attribute("aria-pressed") == "true"
    assert cell(page, 16, 16).get_attribute("aria-selected") == "true"


def test_the_keyboard_moves_and_opens(opened, file):
    page = opened(file).page
    cell(page, 16, 16).focus()
    page.keyboard.press("ArrowUp")
    page.keyboard.press("ArrowRight")
    focused = page.locator(":focus")
    assert focused.get_attribute("data-i") == str(17 * H + 17)
    assert page.locator(".tip").is_visible() and page.locator(".tip").inner_text().startswith("L17H17")
    outline = focused.evaluate("e => getComputedStyle(e).outlineStyle + getComputedStyle(e).outlineWidth")
    assert outline.startswith("solid") and float(outline.removeprefix("solid").removesuffix("px")) >= 2
    page.keyboard.press("Enter")
    assert page.locator(".inspector h3").first.inner_text().startswith("L17H17")
    page.keyboard.press("Escape")
    assert not page.locator(".tip").is_visible()
    page.keyboard.press("PageDown")
    page.keyboard.press("Home")
    assert page.locator(":focus").get_attribute("data-i") == "0"
    page.keyboard.press("ArrowDown")  # there is no layer below
    assert page.locator(":focus").get_attribute("data-i") == "0"
    assert page.locator(".cells [role=gridcell][tabindex='0']").count() == page.locator(".cells").count()


def test_the_first_tab_leads_to_the_results(opened, file):
    page = opened(file).page
    page.keyboard.press("Tab")
    assert page.locator(":focus").inner_text() == "Skip to the results"
    page.keyboard.press("Enter")
    assert page.evaluate("document.activeElement.id") == "main"


def test_hostile_tokens_do_nothing(opened, file):
    page = opened(file).page
    cell(page, 16, 16).click()
    for details in page.locator("details").all():
        details.locator("summary").first.click()
    page.wait_for_timeout(200)
    assert page.evaluate("window.owned === undefined") and page.title().startswith("made-up")
    assert page.locator("img").count() == 0 and page.locator("script").count() == 2
    assert "onerror" in page.locator(".passage").first.inner_text()


def test_no_other_script_runs(opened, file):
    """The page's own policy holds even if markup came through."""
    found = opened(file)
    blocked = found.page.evaluate(
        """() => new Promise(done => { document.addEventListener('securitypolicyviolation', e => done(e.violatedDirective));
           const s = document.createElement('script'); s.textContent = 'window.owned = 1';
           document.body.append(s); setTimeout(() => done('none'), 300); })"""
    )
    assert blocked.startswith("script-src") and found.page.evaluate("window.owned === undefined")
    found.errors.clear()  # of the refusal


def test_the_table_holds_the_map(opened, file):
    page = opened(file).page
    table = page.locator(".heads details.numbers").first
    table.locator("summary").click()
    table.locator("tbody tr").first.wait_for()  # what opens is told a moment later
    assert table.locator("tbody tr").count() == 500 and table.locator("tbody th").first.inner_text().startswith("L")


def test_the_theme_is_chosen_and_kept(opened, file):
    page = opened(file).page
    back = "getComputedStyle(document.body).backgroundColor"
    light = page.evaluate(back)
    page.get_by_role("button", name="Dark theme").click()
    dark = page.evaluate(back)
    assert light != dark and page.get_by_role("button", name="Light theme").is_visible()
    page.reload()
    page.wait_for_selector("html[data-ready=yes]", state="attached")
    assert page.evaluate(back) == dark
    assert opened(file, dark=True).page.evaluate(back) == dark


def test_narrow_and_printed(opened, file):
    page = opened(file, width=380, height=800).page
    assert page.evaluate("document.scrollingElement.scrollWidth <= innerWidth")
    page.emulate_media(media="print")
    assert not page.locator(".side").is_visible() and page.locator(".cells").first.is_visible()
    assert page.locator(".key").first.evaluate("e => getComputedStyle(e).printColorAdjust") == "exact"  # which line is which
    assert len(page.pdf()) > 20_000
    assert page.locator("footer details").get_attribute("open") is not None  # a copy says how it was made
