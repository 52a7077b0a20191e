"""`behold serve` in this process, up to where the server would run: options, the model, and what is said."""

from __future__ import annotations

import json
import socket
from collections.abc import Callable
from typing import Any

import pytest

from behold.api.cli import main
from behold.api.server import serving
from behold.api.server.settings import ServerSettings
from behold.api.vlm import VLM

Ran = tuple[int, ServerSettings | None, str, str]


@pytest.fixture
def serve(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., Ran]:
    """Runs the command on the bundled model; (exit code, settings of the server that was begun, stdout, stderr)."""
    begun: list[ServerSettings] = []

    class Begun:
        def __init__(self, vlm: VLM, settings: ServerSettings, *, on_ready: Callable[[], object], tell: object) -> None:
            assert vlm.name == "demo" and callable(tell)
            self.on_ready = on_ready
            begun.append(settings)

        def run(self, sockets: list[Any]) -> None:
            assert len(sockets) == 1
            self.on_ready()

    def serve(*options: str) -> Ran:
        monkeypatch.setattr(serving, "Server", Begun)
        with pytest.raises(SystemExit) as leaving:
            main(["serve", "--model", "demo", "--device", "cpu", *options])
        said = capsys.readouterr()
        assert isinstance(leaving.value.code, int)
        return leaving.value.code, begun[-1] if begun else None, said.out, said.err

    return serve


def test_every_option_reaches_the_server(serve: Callable[..., Ran]) -> None:
    words = "--host 127.0.0.1 --port 0 --api-key a --api-key b --cors-origin https://x.example --allow-urls "
    words += "--jpeg-side 768 "
    words += "--max-body-mib 3 --max-waiting 7 --deadline 9 --grace 2.5 --served-model-name some/name --json"
    code, settings, out, err = serve(*words.split())
    assert code == 0, err
    assert settings == ServerSettings(
        host="127.0.0.1",
        port=0,
        api_keys=("a", "b"),
        cors_origins=("https://x.example",),
        allow_urls=True,
        jpeg_side=768,
        max_body_bytes=3 << 20,
        max_waiting=7,
        deadline_s=9,
        grace_s=2.5,
        served_model_name="some/name",
    )
    said = json.loads(out)
    assert said["model"] == "some/name" and said["api"] == said["url"] + "/v1"
    assert int(said["url"].rpartition(":")[2]) > 0


def test_the_defaults_are_those_of_the_server(serve: Callable[..., Ran], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("BEHOLD_API_KEY", raising=False)
    code, settings, out, err = serve("--port", "0")
    assert (code, out) == (0, "")
    assert settings == ServerSettings(port=0)
    for word in ("page", "/v1", "curl", "any key will do"):
        assert word in err
    assert "warning" not in err


def test_the_key_may_be_in_the_environment(serve: Callable[..., Ran], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BEHOLD_API_KEY", "secret")
    _, settings, _, err = serve("--port", "0", "--host", "0.0.0.0")
    assert settings and settings.api_keys == ("secret",)
    assert "$BEHOLD_API_KEY" in err and "secret" not in err and "warning" not in err


@pytest.mark.parametrize(
    ("options", "code", "said"),
    [
        (["--port", "70000"], 2, "65535"),
        (["--max-waiting", "0"], 2, "max-waiting"),
        (["--deadline", "0"], 1, "deadline_s"),
        (["--api-key", "ké"], 1, "API key"),
        (["--host", "no such host"], 1, "--host"),
        (["--host", "203.0.113.7"], 1, "cannot listen at 203.0.113.7"),
    ],
    ids=["port", "waiting", "deadline", "key", "host", "not here"],
)
def test_what_cannot_be_is_said(serve: Callable[..., Ran], options: list[str], code: int, said: str) -> None:
    found, settings, out, err = serve(*options)
    assert (found, settings, out) == (code, None, "")
    assert said in err


def test_a_port_in_use_is_told_before_the_model_is_loaded(serve: Callable[..., Ran]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        code, settings, out, err = serve("--model", "no such model", "--port", port)
    assert (code, settings, out) == (1, None, "")
    assert err.startswith("error: cannot listen at 127.0.0.1:" + port) and "in use" in err
