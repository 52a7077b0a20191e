"""Structured answers end to end: random models cannot break a schema, and a cut-off answer is an error."""

from __future__ import annotations

import asyncio
import json
import re
import threading
from decimal import Decimal
from pathlib import Path
from typing import Any, Literal

import pytest
from pydantic import BaseModel, Field, field_validator

import behold
from behold.api.sampling import sampling_params
from behold.api.structured import constraint_of_response_format
from behold.engine.async_engine import AsyncEngine
from behold.errors import OptionError, StructuredOutputError
from behold.types import Constraint, SamplingParams
from tests import toys

NAMES = ("llava-siglip-qwen2", "llava-clip-llama", "idefics2")
QUESTION = "What do we see in this image?"
PICTURE = toys.picture()


class Line(BaseModel):
    article: str = Field(max_length=8)
    price: Decimal | float = Field(description="in euros")


class Cheap(BaseModel):
    kind: Literal["cheap"]


class Dear(BaseModel):
    kind: Literal["dear"]
    why: str = Field(max_length=4)


class Invoice(BaseModel):
    number: str = Field(pattern=r"^[A-Z]{2}-\d{3}$")
    paid: bool
    lines: list[Line] = Field(max_length=2)
    tags: set[Literal["a", "b"]] = Field(default=set(), max_length=2)
    rating: Cheap | Dear = Field(discriminator="kind")


class Small(BaseModel):
    shape: Literal["circle", "square"]
    count: int = Field(ge=0, le=20)


class Even(BaseModel):
    count: int = Field(ge=1, le=1)

    @field_validator("count")
    @classmethod
    def _is_even(cls, count: int) -> int:
        if count % 2:
            raise ValueError("it must be even")
        return count


SMALL = Small.model_json_schema() | {"additionalProperties": False}


@pytest.fixture(scope="module", params=NAMES)
def vlm(request: pytest.FixtureRequest) -> behold.VLM:
    return behold.load(toys.checkpoint(request.param))


@pytest.fixture(scope="module")
def one() -> behold.VLM:
    return behold.load(toys.checkpoint(NAMES[0]))


# --- whatever a model with random weights would like to say --------------------------------------------------------


@pytest.mark.parametrize("temperature", [0.0, 0.7, 3.0])
def test_a_pydantic_class_gives_an_instance(vlm: behold.VLM, temperature: float) -> None:
    for seed in range(6):
        found = vlm.ask(PICTURE, QUESTION, schema=Small, temperature=temperature, seed=seed, max_new_tokens=100)
        assert type(found) is Small


def test_a_nested_class_gives_instances_or_says_why_not(vlm: behold.VLM) -> None:
    """A price may have more digits than the answer has room for; then the error says so."""
    came: list[object] = []
    for seed in range(4):
        try:
            came.append(vlm.ask([], QUESTION, schema=Invoice, temperature=1.5, seed=seed, max_new_tokens=200))
        except StructuredOutputError as error:
            came.append(re.search("raise max_new_tokens|not those of Invoice", str(error)) and error.answer[:11])
    assert all(isinstance(item, Invoice) or item == '{"number": ' for item in came)
    assert any(isinstance(item, Invoice) for item in came)


@pytest.mark.parametrize("temperature", [0.0, 1.0, 3.0])
def test_a_json_schema_gives_text_that_is_valid_under_it(vlm: behold.VLM, temperature: float) -> None:
    for seed in range(6):
        answer = vlm.ask(PICTURE, QUESTION, schema=SMALL, temperature=temperature, seed=seed, max_new_tokens=100)
        assert isinstance(answer, behold.Answer) and answer.parsed == json.loads(answer)
        Small.model_validate_json(answer, strict=True)
        assert (answer.ended_by, answer.finish_reason, answer.satisfied) == ("end", "stop", True)


@pytest.mark.parametrize("pattern", [r"[a-z]{1,6}", r"\d{2}-\d{2}", r"(é|日本|🙂| x){1,3}", " ?(left|right)"])
def test_a_regex_is_matched_as_a_whole(vlm: behold.VLM, pattern: str) -> None:
    for seed in range(5):
        answer = vlm.ask([], QUESTION, regex=pattern, temperature=2.0, seed=seed)
        assert re.fullmatch(pattern, answer), answer


