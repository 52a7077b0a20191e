"""The command line in this process: answers, JSON, errors and exit codes, on tiny checkpoints."""

from __future__ import annotations

import contextlib
import io
import json
import math
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import behold
from behold.api.cli import main
from tests import toys

Run = Callable[..., tuple[int, str, str]]
TOY = "llava-siglip-qwen2"
QUESTION = "What do we see in this image?"


@pytest.fixture(scope="module")
def model() -> str:
    return str(toys.checkpoint(TOY))


@pytest.fixture
def picture(tmp_path: Path) -> str:
    path = tmp_path / "scene.png"
    toys.picture().save(path)
    return str(path)


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Run:
    """Runs the command line; (exit code, stdout, stderr)."""

    def run(*words: object) -> tuple[int, str, str]:
        with pytest.raises(SystemExit) as leaving:
            main([str(word) for word in words])
        captured = capsys.readouterr()
        assert isinstance(leaving.value.code, int)
        return leaving.value.code, captured.out, captured.err

    return run


# --- ask ---------------------------------------------------------------------------------------------------------


def test_ask_prints_the_answer_and_nothing_else_on_stdout(run: Run, model: str, picture: str) -> None:
    code, out, err = run("ask", picture, QUESTION, "--model", model, "--max-new-tokens", 6)
    answer = behold.load(model).ask(picture, QUESTION, max_new_tokens=6)
    assert code == 0
    assert out == "".join(c if c in "\t\n" or c.isprintable() else harmless(c) for c in answer) + "\n"
    assert "first token" in err and f"{answer.usage.prompt_tokens} prompt tokens (16 image)" in err
    assert "6 answer tokens" in err and "cut at the length limit" in err


def harmless(character: str) -> str:
    from behold.api.cli.terminal import harmless

    return harmless(character)


def test_quiet_leaves_the_timings_out(run: Run, model: str, picture: str) -> None:
    assert run("ask", picture, QUESTION, "--model", model, "--max-new-tokens", 2, "-q")[2] == ""


def test_ask_takes_several_pictures_or_none(run: Run, model: str, picture: str) -> None:
    several = run("ask", picture, picture, QUESTION, "-m", model, "--max-new-tokens", 2, "--json")
    none = run("ask", "Hello.", "-m", model, "--max-new-tokens", 2, "--json")
    assert json.loads(several[1])["usage"]["image_tokens"] == 32
    assert json.loads(none[1])["usage"]["image_tokens"] == 0


