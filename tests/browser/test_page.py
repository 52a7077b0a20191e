"""The page itself: by keyboard alone, on a phone, in the dark, and against text that would like to be code."""

from __future__ import annotations

import re

import pytest
from playwright.sync_api import Route, expect

from tests.browser.conftest import OpenTab
from tests.browser.tab import ANSWERS, PHONE, SCENE, WORD, Tab, answer, ended

DESCRIBE = "What do we see in this image?"
CODE = "<img src=x onerror=\"document.title='owned'\"><script>document.title='owned'</script><b>bold</b>"
LONG_WORD = "Donaudampfschifffahrtsgesellschaft" * 8


def focused(tab: Tab) -> str:
    """What has the keyboard: its label, else its id."""
    return tab.page.evaluate("document.activeElement.ariaLabel ?? document.activeElement.id")


def press_until(tab: Tab, key: str, label: str) -> None:
    for _ in range(30):
        if focused(tab) == label:
            return
        tab.page.keyboard.press(key)
    raise AssertionError(f"{key} never came to {label!r}")


def test_everything_by_keyboard(tab: Tab) -> None:
    page = tab.page
    assert focused(tab) == "question"
    press_until(tab, "Shift+Tab", "Add pictures")
    with page.expect_file_chooser() as chooser:
        page.keyboard.press("Enter")
    chooser.value.set_files([SCENE, WORD])
    tab.thumbnails.nth(1).wait_for()
    assert focused(tab) == "question"
    press_until(tab, "Shift+Tab", "Remove word.png")
    page.keyboard.press("Enter")
    assert tab.thumbnails.count() == 1 and focused(tab) == "question"
    page.keyboard.type("What do we see")
    page.keyboard.press("Shift+Enter")
    page.keyboard.type("in this image?")
    assert tab.question.input_value() == "What do we see\nin this image?"
    page.keyboard.press("Enter")
    turn = tab.turns.first
    ended(turn)
    assert focused(tab) == "question"
    press_until(tab, "Shift+Tab", "open-settings")
    page.keyboard.press("Enter")
    assert page.get_by_role("dialog", name="Settings").is_visible() and focused(tab) == "temperature"
    page.keyboard.press("Escape")
    assert focused(tab) == "open-settings"
    looked = turn.get_by_role("button", name="What the model saw")
    for _ in range(30):
        page.keyboard.press("Tab")
        if looked.evaluate("(one) => one === document.activeElement"):
            break
    outline = looked.evaluate("(one) => getComputedStyle(one).outlineStyle")
    assert outline == "solid"  # where the keyboard is can be seen
    page.keyboard.press("Enter")
    page.get_by_role("dialog", name="What the model saw").get_by_role("heading", name="Prompt").wait_for()
    page.keyboard.press("Escape")
    assert looked.evaluate("(one) => one === document.activeElement")


@pytest.fixture
def coming(open_tab: OpenTab, served: str) -> tuple[Tab, Route]:
    """A page that can be seen, and its script, which is still held back."""
    tab = open_tab(served, ready=False)
    held: list[Route] = []

    def hold(route: Route) -> None:
        held.append(route)

    tab.page.route("**/page/main.js", hold)
    tab.page.goto(tab.url, wait_until="commit")
    tab.question.wait_for()
    while not held:
        tab.page.wait_for_timeout(10)
    return tab, held[0]


def test_a_question_sent_while_the_page_is_coming_is_asked(coming: tuple[Tab, Route]) -> None:
    tab, script = coming
    tab.put("paste", WORD)
    tab.put("drop", SCENE)
    tab.question.fill(DESCRIBE)
    tab.question.press("Shift+Enter")
    tab.question.press("Enter")
    assert tab.question.input_value() == f"{DESCRIBE}\n"
    script.continue_()
    turn = tab.turns.first
    ended(turn)
    assert turn.locator(".bubble").inner_text() == DESCRIBE and answer(turn)
    names = [one.get_attribute("aria-label") for one in turn.locator(".thumbnails button").all()]
    assert names == ["What the model sees of word.png", "What the model sees of scene.png"]
    assert tab.turns.count() == 1 and tab.question.input_value() == ""


