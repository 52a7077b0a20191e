"""/metrics, as Prometheus's own parser reads it."""

from __future__ import annotations

import dataclasses

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families

from behold.api.server.metrics import COUNTERS, GAUGES, resident_bytes
from behold.api.vlm import VLM
from behold.engine.stats import EngineStats
from tests.server.running import LONG, chat, running, wait_for


def read(client: httpx.Client) -> dict[str, float]:
    """Sample name, with labels where it has any, to value."""
    response = client.get("/metrics")
    assert response.status_code == 200 and response.headers["content-type"].startswith("text/plain; version=")
    found = {}
    for family in text_string_to_metric_families(response.text):
        assert family.documentation
        for sample in family.samples:
            labels = ",".join(sorted(f"{key}={value}" for key, value in sample.labels.items()))
            found[f"{sample.name}{{{labels}}}" if labels else sample.name] = sample.value
    return found


def test_an_answer_is_counted_and_timed(vlm: VLM) -> None:
    with running(vlm) as (client, service):
        wait_for(lambda: service.health == "ok")
        before = read(client)
        body = chat(max_tokens=9, ignore_eos=True, loop_stop=False)
        usage = client.post("/v1/chat/completions", json=body).json()["usage"]
        after = read(client)

    def more(name: str) -> float:
        return after[name] - before[name]

    assert more("behold_new_tokens_total") == usage["completion_tokens"] == 9
    assert more("behold_prompt_tokens_total") + more("behold_cached_tokens_total") == usage["prompt_tokens"]
    assert more("behold_time_to_first_token_seconds_count") == 1
    assert more("behold_inter_token_seconds_count") == 8
    assert more("behold_answer_seconds_count") == 1
    assert more("behold_answers_total{ended_by=length}") == 1
    assert 0 < more("behold_time_to_first_token_seconds_sum") < more("behold_answer_seconds_sum")
    assert after["behold_http_requests_total{path=/v1/chat/completions,status=200}"] == 1
    for gauge in ("waiting", "running"):
        assert after[f"behold_requests_{gauge}"] == 0
    assert after["behold_kv_cache_bytes"] >= 0 and after["behold_rows_free"] >= 1


def test_every_figure_of_the_engine_is_there(vlm: VLM) -> None:
    """A field that the engine gains is a field here: none is forgotten, none is a name of the past."""
    fields = {field.name for field in dataclasses.fields(EngineStats)}
    assert fields == set(COUNTERS) | set(GAUGES)


def test_reuse_is_counted(vlm: VLM) -> None:
    with running(vlm) as (client, service):
        wait_for(lambda: service.health == "ok")
        body = chat("Something that nobody has said before: " + "na " * 50, max_tokens=1)
        first = client.post("/v1/chat/completions", json=body).json()["usage"]["prompt_tokens_details"]
        before = read(client)
        again = client.post("/v1/chat/completions", json=body).json()["usage"]["prompt_tokens_details"]
        after = read(client)
    assert again["cached_tokens"] > first["cached_tokens"]
    assert after["behold_cached_tokens_total"] - before["behold_cached_tokens_total"] == again["cached_tokens"]
    assert after["behold_prefix_cache_hits_total"] - before["behold_prefix_cache_hits_total"] == 1


def test_what_goes_wrong_is_counted(vlm: VLM) -> None:
    with running(vlm, deadline_s=0.2) as (client, service):
        wait_for(lambda: service.health == "ok")
        client.post("/v1/chat/completions", json=chat(**{**LONG, "stream": False}))
        client.post("/v1/chat/completions", json=chat("long " * 3000))
        client.get("/nowhere/a")
        client.get("/nowhere/b")
        found = read(client)
    assert found["behold_answers_total{ended_by=deadline}"] == 1
    assert found["behold_answers_total{ended_by=error}"] == 1
    assert found["behold_http_requests_total{path=/v1/chat/completions,status=504}"] == 1
    assert found["behold_http_requests_total{path=/v1/chat/completions,status=400}"] == 1
    assert found["behold_http_requests_total{path=other,status=404}"] == 2


def test_memory_is_that_of_the_process() -> None:
    found = resident_bytes()
    if found is None:
        pytest.skip("this system does not say")
    assert 50 << 20 < found < 64 << 30
