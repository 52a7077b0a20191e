"""What /metrics tells Prometheus: how long answers take, what came of them, and what the engine holds."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, get_args

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily

from behold.types import Delta, EndedBy

if TYPE_CHECKING:
    from prometheus_client.core import Metric

    from behold.engine.engine import Engine

# What ends an answer beside EndedBy.
_BROKEN = ("deadline", "error")
_SECONDS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600)
_SHORT_SECONDS = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5)


class Metrics:
    """Counters and histograms of one server, in a registry of their own."""

    def __init__(self, engine: Engine) -> None:
        self.registry = CollectorRegistry()
        self.registry.register(_EngineCollector(engine))
        r = self.registry
        self.first_token = Histogram(
            "behold_time_to_first_token_seconds", "From submission to the first token", buckets=_SECONDS, registry=r
        )
        self.between_tokens = Histogram(
            "behold_inter_token_seconds", "Between two tokens of an answer", buckets=_SHORT_SECONDS, registry=r
        )
        self.whole = Histogram(
            "behold_answer_seconds", "From submission to the end of an answer", buckets=_SECONDS, registry=r
        )
        self.answers = Counter("behold_answers", "Answers by what ended them", ["ended_by"], registry=r)
        for ended_by in (*get_args(EndedBy), *_BROKEN):
            self.answers.labels(ended_by)  # from 0 on: a rate needs a beginning
        self.responses = Counter("behold_http_requests", "Responses by path and status", ["path", "status"], registry=r)

    def watch(self) -> Watch:
        """What follows one answer from now on."""
        return Watch(self)

    def responded(self, path: str, status: int) -> None:
        """Count a response; `path` is that of a route, so there are few."""
        self.responses.labels(path, str(status)).inc()

    def text(self) -> bytes:
        """The exposition format."""
        return generate_latest(self.registry)


@dataclass(slots=True)
class Watch:
    """One answer's clock."""

    metrics: Metrics
    submitted: float = field(default_factory=time.perf_counter)
    latest: float = 0.0
    over: bool = False

    def saw(self, delta: Delta) -> None:
        now = time.perf_counter()
        if delta.ids:
            if not self.latest:
                self.metrics.first_token.observe(now - self.submitted)
            else:
                for _ in delta.ids:
                    self.metrics.between_tokens.observe((now - self.latest) / len(delta.ids))
            self.latest = now
        if delta.finish_reason is not None:
            self.metrics.whole.observe(now - self.submitted)
            self.metrics.answers.labels(delta.ended_by or "end").inc()
            self.over = True

    def broke(self, ended_by: str) -> None:
        """It has no last delta. Nothing, where it had one: a consumer may close what is complete."""
        if not self.over:
            self.metrics.answers.labels(ended_by).inc()


# name in EngineStats → (metric, what it is); a counter only grows.
COUNTERS = {
    "steps": ("behold_engine_steps", "Steps of the engine"),
    "prompt_tokens": ("behold_prompt_tokens", "Prompt tokens that were computed"),
    "cached_tokens": ("behold_cached_tokens", "Prompt tokens that were in the cache already"),
    "new_tokens": ("behold_new_tokens", "Tokens of answers"),
    "prefix_hits": ("behold_prefix_cache_hits", "Prompts whose beginning was in the cache"),
    "prefix_misses": ("behold_prefix_cache_misses", "Prompts whose beginning was not in the cache"),
    "image_cache_hits": ("behold_image_cache_hits", "Pictures whose embeddings were in the cache"),
    "image_cache_misses": ("behold_image_cache_misses", "Pictures that had to be encoded"),
}
GAUGES = {
    "waiting": ("behold_requests_waiting", "Requests that wait for their turn"),
    "running": ("behold_requests_running", "Requests that run"),
    "rows_free": ("behold_rows_free", "Requests that could begin to run now"),
    "tokens_per_s": ("behold_tokens_per_second", "New tokens a second, over the last seconds"),
    "kv_cache_bytes": ("behold_kv_cache_bytes", "Memory of keys and values"),
    "image_cache_bytes": ("behold_image_cache_bytes", "Memory of image embeddings"),
}


class _EngineCollector:
    """Reads the engine when Prometheus asks, and never in between."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    def collect(self) -> Iterator[Metric]:
        stats = self._engine.stats()
        for name, (metric, meaning) in COUNTERS.items():
            yield CounterMetricFamily(metric, meaning, value=getattr(stats, name))
        for name, (metric, meaning) in GAUGES.items():
            yield GaugeMetricFamily(metric, meaning, value=getattr(stats, name))
        resident = resident_bytes()
        if resident is not None:
            yield GaugeMetricFamily("behold_process_resident_bytes", "Memory of the process", value=resident)


def resident_bytes() -> int | None:
    """Memory of this process that is in RAM; None where the system does not tell without further packages."""
    try:
        with open("/proc/self/statm", "rb") as file:
            pages = int(file.read().split()[1])
    except OSError:
        return None
    return pages * os.sysconf("SC_PAGE_SIZE")
