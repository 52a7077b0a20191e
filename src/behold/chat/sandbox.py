"""The Jinja environment that chat templates run in: what published templates use, and nothing that reaches outside.

A template comes with a checkpoint, so it is as untrusted as the checkpoint: it runs in Jinja's immutable sandbox, may
not build huge strings by one operator, and is stopped when its output or its time grows out of bounds.

The clock is read at each turn of a loop, each call and each filter: whatever a template repeats, it repeats these.
"""

from __future__ import annotations

import functools
import json
import re
import time
from collections.abc import Callable, Mapping
from contextvars import ContextVar
from datetime import datetime
from typing import Any, cast

import jinja2
from jinja2 import nodes
from jinja2.exceptions import SecurityError
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.runtime import Context
from jinja2.sandbox import ImmutableSandboxedEnvironment

_LARGEST_TEXT = 1_000_000
_LARGEST_EXPONENT = 64
_WIDE_FIELD = re.compile(r"%[^a-zA-Z%]*(\d{5,}|\*)")
MAX_RENDERED_CHARACTERS = 16_000_000
MAX_RENDER_S = 10.0
# By when the rendering in progress must be done, on the clock of time.monotonic().
_DEADLINE: ContextVar[float] = ContextVar("deadline", default=float("inf"))


def _check_time() -> None:
    if time.monotonic() > _DEADLINE.get():
        raise SecurityError(f"the template runs for more than {MAX_RENDER_S:g} s")


class _Clock(Extension):
    """What a compiled template calls at each turn of a loop and of a macro; no template can name or replace it."""

    check_time = staticmethod(_check_time)

    def reading(self, lineno: int) -> nodes.Stmt:
        """The statement that reads the clock."""
        attribute = nodes.ExtensionAttribute(self.identifier, "check_time", lineno=lineno)
        return nodes.ExprStmt(nodes.Call(attribute, [], [], None, None, lineno=lineno), lineno=lineno)


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

    def call(__self, __context: Context, __obj: Any, *args: Any, **kwargs: Any) -> Any:  # noqa: ANN401 - jinja's
        _check_time()
        return super().call(__context, __obj, *args, **kwargs)


def environment() -> ChatEnvironment:
    """A new environment, with blocks trimmed and helpers named as published templates expect them."""
    env = ChatEnvironment(trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, _Clock, loopcontrols])
    env.globals["raise_exception"] = _raise_exception
    env.globals["strftime_now"] = _strftime_now
    env.filters["tojson"] = _tojson
    env.filters["center"] = _center
    env.filters["format"] = _format
    for table in (env.filters, env.tests):  # "map" and "select" call them once for each item
        table.update({name: _timed(cast("Callable[..., Any]", function)) for name, function in table.items()})
    return env


def compiled(source: str) -> jinja2.Template:
    """A template of its own environment, in which every loop and macro reads the clock.

    Raises:
        jinja2.TemplateError: the source is not valid Jinja.
    """
    env = environment()
    clock = env.extensions[_Clock.identifier]
    assert isinstance(clock, _Clock)
    tree = env.parse(source)
    for kind in (nodes.For, nodes.Macro, nodes.CallBlock):
        for repeated in tree.find_all(kind):
            cast("nodes.For", repeated).body.insert(0, clock.reading(repeated.lineno))
    tree.set_environment(env)
    return env.from_string(tree)


def render(template: jinja2.Template, variables: Mapping[str, Any]) -> str:
    """The template's output.

    Raises:
        jinja2.TemplateError: the template itself fails, refuses, or leaves the bounds above.
    """
    pieces: list[str] = []
    length = 0
    before = _DEADLINE.set(time.monotonic() + MAX_RENDER_S)
    try:
        for piece in template.generate(variables):
            pieces.append(piece)
            length += len(piece)
            if length > MAX_RENDERED_CHARACTERS:
                raise SecurityError(f"the template writes more than {MAX_RENDERED_CHARACTERS} characters")
            _check_time()
    finally:
        _DEADLINE.reset(before)
    return "".join(pieces)


def _timed(function: Callable[..., Any]) -> Callable[..., Any]:
    """The same filter or test, reading the clock first. What Jinja notes on a function goes along."""

    @functools.wraps(function)
    def timed(*args: Any, **kwargs: Any) -> Any:  # noqa: ANN401 - whatever the filter takes
        _check_time()
        return function(*args, **kwargs)

    return timed


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
