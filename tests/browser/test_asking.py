"""Pictures in, questions asked, answers as the model gives them."""

from __future__ import annotations

import base64
import re

import pytest
from playwright.sync_api import Route, expect

from behold.api.vlm import VLM
from tests.browser.conftest import OpenTab
from tests.browser.tab import ANSWERS, LONG, SCENE, WORD, Tab, answer, ended, shown, state

DESCRIBE = "What do we see in this image?"


def test_a_picture_a_question_and_the_answer_of_the_model(tab: Tab, vlm: VLM) -> None:
    expected = vlm.ask(SCENE, DESCRIBE)
    tab.choose(SCENE)
    turn = tab.ask(DESCRIBE)
    assert (
        answer(turn) == expected == "An orange cross at the top left, a green ring at the top and a black square "
        "at the bottom."
    )
    facts = turn.locator(".facts")
    usage = expected.usage
    wanted = [
        f"{usage.prompt_tokens} tokens in",
        f"{usage.image_tokens} for pictures",
        f"{usage.completion_tokens} tokens out",
        "first word after",
        "tokens/s",
    ]
    assert shown(facts, wanted) == wanted
    assert turn.locator(".thumbnails img").count() == 1
    assert tab.question.input_value() == "" and tab.thumbnails.count() == 0


def test_the_bytes_of_the_file_are_sent(tab: Tab) -> None:
    tab.choose(SCENE)
    tab.ask(DESCRIBE)
    (body,) = tab.asked()
    assert body["stream"] is True and body["stream_options"] == {"include_usage": True}
    picture, text = body["messages"][0]["content"]
    assert base64.b64decode(picture["image_url"]["url"].partition(",")[2]) == SCENE.read_bytes()
    assert text == {"type": "text", "text": DESCRIBE}


@pytest.mark.parametrize("kind", ["paste", "drop"])
def test_a_picture_can_be_pasted_and_dropped(tab: Tab, vlm: VLM, kind: str) -> None:
    tab.put(kind, WORD)
    tab.thumbnails.first.wait_for()
    assert not tab.page.locator("#drop-here").is_visible()
    assert answer(tab.ask("What does the text say?")) == vlm.ask(WORD, "What does the text say?") == "TABLE"


def test_a_pasted_text_is_text(tab: Tab) -> None:
    tab.context.grant_permissions(["clipboard-read", "clipboard-write"])
    tab.page.evaluate("navigator.clipboard.writeText('Where is the star?')")
    tab.question.focus()
    tab.page.keyboard.press("ControlOrMeta+v")
    assert tab.question.input_value() == "Where is the star?" and tab.thumbnails.count() == 0


def test_a_picture_alone_is_described(tab: Tab, vlm: VLM) -> None:
    tab.choose(SCENE)
    assert tab.question.get_attribute("placeholder") == DESCRIBE
    turn = tab.ask("")
    assert turn.locator(".bubble").inner_text() == DESCRIBE
    assert answer(turn) == vlm.ask(SCENE, DESCRIBE)


def test_nothing_at_all_is_not_sent(tab: Tab) -> None:
    tab.question.press("Enter")
    tab.question.fill("   \n ")
    tab.page.get_by_role("button", name="Send").click()
    assert tab.turns.count() == 0 and tab.asked() == []


def test_several_pictures_keep_their_order_and_can_be_removed(tab: Tab, vlm: VLM) -> None:
    tab.choose(WORD, SCENE)
    tab.choose(SCENE)
    assert tab.thumbnails.count() == 3
    tab.page.get_by_role("button", name="Remove scene.png").last.click()
    question = "What is in the second picture?"
    assert answer(tab.ask(question)) == vlm.ask([WORD, SCENE], question)


def test_the_same_picture_can_be_chosen_again(tab: Tab) -> None:
    tab.choose(SCENE)
    tab.page.get_by_role("button", name="Remove scene.png").click()
    tab.choose(SCENE)
    assert tab.thumbnails.count() == 1


def test_words_alone(tab: Tab, vlm: VLM) -> None:
    assert answer(tab.ask("What do you see?")) == vlm.ask([], "What do you see?")


def test_a_follow_up_knows_what_was_said(tab: Tab, vlm: VLM) -> None:
    chat = vlm.chat()
    tab.choose(SCENE)
    assert answer(tab.ask(DESCRIBE)) == chat.say(SCENE, DESCRIBE)
    for question in ("How many shapes are there?", "What colour is the ring?"):
        assert answer(tab.ask(question)) == chat.say(question)
    roles = [message["role"] for message in tab.asked()[-1]["messages"]]
    assert roles == ["user", "assistant", "user", "assistant", "user"]


def test_a_new_chat_forgets(tab: Tab, vlm: VLM) -> None:
    tab.choose(SCENE)
    tab.ask(DESCRIBE)
    tab.page.get_by_role("button", name="New chat").click()
    assert tab.turns.count() == 0
    assert tab.page.get_by_role("heading", name="Show me something").is_visible()
    question = "How many shapes are there?"
    assert answer(tab.ask(question)) == vlm.ask([], question)
    assert len(tab.asked()[-1]["messages"]) == 1


