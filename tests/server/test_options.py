"""Fields of a request to sampling options: every one reaches the engine under its own name, with its own value."""

from __future__ import annotations

import json
from typing import Any

import pytest

from behold.api.server.errors import ApiError
from behold.api.server.options import DEFAULT_MAX_TOKENS, chat_params, response_params, template_variables
from behold.api.server.schemas_chat import ChatRequest
from behold.api.server.schemas_responses import ResponsesRequest
from behold.api.vlm import VLM
from behold.types import Constraint, SamplingParams

SCHEMA = {"type": "object", "properties": {"n": {"type": "integer"}}, "required": ["n"], "additionalProperties": False}


def chat(vlm: VLM, **fields: Any) -> list[SamplingParams]:
    messages = [{"role": "user", "content": "x"}]
    return chat_params(vlm, ChatRequest.model_validate_json(json.dumps({"messages": messages, **fields})))


def response(vlm: VLM, **fields: Any) -> SamplingParams:
    return response_params(vlm, ResponsesRequest.model_validate_json(json.dumps({"input": "x", **fields})))


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"max_tokens": 5}, {"max_new_tokens": 5}),
        ({"max_completion_tokens": 5}, {"max_new_tokens": 5}),
        ({"max_tokens": 5, "max_completion_tokens": 5}, {"max_new_tokens": 5}),
        ({"min_tokens": 2}, {"min_new_tokens": 2}),
        ({"temperature": 0.5, "top_p": 0.9, "top_k": 7, "min_p": 0.1},
         {"temperature": 0.5, "top_p": 0.9, "top_k": 7, "min_p": 0.1}),
        ({"temperature": 0, "top_p": 0.5}, {"temperature": None, "top_p": None}),
        ({"top_p": 1, "top_k": -1, "min_p": 0}, {"temperature": None, "top_p": None, "top_k": None, "min_p": None}),
        ({"top_p": 0.5}, {"top_p": 0.5, "temperature": 1.0}),
        ({"repetition_penalty": 1.2, "presence_penalty": 0.5, "frequency_penalty": -0.5},
         {"repetition_penalty": 1.2, "presence_penalty": 0.5, "frequency_penalty": -0.5}),
        ({"no_repeat_ngram_size": 3}, {"no_repeat_ngram_size": 3}),
        ({"stop": "END"}, {"stop": ("END",)}),
        ({"stop": ["a", "b", "c", "d", "e"]}, {"stop": ("a", "b", "c", "d", "e")}),
        ({"stop": []}, {"stop": ()}),
        ({"stop_token_ids": [5, 6]}, {"stop_token_ids": frozenset({5, 6})}),
        ({"seed": -3}, {"seed": -3}),
        ({"ignore_eos": True}, {"ignore_eos": True, "loop_stop": False}),
        ({}, {"loop_stop": True, "constraint": None, "logprobs": None, "temperature": None}),
        ({"loop_stop": False}, {"loop_stop": False}),
        ({"structured_outputs": {"regex": "[ab]+", "json": None}}, {"constraint": Constraint("regex", "[ab]+")}),
        ({"structured_outputs": {"choice": ["yes", "no"]}}, {"constraint": Constraint("choice", ("yes", "no"))}),
        ({"structured_outputs": {"json": SCHEMA}}, {"constraint": Constraint("json_schema", json.dumps(SCHEMA))}),
    ],
)  # fmt: skip
def test_a_field_reaches_the_engine(vlm: VLM, fields: dict[str, Any], expected: dict[str, Any]) -> None:
    (params,) = chat(vlm, **fields)
    assert {name: getattr(params, name) for name in expected} == expected
    if not {"max_tokens", "max_completion_tokens"} & fields.keys():
        assert params.max_new_tokens == DEFAULT_MAX_TOKENS
        other = response(vlm, **fields)
        assert {name: getattr(other, name) for name in expected} == expected


