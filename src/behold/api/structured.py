"""Structured answers: from a schema, pattern, grammar or choices to a Constraint, and from the text back to values.

A pydantic class is known by what it can do, so pydantic itself is never imported here.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Protocol, TypeVar

from behold.errors import OptionError, StructuredOutputError
from behold.types import Answer, Constraint


class PydanticModel(Protocol):
    """What is needed of a pydantic class."""

    @classmethod
    def model_json_schema(cls) -> dict[str, Any]: ...

    @classmethod
    def model_validate_json(cls, json_data: str) -> Any: ...  # noqa: ANN401 - an instance of the class


M = TypeVar("M", bound=PydanticModel)

_NOT_ENFORCED = ("uniqueItems",)
_FORMATS = frozenset({"date-time", "time", "date", "duration", "email", "hostname", "ipv4", "ipv6", "uuid", "uri"})
_SCHEMAS_BY_NAME = ("properties", "$defs", "patternProperties")
_SCHEMA_LISTS = ("anyOf", "oneOf", "prefixItems")
_LOOKS_AROUND = re.compile(r"\(\?<?[=!]")  # as the pattern of a Decimal does
_SHOWN_CHARACTERS = 200


# --- what is asked for ---------------------------------------------------------------------------------------------


def is_model(schema: object) -> bool:
    """Whether `schema` is a pydantic class."""
    return isinstance(schema, type) and all(
        hasattr(schema, name) for name in ("model_json_schema", "model_validate_json")
    )


def schema_constraint(name: str, schema: object) -> Constraint:
    """The constraint of a pydantic class or of a JSON schema.

    Raises:
        OptionError: it is neither, or no JSON.
    """
    if is_model(schema):
        asked: object = _for_pydantic(schema.model_json_schema())  # type: ignore[attr-defined]
    elif isinstance(schema, Mapping):
        asked = schema
    else:
        raise OptionError(
            f"{name}={schema!r:.80} is a {type(schema).__name__}; it takes a pydantic class or a JSON schema as a dict"
        )
    try:
        return Constraint("json_schema", json.dumps(asked, ensure_ascii=False, allow_nan=False, default=_plain))
    except (TypeError, ValueError, RecursionError) as error:
        raise OptionError(f"{name} cannot be written as JSON: {error}") from error


def text_constraint(name: str, source: object) -> Constraint:
    """The constraint of regex= or grammar=."""
    if not isinstance(source, str) or not source:
        raise OptionError(f"{name}={source!r:.80} is not allowed: it takes a non-empty string")
    return Constraint("regex" if name == "regex" else "grammar", source)


def choice_constraint(name: str, choices: object) -> Constraint:
    """The constraint of choices=."""
    found = () if isinstance(choices, str) or not isinstance(choices, Iterable) else tuple(choices)
    if not found or not all(isinstance(text, str) and text for text in found):
        raise OptionError(f"{name}={choices!r:.80} is not allowed: it takes a list of one or more non-empty strings")
    return Constraint("choice", found)


READERS: dict[str, Callable[[str, object], Constraint]] = {
    "schema": schema_constraint,
    "regex": text_constraint,
    "choices": choice_constraint,
    "grammar": text_constraint,
}


def constraint_of_response_format(value: Mapping[str, Any]) -> Constraint | None:
    """The `response_format` of the OpenAI API: None for plain text. `strict` changes nothing: a schema always holds.

    Raises:
        OptionError: it has another form; the message names the field.
    """
    if not isinstance(value, Mapping):
        raise OptionError(f"response_format is a {type(value).__name__}; it takes an object with a type")
    kind = value.get("type")
    if kind == "text":
        return None
    if kind == "json_object":
        return Constraint("json_object")
    if kind != "json_schema":
        raise OptionError(f"response_format.type={kind!r:.80} is not known; it is text, json_object or json_schema")
    described = value.get("json_schema")
    if not isinstance(described, Mapping):
        raise OptionError(
            f"response_format.json_schema is a {type(described).__name__}; with type json_schema it takes an object "
            "with a name and a schema"
        )
    if not isinstance(described.get("schema"), Mapping):
        found = type(described.get("schema")).__name__ if "schema" in described else "missing"
        raise OptionError(f"response_format.json_schema.schema is {found}; it takes a JSON schema, which is an object")
    if not isinstance(described.get("strict"), bool | None):
        raise OptionError(f"response_format.json_schema.strict={described['strict']!r:.80} must be true or false")
    return schema_constraint("response_format.json_schema.schema", described["schema"])


def _for_pydantic(schema: dict[str, Any]) -> dict[str, Any]:
    """A class's schema without what only the class itself can check, and closed: fields it would ignore never come.

    pydantic says so where further fields are wanted (additionalProperties).
    """
    kept = {
        key: value
        for key, value in schema.items()
        if key not in _NOT_ENFORCED
        and not (key == "format" and value not in _FORMATS)
        and not (key == "pattern" and _LOOKS_AROUND.search(value))
    }
    for key in kept.keys() & set(_SCHEMAS_BY_NAME):
        kept[key] = {name: _for_pydantic(inner) for name, inner in kept[key].items()}
    for key in kept.keys() & set(_SCHEMA_LISTS):
        kept[key] = [_for_pydantic(inner) for inner in kept[key]]
    for key in ("items", "additionalProperties"):
        if isinstance(kept.get(key), dict):
            kept[key] = _for_pydantic(kept[key])
    if "properties" in kept:
        kept.setdefault("additionalProperties", False)
    return kept


def _plain(value: object) -> object:
    """What json.dumps does not know: mappings that are no dict."""
    if isinstance(value, Mapping):
        return dict(value)
    raise TypeError(f"a {type(value).__name__} is no JSON")


# --- what came -----------------------------------------------------------------------------------------------------


def read(answer: Answer, constraint: Constraint | None, schema: object = None) -> Answer:
    """The same answer, with `parsed` set: an instance of `schema` where that is a pydantic class.

    Raises:
        StructuredOutputError: the answer was cut off before it satisfied its constraint, or its values do not satisfy
            the class.
    """
    if constraint is None:
        return answer
    if not answer.satisfied:
        raise StructuredOutputError(_cut_off(answer, constraint), answer=str(answer))
    if constraint.kind in ("json_schema", "json_object"):
        try:
            if is_model(schema):
                answer.parsed = schema.model_validate_json(str(answer))  # type: ignore[attr-defined]
            else:
                answer.parsed = json.loads(answer)
        except ValueError as error:  # pydantic's ValidationError is one
            wanted = getattr(schema, "__name__", "a Python value")
            raise StructuredOutputError(
                f"the answer's values are not those of {wanted}: {error}\nThe answer: {_shown(answer)}",
                answer=str(answer),
            ) from error
    return answer


def value_of(answer: Answer, schema: object) -> object:
    """What a call with `schema` returns: an instance of a pydantic class, else the answer."""
    return answer.parsed if is_model(schema) else answer


def _cut_off(answer: Answer, constraint: Constraint) -> str:
    n_tokens, wanted = len(answer.ids), constraint.kind.replace("_", " ")
    why, remedy = {
        "length": ("reached max_new_tokens or the end of the model's context", "raise max_new_tokens"),
        "loop": (
            "repeated itself without end",
            "bound its texts and lists (maxLength, maxItems), sample, or give loop_stop=False",
        ),
        "stop_string": ("was ended by a stop string", "leave out stop"),
    }.get(answer.ended_by, ("was cancelled", "ask again"))
    return (
        f"the answer {why} after {n_tokens} tokens, before it satisfied its {wanted}: {remedy}. "
        f"What came: {_shown(answer)}"
    )


def _shown(answer: Answer) -> str:
    text = str(answer)
    return repr(text) if len(text) <= _SHOWN_CHARACTERS else f"{text[:_SHOWN_CHARACTERS]!r}…"
