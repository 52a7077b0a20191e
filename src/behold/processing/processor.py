"""Text and pictures to a Prompt: expand the places of pictures, tokenise, and record where embeddings go.

RenderedPrompt "…<image>…" ─ expand ─▶ "…<image><image>…" ─ encode ─▶ ids (T,) ─ find_spans ─▶ Prompt
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from behold.chat.literals import Masker, RenderedPrompt
from behold.chat.template import ChatTemplate
from behold.errors import ChatError, UnsupportedModelError
from behold.processing.tokenizer import Tokenizer
from behold.types import ImageInput, ImagePart, ImagePlace, ImageSpan, Message, Prompt, TextPart

if TYPE_CHECKING:
    from PIL.Image import Image

    from behold.checkpoint.files import CheckpointFiles
    from behold.processing.layout import ImageLayout


class Processor:
    """One checkpoint's way from messages to a Prompt. Holds no state between calls; threads may share it.

    template: None where the checkpoint has none; `chat` then says so, and `prompt` works.
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        layout: ImageLayout,
        template: ChatTemplate | None,
        eos_token_ids: frozenset[int],
    ) -> None:
        self.tokenizer = tokenizer
        self.layout = layout
        self.template = template
        self.eos_token_ids = eos_token_ids

    @classmethod
    def load(cls, files: CheckpointFiles, layout: ImageLayout) -> Processor:
        """The processor of a checkpoint folder, with the picture layout of its family.

        Raises:
            CheckpointError: the tokenizer is missing, damaged, or does not fit the model.
            ChatError: the chat template is not valid Jinja.
        """
        tokenizer = Tokenizer.load(files)
        tokenizer.add_special_tokens(layout.special_tokens)
        found = tokenizer.token_to_id(layout.image_token)
        if found != layout.image_token_id:
            raise UnsupportedModelError(
                f"the image token {layout.image_token!r} has the id {found} in the tokenizer and "
                f"{layout.image_token_id} in config.json; the tokenizer and the model do not belong together."
            )
        template = None
        if files.chat_template is not None:
            template = ChatTemplate(
                files.chat_template,
                tokenizer.named_tokens,
                control_tokens=tokenizer.special_tokens,
                image_token=layout.image_token,
            )
        eos = {tokenizer.eos_token_id} - {None}
        return cls(tokenizer, layout, template, files.eos_token_ids | frozenset(eos))  # type: ignore[arg-type]

    def chat(
        self,
        messages: Sequence[Message],
        *,
        continue_final_message: bool | None = None,
        **variables: Any,  # noqa: ANN401 - the checkpoint's template decides what it takes
    ) -> Prompt:
        """A conversation to a Prompt, up to where the model's answer begins.

        continue_final_message: go on with the last message; None: do so when it is the assistant's.

        Raises:
            ChatError: no template, the template refuses, or pictures and places do not match.
        """
        text, pictures = self._rendered(messages, continue_final_message, variables)
        return self._prompt(*self._expanded(text, pictures, messages))

    def render(
        self,
        messages: Sequence[Message],
        *,
        continue_final_message: bool | None = None,
        **variables: Any,  # noqa: ANN401 - as in chat
    ) -> RenderedPrompt:
        """The text that `chat` would tokenise, image tokens already expanded: what the model reads."""
        text, pictures = self._rendered(messages, continue_final_message, variables)
        return self._expanded(text, pictures, messages)[0]

    def prompt(self, text: str, images: Sequence[Image] = (), *, add_special_tokens: bool = True) -> Prompt:
        """A prompt written by hand, with one image token for each picture, to a Prompt.

        In a plain `str` special tokens mean what they are; in a RenderedPrompt those in its literal ranges are text.

        Raises:
            ChatError: the numbers of image tokens and pictures differ.
        """
        expanded, inputs = self._expanded(text, [ImagePart(image) for image in images], ())
        return self._prompt(expanded, inputs, add_special_tokens=add_special_tokens)

    def expand(self, text: str, inputs: Sequence[Sequence[ImageInput]]) -> RenderedPrompt:
        """Each image token of `text` replaced by what stands for one picture's inputs; literal ranges move along.

        Raises:
            ChatError: the numbers of image tokens and pictures differ.
        """
        masked, masker = self._masked(text)
        pieces = masked.split(self.layout.image_token)
        if len(pieces) - 1 != len(inputs):
            raise ChatError(
                f"the text has {len(pieces) - 1} places for pictures ({self.layout.image_token}), and {len(inputs)} "
                "pictures were given; there must be one place for each picture."
            )
        expanded = [pieces[0]]
        for picture, piece in zip(inputs, pieces[1:], strict=True):
            expanded += (self.layout.expand(picture), piece)
        return masker.unmask(self.layout.finish("".join(expanded)))

    def _rendered(
        self, messages: Sequence[Message], continue_final_message: bool | None, variables: dict[str, Any]
    ) -> tuple[RenderedPrompt, list[ImagePart]]:
        if self.template is None:
            raise ChatError(
                "this checkpoint has no chat template; write the prompt by hand, "
                f"with {self.layout.image_token} for each picture."
            )
        for index, message in enumerate(messages):
            if any(isinstance(part, ImagePlace) for part in message.parts):
                raise ChatError(
                    f"message {index} ({message.role}) has a place for a picture, and no picture was given for it; "
                    'write {"type": "image", "image": …}, or give the pictures separately.'
                )
        goes_on = is_started(messages) if continue_final_message is None else continue_final_message
        variables.setdefault("add_generation_prompt", not goes_on)
        text = self.template.render(messages, continue_final_message=goes_on, **variables)
        return text, [picture for message in messages for picture in message.pictures]

    def _expanded(
        self, text: str, pictures: Sequence[ImagePart], messages: Sequence[Message]
    ) -> tuple[RenderedPrompt, list[ImageInput]]:
        if messages:
            # Counted before pictures are resized: a template may leave out a message, or a picture in it.
            places = self._masked(text)[0].count(self.layout.image_token)
            if places != len(pictures):
                raise ChatError(
                    f"the chat template makes {places} places for {len(pictures)} pictures ({_where(messages)}); "
                    "it takes no pictures in some of these messages. Put them into user messages."
                )
        inputs = self.layout.prepare([each.image for each in pictures], [each.detail for each in pictures])
        return self.expand(text, inputs), [each for picture in inputs for each in picture]

    def _masked(self, text: str) -> tuple[str, Masker]:
        """The text with its literal ranges masked, and what unmasks it."""
        masker = Masker((), [text])
        literals = text.literals if isinstance(text, RenderedPrompt) else ()
        pieces: list[str] = []
        done = 0
        for start, stop in literals:
            pieces += (text[done:start], masker.character(text[start:stop]))
            done = stop
        return "".join([*pieces, text[done:]]), masker

    def _prompt(
        self, text: RenderedPrompt, inputs: Sequence[ImageInput], *, add_special_tokens: bool | None = None
    ) -> Prompt:
        if add_special_tokens is None:  # templates that write the beginning themselves must not get it twice
            bos = self.tokenizer.bos_token
            add_special_tokens = not (bos and text.startswith(bos))
        ids = tuple(self.tokenizer.encode(text, add_special_tokens))
        return Prompt(ids, tuple(inputs), tuple(find_spans(ids, inputs, self.layout.image_token_id)))


