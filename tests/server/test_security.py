"""Keys, origins and sizes, over a real socket where streaming matters."""

from __future__ import annotations

import itertools
import json
import socket
import time
from collections.abc import Iterator

import httpx
import pytest

from behold.api.server.security import BodyLimit
from behold.api.server.service import Service
from behold.api.vlm import VLM
from tests.server.running import LONG, chat, running, wait_for

KEYS = ("first-key", "second-key")
ORIGIN = "https://page.example"


@pytest.fixture(scope="module")
def guarded(vlm: VLM) -> Iterator[tuple[httpx.Client, Service]]:
    with running(vlm, api_keys=KEYS, cors_origins=(ORIGIN,), max_body_bytes=200_000) as pair:
        yield pair


@pytest.fixture
def client(guarded: tuple[httpx.Client, Service]) -> httpx.Client:
    return guarded[0]


def bearer(key: str) -> dict[str, str]:
    return {"authorization": f"Bearer {key}"}


# --- keys ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", ["/v1/models", "/metrics", "/openapi.json", "/v2/none", "/v1/models/../../metrics"])
def test_every_path_asks_for_a_key(client: httpx.Client, path: str) -> None:
    response = client.get(path)
    assert response.status_code == 401
    assert response.headers["www-authenticate"] == "Bearer"
    assert response.json()["error"]["code"] == "invalid_api_key"


@pytest.mark.parametrize("path", ["/health", "/", "/page/main.js"])
def test_health_and_the_page_do_not(client: httpx.Client, path: str) -> None:
    assert client.get(path).status_code in (200, 503)


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE"])
def test_open_paths_are_for_reading(client: httpx.Client, method: str) -> None:
    assert client.request(method, "/health").status_code == 401


@pytest.mark.parametrize("key", KEYS)
def test_any_of_the_keys_will_do(client: httpx.Client, key: str) -> None:
    assert client.get("/v1/models", headers=bearer(key)).status_code == 200
    assert client.get("/v1/models", headers={"authorization": f"bearer  {key}"}).status_code == 200


@pytest.mark.parametrize(
    "headers",
    [
        bearer("first-ke"),
        bearer("first-key2"),
        {"authorization": "Bearer"},
        {"authorization": "first-key"},
        {"authorization": "Basic first-key"},
        {"api-key": "first-key"},
    ],
    ids=range(6),
)
def test_nothing_else_will_do(client: httpx.Client, headers: dict[str, str]) -> None:
    assert client.get("/v1/models", headers=headers).status_code == 401


def test_a_key_of_any_bytes_is_no_fault(client: httpx.Client) -> None:
    headers = {b"authorization": b"Bearer \xff\xfe\x80"}
    assert client.get("/v1/models", headers=headers).status_code == 401


def test_without_keys_any_key_works(vlm: VLM) -> None:
    with running(vlm) as (client, _):
        for headers in ({}, bearer("sk-anything"), {"authorization": "Bearer"}):
            assert client.get("/v1/models", headers=headers).status_code == 200


# --- other origins ---------------------------------------------------------------------------------------------------


def test_other_origins_are_off_by_default(vlm: VLM) -> None:
    with running(vlm) as (client, _):
        asked = {"origin": ORIGIN, "access-control-request-method": "POST"}
        preflight = client.options("/v1/chat/completions", headers=asked)
        answer = client.get("/v1/models", headers={"origin": ORIGIN})
        for response in (preflight, answer):
            assert not [name for name in response.headers if name.startswith("access-control")]


def test_an_allowed_origin_needs_no_key_to_ask(client: httpx.Client) -> None:
    asked = {
        "origin": ORIGIN,
        "access-control-request-method": "POST",
        "access-control-request-headers": "authorization,content-type,x-stainless-os",
    }
    preflight = client.options("/v1/chat/completions", headers=asked)
    assert preflight.status_code == 200
    assert preflight.headers["access-control-allow-origin"] == ORIGIN
    assert "x-stainless-os" in preflight.headers["access-control-allow-headers"]


