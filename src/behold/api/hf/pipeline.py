"""`pipeline("image-text-to-text", …)`: messages, or texts and pictures, in; records with the generated text out."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias, cast

import torch
from torch import Tensor

from behold.api.hf.call import Call, GenerateOutput
from behold.api.hf.loading import read_load_options
from behold.api.hf.model import ImageTextToTextModel, load
from behold.api.hf.pipeline_inputs import CallOptions, ChatItem, Item, TextItem, read_inputs, read_options
from behold.api.hf.processor import AutoProcessor, HFProcessor
from behold.device import resolve_device
from behold.errors import OptionError

if TYPE_CHECKING:
    from behold.api.hf.batch import Batch

TASK = "image-text-to-text"
MAX_NEW_TOKENS = 256
TOGETHER = 32
"""How many inputs of a list are prepared and given to the engine at once, where no batch_size is given."""

Records: TypeAlias = "list[dict[str, Any]]"


def pipeline(
    task: str | None = None,
    model: str | Path | ImageTextToTextModel | None = None,
    *,
    processor: str | Path | HFProcessor | None = None,
    device: int | str | torch.device | None = None,
    device_map: object = None,
    dtype: str | torch.dtype | None = None,
    torch_dtype: str | torch.dtype | None = None,
    revision: str | None = None,
    token: str | bool | None = None,
    local_files_only: bool | None = None,
    trust_remote_code: bool | None = None,
    model_kwargs: Mapping[str, object] | None = None,
    **options: object,
) -> ImageTextToTextPipeline:
    """A model and its processor as one callable.

    model: a hub id, a folder, or a loaded model. device: where it goes; by default the first accelerator, else the
    CPU. model_kwargs: further options of `from_pretrained`. options: defaults for every call (max_new_tokens,
    batch_size, return_full_text, …).

    Raises:
        OptionError: another task, no model, or an option that cannot be honoured.
        CheckpointError: the checkpoint cannot be found, read or used.
    """
    if task not in (None, TASK):
        raise OptionError(f"task={task!r} is not supported; use {TASK!r}.")
    for name in ("config", "tokenizer", "feature_extractor", "image_processor", "pipeline_class", "framework"):
        if options.pop(name, None) is not None:
            raise OptionError(f"{name} is not supported; give processor= and model=, which bring theirs.")
    for name in ("quantization_config", "load_in_8bit", "load_in_4bit", "attn_implementation", "cache_dir"):
        if name in options:
            raise OptionError(f"{name} is an option of the model; give model_kwargs={{{name!r}: …}}.")
    options.pop("use_fast", None)
    if device is not None and device_map is not None:
        raise OptionError("device and device_map are both given; give one.")
    loading: dict[str, object] = {
        "revision": revision,
        "token": token,
        "local_files_only": local_files_only,
        "trust_remote_code": trust_remote_code,
        "dtype": dtype,
        "torch_dtype": torch_dtype,
        "device_map": device_map,
    }
    for name, value in (model_kwargs or {}).items():
        if loading.get(name) is not None:
            raise OptionError(f"{name} is given twice, as an argument and in model_kwargs; give it once.")
        loading[name] = value
    opened = _open_model(model, device, loading)
    if not isinstance(processor, HFProcessor):
        place = {name: loading.get(name) for name in ("revision", "token", "local_files_only", "cache_dir")}
        processor = AutoProcessor.from_pretrained(opened.name_or_path if processor is None else processor, **place)
    return ImageTextToTextPipeline(opened, processor, read_options(options))


def _open_model(
    model: str | Path | ImageTextToTextModel | None,
    device: int | str | torch.device | None,
    loading: Mapping[str, object],
) -> ImageTextToTextModel:
    """The model to use, on the device wanted."""
    place = _device(device)
    if isinstance(model, ImageTextToTextModel):
        for name, value in loading.items():
            if value is not None and name != "trust_remote_code":
                raise OptionError(
                    f"{name}={value!r} says how to load a model, but the one given is loaded; leave it out."
                )
        return model if device is None else model.to(place)
    if not isinstance(model, str | Path):
        raise OptionError(
            f"model={type(model).__name__}; give a hub id such as 'llava-hf/llava-1.5-7b-hf' or a folder."
        )
    chosen = {name: value for name, value in loading.items() if value is not None}
    return load(model, read_load_options({"device_map": place, **chosen}))


@dataclass(frozen=True, slots=True)
class _Prepared:
    """One item on its way: the processor's tensors and the call they make."""

    item: Item
    inputs: Batch
    call: Call


