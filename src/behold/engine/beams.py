"""Beam search: what its beams are, which of them go on, and when it is over.

Semantics as in transformers 5.23 (`generation/utils.py`): every step the best continuations over all beams are taken,
(ends + 1) × beams of them, so that enough remain when some end; ended ones are scored by log probability / length **
length_penalty, length counting new tokens. The state is free of tensors; only `candidates` computes with them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from behold.types import SamplingParams

if TYPE_CHECKING:
    from torch import Tensor

LOST = -1.0e9  # the score of a beam that is no beam; finite, as in transformers, so that order among such stays defined


@dataclass(frozen=True, slots=True)
class Beam:
    """One line of new ids and its score: log probability so far, or the final score once ended."""

    ids: tuple[int, ...] = ()
    score: float = 0.0


@dataclass(frozen=True, slots=True)
class Candidate:
    """A continuation: which running beam, with which id, and the log probability of both together."""

    parent: int
    id: int
    score: float


@dataclass(slots=True)
class BeamSearch:
    """The state of one search. `hits` says whether new ids end a line (end of sequence, stop string)."""

    params: SamplingParams
    limit: int
    n_ends: int
    hits: Callable[[tuple[int, ...]], bool]
    running: list[Beam] = field(default_factory=lambda: [Beam()])
    ended: list[Beam] = field(default_factory=list)
    started: bool = False
    done: bool = False

    @property
    def width(self) -> int:
        return self.params.num_beams

    @property
    def n_candidates(self) -> int:
        return max(2, 1 + self.n_ends) * self.width

    @property
    def n_new(self) -> int:
        return len(self.running[0].ids)

    def advance(self, candidates: list[Candidate]) -> list[int]:
        """Take the best candidates, best first; returns for each new running beam which old one it continues."""
        length = self.n_new + 1
        lines = [(*self.running[c.parent].ids, c.id) for c in candidates]
        ends = [length >= self.limit or self.hits(line) for line in lines]
        self._collect(candidates, lines, ends, length)
        order = sorted(range(len(lines)), key=lambda i: candidates[i].score + (LOST if ends[i] else 0.0), reverse=True)
        best = order[: self.width]
        self.running = [Beam(lines[i], candidates[i].score + (LOST if ends[i] else 0.0)) for i in best]
        self.started = True
        self._judge(length, all_end=all(ends))
        return [candidates[i].parent for i in best]

    def answers(self) -> list[Beam]:
        """The best lines, best first, num_return_sequences of them."""
        lines = self.ended + self.running[: max(0, self.params.num_return_sequences - len(self.ended))]
        return lines[: self.params.num_return_sequences]

    def _collect(
        self, candidates: list[Candidate], lines: list[tuple[int, ...]], ends: list[bool], length: int
    ) -> None:
        """Only ends among the first `width` candidates count; the others are there to keep enough beams running."""
        divisor = length**self.params.length_penalty
        new = [Beam(lines[i], candidates[i].score / divisor) for i in range(min(self.width, len(lines))) if ends[i]]
        self.ended = sorted(self.ended + new, key=lambda beam: beam.score, reverse=True)[: self.width]

    def _judge(self, length: int, *, all_end: bool) -> None:
        """Can a running beam still beat the worst ended one, by the estimate that `early_stopping` chooses?"""
        full = len(self.ended) == self.width
        penalty = self.params.length_penalty
        hoped = self.limit if self.params.early_stopping == "never" and penalty > 0.0 else length
        best_possible = self.running[0].score / hoped**penalty
        hopeless = full and best_possible <= self.ended[-1].score
        self.done = hopeless or all_end or (full and self.params.early_stopping is True)


def candidates(logits: Tensor, search: BeamSearch, process: Callable[[Tensor, Beam], Tensor]) -> list[Candidate]:
    """The best continuations of the running beams, best first.

    logits: (beams, V). process: (scores (V,), beam) → scores (V,), the sampler's chain.
    """
    scores = logits.float().log_softmax(-1)
    for row, beam in enumerate(search.running):
        scores[row] = process(scores[row], beam) + beam.score
    vocabulary = scores.shape[1]
    values, places = scores.flatten().topk(min(search.n_candidates, scores.numel()))
    return [
        Candidate(place // vocabulary, place % vocabulary, score)
        for place, score in zip(places.tolist(), values.tolist(), strict=True)
    ]
