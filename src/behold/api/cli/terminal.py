"""Talking to a terminal: harmless text, one-line reports on stderr, and how each kind of ending is told."""

from __future__ import annotations

import os
import signal
import sys
import threading
import traceback
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, TextIO

import typer

from behold.errors import BeholdError, CheckpointNotFoundError

if TYPE_CHECKING:
    from behold.types import Answer

INTERRUPTED = 130  # 128 + SIGINT, as shells have it
UNREAD = 141  # 128 + SIGPIPE: the same as a program that this signal ends

_CONTROLS = {code: code + 0x2400 for code in range(0x20) if chr(code) not in "\t\n"}
_CONTROLS |= {0x7F: 0x2421}
_CONTROLS |= dict.fromkeys(range(0x80, 0xA0), 0xFFFD)


def harmless(text: str) -> str:
    """Text without control characters, which could move the cursor or change the terminal: each becomes its picture.

    Tabs and line ends stay. ESC becomes ␛, the 8-bit controls become �.
    """
    return text.translate(_CONTROLS)


def write(text: str, stream: TextIO | None = None) -> None:
    """Write model or user text at once, harmless, whatever the stream's encoding can say."""
    out = sys.stdout if stream is None else stream
    encoding = out.encoding or "utf-8"
    out.write(harmless(text).encode(encoding, "replace").decode(encoding))
    out.flush()


def note(text: str) -> None:
    """One dim line on stderr; nothing is lost if nobody reads it."""
    with suppress(OSError):
        write_styled(f"{text}\n", "2")


def complain(message: str, *, label: str = "error") -> None:
    """One message on stderr, begun by what it is."""
    with suppress(OSError):
        write_styled(f"{label}:", "1;31" if label == "error" else "1")
        write(f" {message}\n", sys.stderr)


def write_styled(text: str, style: str) -> None:
    """Write to stderr, styled where it is a terminal and the user has not said NO_COLOR."""
    coloured = sys.stderr.isatty() and not os.environ.get("NO_COLOR")
    if coloured:
        sys.stderr.write(f"\x1b[{style}m")
    write(text, sys.stderr)
    if coloured:
        sys.stderr.write("\x1b[0m")
        sys.stderr.flush()


def timing_line(answer: Answer) -> str:
    """For instance: first token 0.42 s · 35 tokens/s · 84 prompt tokens (64 image) · 12 answer tokens."""
    usage, timings = answer.usage, answer.timings
    parts = []
    if timings.first_token_s:
        parts.append(f"first token {timings.first_token_s:.2f} s")
    if timings.decode_tokens_per_s:
        parts.append(f"{timings.decode_tokens_per_s:.0f} tokens/s")
    images = f" ({usage.image_tokens} image)" if usage.image_tokens else ""
    parts.append(f"{usage.prompt_tokens} prompt tokens{images}")
    parts.append(f"{usage.completion_tokens} answer tokens")
    if answer.ended_by == "loop":
        parts.append("stopped: it only repeated itself (--no-loop-stop lets it go on)")
    elif answer.finish_reason == "length":
        parts.append("cut at the length limit (--max-new-tokens)")
    if answer.finish_reason == "cancelled":
        parts.append("stopped")
    return " · ".join(parts)


@contextmanager
def reported(*, debug: bool = False, hint: str = "") -> Iterator[None]:
    """Turns every way a command can fail into one message on stderr and an exit code. `debug` adds the traceback.

    hint: said after CheckpointNotFoundError, whose usual cause is that there is no network.

    Raises:
        typer.Exit: with the code, in place of the exception.
    """
    try:
        yield
    except BrokenPipeError:
        _detach_stdout()
        raise typer.Exit(UNREAD) from None
    except KeyboardInterrupt:
        raise typer.Exit(INTERRUPTED) from None
    except BeholdError as error:
        _trace(debug)
        complain(str(error))
        if isinstance(error, CheckpointNotFoundError) and hint:
            complain(hint, label="hint")
        raise typer.Exit(1) from error
    except OSError as error:
        _trace(debug)
        complain(str(error))
        raise typer.Exit(1) from error
    except Exception as error:
        if isinstance(error, typer.Exit | typer.Abort | typer.BadParameter):
            raise
        _trace(debug)
        complain(f"{type(error).__name__}: {error}")
        if not debug:
            complain("this looks like a fault in behold; --debug shows where it happened", label="hint")
        raise typer.Exit(1) from error


@contextmanager
def leaving_at_once() -> Iterator[None]:
    """Ctrl+C ends the process by its signal: for importing torch, which an exception in the middle makes abort loudly.

    Nothing is begun then that would have to be ended, and shells report the same 130.
    """
    main_thread = threading.current_thread() is threading.main_thread()
    if not main_thread or signal.getsignal(signal.SIGINT) is not signal.default_int_handler:
        yield
        return
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def _trace(wanted: bool) -> None:
    if wanted or os.environ.get("BEHOLD_DEBUG"):
        traceback.print_exc()


def _detach_stdout() -> None:
    """Nobody reads stdout any more: send what is still buffered nowhere, or Python complains about it at exit."""
    with suppress(OSError, ValueError):
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, sys.stdout.fileno())
        os.close(nowhere)
