"""`generate` and `forward` beside transformers: the same tensors in, the same ids and logits out."""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch

from behold import AutoModelForImageTextToText, AutoProcessor
from tests import toys

FAMILIES = tuple(toys.TOYS)
MAIN = ("llava-siglip-qwen2", "llava-clip-llama", "idefics2-split")


@dataclass(frozen=True)
class Pair:
    """One checkpoint in both libraries."""

    name: str
    ours: Any
    theirs: Any
    processor: Any
    their_processor: Any

    def chat(self, question: str, pictures: int) -> str:
        content = [{"type": "image"}] * pictures + [{"type": "text", "text": question}]
        messages = [{"role": "user", "content": content}]
        return str(self.their_processor.apply_chat_template(messages, add_generation_prompt=True))

    def mixed_batch(self) -> Any:
        """Rows of different lengths with two pictures, none and one: the reference's own tensors."""
        pictures = [toys.picture(40, 30, 0), toys.picture(23, 51, 1), toys.picture(56, 56, 2)]
        texts = [
            self.chat("What changed between these two pictures?", 2),
            self.chat("Hello there.", 0),
            self.chat("How many shapes are there?", 1),
        ]
        images = [pictures[:2], [], pictures[2:]] if "idefics" in self.name else pictures
        batch = self.their_processor(text=texts, images=images, padding=True, return_tensors="pt")
        return batch.to(self.ours.device, self.ours.dtype)

    def same_ids(self, inputs: Any, **options: Any) -> torch.Tensor:
        if self.ours.dtype != torch.float32:
            pytest.skip("ids are compared in float32: rounding decides near ties otherwise")
        width = inputs.input_ids.shape[1]
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            expected = self.theirs.generate(**inputs, **options)
        found: torch.Tensor = self.ours.generate(**inputs, **options)
        assert torch.equal(found, expected), f"{found[:, width:]}\n{expected[:, width:]}"
        return found


@functools.cache
def _pair(name: str, device: torch.device, dtype: torch.dtype) -> Pair:
    folder = toys.checkpoint(name)
    theirs, their_processor = toys.reference(folder, device=device, dtype=dtype)
    their_processor.tokenizer.padding_side = "left"
    ours = AutoModelForImageTextToText.from_pretrained(folder, dtype=dtype, device_map=device)
    return Pair(name, ours, theirs, AutoProcessor.from_pretrained(folder), their_processor)


@pytest.fixture
def pair(device: torch.device, dtype: torch.dtype) -> Callable[[str], Pair]:
    """A toy by name, in both libraries."""
    return lambda name: _pair(name, device, dtype)


Pairs = Callable[[str], Pair]


# --- forward ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", FAMILIES)
def test_logits_with_left_padding_and_rows_without_pictures(pair: Pairs, name: str) -> None:
    inputs = pair(name).mixed_batch()
    with torch.no_grad():
        expected = pair(name).theirs(**inputs).logits
        found = pair(name).ours(**inputs).logits
    real = inputs.attention_mask.bool()
    assert not real.all(), "the batch has padding"
    close = {"atol": 1e-4, "rtol": 1e-4} if found.dtype == torch.float32 else {"atol": 0.2, "rtol": 0.1}
    torch.testing.assert_close(found[real], expected[real], **close)
    assert not found[~real].any(), "padding has no logits"


@pytest.mark.parametrize("name", MAIN)
def test_loss_and_last_logits(pair: Pairs, name: str, dtype: torch.dtype) -> None:
    inputs = pair(name).mixed_batch()
    # What a left-padded row's first token is predicted from is padding, which the two libraries fill differently.
    behind_padding = torch.nn.functional.pad(inputs.attention_mask, (1, -1)) == 0
    labels = inputs.input_ids.masked_fill(behind_padding, -100)
    with torch.no_grad():
        expected = pair(name).theirs(**inputs, labels=labels)
        found = pair(name).ours(**inputs, labels=labels, logits_to_keep=2)
    close = {"atol": 1e-4, "rtol": 1e-4} if dtype == torch.float32 else {"atol": 0.2, "rtol": 0.1}
    torch.testing.assert_close(found.loss.float(), expected.loss.float(), **close)
    torch.testing.assert_close(found.logits, expected.logits[:, -2:], **close)
    last = pair(name).ours(**inputs, logits_to_keep=3).logits
    torch.testing.assert_close(last[:, -2:], found.logits, **close)
    picked = pair(name).ours(**inputs, logits_to_keep=torch.tensor([-2, -1])).logits
    torch.testing.assert_close(picked, found.logits, **close)
    assert found["loss"] is found[0] and found.to_tuple() == (found.loss, found.logits)


# --- generate --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", FAMILIES)
def test_greedy(pair: Pairs, name: str) -> None:
    pair(name).same_ids(pair(name).mixed_batch(), max_new_tokens=12)


@pytest.mark.parametrize("name", MAIN)
@pytest.mark.parametrize("answers", [1, 3])
def test_beams(pair: Pairs, name: str, answers: int) -> None:
    found = pair(name).same_ids(pair(name).mixed_batch(), max_new_tokens=8, num_beams=3, num_return_sequences=answers)
    assert found.shape[0] == 3 * answers


@pytest.mark.parametrize("name", MAIN)
@pytest.mark.parametrize(
    "options",
    [
        {"repetition_penalty": 1.3},
        {"no_repeat_ngram_size": 2},
        {"min_new_tokens": 9, "max_new_tokens": 10},
        {"num_beams": 2, "length_penalty": 2.0, "early_stopping": True},
        {"num_beams": 2, "length_penalty": -1.0, "early_stopping": "never"},
        {"max_new_tokens": None, "max_length": 140},
        {"do_sample": False, "temperature": None, "top_p": None},
    ],
    ids=str,
)
def test_options(pair: Pairs, name: str, options: dict[str, Any]) -> None:
    pair(name).same_ids(pair(name).mixed_batch(), **{"max_new_tokens": 10, **options})


