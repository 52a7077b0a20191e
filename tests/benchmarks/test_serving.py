"""The serving benchmark's own arithmetic, its work, its report, and one run without HTTP, so that it does not rot."""

from __future__ import annotations

import asyncio
import base64
import io
import json
import math
import os
import subprocess
import sys
from pathlib import Path

import httpx
import pytest
from PIL import Image
from rich.console import Console

from benchmarks import serve
from benchmarks.serving import client
from benchmarks.serving.figures import Bar, Exchange, Load, intervals, percentile, slope
from benchmarks.serving.http_cases import length_fields
from benchmarks.serving.report import Outcome, section, show
from benchmarks.serving.servers import read_metrics
from benchmarks.serving.soak import Growth
from benchmarks.serving.workload import Mix, picture, requests

ROOT = Path(__file__).parents[2]


def exchange(due: float, *arrivals: float, error: str | None = None, tokens: int = 3) -> Exchange:
    ended = arrivals[-1] if arrivals else due
    return Exchange(due, ended, arrivals, error=error, usage={"completion_tokens": tokens})


# --- figures ---------------------------------------------------------------------------------------------------------


def test_percentiles_lie_between_the_nearest_values() -> None:
    assert [percentile([4.0, 1.0, 3.0, 2.0], p) for p in (0, 50, 95, 100)] == [1.0, 2.5, pytest.approx(3.85), 4.0]
    assert math.isnan(percentile([], 50))


def test_a_slope_is_that_of_the_best_line() -> None:
    assert slope([(0.0, 5.0), (1.0, 7.0), (2.0, 9.0)]) == pytest.approx(2.0)
    assert slope([(3.0, 1.0)]) == slope([]) == 0.0


def test_a_load_counts_failures_as_errors_only() -> None:
    done = [exchange(0.0, 1.0, 1.5, 2.0), exchange(1.0, 4.0, 4.1, 5.0), exchange(0.0, error="refused")]
    load = Load.of(done)
    assert (load.n, load.errors) == (3, 1)
    assert load.requests_per_s == pytest.approx(2 / 5)
    assert load.tokens_per_s == pytest.approx(6 / 5)
    assert load.first_token_s[50] == pytest.approx(2.0)
    assert load.interval_s[50] == pytest.approx(0.5)
    assert intervals([1.0, 1.5, 2.0]) == [0.5, 0.5]


def test_growth_compares_the_end_with_the_time_after_warm_up() -> None:
    rising = [(float(second), 100 + second) for second in range(100)]
    flat = [(float(second), min(150, 100 + second)) for second in range(100)]
    assert Growth.of(rising, 50.0).per_minute == pytest.approx(60.0)
    assert not Growth.of(rising, 50.0).none
    assert Growth.of(flat, 50.0).none and Growth.of(flat, 50.0).most == 150
    assert Growth.of([(0.0, 7)], 50.0).first == 7


def test_prometheus_samples_are_added_up_by_name() -> None:
    text = '# HELP a b\n# TYPE a counter\na{x="1 2"} 2.0\na{x="3"} 1\nb_total 5e2\n'
    assert read_metrics(text) == {"a": 3.0, "b_total": 500.0}


# --- work ------------------------------------------------------------------------------------------------------------


def test_the_same_seed_is_the_same_work() -> None:
    mix = Mix(images=0.6, repeats=0.5, side=48, streams=0.5)
    bodies = requests(60, mix, seed=3, fields={"model": "m"})
    assert bodies == requests(60, mix, seed=3, fields={"model": "m"}) != requests(60, mix, seed=4, fields={})
    with_pictures = [
        body["messages"][0]["content"] for body in bodies if isinstance(body["messages"][0]["content"], list)
    ]
    uris = [content[0]["image_url"]["url"] for content in with_pictures]
    assert 20 < len(uris) < 50
    assert len(set(uris)) < len(uris)
    decoded = Image.open(io.BytesIO(base64.b64decode(uris[0].partition(",")[2])))
    assert decoded.size == (48, 48)
    assert 0 < sum(body["stream"] for body in bodies) < 60


def test_no_two_pictures_are_equal() -> None:
    assert len({picture(seed, 30).tobytes() for seed in range(300)}) == 300


def test_lengths_are_told_in_each_servers_words() -> None:
    assert length_fields("behold", 9, exactly=False) == length_fields("transformers", 9, exactly=False)
    assert length_fields("behold", 9, exactly=True)["min_tokens"] == 9
    config = json.loads(length_fields("transformers", 9, exactly=True)["generation_config"])
    assert (config["min_new_tokens"], config["max_new_tokens"]) == (9, 9)


# --- the client ------------------------------------------------------------------------------------------------------


def answering(response: httpx.Response) -> httpx.AsyncClient:
    return httpx.AsyncClient(base_url="http://server", transport=httpx.MockTransport(lambda _: response))


