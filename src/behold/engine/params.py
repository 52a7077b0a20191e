"""Sampling options checked together, before a request is queued. Free of torch.

Every message names the field, the value found and what is allowed; where two options clash it names both.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace

from behold.errors import OptionError
from behold.types import SamplingParams

MAX_LOGPROBS = 100
PENALTY_LIMIT = 2.0  # the range of the OpenAI API for presence and frequency


def validate(params: SamplingParams, *, vocab_size: int | None = None, has_tokenizer: bool = True) -> None:
    """Raise OptionError for the first option that is out of range, clashes with another, or cannot be honoured."""
    _check_counts(params)
    _check_numbers(params)
    _check_tokens(params, vocab_size)
    _check_stops(params, has_tokenizer)
    _check_sampling_clashes(params)
    _check_beam_clashes(params)
    _check_constraint(params, has_tokenizer)


def spread(params: SamplingParams) -> list[SamplingParams]:
    """`num_return_sequences` samples as that many single requests.

    A given seed becomes seed, seed + 1, …: the first sample equals the one that a request for one sample gives.
    Without a seed each draws its own.
    """
    validate(params)
    if params.num_beams > 1:
        raise OptionError(
            f"num_return_sequences={params.num_return_sequences} with num_beams={params.num_beams} is one beam search, "
            "not several samples: use Engine.beams"
        )
    seeds = [None if params.seed is None else params.seed + i for i in range(params.num_return_sequences)]
    return [replace(params, seed=seed, num_return_sequences=1) for seed in seeds]


def _is_int(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def _need(name: str, value: object, ok: bool, allowed: str) -> None:
    if not ok:
        raise OptionError(f"{name}={value!r} is not allowed: it must be {allowed}")


def _check_counts(params: SamplingParams) -> None:
    lowest = {"max_new_tokens": 1, "min_new_tokens": 0, "no_repeat_ngram_size": 0, "num_beams": 1}
    lowest["num_return_sequences"] = 1
    for name, low in lowest.items():
        value = getattr(params, name)
        _need(name, value, _is_int(value) and value >= low, f"an integer of at least {low}")
    if params.min_new_tokens > params.max_new_tokens:
        raise OptionError(
            f"min_new_tokens={params.min_new_tokens} is more than max_new_tokens={params.max_new_tokens}: "
            "raise the latter or lower the former"
        )
    seed, logprobs = params.seed, params.logprobs
    _need("seed", seed, seed is None or _is_int(seed), "an integer or None")
    if logprobs is not None:
        ok = _is_int(logprobs) and 0 <= logprobs <= MAX_LOGPROBS
        _need("logprobs", logprobs, ok, f"None or an integer from 0 to {MAX_LOGPROBS}")


def _check_numbers(params: SamplingParams) -> None:
    unit: Callable[[float], bool] = lambda value: 0.0 <= value <= 1.0  # noqa: E731
    near: Callable[[float], bool] = lambda value: abs(value) <= PENALTY_LIMIT  # noqa: E731
    rules: dict[str, tuple[Callable[[float], bool], str, bool]] = {
        "temperature": (lambda value: value >= 0.0, "a number of at least 0, or None for greedy", True),
        "top_p": (unit, "a number from 0 to 1, or None", True),
        "min_p": (unit, "a number from 0 to 1, or None", True),
        "repetition_penalty": (lambda value: value > 0.0, "a number above 0 (1 changes nothing)", False),
        "presence_penalty": (near, f"a number from -{PENALTY_LIMIT:g} to {PENALTY_LIMIT:g}", False),
        "frequency_penalty": (near, f"a number from -{PENALTY_LIMIT:g} to {PENALTY_LIMIT:g}", False),
        "length_penalty": (lambda value: True, "a finite number", False),
    }
    for name, (ok, allowed, optional) in rules.items():
        value = getattr(params, name)
        if not (optional and value is None):
            _need(name, value, _is_number(value) and ok(value), allowed)
    top_k = params.top_k
    _need("top_k", top_k, top_k is None or (_is_int(top_k) and top_k >= 0), "a positive integer, or 0 or None for off")
    early = params.early_stopping
    _need("early_stopping", early, isinstance(early, bool) or early == "never", 'True, False or "never"')


def _check_tokens(params: SamplingParams, vocab_size: int | None) -> None:
    top = math.inf if vocab_size is None else vocab_size
    allowed = "made of token ids" + ("" if vocab_size is None else f" below the vocabulary's size {vocab_size}")
    for word in params.bad_words_ids:
        ok = isinstance(word, (tuple, list)) and len(word) > 0 and all(_is_int(i) and 0 <= i < top for i in word)
        _need("bad_words_ids", params.bad_words_ids, ok, f"non-empty tuples {allowed}")
    ok = all(_is_int(i) and i >= 0 for i in params.stop_token_ids)
    _need("stop_token_ids", params.stop_token_ids, ok, "a set of token ids")


def _check_stops(params: SamplingParams, has_tokenizer: bool) -> None:
    if isinstance(params.stop, str):
        raise OptionError(
            f"stop={params.stop!r} is not allowed: it must be a tuple of strings, here ({params.stop!r},)"
        )
    ok = all(isinstance(text, str) and text for text in params.stop)
    _need("stop", params.stop, ok, "a tuple of non-empty strings")
    if params.stop and not has_tokenizer:
        raise OptionError(f"stop={params.stop!r} needs a tokenizer, and this engine has none: give stop_token_ids")
    if params.stop and params.ids_only:
        raise OptionError(f"stop={params.stop!r} is looked for in the text, and ids_only=True makes none: drop one")


def _check_sampling_clashes(params: SamplingParams) -> None:
    """With temperature 0 a filter cannot change the choice, so it passes; with None the caller meant sampling."""
    if params.temperature is not None or params.num_beams > 1:
        return
    filters = {"top_k": params.top_k, "top_p": None if params.top_p == 1.0 else params.top_p, "min_p": params.min_p}
    for name, value in filters.items():
        if value:
            raise OptionError(f"{name}={value} needs sampling, but temperature=None is greedy: give a temperature too")
    if params.num_return_sequences > 1 and params.num_beams == 1:
        raise OptionError(
            f"num_return_sequences={params.num_return_sequences} with greedy choice (temperature=None, num_beams=1) "
            "gives equal answers: give a temperature or num_beams"
        )


def _check_beam_clashes(params: SamplingParams) -> None:
    if params.num_beams == 1:
        if params.length_penalty != 1.0 or params.early_stopping is not False:
            raise OptionError(
                f"length_penalty={params.length_penalty} and early_stopping={params.early_stopping} act on beam search "
                "only, but num_beams=1: leave them out or raise num_beams"
            )
        return
    clashes = {name: getattr(params, name) for name in ("temperature", "top_k", "top_p", "min_p", "logprobs")}
    for name, value in clashes.items():
        if value is not None and not (name == "temperature" and value == 0):
            raise OptionError(
                f"{name}={value} cannot be used with num_beams={params.num_beams}: beam search follows the most likely "
                f"beams and neither samples nor reports single tokens; leave out {name} or set num_beams=1"
            )
    if params.loop_stop:
        raise OptionError(
            f"loop_stop=True cannot be used with num_beams={params.num_beams}: a search compares whole beams and ends "
            "none early; leave out loop_stop or set num_beams=1"
        )
    if params.num_return_sequences > params.num_beams:
        raise OptionError(
            f"num_return_sequences={params.num_return_sequences} is more than num_beams={params.num_beams}: "
            "at most one answer a beam"
        )


def _check_constraint(params: SamplingParams, has_tokenizer: bool) -> None:
    """min_new_tokens is no clash: it holds as long as the constraint has more to say."""
    constraint = params.constraint
    if constraint is None:
        return
    kind, source = constraint.kind, constraint.source
    if kind == "choice":
        ok = isinstance(source, tuple) and len(source) > 0 and all(isinstance(text, str) and text for text in source)
        _need("choices", source, ok, "one or more non-empty strings")
    elif kind != "json_object":
        _need(kind, source, isinstance(source, str) and source != "", "a non-empty string")
    if not has_tokenizer:
        raise OptionError(f"a {kind} constraint needs a tokenizer, and this engine has none")
    clashes = {"num_beams": params.num_beams > 1, "ignore_eos": params.ignore_eos}
    for name in [name for name, clash in clashes.items() if clash]:
        why = "beam search has no room for it" if name == "num_beams" else "it is what says where the answer ends"
        raise OptionError(
            f"{name}={getattr(params, name)} cannot be used with a {kind} constraint: {why}; leave out one of them"
        )