def test_a_page_of_an_allowed_origin_can_read_refusals(client: httpx.Client) -> None:
    refused = client.get("/v1/models", headers={"origin": ORIGIN})
    assert refused.status_code == 401 and refused.headers["access-control-allow-origin"] == ORIGIN
    assert "x-request-id" in refused.headers["access-control-expose-headers"]
    other = client.get("/v1/models", headers={"origin": "https://other.example", **bearer(KEYS[0])})
    assert "access-control-allow-origin" not in other.headers


# --- sizes ---------------------------------------------------------------------------------------------------------


def test_a_body_that_says_it_is_too_large(client: httpx.Client) -> None:
    response = client.post("/v1/chat/completions", json=chat("a" * 300_000), headers=bearer(KEYS[0]))
    assert response.status_code == 413
    assert response.json()["error"]["code"] == "body_too_large" and "200,000" in response.json()["error"]["message"]


def test_a_body_that_is_too_large_and_does_not_say_so(client: httpx.Client) -> None:
    """Sent in chunks: refused as soon as there is too much of it."""
    sent = 0

    def endless() -> Iterator[bytes]:
        nonlocal sent
        for _ in range(10_000):
            sent += 50_000
            yield b" " * 50_000

    headers = {"content-type": "application/json", **bearer(KEYS[0])}
    try:
        response = client.post("/v1/chat/completions", content=endless(), headers=headers)
    except (httpx.WriteError, httpx.ReadError):  # the server closed before all was sent
        pass
    else:
        assert response.status_code == 413
    assert sent < 100_000_000
    assert client.get("/health").status_code in (200, 503)


def test_a_refusal_is_there_before_the_body_ends(client: httpx.Client) -> None:
    with socket.create_connection((client.base_url.host, client.base_url.port or 80), 10) as raw:
        raw.sendall(
            b"POST /v1/chat/completions HTTP/1.1\r\nhost: a\r\nauthorization: Bearer first-key\r\n"
            b"content-type: application/json\r\ntransfer-encoding: chunked\r\n\r\n"
        )
        for _ in range(5):
            raw.sendall(b"c350\r\n" + b" " * 50_000 + b"\r\n")
        raw.settimeout(10)
        answer = b""
        while b"body_too_large" not in answer:
            answer += raw.recv(65536)
    assert answer.startswith(b"HTTP/1.1 413")


def test_a_body_that_stops_coming_is_given_up(vlm: VLM, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(BodyLimit.__init__, "__defaults__", (0.2,))
    with running(vlm) as (client, service):
        with socket.create_connection((client.base_url.host, client.base_url.port or 80), 10) as raw:
            raw.sendall(
                b"POST /v1/chat/completions HTTP/1.1\r\nhost: a\r\n"
                b"content-type: application/json\r\ncontent-length: 100\r\n\r\n{"
            )
            answer = b""
            while more := raw.recv(65536):  # up to the end: the connection is closed
                answer += more
        assert answer.startswith(b"HTTP/1.1 408") and b"body_timeout" in answer
        wait_for(lambda: not service.in_flight)


def test_a_body_up_to_the_limit_is_read(client: httpx.Client) -> None:
    text = json.dumps(chat(max_tokens=1)).encode()
    body = text + b" " * (200_000 - len(text))
    headers = {"content-type": "application/json", **bearer(KEYS[0])}
    assert client.post("/v1/chat/completions", content=body, headers=headers).status_code == 200
    assert client.post("/v1/chat/completions", content=body + b" ", headers=headers).status_code == 413


def test_guards_let_streams_be_streams(client: httpx.Client) -> None:
    """The first words are there long before the last."""
    with client.stream("POST", "/v1/chat/completions", json=chat(**LONG), headers=bearer(KEYS[0])) as response:
        lines = (line for line in response.iter_lines() if line)
        begun = time.monotonic()
        assert len(list(itertools.islice(lines, 3))) == 3
        first = time.monotonic() - begun
    whole = client.post(
        "/v1/chat/completions", json=chat(**{**LONG, "max_tokens": 300}), headers=bearer(KEYS[0])
    ).elapsed.total_seconds()
    assert first < whole / 3
