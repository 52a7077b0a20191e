"""Draws docs/page.png, the README's picture of the chat page: python -m tests.browser.screenshot

The page answers for real, with the bundled model: light on a wide window, dark on a phone with what the model saw.
"""

from __future__ import annotations

import io
from pathlib import Path

from PIL import Image
from playwright.sync_api import Browser, sync_playwright

import behold
from tests.browser.tab import SCENE, WORD, Tab, launch
from tests.server.running import running

TARGET = Path(__file__).parents[2] / "docs" / "page.png"
GAP = 24
HEIGHT = 720


def wide(browser: Browser, url: str) -> bytes:
    """A picture, what the model says to it, and two follow-ups."""
    tab = Tab(browser, url, viewport={"width": 880, "height": HEIGHT}).open()
    tab.choose(SCENE)
    tab.ask("What do we see in this image?")
    tab.ask("How many shapes are there?")
    tab.choose(WORD)
    tab.question.fill("What is in the second picture?")
    tab.page.mouse.move(440, 350)
    return tab.page.screenshot()


def phone(browser: Browser, url: str) -> bytes:
    """What the model saw of a picture."""
    tab = Tab(browser, url, viewport={"width": 360, "height": HEIGHT}, color_scheme="dark", has_touch=True).open()
    tab.choose(WORD)
    tab.ask("What does the text say?").get_by_role("button", name="What the model saw").click()
    tab.page.get_by_role("heading", name="Prompt").wait_for()
    return tab.page.screenshot()


def main() -> None:
    with (
        running(behold.load("demo")) as (client, _),
        sync_playwright() as playwright,
        launch(playwright) as browser,
    ):
        url = f"{client.base_url}/"
        shots = [Image.open(io.BytesIO(shot(browser, url))).convert("RGB") for shot in (wide, phone)]
    sheet = Image.new("RGB", (sum(shot.width for shot in shots) + GAP, HEIGHT), "white")
    left = 0
    for shot in shots:
        sheet.paste(shot, (left, 0))
        left += shot.width + GAP
    sheet.save(TARGET, optimize=True)
    print(f"{TARGET.name}: {sheet.width} × {sheet.height}, {TARGET.stat().st_size / 1000:.0f} kB")


if __name__ == "__main__":
    main()
