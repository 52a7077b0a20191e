"""The Jinja environment that chat templates run in: what published templates use, and nothing that reaches outside.

A template comes with a checkpoint, so it is as untrusted as the checkpoint: it runs in Jinja's immutable sandbox, may
not build huge strings by one operator, and is stopped when its output or its time grows out of bounds.
"""

from __future__ import annotations

import json
import re
import time
from collections.abc import Mapping
from datetime import datetime
from typing import Any

import jinja2
from jinja2 import nodes
from jinja2.exceptions import SecurityError
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.runtime import Context
from jinja2.sandbox import ImmutableSandboxedEnvironment, safe_range

_LARGEST_TEXT = 1_000_000
_LARGEST_EXPONENT = 64
_WIDE_FIELD = re.compile(r"%[^a-zA-Z%]*(\d{5,}|\*)")
MAX_RENDERED_CHARACTERS = 16_000_000
MAX_RENDER_S = 10.0


class _Generation(Extension):
    """`{% generation %} … {% endgeneration %}`: marks what the model wrote, for training masks; here only its body."""

    tags = {"generation"}  # noqa: RUF012 - jinja2 declares it as a plain set

    def parse(self, parser: Parser) -> nodes.Node:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return nodes.Scope(body, lineno=line)


class ChatEnvironment(ImmutableSandboxedEnvironment):
    """Jinja's immutable sandbox that also refuses to multiply strings and numbers beyond reason."""

    intercepted_binops = frozenset(("*", "**", "%"))

    def call_binop(self, context: Context, operator: str, left: Any, right: Any) -> Any:  # noqa: ANN401 - jinja's signature
        if operator == "*" and _repeated_length(left, right) > _LARGEST_TEXT:
            raise SecurityError("the template repeats a text or list too often")
        if operator == "**" and isinstance(right, int) and abs(right) > _LARGEST_EXPONENT:
            raise SecurityError("the template raises a number to a power that is too high")
        if operator == "%" and isinstance(left, str):
            _check_widths(left)
        return super().call_binop(context, operator, left, right)


def environment() -> ChatEnvironment:
    """A new environment, with blocks trimmed and helpers named as published templates expect them."""
    env = ChatEnvironment(trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, loopcontrols])
    env.globals["raise_exception"] = _raise_exception
    env.globals["strftime_now"] = _strftime_now
    env.filters["tojson"] = _tojson
    env.filters["center"] = _center
    env.filters["format"] = _format
    return env


def render(template: jinja2.Template, variables: Mapping[str, Any]) -> str:
    """The template's output.

    Raises:
        jinja2.TemplateError: the template itself fails, refuses, or leaves the bounds above.
    """
    deadline = time.monotonic() + MAX_RENDER_S

    def check_time() -> None:
        if time.monotonic() > deadline:
            raise SecurityError(f"the template runs for more than {MAX_RENDER_S:g} s")

    def bounded_range(*bounds: int) -> range:
        check_time()  # loops that write nothing are noticed here
        return safe_range(*bounds)

    pieces: list[str] = []
    length = 0
    for piece in template.generate({**variables, "range": bounded_range}):
        pieces.append(piece)
        length += len(piece)
        if length > MAX_RENDERED_CHARACTERS:
            raise SecurityError(f"the template writes more than {MAX_RENDERED_CHARACTERS} characters")
        check_time()
    return "".join(pieces)


def _repeated_length(left: object, right: object) -> int:
    for text, times in ((left, right), (right, left)):
        if isinstance(text, str | list | tuple) and isinstance(times, int):
            return len(text) * max(times, 0)
    return 0


def _raise_exception(message: str) -> None:
    raise jinja2.TemplateError(message)


def _strftime_now(pattern: str) -> str:
    return datetime.now().strftime(pattern)


def _tojson(
    value: Any,  # noqa: ANN401 - whatever a template holds
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    # Jinja's own filter escapes <, > and & for HTML, and templates were written for plain JSON.
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def _center(value: object, width: int = 80) -> str:
    if width > _LARGEST_TEXT:
        raise SecurityError("the template centres text in a width that is too large")
    return str(value).center(width)


def _format(value: str, *values: object) -> str:
    _check_widths(value)
    return str(value) % values


def _check_widths(pattern: str) -> None:
    if _WIDE_FIELD.search(pattern):
        raise SecurityError("the template formats text in a width that is too large")