def streamed(*chunks: object) -> httpx.Response:
    lines = [f"data: {json.dumps(chunk)}\n\n" for chunk in chunks] + ["data: [DONE]\n\n"]
    return httpx.Response(200, text="".join(lines))


def test_the_client_reads_a_stream() -> None:
    response = streamed(
        {"choices": [{"delta": {"role": "assistant"}}]},
        {"choices": [{"delta": {"content": "a "}}]},
        {"choices": [{"delta": {"content": "cross"}, "finish_reason": "stop"}]},
        {"choices": [], "usage": {"completion_tokens": 2}},
    )
    got = asyncio.run(client.ask(answering(response), {"stream": True}))
    assert (got.text, len(got.arrivals), got.finish_reason, got.new_tokens) == ("a cross", 2, "stop", 2)
    assert got.error is None and got.first_token_s is not None and got.first_token_s >= 0


@pytest.mark.parametrize(
    ("response", "error"),
    [
        (httpx.Response(429, text="queue full"), "queue full"),
        (streamed({"choices": [{"delta": {"content": "a"}}]}), "without a finish_reason"),
        (streamed({"error": {"message": "broken"}}), "broken"),
        (httpx.Response(200, text="data: {no json\n\n"), "JSONDecodeError"),
    ],
)
def test_the_client_notes_what_went_wrong(response: httpx.Response, error: str) -> None:
    got = asyncio.run(client.ask(answering(response), {"stream": True}))
    assert got.error is not None and error in got.error


def test_a_closed_loop_keeps_the_order() -> None:
    def reply(request: httpx.Request) -> httpx.Response:
        number = json.loads(request.content)["number"]
        choice = {"message": {"content": str(number)}, "finish_reason": "stop"}
        return httpx.Response(200, json={"choices": [choice], "usage": {"completion_tokens": 1}})

    async def go() -> list[Exchange]:
        async with httpx.AsyncClient(base_url="http://server", transport=httpx.MockTransport(reply)) as http:
            bodies = [{"number": number} for number in range(7)]
            closed = await client.closed_loop(http, bodies, 3)
            return closed + await client.poisson(http, bodies, 1000.0, seed=1)

    assert [got.text for got in asyncio.run(go())] == 2 * list("0123456")


# --- report and command line -----------------------------------------------------------------------------------------


def test_an_outcome_says_what_was_reached() -> None:
    bars = [Bar("together", 8.0, "alone", 10.0, 0.88), Bar("together", 8.0, "theirs", 10.0, 0.45)]
    load = Load.of([exchange(0.0, 0.01, 2.0)])
    outcome = Outcome("pictures", "run me", "Some work.", bars, {"behold": (load, 2_000_000_000)}, ["a note"])
    text = section(outcome, model="toy", dtype="float32", threads=2)
    assert text.startswith("## Serving, pictures: toy, float32, 2 threads\n\nSome work. ")
    assert "| together | 8.00 s | alone | 10.00 s | 0.80× | ≤ 0.88×: reached |" in text
    assert "≤ 0.45×: not reached |" in text
    assert "|  | behold |" in text and "| requests/s | 0.50 |" in text
    assert "| first token | p50 10.0 ms · p95 10.0 ms · p99 10.0 ms |" in text
    assert "`run me`" in text and "- a note" in text
    assert not outcome.good
    assert Outcome("x", "", "", bars[:1]).good and not Outcome("x", "", "", failed="memory grew").good
    console = Console(record=True, width=200, file=io.StringIO())
    show(outcome, console)
    assert "not reached" in console.export_text()


def test_a_case_can_be_repeated_as_it_was_run() -> None:
    given = ["--model", "bench", "--case", "load", "--write", "--case=soak", "--rate", "4"]
    options = serve.parse(given)
    assert options.case == ["load", "soak"]
    assert serve.settled(options, "soak").command == "python -m benchmarks.serve --case soak --model bench --rate 4"
    assert serve.settled(options, "soak").clients == 200
    assert serve.settled(options, "load").limit(0.5) == 0.5
    demo = serve.settled(serve.parse([]), "load")
    assert (demo.exactly, demo.requests, demo.limit(0.5)) == (False, 64, None)
    with pytest.raises(SystemExit):
        serve.parse(["--rounds", "0"])


def test_a_run_with_the_demo() -> None:
    command = [sys.executable, "-m", "benchmarks.serve", "--case", "pictures", "--case", "follow-up"]
    command += ["--questions", "2", "--tokens", "4", "--threads", "1", "--no-transformers"]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(ROOT / "src"), str(ROOT)]), "COLUMNS": "200"}
    run = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
    assert "2 of 2 answers are the same to the last token" in run.stdout
    assert "first token of a follow-up" in run.stdout
