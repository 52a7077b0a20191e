"""The short surface: `load` a model, then `ask`, `stream`, `chat`, `batch`, `generate` or `choose`."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable, Mapping, Sequence, Sized
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeAlias, overload

from behold.api import structured
from behold.api.batches import OnError, check_on_error, run_all
from behold.api.chat import Chat
from behold.api.choose import Choice, Chooser
from behold.api.progress import counting
from behold.api.sampling import SamplingOptions, generation_defaults, sampling_params
from behold.api.session import open_both, open_checkpoint, open_engine
from behold.api.stream import AnswerStream
from behold.api.structured import M, PydanticModel
from behold.api.turns import ImageLike, Images, Item, Messages, conversation, messages_of, user_message
from behold.chat.policy import MediaPolicy
from behold.errors import BeholdError, OptionError
from behold.types import Answer, Message, SamplingParams

if TYPE_CHECKING:
    import torch
    from typing_extensions import Unpack

    from behold.api.quantization import QuantizationReport
    from behold.checkpoint.files import CheckpointFiles
    from behold.engine.engine import Engine
    from behold.engine.request import Request
    from behold.models.base import VisionLanguageModel
    from behold.processing.processor import Processor


def load(
    id_or_dir: str | Path,
    *,
    device: str | torch.device = "auto",
    dtype: str | torch.dtype = "auto",
    quantize: str | None = None,
    attention: str = "auto",
    cache_limit: str | int | None = None,
    jpeg_side: int | None = None,
    revision: str | None = None,
    offline: bool = False,
) -> VLM:
    """Open a model: a hub id, a folder in Hugging Face layout, or "demo", which is bundled and needs no network.

    "auto" picks what is fast and right on this machine. `offline=True` uses what is cached and never the network.

    quantize: "int8", "int4" or, on a GPU, "float8" makes the weights smaller; they are kept on disk, and the next load
        takes no time. "full" does not; nor does None, but for a checkpoint that arrives quantized (AWQ, GPTQ …): on a
        CPU the layers that do are kept as int8.
    cache_limit: what all such weights may take there, in bytes or as "20 GB"; 0 keeps none. None is the variable
        BEHOLD_CACHE_LIMIT, or 32 GB.
    jpeg_side: decode JPEGs at a part of their size that keeps both sides this long, in two thirds of the time; answers
        may change a little. None decodes every pixel.

    Raises:
        BeholdError: the checkpoint cannot be found, read or used; the message says why and what to do.
    """
    media = MediaPolicy(jpeg_side=jpeg_side)
    files = open_checkpoint(id_or_dir, revision=revision, local_files_only=offline)
    processor, model = open_both(
        files, device=device, dtype=dtype, quantize=quantize, attention=attention, cache_limit=cache_limit
    )
    engine = open_engine(model, tokenizer=processor.tokenizer, eos_token_ids=processor.eos_token_ids)
    return VLM(str(id_or_dir), files, processor=processor, model=model, engine=engine, media=media)


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
        media: MediaPolicy,
    ) -> None:
        self.name = name
        self.processor = processor
        self.model = model
        self.engine = engine
        self.media = media
        self._files = files
        self._defaults = generation_defaults(files.generation)

    def __repr__(self) -> str:
        dtype = str(self.model.dtype).removeprefix("torch.")
        schemes = sorted({layer.scheme for layer in self.model.quantized_layers})
        weights = f", {' and '.join(schemes)} weights" if schemes else ""
        return f"<behold.VLM {self.name!r} ({self.model.config.model_type}, {dtype}{weights}, {self.model.device})>"

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
        return structured.value_of(
            self.complete([user_message(images, question, policy=self.media)], params, schema), schema
        )

    def stream(
        self, images: Images, question: str, *, schema: Schema = None, **sampling: Unpack[SamplingOptions]
    ) -> AnswerStream:
        """Like `ask`, piece by piece; closing the stream stops the work within one step.

        With a pydantic class, `stream.answer.parsed` is the instance after the last piece.
        """
        params = self.params({**sampling, "schema": schema})
        return self.open_stream([user_message(images, question, policy=self.media)], params, schema=schema)

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
        return structured.value_of(
            self.complete(conversation(messages, images, policy=self.media), params, schema), schema
        )

    @overload
    def batch(
        self,
        items: Iterable[Item],
        *,
        schema: type[M],
        on_error: Literal["raise"] = "raise",
        progress: bool = False,
        **sampling: Unpack[SamplingOptions],
    ) -> list[M]: ...

    @overload
    def batch(
        self,
        items: Iterable[Item],
        *,
        schema: Mapping[str, Any] | None = None,
        on_error: Literal["raise"] = "raise",
        progress: bool = False,
        **sampling: Unpack[SamplingOptions],
    ) -> list[Answer]: ...

    @overload
    def batch(
        self,
        items: Iterable[Item],
        *,
        schema: Schema = None,
        on_error: OnError,
        progress: bool = False,
        **sampling: Unpack[SamplingOptions],
    ) -> list[Any]: ...

    def batch(
        self,
        items: Iterable[Item],
        *,
        schema: Schema = None,
        on_error: OnError = "raise",
        progress: bool = False,
        **sampling: Unpack[SamplingOptions],
    ) -> list[Any]:
        """Answer many questions together, in the order given. Each item is (images, question) or a conversation.

        Items are read and prepared while others are answered, so that any number of them takes little memory.

        on_error: "raise" ends everything as soon as an item fails; "keep" puts its BeholdError in its answer's place
            and goes on.
        progress: count the answers on stderr.

        Raises:
            BeholdError: of the kind that the broken item raises alone; the message has its number.
        """
        total = len(items) if isinstance(items, Sized) else None
        with counting(total, "answers", shown=progress) as advance:
            return list(self._answers(items, schema, on_error, sampling, advance))

    @overload
    def batch_iter(
        self,
        items: Iterable[Item],
        *,
        schema: type[M],
        on_error: Literal["raise"] = "raise",
        **sampling: Unpack[SamplingOptions],
    ) -> Generator[M, None, None]: ...

    @overload
    def batch_iter(
        self,
        items: Iterable[Item],
        *,
        schema: Mapping[str, Any] | None = None,
        on_error: Literal["raise"] = "raise",
        **sampling: Unpack[SamplingOptions],
    ) -> Generator[Answer, None, None]: ...

    @overload
    def batch_iter(
        self,
        items: Iterable[Item],
        *,
        schema: Schema = None,
        on_error: OnError,
        **sampling: Unpack[SamplingOptions],
    ) -> Generator[Any, None, None]: ...

    def batch_iter(
        self,
        items: Iterable[Item],
        *,
        schema: Schema = None,
        on_error: OnError = "raise",
        **sampling: Unpack[SamplingOptions],
    ) -> Generator[Any, None, None]:
        """Like `batch`, each answer as soon as it and those before it are there; closing it stops the work."""
        return self._answers(items, schema, on_error, sampling)

    def choose(self, images: Images, question: str, labels: Iterable[str]) -> Choice:
        """Which of the labels answers a question best, and how likely each is, from one reading of the prompt.

        A label counts as given and with its first letter in the other case; see api.choose for how they are rated.

        Raises:
            OptionError: labels that cannot be told apart, or fewer than two.
        """
        chooser = Chooser(self.processor, labels)
        request = self.engine.submit_scoring(*chooser.prepare([user_message(images, question, policy=self.media)]))
        self.engine.wait([request])
        return chooser.choice(request)

    @overload
    def choose_many(
        self, items: Iterable[Item], labels: Iterable[str], *, on_error: Literal["raise"] = "raise"
    ) -> Generator[Choice, None, None]: ...

    @overload
    def choose_many(
        self, items: Iterable[Item], labels: Iterable[str], *, on_error: OnError
    ) -> Generator[Choice | BeholdError, None, None]: ...

    def choose_many(
        self, items: Iterable[Item], labels: Iterable[str], *, on_error: OnError = "raise"
    ) -> Generator[Choice | BeholdError, None, None]:
        """`choose` for collections of any length: each result, in order, as `batch_iter` gives answers."""
        chooser = Chooser(self.processor, labels)
        return run_all(
            self.engine,
            items,
            prepare=lambda item: chooser.prepare(messages_of(item, policy=self.media)),
            start=lambda prepared: self.engine.submit_scoring(*prepared),
            finish=chooser.choice,
            keep_errors=check_on_error(on_error),
        )

    def chat(self, *, system: str | None = None) -> Chat:
        """A conversation that keeps its history; each picture is encoded once."""
        return Chat(self, system=system)

    def quantization_report(self) -> QuantizationReport:
        """What became of each quantized layer: its scheme, its bytes, and its output's error on a built-in picture.

        The full weights are read again for it, one layer at a time.

        Raises:
            OptionError: the model is not quantized.
        """
        from behold.api.quantization import measure

        return measure(self.model, self.processor, self._files)

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

    def _answers(
        self,
        items: Iterable[Item],
        schema: Schema,
        on_error: OnError,
        sampling: SamplingOptions,
        on_end: Callable[[], object] = lambda: None,
    ) -> Generator[Any, None, None]:
        params = self.params({**sampling, "schema": schema})

        def value(request: Request) -> object:
            answer = Answer.of(request.completions[0])
            return structured.value_of(structured.read(answer, params.constraint, schema), schema)

        return run_all(
            self.engine,
            items,
            prepare=lambda item: self.processor.chat(messages_of(item, policy=self.media)),
            start=lambda prompt: self.engine.submit(prompt, params),
            finish=value,
            keep_errors=check_on_error(on_error),
            on_end=on_end,
        )
