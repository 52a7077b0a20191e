"""The case of a load over HTTP: many clients, texts and pictures, for behold's server and that of transformers."""

from __future__ import annotations

import argparse
import asyncio
import json
from collections.abc import Callable
from contextlib import ExitStack
from typing import Any

from benchmarks.serving.client import ask, client, closed_loop, poisson
from benchmarks.serving.figures import Exchange, Load
from benchmarks.serving.report import Outcome
from benchmarks.serving.servers import Server, missing_for_transformers, serving
from benchmarks.serving.workload import Mix, requests

SHOWN_COUNTERS = (
    "behold_prefix_cache_hits_total",
    "behold_prefix_cache_misses_total",
    "behold_image_cache_hits_total",
    "behold_image_cache_misses_total",
    "behold_prompt_tokens_total",
    "behold_cached_tokens_total",
)


def length_fields(server: str, tokens: int, *, exactly: bool) -> dict[str, Any]:
    """How each server is told how long an answer is; both greedy."""
    fields: dict[str, Any] = {"max_tokens": tokens, "temperature": 0}
    if exactly and server == "behold":
        fields |= {"min_tokens": tokens, "loop_stop": False}
    elif exactly:
        counts = {"max_new_tokens": tokens, "min_new_tokens": tokens, "do_sample": False}
        fields["generation_config"] = json.dumps(counts)
    return fields


async def _round(server: Server, options: argparse.Namespace, number: int) -> list[Exchange]:
    fields = {"model": server.model, **length_fields(server.name, options.tokens, exactly=options.exactly)}
    fields["stream_options"] = {"include_usage": True}
    mix = Mix(images=options.images, repeats=options.repeats, side=options.side)
    bodies = requests(options.requests, mix, seed=number + 1, fields=fields)
    async with client(server.base_url, options.clients) as http:
        if options.rate is None:
            return await closed_loop(http, bodies, options.clients)
        return await poisson(http, bodies, options.rate, seed=number)


async def _warm_up(server: Server, options: argparse.Namespace) -> None:
    fields = {"model": server.model, **length_fields(server.name, 4, exactly=False)}
    body = requests(1, Mix(images=1, side=options.side, streams=0), seed=0, fields=fields)[0]
    async with client(server.base_url, 1) as http:
        exchange = await ask(http, body)
    if exchange.error:
        raise SystemExit(f"{server.name} refused the first request: {exchange.error}\n{server.output()}")


def load(model: str, options: argparse.Namespace, say: Callable[[str], None]) -> Outcome:
    """The same requests for both servers, round by round in turns."""
    notes, names = [], ["behold"]
    if options.transformers and (missing := missing_for_transformers()):
        notes.append(f"transformers serve was left out: it needs {', '.join(missing)}, which are not installed")
    elif options.transformers:
        names.append("transformers")
    exchanges: dict[str, list[list[Exchange]]] = {name: [] for name in names}
    with ExitStack() as stack:
        servers = []
        for name in names:
            say(f"starting {name}")
            servers.append(stack.enter_context(serving(name, model, threads=options.threads, dtype=options.dtype)))
            asyncio.run(_warm_up(servers[-1], options))
        before = servers[0].counters()
        for number in range(options.rounds):
            for server in servers:
                found = asyncio.run(_round(server, options, number))
                exchanges[server.name].append(found)
                figures = Load.of(found)
                say(f"{server.name}: {figures.requests_per_s:.2f} requests/s, {figures.errors} errors")
        after = servers[0].counters()
        peaks = {server.name: server.memory_bytes("VmHWM") for server in servers}
    loads = {name: (_middle(rounds), peaks[name]) for name, rounds in exchanges.items()}
    errors = [e.error for rounds in exchanges.values() for found in rounds for e in found if e.error]
    notes += [f"error: {error}" for error in errors[:3]]
    notes.append(_hits(before, after))
    if len(names) > 1:
        ratio = loads["behold"][0].requests_per_s / loads["transformers"][0].requests_per_s
        notes.append(f"behold answers {ratio:.2f} times as many requests a second as transformers serve")
    arrivals = "each sends its next when it has its answer" if options.rate is None else f"{options.rate:g} a second"
    what = (
        f"{options.requests} requests over HTTP, {options.clients} connections ({arrivals}), "
        f"{100 * options.images:.0f} % with a picture, {100 * options.repeats:.0f} % of those shown before; "
        f"{'exactly' if options.exactly else 'at most'} {options.tokens} new tokens; {options.rounds} rounds."
    )
    failed = f"{len(errors)} requests failed" if errors else None
    return Outcome("load", options.command, what, loads=loads, notes=notes, failed=failed)


def _middle(rounds: list[list[Exchange]]) -> Load:
    """The round of median speed; the one below where there are two in the middle."""
    loads = sorted((Load.of(found) for found in rounds), key=lambda load: load.requests_per_s)
    return loads[(len(loads) - 1) // 2]


def _hits(before: dict[str, float], after: dict[str, float]) -> str:
    found = {name: after[name] - before.get(name, 0.0) for name in SHOWN_COUNTERS if name in after}
    words = [f"{name.removeprefix('behold_').removesuffix('_total')} {value:.0f}" for name, value in found.items()]
    return "behold's caches: " + ", ".join(word.replace("_", " ") for word in words)
