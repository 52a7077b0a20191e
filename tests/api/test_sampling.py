"""Sampling keywords and generation_config.json to SamplingParams."""

from __future__ import annotations

import pytest

from behold.api.sampling import SamplingOptions, generation_defaults, sampling_params
from behold.errors import OptionError
from behold.types import SamplingParams

LLAMA_LIKE = {"do_sample": True, "temperature": 0.6, "top_p": 0.9, "repetition_penalty": 1.1, "max_length": 4096}


def test_nothing_given_is_greedy_with_256_tokens() -> None:
    assert sampling_params({}) == SamplingParams(max_new_tokens=256, temperature=None, loop_stop=True)


def test_greedy_is_the_default_even_where_the_checkpoint_samples() -> None:
    params = sampling_params({}, generation_defaults(LLAMA_LIKE))
    assert params.greedy
    assert (params.top_p, params.top_k, params.max_new_tokens) == (None, None, 256)
    assert params.repetition_penalty == 1.1


def test_a_temperature_alone_samples_with_the_checkpoints_filters() -> None:
    params = sampling_params({"temperature": 0.2}, generation_defaults(LLAMA_LIKE))
    assert (params.temperature, params.top_p) == (0.2, 0.9)


def test_a_filter_alone_samples_at_the_checkpoints_temperature_or_1() -> None:
    assert sampling_params({"top_p": 0.5}, generation_defaults(LLAMA_LIKE)).temperature == 0.6
    assert sampling_params({"top_k": 5}).temperature == 1.0


def test_temperature_zero_is_greedy_whatever_else() -> None:
    params = sampling_params({"temperature": 0, "top_p": 0.5, "top_k": 3}, generation_defaults(LLAMA_LIKE))
    assert params == SamplingParams(repetition_penalty=1.1, loop_stop=True)


def test_what_a_checkpoint_forbids_stays_forbidden() -> None:
    defaults = generation_defaults({"bad_words_ids": [[32000], [32001]], "suppress_tokens": [7]})
    assert sampling_params({}, defaults).bad_words_ids == ((32000,), (32001,), (7,))
    assert sampling_params({"bad_words_ids": [[1, 2]]}, defaults).bad_words_ids == ((32000,), (32001,), (7,), (1, 2))


def test_values_that_change_nothing_are_not_defaults() -> None:
    neutral = {"temperature": 1.0, "top_p": 1.0, "top_k": 0, "repetition_penalty": 1.0, "bad_words_ids": None}
    assert generation_defaults(neutral) == {}


def test_stop_is_a_string_or_several() -> None:
    assert sampling_params({"stop": "\n"}).stop == ("\n",)
    assert sampling_params({"stop": ["a", "b"]}).stop == ("a", "b")


def test_none_is_the_same_as_not_given() -> None:
    assert sampling_params(dict.fromkeys(SamplingOptions.__annotations__)) == sampling_params({})


@pytest.mark.parametrize(("given", "logprobs"), [(True, 0), (False, None), (0, 0), (3, 3)])
def test_logprobs_as_a_flag_or_a_number(given: object, logprobs: int | None) -> None:
    assert sampling_params({"logprobs": given}).logprobs == logprobs


def test_large_seeds_are_exact() -> None:
    assert sampling_params({"seed": 2**62 + 1}).seed == 2**62 + 1


def test_every_keyword_has_a_reader() -> None:
    values = {
        "bad_words_ids": [[1]],
        "stop": "x",
        "stop_token_ids": [1],
        "ignore_eos": True,
        "logprobs": 1,
        "early_stopping": "never",
        "loop_stop": True,
        "regex": "a+",
        "choices": ["yes", "no"],
        "grammar": 'start: "a"',
    }
    forms = ("regex", "choices", "grammar")
    for name in SamplingOptions.__annotations__:
        params = sampling_params({name: values.get(name, 1)})
        assert getattr(params, "constraint" if name in forms else name) not in (None, (), frozenset()), name


@pytest.mark.parametrize(
    ("name", "near"),
    [
        ("temprature", "'temperature'"),
        ("max_tokens", "'max_new_tokens'"),
        ("do_sample", "temperature"),
        ("stop_strings", "'stop'"),
        ("xyzzy", "max_new_tokens"),
    ],
)
def test_an_unknown_name_is_refused_with_the_near_one(name: str, near: str) -> None:
    with pytest.raises(OptionError, match=f"{name!r} is not a sampling option") as refusal:
        sampling_params({name: 1})
    assert near in str(refusal.value)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("max_new_tokens", "many"),
        ("max_new_tokens", 1.5),
        ("max_new_tokens", True),
        ("seed", float("nan")),
        ("temperature", "0.2"),
        ("stop", [""]),
        ("stop", 3),
        ("stop_token_ids", 3),
        ("bad_words_ids", [1, 2]),
        ("early_stopping", "soon"),
        ("ignore_eos", 1),
    ],
)
def test_a_value_of_the_wrong_kind_is_refused_by_name(name: str, value: object) -> None:
    with pytest.raises(OptionError, match=name):
        sampling_params({name: value})


@pytest.mark.parametrize(
    ("options", "stops"),
    [
        ({}, True),
        ({"temperature": 0.7}, True),
        ({"loop_stop": False}, False),
        ({"ignore_eos": True}, False),
        ({"ignore_eos": True, "loop_stop": True}, True),
        ({"num_beams": 3}, False),
        ({"loop_stop": None}, True),
    ],
)
def test_loops_are_stopped_unless_a_full_length_or_a_search_is_asked_for(
    options: dict[str, object], stops: bool
) -> None:
    assert sampling_params(options).loop_stop is stops
    with pytest.raises(OptionError, match="True or False"):
        sampling_params({"loop_stop": "yes"})