class ImageTextToTextPipeline:
    """Made by `pipeline`. Inputs of one call run together in the engine, whatever their lengths."""

    task = TASK

    def __init__(self, model: ImageTextToTextModel, processor: HFProcessor, options: CallOptions) -> None:
        self.model = model
        self.processor = processor
        self.tokenizer = processor.tokenizer
        self.image_processor = processor.image_processor
        self._options = options

    @property
    def device(self) -> torch.device:
        """Where the model is."""
        return self.model.device

    @property
    def dtype(self) -> torch.dtype:
        """The weights' type."""
        return self.model.dtype

    def __call__(self, images: object = None, text: object = None, **options: object) -> Any:  # noqa: ANN401 - see below
        """Generate text for messages (`text=messages`), or for texts with pictures (`images=, text=`).

        options: max_new_tokens (256), return_full_text (True), return_tensors, generate_kwargs, stop_sequence,
        continue_final_message (by default when the assistant spoke last), skip_special_tokens, batch_size, any option
        of `generate`, and variables of the chat template.

        Returns a list of {"input_text", "generated_text"} for one input, a list of such lists for a list of inputs,
        and an iterator of them, read as it goes, for a generator.

        Raises:
            OptionError, ChatError, MediaError: the input or an option cannot be honoured.
        """
        job = read_inputs(images, text)
        chosen = read_options(options).over(self._options)
        if job.lazy:
            return self._run(job.items, chosen, chosen.batch_size or 1)
        results = list(self._run(job.items, chosen, chosen.batch_size or TOGETHER))
        return results[0] if job.one else results

    def _run(self, items: Iterable[Item], options: CallOptions, together: int) -> Iterator[Records]:
        items = iter(items)
        while batch := list(itertools.islice(items, together)):
            prepared = [self._prepare(item, options) for item in batch]
            if "streamer" in options.generate:
                results = [self.model.generate(**item.inputs, **self._arguments(options)) for item in prepared]
            else:
                results = self.model.answer([item.call for item in prepared])
            for item, result in zip(prepared, results, strict=True):
                sequences = result.sequences if isinstance(result, GenerateOutput) else result
                yield self._records(item, sequences, options)

    def _prepare(self, item: Item, options: CallOptions) -> _Prepared:
        processor = self.processor if options.timeout is None else self.processor.with_timeout(options.timeout)
        if isinstance(item, ChatItem):
            carry_on = _continues(item, options)
            inputs = processor.apply_chat_template(
                cast("Any", item.messages),
                add_generation_prompt=not carry_on,
                continue_final_message=carry_on,
                tokenize=True,
                return_dict=True,
                return_tensors="pt",
                processor_kwargs=dict(options.processor),
                **cast("Any", options.template),
            )
        else:
            several = len(item.texts) > 1
            wanted = {**({"padding": True} if several else {}), **options.template, **options.processor}
            inputs = processor(images=item.images, text=item.text, return_tensors="pt", **wanted)
        arguments = {name: value for name, value in self._arguments(options).items() if name != "streamer"}
        given = arguments.pop("generation_config", None)
        call = self.model.read_call({**inputs, **arguments}, generation_config=given)
        return _Prepared(item, inputs, call)

    def _arguments(self, options: CallOptions) -> dict[str, Any]:
        """The arguments of `generate`: those given, and a limit of 256 tokens where nobody set one."""
        arguments = dict(options.generate)
        configs = (arguments.get("generation_config"), self.model.generation_config)
        limits = [
            value
            for name in ("max_new_tokens", "max_length")
            for value in (arguments.get(name), *(getattr(config, name, None) for config in configs))
        ]
        if all(value is None for value in limits):
            arguments["max_new_tokens"] = MAX_NEW_TOKENS
        return arguments

    def _records(self, prepared: _Prepared, sequences: Tensor, options: CallOptions) -> Records:
        item, answers = prepared.item, prepared.call.answers
        given: list[Any] = [item.messages] if isinstance(item, ChatItem) else list(item.texts)
        given = [value for value in given for _ in range(answers)]
        if options.return_type == "tensors":
            return [
                {"input_text": value, "generated_token_ids": row}
                for value, row in zip(given, sequences.cpu(), strict=True)
            ]
        texts = self._decode(sequences, options)
        prompts = [text for text in self._decode(prepared.inputs["input_ids"], options) for _ in range(answers)]
        new = [_without(prompt, text) for prompt, text in zip(prompts, texts, strict=True)]
        if options.return_type == "new":
            return [{"input_text": value, "generated_text": text} for value, text in zip(given, new, strict=True)]
        return [
            {"input_text": value, "generated_text": _full(item, value, text, options)}
            for value, text in zip(given, new, strict=True)
        ]

    def _decode(self, ids: Tensor, options: CallOptions) -> list[str]:
        skip = True if options.skip_special_tokens is None else options.skip_special_tokens
        return self.processor.batch_decode(
            ids, skip_special_tokens=skip, clean_up_tokenization_spaces=options.clean_up_tokenization_spaces
        )


def _continues(item: ChatItem, options: CallOptions) -> bool:
    stated = options.continue_final_message
    return item.is_started if stated is None else stated


def _without(prompt: str, text: str) -> str:
    """The generated part of a decoded sequence. Decoding may put a space or two in front of the prompt."""
    start = text.find(prompt)
    return text[start + len(prompt) :] if 0 <= start <= 2 else text


def _full(item: Item, given: Any, text: str, options: CallOptions) -> Any:  # noqa: ANN401 - text or messages
    """Prompt and answer: one text, or the messages with the answer in or behind the last one."""
    if isinstance(item, TextItem):
        return given + text
    messages: Sequence[Mapping[str, Any]] = item.messages
    if not _continues(item, options):
        return [*messages, {"role": "assistant", "content": text}]
    last = messages[-1]
    content = last["content"]
    if isinstance(content, str):
        return [*messages[:-1], {**last, "content": content + text}]
    at = max(index for index, part in enumerate(content) if "text" in part)
    parts = [{**part, "text": part["text"] + text} if index == at else part for index, part in enumerate(content)]
    return [*messages[:-1], {**last, "content": parts}]


def _device(device: int | str | torch.device | None) -> str | torch.device:
    """A pipeline's `device`: None is the best there is, a number a GPU, -1 the CPU."""
    if isinstance(device, int):
        return "cpu" if device < 0 else f"cuda:{device}"
    return resolve_device("auto") if device is None else device
