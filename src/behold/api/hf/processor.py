"""`AutoProcessor`: texts, chats and pictures to the tensors a model takes, as its namesake in transformers does."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from PIL.Image import Image
from PIL.Image import new as new_image

from behold.api.hf.batch import Batch, TensorKind, check_kind, pictures_as
from behold.api.hf.image_processor import HFImageProcessor
from behold.api.hf.images import Load, flat_images, image_rows
from behold.api.hf.loading import read_hub_options, refuse_rest
from behold.api.hf.options import TEXT_OPTIONS, divided, flattened, places_in
from behold.api.hf.padding import read_padding, read_side
from behold.api.hf.tokenizer import HFTokenizer, Ids, texts_of
from behold.api.session import open_checkpoint, open_processor
from behold.chat.media import load_image
from behold.chat.messages import parse_messages
from behold.chat.policy import MediaPolicy
from behold.chat.template import ChatTemplate
from behold.errors import ChatError, OptionError
from behold.processing.processor import Processor

if TYPE_CHECKING:
    from behold.checkpoint.files import CheckpointFiles
    from behold.processing.layout import ImageLayout


class AutoProcessor:
    """Opens a checkpoint's processor: `AutoProcessor.from_pretrained("llava-hf/llava-1.5-7b-hf")`."""

    def __init__(self) -> None:
        raise OptionError("AutoProcessor is not made directly; use from_pretrained(id_or_dir).")

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: str | Path, **options: object) -> HFProcessor:
        """The processor of a hub id or folder; no weights are fetched.

        options: revision, cache_dir, token, local_files_only; `padding_side`; and settings of the image processor
        that replace the checkpoint's (`do_image_splitting=False`, `size=` …).

        Raises:
            OptionError: an option that cannot be honoured.
            CheckpointError: the checkpoint cannot be found, read or used.
        """
        hub, rest = read_hub_options(options)
        files = open_checkpoint(
            pretrained_model_name_or_path,
            revision=hub.revision,
            cache_dir=hub.cache_dir,
            token=hub.token,
            local_files_only=hub.local_files_only,
            with_weights=False,
        )
        processor = HFProcessor(open_processor(files), _stated_by(files))
        if (side := rest.pop("padding_side", None)) is not None:
            processor.tokenizer.padding_side = read_side(side)
        known = processor.image_processor.settings
        changes = {name: rest.pop(name) for name in list(rest) if name in known and rest[name] is not None}
        processor.image_processor.change(**changes)
        refuse_rest(rest, f"padding_side, {', '.join(known)}")
        return processor


