"""What goes wrong is said in plain words, and can be tried again."""

from __future__ import annotations

from pathlib import Path

from behold.api.vlm import VLM
from tests.browser.conftest import OpenTab
from tests.browser.tab import ANSWERS, SCENE, Tab, answer, ended, state
from tests.server.running import running

DESCRIBE = "What do we see in this image?"
BROKEN = {"name": "broken.png", "mimeType": "image/png", "buffer": b"this is no picture"}


def test_a_broken_picture_is_named_and_left_out(open_tab: OpenTab, served: str) -> None:
    tab = open_tab(served, failures=2)
    tab.choose(BROKEN)
    assert tab.thumbnails.first.inner_text().startswith("no preview")
    tab.page.get_by_role("button", name="What the model sees of broken.png").click()
    tab.page.get_by_role("dialog").get_by_text("refused").wait_for()
    tab.page.keyboard.press("Escape")
    turn = tab.ask(DESCRIBE)
    alert = turn.get_by_role("alert")
    assert state(turn) == "failed"
    assert alert.inner_text().startswith("broken.png cannot be used.")
    assert "messages[" not in alert.inner_text()
    tab.choose(SCENE)
    assert state(tab.ask(DESCRIBE)) == "done"  # the broken one is not sent again
    assert len(tab.asked()[-1]["messages"]) == 1


def test_a_file_that_is_no_picture_is_not_taken(tab: Tab, tmp_path: Path) -> None:
    notes = tmp_path / "notes.pdf"
    notes.write_bytes(b"%PDF")
    tab.put("drop", notes, media_type="application/pdf")
    tab.page.get_by_role("alert").get_by_text("notes.pdf: not a picture.").wait_for()
    assert tab.thumbnails.count() == 0


def test_a_file_that_cannot_be_read_holds_the_question_back(tab: Tab) -> None:
    tab.page.evaluate("() => { FileReader.prototype.readAsDataURL = () => { throw new Error('moved') } }")
    tab.put("drop", SCENE)
    tab.question.fill(DESCRIBE)
    tab.question.press("Enter")
    tab.page.get_by_role("alert").get_by_text("A file could not be read.").wait_for()
    assert tab.turns.count() == 0 and tab.question.input_value() == DESCRIBE
    assert state(tab.ask(DESCRIBE)) == "done"


def test_a_server_that_is_gone_and_comes_back(open_tab: OpenTab, served: str) -> None:
    tab = open_tab(served, failures=1)
    tab.page.route(ANSWERS, lambda route: route.abort())
    tab.choose(SCENE)
    turn = tab.ask(DESCRIBE)
    assert "The server cannot be reached" in turn.get_by_role("alert").inner_text()
    tab.page.unroute(ANSWERS)
    turn.get_by_role("button", name="Try again").click()
    ended(turn)
    assert state(turn) == "done" and answer(turn).startswith("An orange cross")
    assert turn.locator(".problem").inner_text() == ""


def test_a_connection_that_breaks_off(tab: Tab) -> None:
    piece = 'data: {"choices": [{"delta": {"content": "An orange"}}]}\n\n'
    tab.page.route(ANSWERS, lambda route: route.fulfill(content_type="text/event-stream", body=piece))
    turn = tab.ask("Hello")
    assert answer(turn) == "An orange"
    assert "The connection was lost." in turn.get_by_role("alert").inner_text()


def test_an_error_in_the_middle_of_an_answer(tab: Tab) -> None:
    body = (
        'data: {"choices": [{"delta": {"content": "An"}}]}\n\n'
        'data: {"error": {"message": "the answer was not complete after 5 seconds", "type": "timeout"}}\n\n'
    )
    tab.page.route(ANSWERS, lambda route: route.fulfill(content_type="text/event-stream", body=body))
    text = tab.ask("Hello").get_by_role("alert").inner_text()
    assert "longer than the server allows" in text and "after 5 seconds" in text


def test_a_busy_server_says_when_to_try_again(open_tab: OpenTab, served: str) -> None:
    tab = open_tab(served, failures=1)
    headers = {"retry-after": "7"}
    body = '{"error": {"message": "256 requests wait already", "type": "rate_limit_error"}}'
    tab.page.route(ANSWERS, lambda route: route.fulfill(status=429, headers=headers, body=body))
    assert "The server is busy. Try again in 7 seconds." in tab.ask("Hello").inner_text()


def test_too_much_at_once(open_tab: OpenTab, vlm: VLM) -> None:
    with running(vlm, max_body_bytes=5_000) as (client, _):
        tab = open_tab(f"{client.base_url}/", failures=1)
        tab.choose(SCENE)
        assert "Send fewer or smaller pictures" in tab.ask(DESCRIBE).inner_text()


def test_a_question_longer_than_the_context(open_tab: OpenTab, served: str) -> None:
    tab = open_tab(served, failures=1)
    turn = tab.ask("word " * 3000)
    text = turn.get_by_role("alert").inner_text()
    assert state(turn) == "failed" and text.startswith("This is too long for the model.") and "2048" in text


def test_a_server_with_a_key(open_tab: OpenTab, vlm: VLM) -> None:
    with running(vlm, api_keys=("the-right-key",)) as (client, _):
        tab = open_tab(f"{client.base_url}/", failures=2, ready=False)
        tab.page.goto(tab.url)
        dialog = tab.page.get_by_role("dialog")
        dialog.get_by_text("This server asks for a key").wait_for()
        for key in ("a-wrong-key", "the-right-key"):
            dialog.get_by_label("API key").fill(key)
            tab.page.keyboard.press("Enter")
            if key == "a-wrong-key":
                dialog.get_by_text("The server does not accept this key").wait_for()
        tab.page.locator("#model:not(:empty)").wait_for()
        tab.choose(SCENE)
        assert state(tab.ask(DESCRIBE)) == "done"
        stored = tab.page.evaluate("[Object.values(sessionStorage), Object.values(localStorage), document.cookie]")
        assert stored == [["the-right-key"], [], ""]


def test_without_a_key_the_question_can_be_sent_later(open_tab: OpenTab, vlm: VLM) -> None:
    with running(vlm, api_keys=("the-right-key",)) as (client, _):
        tab = open_tab(f"{client.base_url}/", failures=2, ready=False)
        tab.page.goto(tab.url)
        dialog = tab.page.get_by_role("dialog")
        dialog.get_by_role("button", name="Cancel").click()
        tab.page.get_by_role("alert").get_by_text("The server asks for a key.").wait_for()
        turn = tab.send("Hello")
        dialog.get_by_label("API key").fill("the-right-key")
        dialog.get_by_role("button", name="Use this key").click()
        ended(turn)
        assert state(turn) == "done"