def test_a_choice_is_one_of_them(vlm: behold.VLM) -> None:
    choices = ["yes", "yes, please", "no", " perhaps", "日本"]
    answers = {vlm.ask([], QUESTION, choices=choices, temperature=3.0, seed=seed) for seed in range(25)}
    assert len(answers) > 2 and answers <= set(choices)
    assert vlm.ask(PICTURE, QUESTION, choices=["only"]) == "only"


def test_a_grammar(vlm: behold.VLM) -> None:
    answer = vlm.ask([], QUESTION, grammar='start: WORD ("," WORD){0,3}\nWORD: /[a-c]{1,2}/', temperature=2.0, seed=1)
    assert re.fullmatch("[a-c]{1,2}(,[a-c]{1,2}){0,3}", answer)


# --- the same through every door -----------------------------------------------------------------------------------


def test_together_is_the_same_as_alone(vlm: behold.VLM) -> None:
    kinds: list[dict[str, Any]] = [
        {"schema": SMALL, "temperature": 2.0, "seed": 1},
        {"regex": r"\w{9}", "temperature": 2.0, "seed": 2},
        {"choices": ["red", "green"]},
        {"max_new_tokens": 20},
        {"schema": SMALL, "temperature": 2.0, "seed": 3},
    ]
    alone = [vlm.ask(PICTURE, QUESTION, **kind) for kind in kinds]
    prompt = vlm.processor.chat([behold.api.turns.user_message(PICTURE, QUESTION)])
    together = vlm.engine.complete([(prompt, vlm.params(kind)) for kind in kinds])
    assert [item.text for item in together] == alone
    assert [item.ids for item in together] == [item.ids for item in alone]
    vlm.engine.check()


def test_streamed_is_the_same_as_whole(vlm: behold.VLM) -> None:
    options: dict[str, Any] = {"temperature": 2.0, "seed": 5, "max_new_tokens": 100}
    stream = vlm.stream(PICTURE, QUESTION, schema=Small, **options)
    pieces = list(stream)
    assert len(pieces) > 3
    assert "".join(pieces) == stream.answer == vlm.ask(PICTURE, QUESTION, schema=SMALL, **options)
    assert stream.answer.parsed == vlm.ask(PICTURE, QUESTION, schema=Small, **options)


def test_an_event_loop_goes_on_while_a_schema_is_compiled(one: behold.VLM, monkeypatch: pytest.MonkeyPatch) -> None:
    compiling: list[int] = []
    prepare = one.engine.prepare

    def watched(params: SamplingParams) -> None:
        compiling.append(threading.get_ident())
        prepare(params)

    monkeypatch.setattr(one.engine, "prepare", watched)
    prompt = one.processor.chat([behold.api.turns.user_message([], QUESTION)])

    async def ask() -> str:
        driver = AsyncEngine(one.engine)
        driver.start()
        try:
            params = one.params({"choices": ["in the loop", "elsewhere"]})
            return "".join([delta.text async for delta in driver.stream(prompt, params)])
        finally:
            await driver.stop()

    assert asyncio.run(ask()) in ("in the loop", "elsewhere")
    assert len(compiling) == 1 and compiling[0] != threading.get_ident()


def test_batch_generate_and_say(one: behold.VLM) -> None:
    items = [(PICTURE, QUESTION), ([], QUESTION)]
    found = one.batch(items, schema=Small)
    assert all(type(item) is Small for item in found)
    assert found == [one.ask(images, question, schema=Small) for images, question in items]
    texts = one.batch(items, schema=SMALL)
    assert [Small(**text.parsed) for text in texts] == found
    messages = [{"role": "user", "content": QUESTION}]
    assert one.generate(messages, schema=Small) == found[1]
    chat = one.chat()
    assert type(chat.say(PICTURE, QUESTION, schema=Small)) is Small
    assert Small.model_validate_json(chat.messages[-1].text)
    stream = chat.stream("And now?", choices=["this", "that"])
    assert "".join(stream) in ("this", "that") and len(chat.messages) == 4


