"""`GenerationConfig`: how `generate` chooses tokens, and the one place that turns it into SamplingParams.

Values come from four places, the first that speaks wins: arguments of `generate`, its `generation_config=`,
`model.generation_config` (the checkpoint's), and the defaults of transformers.
"""

from __future__ import annotations

import difflib
import logging
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any, Literal

from behold.api.hf.unsupported import INERT, NEUTRAL
from behold.errors import OptionError
from behold.types import SamplingParams

_log = logging.getLogger("behold")

DEFAULTS: Mapping[str, Any] = {
    "max_length": 20,
    "min_length": 0,
    "do_sample": False,
    "num_beams": 1,
    "num_return_sequences": 1,
    "temperature": 1.0,
    "top_k": 50,
    "top_p": 1.0,
    "repetition_penalty": 1.0,
    "no_repeat_ngram_size": 0,
    "length_penalty": 1.0,
    "early_stopping": False,
}
"""transformers' defaults (see its GenerationConfig), for what neither the caller nor the checkpoint states."""

_ONLY_WHEN_SAMPLING: Mapping[str, tuple[object, ...]] = {
    "temperature": (None, 0, 1),
    "top_k": (None, 0, 50),
    "top_p": (None, 1),
    "min_p": (None, 0),
}
_ONLY_WITH_BEAMS: Mapping[str, tuple[object, ...]] = {"early_stopping": (None, False), "length_penalty": (None, 1)}


@dataclass
class GenerationConfig:
    """`model.generation_config`: change its values to change what `generate` does by default. None is "not stated".

    Lengths: `max_length` and `min_length` count the padded prompt, `max_new_tokens` and `min_new_tokens` do not and
    go first. `other` keeps what a checkpoint's generation_config.json states beyond these.
    """

    max_length: int | None = None
    max_new_tokens: int | None = None
    min_length: int | None = None
    min_new_tokens: int | None = None
    do_sample: bool | None = None
    num_beams: int | None = None
    num_return_sequences: int | None = None
    temperature: float | None = None
    top_k: int | None = None
    top_p: float | None = None
    min_p: float | None = None
    repetition_penalty: float | None = None
    no_repeat_ngram_size: int | None = None
    length_penalty: float | None = None
    early_stopping: bool | Literal["never"] | None = None
    bad_words_ids: Sequence[Sequence[int]] | None = None
    suppress_tokens: Sequence[int] | None = None
    stop_strings: str | Sequence[str] | None = None
    eos_token_id: int | Sequence[int] | None = None
    pad_token_id: int | None = None
    return_dict_in_generate: bool | None = None
    other: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def read(cls, generation: Mapping[str, Any], eos_token_ids: frozenset[int]) -> GenerationConfig:
        """From a checkpoint's generation_config.json and every end-of-sequence id its files state.

        The file's own ids come first: where there is no pad token, the first one pads, as in transformers.
        """
        config = cls._from(generation)
        stated = _as_ids(config.eos_token_id)
        united = [*stated, *sorted(eos_token_ids - set(stated))]
        config.eos_token_id = united if len(united) > 1 else united[0] if united else None
        return config

    @classmethod
    def _from(cls, values: Mapping[str, Any]) -> GenerationConfig:
        known = {name: value for name, value in values.items() if name in _OPTIONS}
        return cls(**known, other={name: value for name, value in values.items() if name not in _OPTIONS})

    def __setattr__(self, name: str, value: object) -> None:
        if name not in _OPTIONS and name != "other":
            check_unsupported({name: value})
            self.other[name] = value
            return
        super().__setattr__(name, value)

    def __getattr__(self, name: str) -> Any:  # noqa: ANN401 - whatever the file states
        # Only for names that are no field; `other` is missing while copy rebuilds the object.
        other = self.__dict__.get("other", {})
        if name in other or name in NEUTRAL or name in INERT:
            return other.get(name)
        raise AttributeError(f"GenerationConfig has no {name!r}; it has {', '.join(sorted(_OPTIONS))}.")

    def to_dict(self) -> dict[str, Any]:
        """Everything stated, by name."""
        stated = {name: getattr(self, name) for name in _OPTIONS}
        return {**self.other, **{name: value for name, value in stated.items() if value is not None}}

    def update(self, **values: object) -> dict[str, object]:
        """Set several values; returns those whose names it does not know, as its namesake does."""
        unknown = {name: value for name, value in values.items() if not is_option(name)}
        for name, value in values.items():
            if name not in unknown:
                setattr(self, name, value)
        return unknown


