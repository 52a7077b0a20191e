"""What must hold for every family, as asserts: one line a family.

    subject = invariants.load(toys.checkpoint("llava-siglip-qwen2"))
    for check in invariants.ALL:
        check(subject)

The yardstick is `uncached`: each next token from one pass over everything before it, without cache, batch or engine.
Engines here keep keys and values as they are computed; rounding them is `narrow_rows_equal_alone`'s matter.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from behold.engine.engine import Engine
from behold.engine.options import EngineOptions
from behold.models.base import VisionLanguageModel
from behold.nn.attention import AttentionPlan, PlainCache
from behold.processing.processor import Processor
from behold.types import Completion, ImagePart, Message, Prompt, SamplingParams, TextPart

NEW_TOKENS = 10


@dataclass(eq=False)
class Subject:
    """A model with prompts that differ in length and in the number and size of pictures."""

    model: VisionLanguageModel
    processor: Processor
    prompts: list[Prompt]
    params: SamplingParams = field(default_factory=lambda: SamplingParams(max_new_tokens=NEW_TOKENS))
    _expected: list[tuple[int, ...]] = field(default_factory=list)

    def engine(self, *, kv_dtype: str | None = None, **options: int) -> Engine:
        kv_dtype = kv_dtype or ("float32" if self.model.quantized else "auto")
        return Engine(
            self.model,
            tokenizer=self.processor.tokenizer,
            eos_token_ids=self.processor.eos_token_ids,
            options=EngineOptions(kv_dtype=kv_dtype, **options),
        )

    @property
    def expected(self) -> list[tuple[int, ...]]:
        """The ids each prompt is answered with: by `uncached`; of a quantized model by an engine given no other.

        There the two ways may part where two tokens are all but equally likely: the kernel for one new token adds up
        in another order than that for many, which tips a rounded input now and then.
        """
        if not self._expected and self.model.quantized:
            self._expected = [self.engine().complete([request])[0].ids for request in self.requests]
        elif not self._expected:
            self._expected = [
                uncached(self.model, prompt, NEW_TOKENS, self.processor.eos_token_ids) for prompt in self.prompts
            ]
        assert len(set(self._expected)) > 1, "equal answers to everything would prove nothing"
        return self._expected

    @property
    def requests(self) -> list[tuple[Prompt, SamplingParams]]:
        return [(prompt, self.params) for prompt in self.prompts]


def load(
    folder: Path, *, device: str = "cpu", dtype: torch.dtype = torch.float32, quantize: str | None = None
) -> Subject:
    """A checkpoint with five prompts: text only, one picture, two, a picture seen before, a long one."""
    from behold.checkpoint.files import CheckpointFiles
    from behold.models.load import load_model
    from behold.models.registry import find_family

    files = CheckpointFiles.read(folder)
    family = find_family(files.config)
    processor = Processor.load(files, family.layout(family.read_config(files.config), files))
    model = load_model(files, device=torch.device(device), dtype=dtype, quantize=quantize, progress=False)
    wide, tall = picture(40, 28, 0), picture(26, 44, 1)
    asked: list[tuple[list[Image.Image], str]] = [
        ([], "Which colour is it?"),
        ([wide], "What do we see in this image?"),
        ([tall, wide], "What changed?"),
        ([wide], "How many shapes?"),
        ([tall], "Describe the scene; read the text. " * 4),
    ]
    return Subject(model, processor, [_prompt(processor, images, text) for images, text in asked])


def picture(width: int, height: int, seed: int) -> Image.Image:
    """Noise in blocks, reproducible."""
    blocks = np.random.default_rng(seed).integers(0, 256, (6, 6, 3), dtype=np.uint8)
    return Image.fromarray(blocks).resize((width, height), Image.Resampling.BILINEAR)


@torch.inference_mode()
def uncached(model: VisionLanguageModel, prompt: Prompt, n_new: int, eos: frozenset[int]) -> tuple[int, ...]:
    """Greedy by definition: a pass over prompt and answer for every token, pictures encoded one by one."""
    answer: list[int] = []
    while len(answer) < n_new and not (answer and answer[-1] in eos):
        hidden = states(model, prompt, answer)
        answer.append(int(model.logits(hidden[-1:])[0].argmax()))
    return tuple(answer)


def states(model: VisionLanguageModel, prompt: Prompt, behind: Sequence[int] = ()) -> torch.Tensor:
    """(T, D) what the decoder makes of a prompt and ids behind it, pictures encoded one by one."""
    ids, rows, at = [*prompt.ids, *behind], None, None
    if prompt.spans:
        pictures = [model.encode_images([image])[0] for image in prompt.images]
        rows = torch.cat([pictures[span.image] for span in prompt.spans])
        at = torch.cat([torch.arange(span.start, span.stop) for span in prompt.spans]).to(model.device)
    spans = tuple((span.start, span.stop) for span in prompt.spans if span.bidirectional)
    plan = AttentionPlan((len(ids),), (0,), (0,), (spans,))
    embeddings = model.embed(torch.tensor(ids, device=model.device), rows, at)
    return model.hidden(embeddings, model.positions(len(ids)).to(model.device), PlainCache(plan))


@torch.inference_mode()
def logprobs_uncached(model: VisionLanguageModel, prompt: Prompt, text: Sequence[int]) -> list[float]:
    """The log probability of each id of a text behind a prompt, from one pass over both."""
    hidden = states(model, prompt, text)
    logprobs = model.logits(hidden[len(prompt.ids) - 1 : -1]).float().log_softmax(-1)
    return [float(row[token]) for row, token in zip(logprobs, text, strict=True)]


# --- the invariants ------------------------------------------------------------------------------------------------


def cached_equals_uncached(subject: Subject) -> None:
    """Keys and values: one request at a time through the engine gives the definition's answer."""
    engine = subject.engine()
    for prompt, expected in zip(subject.prompts, subject.expected, strict=True):
        assert engine.complete([(prompt, subject.params)])[0].ids == expected
    engine.check()


