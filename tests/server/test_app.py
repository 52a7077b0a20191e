"""The application behind a real socket: models, health, shapes of refusals, and requests that nobody can want."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import httpx
import numpy as np
import pytest

from behold.api.server.app import create_app
from behold.api.server.errors import ApiError, api_error_of
from behold.api.server.held import HeldPictures
from behold.api.server.service import Service
from behold.api.server.settings import ServerSettings
from behold.api.vlm import VLM
from behold.errors import BusyError, CapacityError, ChatError, MediaError, MissingDependencyError, OptionError
from behold.types import ImageInput, Message, Prompt, TextPart
from tests.server.running import LONG, chat, running, standing, wait_for

# one white pixel, as a PNG
PIXEL = "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAIAAACQd1PeAAAADElEQVR4nGP4//8/AAX+Av4N70a4AAAAAElFTkSuQmCC"
Pair = tuple[httpx.Client, Service]


@pytest.fixture(scope="module")
def server(vlm: VLM) -> Iterator[Pair]:
    with running(vlm, max_waiting=3) as pair:
        yield pair


@pytest.fixture
def client(server: Pair) -> httpx.Client:
    return server[0]


def refusal(response: httpx.Response) -> dict[str, object]:
    """The body of a refusal, whose shape never differs."""
    body = response.json()
    assert set(body) == {"error"}
    assert set(body["error"]) == {"message", "type", "param", "code"}
    assert response.headers["x-request-id"]
    return body["error"]


# --- the model -----------------------------------------------------------------------------------------------------


def test_the_loaded_model_is_the_only_one(client: httpx.Client, vlm: VLM) -> None:
    listed = client.get("/v1/models").json()
    assert listed["object"] == "list"
    (model,) = listed["data"]
    assert model["id"] == "demo" and model["object"] == "model" and model["owned_by"] == "behold"
    assert model["modalities"] == {"input": ["text", "image"], "output": ["text"]}
    assert model["max_model_len"] == vlm.model.config.text.max_position_embeddings
    assert client.get("/v1/models/demo").json() == model


def test_an_unknown_model_is_404(client: httpx.Client) -> None:
    answers = [client.get("/v1/models/llava-hf/other"), client.post("/v1/chat/completions", json=chat(model="other"))]
    for response in answers:
        assert response.status_code == 404
        error = refusal(response)
        assert error["code"] == "model_not_found" and error["param"] == "model"


def test_ids_with_slashes_and_their_last_part(vlm: VLM) -> None:
    with running(vlm, served_model_name="some/long/name") as (client, service):
        for name in ("some/long/name", "name"):
            assert client.get(f"/v1/models/{name}").json()["id"] == "some/long/name"
            service.check_model(name)
        assert client.get("/v1/models/long/name").status_code == 404


def test_a_folder_is_named_by_its_last_part(vlm: VLM, tmp_path: object) -> None:
    other = VLM.__new__(VLM)
    other.__dict__.update(vlm.__dict__, name=str(tmp_path))
    assert Service(other, ServerSettings()).model_id == str(tmp_path).rpartition("/")[2]


def test_health_is_200_once_the_model_has_answered(vlm: VLM) -> None:
    before = vlm.engine.stats().new_tokens
    with running(vlm) as (client, service):
        wait_for(lambda: service.health != "starting")
        response = client.get("/health")
        assert response.status_code == 200 and response.json() == {"status": "ok", "model": "demo"}
        assert vlm.engine.stats().new_tokens > before
        assert client.head("/health").status_code == 200
        service.draining = True
        assert client.get("/health").status_code == 503
        assert client.get("/health").json()["status"] == "stopping"
        assert client.get("/metrics").status_code == 200
        refused = client.post("/v1/chat/completions", json=chat())
        assert refused.status_code == 503 and refused.headers["retry-after"]
        assert refusal(refused)["code"] == "stopping"


def test_who_still_sends_reads_why_it_is_refused(vlm: VLM) -> None:
    with running(vlm) as (client, service):
        service.draining = True
        with socket.create_connection((client.base_url.host, client.base_url.port or 80), 10) as raw:
            raw.sendall(b"POST /v1/chat/completions HTTP/1.1\r\nhost: a\r\ncontent-length: 100000\r\n\r\n")
            assert raw.recv(9, socket.MSG_PEEK) == b"HTTP/1.1 "
            raw.sendall(b" " * 60_000)
            raw.sendall(b" " * 40_000)  # on a connection that was closed, this fails, and the answer is lost
            answer = b""
            while more := raw.recv(65536):
                answer += more
        assert answer.startswith(b"HTTP/1.1 503") and b"connection: close" in answer and b"stopping" in answer


def test_health_says_that_the_model_cannot_answer(
    vlm: VLM, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def broken(*_: object, **__: object) -> None:
        raise RuntimeError("no memory at /secret")

    monkeypatch.setattr(vlm.processor, "chat", broken)
    with running(vlm) as (client, service):
        wait_for(lambda: service.health != "starting")
        response = client.get("/health")
        assert response.status_code == 503 and response.json()["status"] == "failed"
        answer = client.post("/v1/chat/completions", json=chat())
        assert answer.status_code == 500 and "secret" not in answer.text
        assert answer.headers["x-request-id"] in caplog.text and "no memory at /secret" in caplog.text


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_health_says_that_nobody_drives_the_engine(vlm: VLM, monkeypatch: pytest.MonkeyPatch) -> None:
    def dying() -> bool:
        raise SystemExit  # ends a thread without a word

    with running(vlm) as (client, service):
        wait_for(lambda: service.health == "ok")
        with monkeypatch.context() as patch:
            patch.setattr(vlm.engine, "step", dying)
            with client.stream("POST", "/v1/chat/completions", json=chat(**LONG)):
                wait_for(lambda: service.health == "dead")
        response = client.get("/health")
        assert response.status_code == 503 and response.json()["status"] == "dead"
        refused = client.post("/v1/chat/completions", json=chat())
        assert refused.status_code == 503 and refusal(refused)["code"] == "dead"


# --- refusals ------------------------------------------------------------------------------------------------------


def test_what_is_not_there(client: httpx.Client) -> None:
    nothing = client.get("/v2/nothing")
    assert nothing.status_code == 404 and refusal(nothing)["code"] == "not_found"
    wrong = client.get("/v1/chat/completions")
    assert wrong.status_code == 405 and refusal(wrong)["code"] == "method_not_allowed"
    assert wrong.headers["allow"] == "POST" and "POST" in str(refusal(wrong)["message"])


def test_docs_that_need_a_network_are_off(client: httpx.Client) -> None:
    assert client.get("/docs").status_code == client.get("/redoc").status_code == 404
    assert "/v1/chat/completions" in client.get("/openapi.json").json()["paths"]


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b"[]",
        b"null",
        b"\xff\xfe",
        b"[" * 100_000,
        b'{"messages":' + b"[" * 5000 + b"]" * 5000 + b"}",
        b'{"messages":[{"role":"user","content":NaN}]}',
        b'{"messages":[{"role":"user","content":"a"}],"temperature":NaN}',
        b'{"messages":[{"role":"user","content":"a"}],"temperature":Infinity}',
        b'{"messages":[{"role":"user","content":"a"}],"seed":1e999}',
        b'{"messages":[{"role":"user","content":"a"}],"seed":' + b"9" * 10_000 + b"}",
        b'{"messages":[{"role":"user","content":"a"}],"max_tokens":-1}',
        b'{"messages":[{"role":"user","content":"\\ud800"}]}',
        b'{"messages":[{"role":"\\udc00","content":"a"}]}',
        b'{"messages":[{"role":"user","content":"a"}],"stop":["\\ud83d"]}',
        b'{"messages":{"role":"user"}}',
        b'{"messages":[[]]}',
        b'{"messages":"hello"}',
    ],
    ids=range(19),
)
def test_bodies_that_nobody_can_want_are_400(client: httpx.Client, body: bytes) -> None:
    response = client.post("/v1/chat/completions", content=body, headers={"content-type": "application/json"})
    assert response.status_code == 400, response.text
    refusal(response)


def test_large_numbers_that_mean_something(client: httpx.Client) -> None:
    large = chat(max_tokens=10**30, seed=10**40, temperature=1e-300)
    assert client.post("/v1/chat/completions", json=large).status_code == 200


def test_another_content_type_is_refused(client: httpx.Client) -> None:
    """A browser sends text to another origin without asking; JSON it does not."""
    response = client.post("/v1/chat/completions", content=b"{}", headers={"content-type": "text/plain"})
    assert response.status_code in (400, 415)
    assert "application/json" in str(refusal(response)["message"])


def test_what_is_no_http_at_all(client: httpx.Client) -> None:
    with socket.create_connection((client.base_url.host, client.base_url.port or 80), 10) as raw:
        raw.sendall(b"\x16\x03\x01 hello\r\n\r\n")
        assert b"400" in raw.recv(1000)
    assert client.get("/health").status_code in (200, 503)


def test_every_error_as_a_client_reads_it(caplog: pytest.LogCaptureFixture) -> None:
    for error in (MediaError("m"), ChatError("m"), OptionError("m"), CapacityError("m")):
        found = api_error_of(error, "messages")
        assert (found.status, found.message, found.param) == (400, "m", "messages")
    busy = api_error_of(BusyError("full", retry_after_s=2.5))
    assert busy.status == 429 and busy.headers["retry-after"] == "3"
    missing = api_error_of(MissingDependencyError("install it"))
    assert missing.status == 501 and missing.headers["x-should-retry"] == "false"
    own = ApiError(418, "tea")
    assert api_error_of(own) is own
    assert not caplog.text
    unknown = api_error_of(RuntimeError("<object at 0x7f>"))
    assert unknown.status == 500 and "0x7f" not in unknown.message
    assert "0x7f" in caplog.text


# --- limits --------------------------------------------------------------------------------------------------------


def test_a_full_queue_is_429(server: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    client, service = server
    engine = service.vlm.engine
    # As when every row is taken: whoever comes has to wait, and nobody may.
    monkeypatch.setattr(engine, "max_waiting", 0)
    monkeypatch.setattr(engine._table, "fits", lambda rows, reserve: False)
    response = client.post("/v1/chat/completions", json=chat())
    assert response.status_code == 429
    assert int(response.headers["retry-after"]) >= 1
    assert refusal(response)["type"] == "rate_limit_error"


def test_too_many_prompts_at_once_are_429(server: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    client, service = server
    monkeypatch.setattr(service, "_in_threads", 3)
    response = client.post("/v1/chat/completions", json=chat())
    assert response.status_code == 429 and response.headers["retry-after"]


def test_pictures_of_waiting_requests_have_a_budget(vlm: VLM) -> None:
    def prompt(size: int) -> Prompt:
        pixels = np.zeros(size, np.uint8)
        return Prompt((1, 2), (ImageInput(pixels, 1, "x"), ImageInput(pixels, 1, "y")))

    held, first, second = HeldPictures(100), prompt(40), prompt(30)
    with held.hold(first), held.hold(first):  # two answers to one question
        assert held.n_bytes == 80
        with pytest.raises(ApiError) as refused, held.hold(second):
            raise AssertionError("let in")
        assert refused.value.status == 429
    assert held.n_bytes == 0
    with held.hold(prompt(400)):  # alone, anything
        assert held.n_bytes == 800
    assert held.n_bytes == 0


def test_pictures_are_let_go_with_their_answer(vlm: VLM) -> None:
    with running(vlm) as (client, service):
        wait_for(lambda: service.health == "ok")
        parts = [{"type": "image_url", "image_url": "data:;base64," + PIXEL}, {"type": "text", "text": "?"}]
        asked = {"messages": [{"role": "user", "content": parts}], **LONG}
        with ThreadPoolExecutor() as pool, standing(vlm) as go_on:
            answer = pool.submit(client.post, "/v1/chat/completions", json=asked)
            wait_for(lambda: service.held_picture_bytes > 0 or answer.done())
            assert not answer.done()
            go_on.set()
            assert answer.result().status_code == 200
        wait_for(lambda: not service.held_picture_bytes, seconds=5)


def test_an_answer_past_its_deadline_stops(vlm: VLM) -> None:
    with running(vlm, deadline_s=0.2) as (client, service):
        wait_for(lambda: service.health == "ok")
        response = client.post("/v1/chat/completions", json=chat(**{**LONG, "stream": False}))
        assert response.status_code == 504
        assert refusal(response)["type"] == "timeout"
        assert response.headers["x-should-retry"] == "false"
        wait_for(lambda: not vlm.engine.stats().running)
        streamed = client.post("/v1/chat/completions", json=chat(**LONG))
        assert streamed.status_code == 200 and '"deadline_exceeded"' in streamed.text
        assert client.post("/v1/chat/completions", json=chat(max_tokens=2)).status_code == 200
    vlm.engine.check()


def test_settings_say_what_is_wrong() -> None:
    for wrong in ({"port": 70000}, {"max_waiting": 0}, {"deadline_s": 0}, {"grace_s": -1}, {"api_keys": ("",)}):
        with pytest.raises(OptionError, match="=" if "api_keys" not in wrong else "key"):
            ServerSettings(**wrong)  # type: ignore[arg-type]
    with pytest.raises(OptionError, match="served_model_name"):
        ServerSettings(served_model_name="")
    policy = ServerSettings().media_policy
    assert not policy.allow_urls and not policy.allow_paths
    assert ServerSettings(allow_urls=True).media_policy.allow_urls
    assert [ServerSettings(host=host).is_local for host in ("localhost", "::1", "0.0.0.0", "box")] == [
        True,
        True,
        False,
        False,
    ]


def test_every_application_has_its_own_counters(vlm: VLM) -> None:
    """Nothing global: two of them in one process do not clash."""
    first, second = create_app(vlm, ServerSettings()), create_app(vlm, ServerSettings())
    assert first.state.service.metrics.registry is not second.state.service.metrics.registry
    assert first.state.service.vlm.processor.chat([Message("user", (TextPart("a"),))]).ids
