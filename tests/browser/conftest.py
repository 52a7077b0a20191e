"""A browser, the real server with the bundled model, and tabs that report what they noticed.

Run by `make test-browser`; `make test` does not come here, so that it needs no browser. Nothing is skipped: without
Playwright or a Chromium these tests fail.
"""

from __future__ import annotations

import re
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator

import pytest
from playwright.sync_api import Browser, sync_playwright

import behold
from behold.api.vlm import VLM
from tests.browser.tab import Tab, launch

OpenTab = Callable[..., Tab]


@pytest.fixture(scope="session")
def browser() -> Iterator[Browser]:
    with sync_playwright() as playwright:
        found = launch(playwright)
        yield found
        found.close()


@pytest.fixture(scope="session")
def vlm() -> VLM:
    """The bundled model in this process: what the served one has to say."""
    return behold.load("demo", device="cpu")


@pytest.fixture(scope="session")
def served() -> Iterator[str]:
    """The address of `behold serve --model demo`, as a person starts it."""
    command = [sys.executable, "-m", "behold", "serve", "--model", "demo", "--device", "cpu", "--port", "0"]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        said = ""
        try:
            for line in process.stderr:
                said += line
                if found := re.search(r"page\s+(http://\S+/)", line):
                    yield found[1]
                    break
            else:
                pytest.fail(f"behold serve ended with {process.wait()}: {said}")
        finally:
            process.send_signal(signal.SIGTERM)
            process.stderr.read()
        assert process.wait(60) == 0


@pytest.fixture
def open_tab(browser: Browser) -> Iterator[OpenTab]:
    """Opens tabs; at the end none of them may have sent a request elsewhere.

    failures: how many answers with an error status the test provokes; each is one line in the console, and there may
    be no other.
    """
    tabs: list[tuple[Tab, int]] = []

    def make(url: str, *, failures: int = 0, ready: bool = True, **context: object) -> Tab:
        tab = Tab(browser, url, **context)
        tabs.append((tab, failures))
        if ready:
            tab.open()
        return tab

    yield make
    for tab, _ in tabs:
        tab.context.close()
    for tab, failures in tabs:
        assert tab.strangers() == []
        provoked = [text for text in tab.complaints if text.startswith("Failed to load resource")]
        assert [text for text in tab.complaints if text not in provoked] == []
        assert len(provoked) == failures, provoked


@pytest.fixture
def tab(open_tab: OpenTab, served: str) -> Tab:
    """The page of the real server, as a new visitor finds it."""
    return open_tab(served)
