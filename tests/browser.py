"""A headless Chromium for the tests of pages: what `make test` provides, or the machine has."""

import shutil
from contextlib import contextmanager
from pathlib import Path

import pytest
from playwright.sync_api import sync_playwright

ROOT = Path(__file__).parents[1]
PLACES = [str(ROOT / ".venv/chromium/run"), "chromium", "google-chrome", "chromium-browser"]
# Without a sandbox: containers forbid it, and the pages are our own.
FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-background-networking"]


@contextmanager
def chromium():
    """Yield a browser, or skip where there is none."""
    found = next((place for name in PLACES if (place := shutil.which(name))), None)
    if found is None:
        pytest.skip("no Chromium: `make test` brings one")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=found, args=FLAGS)
        yield browser
        browser.close()


def opened(browser, path, **options):
    """Open a page and return it with what it asked for and what it said, as lists that grow."""
    page = browser.new_page(**options)
    page.set_default_timeout(180_000)  # shared machines stall
    asked, said = [], []
    page.on("request", lambda request: asked.append(request.url))
    page.on("console", lambda message: said.append(message.text))
    page.on("pageerror", lambda error: said.append(str(error)))
    page.goto(path.as_uri())
    return page, asked, said
