"""One call of `generate`, read and checked: the requests it makes of the engine, and its result from their answers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from behold.api.hf.generation import (
    check_unsupported,
    end_ids,
    fill_id,
    is_option,
    merged,
    pad_id,
    sampling_params,
)
from behold.api.hf.inputs import Row, mask_of_padding, read_rows
from behold.api.hf.unsupported import FOREIGN
from behold.errors import OptionError
from behold.processing.layout import ImageLayout
from behold.types import Prompt, SamplingParams

PICTURE_INPUTS = ("pixel_values", "pixel_attention_mask", "image_sizes")
"""The tensors beside ids and mask that processors of the supported families return."""


@dataclass(frozen=True)
class GenerateOutput:
    """What `generate(return_dict_in_generate=True)` returns: sequences (B, T + new)."""

    sequences: Tensor

    def __getitem__(self, key: str | int) -> Tensor:
        if key in ("sequences", 0):
            return self.sequences
        raise KeyError(key)


@dataclass(frozen=True, slots=True)
class Call:
    """input_ids: (B, T) as given. answers: how many for each row. pad: what fills short answers."""

    input_ids: Tensor
    rows: Sequence[Row]
    params: SamplingParams
    answers: int
    pad: int | None
    as_output: bool

    @property
    def requests(self) -> list[tuple[Prompt, SamplingParams]]:
        """One request for each answer, in order; with beams one for each row, which gives all its answers."""
        times = 1 if self.params.num_beams > 1 else self.answers
        return [(row.prompt, self.params) for row in self.rows for _ in range(times)]

    def result(self, found: Sequence[Sequence[int]]) -> Tensor | GenerateOutput:
        """(B × answers, T + new): each prompt (T,) followed by its answer's ids; short answers padded on the right.

        Raises:
            OptionError: answers of different lengths and nothing to pad with.
        """
        longest = max(len(answer) for answer in found)
        if self.pad is None and any(len(answer) < longest for answer in found):
            raise OptionError("The answers differ in length and there is no pad token; give pad_token_id.")
        rows = [[*answer, *[self.pad or 0] * (longest - len(answer))] for answer in found]
        prompts = self.input_ids.repeat_interleave(self.answers, dim=0)
        new = torch.tensor(rows, dtype=prompts.dtype, device=prompts.device).reshape(len(found), longest)
        sequences = torch.cat([prompts, new], dim=1)
        return GenerateOutput(sequences) if self.as_output else sequences


def read_call(
    base: object,
    given: object,
    arguments: Mapping[str, object],
    *,
    inputs: Tensor | None,
    layout: ImageLayout,
) -> Call:
    """Everything `generate` was called with: `inputs` by position, `given` as generation_config, the rest by name.

    Raises:
        OptionError: an argument that is unknown, out of range, or cannot be honoured.
        ChatError: pictures and places do not match.
    """
    options, tensors = _split(arguments)
    config = merged(base, given, options)
    input_ids = _one_of(inputs, tensors.pop("input_ids", None))
    mask = tensors.pop("attention_mask", None)
    if mask is None and input_ids.ndim == 2:
        mask = mask_of_padding(input_ids, pad_id(config), end_ids(config))
    rows = rows_of(input_ids, mask, tensors, layout)
    return Call(
        input_ids=input_ids,
        rows=rows,
        params=sampling_params(config, input_ids.shape[1]),
        answers=max(1, config.num_return_sequences or 1),
        pad=fill_id(config),
        as_output=bool(config.return_dict_in_generate),
    )


def rows_of(
    input_ids: Tensor, mask: Tensor | None, pictures: Mapping[str, Tensor | None], layout: ImageLayout
) -> list[Row]:
    """`read_rows`, after refusing tensors that no supported family has."""
    found = {name: value for name, value in pictures.items() if value is not None}
    for name in found:
        if name not in PICTURE_INPUTS:
            known = ", ".join(("input_ids", "attention_mask", *PICTURE_INPUTS))
            raise OptionError(f"{name} is not an input of this model; its tensors are {known}.")
    return read_rows(input_ids, mask, found, layout)


def refuse_foreign(name: str, value: object) -> None:
    """Refuse an argument of transformers' calls that behold does not have, unless it asks for nothing."""
    if value is not None and value is not False and value != []:
        raise OptionError(f"{name}={type(value).__name__} is not supported; leave it out.")


def _split(arguments: Mapping[str, object]) -> tuple[dict[str, object], dict[str, Tensor | None]]:
    """(options of GenerationConfig, tensors); what is neither is refused, with the nearest known name."""
    options: dict[str, object] = {}
    tensors: dict[str, Tensor | None] = {}
    for name, value in arguments.items():
        if name in FOREIGN:
            refuse_foreign(name, value)
        elif name in ("tokenizer", "trust_remote_code"):
            # transformers needs the tokenizer for stop_strings; here it came with the checkpoint.
            continue
        elif is_option(name):
            options[name] = value
        elif value is None or isinstance(value, Tensor):
            tensors[name] = value
        else:
            check_unsupported({name: value})
    return options, tensors


def _one_of(by_position: Tensor | None, by_name: Tensor | None) -> Tensor:
    if by_position is not None and by_name is not None:
        raise OptionError("inputs and input_ids are both given; they are the same thing, give one.")
    ids = by_position if by_name is None else by_name
    if ids is None:
        raise OptionError("input_ids is missing; call with the processor's output: **processor(...).")
    if not isinstance(ids, Tensor):
        raise OptionError(f"inputs={type(ids).__name__} is not a tensor of ids; call with **processor(...).")
    return ids
