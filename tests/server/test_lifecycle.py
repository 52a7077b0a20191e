"""How answers and the server come to an end: clients that go away, SIGTERM, Ctrl+C. The command in its own process."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

import httpx
import pytest

from behold.api.vlm import VLM
from tests.server.running import LONG, WAIT_S, chat, running, standing, wait_for

# --- clients that go away --------------------------------------------------------------------------------------------


def test_a_dropped_stream_stops_and_its_memory_is_free(vlm: VLM) -> None:
    with running(vlm) as (client, service):
        wait_for(lambda: service.health == "ok")
        before = vlm.engine.stats().new_tokens
        with standing(vlm):
            with client.stream("POST", "/v1/chat/completions", json=chat(**LONG)) as response:
                lines = response.iter_lines()  # held: the response is closed with it
                assert next(lines)
                assert vlm.engine.stats().running == 1
            wait_for(lambda: not vlm.engine.stats().running)
        written = vlm.engine.stats().new_tokens
        wait_for(lambda: not service.in_flight, seconds=5)
        assert vlm.engine.stats().new_tokens == written < before + LONG["max_tokens"]
        assert "cancelled" in client.get("/metrics").text
    vlm.engine.check()


def test_a_client_that_waits_for_the_whole_and_goes_away(vlm: VLM) -> None:
    with running(vlm) as (client, service):
        wait_for(lambda: service.health == "ok")
        body = chat(**{**LONG, "stream": False})
        with contextlib.suppress(httpx.ReadTimeout), httpx.Client(base_url=client.base_url, timeout=0.5) as other:
            other.post("/v1/chat/completions", json=body)
        wait_for(lambda: not vlm.engine.stats().running, seconds=5)
        wait_for(lambda: not service.in_flight, seconds=5)
    vlm.engine.check()


def test_one_of_many_goes_and_the_others_stay(vlm: VLM) -> None:
    alone = vlm.ask([], "Hello", max_new_tokens=60, ignore_eos=True, loop_stop=False)
    with running(vlm) as (client, service):
        answers: list[str] = []

        def ask() -> None:
            asked = chat(max_tokens=60, ignore_eos=True, loop_stop=False)
            found = client.post("/v1/chat/completions", json=asked).json()
            answers.append(found["choices"][0]["message"]["content"])

        with client.stream("POST", "/v1/chat/completions", json=chat(**LONG)) as response:
            lines = response.iter_lines()
            assert next(lines)
            others = [threading.Thread(target=ask) for _ in range(3)]
            for thread in others:
                thread.start()
        for thread in others:
            thread.join(WAIT_S)
        assert answers == [str(alone)] * 3
        wait_for(lambda: not service.in_flight, seconds=5)
    vlm.engine.check()


def test_extreme_requests_disturb_no_other(vlm: VLM) -> None:
    """Whatever becomes of them, the answer that runs beside them is the one that it is alone."""
    alone = vlm.ask([], "Hello", max_new_tokens=120, ignore_eos=True, loop_stop=False)
    extremes: list[dict[str, Any]] = [
        {"temperature": 1e-300},
        {"temperature": 1e300},
        {"temperature": 1, "repetition_penalty": 1e-39},
        {"temperature": 1, "repetition_penalty": 1e39, "logprobs": True, "top_logprobs": 20},
        {"repetition_penalty": 1e-300, "logprobs": True},
        {"temperature": 1, "top_p": 0, "min_p": 1, "top_k": 1},
        {"seed": -(10**40), "temperature": 1},
        {"stop": ["a" * 100_000], "max_tokens": 10**9},
    ]
    with running(vlm) as (client, service):
        asked = chat(max_tokens=120, ignore_eos=True, loop_stop=False, stream=True)
        with client.stream("POST", "/v1/chat/completions", json=asked) as response:
            lines = response.iter_lines()
            seen = [next(lines)]
            for fields in extremes:
                found = client.post("/v1/chat/completions", json=chat(**{"max_tokens": 3, **fields}))
                assert found.status_code in (200, 400), (fields, found.text)
            seen += list(lines)
        deltas = [json.loads(line[6:])["choices"][0]["delta"] for line in seen if line.startswith("data: {")]
        assert "".join(delta.get("content", "") for delta in deltas) == alone
        wait_for(lambda: not service.in_flight, seconds=5)
    vlm.engine.check()


def test_the_server_that_ends_cuts_off_what_runs(vlm: VLM) -> None:
    with running(vlm) as (client, service):
        asked = chat(**LONG)
        with standing(vlm), client.stream("POST", "/v1/chat/completions", json=asked) as response:
            lines = response.iter_lines()
            next(lines)
            service.abort()
            rest = "\n".join(lines)
        assert '"code":"stopping"' in rest and "[DONE]" not in rest
        assert client.post("/v1/chat/completions", json=chat()).status_code == 503
    vlm.engine.check()


# --- the command -----------------------------------------------------------------------------------------------------


class Served:
    """`behold serve --json` in a process of its own."""

    def __init__(self, *options: str) -> None:
        command = [sys.executable, "-m", "behold", "serve", "--model", "demo", "--port", "0", "--json", *options]
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        self.process = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment
        )
        assert self.process.stdout
        line = self.process.stdout.readline()
        assert line, self.process.communicate()[1]
        self.said: dict[str, Any] = json.loads(line)
        self.client = httpx.Client(base_url=self.said["url"], timeout=WAIT_S, trust_env=False)

    def ended(self) -> tuple[int, str]:
        """Its exit code and what it wrote to stderr."""
        _, err = self.process.communicate(timeout=WAIT_S)
        return self.process.returncode, err


@contextlib.contextmanager
def served(*options: str) -> Iterator[Served]:
    server = Served(*options)
    try:
        with server.client:
            yield server
    finally:
        if server.process.poll() is None:
            server.process.kill()
        server.process.communicate()


@pytest.fixture
def slow() -> dict[str, Any]:
    return chat(**{**LONG, "n": 2})  # still under way when a machine with other work gets to the next line


def test_sigterm_lets_answers_finish_and_refuses_new_ones(slow: dict[str, Any]) -> None:
    with served() as server:
        assert server.said["api"] == f"{server.said['url']}/v1" and server.said["model"] == "demo"
        wait_for(lambda: server.client.get("/health").status_code == 200)
        with server.client.stream("POST", "/v1/chat/completions", json=slow) as response:
            lines = response.iter_lines()
            next(lines)
            server.process.send_signal(signal.SIGTERM)
            wait_for(lambda: server.client.get("/health").status_code == 503)
            # Both a connection that was open before and a new one are told to come again.
            for client in (server.client, httpx.Client(base_url=server.said["url"], trust_env=False)):
                refused = client.post("/v1/chat/completions", json=chat())
                assert refused.status_code == 503 and int(refused.headers["retry-after"]) >= 1
                assert refused.json()["error"]["code"] == "stopping"
            client.close()
            data = [line for line in lines if line]
        assert data[-1] == "data: [DONE]" and '"finish_reason":"length"' in data[-2]
        code, err = server.ended()
        assert code == 0, err
        assert "stopping" in err and "Traceback" not in err


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_second_signal_cuts_off(number: signal.Signals) -> None:
    with served("--grace", "600") as server:
        with server.client.stream("POST", "/v1/chat/completions", json=chat(**LONG)) as response:
            lines = response.iter_lines()
            next(lines)
            server.process.send_signal(number)
            wait_for(lambda: server.client.get("/health").json()["status"] == "stopping")
            server.process.send_signal(number)
            rest = "\n".join(lines)
        assert '"code":"stopping"' in rest
        code, err = server.ended()
        assert code == 0 and "Traceback" not in err, err


def test_the_grace_ends() -> None:
    with served("--grace", "0.2") as server:
        with server.client.stream("POST", "/v1/chat/completions", json=chat(**LONG)) as response:
            lines = response.iter_lines()
            next(lines)
            server.process.send_signal(signal.SIGTERM)
            rest = "\n".join(lines)
        assert '"code":"stopping"' in rest
        assert server.ended()[0] == 0


def test_with_nothing_to_do_it_ends_at_once() -> None:
    with served() as server:
        assert server.client.get("/v1/models").status_code == 200  # and leaves a connection open
        server.process.send_signal(signal.SIGTERM)
        code, err = server.ended()
        assert code == 0 and "Traceback" not in err, err


def test_without_the_extra_it_says_what_to_install(tmp_path: Path) -> None:
    (tmp_path / "sitecustomize.py").write_text("import sys\nsys.modules['prometheus_client'] = None\n")
    environment = {**os.environ, "PYTHONPATH": str(tmp_path)}
    words = [sys.executable, "-m", "behold", "serve", "--model", "demo", "--port", "0"]
    done = subprocess.run(words, capture_output=True, text=True, env=environment, timeout=WAIT_S, check=False)
    assert done.returncode == 1 and "pip install 'behold-vlm[server]'" in done.stderr


def test_a_door_to_the_world_without_a_key_is_worth_a_warning() -> None:
    words = [sys.executable, "-m", "behold", "serve", "--model", "demo", "--port", "0", "--host", "0.0.0.0"]
    process = subprocess.Popen(words, stderr=subprocess.PIPE, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
    try:
        assert process.stderr
        said = lines_until(process.stderr, "curl")
    finally:
        process.send_signal(signal.SIGTERM)
        process.communicate(timeout=WAIT_S)
    assert said[0].startswith("warning:") and "--api-key" in said[0]
    assert any("http://127.0.0.1:" in line and "/v1" in line for line in said)
    assert process.returncode == 0


def lines_until(stream: IO[str], word: str) -> list[str]:
    """Lines up to the first that has the word."""
    lines = []
    for line in stream:
        lines.append(line)
        if word in line:
            return lines
    raise AssertionError("".join(lines))
