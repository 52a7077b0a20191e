"""Choosing between labels: the probabilities are those of whole passes over prompt and label."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

import behold
from behold.api.choose import _factors, _spellings
from behold.api.turns import user_message
from behold.errors import BeholdError, ChatError, MediaError, OptionError
from behold.nn.attention import AttentionPlan, PlainCache
from behold.processing.ways_on import ways_on
from behold.types import Message, Prompt, TextPart
from tests import toys

EXAMPLES = Path(__file__).parents[2] / "examples"
QUESTION = "What do we see in this image?"
PICTURE = toys.picture()


@pytest.fixture(scope="module", params=["llava-siglip-qwen2", "idefics2-split", "llava-clip-llama"])
def vlm(request: pytest.FixtureRequest) -> behold.VLM:
    return behold.load(toys.checkpoint(request.param))


@pytest.fixture(scope="module")
def demo() -> behold.VLM:
    return behold.load("demo")


@torch.inference_mode()
def whole(vlm: behold.VLM, prompt: Prompt, ids: Sequence[int]) -> list[float]:
    """The log probability of each of `ids` behind the prompt, from one pass over everything, without an engine."""
    model = vlm.model
    rows = at = None
    if prompt.spans:
        pictures = [model.encode_images([image])[0] for image in prompt.images]
        rows = torch.cat([pictures[span.image] for span in prompt.spans])
        at = torch.cat([torch.arange(span.start, span.stop) for span in prompt.spans])
    everything = torch.tensor([*prompt.ids, *ids])
    spans = tuple((span.start, span.stop) for span in prompt.spans if span.bidirectional)
    plan = AttentionPlan((len(everything),), (0,), (0,), (spans,))
    hidden = model.hidden(model.embed(everything, rows, at), model.positions(len(everything)), PlainCache(plan))
    found = model.logits(hidden[len(prompt.ids) - 1 : -1]).float().log_softmax(-1)
    return [float(row[token]) for row, token in zip(found, ids, strict=True)]


def softmax(values: Sequence[float]) -> list[float]:
    return torch.tensor(values, dtype=torch.float64).softmax(0).tolist()


LABELS = ["3", "17", "404", "2,000 of them"]  # no letter comes first, and none begins another: means and nothing else


def test_probabilities_are_those_of_whole_passes(vlm: behold.VLM) -> None:
    messages = [user_message([PICTURE, toys.picture(31, 22, seed=1)], QUESTION)]
    prompt, ways = vlm.processor.chat(messages), ways_on(vlm.processor, messages, LABELS)
    passes = [whole(vlm, ways.shortened(prompt), ids) for ids in ways.ids]
    choice = vlm.choose([PICTURE, toys.picture(31, 22, seed=1)], QUESTION, LABELS)
    assert list(choice.probabilities) == list(choice.logprobs) == LABELS
    assert [len(ids) > 1 for ids in ways.ids].count(True) >= 2
    wanted = softmax([sum(found) / len(found) for found in passes])
    assert list(choice.probabilities.values()) == pytest.approx(wanted, rel=1e-3)
    assert list(choice.logprobs.values()) == pytest.approx([sum(found) for found in passes], abs=1e-2)
    assert choice.label == LABELS[wanted.index(max(wanted))]
    assert sum(choice.probabilities.values()) == pytest.approx(1)
    assert (choice.usage.prompt_tokens, choice.usage.image_tokens) == (len(prompt.ids), prompt.image_tokens)
    assert choice.usage.completion_tokens == 0 < choice.timings.total_s
    vlm.engine.check()


def test_a_single_token_costs_one_prefill(demo: behold.VLM) -> None:
    digits = [str(digit) for digit in range(10)]
    before = demo.engine.stats()
    choice = demo.choose([], "How many?", digits)
    after = demo.engine.stats()
    assert after.steps - before.steps == 1
    messages = [user_message([], "How many?")]
    logits = [
        whole(demo, demo.processor.chat(messages), ids)[0] for ids in ways_on(demo.processor, messages, digits).ids
    ]
    assert list(choice.probabilities.values()) == pytest.approx(softmax(logits), rel=1e-3)


def test_many_run_together_and_give_what_each_gives_alone(vlm: behold.VLM) -> None:
    items = [(toys.picture(40, 28, seed=seed) if seed % 3 else [], f"Number {seed}?") for seed in range(8)]
    before = vlm.engine.stats().steps
    together = list(vlm.choose_many(items, ["yes", "no", "maybe so"]))
    steps = vlm.engine.stats().steps - before
    alone = [vlm.choose(*item, ["yes", "no", "maybe so"]) for item in items]
    assert [choice.label for choice in together] == [choice.label for choice in alone]
    for one, other in zip(together, alone, strict=True):
        assert list(one.probabilities.values()) == pytest.approx(list(other.probabilities.values()), rel=1e-3)
    assert len({choice.probabilities["yes"] for choice in together}) > 3
    assert steps < 2 * len(items)


def test_a_conversation_is_gone_on_with(vlm: behold.VLM) -> None:
    begun = [{"role": "user", "content": QUESTION}, {"role": "assistant", "content": "There are some cir"}]
    (choice,) = vlm.choose_many([begun], ["cles", "cuits"])
    messages = [Message("user", (TextPart(QUESTION),)), Message("assistant", (TextPart("There are some cir"),))]
    prompt, ways = vlm.processor.chat(messages), ways_on(vlm.processor, messages, ["cles", "cuits"])
    start = ways.shortened(prompt)
    for text, ids in zip(("cles", "cuits"), ways.ids, strict=True):
        assert vlm.processor.tokenizer.decode([*start.ids, *ids]).endswith("There are some cir" + text)
    wanted = softmax([sum(found) / len(found) for found in (whole(vlm, start, ids) for ids in ways.ids)])
    assert list(choice.probabilities.values()) == pytest.approx(wanted, rel=1e-3)


def test_labels_are_read_as_the_template_writes_answers(vlm: behold.VLM) -> None:
    """What stands between the prompt and an answer belongs to the answer, and the ids are those of the whole text."""
    messages = [user_message(PICTURE, QUESTION)]
    for text in ("yes", "A <image> of 3 cats, é", "<|im_end|>"):
        ways = ways_on(vlm.processor, messages, [text])
        answered = [*messages, Message("assistant", (TextPart(text),))]
        said = vlm.processor.chat(answered[:1]).ids[: -ways.n_cut or None] + ways.ids[0]
        assert said == vlm.processor.chat(answered, continue_final_message=True).ids
    assert ways_on(vlm.processor, messages, ["yes", "no"]).n_cut == 0


def test_a_text_that_joins_what_stands_before_it() -> None:
    """The ids that end the prompt differ with the text behind them: they are counted to the text."""
    vlm = behold.load("demo")
    messages = [Message("user", (TextPart("Colour?"),)), Message("assistant", (TextPart("A re"),))]
    ways = ways_on(vlm.processor, messages, ["d star", "ctangle"])
    prompt = vlm.processor.chat(messages)
    texts = [vlm.processor.tokenizer.decode([*ways.shortened(prompt).ids, *ids]) for ids in ways.ids]
    assert [text[-len("A rectangle") :].strip() for text in texts] == ["A red star"[-11:], "A rectangle"]
    assert all(ways.ids)


# --- ratings -----------------------------------------------------------------------------------------------------


def test_a_label_that_begins_a_longer_one_must_end_there() -> None:
    half = math.log(0.5)
    found = _factors(
        {(1,): (half,), (1, 2): (half, math.log(0.9)), (1, 3, 4): (half, math.log(0.1), half), (5,): (half,)}
    )
    assert found[1, 2] == (half, math.log(0.9)) and found[5,] == (half,)
    assert found[1,][0] == half and found[1,][1] < math.log(1e-9), "nothing is left when 2 and 3 take all"
    found = _factors({(1,): (half,), (1, 2): (half, math.log(0.25)), (1, 2, 7): (half, math.log(0.25), half)})
    assert found[1,] == pytest.approx((half, math.log(0.75)))
    assert found[1, 2] == pytest.approx((half, math.log(0.25), half))


@pytest.mark.parametrize(
    ("labels", "others"),
    [
        (["yes", "No"], ["Yes", "no"]),
        (["red", "Red", "blue"], ["Blue"]),
        (["A", "B"], []),
        (["NASA", "3", "-"], []),
        (["a star", "élan"], ["A star", "Élan"]),
    ],
)
def test_the_first_letter_may_be_either(labels: list[str], others: list[str]) -> None:
    spelled = _spellings(labels)
    assert spelled[: len(labels)] == [(label, number) for number, label in enumerate(labels)]
    assert [spelling for spelling, _ in spelled[len(labels) :]] == others
    assert all(labels[number][1:] == spelling[1:] for spelling, number in spelled)


@pytest.mark.parametrize(
    ("picture", "question", "labels", "label"),
    [
        ("scene", "Is there a green ring?", ["yes", "no"], "yes"),
        ("scene", "Is there a blue star?", ["yes", "no"], "no"),
        ("scene", "Where is the ring?", ["at the top", "at the top left", "at the top right"], "at the top"),
        ("scene", "Where is the cross?", ["at the top", "at the top left", "at the bottom"], "at the top left"),
        ("scene", "What colour is the cross?", ["red", "orange", "green", "black"], "orange"),
        ("number", "What does the text say?", ["TABLE", "STOP", "20", "200"], "20"),
        ("word", "What does the text say?", ["TABLE", "STOP", "20"], "TABLE"),
        ("word", "How many shapes are there?", ["one", "two", "three", "four"], "two"),
    ],
)
def test_the_bundled_model_chooses_right(
    demo: behold.VLM, picture: str, question: str, labels: list[str], label: str
) -> None:
    choice = demo.choose(EXAMPLES / f"{picture}.png", question, labels)
    assert choice.label == label
    assert choice.probabilities[label] == max(choice.probabilities.values()) > 0.5


def test_a_low_logprob_says_that_no_label_fits(demo: behold.VLM) -> None:
    question = "What colour is the cross?"
    fits = demo.choose(EXAMPLES / "scene.png", question, ["orange", "red"])
    none = demo.choose(EXAMPLES / "scene.png", question, ["giraffe", "TABLE"])
    assert max(fits.logprobs.values()) > -0.5 > -5 > max(none.logprobs.values())


# --- what is refused ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "labels", [[], ["yes"], "yes", ["yes", ""], ["yes", "  "], ["yes", "no", "yes"], [1, 2], 7, ["yes", None]]
)
def test_labels_must_be_several_and_different(vlm: behold.VLM, labels: Any) -> None:
    before = vlm.engine.stats().steps
    with pytest.raises(OptionError, match="label"):
        vlm.choose(PICTURE, QUESTION, labels)
    with pytest.raises(OptionError, match="label"):
        vlm.choose_many([], labels)
    assert vlm.engine.stats().steps == before


def test_broken_items_are_named_or_kept(vlm: behold.VLM) -> None:
    items: list[Any] = [([], "Fine?"), ("no-such.png", "?"), 42, (PICTURE, "Fine?")]
    with pytest.raises(MediaError, match=r"item 1 .*no-such"):
        list(vlm.choose_many(items, ["yes", "no"]))
    kept = list(vlm.choose_many(items, ["yes", "no"], on_error="keep"))
    assert [type(result) for result in kept] == [behold.Choice, MediaError, ChatError, behold.Choice]
    with pytest.raises(MediaError, match=r"^(?!item)"):
        vlm.choose("no-such.png", "?", ["yes", "no"])
    assert all(isinstance(result, behold.Choice | BeholdError) for result in kept)
    vlm.engine.check()


def test_any_number_of_items_is_read_as_needed(demo: behold.VLM) -> None:
    endless = ((EXAMPLES / "scene.png", f"Is there {number}?") for number in itertools.count())
    choices = demo.choose_many(endless, ["yes", "no"])
    assert [next(choices).label for _ in range(3)]
    choices.close()
    assert demo.engine.stats().running == demo.engine.stats().waiting == 0
