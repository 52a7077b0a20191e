"""Pictures over http, from a server of our own on this machine."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from behold.chat.fetch import fetch
from behold.chat.media import MediaPolicy, load_image
from behold.errors import MediaError
from tests.chat.web import closed_port, serving


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    """The address of a running server."""
    with serving() as port:
        yield f"http://127.0.0.1:{port}"


@pytest.fixture(autouse=True)
def _no_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("no_proxy", "*")


def test_a_picture(server: str) -> None:
    assert load_image(f"{server}/picture.png").size == (5, 3)
    assert load_image(f"HTTP{server[4:]}/picture.png?size=große bilder").size == (5, 3)


def test_servers_learn_who_asks(server: str) -> None:
    assert fetch(f"{server}/agent", MediaPolicy()).startswith(b"behold/")


def test_a_redirect_is_followed(server: str) -> None:
    assert load_image(f"{server}/once").size == (5, 3)


@pytest.mark.parametrize(
    ("path", "word"),
    [
        ("missing", "404"),
        ("page", "web page"),
        ("endless", "more than 100000 bytes"),
        ("huge", "1000000000000 bytes"),
        ("short", "broke off after 30 of"),
        ("slow", "longer than 0.3 s"),
        ("silent", "longer than 0.3 s"),
        ("loop", "more than 5 times"),
        ("to.file", "'file:///etc/passwd' is not allowed"),
        ("to.data", "'data:image/png;base64,AAAA' is not allowed"),
    ],
)
def test_what_can_go_wrong(server: str, path: str, word: str) -> None:
    with pytest.raises(MediaError, match=word):
        load_image(f"{server}/{path}", policy=MediaPolicy(max_bytes=100_000, timeout_s=0.3))


def test_no_redirect_where_none_is_allowed(server: str) -> None:
    with pytest.raises(MediaError, match="more than 0 times"):
        load_image(f"{server}/once", policy=MediaPolicy(max_redirects=0))


@pytest.mark.parametrize(
    "url",
    ["http://", "https:///a.png", "http://[::1/a.png", "http://host:port/a.png", "http://a b/c.png", "http:a.png"],
)
def test_addresses_that_are_none(url: str) -> None:
    with pytest.raises(MediaError):
        load_image(url)


def test_nobody_listens() -> None:
    with pytest.raises(MediaError, match="check the address and the network"):
        load_image(f"http://127.0.0.1:{closed_port()}/a.png")


def test_the_body_of_a_redirect_is_not_read(server: str) -> None:
    assert load_image(f"{server}/to?/picture.png", policy=MediaPolicy(timeout_s=5)).size == (5, 3)
