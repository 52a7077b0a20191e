"""A person at the chat page, for tests: what they do, what they see, and what the browser noticed on the way."""

from __future__ import annotations

import base64
import json
import os
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from playwright.sync_api import Browser, ConsoleMessage, Locator, Page, Playwright, Request, Route

ROOT = Path(__file__).parents[2]
SCENE, WORD = ROOT / "examples" / "scene.png", ROOT / "examples" / "word.png"
DESKTOP, PHONE = {"width": 1280, "height": 800}, {"width": 360, "height": 740}
ANSWERS = "**/v1/chat/completions"
# An answer long enough to do something in the meantime.
LONG = {"max_tokens": 1500, "ignore_eos": True, "loop_stop": False}
_PUT = """
({kind, name, type, text, data}) => {
  const bytes = Uint8Array.from(atob(data), (letter) => letter.charCodeAt(0));
  const transfer = new DataTransfer();
  if (text) transfer.setData("text/plain", text);
  if (name) transfer.items.add(new File([bytes], name, { type }));
  const options = { bubbles: true, cancelable: true };
  const target = document.activeElement ?? document.body;
  if (kind === "paste") target.dispatchEvent(new ClipboardEvent("paste", { ...options, clipboardData: transfer }));
  else for (const step of ["dragover", "drop"]) {
    target.dispatchEvent(new DragEvent(step, { ...options, dataTransfer: transfer }));
  }
}
"""


def find_chromium() -> str:
    """Where this machine's Chromium is; where there is none, an error that says what to do."""
    return subprocess.run([ROOT / "scripts" / "chromium"], stdout=subprocess.PIPE, text=True, check=True).stdout.strip()


def launch(playwright: Playwright) -> Browser:
    """Headless; without its sandbox only for root, who cannot have one."""
    root = hasattr(os, "geteuid") and os.geteuid() == 0
    return playwright.chromium.launch(executable_path=find_chromium(), args=["--no-sandbox"] if root else [])


class Tab:
    """One page of one server. complaints: errors in the console and of scripts. requests: all that were sent."""

    def __init__(self, browser: Browser, url: str, **context: Any) -> None:
        self.url = url
        self.complaints: list[str] = []
        self.requests: list[Request] = []
        self.context = browser.new_context(**{"viewport": DESKTOP, **context})
        self.context.set_default_timeout(30_000)
        self.page: Page = self.context.new_page()
        self.page.on("console", self._heard)
        self.page.on("pageerror", lambda error: self.complaints.append(str(error)))
        self.page.on("request", self._sent)
        # While somebody listens, dialogs for files are caught. Listening only when one is due would come too late at
        # times: a browser hands a key press to the page before the request to catch what it opens.
        self.page.on("filechooser", lambda chooser: None)

    def open(self) -> Tab:
        """The page, once it knows its model."""
        self.page.goto(self.url)
        self.page.locator("#model:not(:empty)").wait_for()
        return self

    @property
    def question(self) -> Locator:
        return self.page.get_by_role("textbox", name="Question")

    @property
    def turns(self) -> Locator:
        return self.page.locator("article.turn")

    def choose(self, *pictures: Path | dict[str, Any]) -> None:
        """Choose files in the dialog that the + opens."""
        before = self.thumbnails.count()
        with self.page.expect_file_chooser() as chooser:
            self.page.get_by_role("button", name="Add pictures").click()
        chooser.value.set_files(list(pictures))  # type: ignore[arg-type]
        self.thumbnails.nth(before + len(pictures) - 1).wait_for()

    @property
    def thumbnails(self) -> Locator:
        """Of the pictures that will be sent."""
        return self.page.locator("#pictures li")

    def put(self, kind: str, path: Path | None = None, *, media_type: str = "image/png", text: str = "") -> None:
        """Paste or drop a file, some text, or both."""
        data = base64.b64encode(path.read_bytes()).decode() if path else ""
        name = path.name if path else ""
        self.page.evaluate(_PUT, {"kind": kind, "name": name, "type": media_type, "text": text, "data": data})

    def send(self, text: str = "") -> Locator:
        """Ask; the new turn."""
        count = self.turns.count()
        self.question.fill(text)
        self.question.press("Enter")
        turn = self.turns.nth(count)
        turn.wait_for()
        return turn

    def ask(self, text: str = "") -> Locator:
        """Ask, and wait for the end of the answer, however it ends."""
        turn = self.send(text)
        ended(turn)
        return turn

    def alter(self, **fields: Any) -> None:
        """Change fields of every question on its way to the server."""

        def altered(route: Route) -> None:
            asked = route.request.post_data_json
            route.continue_(post_data=json.dumps({**asked, **fields}))

        self.page.route(ANSWERS, altered)

    def reply(self, *texts: str) -> None:
        """Answer every question with these pieces of text, without the server."""
        chunks = [{"choices": [{"index": 0, "delta": {"content": text}, "finish_reason": None}]} for text in texts]
        lines = [f"data: {json.dumps(chunk)}\n\n" for chunk in chunks]
        body = "".join([*lines, "data: [DONE]\n\n"])
        self.page.route(ANSWERS, lambda route: route.fulfill(content_type="text/event-stream", body=body))

    def asked(self) -> list[dict[str, Any]]:
        """The bodies of all questions that were sent."""
        sent = [request for request in self.requests if request.url.endswith("/v1/chat/completions")]
        return [request.post_data_json for request in sent]

    def strangers(self) -> list[str]:
        """Requests to anywhere but the page's own server; previews and the like never leave the browser."""
        own = (self.url, "data:", "blob:")
        return [request.url for request in self.requests if not request.url.startswith(own)]

    def overflow(self) -> int:
        """By how many pixels the page is wider than its window, or anything on it than the page."""
        return self.page.evaluate(
            """() => Math.max(document.documentElement.scrollWidth, document.body.scrollWidth,
               ...[...document.querySelectorAll("body *")]
                 .filter((one) => one.checkVisibility() && !one.closest("pre > *, .unseen"))
                 .map((one) => one.getBoundingClientRect().right)) - innerWidth"""
        )

    def _sent(self, request: Request) -> None:
        self.requests.append(request)

    def _heard(self, message: ConsoleMessage) -> None:
        if message.type in ("error", "warning"):
            self.complaints.append(message.text)


def ended(turn: Locator) -> None:
    """Wait until a turn is no longer running."""
    turn.locator("xpath=self::*[@data-state='done' or @data-state='stopped' or @data-state='failed']").wait_for()


def state(turn: Locator) -> str | None:
    return turn.get_attribute("data-state")


def answer(turn: Locator) -> str:
    return turn.locator(".text").inner_text()


def shown(locator: Locator, texts: Sequence[str]) -> list[str]:
    """Those of `texts` that the element shows."""
    said = locator.inner_text()
    return [text for text in texts if text in said]
