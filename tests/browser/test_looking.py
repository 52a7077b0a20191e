"""What the model saw: the pictures as it gets them, the prompt, and what each costs."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

from tests.browser.tab import SCENE, WORD, Tab

DESCRIBE = "What do we see in this image?"


def show(picture: Path, folder: Path) -> dict:
    """What `behold show` has to say about a picture."""
    command = [sys.executable, "-m", "behold", "show", str(picture), "--model", "demo", "--json", "-p", DESCRIBE]
    done = subprocess.run([*command, "-o", str(folder / "seen.png")], capture_output=True, text=True, check=True)
    return json.loads(done.stdout)


def test_a_turn_shows_what_behold_show_shows(tab: Tab, tmp_path: Path) -> None:
    record = show(SCENE, tmp_path)
    (image,) = record["images"]
    tab.choose(SCENE)
    tab.ask(DESCRIBE).get_by_role("button", name="What the model saw").click()
    dialog = tab.page.get_by_role("dialog", name="What the model saw")
    (part,) = image["parts"]
    size = f"{image['width']} × {image['height']} → {part['width']} × {part['height']} · {image['tokens']} tokens"
    dialog.get_by_text(size).wait_for()
    assert dialog.get_by_text(f"{record['prompt_tokens']} tokens, {image['tokens']} of them for pictures").is_visible()
    assert f"×{image['tokens']}{DESCRIBE}" in dialog.locator("pre").inner_text()
    seen = dialog.get_by_role("img", name="scene.png, part 1 of what the model gets")
    drawn = seen.evaluate("async (image) => { await image.decode(); return [image.naturalWidth, image.naturalHeight] }")
    assert drawn == [part["width"], part["height"]]


def test_a_later_turn_shows_the_pictures_before_it(tab: Tab) -> None:
    tab.choose(SCENE)
    tab.ask(DESCRIBE)
    tab.choose(WORD)
    tab.ask("What is in the second picture?").get_by_role("button", name="What the model saw").click()
    dialog = tab.page.get_by_role("dialog")
    dialog.get_by_role("heading", name="Prompt").wait_for()
    assert dialog.get_by_role("heading").all_inner_texts() == ["What the model saw", "scene.png", "word.png", "Prompt"]
    prompt = dialog.locator("pre").inner_text()
    assert DESCRIBE in prompt and "An orange cross" in prompt and "What is in the second picture?" in prompt
    tab.page.keyboard.press("Escape")
    assert not dialog.is_visible()


def test_a_picture_can_be_looked_at_before_it_is_sent(tab: Tab) -> None:
    tab.choose(SCENE, WORD)
    tab.page.get_by_role("button", name="What the model sees of word.png").click()
    dialog = tab.page.get_by_role("dialog", name="What the model sees of word.png")
    dialog.get_by_text("81 tokens").first.wait_for()
    assert dialog.get_by_role("img", name="word.png as it was sent").count() == 1
    dialog.get_by_role("button", name="Close").click()
    assert tab.thumbnails.count() == 2 and tab.turns.count() == 0
