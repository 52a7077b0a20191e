"""The fields of a request to behold's sampling options."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any, TypeVar

from behold.api.server.errors import ApiError, api_error_of
from behold.api.structured import READERS, constraint_of_response_format
from behold.errors import BeholdError, OptionError
from behold.types import Constraint, SamplingParams

if TYPE_CHECKING:
    from behold.api.server.schemas import SamplingBody
    from behold.api.server.schemas_chat import ChatRequest
    from behold.api.server.schemas_responses import ResponsesRequest
    from behold.api.vlm import VLM

T = TypeVar("T")

# Where a client sets no limit. OpenAI has none but the context's end, for which memory would have to be set aside.
DEFAULT_MAX_TOKENS = 1024

_SAME = (
    "temperature",
    "repetition_penalty",
    "presence_penalty",
    "frequency_penalty",
    "no_repeat_ngram_size",
    "stop",
    "stop_token_ids",
    "seed",
    "ignore_eos",
    "loop_stop",
)
# With these values a filter does nothing; clients that fill in every field must not switch sampling on with them.
_OFF: dict[str, tuple[float, ...]] = {"top_p": (1.0,), "top_k": (0, -1), "min_p": (0.0,)}
# How vlm.params calls what is called differently here.
_API_NAMES = {"min_new_tokens": "min_tokens", "logprobs": "top_logprobs"}
_RESERVED = ("self", "messages", "add_generation_prompt", "continue_final_message")


def chat_params(vlm: VLM, asked: ChatRequest) -> list[SamplingParams]:
    """One record for each of the n choices; those of a seed are seed, seed + 1, …

    Raises:
        ApiError: 400; `param` is the field.
    """
    limits = {name: asked.given[name] for name in ("max_tokens", "max_completion_tokens") if name in asked.given}
    if len(set(limits.values())) > 1:
        both = " and ".join(f"{name}={value}" for name, value in limits.items())
        raise _refused("max_completion_tokens", f"{both} are the same limit; give one of them")
    if asked.top_logprobs is not None and not asked.logprobs:
        raise _refused("top_logprobs", "it needs logprobs: true")
    logprobs = (asked.top_logprobs or 0) if asked.logprobs else None
    constraint = _named("response_format", lambda: _formatted(asked.response_format))
    name, limit = next(iter(limits.items()), ("max_tokens", DEFAULT_MAX_TOKENS))
    params = _params(vlm, asked, (name, limit), logprobs, ("response_format", constraint))
    seeds = [None if params.seed is None else params.seed + index for index in range(asked.n or 1)]
    return [replace(params, seed=seed) for seed in seeds]


def response_params(vlm: VLM, asked: ResponsesRequest) -> SamplingParams:
    """The options of a /v1/responses request.

    Raises:
        ApiError: 400; `param` is the field.
    """
    logprobs = (asked.top_logprobs or 0) if asked.with_logprobs else None
    text = asked.text.format if asked.text else None
    if text is not None and text.get("type") == "json_schema":  # flat here, nested in chat completions
        text = {"type": "json_schema", "json_schema": {key: text[key] for key in text if key != "type"}}
    try:
        constraint = _formatted(text)
    except OptionError as error:
        said = re.sub(r"response_format(\.json_schema)?", "text.format", str(error))
        raise ApiError(400, said, param="text.format", code="invalid_value") from error
    limit = DEFAULT_MAX_TOKENS if asked.max_output_tokens is None else asked.max_output_tokens
    return _params(vlm, asked, ("max_output_tokens", limit), logprobs, ("text.format", constraint))


def template_variables(asked: SamplingBody) -> dict[str, Any]:
    """What Processor.chat is given beside the messages.

    Raises:
        ApiError: 400; a variable has a field of its own.
    """
    variables = dict(asked.chat_template_kwargs or {})
    for name in _RESERVED:
        if name in variables:
            raise _refused("chat_template_kwargs", f"{name} has a field of its own; leave it out here")
    if asked.add_generation_prompt and asked.continue_final_message:
        text = "add_generation_prompt and continue_final_message exclude each other"
        raise _refused("continue_final_message", text)
    if asked.add_generation_prompt is not None:
        variables["add_generation_prompt"] = asked.add_generation_prompt
        if asked.add_generation_prompt:
            variables["continue_final_message"] = False
    if asked.continue_final_message is not None:
        variables["continue_final_message"] = asked.continue_final_message
    return variables


def _params(
    vlm: VLM,
    asked: SamplingBody,
    limit: tuple[str, int],
    logprobs: int | None,
    formatted: tuple[str, Constraint | None],
) -> SamplingParams:
    """limit and formatted: the field and its value."""
    given = asked.given
    name, max_tokens = limit
    if asked.min_tokens is not None and asked.min_tokens > max_tokens:
        raise _refused("min_tokens", f"min_tokens={asked.min_tokens} is more than {name}={max_tokens}")
    options = {key: given[key] for key in _SAME if key in given}
    options |= {key: given[key] for key, off in _OFF.items() if key in given and given[key] not in off}
    options |= {"max_new_tokens": max_tokens, "min_new_tokens": asked.min_tokens, "logprobs": logprobs}
    extra = _named("structured_outputs", lambda: _structured(asked.structured_outputs))
    field, constraint = formatted
    if extra is not None and constraint is not None:
        raise _refused("structured_outputs", f"structured_outputs and {field} both constrain the answer; give one")
    try:
        params = replace(vlm.params(options), constraint=constraint or extra)
        vlm.engine.prepare(replace(params, constraint=None))
    except OptionError as error:
        found = re.match(r"(\w+)=", str(error))
        internal = found.group(1) if found else ""
        api_name = name if internal == "max_new_tokens" else _API_NAMES.get(internal, internal)
        raise api_error_of(error, api_name or None) from error
    _named("structured_outputs" if extra else field, lambda: vlm.engine.prepare(params))
    return params


def _formatted(response_format: Mapping[str, Any] | None) -> Constraint | None:
    return None if response_format is None else constraint_of_response_format(response_format)


def _structured(given: Mapping[str, Any] | None) -> Constraint | None:
    """vLLM's structured_outputs."""
    given = {key: value for key, value in (given or {}).items() if value is not None}
    if not given:
        return None
    ((kind, source), *others) = given.items()
    name = {"json": "schema", "choice": "choices"}.get(kind, kind)
    if others or name not in READERS:
        raise OptionError("it takes exactly one of json, regex, choice and grammar")
    return READERS[name](name, source)


def _named(field: str, make: Callable[[], T]) -> T:
    """`make()`, whose refusals name the field."""
    try:
        return make()
    except BeholdError as error:
        raise api_error_of(error, field) from error


def _refused(param: str, text: str) -> ApiError:
    return ApiError(400, f"{param}: {text}", param=param, code="invalid_value")