def test_the_model_may_come_from_the_environment(
    run: Run, model: str, picture: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("BEHOLD_MODEL", model)
    assert run("ask", picture, QUESTION, "--max-new-tokens", 2)[0] == 0


def test_json_is_one_object_with_all_there_is_to_know(run: Run, model: str, picture: str) -> None:
    code, out, err = run("ask", picture, QUESTION, "-m", model, "--max-new-tokens", 3, "--json", "--logprobs", 2)
    found = json.loads(out)
    answer = behold.load(model).ask(picture, QUESTION, max_new_tokens=3, logprobs=2)
    assert (code, err, out.count("\n")) == (0, "", 1)
    assert found["answer"] == answer
    assert (found["model"], found["finish_reason"]) == (model, answer.finish_reason)
    assert found["usage"]["prompt_tokens"] == answer.usage.prompt_tokens
    assert found["timings"]["first_token_s"] > 0
    assert [item["id"] for item in found["logprobs"]] == list(answer.ids)
    assert all(len(item["top"]) == 2 and math.isfinite(item["logprob"]) for item in found["logprobs"])


def test_sampling_options_reach_the_engine(run: Run, model: str, picture: str) -> None:
    options = ["-m", model, "--max-new-tokens", 8, "--json"]
    warm = [run("ask", picture, QUESTION, *options, "-t", 2, "--seed", seed)[1] for seed in (1, 1, 2)]
    texts = [json.loads(out)["answer"] for out in warm]
    assert texts[0] == texts[1] != texts[2]
    whole = json.loads(run("ask", picture, QUESTION, *options)[1])["answer"]
    stop = whole[2:4]
    stopped = json.loads(run("ask", picture, QUESTION, *options, "--stop", stop, "--stop", "never")[1])
    assert (stopped["answer"], stopped["finish_reason"]) == (whole[: whole.index(stop)], "stop")
    assert run("ask", picture, QUESTION, *options, "--num-beams", 2)[0] == 0


def test_quantize_and_device_reach_the_loader(run: Run, model: str) -> None:
    assert run("ask", "Hi.", "-m", model, "--max-new-tokens", 1, "--quantize", "int8", "--device", "cpu")[0] == 0
    code, _, err = run("ask", "Hi.", "-m", model, "--quantize", "int9")
    assert code == 1 and "int9" in err
    code, _, err = run("ask", "Hi.", "-m", model, "--device", "warp")
    assert code == 1 and "warp" in err


def test_an_answer_that_only_repeats_itself_is_stopped_with_a_note(
    run: Run, model: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    from behold.models.base import VisionLanguageModel

    logits = VisionLanguageModel.logits

    def stuck(self: Any, hidden: Any) -> Any:
        return logits(self, hidden * 0).index_fill(1, hidden.new_tensor([40]).long(), 1.0)

    monkeypatch.setattr(VisionLanguageModel, "logits", stuck)
    words = ["ask", "Hi.", "-m", model, "--max-new-tokens", 150]
    code, _, err = run(*words)
    assert code == 0 and "only repeated itself" in err and "length limit" not in err
    found = json.loads(run(*words, "--json")[1])
    assert (found["ended_by"], found["finish_reason"]) == ("loop", "length")
    assert found["usage"]["completion_tokens"] < 150
    free = json.loads(run(*words, "--json", "--no-loop-stop")[1])
    assert (free["ended_by"], free["usage"]["completion_tokens"]) == ("length", 150)


# --- errors ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["frobnicate"], "No such command"),
        (["ask"], "QUESTION"),
        (["ask", "Hi.", "--temprature", "1"], "--temperature"),
        (["ask", "Hi.", "-t", "warm"], "temperature"),
        (["ask", "-", "-"], "only once"),
        (["ask", "-", "-", "Hi."], "only once"),
        (["ask", " "], "empty"),
        (["ask", __file__], "no question"),
        (["ask", "Hi.", "--logprobs", "1"], "--json"),
        (["chat", "-"], "standard input"),
        (["show"], "IMAGE"),
    ],
)
def test_a_mistake_in_the_command_is_exit_code_2(run: Run, words: list[str], said: str) -> None:
    code, out, err = run(*words)
    assert (code, out) == (2, "")
    assert said in err and "--help" in err and "Traceback" not in err


def test_a_bare_command_shows_the_help_and_is_a_mistake(run: Run) -> None:
    code, out, err = run()
    assert (code, out) == (2, "") and "ask" in err and "models" in err