def cached_is_as_likely_as_uncached(subject: Subject) -> None:
    """Of a quantized model: each token of an answer is the definition's next one, or one all but as likely."""
    for prompt, answer in zip(subject.prompts, subject.expected, strict=True):
        assert _likely(subject.model, prompt, answer)


def batched_equals_alone(subject: Subject) -> None:
    """Requests of all lengths at once, text-only ones among those with pictures, in fewer rows than requests too."""
    for rows in (len(subject.prompts), 2):
        engine = subject.engine(max_rows=rows)
        assert _ids(engine.complete(subject.requests)) == subject.expected
        engine.check()


def narrow_rows_equal_alone(subject: Subject) -> None:
    """Keys and values of 16 and 8 bits: batched and in pieces as one by one. Other roundings, so not always
    `uncached`'s.
    """
    for kind, within in (("float16", 0.03), ("int8", 0.1)):
        alone = [subject.engine(kv_dtype=kind).complete([request])[0].ids for request in subject.requests]
        for options in ({}, {"max_rows": 2}):
            assert _ids(subject.engine(kv_dtype=kind, **options).complete(subject.requests)) == alone
        pieces = subject.engine(kv_dtype=kind, max_step_tokens=17)
        _check_answers(subject, pieces.complete(subject.requests), alone, within=within)


def chunked_equals_whole(subject: Subject) -> None:
    """Prompts read in pieces that cut through pictures."""
    for budget in (3, 17):
        engine = subject.engine(max_step_tokens=budget)
        _check_answers(subject, engine.complete(subject.requests))


def pictures_cached_equal_uncached(subject: Subject) -> None:
    """A picture seen before is not encoded again, and one that may not stay is; the answers are the same.

    Beginnings are not shared here, as they would spare most pictures.
    """
    keeping = subject.engine(prefix_cache_bytes=0)
    dropping = subject.engine(prefix_cache_bytes=0, image_cache_bytes=1, max_step_tokens=7)
    for engine in (keeping, dropping):
        for _ in range(2):
            assert _ids(engine.complete(subject.requests)) == subject.expected
        engine.check()
    digests = {image.digest for prompt in subject.prompts for image in prompt.images}
    misses, seen = keeping.stats().image_cache_misses, keeping.stats().image_cache_hits
    assert misses >= len(digests) and seen > 0
    assert keeping.stats().image_cache_bytes > dropping.stats().image_cache_bytes == 0


def beginnings_shared_equal_alone(subject: Subject) -> None:
    """Prompts that begin like others, kept or running, go on from those; and so does a second round of questions."""
    engine, small = subject.engine(), subject.engine(prefix_cache_bytes=1 << 16, max_rows=2, max_step_tokens=16)
    for each in (engine, small):
        for _ in range(2):
            _check_answers(subject, each.complete(subject.requests))
        each.check()
    again = engine.complete(subject.requests)
    assert all(c.usage.cached_tokens == c.usage.prompt_tokens - 1 for c in again), "all but the last token is kept"
    engine.check()