def test_a_button_pressed_while_the_page_is_coming_does_its_work(coming: tuple[Tab, Route]) -> None:
    tab, script = coming
    with tab.page.expect_file_chooser() as chooser:
        tab.page.get_by_role("button", name="Add pictures").click()
        script.continue_()
    chooser.value.set_files(SCENE)
    tab.thumbnails.first.wait_for()
    tab.page.get_by_role("button", name="Settings").click()
    assert tab.page.get_by_role("dialog", name="Settings").is_visible()  # once, not kept again


def test_enter_belongs_to_a_word_that_is_being_composed(tab: Tab) -> None:
    tab.question.fill("ねこ")
    tab.question.evaluate(
        "(area) => area.dispatchEvent(new KeyboardEvent('keydown', {key: 'Enter', isComposing: true, bubbles: true}))"
    )
    assert tab.turns.count() == 0


def test_every_control_has_a_name(tab: Tab) -> None:
    tab.choose(SCENE)
    tab.ask(DESCRIBE)
    tab.choose(WORD)
    nameless = tab.page.evaluate(
        """() => [...document.querySelectorAll("button, input, textarea")].filter((one) =>
             one.type !== "file" && !(one.ariaLabel || one.textContent.trim() || one.labels?.length))
             .map((one) => one.outerHTML)"""
    )
    assert nameless == []


def test_a_screen_reader_hears_the_answer(tab: Tab) -> None:
    tab.choose(SCENE)
    turn = tab.ask(DESCRIBE)
    spoken = tab.page.get_by_role("log")
    assert spoken.get_attribute("aria-live") == "polite"
    assert spoken.locator("p").all_inner_texts() == ["Looking at the picture", answer(turn)]


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_on_a_phone_nothing_is_wider_than_the_screen(open_tab: OpenTab, served: str, scheme: str) -> None:
    tab = open_tab(served, failures=1, viewport=PHONE, has_touch=True, is_mobile=True, color_scheme=scheme)
    assert tab.overflow() <= 0
    tab.choose(SCENE, WORD, SCENE, WORD)
    assert tab.overflow() <= 0
    tab.ask(LONG_WORD)
    assert tab.overflow() <= 0
    tab.reply(f"# {LONG_WORD}\n\n- {LONG_WORD}\n\n```\n{LONG_WORD}\n```\n\n{LONG_WORD}")
    tab.ask("Hello")
    assert tab.overflow() <= 0
    tab.page.unroute(ANSWERS)
    tab.choose({"name": f"{LONG_WORD}.png", "mimeType": "image/png", "buffer": b"nothing"})
    tab.ask("Hello")
    assert tab.overflow() <= 0
    tab.turns.first.get_by_role("button", name="What the model saw").click()
    tab.page.get_by_role("heading", name="Prompt").wait_for()
    assert tab.overflow() <= 0
    tab.page.keyboard.press("Escape")
    tab.page.get_by_role("button", name="Settings").click()
    assert tab.overflow() <= 0


def test_it_is_dark_where_the_system_is(open_tab: OpenTab, served: str) -> None:
    colours = [
        open_tab(served, color_scheme=scheme).page.evaluate("getComputedStyle(document.body).backgroundColor")
        for scheme in ("light", "dark")
    ]
    brightness = [sum(int(part) for part in colour[4:-1].split(",")) for colour in colours]
    assert brightness[0] > 650 and brightness[1] < 120


def test_nothing_moves_where_that_is_unwelcome(open_tab: OpenTab, served: str) -> None:
    tab = open_tab(served, reduced_motion="reduce")
    tab.page.route(ANSWERS, lambda route: None)
    turn = tab.send("Hello")
    turn.get_by_text(re.compile(r"^Thinking… [1-9]\d* s$")).wait_for()
    moving = "(one) => getComputedStyle(one, '::before').animationName"
    assert turn.locator(".progress").evaluate(moving) == "none"
    tab.page.keyboard.press("Escape")
    ended(turn)


def test_typed_code_stays_text(tab: Tab) -> None:
    turn = tab.ask(CODE)
    assert turn.locator(".bubble").inner_text() == CODE
    assert turn.locator(".bubble *").count() == 0
    assert tab.page.title() == "behold"


