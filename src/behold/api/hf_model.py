"""`AutoModelForImageTextToText`: a torch module that takes the processor's tensors, like its namesake.

`generate` has no loop of its own: the tensors become prompts again and go to the engine with all other requests.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from threading import Lock
from typing import TYPE_CHECKING, cast

import torch
from torch import Tensor, nn

from behold.api.hf_answers import GenerateOutput, sequences, stream_into
from behold.api.hf_config import ConfigView
from behold.api.hf_forward import ModelOutput, forward_rows, kept, loss_of
from behold.api.hf_generation import GenerationConfig, check_unsupported, end_ids, is_option, merged, pad_id
from behold.api.hf_generation import sampling_params as to_sampling_params
from behold.api.hf_inputs import Row, mask_of_padding, read_rows
from behold.api.hf_loading import LoadOptions, read_load_options
from behold.api.hf_unsupported import FOREIGN
from behold.api.session import open_checkpoint, open_engine, open_model, open_processor
from behold.errors import OptionError
from behold.types import Completion, Prompt, SamplingParams

if TYPE_CHECKING:
    from typing_extensions import Self

    from behold.api.streamers import Streamer
    from behold.checkpoint.files import CheckpointFiles
    from behold.engine.engine import Engine
    from behold.models.base import VisionLanguageModel
    from behold.processing.processor import Processor

PICTURE_INPUTS = ("pixel_values", "pixel_attention_mask", "image_sizes")
"""The tensors beside ids and mask that processors of the supported families return."""


class AutoModelForImageTextToText:
    """Opens a checkpoint as a model: `AutoModelForImageTextToText.from_pretrained("llava-hf/llava-1.5-7b-hf")`."""

    def __init__(self) -> None:
        raise OptionError("AutoModelForImageTextToText is not made directly; use from_pretrained(id_or_dir).")

    @classmethod
    def from_pretrained(
        cls, pretrained_model_name_or_path: str | Path, *model_args: object, **options: object
    ) -> ImageTextToTextModel:
        """The model of a hub id or folder, ready to answer.

        Options (see `LoadOptions`): dtype (torch_dtype), device_map, attn_implementation, quantization_config,
        revision, cache_dir, token, local_files_only. Without device_map it is on the CPU; without dtype it has the
        checkpoint's, or float32 where the CPU computes bfloat16 slowly.

        Raises:
            OptionError: an option that cannot be honoured.
            CheckpointError: the checkpoint cannot be found, read or used.
        """
        if model_args:
            raise OptionError(f"from_pretrained takes one positional argument; give {model_args!r} by name.")
        return load(pretrained_model_name_or_path, read_load_options(options))


def load(id_or_dir: str | Path, options: LoadOptions) -> ImageTextToTextModel:
    """Fetch, read and build what `options` ask for."""
    files = open_checkpoint(
        id_or_dir,
        revision=options.hub.revision,
        cache_dir=options.hub.cache_dir,
        token=options.hub.token,
        local_files_only=options.hub.local_files_only,
    )
    processor = open_processor(files)
    model = open_model(
        files, device=options.device, dtype=options.dtype, quantize=options.quantize, attention=options.attention
    )
    return ImageTextToTextModel(str(id_or_dir), files, model=model, processor=processor)


class ImageTextToTextModel(nn.Module):
    """A vision-language model behind transformers' calls. Safe to share: threads' requests run together.

    Attributes:
        config: the checkpoint's settings, by attribute. generation_config: the defaults of `generate`; change them
        freely. model: the module that computes, with the checkpoint's parameter names.
    """

    def __init__(self, name: str, files: CheckpointFiles, *, model: VisionLanguageModel, processor: Processor) -> None:
        super().__init__()
        self.name_or_path = name
        self.model = model
        self.config = ConfigView(files.config, model.config)
        self.generation_config = GenerationConfig.read(files.generation, files.eos_token_ids)
        self._processor = processor
        self._engine: Engine | None = None
        self._lock = Lock()

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self.model.device

    @property
    def dtype(self) -> torch.dtype:
        """The weights' type."""
        return self.model.dtype

    def can_generate(self) -> bool:
        """Always true."""
        return True

    def num_parameters(self) -> int:
        """How many numbers the model has learned."""
        return sum(weight.numel() for weight in self.parameters())

    def get_memory_footprint(self) -> int:
        """Bytes of weights and buffers."""
        return sum(item.numel() * item.element_size() for item in (*self.parameters(), *self.buffers()))

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        labels: Tensor | None = None,
        logits_to_keep: int | Tensor = 0,
        return_dict: bool | None = None,
        **inputs: object,
    ) -> ModelOutput | tuple[Tensor, ...]:
        """Logits (B, T, V) of every token of `input_ids` (B, T); with `labels` (B, T) also the loss.

        inputs: the processor's picture tensors.

        Raises:
            OptionError: an input or option that has no effect here (inputs_embeds, past_key_values, …).
            ChatError: pictures and places do not match.
        """
        _refuse_states(inputs)
        rows = self._rows(input_ids, attention_mask, inputs)
        logits = forward_rows(self.model, rows, cast("Tensor", input_ids).shape[1])
        loss = None if labels is None else loss_of(logits, labels, rows)
        output = ModelOutput(kept(logits, logits_to_keep), loss)
        return output.to_tuple() if return_dict is False else output

    @torch.no_grad()
    def generate(
        self,
        inputs: Tensor | None = None,
        generation_config: object = None,
        streamer: Streamer | None = None,
        **arguments: object,
    ) -> Tensor | GenerateOutput:
        """Answers as ids (B × num_return_sequences, T + new), each row starting with its prompt as given.

        inputs: `input_ids` by position. arguments: the processor's tensors (`**inputs`) and any option of
        `GenerationConfig`. streamer: gets the prompt's ids, then each new id, then `end()`; one sequence only.

        Raises:
            OptionError: an option that is unknown, out of range, or cannot be honoured.
            ChatError: pictures and places do not match.
        """
        try:
            return self._generate(inputs, generation_config, streamer, arguments)
        except BaseException as error:
            # Whoever reads the stream in another thread would wait for ever.
            fail = getattr(streamer, "fail", None)
            if callable(fail):
                fail(error)
            raise

    def _generate(
        self, ids: Tensor | None, given: object, streamer: Streamer | None, arguments: Mapping[str, object]
    ) -> Tensor | GenerateOutput:
        options, tensors = _split(arguments)
        config = merged(self.generation_config, given, options)
        input_ids = _one_of(ids, cast("Tensor | None", tensors.pop("input_ids", None)))
        mask = cast("Tensor | None", tensors.pop("attention_mask", None))
        if mask is None and input_ids is not None and input_ids.ndim == 2:
            mask = mask_of_padding(input_ids, pad_id(config), end_ids(config))
        rows = self._rows(input_ids, mask, tensors)
        input_ids = cast("Tensor", input_ids)
        params = to_sampling_params(config, input_ids.shape[1])
        answers = max(1, config.num_return_sequences or 1)
        if streamer is not None:
            found: list[Sequence[int]] = [stream_into(streamer, self.engine, input_ids, rows, params, answers=answers)]
        else:
            found = [answer.ids for answer in self.complete([(row.prompt, params) for row in rows], answers)]
        result = sequences(input_ids.repeat_interleave(answers, dim=0), found, pad_id(config))
        return GenerateOutput(sequences=result) if config.return_dict_in_generate else result

    def complete(self, requests: Sequence[tuple[Prompt, SamplingParams]], answers: int = 1) -> list[Completion]:
        """The engine's answers, `answers` for each request, in order; all requests run together."""
        if any(params.num_beams > 1 for _, params in requests):
            return [answer for prompt, params in requests for answer in self.engine.beams(prompt, params)]
        return self.engine.complete([request for request in requests for _ in range(answers)])

    @property
    def engine(self) -> Engine:
        """The engine that runs this model, made on first use.

        It knows no end-of-sequence ids: they come with each request, as `generation_config` may change.
        """
        with self._lock:
            if self._engine is None:
                self._engine = open_engine(self.model, tokenizer=self._processor.tokenizer, eos_token_ids=frozenset())
            return self._engine

    def _rows(self, input_ids: Tensor | None, mask: Tensor | None, inputs: Mapping[str, object]) -> list[Row]:
        if input_ids is None:
            raise OptionError("input_ids is missing; call with the processor's output: **processor(...).")
        pictures = {name: value for name, value in inputs.items() if value is not None}
        for name, value in pictures.items():
            if name not in PICTURE_INPUTS or not isinstance(value, Tensor):
                known = ", ".join(("input_ids", "attention_mask", *PICTURE_INPUTS))
                raise OptionError(
                    f"{name}={type(value).__name__} is not an input of this model; the tensors are {known}."
                )
        return read_rows(input_ids, mask, cast("Mapping[str, Tensor]", pictures), self._processor.layout)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        # `to`, `half`, `cuda` and the like: the engine's caches belong to the old device and dtype.
        self._engine = None
        module: Self = super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        return module