def test_log_probabilities_are_those_among_what_is_allowed(one: behold.VLM) -> None:
    answer = one.ask(PICTURE, QUESTION, regex="[ab]c", logprobs=20)
    first, second = answer.logprobs
    assert len(first.top) >= 2 and len(second.top) == 1 and second.logprob == 0.0
    assert sum(2.718281828**value for _, value in first.top) == pytest.approx(1.0, abs=1e-4)


def test_an_answer_ends_where_nothing_may_follow_without_a_step_more(one: behold.VLM) -> None:
    answer = one.ask([], QUESTION, regex="a", max_new_tokens=1)
    assert (answer, answer.ended_by, len(answer.ids)) == ("a", "end", 1)
    longer = one.ask([], QUESTION, regex="a", min_new_tokens=5)
    assert longer == "a"


def test_the_checkpoint_may_forbid_words_and_the_rest_is_still_valid(one: behold.VLM) -> None:
    """With every token that begins the answer forbidden, the request fails, and no other with it."""
    tokenizer = one.processor.tokenizer
    yes = [
        token
        for token in range(len(tokenizer))
        if tokenizer.decode([token]) and "yes".startswith(tokenizer.decode([token]))
    ]
    with pytest.raises(StructuredOutputError, match="no token is left"):
        one.ask([], QUESTION, choices=["yes"], bad_words_ids=[[token] for token in yes])
    assert one.ask([], QUESTION, choices=["yes", "no"], bad_words_ids=[[token] for token in yes]) == "no"
    one.engine.check()


def test_the_demo_chooses_sensibly() -> None:
    demo, scene = behold.load("demo"), Path(__file__).parents[2] / "examples" / "scene.png"
    assert demo.ask(scene, "How many shapes are there?", choices=["One", "Two", "Three", "Four"]) == "Three"


# --- an explicit failure -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("schema", [Small, SMALL])
def test_an_answer_that_is_cut_off_is_an_error(one: behold.VLM, schema: Any) -> None:
    with pytest.raises(
        StructuredOutputError, match=r"after 4 tokens, before it satisfied.*raise max_new_tokens"
    ) as cut:
        one.ask(PICTURE, QUESTION, schema=schema, max_new_tokens=4)
    assert cut.value.answer.startswith('{"') and repr(cut.value.answer) in str(cut.value)
    with pytest.raises(StructuredOutputError, match=r"item 0 of the batch.*raise max_new_tokens"):
        one.batch([(PICTURE, QUESTION)] * 2, schema=schema, max_new_tokens=4)
    chat = one.chat()
    with pytest.raises(StructuredOutputError):
        chat.say(QUESTION, schema=schema, max_new_tokens=4)
    assert chat.messages == []


def test_a_stream_that_is_cut_off_raises_after_its_last_piece(one: behold.VLM) -> None:
    stream = one.stream(PICTURE, QUESTION, schema=Small, max_new_tokens=4)
    pieces: list[str] = []
    with pytest.raises(StructuredOutputError, match="raise max_new_tokens"):
        pieces.extend(iter(lambda: next(stream), None))
    assert stream.done and stream.answer.parsed is None and not stream.answer.satisfied


def test_a_number_that_could_go_on_is_checked_too(one: behold.VLM) -> None:
    """A beginning of a number reads like a number, but 1 is not between 100 and 199."""
    schema = {"type": "integer", "minimum": 100, "maximum": 199}
    with pytest.raises(StructuredOutputError, match="'1'"):
        one.ask([], QUESTION, schema=schema, max_new_tokens=1)
    assert 100 <= one.ask([], QUESTION, schema=schema).parsed <= 199


def test_a_stop_string_that_cuts_an_answer_off(one: behold.VLM) -> None:
    with pytest.raises(StructuredOutputError, match=r"was ended by a stop string.*leave out stop"):
        one.ask([], QUESTION, schema=Small, stop="shape")
    assert one.ask([], QUESTION, schema=Small, stop="no such text")


def test_a_stream_that_is_closed_is_no_error(one: behold.VLM) -> None:
    with one.stream(PICTURE, QUESTION, schema=Small) as stream:
        next(stream)
    assert (stream.answer.ended_by, stream.answer.satisfied, stream.answer.parsed) == ("cancelled", False, None)


