"""Chromium for the tests of the report. Without it, or without Playwright, they are left out, and say why in one line."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
FLAGS = [
    "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync", "--allow-file-access-from-files=false",
]  # fmt: skip
AXE = ROOT / ".venv" / "axe" / "node_modules" / "axe-core" / "axe.min.js"


def chromium_path() -> str | None:
    """The browser: PYCOTMECH_CHROMIUM, or a Chromium on the path."""
    named = os.environ.get("PYCOTMECH_CHROMIUM")
    return named or next(
        (found for name in ("chromium", "chromium-browser", "google-chrome") if (found := shutil.which(name))), None
    )


@pytest.fixture(scope="session")
def browser() -> Iterator:
    sync_api = pytest.importorskip("playwright.sync_api", reason="needs Playwright: pip install 'pycotmech[browser]'")
    path = chromium_path()
    if path is None:
        pytest.skip("needs Chromium: apt-get install chromium, or PYCOTMECH_CHROMIUM=/path/to/it")
    with sync_api.sync_playwright() as playwright:
        started = playwright.chromium.launch(executable_path=path, headless=True, args=FLAGS)
        yield started
        started.close()


class Opened:
    """A page that is open, and what it complained of. asked: what it tried to load beside itself."""

    def __init__(self, page, url: str) -> None:
        self.page, self.errors, self.asked = page, [], []
        page.on("console", lambda message: message.type in ("error", "warning") and self.errors.append(message.text))
        page.on("pageerror", lambda error: self.errors.append(str(error)))
        page.on("request", lambda request: request.url != url and self.asked.append(request.url))
        page.goto(url)
        page.wait_for_selector("html[data-ready=yes]", state="attached", timeout=20_000)


@pytest.fixture
def opened(browser) -> Iterator[Callable[..., Opened]]:
    """opened(file, dark=, width=, height=) -> Opened. At the end every page must have been silent and loaded nothing."""
    contexts, pages = [], []

    def call(file: Path, *, dark: bool = False, width: int = 1360, height: int = 900) -> Opened:
        context = browser.new_context(
            viewport={"width": width, "height": height}, color_scheme="dark" if dark else "light", reduced_motion="reduce"
        )
        contexts.append(context)
        pages.append(Opened(context.new_page(), file.resolve().as_uri()))
        return pages[-1]

    yield call
    for page in pages:
        assert not page.errors and not page.asked, (page.errors, page.asked)
    for context in contexts:
        context.close()


@pytest.fixture(scope="session")
def axe() -> str:
    """The source of axe-core, which checks accessibility."""
    path = Path(os.environ.get("PYCOTMECH_AXE", AXE))
    if not path.is_file():
        pytest.skip("needs axe-core: npm install --prefix .venv/axe axe-core, or PYCOTMECH_AXE=/path/to/axe.min.js")
    return path.read_text("utf-8")


@pytest.fixture(scope="session")
def place() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="pycotmech-browser-") as folder:
        yield Path(folder)
