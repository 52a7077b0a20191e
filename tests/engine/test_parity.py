"""The engine's ids against `generate` of transformers, with the same options, on random toys in fp32."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Any

import pytest
import torch

from behold.types import SamplingParams
from tests import invariants, toys
from tests.invariants import Subject

NAMES = ("llava-siglip-qwen2", "llava-clip-mistral", "idefics2-split")
QUESTIONS = (([0], "What do we see in this image?"), ([], "Which colour?"), ([1, 0], "What changed?"))


@dataclass(eq=False)
class Pair:
    """The same checkpoint here and there, with the same prompts."""

    ours: Subject
    theirs: Any
    inputs: list[Any]

    @property
    def eos(self) -> list[int]:
        return sorted(self.ours.processor.eos_token_ids)


@functools.cache
def pair(name: str) -> Pair:
    folder = toys.checkpoint(name)
    ours = invariants.load(folder)
    theirs, processor = toys.reference(folder)
    pictures = [toys.picture(40, 28, 0), toys.picture(26, 44, 1)]
    ours.prompts, inputs = [], []
    for indices, question in QUESTIONS:
        images = [pictures[i] for i in indices]
        content = [*({"type": "image"} for _ in images), {"type": "text", "text": question}]
        text = processor.apply_chat_template([{"role": "user", "content": content}], add_generation_prompt=True)
        inputs.append(processor(text=text, images=images or None, return_tensors="pt"))
        ours.prompts.append(invariants._prompt(ours.processor, images, question))
        assert list(ours.prompts[-1].ids) == inputs[-1]["input_ids"][0].tolist()
    return Pair(ours, theirs, inputs)


def generate(both: Pair, index: int, **options: Any) -> list[tuple[int, ...]]:
    """New ids of each returned sequence, without padding."""
    inputs = both.inputs[index]
    # A checkpoint's own bad words are a default of the doors, not of the engine.
    defaults = {"max_new_tokens": 12, "do_sample": False, "eos_token_id": both.eos, "bad_words_ids": None}
    options = {**defaults, "pad_token_id": 0, **options}
    with torch.inference_mode():
        rows = both.theirs.generate(**inputs, **options)
    found = []
    for row in rows[:, inputs["input_ids"].shape[1] :].tolist():
        ends = [i for i, token in enumerate(row) if token in options["eos_token_id"]]
        found.append(tuple(row[: ends[0] + 1] if ends else row))
    return found


OPTIONS: dict[str, dict[str, Any]] = {
    "greedy": {},
    "repetition_penalty": {"repetition_penalty": 1.7},
    "reward": {"repetition_penalty": 0.6},
    "no_repeat_ngram_size": {"no_repeat_ngram_size": 2},
    "min_new_tokens": {"min_new_tokens": 12},
    "everything": {"repetition_penalty": 1.3, "no_repeat_ngram_size": 3, "min_new_tokens": 5},
}


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
def test_greedy_ids(name: str, options: dict[str, Any]) -> None:
    both = pair(name)
    params = SamplingParams(**{"max_new_tokens": 12, **options})
    done = both.ours.engine().complete([(prompt, params) for prompt in both.ours.prompts])
    assert [d.ids for d in done] == [generate(both, i, **options)[0] for i in range(len(QUESTIONS))]


@pytest.mark.parametrize("name", NAMES)
def test_bad_words(name: str) -> None:
    """Forbid what the free answer says: one word, one pair, and the end of sequence, which cannot be forbidden."""
    both = pair(name)
    for index, prompt in enumerate(both.ours.prompts):
        free = generate(both, index)[0]
        words = [[free[0]], list(free[2:4]), [both.eos[0]]]
        params = SamplingParams(max_new_tokens=12, bad_words_ids=tuple(map(tuple, words)))
        done = both.ours.engine().complete([(prompt, params)])[0]
        assert done.ids == generate(both, index, bad_words_ids=words)[0]
        assert done.ids[0] != free[0]


@pytest.mark.parametrize("name", NAMES)
def test_ends_at_any_of_several_ids(name: str) -> None:
    both = pair(name)
    free = generate(both, 0)[0]
    ends = frozenset(free[3:5])
    params = SamplingParams(max_new_tokens=12, stop_token_ids=ends, ignore_eos=True)
    done = both.ours.engine().complete([(both.ours.prompts[0], params)])[0]
    assert done.ids == generate(both, 0, eos_token_id=sorted(ends))[0]
    assert done.finish_reason == "stop" and len(done.ids) < 12


BEAMS: dict[str, dict[str, Any]] = {
    "2": {"num_beams": 2},
    "4 of 4": {"num_beams": 4, "num_return_sequences": 4},
    "early": {"num_beams": 3, "early_stopping": True, "num_return_sequences": 2},
    "never": {"num_beams": 3, "early_stopping": "never", "length_penalty": 1.5},
    "short": {"num_beams": 3, "length_penalty": -2.0, "num_return_sequences": 3},
    "flat": {"num_beams": 3, "early_stopping": "never", "length_penalty": 0.0},
    "penalties": {"num_beams": 3, "repetition_penalty": 1.4, "no_repeat_ngram_size": 2, "min_new_tokens": 4},
    "five tokens": {"num_beams": 2, "max_new_tokens": 5, "num_return_sequences": 2},
}


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("options", BEAMS.values(), ids=BEAMS)
@pytest.mark.parametrize("ends", [1, 6])
def test_beams(name: str, options: dict[str, Any], ends: int) -> None:
    """With the checkpoint's own end, and with six frequent ids that end answers, so that beams do end."""
    both = pair(name)
    eos = both.eos if ends == 1 else sorted({token for i in range(3) for token in generate(both, i)[0][2:4]})[:6]
    params = SamplingParams(**{"max_new_tokens": 12, **options}, ignore_eos=True, stop_token_ids=frozenset(eos))
    engine = both.ours.engine()
    for index, prompt in enumerate(both.ours.prompts):
        expected = generate(both, index, **options, eos_token_id=eos)
        assert [done.ids for done in engine.beams(prompt, params)] == expected
    engine.check()


def test_beams_run_beside_other_requests() -> None:
    both = pair(NAMES[0])
    engine = both.ours.engine(max_rows=5, max_step_tokens=11)
    plain, beams = SamplingParams(max_new_tokens=12), SamplingParams(max_new_tokens=12, num_beams=3)
    done = engine.complete([(prompt, params) for prompt in both.ours.prompts for params in (plain, beams)])
    expected = [generate(both, i, num_beams=n)[0] for i in range(len(QUESTIONS)) for n in (1, 3)]
    assert [d.ids for d in done] == expected
    engine.check()


def test_beams_end_at_stop_strings() -> None:
    both = pair(NAMES[0])
    tokenizer = both.ours.processor.tokenizer
    free = both.ours.engine().beams(both.ours.prompts[0], SamplingParams(max_new_tokens=12, num_beams=2))[0]
    stop = tokenizer.decode(list(free.ids[4:6]), skip_special_tokens=True)
    assert stop
    params = SamplingParams(max_new_tokens=12, num_beams=2, stop=(stop,))
    done = both.ours.engine().beams(both.ours.prompts[0], params)[0]
    assert stop not in done.text
    if done.finish_reason == "stop" and done.ids[-1] not in both.eos:
        assert stop in tokenizer.decode(list(done.ids), skip_special_tokens=True)
