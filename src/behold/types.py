"""The data that travels between floors: messages, prompts, sampling options, increments, answers.

Letters used throughout: B requests, T tokens of one sequence, N tokens of one step, H heads, D width, V vocabulary.
This module imports neither torch nor any other behold module.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    import numpy as np
    from PIL.Image import Image

FinishReason = Literal["stop", "length", "cancelled"]
EndedBy = Literal["end", "stop_string", "length", "loop", "cancelled"]
Detail = Literal["auto", "low", "high"]


# --- what comes in -----------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class TextPart:
    """Text typed by a person or written by the model; never interpreted as special tokens."""

    text: str


@dataclass(frozen=True, slots=True)
class ImagePart:
    """A picture, already upright RGB (see chat.media.load_image).

    detail: how many embeddings it may cost, as in the OpenAI API; "auto" is what the checkpoint's files say.
    """

    image: Image
    detail: Detail = "auto"


@dataclass(frozen=True, slots=True)
class ImagePlace:
    """A place for a picture that is given separately; chat.messages.attach_images puts an ImagePart in its stead."""

    detail: Detail = "auto"


Part = TextPart | ImagePart | ImagePlace


@dataclass(frozen=True, slots=True)
class Message:
    """One turn. `extra` keeps further keys of the given mapping (name, tool_calls …) for the template."""

    role: str
    parts: tuple[Part, ...]
    extra: Mapping[str, Any] = field(default_factory=dict)

    @property
    def pictures(self) -> tuple[ImagePart, ...]:
        return tuple(part for part in self.parts if isinstance(part, ImagePart))

    @property
    def images(self) -> tuple[Image, ...]:
        return tuple(part.image for part in self.pictures)

    @property
    def text(self) -> str:
        return "".join(part.text for part in self.parts if isinstance(part, TextPart))


# --- what the model reads ----------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, eq=False)
class ImageInput:
    """One unit for the vision tower: a whole picture, or one crop of a picture that is split.

    pixels: float32, normalised; the family says the shape (llava, idefics2: (3, H, W)).
    n_tokens: how many embeddings the tower and connector make of it, = the length of its span.
    digest: of pixels and everything else that decides the embeddings; the key of the image cache.
    """

    pixels: np.ndarray
    n_tokens: int
    digest: str


@dataclass(frozen=True, slots=True)
class ImageSpan:
    """Where one ImageInput's embeddings replace token embeddings.

    Example, idefics2, one picture, not split: ids = [1, 32000, 32001 × 64, 32000, …] gives
    ImageSpan(start=2, length=64, image=0). `bidirectional` spans attend both ways and are never cut by a chunk.
    """

    start: int
    length: int
    image: int
    bidirectional: bool = False

    @property
    def stop(self) -> int:
        return self.start + self.length


@dataclass(frozen=True, slots=True, eq=False)
class Prompt:
    """One request as the model reads it: ids (T,), the pictures, and where they sit (spans ordered by start)."""

    ids: tuple[int, ...]
    images: tuple[ImageInput, ...] = ()
    spans: tuple[ImageSpan, ...] = ()

    @property
    def image_tokens(self) -> int:
        return sum(span.length for span in self.spans)


@dataclass(frozen=True, slots=True)
class Constraint:
    """What an answer's text must look like as a whole, whatever the model would like to say (see engine.guides).

    kind "json_schema" and "regex" and "grammar" (Lark): `source` is its text; "json_object": any JSON object, `source`
    is (); "choice": `source` are the texts to choose from.
    """

    kind: Literal["json_schema", "json_object", "regex", "grammar", "choice"]
    source: str | tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class SamplingParams:
    """How to choose tokens and when to stop; validated together by `engine.sampler.validate`.

    temperature None or 0 is greedy. `stop` are strings, not shown in the text. `seed` None draws one from torch's
    global generator, so `torch.manual_seed` makes a whole program repeatable. Penalties: repetition as in CTRL
    (prompt and answer), presence and frequency as in the OpenAI API (answer only). `ignore_eos` leaves only
    `stop_token_ids` (instead of those and the checkpoint's own) to end an answer. `loop_stop` ends an answer that
    repeats itself without end. `constraint` allows only tokens that keep to a schema, a pattern or a choice.
    `ids_only` leaves the texts of the answer empty, for who reads its ids; it cannot go with `stop`.
    """

    max_new_tokens: int = 256
    min_new_tokens: int = 0
    temperature: float | None = None
    top_k: int | None = None
    top_p: float | None = None
    min_p: float | None = None
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    no_repeat_ngram_size: int = 0
    bad_words_ids: tuple[tuple[int, ...], ...] = ()
    stop: tuple[str, ...] = ()
    stop_token_ids: frozenset[int] = frozenset()
    ignore_eos: bool = False
    seed: int | None = None
    logprobs: int | None = None
    num_beams: int = 1
    length_penalty: float = 1.0
    early_stopping: bool | Literal["never"] = False
    num_return_sequences: int = 1
    loop_stop: bool = False
    constraint: Constraint | None = None
    ids_only: bool = False

    @property
    def greedy(self) -> bool:
        return not self.temperature


# --- what comes out ----------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class TokenLogprob:
    """One chosen token: its id, log probability (natural log, after penalties, before temperature) and the top few."""

    id: int
    logprob: float
    top: tuple[tuple[int, float], ...] = ()


@dataclass(frozen=True, slots=True)
class Usage:
    """Token counts; prompt_tokens include image_tokens, and those that were in the cache already (cached_tokens)."""

    prompt_tokens: int
    completion_tokens: int
    image_tokens: int = 0
    cached_tokens: int = field(default=0, compare=False)  # chance, not part of what was asked or answered


@dataclass(frozen=True, slots=True)
class Timings:
    """Seconds. queue_s: until the first step touched the request; first_token_s and total_s: since it was submitted."""

    queue_s: float = 0.0
    vision_s: float = 0.0
    first_token_s: float = 0.0
    total_s: float = 0.0
    decode_tokens_per_s: float = 0.0


@dataclass(frozen=True, slots=True)
class Delta:
    """One increment of one request. The last one carries a finish_reason, what ended it, usage and timings.

    satisfied: in the last one, see Completion.
    """

    ids: tuple[int, ...] = ()
    text: str = ""
    logprobs: tuple[TokenLogprob, ...] = ()
    finish_reason: FinishReason | None = None
    usage: Usage | None = None
    timings: Timings | None = None
    ended_by: EndedBy | None = None
    satisfied: bool = True


@dataclass(frozen=True, slots=True)
class Completion:
    """A finished request. `ids` hold every generated id, the end-of-sequence id too; `text` is for people.

    finish_reason is the standard word for it; ended_by says more: "loop" is an answer that repeated itself without end
    (its finish_reason is "length": it was cut off). satisfied: whether the text keeps to the request's constraint as a
    whole; False where it was cut off in the middle. Without a constraint it is True.
    """

    ids: tuple[int, ...]
    text: str
    finish_reason: FinishReason
    usage: Usage
    timings: Timings
    logprobs: tuple[TokenLogprob, ...] = ()
    ended_by: EndedBy = "end"
    satisfied: bool = True


class Answer(str):
    """The answer's text, a `str`, with what is known about how it came to be.

    parsed: what the text says, where the question had a JSON schema (a Python value) or a pydantic class (an instance).
    """

    usage: Usage
    finish_reason: FinishReason
    logprobs: tuple[TokenLogprob, ...]
    timings: Timings
    ids: tuple[int, ...]
    ended_by: EndedBy
    satisfied: bool
    parsed: Any

    @classmethod
    def of(cls, completion: Completion) -> Answer:
        answer = cls(completion.text)
        answer.usage = completion.usage
        answer.finish_reason = completion.finish_reason
        answer.logprobs = completion.logprobs
        answer.timings = completion.timings
        answer.ids = completion.ids
        answer.ended_by = completion.ended_by
        answer.satisfied = completion.satisfied
        answer.parsed = None
        return answer
