"""A client of the OpenAI API that notes when each piece of an answer comes, and loads of many such clients."""

from __future__ import annotations

import asyncio
import json
import random
import time
from collections.abc import AsyncIterator, Sequence
from typing import Any

import httpx

from benchmarks.serving.figures import Exchange

TIMEOUT_S = 3600.0


def client(base_url: str, connections: int) -> httpx.AsyncClient:
    """Connections to one server; nothing of the environment's proxies."""
    limits = httpx.Limits(max_connections=connections, max_keepalive_connections=connections)
    return httpx.AsyncClient(base_url=base_url, timeout=TIMEOUT_S, limits=limits, trust_env=False)


async def ask(http: httpx.AsyncClient, body: dict[str, Any], *, due: float | None = None) -> Exchange:
    """One request, streamed where its body says so. Whatever goes wrong is in the record, not raised."""
    due = time.perf_counter() if due is None else due
    try:
        return await (_streamed if body.get("stream") else _whole)(http, body, due)
    except (httpx.HTTPError, ValueError, KeyError, LookupError) as error:
        return Exchange(due, time.perf_counter(), error=f"{type(error).__name__}: {error}")


async def _whole(http: httpx.AsyncClient, body: dict[str, Any], due: float) -> Exchange:
    response = await http.post("/v1/chat/completions", json=body)
    now = time.perf_counter()
    if response.status_code != 200:
        return Exchange(due, now, status=response.status_code, error=response.text[:500])
    answer = response.json()
    choice = answer["choices"][0]
    return Exchange(
        due,
        now,
        text=choice["message"]["content"] or "",
        status=200,
        finish_reason=choice["finish_reason"],
        usage=answer["usage"],
    )


async def _streamed(http: httpx.AsyncClient, body: dict[str, Any], due: float) -> Exchange:
    arrivals: list[float] = []
    pieces: list[str] = []
    usage: dict[str, Any] = {}
    finish = error = None
    async with http.stream("POST", "/v1/chat/completions", json=body) as response:
        if response.status_code != 200:
            text = (await response.aread()).decode("utf-8", "replace")[:500]
            return Exchange(due, time.perf_counter(), status=response.status_code, error=text)
        async for chunk in _chunks(response):
            now = time.perf_counter()
            error = json.dumps(chunk["error"]) if "error" in chunk else error
            usage = chunk.get("usage") or usage
            for choice in chunk.get("choices", ()):
                finish = choice.get("finish_reason") or finish
                if piece := choice.get("delta", {}).get("content"):
                    pieces.append(piece)
                    arrivals.append(now)
    ended = time.perf_counter()
    if error is None and finish is None:
        error = "the stream ended without a finish_reason"
    return Exchange(due, ended, tuple(arrivals), "".join(pieces), 200, error, finish, usage)


async def _chunks(response: httpx.Response) -> AsyncIterator[dict[str, Any]]:
    """The JSON of each server-sent event."""
    async for line in response.aiter_lines():
        if line.startswith("data: ") and line != "data: [DONE]":
            yield json.loads(line[len("data: ") :])


async def closed_loop(http: httpx.AsyncClient, bodies: Sequence[dict[str, Any]], clients: int) -> list[Exchange]:
    """`clients` at once, each sending its next request when it has its answer; in the order of `bodies`."""
    ahead = iter(enumerate(bodies))
    done: dict[int, Exchange] = {}

    async def one() -> None:
        for number, body in ahead:
            done[number] = await ask(http, body)

    await asyncio.gather(*(one() for _ in range(clients)))
    return [done[number] for number in range(len(bodies))]


async def poisson(
    http: httpx.AsyncClient, bodies: Sequence[dict[str, Any]], per_s: float, *, seed: int
) -> list[Exchange]:
    """Requests that arrive independently of each other and of the answers, `per_s` of them a second on average."""
    rng = random.Random(f"arrivals {seed}")
    due = time.perf_counter()
    tasks = []
    for body in bodies:
        due += rng.expovariate(per_s)
        await asyncio.sleep(max(0.0, due - time.perf_counter()))
        tasks.append(asyncio.create_task(ask(http, body, due=due)))
    return list(await asyncio.gather(*tasks))
