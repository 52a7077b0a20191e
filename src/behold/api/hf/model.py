"""`AutoModelForImageTextToText`: a torch module that takes the processor's tensors, like its namesake.

`generate` has no loop of its own: the tensors become prompts again and go to the engine with all other requests.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from threading import Lock
from typing import TYPE_CHECKING, cast

import torch
from torch import Tensor, nn

from behold.api.hf.call import Call, GenerateOutput, read_call, refuse_foreign, rows_of
from behold.api.hf.config import ConfigView
from behold.api.hf.forward import ModelOutput, forward_rows, kept, loss_of
from behold.api.hf.generation import GenerationConfig
from behold.api.hf.loading import LoadOptions, read_load_options
from behold.api.hf.unsupported import FOREIGN
from behold.api.session import open_both, open_checkpoint, open_engine
from behold.errors import OptionError

if TYPE_CHECKING:
    from typing_extensions import Self

    from behold.api.hf.streamers import Streamer
    from behold.checkpoint.files import CheckpointFiles
    from behold.engine.engine import Engine
    from behold.models.base import VisionLanguageModel
    from behold.processing.processor import Processor


def stream_into(streamer: Streamer, engine: Engine, call: Call) -> list[int]:
    """Put the prompt (1, T) and then each id (1,) as it comes; returns the answer's ids.

    A streamer with `cancelled` set (TextIteratorStreamer after `close`) ends the answer within one step, and so does
    one whose `put` raises.

    Raises:
        OptionError: more than one sequence, or beams, whose ids are not known until the end.
    """
    sequences, beams = len(call.rows) * call.answers, call.params.num_beams
    if sequences > 1 or beams > 1:
        raise OptionError(
            f"streamer: one sequence can be streamed, not {sequences} with num_beams={beams}; "
            "call generate without it, or once for each row."
        )
    ids: list[int] = []
    streamer.put(call.input_ids.cpu())
    deltas = engine.stream(call.rows[0].prompt, call.params)
    try:
        for delta in deltas:
            for token in delta.ids:
                ids.append(token)
                streamer.put(torch.tensor([token]))
            if getattr(streamer, "cancelled", False):
                break
    finally:
        deltas.close()
    streamer.end()
    return ids


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
    processor, model = open_both(
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
        self.generation_config = GenerationConfig.read(files.generation, processor.eos_token_ids)
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
        for name in (*FOREIGN, "use_cache", "output_attentions", "output_hidden_states"):
            refuse_foreign(name, inputs.pop(name, None))
        if input_ids is None:
            raise OptionError("input_ids is missing; call with the processor's output: **processor(...).")
        rows = rows_of(input_ids, attention_mask, cast("dict[str, Tensor | None]", inputs), self._processor.layout)
        width = input_ids.shape[1]
        if labels is None and isinstance(logits_to_keep, int):
            # Only what is kept is computed: all logits of a long prompt may take more memory than the model.
            first = max(0, width - logits_to_keep) if logits_to_keep else 0
            output = ModelOutput(forward_rows(self.model, rows, range(first, width)))
        else:
            logits = forward_rows(self.model, rows, range(width))
            output = ModelOutput(
                kept(logits, logits_to_keep), None if labels is None else loss_of(logits, labels, rows)
            )
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
            call = self.read_call(arguments, inputs=inputs, generation_config=generation_config)
            if streamer is None:
                return self.answer([call])[0]
            return call.result([stream_into(streamer, self.engine, call)])
        except BaseException as error:
            # Whoever reads the stream in another thread would wait for ever.
            fail = getattr(streamer, "fail", None)
            if callable(fail):
                fail(error)
            raise

    def read_call(
        self, arguments: Mapping[str, object], *, inputs: Tensor | None = None, generation_config: object = None
    ) -> Call:
        """What `generate` would do with these arguments, checked but not run."""
        return read_call(
            self.generation_config, generation_config, arguments, inputs=inputs, layout=self._processor.layout
        )

    def answer(self, calls: Sequence[Call]) -> list[Tensor | GenerateOutput]:
        """The results of several calls of `generate`, whose requests run together."""
        plain = [request for call in calls if call.params.num_beams == 1 for request in call.requests]
        answers = iter(self.engine.complete(plain) if plain else [])
        results = []
        for call in calls:
            if call.params.num_beams > 1:
                found = [beam.ids for prompt, params in call.requests for beam in self.engine.beams(prompt, params)]
            else:
                found = [next(answers).ids for _ in call.requests]
            results.append(call.result(found))
        return results

    @property
    def engine(self) -> Engine:
        """The engine that runs this model, made on first use."""
        with self._lock:
            if self._engine is None:
                self._engine = open_engine(
                    self.model, tokenizer=self._processor.tokenizer, eos_token_ids=self._processor.eos_token_ids
                )
            return self._engine

    def __deepcopy__(self, memo: dict[int, object]) -> Self:
        # Weights and settings are copied; the processor is stateless and shared; the engine is made anew.
        other = type(self).__new__(type(self))
        memo[id(self)] = other
        own = {"_processor": self._processor, "_engine": None, "_lock": Lock()}
        rest = {name: copy.deepcopy(value, memo) for name, value in self.__dict__.items() if name not in own}
        other.__dict__.update({**rest, **own})
        return other

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        # `to`, `half`, `cuda` and the like: the engine's caches belong to the old device and dtype.
        self._engine = None
        module: Self = super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        return module
