"""One request as the scheduler sees it: ids, how many of them are in the cache, and which rows it holds. No torch."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol

import numpy as np

from behold.engine.lookup import Lookup
from behold.engine.prefix import symbols
from behold.types import Prompt, SamplingParams

if TYPE_CHECKING:
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
class Scoring:
    """How likely each of several texts is after a prompt: they are read side by side, none seeing another.

    continuations: their ids. logprobs: what is known of them so far, one natural logarithm an id.
    """

    continuations: tuple[tuple[int, ...], ...]
    logprobs: list[list[float]] = field(default_factory=list)

    @property
    def branches(self) -> tuple[tuple[int, ...], ...]:
        """What has to be read to know the rest: each text but its last id."""
        return tuple(ids[:-1] for ids in self.continuations if len(ids) > 1)

    @property
    def n_tokens(self) -> int:
        return sum(map(len, self.branches))


@dataclass(slots=True, eq=False)
class Sequence:
    """The token sequence of one request.

    ids: prompt and answer so far; the newest one is not in the cache yet.
    computed: how many of `ids` the cache holds. A cached prefix starts it above 0.
    limit: new tokens at most: max_new_tokens, or fewer where the model's context ends.
    cached: how many prompt tokens came from another's row.
    began: a number above the keys of all requests that had come when its answer began; 0 before that.
    slots: the cache rows it holds, one a beam; the first is filled by the prefill.
    eos: the ids that end it.
    beams: the beam search, if it is one; its answers then grow there and `ids` stays the prompt.
    guide: what keeps the answer to a schema, if anything does.
    scoring: the texts to rate, if that is what is wanted instead of an answer.
    lookup: where guesses about the answer come from, if any are made.
    symbols: (T,) the prompt as other prompts are compared with it.
    """

    key: int
    prompt: Prompt
    params: SamplingParams
    limit: int
    eos: frozenset[int] = frozenset()
    seed: int = 0
    ids: list[int] = field(default_factory=list)
    computed: int = 0
    cached: int = 0
    began: int = 0
    slots: tuple[int, ...] = ()
    beams: BeamSearch | None = None
    guide: Guide | None = None
    scoring: Scoring | None = None
    lookup: Lookup | None = None
    symbols: np.ndarray = field(init=False)

    def __post_init__(self) -> None:
        self.ids = [*self.prompt.ids, *self.ids]
        self.symbols = symbols(self.prompt)

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
        if self.scoring is not None:
            return self.n_prompt + self.scoring.n_tokens
        return self.n_prompt + self.limit - 1

    @property
    def answering(self) -> bool:
        """Whether all is read, and one token a step is added."""
        return self.decodes_beams or (self.began > 0 and self.computed == len(self.ids) - 1)

    @property
    def branching(self) -> bool:
        """Whether the prompt is read, and the texts to rate are next."""
        return self.scoring is not None and self.computed == self.n_prompt

    def pending_from(self, start: int) -> int:
        """Tokens of one row that wait to be run, places before `start` being filled."""
        if self.branching:
            assert self.scoring is not None
            return self.scoring.n_tokens
        return 1 if self.decodes_beams else len(self.ids) - start

    @property
    def decodes_beams(self) -> bool:
        return self.beams is not None and self.beams.started


@dataclass(frozen=True, slots=True)
class Chunk:
    """What one sequence does in one step: run `length` tokens (of each row) from place `start` on.

    source: the row that places `sequence.computed` to `start` are copied from before.
    guesses: ids that may come after the newest one, run beside it and counted in `length`.
    """

    sequence: Sequence
    start: int
    length: int
    source: int | None = None
    guesses: tuple[int, ...] = ()

    @property
    def stop(self) -> int:
        return self.start + self.length

    @property
    def samples(self) -> bool:
        """Whether logits are wanted: the chunk reaches the newest token, so that the next one is chosen from it."""
        return self.sequence.decodes_beams or self.stop >= len(self.sequence.ids)

    @property
    def branches(self) -> tuple[tuple[int, ...], ...]:
        """The texts that are read side by side, where that is what the chunk does."""
        return self.sequence.scoring.branches if self.sequence.scoring and self.sequence.branching else ()

    @property
    def n_logits(self) -> int:
        """Rows whose logits are wanted: none, the last, or all."""
        if not self.samples:
            return 0
        return self.n_rows if self.branches or self.guesses or self.sequence.decodes_beams else 1

    @property
    def n_rows(self) -> int:
        """Rows of the step's batch that it fills."""
        return self.length * (len(self.sequence.slots) if self.sequence.decodes_beams else 1)
