"""One request as the scheduler sees it: ids, how many of them are in the cache, and which rows it holds. No torch."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol

from behold.types import Prompt, SamplingParams

if TYPE_CHECKING:
    import numpy as np

    from behold.engine.beams import BeamSearch


class Guide(Protocol):
    """Keeps one answer to a constraint. Asking changes nothing, so that a step can be run again; `accept` moves on."""

    def allowed(self) -> np.ndarray:
        """(V,) booleans: the ids that may come next, those that end the answer among them where it may end."""

    def accept(self, token: int) -> None:
        """This id came next.

        Raises:
            StructuredOutputError: it may not come here (sampler.NO_TOKEN: none may).
        """

    @property
    def may_end(self) -> bool:
        """Whether the answer so far keeps to the constraint as a whole."""

    @property
    def over(self) -> bool:
        """Whether nothing may follow but the end."""


@dataclass(slots=True, eq=False)
class Sequence:
    """The token sequence of one request.

    ids: prompt and answer so far; the newest one is not in the cache yet.
    computed: how many of `ids` the cache holds. A cached prefix starts it above 0; a preempted sequence starts again at
        0 and reads its own answer like a prompt.
    limit: new tokens at most: max_new_tokens, or fewer where the model's context ends.
    slots: the cache rows it holds, one a beam; the first is filled by the prefill.
    eos: the ids that end it.
    beams: the beam search, if it is one; its answers then grow there and `ids` stays the prompt.
    guide: what keeps the answer to a schema, if anything does.
    """

    key: int
    prompt: Prompt
    params: SamplingParams
    limit: int
    eos: frozenset[int] = frozenset()
    seed: int = 0
    ids: list[int] = field(default_factory=list)
    computed: int = 0
    slots: tuple[int, ...] = ()
    beams: BeamSearch | None = None
    guide: Guide | None = None

    def __post_init__(self) -> None:
        self.ids = [*self.prompt.ids, *self.ids]

    @property
    def n_prompt(self) -> int:
        return len(self.prompt.ids)

    @property
    def n_new(self) -> int:
        return len(self.ids) - self.n_prompt

    @property
    def rows(self) -> int:
        """Cache rows it needs."""
        return self.params.num_beams

    @property
    def reserve(self) -> int:
        """Cache places a row can come to need. The last token is never fed back, so it needs none."""
        return self.n_prompt + self.limit - 1

    @property
    def pending(self) -> int:
        """Tokens of one row that wait to be run: many before and during prefill, one while decoding."""
        return 1 if self.decodes_beams else len(self.ids) - self.computed

    @property
    def decodes_beams(self) -> bool:
        return self.beams is not None and self.beams.started


@dataclass(frozen=True, slots=True)
class Chunk:
    """What one sequence does in one step: run `length` tokens (of each row) from place `start` on."""

    sequence: Sequence
    start: int
    length: int

    @property
    def stop(self) -> int:
        return self.start + self.length

    @property
    def samples(self) -> bool:
        """Whether the chunk reaches the newest token, so that the next one is chosen from it."""
        return self.sequence.decodes_beams or self.stop == len(self.sequence.ids)

    @property
    def n_rows(self) -> int:
        """Rows of the step's batch that it fills."""
        return self.length * (len(self.sequence.slots) if self.sequence.decodes_beams else 1)
