"""`GenerationConfig`: who goes first, what each option becomes, and that nothing is accepted and ignored."""

from __future__ import annotations

import copy
import logging
from typing import Any

import pytest

from behold.api.hf.generation import GenerationConfig, is_option, merged, pad_id, sampling_params
from behold.api.hf.unsupported import FOREIGN, INERT, NEUTRAL
from behold.errors import OptionError
from behold.types import SamplingParams

NOTHING = GenerationConfig()


def params(
    base: GenerationConfig = NOTHING, *, given: object = None, prompt: int = 5, **arguments: Any
) -> SamplingParams:
    return sampling_params(merged(base, given, {"max_new_tokens": 7, **arguments}), prompt)


def test_arguments_go_before_the_calls_config_and_that_before_the_checkpoints() -> None:
    base = GenerationConfig(repetition_penalty=1.1, no_repeat_ngram_size=2, bad_words_ids=[[3]])
    found = params(base, given=GenerationConfig(repetition_penalty=1.2, no_repeat_ngram_size=3), repetition_penalty=1.3)
    assert (found.repetition_penalty, found.no_repeat_ngram_size, found.bad_words_ids) == (1.3, 3, ((3,),))


def test_transformers_own_config_is_understood() -> None:
    transformers = pytest.importorskip("transformers")
    given = transformers.GenerationConfig(max_new_tokens=3, do_sample=True, temperature=0.5, top_k=None)
    found = sampling_params(merged(NOTHING, given, {}), 5)
    assert (found.max_new_tokens, found.temperature, found.top_k) == (3, 0.5, 50)


def test_greedy_is_the_default() -> None:
    assert params().greedy and params().max_new_tokens == 7


def test_sampling_has_transformers_defaults() -> None:
    found = params(do_sample=True)
    assert (found.temperature, found.top_k, found.top_p, found.min_p) == (1.0, 50, None, None)


def test_none_switches_a_filter_off() -> None:
    base = GenerationConfig(do_sample=True, top_k=20, top_p=0.8)
    assert (params(base).top_k, params(base).top_p) == (20, 0.8)
    assert (params(base, top_k=None).top_k, params(base, top_k=0).top_k, params(base, top_p=1.0).top_p) == (None,) * 3


def test_lengths_count_the_padded_prompt() -> None:
    config = merged(NOTHING, None, {"max_length": 12, "min_length": 8})
    assert (sampling_params(config, 5).max_new_tokens, sampling_params(config, 5).min_new_tokens) == (7, 3)
    assert sampling_params(merged(NOTHING, None, {"max_length": 12, "max_new_tokens": 2}), 5).max_new_tokens == 2


def test_no_limit_is_20_tokens_and_a_warning() -> None:
    with pytest.warns(UserWarning, match="max_new_tokens"):
        assert sampling_params(merged(NOTHING, None, {}), 5).max_new_tokens == 20


def test_beams() -> None:
    found = params(num_beams=4, num_return_sequences=2, length_penalty=0.5, early_stopping=True)
    assert (found.num_beams, found.num_return_sequences, found.length_penalty, found.early_stopping) == (
        4,
        2,
        0.5,
        True,
    )
    assert params(length_penalty=0.5).length_penalty == 1.0, "without beams it has no effect"


def test_a_bad_word_that_only_forbids_to_stop_is_dropped() -> None:
    found = params(bad_words_ids=[[2], [3], [2, 3]], eos_token_id=2, suppress_tokens=[9])
    assert found.bad_words_ids == ((3,), (2, 3), (9,))


@pytest.mark.parametrize(("given", "expected"), [(2, {2}), ([2, 9], {2, 9}), (None, set())])
def test_ends(given: Any, expected: set[int]) -> None:
    assert params(eos_token_id=given).stop_token_ids == expected


def test_the_checkpoints_ends_are_united_and_its_own_first() -> None:
    config = GenerationConfig.read({"eos_token_id": [9, 4]}, frozenset({2, 9}))
    assert config.eos_token_id == [9, 4, 2]
    assert pad_id(config) == 9
    assert GenerationConfig.read({}, frozenset({2})).eos_token_id == 2
    assert GenerationConfig.read({}, frozenset()).eos_token_id is None


@pytest.mark.parametrize("stop", ["###", ["###"], ("###",)])
def test_stop_strings(stop: Any) -> None:
    assert params(stop_strings=stop).stop == ("###",)
    assert params().ids_only and not params(stop_strings=stop).ids_only


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"max_new_tokens": 0}, "max_new_tokens=0 must be greater"),
        ({"do_sample": True, "temperature": 0.0}, "temperature=0.0 must be above 0"),
        ({"num_return_sequences": 2}, "num_return_sequences=2 needs"),
        ({"num_beams": 2, "num_return_sequences": 3}, "num_return_sequences=3 is more than num_beams=2"),
        ({"num_beams": 2, "do_sample": True}, "num_beams=2 with do_sample=True"),
        ({"max_new_tokens": None, "max_length": 5}, "max_length=5 leaves no room"),
        ({"max_new_token": 5}, "Did you mean 'max_new_tokens'"),
        ({"guidance_scale": 1.5}, "guidance_scale=1.5 is not supported"),
        ({"cache_implementation": "quantized"}, "cache_implementation='quantized'"),
        ({"output_scores": True}, "output_scores=True"),
    ],
)
def test_refused(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(OptionError, match=message):
        params(**arguments)


@pytest.mark.parametrize("name", sorted(NEUTRAL))
def test_every_unsupported_option_lets_its_neutral_values_through_and_no_other(name: str) -> None:
    for value in NEUTRAL[name]:
        assert params(**{name: value}) == params()
    with pytest.raises(OptionError, match=name):
        params(**{name: 0.625})


def test_every_option_of_transformers_is_known() -> None:
    transformers = pytest.importorskip("transformers")
    missing = {name for name in vars(transformers.GenerationConfig()) if not is_option(name)}
    assert not missing
    assert not INERT & set(NEUTRAL) and not set(FOREIGN) & (INERT | set(NEUTRAL))


def test_options_without_effect_are_mentioned(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, logger="behold"):
        params(temperature=0.7)
        params(GenerationConfig(temperature=0.7))
        params(temperature=0)
    assert [record.getMessage() for record in caplog.records] == [
        "These have no effect without do_sample=True or num_beams > 1: temperature."
    ]


def test_what_the_file_asks_for_and_is_not_there_is_refused_when_used() -> None:
    config = GenerationConfig.read({"penalty_alpha": 0.6, "top_k": 4, "own_key": 1}, frozenset())
    assert config.own_key == 1
    with pytest.raises(OptionError, match=r"penalty_alpha=0\.6"):
        params(config)
    assert params(config, penalty_alpha=None).greedy


def test_the_config_is_an_object_to_change() -> None:
    config = GenerationConfig(max_new_tokens=3)
    config.do_sample = True
    other = copy.deepcopy(config)
    other.max_new_tokens = 9
    assert (config.max_new_tokens, other.max_new_tokens, other.do_sample) == (3, 9, True)
    assert config.to_dict() == {"max_new_tokens": 3, "do_sample": True}
    assert config.typical_p is None
    assert config.update(top_k=3, colour="red") == {"colour": "red"} and config.top_k == 3
    config.use_cache = False
    with pytest.raises(OptionError, match="typical_p"):
        config.typical_p = 0.5
    with pytest.raises(OptionError, match="Did you mean 'do_sample'"):
        config.do_sampel = True
    with pytest.raises(AttributeError, match="no 'colour'"):
        _ = config.colour