def test_code_in_an_answer_stays_text(tab: Tab) -> None:
    link = "[click](javascript:document.title='owned')"
    tab.reply(CODE[:20], CODE[20:], f"\n\n- {CODE}\n\n```html\n{CODE}\n```\n\n**{CODE}** {link}")
    turn = tab.ask("Hello")
    assert turn.locator(".text").locator("img, script, b, a").count() == 0
    assert answer(turn).count(CODE) == 4 and link in answer(turn)
    assert tab.page.title() == "behold"


def test_code_in_a_file_name_stays_text(open_tab: OpenTab, served: str) -> None:
    tab = open_tab(served, failures=1)
    tab.choose({"name": f"{CODE}.png", "mimeType": "image/png", "buffer": b"nothing"})
    turn = tab.ask("Hello")
    assert CODE in turn.get_by_role("alert").inner_text()
    assert tab.page.title() == "behold"


def test_the_browser_would_refuse_inline_code(open_tab: OpenTab, served: str) -> None:
    tab = open_tab(served)
    refused = tab.page.evaluate(
        """() => { try { document.body.innerHTML = "<p>owned"; return null } catch (error) { return error.name } }"""
    )
    assert refused == "TypeError"
    assert any("TrustedHTML" in text for text in tab.complaints)
    tab.complaints.clear()


def test_formatted_answers(tab: Tab) -> None:
    tab.reply(
        "## Two things\n\nA **cross** and a ",
        "*ring*, 2 * 3 * 4:\n1. one\n2. `two`\n\n- x\n\n```py\nprint('<b>')\n```\nend",
    )
    text = tab.ask("Hello").locator(".text")
    assert text.locator("strong").inner_text() == "cross" and text.locator("em").inner_text() == "ring"
    assert text.locator("ol li").all_inner_texts() == ["one", "two"] and text.locator("ul li").count() == 1
    assert text.locator("pre").inner_text() == "print('<b>')"
    assert "2 * 3 * 4:" in text.inner_text() and text.locator("p").last.inner_text() == "end"


def test_it_scrolls_along_unless_one_is_reading(tab: Tab) -> None:
    at_end = (
        "document.querySelector('main').scrollHeight - document.querySelector('main').scrollTop"
        " - document.querySelector('main').clientHeight < 50"
    )
    tab.reply("line\n\n" * 60)
    tab.ask("one")
    tab.page.wait_for_function(at_end)
    latest = tab.page.get_by_role("button", name="Latest")
    expect(latest).to_be_hidden()
    tab.page.locator("main").evaluate("(main) => { main.scrollTop = 0 }")
    latest.wait_for()
    latest.click()
    tab.page.wait_for_function(at_end)


def test_it_scrolls_along_though_words_come_before_it_hears_of_its_last_move(tab: Tab) -> None:
    tab.reply("line\n\n" * 60)
    tab.ask("one")
    moved = """async () => {
      const main = document.querySelector("main");
      const frames = () => new Promise((done) =>
        requestAnimationFrame(() => requestAnimationFrame(() => setTimeout(done)))); // two, and then between two
      main.scrollTop -= 20;
      await frames();
      main.scrollTop += 10;
      document.querySelector(".turn .text").append("word ".repeat(500));
      await frames();
      return main.scrollHeight - main.scrollTop - main.clientHeight;
    }"""
    assert tab.page.evaluate(moved) < 1
    assert not tab.page.get_by_role("button", name="Latest").is_visible()


def test_events_are_read_however_they_are_cut(tab: Tab) -> None:
    text = ': hello\n\ndata: {"a": "ä"}\n\nevent: x\r\ndata: one\r\ndata: two\r\n\r\ndata:[DONE]\n\n'
    read = """async ([text, size]) => {
      const { events } = await import("./page/api.js");
      const bytes = new TextEncoder().encode(text);
      const stream = new ReadableStream({ start(control) {
        for (let at = 0; at < bytes.length; at += size) control.enqueue(bytes.slice(at, at + size));
        control.close();
      } });
      const found = [];
      for await (const data of events(stream)) found.push(data);
      return found;
    }"""
    for size in (1, 2, 3, 7, 1000):
        assert tab.page.evaluate(read, [text, size]) == ['{"a": "ä"}', "one\ntwo", "[DONE]"]
