"""From chunks to the rows of one step: who fills which, at which positions, and where pictures go."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from behold.engine.sequence import Chunk
from behold.nn.attention import AttentionPlan


@dataclass(frozen=True, slots=True, eq=False)
class StepBatch:
    """The N rows of one step: plain integers, as many steps are replayed without new tensors (engine/replay.py).

    ids, positions: N of them. image_rows (M, D) replace the embeddings of the rows `at` (M,); None without pictures.
    sample_rows: the R rows whose logits are wanted, in the order of the chunks that sample; None if that is all N.
        Chunks of texts to rate and of guesses want all of theirs.
    """

    ids: list[int]
    positions: list[int]
    plan: AttentionPlan
    image_rows: Tensor | None
    at: Tensor | None
    sample_rows: list[int] | None
    n_samples: int


def build(
    chunks: Sequence[Chunk], positions: Sequence[int], image: Callable[[str], Tensor], device: torch.device
) -> StepBatch:
    """Pack chunks into rows without padding.

    positions: the position of each place of a sequence. image: digest → (n_tokens, D) embeddings.
    """
    ids: list[int] = []
    lengths: list[int] = []
    contexts: list[int] = []
    slots: list[int] = []
    spans: list[tuple[tuple[int, int], ...]] = []
    branches: list[tuple[int, ...]] = []
    prompts: list[bool] = []
    samples: list[int] = []
    for chunk in chunks:
        both_ways, own_branches = _both_ways(chunk), tuple(map(len, chunk.branches))
        for slot, new in _rows(chunk):
            ids.extend(new)
            lengths.append(len(new))
            contexts.append(chunk.start)
            slots.append(slot)
            spans.append(both_ways)
            branches.append(own_branches)
            prompts.append(chunk.start < chunk.sequence.n_prompt)
        samples.extend(range(len(ids) - chunk.n_logits, len(ids)))
    image_rows, at = _pictures(chunks, image, device)
    plan = AttentionPlan(
        tuple(lengths),
        tuple(contexts),
        tuple(slots),
        tuple(spans) if any(spans) else (),
        tuple(branches) if any(branches) else (),
        tuple(prompts),
    )
    all_rows = len(samples) == len(ids)
    return StepBatch(
        ids=ids,
        positions=_positions(positions, plan),
        plan=plan,
        image_rows=image_rows,
        at=at,
        # where none is wanted the first stands in, so that no layer meets an empty input
        sample_rows=None if all_rows else samples or [0],
        n_samples=len(samples),
    )


def _rows(chunk: Chunk) -> list[tuple[int, list[int]]]:
    """(cache row, new ids) of a chunk: one, or one a beam."""
    sequence = chunk.sequence
    if sequence.beams is not None and sequence.decodes_beams:
        return [(slot, [beam.ids[-1]]) for slot, beam in zip(sequence.slots, sequence.beams.running, strict=True)]
    if chunk.branches:
        return [(sequence.slots[0], [token for branch in chunk.branches for token in branch])]
    return [(sequence.slots[0], [*sequence.ids[chunk.start : chunk.stop], *chunk.guesses])]


def _both_ways(chunk: Chunk) -> tuple[tuple[int, int], ...]:
    """Spans inside the chunk that attend both ways. Those before it are in the cache and see nothing new."""
    return tuple(
        (span.start, span.stop)
        for span in chunk.sequence.prompt.spans
        if span.bidirectional and chunk.start <= span.start and span.stop <= chunk.stop
    )


def _positions(positions: Sequence[int], plan: AttentionPlan) -> list[int]:
    """Those of the N rows."""
    found: list[int] = []
    for index, (context, whole) in enumerate(zip(plan.contexts, plan.lengths, strict=True)):
        for length in plan.branches_of(index) or (whole,):
            found.extend(positions[context : context + length])
    return found


def _pictures(
    chunks: Sequence[Chunk], image: Callable[[str], Tensor], device: torch.device
) -> tuple[Tensor | None, Tensor | None]:
    """The parts of pictures that fall into the chunks, (M, D), and the rows (M,) they go to."""
    pieces: list[Tensor] = []
    places: list[Tensor] = []
    first_row = 0
    for chunk in chunks:
        for span in chunk.sequence.prompt.spans:
            start, stop = max(span.start, chunk.start), min(span.stop, chunk.stop)
            if start < stop:
                embeddings = image(chunk.sequence.prompt.images[span.image].digest)
                pieces.append(embeddings[start - span.start : stop - span.start])
                places.append(torch.arange(start, stop, device=device) - chunk.start + first_row)
        first_row += chunk.n_rows
    if not pieces:
        return None, None
    return torch.cat(pieces), torch.cat(places)