def _split(arguments: Mapping[str, object]) -> tuple[dict[str, object], dict[str, object]]:
    """(options of GenerationConfig, tensors) of a `generate` call.

    Raises:
        OptionError: an argument that is neither, with the nearest known name.
    """
    options: dict[str, object] = {}
    tensors: dict[str, object] = {}
    for name, value in arguments.items():
        if name in FOREIGN:
            _refuse(name, value)
        elif name in ("tokenizer", "trust_remote_code"):
            # transformers needs the tokenizer for stop_strings; here it came with the checkpoint.
            continue
        elif is_option(name):
            options[name] = value
        elif isinstance(value, Tensor) or value is None:
            tensors[name] = value
        else:
            check_unsupported({name: value})
    return options, tensors


def _refuse_states(inputs: dict[str, object]) -> None:
    """Take out of `inputs` what only asks for nothing; refuse the rest of what transformers' forward knows."""
    for name in (*FOREIGN, "use_cache", "output_attentions", "output_hidden_states"):
        _refuse(name, inputs.pop(name, None))


def _refuse(name: str, value: object) -> None:
    if value is not None and value is not False and value != []:
        raise OptionError(f"{name}={type(value).__name__} is not supported; leave it out.")


def _one_of(by_position: Tensor | None, by_name: Tensor | None) -> Tensor | None:
    if by_position is not None and by_name is not None:
        raise OptionError("inputs and input_ids are both given; they are the same thing, give one.")
    return by_position if by_name is None else by_name