@pytest.mark.parametrize(
    ("fields", "expected"),
    [({}, None), ({"logprobs": False}, None), ({"logprobs": True}, 0), ({"logprobs": True, "top_logprobs": 20}, 20)],
)
def test_logprobs_of_a_chat_completion(vlm: VLM, fields: dict[str, Any], expected: int | None) -> None:
    assert chat(vlm, **fields)[0].logprobs == expected


@pytest.mark.parametrize(
    ("fields", "expected"),
    [({}, None), ({"include": ["message.output_text.logprobs"]}, 0), ({"top_logprobs": 2}, 2), ({"include": []}, None)],
)
def test_logprobs_of_a_response(vlm: VLM, fields: dict[str, Any], expected: int | None) -> None:
    assert response(vlm, **fields).logprobs == expected


def test_each_choice_has_its_own_seed(vlm: VLM) -> None:
    assert [params.seed for params in chat(vlm, n=3, seed=5)] == [5, 6, 7]
    assert [params.seed for params in chat(vlm, n=2)] == [None, None]
    assert response(vlm, max_output_tokens=9).max_new_tokens == 9


@pytest.mark.parametrize(
    ("form", "expected"),
    [
        ({"type": "text"}, None),
        ({"type": "json_object"}, Constraint("json_object")),
        ({"type": "json_schema", "name": "n", "schema": SCHEMA}, Constraint("json_schema", json.dumps(SCHEMA))),
    ],
)
def test_json_is_asked_for_nested_in_one_endpoint_and_flat_in_the_other(
    vlm: VLM, form: dict[str, Any], expected: Constraint | None
) -> None:
    nested = form if "schema" not in form else {"type": form["type"], "json_schema": form}
    assert chat(vlm, response_format=nested)[0].constraint == expected
    assert response(vlm, text={"format": form}).constraint == expected


@pytest.mark.parametrize(
    "form",
    [{"type": "yaml"}, {"type": "json_schema"}, {"type": "json_schema", "json_schema": {"schema": 5}}, {}],
)
def test_a_form_that_is_none_is_named(vlm: VLM, form: dict[str, Any]) -> None:
    with pytest.raises(ApiError) as caught:
        chat(vlm, response_format=form)
    assert (caught.value.status, caught.value.param) == (400, "response_format")
    with pytest.raises(ApiError) as caught:
        response(vlm, text={"format": form})
    assert (caught.value.status, caught.value.param) == (400, "text.format")
    assert "response_format" not in caught.value.message


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"structured_outputs": {"regex": "("}}, "structured_outputs"),
        ({"structured_outputs": {"yaml": "x"}}, "structured_outputs"),
        ({"structured_outputs": {"regex": "a"}, "response_format": {"type": "json_object"}}, "structured_outputs"),
        ({"response_format": {"type": "json_schema", "json_schema": {"schema": {"type": "what"}}}}, "response_format"),
        ({"stop": [""]}, "stop"),
        ({"stop_token_ids": [-4]}, "stop_token_ids"),
        ({"min_tokens": 2000}, "min_tokens"),
        ({"max_tokens": 4, "max_completion_tokens": 5}, "max_completion_tokens"),
        ({"top_logprobs": 4}, "top_logprobs"),
    ],
)
def test_what_does_not_hold_together_is_named(vlm: VLM, fields: dict[str, Any], param: str) -> None:
    with pytest.raises(ApiError) as caught:
        chat(vlm, **fields)
    assert (caught.value.status, caught.value.param) == (400, param)


def test_template_variables() -> None:
    def variables(**fields: Any) -> dict[str, Any]:
        return template_variables(ResponsesRequest.model_validate({"input": "x", **fields}))

    assert variables() == {}
    assert variables(chat_template_kwargs={"thinking": False}) == {"thinking": False}
    assert variables(continue_final_message=True) == {"continue_final_message": True}
    new_turn = {"add_generation_prompt": True, "continue_final_message": False}
    assert variables(add_generation_prompt=True) == new_turn
    for name in ("messages", "self", "add_generation_prompt", "continue_final_message"):
        with pytest.raises(ApiError):
            variables(chat_template_kwargs={name: 1})