@pytest.mark.parametrize("name", MAIN)
def test_forbidden_words_and_own_ends(pair: Pairs, name: str) -> None:
    inputs = pair(name).mixed_batch()
    width = inputs.input_ids.shape[1]
    plain = pair(name).same_ids(inputs, max_new_tokens=8)[:, width:]
    word = [[int(plain[0, 0])], plain[1, :2].tolist()]
    pair(name).same_ids(inputs, max_new_tokens=8, bad_words_ids=word)
    ended = pair(name).same_ids(inputs, max_new_tokens=8, eos_token_id=int(plain[0, 3]), pad_token_id=1)[:, width:]
    assert int((ended[0] == 1).sum()) >= 4, "the first row ends early and is padded"
    pair(name).same_ids(inputs, max_new_tokens=8, eos_token_id=[int(plain[0, 3]), int(plain[1, 5])], num_beams=2)


def test_stop_strings_end_the_answer_with_the_ids_of_the_string(pair: Pairs) -> None:
    name = "llava-siglip-qwen2"
    both, inputs = pair(name), pair(name).mixed_batch()
    width = inputs.input_ids.shape[1]
    plain = both.ours.generate(**inputs, max_new_tokens=12)[:, width:]
    text = both.processor.decode(plain[0, 5])
    assert text.isascii() and text.strip()
    found = pair(name).same_ids(
        inputs, max_new_tokens=12, stop_strings=[text], tokenizer=both.their_processor.tokenizer
    )
    assert both.processor.decode(found[0, width:], skip_special_tokens=True).endswith(text)


@pytest.mark.parametrize("name", MAIN)
def test_each_row_is_what_it_is_alone(pair: Pairs, name: str) -> None:
    """The engine's own guarantee, through this door: padding and neighbours change nothing."""
    both, picture = pair(name), toys.picture(40, 30, 0)
    texts = [both.chat("How many?", 1), both.chat("Hello there, what do we see?", 0)]
    batch = both.processor(text=texts, images=[[picture], []], padding=True, return_tensors="pt")
    together = both.ours.generate(**batch, max_new_tokens=6)[:, batch.input_ids.shape[1] :]
    for row, (text, images) in enumerate(zip(texts, ([picture], None), strict=True)):
        one = both.processor(text=text, images=images, return_tensors="pt")
        alone = both.ours.generate(**one, max_new_tokens=6)[0, one.input_ids.shape[1] :]
        assert together[row, : len(alone)].tolist() == alone.tolist()


def test_right_padding_and_a_missing_mask_are_read_as_well(pair: Pairs) -> None:
    name = "llava-siglip-qwen2"
    both, inputs = pair(name), pair(name).mixed_batch()
    width, pad = inputs.input_ids.shape[1], both.processor.tokenizer.pad_token_id
    expected = both.ours.generate(**inputs, max_new_tokens=6)[:, width:]
    rows = [row[mask.bool()].tolist() for row, mask in zip(inputs.input_ids, inputs.attention_mask, strict=True)]
    right = inputs.input_ids.new_tensor([row + [pad] * (width - len(row)) for row in rows])
    pixels = inputs.pixel_values
    found = both.ours.generate(
        input_ids=right, attention_mask=(right != pad).long(), pixel_values=pixels, max_new_tokens=6
    )
    assert torch.equal(found[:, width:], expected)
    found = both.ours.generate(inputs.input_ids, pixel_values=pixels, max_new_tokens=6, pad_token_id=pad)
    assert torch.equal(found[:, width:], expected)


def test_the_checkpoints_defaults_hold_and_the_callers_go_first(tmp_path: Any) -> None:
    import json

    folder = toys.copy(toys.checkpoint("llava-clip-llama"), tmp_path / "toy")
    settings = {"max_new_tokens": 5, "repetition_penalty": 1.5, "eos_token_id": 2, "pad_token_id": 0}
    (folder / "generation_config.json").write_text(json.dumps(settings))
    theirs, processor = toys.reference(folder)
    ours = AutoModelForImageTextToText.from_pretrained(folder)
    inputs = processor(text="USER: Hello ASSISTANT:", return_tensors="pt")
    for options in ({}, {"max_new_tokens": 3}, {"repetition_penalty": 1.0}):
        assert torch.equal(ours.generate(**inputs, **options), theirs.generate(**inputs, **options))
    ours.generation_config.max_new_tokens = theirs.generation_config.max_new_tokens = 7
    assert torch.equal(ours.generate(**inputs), theirs.generate(**inputs))


@pytest.mark.parametrize("name", MAIN)
def test_the_published_spelling_in_several_files_is_the_same_model(pair: Pairs, name: str) -> None:
    folder = toys.checkpoint(name, style="published", shards=2)
    both, inputs = pair(name), pair(name).mixed_batch()
    published = AutoModelForImageTextToText.from_pretrained(folder, dtype=both.ours.dtype, device_map=both.ours.device)
    found = published.generate(**inputs, max_new_tokens=6)
    assert torch.equal(found, both.ours.generate(**inputs, max_new_tokens=6))
    text = both.chat("Which?", 1)
    ours = AutoProcessor.from_pretrained(folder)(text=text, images=toys.picture(), return_tensors="pt")
    theirs = both.their_processor(text=text, images=toys.picture(), return_tensors="pt")
    assert torch.equal(ours.input_ids, theirs.input_ids)
    torch.testing.assert_close(ours.pixel_values, theirs.pixel_values, atol=1e-5, rtol=0)