def follow_ups_equal_alone(subject: Subject) -> None:
    """A prompt that goes on behind an answer reads only what is new, be its pictures forgotten or not."""
    engine = subject.engine(image_cache_bytes=1)
    for prompt, answer in zip(subject.prompts, subject.expected, strict=True):
        (first,) = engine.complete([(prompt, subject.params)])
        longer = Prompt((*prompt.ids, *answer, *prompt.ids[-3:]), prompt.images, prompt.spans)
        encoded = engine.stats().image_cache_misses
        (second,) = engine.complete([(longer, subject.params)])
        assert second.ids == uncached(subject.model, longer, NEW_TOKENS, subject.processor.eos_token_ids)
        assert second.usage.cached_tokens == len(prompt.ids) + len(first.ids) - 1
        assert engine.stats().image_cache_misses == encoded, "a picture behind what is kept is not looked at again"
    engine.check()


def any_arrivals_equal_alone(subject: Subject) -> None:
    """Requests that come whenever they like, others given up in the middle, are answered as if each were alone."""
    limits = st.fixed_dictionaries(
        {
            "max_rows": st.integers(1, 5),
            "max_step_tokens": st.integers(3, 60),
            "image_cache_bytes": st.sampled_from([1, 1 << 20]),
            "prefix_cache_bytes": st.sampled_from([0, 1 << 15, 1 << 24]),
        }
    )
    which = st.integers(0, len(subject.prompts) - 1)
    arrivals = st.lists(st.tuples(which, st.integers(0, 4), st.booleans()), min_size=1, max_size=8)

    @settings(max_examples=12, deadline=None, derandomize=True)
    @given(limits=limits, arrivals=arrivals)
    def run(limits: dict[str, int], arrivals: list[tuple[int, int, bool]]) -> None:
        engine = subject.engine(**limits)
        submitted = []
        for which, steps_before, given_up in arrivals:
            for _ in range(steps_before):
                engine.step()
            if given_up and submitted:
                engine.cancel(submitted[which % len(submitted)][1])
            submitted.append((which, engine.submit(subject.prompts[which], subject.params)))
        engine.wait([request for _, request in submitted])
        for which, request in submitted:
            done, expected = request.completions[0], subject.expected[which]
            assert done.ids == (expected[: len(done.ids)] if done.finish_reason == "cancelled" else expected)
        engine.check()

    run()


def guessed_equals_unguessed(subject: Subject) -> None:
    """Guesses from the prompt's own text, right or wrong, change no answer."""
    plain, guessing = subject.engine(lookup_rows=0), subject.engine(lookup_rows=12)
    for prompt, expected in zip(subject.prompts, subject.expected, strict=True):
        told = Prompt((*prompt.ids, *expected, *prompt.ids[-4:], *expected[:4]), prompt.images, prompt.spans)
        request = (told, replace(subject.params, max_new_tokens=40))
        assert _ids(plain.complete([request])) == _ids(guessing.complete([request]))
    assert guessing.stats().steps <= plain.stats().steps
    assert _ids(guessing.complete(subject.requests)) == subject.expected
    guessing.check()


def rated_equals_uncached(subject: Subject) -> None:
    """Texts rated side by side have the probabilities that a pass over each of them alone gives."""
    texts = [(5,), (5, 6, 7), (8, 9), (5, 6)]
    engine = subject.engine(max_step_tokens=16)
    for prompt in subject.prompts:
        for found, text in zip(engine.score(prompt, texts), texts, strict=True):
            assert found == pytest.approx(logprobs_uncached(subject.model, prompt, text), abs=2e-4)
    engine.check()