_OPTIONS = frozenset(item.name for item in fields(GenerationConfig)) - {"other"}


def is_option(name: str) -> bool:
    """Whether a keyword of `generate` is about choosing tokens, supported or not, rather than an input of the model."""
    return name in _OPTIONS or name in NEUTRAL or name in INERT


def check_unsupported(values: Mapping[str, object]) -> None:
    """Refuse options that behold does not have, unless the value asks for nothing.

    Raises:
        OptionError: naming the first such option, or a name that no version of `generate` knows.
    """
    for name, value in values.items():
        if name in NEUTRAL:
            if not any(value is neutral or value == neutral for neutral in NEUTRAL[name]):
                raise OptionError(f"{name}={value!r} is not supported; leave it out, or use {NEUTRAL[name][-1]!r}.")
        elif name not in _OPTIONS and name not in INERT:
            near = difflib.get_close_matches(name, _OPTIONS, n=1)
            hint = f"Did you mean {near[0]!r}?" if near else f"The options are {', '.join(sorted(_OPTIONS))}."
            raise OptionError(f"{name!r} is not an option of generate. {hint}")


def merged(base: object, given: object, arguments: Mapping[str, Any]) -> GenerationConfig:
    """What one call of `generate` asks for, before defaults: `arguments` over `given` over `base`.

    given: the call's `generation_config=`, ours or transformers' (anything with `to_dict`), or None. An argument that
    is None overrides what `base` states: `top_k=None` switches the filter off.
    """
    base = _own("model.generation_config", base)
    given = None if given is None else _own("generation_config", given)
    check_unsupported(arguments)
    if given is not None:
        check_unsupported({name: value for name, value in given.other.items() if name in NEUTRAL})
    asked = {**({} if given is None else given.to_dict()), **arguments}
    stated = {**base.to_dict(), **({} if given is None else given.to_dict())}
    stated = {**{name: value for name, value in DEFAULTS.items() if name != "max_length"}, **stated}
    _warn_unused(asked, {**stated, **arguments})
    result = GenerationConfig._from({**stated, **arguments})
    # What a checkpoint's file asks for and behold does not have would change its answers: refuse rather than ignore.
    check_unsupported({name: value for name, value in result.other.items() if name in NEUTRAL})
    return result


def _own(name: str, config: object) -> GenerationConfig:
    """A configuration of ours as it is, one of transformers' (anything with `to_dict`) translated."""
    if isinstance(config, GenerationConfig):
        return config
    as_dict = getattr(config, "to_dict", None)
    if not callable(as_dict):
        raise OptionError(f"{name}={config!r} is not a GenerationConfig; copy model.generation_config.")
    return GenerationConfig._from(as_dict())


def sampling_params(config: GenerationConfig, prompt_tokens: int) -> SamplingParams:
    """A merged config as the engine reads it. `prompt_tokens` is the padded width T of `input_ids` (B, T).

    Raises:
        OptionError: lengths that leave no room, sampling values out of range, or options that clash.
    """
    eos = _as_ids(config.eos_token_id)
    maximum, minimum = _lengths(config, prompt_tokens)
    beams, answers = config.num_beams or 1, config.num_return_sequences or 1
    if beams > 1 and config.do_sample:
        raise OptionError(f"num_beams={beams} with do_sample=True is not supported; leave one of them out.")
    if beams == 1 and answers > 1 and not config.do_sample:
        raise OptionError(f"num_return_sequences={answers} needs do_sample=True or num_beams >= {answers}.")
    if 1 < beams < answers:
        raise OptionError(f"num_return_sequences={answers} is more than num_beams={beams}.")
    # As in transformers a one-word entry that is an end-of-sequence id is dropped: it would only forbid to stop.
    words = [tuple(word) for word in config.bad_words_ids or () if tuple(word) not in {(end,) for end in eos}]
    words += [(token,) for token in config.suppress_tokens or ()]
    stop = (config.stop_strings,) if isinstance(config.stop_strings, str) else tuple(config.stop_strings or ())
    return SamplingParams(
        max_new_tokens=maximum,
        min_new_tokens=minimum,
        **_choice(config),
        repetition_penalty=1.0 if config.repetition_penalty is None else config.repetition_penalty,
        no_repeat_ngram_size=config.no_repeat_ngram_size or 0,
        bad_words_ids=tuple(words),
        stop=stop,
        stop_token_ids=frozenset(eos),
        ignore_eos=True,  # the checkpoint's own ends are in eos, unless the caller replaced them
        num_beams=beams,
        ids_only=not stop,  # which is what `generate` gives
        **(_beams(config, answers) if beams > 1 else {}),
    )