def test_the_answer_comes_piece_by_piece(tab: Tab) -> None:
    tab.alter(**LONG)
    tab.choose(SCENE)
    turn = tab.send(DESCRIBE)
    turn.locator("xpath=self::*[@data-state='answering']").wait_for()
    lengths = set()
    while len(lengths) <= 3 and state(turn) == "answering":
        lengths.add(len(answer(turn)))
    assert len(lengths) > 3
    tab.page.keyboard.press("Escape")
    ended(turn)


def test_it_says_that_it_is_looking(tab: Tab) -> None:
    held: list[Route] = []

    def hold(route: Route) -> None:
        held.append(route)

    tab.page.route(ANSWERS, hold)
    tab.choose(SCENE)
    turn = tab.send(DESCRIBE)
    progress = turn.locator(".progress")
    progress.get_by_text(re.compile(r"^Looking at the picture… (0\.[3-9]|[1-9]\d*\.\d) s$")).wait_for()
    assert turn.locator(".answer").get_attribute("aria-busy") == "true"
    held[0].continue_()
    ended(turn)
    assert progress.inner_text() == "" and turn.locator(".answer").get_attribute("aria-busy") == "false"


def test_settings_reach_the_model(tab: Tab, vlm: VLM) -> None:
    tab.page.get_by_role("button", name="Settings").click()
    tab.page.get_by_label("Temperature").press("ArrowRight")
    tab.page.get_by_label("Longest answer, in tokens").fill("3")
    tab.page.get_by_label("Instructions for the model").fill("Be brief.")
    tab.page.get_by_role("button", name="Done").click()
    tab.choose(SCENE)
    turn = tab.ask(DESCRIBE)
    (body,) = tab.asked()
    assert (body["temperature"], body["max_tokens"]) == (0.1, 3)
    assert body["messages"][0] == {"role": "system", "content": "Be brief."}
    assert shown(turn.locator(".facts"), ["3 tokens out", "cut off"]) == ["3 tokens out", "cut off"]


def test_a_length_that_is_no_number_is_not_taken(tab: Tab) -> None:
    tab.page.get_by_role("button", name="Settings").click()
    length = tab.page.get_by_label("Longest answer, in tokens")
    length.fill("0")
    tab.page.get_by_role("button", name="Done").click()
    assert tab.page.locator("#settings").is_visible()
    tab.page.keyboard.press("Escape")
    expect(length).to_have_value("512")


def test_an_answer_can_be_copied_and_asked_for_again(tab: Tab) -> None:
    tab.context.grant_permissions(["clipboard-read", "clipboard-write"])
    tab.choose(SCENE)
    turn = tab.ask(DESCRIBE)
    text = answer(turn)
    turn.get_by_role("button", name="Copy").click()
    turn.get_by_role("button", name="Copied").wait_for()
    assert tab.page.evaluate("navigator.clipboard.readText()") == text
    turn.get_by_role("button", name="Try again").click()
    ended(turn)
    assert answer(turn) == text and tab.turns.count() == 1
    expect(tab.question).to_be_focused()
    assert len(tab.asked()) == 2 and tab.asked()[0] == tab.asked()[1]


def test_an_answer_can_be_copied_where_the_clipboard_is_closed(tab: Tab) -> None:
    """As it is for pages that came over plain http from another machine."""
    tab.page.evaluate("() => { navigator.clipboard.writeText = () => Promise.reject(new Error('closed')) }")
    turn = tab.ask("What do you see?")
    turn.get_by_role("button", name="Copy").click()
    turn.get_by_role("button", name="Copied").wait_for()
    tab.question.focus()
    tab.page.keyboard.press("ControlOrMeta+v")
    assert tab.question.input_value() == answer(turn)


def test_a_question_can_be_edited(tab: Tab, vlm: VLM) -> None:
    tab.choose(SCENE)
    turn = tab.ask("How many shapes are there?")
    turn.get_by_role("button", name="Edit").click()
    assert tab.turns.count() == 0 and tab.thumbnails.count() == 1
    assert tab.question.input_value() == "How many shapes are there?"
    assert answer(tab.ask(DESCRIBE)) == vlm.ask(SCENE, DESCRIBE)


def test_two_pages_at_once(tab: Tab, open_tab: OpenTab, served: str, vlm: VLM) -> None:
    other = open_tab(served)
    tab.choose(SCENE)
    other.choose(WORD)
    first, second = tab.send(DESCRIBE), other.send(DESCRIBE)
    ended(first)
    ended(second)
    assert (answer(first), answer(second)) == (vlm.ask(SCENE, DESCRIBE), vlm.ask(WORD, DESCRIBE))
    assert answer(tab.ask("How many shapes are there?")) == "Three"
    assert other.turns.count() == 1
