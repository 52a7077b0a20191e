"""Sampling options as people type them, and as generation_config.json states them, to `SamplingParams`.

The short surface has its own two rules: greedy is the default whatever the checkpoint's `do_sample` says, and a
temperature alone means sampling. What a checkpoint forbids (bad_words_ids) or always applies (penalties) holds here
too.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterable, Mapping, Sequence
from numbers import Integral, Real
from typing import Any, Literal, TypedDict

from behold.api import structured
from behold.errors import OptionError
from behold.types import SamplingParams


class SamplingOptions(TypedDict, total=False):
    """The keywords of `ask`, `stream`, `say`, `batch` and `generate`. None is the same as not given.

    One of these, or `schema` (a pydantic class or a JSON schema), keeps the answer to a form:
    regex: the whole answer matches it (Rust's syntax: no look-around, no back-references; \\d is 0 to 9).
    choices: the answer is exactly one of these texts.
    grammar: the answer is a text of this Lark grammar, in llguidance's dialect.

    temperature: 0 is greedy, which is the default; any other value samples. `top_k`, `top_p` or `min_p` without a
        temperature sample at the checkpoint's temperature, or 1.
    stop: a string or several; the answer ends before the first one that appears.
    logprobs: how many of the likeliest tokens to report beside each chosen one (0 or True: only the chosen one).
    ignore_eos: only `stop_token_ids`, `stop` and the length end the answer.
    seed: makes a sampled answer repeatable, whatever else runs at the same time.
    loop_stop: end an answer that says the same thing over and over (see engine.loops). True, unless `ignore_eos` asks
        for an answer of full length, or beams are searched.
    """

    max_new_tokens: int | None
    min_new_tokens: int | None
    temperature: float | None
    top_k: int | None
    top_p: float | None
    min_p: float | None
    repetition_penalty: float | None
    presence_penalty: float | None
    frequency_penalty: float | None
    no_repeat_ngram_size: int | None
    bad_words_ids: Sequence[Sequence[int]] | None
    stop: str | Sequence[str] | None
    stop_token_ids: Iterable[int] | None
    ignore_eos: bool | None
    seed: int | None
    logprobs: int | bool | None
    num_beams: int | None
    length_penalty: float | None
    early_stopping: bool | Literal["never"] | None
    loop_stop: bool | None
    regex: str | None
    choices: Sequence[str] | None
    grammar: str | None


_ALWAYS = ("repetition_penalty", "no_repeat_ngram_size", "min_new_tokens", "bad_words_ids")
_WHEN_SAMPLING = ("temperature", "top_k", "top_p", "min_p")

_HINTS = {
    "do_sample": "a temperature above 0 means sampling, temperature=0 means greedy",
    "max_tokens": "did you mean 'max_new_tokens'?",
    "max_length": "did you mean 'max_new_tokens'? It counts the answer only",
    "stop_strings": "did you mean 'stop'?",
    "eos_token_id": "did you mean 'stop_token_ids'?",
    "num_return_sequences": "the short surface gives one answer; ask several times with different seeds",
    "response_format": "did you mean 'schema'?",
    "json_schema": "did you mean 'schema'?",
    "n": "the short surface gives one answer; ask several times with different seeds",
}


def sampling_params(options: Mapping[str, object], defaults: Mapping[str, Any] | None = None) -> SamplingParams:
    """The options given, over the checkpoint's `defaults` (see `generation_defaults`), as one record.

    Raises:
        OptionError: an unknown name (the message has the nearest known one) or a value of the wrong kind. Ranges and
            clashes are the engine's to judge.
    """
    given: dict[str, Any] = {}
    for name, value in options.items():
        if name not in _READERS:
            raise OptionError(_unknown(name))
        if value is not None:
            given[name] = _READERS[name](name, value)
    forms = [name for name in structured.READERS if name in given]
    if len(forms) > 1:
        raise OptionError(f"{forms[0]} and {forms[1]} are both given: an answer keeps to one of them")
    for name in forms:
        given["constraint"] = given.pop(name)
    fallback = dict(defaults or {})
    values = {name: fallback[name] for name in _ALWAYS if name in fallback}
    if _samples(given):
        values["temperature"] = 1.0
        values.update({name: fallback[name] for name in _WHEN_SAMPLING if name in fallback})
    elif given.get("temperature") == 0:
        # Greedy is what sampling at temperature 0 converges to, whatever the other filters say.
        given = {name: value for name, value in given.items() if name not in _WHEN_SAMPLING}
    if "bad_words_ids" in given:
        # A checkpoint forbids words because its answers break with them; more words never lift that.
        given["bad_words_ids"] = (*values.get("bad_words_ids", ()), *given["bad_words_ids"])
    values["loop_stop"] = not given.get("ignore_eos") and given.get("num_beams", 1) == 1
    return SamplingParams(**{**values, **given})


def generation_defaults(generation: Mapping[str, Any]) -> dict[str, Any]:
    """What generation_config.json says, in the words of `SamplingParams`; values that change nothing are left out.

    `do_sample`, lengths and beams are not in it: every door has its own defaults for those.
    """
    defaults: dict[str, Any] = {}
    for name in (*_ALWAYS[:3], *_WHEN_SAMPLING):
        if generation.get(name) is not None and generation[name] != _NEUTRAL.get(name):
            defaults[name] = generation[name]
    words = [tuple(word) for word in generation.get("bad_words_ids") or ()]
    words += [(token,) for token in generation.get("suppress_tokens") or ()]
    if words:
        defaults["bad_words_ids"] = tuple(words)
    return defaults


_NEUTRAL = {
    "repetition_penalty": 1.0,
    "no_repeat_ngram_size": 0,
    "min_new_tokens": 0,
    "temperature": 1.0,
    "top_k": 0,
    "top_p": 1.0,
    "min_p": 0.0,
}


def _samples(given: Mapping[str, Any]) -> bool:
    if "temperature" in given:
        return bool(given["temperature"])
    return any(name in given for name in _WHEN_SAMPLING)


def _unknown(name: str) -> str:
    if name in _HINTS:
        return f"{name!r} is not a sampling option: {_HINTS[name]}"
    near = difflib.get_close_matches(name, _READERS, n=1)
    hint = f"did you mean {near[0]!r}?" if near else "the options are " + ", ".join(sorted(_READERS))
    return f"{name!r} is not a sampling option: {hint}"


# --- one reader a kind of value ----------------------------------------------------------------------------------


def _wrong(name: str, value: object, wanted: str) -> OptionError:
    return OptionError(f"{name}={value!r} is a {type(value).__name__}; it takes {wanted}")


def _integer(name: str, value: object) -> int:
    if isinstance(value, Integral) and not isinstance(value, bool):
        return int(value)
    if isinstance(value, Real) and not isinstance(value, bool) and float(value).is_integer():
        return int(float(value))
    raise _wrong(name, value, "a whole number")


def _number(name: str, value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, Real):
        raise _wrong(name, value, "a number")
    return float(value)


def _count(name: str, value: object) -> int | None:
    """Also True (report the chosen token) and False (report none)."""
    if isinstance(value, bool):
        return 0 if value else None
    return _integer(name, value)


def _strings(name: str, value: object) -> tuple[str, ...]:
    strings = (value,) if isinstance(value, str) else value
    if not isinstance(strings, Iterable):
        raise _wrong(name, value, "a string or several")
    found = tuple(strings)
    if not all(isinstance(string, str) and string for string in found):
        raise OptionError(f"{name}={value!r}: each stop string must be a string of at least one character")
    return found


def _ids(name: str, value: object) -> frozenset[int]:
    if isinstance(value, str) or not isinstance(value, Iterable):
        raise _wrong(name, value, "token ids")
    return frozenset(_integer(name, token) for token in value)


def _words(name: str, value: object) -> tuple[tuple[int, ...], ...]:
    if isinstance(value, str) or not isinstance(value, Iterable):
        raise _wrong(name, value, "lists of token ids, one a word")
    words = tuple(value)
    if any(isinstance(word, (str, Real)) or not isinstance(word, Iterable) for word in words):
        raise _wrong(name, value, "lists of token ids, one a word")
    return tuple(tuple(_integer(name, token) for token in word) for word in words)


def _flag(name: str, value: object) -> bool:
    if not isinstance(value, bool):
        raise _wrong(name, value, "True or False")
    return value


def _early(name: str, value: object) -> bool | str:
    if not isinstance(value, bool) and value != "never":
        raise _wrong(name, value, "True, False or 'never'")
    return value if isinstance(value, bool) else "never"


_READERS: dict[str, Callable[[str, object], Any]] = {
    "max_new_tokens": _integer,
    "min_new_tokens": _integer,
    "temperature": _number,
    "top_k": _integer,
    "top_p": _number,
    "min_p": _number,
    "repetition_penalty": _number,
    "presence_penalty": _number,
    "frequency_penalty": _number,
    "no_repeat_ngram_size": _integer,
    "bad_words_ids": _words,
    "stop": _strings,
    "stop_token_ids": _ids,
    "ignore_eos": _flag,
    "seed": _integer,
    "logprobs": _count,
    "num_beams": _integer,
    "length_penalty": _number,
    "early_stopping": _early,
    **structured.READERS,
    "loop_stop": _flag,
}