def streamed_equals_whole(subject: Subject) -> None:
    """Deltas join to the whole answer, also where a stop string ends it."""
    engine = subject.engine()
    for prompt in subject.prompts:
        whole = engine.complete([(prompt, subject.params)])[0]
        middle = whole.text[len(whole.text) // 2 :][:2]
        for params in (subject.params, replace(subject.params, stop=(middle,) if middle else ())):
            deltas = list(engine.stream(prompt, params))
            again = engine.complete([(prompt, params)])[0]
            assert "".join(delta.text for delta in deltas) == again.text
            assert sum((delta.ids for delta in deltas), ()) == again.ids
            assert deltas[-1].finish_reason == again.finish_reason
            assert not params.stop or (params.stop[0] not in again.text and whole.text.startswith(again.text))
    engine.check()


def sampled_the_same_whatever_runs(subject: Subject) -> None:
    """A seed gives the same sample alone and in company."""
    params = [replace(subject.params, temperature=1.0, top_p=0.9, seed=i) for i in range(len(subject.prompts))]
    engine = subject.engine()
    together = engine.complete(list(zip(subject.prompts, params, strict=True)))
    alone = [engine.complete([request])[0] for request in zip(subject.prompts, params, strict=True)]
    assert _ids(together) == _ids(alone) != subject.expected


def joined_and_left_equals_alone(subject: Subject) -> None:
    """Requests that come in the middle of others' answers, and others that are cancelled there."""
    engine = subject.engine(max_rows=3, max_step_tokens=16)
    submitted = []
    for prompt in [*subject.prompts, *subject.prompts]:
        submitted.append(engine.submit(prompt, subject.params))
        engine.step()
    engine.cancel(submitted[3])
    engine.cancel(submitted[8])
    engine.wait(submitted)
    for index, (request, expected) in enumerate(zip(submitted, [*subject.expected, *subject.expected], strict=True)):
        ids = request.completions[0].ids
        assert ids == (expected[: len(ids)] if index in {3, 8} else expected)
    engine.check()


def left_padded_equals_alone(folder: Path) -> None:
    """Rows of one batch, padded on the left by the processor, are answered by `generate` as each alone."""
    from behold import AutoModelForImageTextToText, AutoProcessor

    model, processor = AutoModelForImageTextToText.from_pretrained(folder), AutoProcessor.from_pretrained(folder)
    asked = [([picture(40, 28, 0)], "What do we see in this image?"), ([], "Why?"), ([picture(26, 44, 1)], "A" * 40)]
    texts = []
    for images, text in asked:
        content = [*({"type": "image"} for _ in images), {"type": "text", "text": text}]
        texts.append(processor.apply_chat_template([{"role": "user", "content": content}], add_generation_prompt=True))

    def answers(rows: Sequence[int]) -> list[list[int]]:
        images = [asked[row][0] for row in rows]
        inputs = processor(
            text=[texts[row] for row in rows],
            images=images if any(images) else None,
            padding=True,
            return_tensors="pt",
        )
        assert len(rows) == 1 or not inputs["attention_mask"].all(), "nothing was padded"
        ids = model.generate(**inputs, max_new_tokens=NEW_TOKENS, min_new_tokens=NEW_TOKENS)
        return [row.tolist() for row in ids[:, inputs["input_ids"].shape[1] :]]

    assert answers([0, 1, 2]) == [answers([row])[0] for row in range(3)]


ALL: tuple[Callable[[Subject], None], ...] = (
    cached_equals_uncached,
    batched_equals_alone,
    chunked_equals_whole,
    pictures_cached_equal_uncached,
    beginnings_shared_equal_alone,
    follow_ups_equal_alone,
    any_arrivals_equal_alone,
    guessed_equals_unguessed,
    rated_equals_uncached,
    streamed_equals_whole,
    sampled_the_same_whatever_runs,
    joined_and_left_equals_alone,
)

# what a scale for a whole batch, or for whatever was read together, would break
QUANTIZED: tuple[Callable[[Subject], None], ...] = (
    cached_is_as_likely_as_uncached,
    batched_equals_alone,
)
QUANTIZED_ONCE: tuple[Callable[[Subject], None], ...] = (
    chunked_equals_whole,
    beginnings_shared_equal_alone,
    narrow_rows_equal_alone,
    streamed_equals_whole,
)


def _check_answers(
    subject: Subject,
    found: Sequence[Completion],
    expected: Sequence[tuple[int, ...]] | None = None,
    *,
    within: float = 0.03,
) -> None:
    """They are as expected; a quantized model's may part from that where another token was all but as likely."""
    for prompt, ids, wanted in zip(subject.prompts, _ids(found), expected or subject.expected, strict=True):
        assert ids == wanted or (subject.model.quantized and _likely(subject.model, prompt, ids, within))


@torch.inference_mode()
def _likely(model: VisionLanguageModel, prompt: Prompt, answer: Sequence[int], within: float = 0.03) -> bool:
    """Whether each token of an answer is the likeliest there by definition, but for a rounded input that tipped."""
    logits = model.logits(states(model, prompt, answer)[len(prompt.ids) - 1 : -1])
    behind = logits.amax(-1) - logits[torch.arange(len(answer)), list(answer)]
    return float(behind.max()) <= within * float(logits.std())


def _ids(completions: Sequence[Completion]) -> list[tuple[int, ...]]:
    return [completion.ids for completion in completions]


def _prompt(processor: Processor, images: Sequence[Image.Image], text: str) -> Prompt:
    parts = (*(ImagePart(image) for image in images), TextPart(text))
    return processor.chat([Message("user", parts)])