def find_spans(ids: Sequence[int], inputs: Sequence[ImageInput], image_token_id: int) -> Iterator[ImageSpan]:
    """Where each input's embeddings go: image tokens are handed out in order, n_tokens to each input.

    Raises:
        ChatError: there are more or fewer image tokens than embeddings, or a run of them is interrupted.
    """
    places = [index for index, identifier in enumerate(ids) if identifier == image_token_id]
    wanted = sum(each.n_tokens for each in inputs)
    if len(places) != wanted:
        raise ChatError(
            f"the ids hold {len(places)} image tokens, and {len(inputs)} pictures fill {wanted}; they must agree."
        )
    done = 0
    for index, each in enumerate(inputs):
        start, stop = places[done], places[done + each.n_tokens - 1] + 1
        if stop - start != each.n_tokens:
            raise ChatError(f"the {each.n_tokens} image tokens of picture {index} are interrupted by other tokens.")
        yield ImageSpan(start, each.n_tokens, index)
        done += each.n_tokens


def is_started(messages: Sequence[Message]) -> bool:
    """Whether the last message is the assistant's, with a text to go on from."""
    last = messages[-1] if messages else None
    return last is not None and last.role == "assistant" and any(isinstance(part, TextPart) for part in last.parts)


def _where(messages: Sequence[Message]) -> str:
    counts = [(index, message.role, len(message.pictures)) for index, message in enumerate(messages)]
    return ", ".join(f"message {index} ({role}) has {count}" for index, role, count in counts if count) or "none given"
