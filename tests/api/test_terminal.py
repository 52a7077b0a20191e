"""The command line in a real pseudo-terminal: streaming, Ctrl+C, Ctrl+D, and a terminal left as it was."""

from __future__ import annotations

import json
import os
import signal
import sys
import termios
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import behold
from tests import toys

pexpect = pytest.importorskip("pexpect", reason="needs a pseudo-terminal")

EXAMPLE = Path(__file__).parents[2] / "examples" / "scene.png"
Spawn = Callable[..., Any]
LONG = ("--max-new-tokens", "90000", "--no-loop-stop")  # minutes of work: an answer can only end by being stopped
START_S = 60  # importing torch on a busy machine
STOP_S = 10


@pytest.fixture(scope="module")
def talkative(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A toy whose context is so long that its answers do not end while a test waits."""
    folder = toys.copy(toys.checkpoint("llava-siglip-qwen2"), tmp_path_factory.mktemp("models") / "talkative")
    config = json.loads((folder / "config.json").read_text())
    config["text_config"]["max_position_embeddings"] = 200_000
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def hears_ctrl_c() -> None:
    """What a shell does for a command in the foreground; who ran the tests in the background may ignore Ctrl+C."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


@pytest.fixture
def spawn(tmp_path: Path) -> Iterator[Spawn]:
    """Starts the command in a pseudo-terminal of its own; whatever is left of it is ended with the test."""
    children = []

    def spawn(*words: object) -> Any:
        environment = {**os.environ, "TERM": "xterm", "NO_COLOR": "1", "PYTHONFAULTHANDLER": "1"}
        child = pexpect.spawn(
            sys.executable,
            ["-m", "behold", *map(str, words)],
            env=environment,
            cwd=str(tmp_path),
            timeout=START_S,
            encoding="utf-8",
            codec_errors="replace",
            preexec_fn=hears_ctrl_c,
        )
        children.append(child)
        return child

    yield spawn
    for child in children:
        child.close(force=True)


def settings(child: Any) -> list[Any]:
    """The terminal's modes: echo, line editing, signals, control characters."""
    return termios.tcgetattr(child.child_fd)


def ended(child: Any) -> int:
    child.expect(pexpect.EOF, timeout=STOP_S)
    child.wait()
    if child.signalstatus == signal.SIGINT:  # as shells report it
        return 130
    assert child.signalstatus is None
    return int(child.exitstatus)


def test_an_answer_streams_and_is_timed(spawn: Spawn, talkative: Path, tmp_path: Path) -> None:
    toys.picture().save(tmp_path / "scene.png")
    child = spawn("ask", "scene.png", "What do we see?", "-m", talkative, "--max-new-tokens", 20)
    before = settings(child)
    child.expect(r"first token \d+\.\d\d s · \d+ tokens/s · \d+ prompt tokens \(16 image\) · \d+ answer tokens")
    assert ended(child) == 0
    assert settings(child) == before


def test_ctrl_c_stops_an_answer_and_leaves_the_terminal_sane(spawn: Spawn, talkative: Path) -> None:
    child = spawn("ask", "Tell a long story.", "-m", talkative, *LONG)
    before = settings(child)
    child.expect(r"\S{20}")
    child.sendintr()
    assert ended(child) == 130
    rest = child.before
    assert "Traceback" not in rest and "error" not in rest
    assert rest.endswith("\n")
    assert settings(child) == before


def test_ctrl_c_while_loading_ends_without_a_word(spawn: Spawn, talkative: Path) -> None:
    child = spawn("ask", "Hi.", "-m", talkative, *LONG)
    before = settings(child)
    child.expect(pexpect.TIMEOUT, timeout=1.5)  # somewhere between the first import and the first token
    child.sendintr()
    assert ended(child) == 130
    assert "Traceback" not in child.before
    assert settings(child) == before


def test_a_conversation_survives_ctrl_c(spawn: Spawn, talkative: Path, tmp_path: Path) -> None:
    toys.picture().save(tmp_path / "a scene.png")
    child = spawn("chat", "-m", talkative, *LONG)
    child.expect("you: ")
    before = settings(child)
    child.sendline("Tell a long story.")
    child.expect(r"\S{20}")
    child.sendintr()  # stops the answer …
    child.expect("you: ", timeout=STOP_S)
    child.sendline("/image a scene.png")
    child.expect("goes with your next line")
    child.expect("you: ")
    child.sendline("And now?")
    child.expect(r"\S{20}")
    child.sendintr()
    child.expect("you: ", timeout=STOP_S)
    child.send("half a line")
    child.expect("half a line")  # read: a Ctrl+C that comes before readline listens is lost, as in any Python program
    child.sendintr()  # … or the line that is being typed, never the conversation
    child.expect("Ctrl.D or /quit leaves")
    child.expect("you: ")
    child.sendeof()
    assert ended(child) == 0
    assert "Traceback" not in child.before
    assert settings(child)[3] & (termios.ECHO | termios.ICANON | termios.ISIG)
    assert before is not None


def test_the_commands_of_a_conversation(spawn: Spawn, talkative: Path, tmp_path: Path) -> None:
    child = spawn("chat", "-m", talkative, "--max-new-tokens", 3)
    for line, said in (
        ("/help", "/image PICTURE"),
        ("/image no-such.png", "no-such.png"),
        ("/image", "needs a file"),
        ("/image 'unclosed", "No closing quotation"),
        ("/dance", "no command /dance"),
        ("Hello.", "3 answer tokens"),
        ("/reset", "forgotten"),
        ("word " * 700, "answer tokens"),
    ):
        child.expect("you: ")
        child.sendline(line)
        child.expect(said)
    child.expect("you: ")
    child.sendline("/quit")
    assert ended(child) == 0


def test_a_pipe_that_nothing_comes_from_is_waited_for_with_a_word(talkative: Path, tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    words = f"ask Hello -m {talkative} --max-new-tokens 2 --json"
    child = pexpect.spawn("/bin/sh", ["-c", f"{sys.executable} -m behold {words} < {pipe}"], timeout=START_S)
    try:
        with open(pipe, "wb"):
            child.expect("waiting for a picture or text on standard input")
        child.expect('"image_tokens": 0')
    finally:
        child.close(force=True)


@pytest.mark.parametrize("question", ["What do we see in this image?", "How many shapes are there?"])
def test_the_bundled_model_answers_as_it_does_in_python(spawn: Spawn, question: str) -> None:
    answer = behold.load("demo").ask(EXAMPLE, question)
    child = spawn("ask", EXAMPLE, question, "--model", "demo")
    child.expect_exact(answer)
    child.expect("first token .* tokens/s")
    assert ended(child) == 0


def test_a_conversation_with_the_bundled_model(spawn: Spawn) -> None:
    chat = behold.load("demo").chat()
    answers = [chat.say(EXAMPLE, "What do we see in this image?"), chat.say("How many shapes are there?")]
    child = spawn("chat", EXAMPLE, "--model", "demo")
    for question, answer in zip(("What do we see in this image?", "How many shapes are there?"), answers, strict=True):
        child.expect("you: ")
        child.sendline(question)
        child.expect_exact(answer)
    child.expect("you: ")
    child.sendeof()
    assert ended(child) == 0