@pytest.mark.parametrize("content", [b"", b"no picture", b"\x89PNG\r\n\x1a\n" + b"\0" * 40])
def test_a_broken_picture_is_one_line_and_exit_code_1(run: Run, tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "broken.png"
    path.write_bytes(content)
    code, out, err = run("ask", path, QUESTION, "-m", "behold-tests/never-looked-for")
    assert (code, out) == (1, "")
    assert "broken.png" in err and err.startswith("error: ") and err.count("\n") == 1


def test_what_is_missing_is_named(run: Run, tmp_path: Path, picture: str) -> None:
    code, out, err = run("ask", "no-such.png", QUESTION, "-m", tmp_path)
    assert (code, out) == (1, "") and "no-such.png" in err
    code, out, err = run("ask", picture, QUESTION, "-m", tmp_path / "nothing")
    assert (code, out) == (1, "") and "nothing" in err and "Traceback" not in err
    code, out, err = run("ask", picture, QUESTION, "-m", tmp_path)
    assert (code, out) == (1, "") and "config.json" in err and "hint" not in err


def test_no_network_and_nothing_cached_says_both_and_the_way_out(run: Run, picture: str) -> None:
    code, out, err = run("ask", picture, QUESTION)
    assert (code, out) == (1, "")
    assert "llava-interleave-qwen-0.5b-hf" in err and "cache" in err and "offline" in err and "--model demo" in err


def test_a_wrong_option_value_is_exit_code_1_and_says_what_is_allowed(run: Run, model: str) -> None:
    code, out, err = run("ask", "Hi.", "-m", model, "--top-p", 7)
    assert (code, out) == (1, "") and "top_p" in err


def test_debug_adds_where_it_happened(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    assert "Traceback" in run("ask", "no-such.png", QUESTION, "--debug")[2]
    assert "Traceback" not in run("ask", "no-such.png", QUESTION)[2]
    monkeypatch.setenv("BEHOLD_DEBUG", "1")
    assert "Traceback" in run("ask", "no-such.png", QUESTION)[2]


def test_a_fault_of_our_own_is_one_message_too(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: Any, **__: Any) -> Any:
        raise ZeroDivisionError("oh")

    monkeypatch.setattr("behold.api.vlm.load", broken)
    code, _, err = run("ask", "Hi.")
    assert code == 1 and "ZeroDivisionError: oh" in err and "--debug" in err and "Traceback" not in err


# --- harmless output ---------------------------------------------------------------------------------------------


def evil(monkeypatch: pytest.MonkeyPatch) -> str:
    """Makes every answer a text that would retitle the terminal and ring its bell; what should be printed instead."""
    from behold.processing.detokenizer import Detokenizer

    monkeypatch.setattr(Detokenizer, "add", lambda self, ids: "\x1b]0;mine\x07\x9b2J\ttab\r\n")
    monkeypatch.setattr(Detokenizer, "finish", lambda self: "")
    return "␛]0;mine␇\ufffd2J\ttab␍\n"


def test_an_answer_cannot_send_escape_sequences(run: Run, model: str, monkeypatch: pytest.MonkeyPatch) -> None:
    shown = evil(monkeypatch)
    _, out, _ = run("ask", "Hi.", "-m", model, "--max-new-tokens", 1)
    assert out == shown + "\n"


def test_json_is_harmless_and_loses_nothing(run: Run, model: str, monkeypatch: pytest.MonkeyPatch) -> None:
    evil(monkeypatch)
    _, out, _ = run("ask", "Hi.", "-m", model, "--max-new-tokens", 1, "--json")
    assert not any(ord(c) < 0x20 or 0x7F <= ord(c) < 0xA0 for c in out.rstrip("\n"))
    assert json.loads(out)["answer"] == "\x1b]0;mine\x07\x9b2J\ttab\r\n"


def test_a_name_in_an_error_cannot_either(run: Run) -> None:
    assert "\x1b" not in run("ask", "\x1b[2J.png", QUESTION)[2]


# --- stopped ------------------------------------------------------------------------------------------------------


@pytest.fixture
def interrupted(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ctrl+C arrives at the sixth token."""
    from behold.engine.runner import Runner

    run, steps = Runner.run, []

    def step(self: Any, *words: Any) -> Any:
        steps.append(1)
        if len(steps) == 6:
            raise KeyboardInterrupt
        return run(self, *words)

    monkeypatch.setattr(Runner, "run", step)


@pytest.mark.usefixtures("interrupted")
def test_a_stopped_answer_is_kept_to_the_end_of_its_line(run: Run, model: str) -> None:
    code, out, err = run("ask", "Hi.", "-m", model, "--max-new-tokens", 30)
    assert (code, err) == (130, "")
    assert len(out) > 1 and out.endswith("\n")


@pytest.mark.usefixtures("interrupted")
def test_a_stopped_answer_in_json_is_still_json(run: Run, model: str) -> None:
    code, out, _ = run("ask", "Hi.", "-m", model, "--max-new-tokens", 30, "--json")
    found = json.loads(out)
    assert code == 130
    assert (found["finish_reason"], found["usage"]["completion_tokens"]) == ("cancelled", 5)


def test_a_failed_answer_is_not_printed_as_one(run: Run, model: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from behold.engine.runner import Runner

    def broken(*_: Any) -> Any:
        raise RuntimeError("no such luck")

    monkeypatch.setattr(Runner, "run", broken)
    code, out, err = run("ask", "Hi.", "-m", model, "--json")
    assert (code, out) == (1, "") and "no such luck" in err


# --- chat from a pipe ---------------------------------------------------------------------------------------------


def lines(monkeypatch: pytest.MonkeyPatch, *said: str) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO("".join(f"{line}\n" for line in said)))


def test_lines_from_a_pipe_are_one_conversation(
    run: Run, model: str, picture: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    lines(monkeypatch, QUESTION, "", "And now?", "/quit", "Never asked.")
    code, out, err = run("chat", picture, "-m", model, "--max-new-tokens", 4, "--json", "--system", "Be brief.")
    first, second = map(json.loads, out.splitlines())
    chat = behold.load(model).chat(system="Be brief.")
    assert first["answer"] == chat.say(picture, QUESTION, max_new_tokens=4)
    assert second["answer"] == chat.say("And now?", max_new_tokens=4)
    assert (code, err) == (0, "")


def test_the_first_error_in_a_pipe_ends_it(run: Run, model: str, monkeypatch: pytest.MonkeyPatch) -> None:
    lines(monkeypatch, "Hi.", "/image no-such.png", "Never asked.")
    code, out, err = run("chat", "-m", model, "--max-new-tokens", 2, "--json")
    assert (code, out.count("\n")) == (1, 1) and "no-such.png" in err


def test_a_picture_may_join_later(run: Run, model: str, picture: str, monkeypatch: pytest.MonkeyPatch) -> None:
    lines(monkeypatch, "Hi.", f"/image {picture} '{picture}'", QUESTION, "And?", "/reset", "Hi.")
    _, out, _ = run("chat", "-m", model, "--max-new-tokens", 2, "--json", "--num-beams", 2)
    assert [json.loads(line)["usage"]["image_tokens"] for line in out.splitlines()] == [0, 32, 32, 0]


# --- standard input ----------------------------------------------------------------------------------------------


@pytest.fixture
def stdin(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Callable[[bytes], None]]:
    """Makes standard input a file that holds the given bytes, as `behold … < file` does."""
    with contextlib.ExitStack() as files:

        def hold(data: bytes) -> None:
            (tmp_path / "stdin").write_bytes(data)
            monkeypatch.setattr("sys.stdin", files.enter_context((tmp_path / "stdin").open()))

        yield hold


@pytest.mark.parametrize("words", [["-", QUESTION], [QUESTION], ["picture", "-"]])
def test_standard_input_is_a_picture_or_the_question(
    run: Run, model: str, picture: str, stdin: Callable[[bytes], None], words: list[str]
) -> None:
    options = ["-m", model, "--max-new-tokens", 4, "--json"]
    stdin(QUESTION.encode() + b"\n" if words[-1] == "-" else Path(picture).read_bytes())
    code, out, _ = run("ask", *(picture if word == "picture" else word for word in words), *options)
    found = json.loads(out)
    assert code == 0 and found["usage"]["image_tokens"] == 16
    assert found["answer"] == behold.load(model).ask(picture, QUESTION, max_new_tokens=4)


def test_an_empty_standard_input_is_no_picture(run: Run, model: str, stdin: Callable[[bytes], None]) -> None:
    stdin(b"")
    _, out, _ = run("ask", QUESTION, "-m", model, "--max-new-tokens", 1, "--json")
    assert json.loads(out)["usage"]["image_tokens"] == 0
    code, _, err = run("ask", "-", QUESTION, "-m", model)
    assert code == 2 and "nothing came" in err


def test_a_question_that_is_not_utf8_is_still_a_question(run: Run, model: str, stdin: Callable[[bytes], None]) -> None:
    stdin(b"What \xff is this?")
    assert run("ask", "-", "-m", model, "--max-new-tokens", 1)[0] == 0
    assert run("ask", "What \udcff is this?", "-m", model, "--max-new-tokens", 1)[0] == 0


# --- in a process of its own: what is imported, nobody reading ------------------------------------

ASK_FOR_HELP = """
import sys
from behold.api.cli import main
sys.argv[1:] = ["--help"]
try:
    main()
except SystemExit as leaving:
    assert not leaving.code
"""
CHECK = """
import sys
heavy = {"torch", "numpy", "PIL", "tokenizers", "huggingface_hub", "jinja2", "rich"} & {*sys.modules}
assert not heavy, heavy
"""


@pytest.mark.parametrize("code", ["import behold", ASK_FOR_HELP])
def test_the_help_and_the_import_stay_clear_of_heavy_packages(code: str) -> None:
    done = subprocess.run([sys.executable, "-c", code + CHECK], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_nobody_reading_is_no_error_worth_a_word(model: str) -> None:
    command = [sys.executable, "-m", "behold", "ask", "Hi.", "-m", model, "--max-new-tokens", "400", "-q"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None and process.stderr is not None
        process.stdout.read(1)
        process.stdout.close()
        err = process.stderr.read()
        assert process.wait() == 141
    assert err == b""