def test_values_that_only_the_class_can_judge(one: behold.VLM) -> None:
    with pytest.raises(StructuredOutputError, match=r"not those of Even:(.|\n)*it must be even") as failure:
        one.ask([], QUESTION, schema=Even)
    assert failure.value.answer == '{"count": 1}'


# --- what is refused, before anything runs -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"schema": Small, "regex": "a"}, "schema and regex are both given"),
        ({"choices": ["a"], "grammar": "start: A"}, "choices and grammar are both given"),
        ({"schema": 3}, r"schema=3 is a int; it takes a pydantic class or a JSON schema"),
        ({"schema": Small(shape="circle", count=1)}, "is a Small"),
        ({"schema": {"enum": {1, 2}}}, "schema cannot be written as JSON: a set"),
        ({"schema": {"type": "foo"}}, "schema=.*Invalid type: foo"),
        ({"schema": {"type": "array", "uniqueItems": True}}, "uniqueItems"),
        ({"regex": "[a"}, "regex=.*unclosed"),
        ({"regex": ""}, "regex=''.*non-empty"),
        ({"grammar": "begin: A"}, "grammar="),
        ({"choices": "yes"}, "choices='yes'.*a list"),
        ({"choices": []}, "choices"),
        ({"choices": ["a", ""]}, "choices"),
        ({"regex": "a", "num_beams": 2}, "num_beams=2 cannot be used with a regex"),
        ({"regex": "a", "ignore_eos": True}, "ignore_eos=True cannot be used with a regex"),
        ({"response_format": {}}, "'schema'"),
    ],
)
def test_refused(one: behold.VLM, options: dict[str, Any], says: str) -> None:
    steps = one.engine.stats().steps
    with pytest.raises(OptionError, match=says):
        one.ask([], QUESTION, **options)
    with pytest.raises(OptionError, match="num_beams" if "num_beams" in options else says):
        one.stream([], QUESTION, **options)
    assert one.engine.stats().steps == steps


def test_what_a_class_ignores_is_left_out_and_what_it_wants_more_of_is_not() -> None:
    class Open(BaseModel, extra="allow"):
        path: Path

    def properties(schema: type[BaseModel]) -> Any:
        constraint = sampling_params({"schema": schema}).constraint
        assert constraint is not None and isinstance(constraint.source, str)
        return json.loads(constraint.source)

    invoice = properties(Invoice)
    assert not invoice["additionalProperties"] and not invoice["$defs"]["Line"]["additionalProperties"]
    assert "uniqueItems" not in invoice["properties"]["tags"] and invoice["properties"]["tags"]["maxItems"] == 2
    assert properties(Open)["additionalProperties"] is True
    assert "format" not in properties(Open)["properties"]["path"]


# --- response_format -----------------------------------------------------------------------------------------------


def test_the_response_formats_of_the_openai_api() -> None:
    described = {"name": "small", "schema": SMALL, "strict": True}
    found = constraint_of_response_format({"type": "json_schema", "json_schema": described})
    assert found is not None and found.kind == "json_schema" and json.loads(str(found.source)) == SMALL
    assert constraint_of_response_format({"type": "json_object"}) == Constraint("json_object")
    assert constraint_of_response_format({"type": "text"}) is None


@pytest.mark.parametrize(
    ("value", "says"),
    [
        ("json", "response_format is a str"),
        ({}, "response_format.type=None"),
        ({"type": "xml"}, "response_format.type='xml' is not known; it is text, json_object or json_schema"),
        ({"type": "json_schema"}, "response_format.json_schema is a NoneType"),
        ({"type": "json_schema", "json_schema": {"name": "x"}}, "response_format.json_schema.schema is missing"),
        ({"type": "json_schema", "json_schema": {"schema": []}}, "response_format.json_schema.schema is list"),
        ({"type": "json_schema", "json_schema": {"schema": {}, "strict": 1}}, "response_format.json_schema.strict=1"),
    ],
)
def test_a_response_format_that_is_none(value: Any, says: str) -> None:
    with pytest.raises(OptionError, match=re.escape(says)):
        constraint_of_response_format(value)