class HFProcessor:
    """Text and pictures to tensors and back. Threads may share it as long as nobody changes its settings.

    Attributes: tokenizer, image_processor (whose settings can be set), chat_template.
    """

    def __init__(self, processor: Processor, stated: Mapping[str, object] | None = None) -> None:
        """`stated` is what the checkpoint says about places in the prompt (patch_size …), to be read by name."""
        self.__dict__.update(processor=processor, _policy=MediaPolicy(), _stated=dict(stated or {}))
        self.__dict__["tokenizer"] = HFTokenizer(processor.tokenizer)
        self.__dict__["image_processor"] = HFImageProcessor(processor.layout)

    processor: Processor
    tokenizer: HFTokenizer
    image_processor: HFImageProcessor
    _policy: MediaPolicy
    _stated: dict[str, object]

    def __getattr__(self, name: str) -> object:
        stated = self.__dict__.get("_stated", {})
        if name in stated:
            return stated[name]
        raise AttributeError(f"The processor has no {name!r}.")

    def __setattr__(self, name: str, value: object) -> None:
        if name == "chat_template":
            own = self.processor
            template = None if value is None else self._template(str(value))
            self.__dict__["processor"] = Processor(own.tokenizer, own.layout, template, own.eos_token_ids)
        elif name not in self._stated or self._stated[name] != value:
            # Code for older checkpoints sets patch_size and the like: allowed as long as it says what is so.
            known = {**self._stated, "chat_template": self.chat_template}
            raise OptionError(f"processor.{name} cannot be set to {value!r}; the checkpoint says {known.get(name)!r}.")

    @property
    def chat_template(self) -> str | None:
        """The template's Jinja source; None where the checkpoint has none. It can be set."""
        template = self.processor.template
        return None if template is None else template.source

    @property
    def image_token(self) -> str:
        """What stands for a picture in a text."""
        return self.image_processor.layout.image_token

    @property
    def image_token_id(self) -> int:
        """The id at every place that a picture's embeddings take."""
        return self.image_processor.layout.image_token_id

    def with_timeout(self, timeout_s: float) -> HFProcessor:
        """The same processor, whose downloads of pictures may take this long."""
        other = copy.copy(self)
        other.__dict__["_policy"] = replace(self._policy, timeout_s=timeout_s)
        return other

    # --- to tensors ----------------------------------------------------------------------------------------------

    def __call__(
        self,
        images: object = None,
        text: str | Sequence[str] | None = None,
        *,
        return_tensors: TensorKind = None,
        **options: object,
    ) -> Batch:
        """input_ids and attention_mask of one or several texts, and pixel_values (…) of their pictures.

        images: one picture, several, or a list for each text; any form that a picture can have. Texts have one image
        token for each. options: padding, padding_side, pad_to_multiple_of, max_length, add_special_tokens,
        return_attention_mask, settings of the image processor for this call, or groups of them (text_kwargs,
        images_kwargs, common_kwargs). Without return_tensors values are lists.

        Raises:
            OptionError: an option that is unknown or cannot be honoured.
            ChatError: pictures and places do not match. MediaError: a picture cannot be read.
        """
        return self._inputs(images, text, {"return_tensors": return_tensors, **flattened(options)}, self._load)

    def _inputs(
        self, images: object, text: str | Sequence[str] | None, options: dict[str, object], load: Load
    ) -> Batch:
        kind = cast("TensorKind", options.pop("return_tensors", None))
        check_kind(kind)
        chosen = {name: options.pop(name) for name in TEXT_OPTIONS if name in options}
        processor = self._with(self.image_processor.layout_with(options))
        if text is None:
            if images is None:
                raise OptionError("text and images are both missing; give at least one.")
            return self.image_processor.batch(flat_images(images, load), kind, layout=processor.layout)
        texts = texts_of(text)
        pictures = image_rows(images, [places_in(row, self.image_token) for row in texts], load)
        return self._batch(processor, texts, pictures, kind, **cast("Any", chosen))

    def _batch(
        self,
        processor: Processor,
        texts: Sequence[str],
        pictures: Sequence[Sequence[Image]],
        kind: TensorKind,
        *,
        padding: bool | str | None = False,
        truncation: bool | str | None = None,
        max_length: int | None = None,
        pad_to_multiple_of: int | None = None,
        padding_side: str | None = None,
        add_special_tokens: bool = True,
        return_attention_mask: bool | None = None,
    ) -> Batch:
        side = self.tokenizer.padding_side if padding_side is None else read_side(padding_side)
        settings = read_padding(
            padding, side=side, max_length=max_length, pad_to_multiple_of=pad_to_multiple_of, truncation=truncation
        )
        prompts = [
            processor.prompt(text, images, add_special_tokens=add_special_tokens)
            for text, images in zip(texts, pictures, strict=True)
        ]
        ids = [prompt.ids for prompt in prompts]
        batch = self.tokenizer.batch(ids, settings, kind, masks=return_attention_mask is not False)
        batch.update(pictures_as(kind, processor.layout.pack([prompt.images for prompt in prompts])))
        return batch

    def _with(self, layout: ImageLayout) -> Processor:
        own = self.processor
        if layout is own.layout:
            return own
        return Processor(own.tokenizer, layout, own.template, own.eos_token_ids)

    # --- chats ---------------------------------------------------------------------------------------------------

    def apply_chat_template(
        self,
        conversation: Sequence[object],
        chat_template: str | None = None,
        *,
        tools: Sequence[object] | None = None,
        documents: Sequence[object] | None = None,
        add_generation_prompt: bool = False,
        continue_final_message: bool = False,
        tokenize: bool = False,
        return_dict: bool = False,
        return_tensors: TensorKind = None,
        processor_kwargs: Mapping[str, object] | None = None,
        **variables: object,
    ) -> Any:  # noqa: ANN401 - text, ids or a Batch, as asked for
        """A conversation, or a list of them, as the prompt's text; with tokenize as ids, or (return_dict) a Batch.

        Pictures may be in the messages ({"type": "image", "image"/"url"/"path"/"base64": …}) or, for bare places, in
        processor_kwargs["images"]. variables: what the template knows by name, and options of the processor's call.
        Text that people wrote is never read as special tokens.

        Raises:
            OptionError: a keyword that neither the template nor the processor knows, or that cannot be honoured.
            ChatError: malformed messages, or a template that refuses them. MediaError: a picture cannot be read.
        """
        return_tensors = None if return_tensors == "auto" else return_tensors
        template = self._template(chat_template)
        own, arguments = divided(variables, template.source, self.image_processor.settings)
        arguments = {**arguments, **(processor_kwargs or {})}
        given = {"tools": tools, "documents": documents, **own}
        batched = _is_batch(conversation)
        chats = [
            parse_messages(chat, load=self._load if tokenize else _unread)
            for chat in (conversation if batched else [conversation])
        ]
        texts = [
            template.render(
                chat,
                add_generation_prompt=add_generation_prompt,
                continue_final_message=continue_final_message,
                **{name: value for name, value in given.items() if value is not None},
            )
            for chat in chats
        ]
        if not tokenize:
            return texts if batched else texts[0]
        options = {"return_tensors": return_tensors, **flattened(arguments)}
        options.setdefault("add_special_tokens", not self._starts_itself(texts[0]))
        images = options.pop("images", None)
        if images is None:
            pictures = [[image for message in chat for image in message.images] for chat in chats]
            out = self._inputs(pictures, texts, options, _loaded)
        else:
            out = self._inputs(images, texts, options, self._load)
        return out if return_dict else out["input_ids"]

    def _template(self, source: str | None) -> ChatTemplate:
        own = self.processor.template
        if source is None:
            if own is None:
                raise ChatError("The checkpoint has no chat template; give chat_template=, or write a prompt.")
            return own
        tokenizer = self.processor.tokenizer
        return ChatTemplate(
            source, tokenizer.named_tokens, control_tokens=tokenizer.special_tokens, image_token=self.image_token
        )

    def _starts_itself(self, text: str) -> bool:
        """Whether a template wrote the first token already, so that the tokenizer must not add another."""
        first = self.tokenizer.bos_token
        return bool(first) and text.startswith(cast("str", first))

    def _load(self, source: object) -> Image:
        return load_image(source, policy=self._policy)

    # --- back to text --------------------------------------------------------------------------------------------

    def decode(
        self, token_ids: Ids, skip_special_tokens: bool = False, clean_up_tokenization_spaces: bool | None = None
    ) -> Any:  # noqa: ANN401 - a text, or texts for rows of ids
        """See `HFTokenizer.decode`."""
        return self.tokenizer.decode(token_ids, skip_special_tokens, clean_up_tokenization_spaces)

    def batch_decode(
        self, sequences: Ids, skip_special_tokens: bool = False, clean_up_tokenization_spaces: bool | None = None
    ) -> list[str]:
        """See `HFTokenizer.batch_decode`."""
        return self.tokenizer.batch_decode(sequences, skip_special_tokens, clean_up_tokenization_spaces)

    def post_process_image_text_to_text(
        self,
        generated_outputs: Ids,
        skip_special_tokens: bool = True,
        clean_up_tokenization_spaces: bool | None = None,
    ) -> list[str]:
        """The texts of generated ids, without special tokens."""
        return self.tokenizer.batch_decode(generated_outputs, skip_special_tokens, clean_up_tokenization_spaces)


def _stated_by(files: CheckpointFiles) -> dict[str, object]:
    """What the processor's and the model's settings say about the places of a picture; the former go first."""
    vision = files.config.get("vision_config") or {}
    places = {
        "patch_size": vision.get("patch_size"),
        "vision_feature_select_strategy": files.config.get("vision_feature_select_strategy", "default"),
    }
    own = {name: value for name, value in files.processor.items() if isinstance(value, int | str)}
    return {name: value for name, value in {**places, **own}.items() if value is not None and name != "chat_template"}


def _is_batch(conversation: object) -> bool:
    """Whether this is a list of conversations rather than one."""
    if not isinstance(conversation, list | tuple) or not conversation:
        return False
    return isinstance(conversation[0], list | tuple)


def _loaded(image: object) -> Image:
    """Stands for loading where the messages' pictures are loaded already."""
    return cast("Image", image)


def _unread(source: object) -> Image:
    """Stands for a picture where only the text is wanted: nothing is fetched or opened."""
    return new_image("RGB", (1, 1))
