"""The soak: many connections for minutes, every answer compared with its solo answer, memory watched."""

from __future__ import annotations

import argparse
import asyncio
import random
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from statistics import median
from typing import Any

import httpx

from benchmarks.serving.client import ask, client
from benchmarks.serving.figures import Exchange, Load, slope
from benchmarks.serving.report import Outcome
from benchmarks.serving.servers import Server, serving
from benchmarks.serving.workload import Mix, requests

POOL = 40  # distinct requests
SAMPLE_S = 2.0
WARM_UP_S = 60.0
GROWTH_LIMIT = 0.02  # of the memory after warm-up: what allocators do not give back at once


@dataclass
class Seen:
    """What the connections have seen. memory: (seconds since the start, resident bytes); caches: the engine's part."""

    exchanges: list[Exchange] = field(default_factory=list)
    wrong: list[str] = field(default_factory=list)
    left: int = 0
    memory: list[tuple[float, int]] = field(default_factory=list)
    caches: list[tuple[float, int]] = field(default_factory=list)


@dataclass(frozen=True)
class Growth:
    """Memory after the warm-up, in bytes: medians of its first and last quarter, the most, and bytes a minute."""

    first: float
    last: float
    most: float
    per_minute: float

    @classmethod
    def of(cls, samples: Sequence[tuple[float, int]], warm_up_s: float) -> Growth:
        """Of samples (seconds, bytes); all of them count where none is later than the warm-up."""
        later = [sample for sample in samples if sample[0] >= warm_up_s] or list(samples)
        quarter = max(1, len(later) // 4)
        return cls(
            first=median(size for _, size in later[:quarter]),
            last=median(size for _, size in later[-quarter:]),
            most=max(size for _, size in later),
            per_minute=60 * slope(later),
        )

    @property
    def none(self) -> bool:
        """The last quarter takes no more than the first, but for a little."""
        return self.last <= self.first * (1 + GROWTH_LIMIT)


@dataclass(frozen=True)
class _Work:
    pool: list[dict[str, Any]]
    alone: list[Exchange]
    until: float
    leaving: float


async def _alone(http: httpx.AsyncClient, pool: list[dict[str, Any]]) -> list[Exchange]:
    """The answers of each request when nothing else runs."""
    answers = [await ask(http, {**body, "stream": False}) for body in pool]
    failed = [answer.error for answer in answers if answer.error]
    if failed:
        raise SystemExit(f"{len(failed)} requests failed alone, the first: {failed[0]}")
    return answers


async def _leave(http: httpx.AsyncClient, body: dict[str, Any]) -> None:
    """A client that goes away after the first piece."""
    async with http.stream("POST", "/v1/chat/completions", json={**body, "stream": True}) as response:
        async for line in response.aiter_lines():
            if '"content"' in line:
                return


async def _connection(http: httpx.AsyncClient, seen: Seen, work: _Work, number: int) -> None:
    """One client: request after request until time is over."""
    rng = random.Random(f"connection {number}")
    while time.monotonic() < work.until:
        chosen = rng.randrange(len(work.pool))
        body = {**work.pool[chosen], "stream": rng.random() < 0.5}
        if rng.random() < work.leaving:
            try:
                await _leave(http, body)
                seen.left += 1
            except httpx.HTTPError as error:
                seen.wrong.append(f"a client that leaves early got {error!r}")
            continue
        exchange, alone = await ask(http, body), work.alone[chosen]
        seen.exchanges.append(exchange)
        if exchange.error:
            seen.wrong.append(exchange.error)
        elif (exchange.text, exchange.finish_reason) != (alone.text, alone.finish_reason):
            seen.wrong.append(f"request {chosen}: {exchange.text!r} instead of {alone.text!r}")


async def _watch(server: Server, seen: Seen, until: float) -> None:
    start = time.monotonic()
    while (now := time.monotonic()) < until:
        counters = await asyncio.to_thread(server.counters)
        held = counters.get("behold_kv_cache_bytes", 0) + counters.get("behold_image_cache_bytes", 0)
        seen.caches.append((now - start, int(held)))
        seen.memory.append((now - start, server.memory_bytes("VmRSS")))
        await asyncio.sleep(SAMPLE_S)


async def _run(server: Server, options: argparse.Namespace, say: Callable[[str], None]) -> Seen:
    fields = {"model": server.model, "temperature": 0, "max_tokens": options.tokens}
    fields["stream_options"] = {"include_usage": True}
    mix = Mix(images=options.images, repeats=options.repeats, side=options.side)
    pool = [
        body if body["stream"] else {key: value for key, value in body.items() if key != "stream_options"}
        for body in requests(POOL, mix, seed=7, fields=fields)
    ]
    async with client(server.base_url, 1) as http:
        alone = await _alone(http, pool)
    say(f"{POOL} requests answered one by one; {options.clients} connections for {options.duration:.0f} s")
    seen = Seen()
    work = _Work(pool, alone, time.monotonic() + options.duration, options.leaving)
    async with client(server.base_url, options.clients) as http:
        connections = (_connection(http, seen, work, number) for number in range(options.clients))
        await asyncio.gather(_watch(server, seen, work.until), *connections)
    return seen


def soak(model: str, options: argparse.Namespace, say: Callable[[str], None]) -> Outcome:
    """Run it against a fresh server, and judge."""
    waiting = options.clients + 64
    with serving("behold", model, threads=options.threads, dtype=options.dtype, max_waiting=waiting) as server:
        before = server.memory_bytes("VmRSS")
        seen = asyncio.run(_run(server, options, say))
        peak, counters = server.memory_bytes("VmHWM"), server.counters()
    load = Load.of(seen.exchanges)
    warm_up_s = min(WARM_UP_S, options.duration / 5)
    growth, caches = Growth.of(seen.memory, warm_up_s), Growth.of(seen.caches, warm_up_s)
    problems = [f"{len(seen.wrong)} wrong answers or errors"] if seen.wrong else []
    problems += [] if growth.none else [f"memory grew from {_mb(growth.first)} to {_mb(growth.last)}"]
    held = counters.get("behold_requests_running", 0) + counters.get("behold_requests_waiting", 0)
    problems += [f"{held:.0f} requests are still held after the last client left"] if held else []
    what = (
        f"{options.clients} connections over HTTP for {options.duration / 60:.1f} minutes, {POOL} different requests "
        f"({100 * options.images:.0f} % with a picture), half of them streamed; every answer is compared with the one "
        "that its request gave alone."
    )
    notes = [
        f"{load.n} answers: {load.n - len(seen.wrong)} equal to their solo answers, {len(seen.wrong)} wrong or failed; "
        f"{seen.left} clients left in the middle of an answer",
        f"memory: {_mb(before)} when it started, {_mb(growth.first)} after warm-up, {_mb(growth.last)} at the end, "
        f"{_mb(growth.most)} at most; {growth.per_minute / 1e6:+.2f} MB a minute after warm-up; keys, values and "
        f"embeddings are {_mb(caches.first)} of it after warm-up, {_mb(caches.last)} at the end",
        *[f"wrong: {wrong[:300]}" for wrong in seen.wrong[:5]],
    ]
    failed = "; ".join(problems) or None
    return Outcome("soak", options.command, what, loads={"behold": (load, peak)}, notes=notes, failed=failed)


def _mb(size: float) -> str:
    return f"{size / 1e6:.0f} MB"
