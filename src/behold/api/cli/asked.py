"""What was asked: the words of the command line and standard input, sorted into pictures and a question."""

from __future__ import annotations

import os
import select
import stat
import sys
from dataclasses import dataclass
from pathlib import Path

import typer

from behold.api.cli.terminal import note

STDIN = "-"
PATIENCE_S = 3.0


@dataclass(frozen=True)
class Asked:
    """Pictures as `behold.chat.media` takes them, and the question."""

    images: list[str | bytes]
    question: str


def read_words(words: list[str]) -> Asked:
    """IMAGE… QUESTION, where - stands for standard input: as a picture, or in last place as the question.

    Without any picture named, one that is piped in is taken.

    Raises:
        typer.BadParameter: no question, or standard input is to be both picture and question.
    """
    *images, question = words
    if not images and question != STDIN and Path(question).is_file():
        raise typer.BadParameter(f"{question} is a file, and there is no question about it: IMAGE… QUESTION")
    if words.count(STDIN) > 1:
        raise typer.BadParameter("- is given more than once, but standard input can be read only once")
    pictures: list[str | bytes] = [_stdin_bytes() if image == STDIN else image for image in images]
    if question == STDIN:
        question = _stdin_bytes().decode("utf-8", "replace").strip()
    elif not pictures and stdin_is_piped() and (data := _read_stdin()):
        pictures = [data]
    if not question.strip():
        raise typer.BadParameter("the question is empty")
    return Asked(pictures, sayable(question))


def read_images(images: list[str]) -> list[str | bytes]:
    """The pictures named, - being standard input.

    Raises:
        typer.BadParameter: - is given more than once.
    """
    if images.count(STDIN) > 1:
        raise typer.BadParameter("- is given more than once, but standard input can be read only once")
    return [_stdin_bytes() if image == STDIN else image for image in images]


def stdin_is_piped() -> bool:
    """Whether standard input is a pipe or a file: neither a terminal nor /dev/null, which have no picture to give."""
    try:
        mode = os.fstat(sys.stdin.fileno()).st_mode
    except (AttributeError, OSError, ValueError):
        return False
    return stat.S_ISFIFO(mode) or stat.S_ISREG(mode)


def sayable(text: str) -> str:
    """Text without the half characters that Python makes of bytes which are not UTF-8."""
    return text.encode("utf-8", "replace").decode("utf-8")


def _read_stdin() -> bytes:
    """What is piped in, up to a little more than a picture may have; says so when nothing comes for a while."""
    from behold.chat.policy import MediaPolicy

    if os.name == "posix" and not select.select([sys.stdin.buffer], [], [], PATIENCE_S)[0]:
        note("waiting for a picture or text on standard input; to ask without, add < /dev/null")
    return sys.stdin.buffer.read(MediaPolicy().max_bytes + 1)


def _stdin_bytes() -> bytes:
    data = _read_stdin()
    if not data:
        raise typer.BadParameter("- means standard input, and nothing came from there")
    return data
