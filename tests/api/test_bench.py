"""`behold bench`: what is measured, in this process and in one of its own, and what is printed."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from multiprocessing import Pipe

import pytest

from behold.api import bench
from behold.api.bench import Figures, Setup
from behold.api.cli import main
from behold.errors import BeholdError, OptionError
from tests import toys

TOY = "llava-siglip-qwen2"


def setup(quantize: str | None = None) -> Setup:
    return Setup(toys.checkpoint(TOY), toys.picture(), quantize, tokens=4, runs=2)


def run(capsys: pytest.CaptureFixture[str], *words: object) -> tuple[int, str, str]:
    with pytest.raises(SystemExit) as leaving:
        main([str(word) for word in words])
    captured = capsys.readouterr()
    assert isinstance(leaving.value.code, int)
    return leaving.value.code, captured.out, captured.err


@pytest.fixture
def in_this_process(monkeypatch: pytest.MonkeyPatch) -> list[Setup]:
    """What was measured; a process for each would take seconds."""
    seen: list[Setup] = []

    def measure(setup: Setup, done: Callable[[], object]) -> Figures:
        seen.append(setup)
        return bench.measure(setup, done)

    monkeypatch.setattr(bench, "measure_apart", measure)
    return seen


def test_each_run_is_a_whole_answer_and_nothing_is_reused() -> None:
    steps: list[None] = []
    figures = bench.measure(setup(), lambda: steps.append(None))
    assert len(steps) == setup().steps == 4
    assert len(figures.first_token_s) == len(figures.decode_tokens_per_s) == 2
    assert min(*figures.first_token_s, *figures.decode_tokens_per_s, figures.load_s, figures.import_s) > 0
    assert (figures.quantize, figures.dtype, figures.device, figures.image_tokens) == (None, "float32", "cpu", 16)
    assert figures.prompt_tokens > 16
    assert figures.peak_bytes is None or figures.peak_bytes > 50e6


def test_the_built_in_picture_is_always_the_same() -> None:
    picture = bench.built_in_picture()
    assert (picture.size, picture.mode) == ((640, 480), "RGB")
    assert picture.tobytes() == bench.built_in_picture().tobytes()


def test_every_scheme_is_measured_unless_some_are_named() -> None:
    assert bench.schemes() == (None, "int8", "int4"), "float8 has to be named: it is for GPUs"


def test_a_process_of_its_own_sends_back_what_it_measured() -> None:
    steps: list[None] = []
    figures = bench.measure_apart(setup("int8"), lambda: steps.append(None))
    assert (len(steps), figures.quantize, len(figures.first_token_s)) == (4, "int8", 2)


def test_what_the_other_process_refuses_is_sent_as_it_is() -> None:
    ours, theirs = Pipe(duplex=False)
    bench._work(setup("int3"), theirs)
    kind, error = ours.recv()
    assert kind == "error" and isinstance(error, OptionError) and "int3" in str(error)


def test_a_process_that_dies_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bench, "_work", sys.exit)  # which takes no two arguments
    with pytest.raises(BeholdError, match=r"quantize=None ended without a result \(exit code 1\)"):
        bench.measure_apart(setup())


def test_a_table_and_what_it_is_about_are_printed(
    capsys: pytest.CaptureFixture[str], in_this_process: list[Setup]
) -> None:
    model = toys.checkpoint(TOY)
    code, out, err = run(capsys, "bench", "-m", model, "--runs", 1, "--tokens", 3)
    assert code == 0 and "none (float32)" in out and "int8" in out
    assert "(16 image), 3 new ones; medians of 1; cpu" in out
    assert [each.quantize for each in in_this_process] == [*bench.schemes()]
    assert [each.tokens for each in in_this_process] == [3] * len(in_this_process)
    assert "steps" in err


def test_what_is_refused_is_left_out(capsys: pytest.CaptureFixture[str], in_this_process: list[Setup]) -> None:
    words = ("bench", "-m", toys.checkpoint(TOY), "--runs", 1, "--tokens", 2, "--quantize", "int3")
    code, out, err = run(capsys, *words, "--quantize", "none", "--json")
    record = json.loads(out)
    assert code == 0 and [each["quantize"] for each in record["results"]] == [None]
    assert list(record["refused"]) == ["int3"] and err.startswith("note: int3 is left out: quantize='int3'")
    assert [each.quantize for each in in_this_process] == ["int3", None]
    code, out, err = run(capsys, *words)
    assert (code, out) == (1, "") and "error: quantize='int3' is not supported" in err


def test_your_own_picture_is_measured(
    capsys: pytest.CaptureFixture[str], in_this_process: list[Setup], tmp_path: object
) -> None:
    path = f"{tmp_path}/own.png"
    toys.picture(33, 44).save(path)
    code, _, _ = run(capsys, "bench", path, "-m", toys.checkpoint(TOY), "--runs", 1, "--tokens", 2, "-q")
    assert code == 0 and {each.picture.size for each in in_this_process} == {(33, 44)}


def test_what_is_wrong_is_told_before_anything_is_measured(
    capsys: pytest.CaptureFixture[str], in_this_process: list[Setup]
) -> None:
    for words in (("no-such.png", "-m", toys.checkpoint(TOY)), ("-m", "/no/such/folder")):
        code, out, err = run(capsys, "bench", *words)
        assert (code, out) == (1, "") and err.startswith("error: ")
    assert run(capsys, "bench", "--tokens", 1)[0] == 2
    assert not in_this_process
