"""The short surface: `load` a model, then `ask`, `stream`, `chat`, `batch` or `generate`."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias, overload

from behold.api import structured
from behold.api.chat import Chat
from behold.api.progress import counting
from behold.api.sampling import SamplingOptions, generation_defaults, sampling_params
from behold.api.session import open_checkpoint, open_engine, open_model, open_processor
from behold.api.stream import AnswerStream
from behold.api.structured import M, PydanticModel
from behold.api.turns import ImageLike, Images, Messages, conversation, messages_of, user_message
from behold.errors import BeholdError, OptionError, StructuredOutputError
from behold.types import Answer, Message, Prompt, SamplingParams

if TYPE_CHECKING:
    import torch
    from typing_extensions import Unpack

    from behold.checkpoint.files import CheckpointFiles
    from behold.engine.engine import Engine
    from behold.models.base import VisionLanguageModel
    from behold.processing.processor import Processor


def load(
    id_or_dir: str | Path,
    *,
    device: str | torch.device = "auto",
    dtype: str | torch.dtype = "auto",
    quantize: str | None = None,
    attention: str = "auto",
    revision: str | None = None,
    offline: bool = False,
) -> VLM:
    """Open a model: a hub id, a folder in Hugging Face layout, or "demo", which is bundled and needs no network.

    "auto" picks what is fast and right on this machine. `offline=True` uses what is cached and never the network.

    Raises:
        BeholdError: the checkpoint cannot be found, read or used; the message says why and what to do.
    """
    files = open_checkpoint(id_or_dir, revision=revision, local_files_only=offline)
    processor = open_processor(files)
    model = open_model(files, device=device, dtype=dtype, quantize=quantize, attention=attention)
    engine = open_engine(model, tokenizer=processor.tokenizer, eos_token_ids=processor.eos_token_ids)
    return VLM(str(id_or_dir), files, processor=processor, model=model, engine=engine)


Schema: TypeAlias = "type[PydanticModel] | Mapping[str, Any] | None"


class VLM:
    """A model, ready to answer. Safe to share between threads: their requests run together in one engine.

    Every method takes the sampling options as keywords (see `SamplingOptions`), and `schema`: a JSON schema as a dict,
    whose answer is JSON that it allows (`answer.parsed` is its value), or a pydantic class, of which the result is an
    instance. An answer that is cut off before it satisfies its schema is a StructuredOutputError.
    """

    def __init__(
        self,
        name: str,
        files: CheckpointFiles,
        *,
        processor: Processor,
        model: VisionLanguageModel,
        engine: Engine,
    ) -> None:
        self.name = name
        self.processor = processor
        self.model = model
        self.engine = engine
        self._defaults = generation_defaults(files.generation)

    def __repr__(self) -> str:
        dtype = str(self.model.dtype).removeprefix("torch.")
        return f"<behold.VLM {self.name!r} ({self.model.config.model_type}, {dtype}, {self.model.device})>"

    @overload
    def ask(self, images: Images, question: str, *, schema: type[M], **sampling: Unpack[SamplingOptions]) -> M: ...

    @overload
    def ask(
        self,
        images: Images,
        question: str,
        *,
        schema: Mapping[str, Any] | None = None,
        **sampling: Unpack[SamplingOptions],
    ) -> Answer: ...

    def ask(
        self, images: Images, question: str, *, schema: Schema = None, **sampling: Unpack[SamplingOptions]
    ) -> object:
        """Answer a question about one picture, several, or none ([])."""
        params = self.params({**sampling, "schema": schema})
        return structured.value_of(self.complete([user_message(images, question)], params, schema), schema)

    def stream(
        self, images: Images, question: str, *, schema: Schema = None, **sampling: Unpack[SamplingOptions]
    ) -> AnswerStream:
        """Like `ask`, piece by piece; closing the stream stops the work within one step.

        With a pydantic class, `stream.answer.parsed` is the instance after the last piece.
        """
        params = self.params({**sampling, "schema": schema})
        return self.open_stream([user_message(images, question)], params, schema=schema)

    @overload
    def generate(
        self,
        messages: Messages,
        *,
        images: Sequence[ImageLike] | None = None,
        schema: type[M],
        **sampling: Unpack[SamplingOptions],
    ) -> M: ...

    @overload
    def generate(
        self,
        messages: Messages,
        *,
        images: Sequence[ImageLike] | None = None,
        schema: Mapping[str, Any] | None = None,
        **sampling: Unpack[SamplingOptions],
    ) -> Answer: ...

    def generate(
        self,
        messages: Messages,
        *,
        images: Sequence[ImageLike] | None = None,
        schema: Schema = None,
        **sampling: Unpack[SamplingOptions],
    ) -> object:
        """The next turn of a conversation; where the last message is the assistant's, how it goes on.

        `images` fill the bare {"type": "image"} places of `messages`, in order.
        """
        params = self.params({**sampling, "schema": schema})
        return structured.value_of(self.complete(conversation(messages, images), params, schema), schema)

    @overload
    def batch(
        self,
        items: Iterable[tuple[Images, str] | Messages],
        *,
        progress: bool = False,
        schema: type[M],
        **sampling: Unpack[SamplingOptions],
    ) -> list[M]: ...

    @overload
    def batch(
        self,
        items: Iterable[tuple[Images, str] | Messages],
        *,
        progress: bool = False,
        schema: Mapping[str, Any] | None = None,
        **sampling: Unpack[SamplingOptions],
    ) -> list[Answer]: ...

    def batch(
        self,
        items: Iterable[tuple[Images, str] | Messages],
        *,
        progress: bool = False,
        schema: Schema = None,
        **sampling: Unpack[SamplingOptions],
    ) -> object:
        """Answer many questions together, in the order given. Each item is (images, question) or a conversation.

        All items are read before the first is run, so a broken one costs nothing. `progress` counts them on stderr.

        Raises:
            BeholdError: of the kind that the first broken item raises alone; the message has its number.
        """
        params = self.params({**sampling, "schema": schema})
        prompts = [self._prompt_of(number, item) for number, item in enumerate(items)]
        with counting(len(prompts), "answers", shown=progress) as advance:
            done = self.engine.complete([(prompt, params) for prompt in prompts], on_done=lambda *_: advance())
        answers = [_read(number, Answer.of(item), params, schema) for number, item in enumerate(done)]
        return [structured.value_of(answer, schema) for answer in answers]

    def chat(self, *, system: str | None = None) -> Chat:
        """A conversation that keeps its history; each picture is encoded once."""
        return Chat(self, system=system)

    # --- what the doors share ------------------------------------------------------------------------------------

    def params(self, sampling: Mapping[str, object]) -> SamplingParams:
        """Sampling keywords, `schema` among them, over this checkpoint's generation_config.json.

        Raises:
            OptionError: an unknown name or a value of the wrong kind.
        """
        return sampling_params(sampling, self._defaults)

    def complete(self, messages: Sequence[Message], params: SamplingParams, schema: Schema = None) -> Answer:
        """The next turn of a parsed conversation; `schema` says what to make of its text (`params` constrain it).

        Raises:
            StructuredOutputError: it was cut off before it satisfied its constraint.
        """
        (completion,) = self.engine.complete([(self.processor.chat(messages), params)])
        return structured.read(Answer.of(completion), params.constraint, schema)

    def open_stream(
        self,
        messages: Sequence[Message],
        params: SamplingParams,
        on_end: Callable[[Answer], None] | None = None,
        *,
        schema: Schema = None,
    ) -> AnswerStream:
        """The next turn of a parsed conversation, piece by piece; `on_end` gets the answer, unless it failed.

        After its last piece the stream raises StructuredOutputError if the answer does not satisfy its constraint.

        Raises:
            OptionError: beam search, which knows its answer only at the end.
        """
        if params.num_beams > 1:
            raise OptionError(f"num_beams={params.num_beams} cannot stream: ask for the whole answer, or num_beams=1")
        prompt = self.processor.chat(messages)
        deltas, constraint = self.engine.stream(prompt, params), params.constraint
        if constraint is None:
            return AnswerStream(deltas, prompt, on_end)
        return AnswerStream(deltas, prompt, on_end, read=lambda answer: structured.read(answer, constraint, schema))

    def _prompt_of(self, number: int, item: tuple[Images, str] | Messages) -> Prompt:
        try:
            return self.processor.chat(messages_of(item))
        except BeholdError as error:
            raise type(error)(f"item {number} of the batch (counted from 0): {error}") from error


def _read(number: int, answer: Answer, params: SamplingParams, schema: Schema) -> Answer:
    try:
        return structured.read(answer, params.constraint, schema)
    except StructuredOutputError as error:
        told = f"item {number} of the batch (counted from 0): {error}"
        raise StructuredOutputError(told, answer=error.answer) from error