def pad_id(config: GenerationConfig) -> int | None:
    """What fills the rows of answers that end early: the pad token, else the first end-of-sequence id."""
    ends = _as_ids(config.eos_token_id)
    if config.pad_token_id is not None:
        return config.pad_token_id
    return ends[0] if ends else None


def fill_id(config: GenerationConfig) -> int | None:
    """What fills the rows of answers that end early in the result: the pad id.

    transformers' beam search takes an id of 0 for none and fills with the first end-of-sequence id (seen in 5.23,
    idefics2); the ids of both are the same because this does so too.
    """
    pad, ends = pad_id(config), _as_ids(config.eos_token_id)
    return ends[0] if pad == 0 and ends and (config.num_beams or 1) > 1 else pad


def end_ids(config: GenerationConfig) -> frozenset[int]:
    """The ids that end an answer."""
    return frozenset(_as_ids(config.eos_token_id))


def _beams(config: GenerationConfig, answers: int) -> dict[str, Any]:
    """What only a beam search reads."""
    return {
        "length_penalty": 1.0 if config.length_penalty is None else config.length_penalty,
        "early_stopping": config.early_stopping or False,
        "num_return_sequences": answers,
    }


def _choice(config: GenerationConfig) -> dict[str, Any]:
    """temperature, top_k, top_p and min_p; nothing when greedy."""
    if not config.do_sample:
        return {}
    temperature = 1.0 if config.temperature is None else config.temperature
    if temperature <= 0:
        raise OptionError(f"temperature={temperature!r} must be above 0 to sample; do_sample=False is greedy.")
    return {
        "temperature": temperature,
        "top_k": config.top_k or None,
        "top_p": None if config.top_p in (None, 1) else config.top_p,
        "min_p": config.min_p or None,
    }


def _lengths(config: GenerationConfig, prompt_tokens: int) -> tuple[int, int]:
    """(most, least) new tokens."""
    if config.max_new_tokens is not None:
        maximum = config.max_new_tokens
        if maximum <= 0:
            raise OptionError(f"max_new_tokens={maximum} must be greater than 0.")
    elif config.max_length is not None:
        maximum = config.max_length - prompt_tokens
        if maximum <= 0:
            raise OptionError(
                f"max_length={config.max_length} leaves no room: the prompt has {prompt_tokens} tokens. "
                "Raise it or, better, set max_new_tokens, which counts the answer only."
            )
    else:
        maximum = DEFAULTS["max_length"]
        warnings.warn(
            f"Neither max_new_tokens nor max_length is set: answers end after {maximum} tokens; set the first.",
            UserWarning,
            stacklevel=7,  # the line that calls generate
        )
    if config.min_new_tokens is not None:
        return maximum, config.min_new_tokens
    return maximum, max(0, (config.min_length or 0) - prompt_tokens)


def _warn_unused(given: Mapping[str, Any], stated: Mapping[str, Any]) -> None:
    """Say, as transformers does, that options the caller gave have no effect in the mode chosen."""
    unused = []
    if not stated.get("do_sample"):
        unused += [name for name, neutral in _ONLY_WHEN_SAMPLING.items() if given.get(name) not in neutral]
    if (stated.get("num_beams") or 1) == 1:
        unused += [name for name, neutral in _ONLY_WITH_BEAMS.items() if given.get(name) not in neutral]
    if unused:
        _log.warning("These have no effect without do_sample=True or num_beams > 1: %s.", ", ".join(unused))


def _as_ids(value: int | Sequence[int] | None) -> list[int]:
    """One id, several, or a tensor of them, as a list."""
    if value is None:
        return []
    if hasattr(value, "tolist"):
        value = value.tolist()
    return [value] if isinstance(value, int) else [int(item) for item in value]
