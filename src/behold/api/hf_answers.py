"""From the engine's completions to what `generate` returns, and into a streamer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from behold.api.hf_inputs import Row
from behold.api.streamers import Streamer
from behold.errors import OptionError
from behold.types import SamplingParams

if TYPE_CHECKING:
    from behold.engine.engine import Engine


@dataclass(frozen=True)
class GenerateOutput:
    """What `generate(return_dict_in_generate=True)` returns: sequences (B, T + new)."""

    sequences: Tensor

    def __getitem__(self, key: str | int) -> Tensor:
        if key in ("sequences", 0):
            return self.sequences
        raise KeyError(key)


def sequences(prompts: Tensor, answers: Sequence[Sequence[int]], pad_id: int | None) -> Tensor:
    """(B, T + new): each prompt (T,) followed by its answer's ids; shorter answers are padded on the right.

    Raises:
        OptionError: answers of different lengths and nothing to pad with.
    """
    longest = max(len(answer) for answer in answers)
    if pad_id is None and any(len(answer) < longest for answer in answers):
        raise OptionError("The answers differ in length and there is no pad token; give pad_token_id.")
    rows = [[*answer, *[pad_id or 0] * (longest - len(answer))] for answer in answers]
    new = torch.tensor(rows, dtype=prompts.dtype, device=prompts.device).reshape(len(answers), longest)
    return torch.cat([prompts, new], dim=1)


def stream_into(
    streamer: Streamer, engine: Engine, input_ids: Tensor, rows: Sequence[Row], params: SamplingParams, *, answers: int
) -> list[int]:
    """Put the prompt (1, T) and then each id (1,) as it comes; returns the answer's ids.

    A streamer with `cancelled` set (TextIteratorStreamer after `close`) ends the answer within one step, and so does
    one whose `put` raises.

    Raises:
        OptionError: more than one sequence, or beams, whose ids are not known until the end.
    """
    if len(rows) * answers > 1 or params.num_beams > 1:
        raise OptionError(
            f"streamer: one sequence can be streamed, not {len(rows) * answers} with num_beams={params.num_beams}; "
            "call generate without it, or once for each row."
        )
    ids: list[int] = []
    streamer.put(input_ids.cpu())
    deltas = engine.stream(rows[0].prompt, params)
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
