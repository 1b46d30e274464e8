"""Takes the screenshots of docs/figures: python -m tests.browser.screenshots RUN_FOLDER [PAPER_FOLDER] [--out docs/figures]."""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

from PIL import Image
from playwright.sync_api import sync_playwright

from pycotmech.report import write_report
from tests.browser.conftest import FLAGS, chromium_path

STRONGEST = (".thumbs button:nth-child(2)", ".cells [data-i='207']")
"""Step 5 in the results of `make demo`, and the head L23H0 of SmolLM2-135M."""


def shoot(
    browser,
    file: Path,
    to: Path,
    *,
    dark: bool = False,
    width: int = 1280,
    height: int = 860,
    at: str = "",
    click: tuple[str, ...] = (),
) -> None:
    context = browser.new_context(
        viewport={"width": width, "height": height}, color_scheme="dark" if dark else "light", reduced_motion="reduce"
    )
    page = context.new_page()
    page.goto(file.resolve().as_uri())
    page.wait_for_selector("html[data-ready=yes]", state="attached")
    if at:
        page.evaluate("s => document.querySelector(s).scrollIntoView()", at)
    for place in click:
        page.locator(place).first.click()
    page.mouse.move(1, 1)
    page.wait_for_timeout(300)
    page.screenshot(path=to)
    context.close()
    with Image.open(to) as image:
        image.convert("RGB").quantize(256, kmeans=2, dither=Image.Dither.NONE).save(to, optimize=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("run", type=Path)
    parser.add_argument("paper", type=Path, nargs="?")
    parser.add_argument("--out", type=Path, default=Path("docs/figures"))
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as place, sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium_path(), args=FLAGS)
        run = write_report(given.run, Path(place) / "run.html")
        shoot(browser, run, given.out / "report_light.png")
        shoot(browser, run, given.out / "report_dark.png", dark=True)
        shoot(browser, run, given.out / "report_narrow.png", width=390, height=844)
        shoot(browser, run, given.out / "report_head.png", at="#heads", height=1180, click=STRONGEST)
        if given.paper is not None:
            paper = write_report(given.paper, Path(place) / "paper.html")
            shoot(browser, paper, given.out / "report_paper.png", at="#claims")
        browser.close()


if __name__ == "__main__":
    main()
