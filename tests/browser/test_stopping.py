"""An answer can be stopped at any time: what has come stays, and the server stops working."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from behold.api.server.service import Service
from behold.api.vlm import VLM
from tests.browser.conftest import OpenTab
from tests.browser.tab import ANSWERS, LONG, SCENE, WORD, Tab, answer, ended, state
from tests.server.running import running, wait_for

DESCRIBE = "What do we see in this image?"


@pytest.fixture(scope="module")
def inside(vlm: VLM) -> Iterator[tuple[str, Service]]:
    """A server whose insides can be looked at."""
    with running(vlm) as (client, service):
        yield f"{client.base_url}/", service


@pytest.fixture
def answering(open_tab: OpenTab, inside: tuple[str, Service]) -> Tab:
    """A page in the middle of a long answer to its first question."""
    tab = open_tab(inside[0])
    tab.alter(**LONG)
    tab.choose(SCENE)
    turn = tab.send(DESCRIBE)
    turn.locator(".text").get_by_text("An orange cross").wait_for()
    assert state(turn) == "answering"
    return tab


def idle(service: Service) -> bool:
    stats = service.vlm.engine.stats()
    return stats.running == 0 and stats.waiting == 0


@pytest.mark.parametrize("how", ["button", "escape"])
def test_a_stopped_answer_stays_and_costs_nothing_more(
    answering: Tab, inside: tuple[str, Service], how: str, vlm: VLM
) -> None:
    assert not idle(inside[1])
    if how == "button":
        answering.page.get_by_role("button", name="Stop").click()
    else:
        answering.page.keyboard.press("Escape")
    turn = answering.turns.first
    ended(turn)
    assert state(turn) == "stopped"
    assert answer(turn).startswith("An orange cross")
    assert "stopped by you" in turn.locator(".facts").inner_text()
    wait_for(lambda: idle(inside[1]))
    answering.page.unroute(ANSWERS)
    follow_up = answering.ask("What colour is the ring?")
    assert state(follow_up) == "done"
    assert answering.asked()[-1]["messages"][1]["role"] == "assistant"


def test_the_next_question_can_be_written_meanwhile(answering: Tab) -> None:
    answering.question.fill("How many shapes are there?")
    answering.question.press("Enter")
    assert answering.turns.count() == 1 and answering.question.input_value() == "How many shapes are there?"
    answering.page.keyboard.press("Escape")
    ended(answering.turns.first)
    assert answering.question.input_value() == "How many shapes are there?"


def test_a_new_chat_stops_the_old_one(answering: Tab, inside: tuple[str, Service]) -> None:
    answering.page.get_by_role("button", name="New chat").click()
    wait_for(lambda: idle(inside[1]))
    answering.page.unroute(ANSWERS)
    answering.choose(WORD)
    assert answer(answering.ask("What does the text say?")) == "TABLE"
    assert answering.turns.count() == 1


def test_a_closed_page_stops_the_work(answering: Tab, inside: tuple[str, Service]) -> None:
    answering.page.close()
    wait_for(lambda: idle(inside[1]))


def test_stopped_before_the_first_word(tab: Tab) -> None:
    tab.page.route(ANSWERS, lambda route: None)  # an answer that never begins
    tab.choose(SCENE)
    turn = tab.send(DESCRIBE)
    tab.page.keyboard.press("Escape")
    ended(turn)
    assert "not part of the conversation" in turn.inner_text()
    turn.get_by_role("button", name="Edit").click()
    assert tab.question.input_value() == DESCRIBE and tab.thumbnails.count() == 1
    tab.page.unroute(ANSWERS)
    assert state(tab.ask(DESCRIBE)) == "done"
    assert len(tab.asked()[-1]["messages"]) == 1
