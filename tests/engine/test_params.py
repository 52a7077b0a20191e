"""Options that are out of range or clash: the message names them."""

from __future__ import annotations

from typing import Any

import pytest

from behold.engine.params import spread, validate
from behold.errors import OptionError
from behold.types import SamplingParams


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"max_new_tokens": 0}, r"max_new_tokens=0.*at least 1"),
        ({"max_new_tokens": 2.5}, "max_new_tokens=2.5"),
        ({"max_new_tokens": True}, "max_new_tokens=True"),
        ({"min_new_tokens": 9, "max_new_tokens": 4}, r"min_new_tokens=9.*max_new_tokens=4"),
        ({"temperature": -0.1}, r"temperature=-0.1"),
        ({"temperature": float("nan")}, "temperature=nan"),
        ({"temperature": "hot"}, "temperature='hot'"),
        ({"top_p": 1.5, "temperature": 1.0}, r"top_p=1.5.*0 to 1"),
        ({"min_p": -1, "temperature": 1.0}, r"min_p=-1"),
        ({"top_k": -1, "temperature": 1.0}, r"top_k=-1"),
        ({"repetition_penalty": 0.0}, r"repetition_penalty=0.0.*above 0"),
        ({"presence_penalty": 3.0}, r"presence_penalty=3.0.*-2 to 2"),
        ({"frequency_penalty": None}, "frequency_penalty=None"),
        ({"no_repeat_ngram_size": -1}, "no_repeat_ngram_size=-1"),
        ({"bad_words_ids": ((),)}, "bad_words_ids"),
        ({"bad_words_ids": ((50,),)}, "vocabulary's size 50"),
        ({"stop_token_ids": frozenset({-1})}, "stop_token_ids"),
        ({"stop": "END"}, r"stop='END'.*\('END',\)"),
        ({"stop": ("",)}, "stop="),
        ({"stop": ("END",), "ids_only": True}, r"stop=\('END',\).*ids_only"),
        ({"seed": 1.5}, "seed=1.5"),
        ({"logprobs": 101}, r"logprobs=101.*0 to 100"),
        ({"early_stopping": "always"}, "early_stopping='always'"),
        ({"top_p": 0.9}, r"top_p=0.9.*temperature=None"),
        ({"top_k": 5}, r"top_k=5.*temperature=None"),
        ({"num_return_sequences": 2}, r"num_return_sequences=2.*num_beams=1"),
        ({"num_beams": 2, "temperature": 0.7}, r"temperature=0.7.*num_beams=2"),
        ({"num_beams": 2, "logprobs": 1}, r"logprobs=1.*num_beams=2"),
        ({"num_beams": 2, "loop_stop": True}, r"loop_stop=True.*num_beams=2"),
        ({"num_beams": 2, "num_return_sequences": 3}, r"num_return_sequences=3.*num_beams=2"),
        ({"length_penalty": 2.0}, r"length_penalty=2.0.*num_beams=1"),
    ],
)
def test_refused(options: dict[str, Any], says: str) -> None:
    with pytest.raises(OptionError, match=says):
        validate(SamplingParams(**options), vocab_size=50)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"temperature": 0, "top_p": 0.9, "top_k": 3},  # clients send these along; they cannot change a greedy choice
        {"temperature": 1.0, "top_k": 0, "top_p": 1.0, "min_p": 0.0, "num_return_sequences": 3},
        {"num_beams": 3, "num_return_sequences": 3, "early_stopping": "never", "length_penalty": -1.0},
        {"num_beams": 2, "temperature": 0.0},
        {"bad_words_ids": ((49,), (1, 2))},
        {"logprobs": 0, "seed": -5},
    ],
)
def test_allowed(options: dict[str, Any]) -> None:
    validate(SamplingParams(**options), vocab_size=50)


def test_spread_keeps_the_first_seed() -> None:
    many = spread(SamplingParams(temperature=1.0, seed=3, num_return_sequences=3))
    assert [(params.seed, params.num_return_sequences) for params in many] == [(3, 1), (4, 1), (5, 1)]
    assert [p.seed for p in spread(SamplingParams(temperature=1.0, num_return_sequences=2))] == [None, None]
    with pytest.raises(OptionError, match="beams"):
        spread(SamplingParams(num_beams=2, num_return_sequences=2))
