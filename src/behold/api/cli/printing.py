"""Answers on standard output: streamed as text, or as one line of JSON."""

from __future__ import annotations

import json as json_module
import re
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from behold.api.cli.terminal import harmless, note, timing_line, write

if TYPE_CHECKING:
    from behold.api.stream import AnswerStream
    from behold.api.vlm import VLM
    from behold.types import Answer

_UNSAFE = re.compile("[\x7f-\x9f\ud800-\udfff]")


def print_answer(answer: Answer | AnswerStream, vlm: VLM, *, json: bool, quiet: bool) -> Answer:
    """Print an answer as it comes (with `json`: when it is there), and its timings on stderr unless `quiet`.

    What has come is printed to the end of its line even when Ctrl+C or an error cuts it short.
    """
    if isinstance(answer, str):
        if json:
            print_json(answer_record(answer, vlm))
        else:
            write(f"{answer}\n")
    else:
        answer = _print_stream(answer, vlm, json=json)
    if not quiet and not json:
        note(timing_line(answer))
    return answer


def _print_stream(stream: AnswerStream, vlm: VLM, *, json: bool) -> Answer:
    begun = False
    try:
        with stream:
            for piece in stream:
                if not json:
                    write(piece)
                    begun = True
    except BrokenPipeError:
        begun = json = False
        raise
    except Exception:
        json = False
        raise
    finally:
        if json:
            print_json(answer_record(stream.answer, vlm))
        elif begun:
            write("\n")
    return stream.answer


def answer_record(answer: Answer, vlm: VLM) -> dict[str, Any]:
    """An answer as --json prints it."""
    record: dict[str, Any] = {
        "answer": str(answer),
        "model": vlm.name,
        "finish_reason": answer.finish_reason,
        "ended_by": answer.ended_by,
        "usage": asdict(answer.usage),
        "timings": {name: round(seconds, 4) for name, seconds in asdict(answer.timings).items()},
    }
    if answer.parsed is not None:
        record["parsed"] = answer.parsed
    if answer.logprobs:
        tokenizer = vlm.processor.tokenizer
        record["logprobs"] = [
            {
                "token": tokenizer.decode([item.id], skip_special_tokens=False),
                "id": item.id,
                "logprob": item.logprob,
                "top": [
                    {"token": tokenizer.decode([other], skip_special_tokens=False), "id": other, "logprob": logprob}
                    for other, logprob in item.top
                ],
            }
            for item in answer.logprobs
        ]
    return record


def print_json(record: Mapping[str, Any]) -> None:
    """One line of JSON. Control characters are escaped, the 8-bit ones too, which JSON itself would let through."""
    ascii_only = (sys.stdout.encoding or "utf-8").lower().replace("-", "") != "utf8"
    text = json_module.dumps(record, ensure_ascii=ascii_only)
    write(_UNSAFE.sub(lambda found: f"\\u{ord(found[0]):04x}", text) + "\n")


def print_table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Rows under their columns' names; as wide as they are where nobody looks. Nothing where there are no rows."""
    if not rows:
        return
    from rich import box
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(*columns, box=box.SIMPLE_HEAD, pad_edge=False)
    for row in rows:
        table.add_row(*(Text(harmless(cell), overflow="fold") for cell in row))
    console = Console(file=sys.stdout, highlight=False)
    if not sys.stdout.isatty():
        console.width = console.measure(table, options=console.options.update(max_width=10_000)).maximum
    console.print(table)
