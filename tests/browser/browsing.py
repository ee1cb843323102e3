"""Debian's Chromium under Playwright, and what every page must hold in it."""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import pytest

CHROMIUM = os.environ.get("CONFIDE_CHROMIUM") or shutil.which("chromium") or ""
needs_chromium = pytest.mark.skipif(
    not CHROMIUM, reason="no chromium here (apt-get install chromium, or CONFIDE_CHROMIUM)"
)
WATCH = """
window.violations = [];
document.addEventListener("securitypolicyviolation",
    event => window.violations.push(event.violatedDirective + " " + event.blockedURI));
"""


@dataclass
class Complaints:
    """What pages wrote to the browser's console, or broke of their own policy."""

    said: list[str] = field(default_factory=list)

    def heed(self, page) -> None:
        """Listen to a page."""
        page.add_init_script(WATCH)
        page.on("console", self._console)
        page.on("pageerror", lambda error: self.said.append(f"error: {error}"))

    def _console(self, message) -> None:
        if message.type in {"error", "warning"}:
            self.said.append(f"{message.type}: {message.text}")

    def check(self, page) -> None:
        """Nothing was complained of so far."""
        assert page.evaluate("window.violations || []") == []
        assert self.said == []


@contextmanager
def chromium() -> Iterator[object]:
    """A browser."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox", "--disable-dev-shm-usage"])
        try:
            yield browser
        finally:
            browser.close()


def axe_violations(page) -> list[str]:
    """What axe-core finds, run in the page's isolated world, where the page's own policy does not hold it back."""
    from axe_playwright_python.base import AXE_FILE_PATH

    page.evaluate(Path(AXE_FILE_PATH).read_text())
    found = page.evaluate("axe.run(document, {resultTypes: ['violations']})")
    return [
        f"{one['id']}: {one['help']}: {[node['html'][:120] for node in one['nodes'][:3]]}"
        for one in found["violations"]
    ]


def too_wide(page) -> bool:
    """Whether the page scrolls sideways."""
    return bool(page.evaluate("document.documentElement.scrollWidth > document.documentElement.clientWidth"))
