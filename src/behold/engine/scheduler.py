"""Who runs in the next step, how many tokens of it, and whose pictures are looked at. Plain objects, no torch.

Waiting requests are let in in the order they came, as long as rows and memory last; one that does not fit yet holds
back those behind it, so nobody starves. An answer that runs yields to prompts that came before it began, which are
read at full speed; prompts that came later are read in portions beside it (engine/pace.py).
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Protocol

from behold.engine import prefix
from behold.engine.blocks import RowTable
from behold.engine.pace import Pace
from behold.engine.prefix import Match, Source
from behold.engine.sequence import Chunk, Sequence
from behold.types import ImageInput

PICTURES_S = 0.5  # seconds on pictures between two looks at the queue, when no answer has to be kept going
STILL_THERE_S = 8.0  # an answer that yields gets a token at least so often


class Pictures(Protocol):
    """What the scheduler knows of image embeddings."""

    def hold(self, sequence: Sequence, digest: str) -> None:
        """The sequence will need it: once there, it stays until the sequence is past it or over."""

    def ready(self, digest: str) -> bool:
        """Whether its embeddings are there."""


@dataclass(frozen=True, slots=True)
class Step:
    """chunks: tokens to run, answers first. pictures: what to encode, for about `pictures_s` seconds, the most urgent
    first; `looking` are the sequences that wait for them.
    """

    chunks: tuple[Chunk, ...]
    pictures: tuple[ImageInput, ...] = ()
    pictures_s: float = 0.0
    looking: tuple[Sequence, ...] = ()


class Scheduler:
    """Holds the waiting and the running sequences.

    max_step_tokens: prompt tokens of one step at most, beside one token for each running answer. A span that attends
    both ways and is longer than that still runs, alone and whole.
    max_image_tokens: places of pictures, of all running prompts that are not read yet, at most; a larger prompt runs
    without another such.
    lookup_rows: rows of a step that answers and their guesses may fill together.
    """

    def __init__(
        self,
        table: RowTable,
        pictures: Pictures,
        *,
        max_step_tokens: int,
        max_image_tokens: int,
        lookup_rows: int = 0,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        self.table = table
        self.max_step_tokens = max_step_tokens
        self.max_image_tokens = max_image_tokens
        self.lookup_rows = lookup_rows
        self.waiting: deque[Sequence] = deque()
        self.running: list[Sequence] = []
        self.pace = Pace()
        self._pictures = pictures
        self._clock = clock
        self._last_answers = 0.0  # when answers last had a step
        self._read_last = False  # whether the last step read tokens, where pictures waited too

    @property
    def has_work(self) -> bool:
        return bool(self.waiting or self.running)

    def add(self, sequence: Sequence) -> None:
        self.waiting.append(sequence)

    def schedule(self) -> Step:
        """The next step. Lets waiting sequences in and remembers whose turn it was, but moves no sequence on."""
        self._admit()
        answers = self._answers()
        prompts = [sequence for sequence in self.running if not sequence.answering]
        matches = {sequence.key: self.match(sequence) for sequence in prompts if not sequence.computed}
        yielding = _yielding(prompts, answers)
        budget = self.pace.portion(self.max_step_tokens) if yielding else self.max_step_tokens
        reading = self._reading(prompts, matches, budget)
        looking, pictures = self._looking(prompts, matches)
        if reading and pictures:
            # The oldest goes first. Where it waits for pictures, others' tokens and its pictures take turns.
            self._read_last = not self._read_last or reading[0].sequence is prompts[0]
            reading, pictures = (reading, ()) if self._read_last else ([], pictures)
        now = self._clock()
        if answers and pictures and not yielding and now < self._last_answers + STILL_THERE_S:
            answers = []
        if answers:
            self._last_answers = now
        seconds = self.pace.pictures_s if yielding else PICTURES_S
        return Step((*answers, *reading), pictures, seconds, looking if pictures else ())

    def finish(self, sequence: Sequence, *, keep: bool) -> None:
        """Forget a sequence, waiting or running. `keep`: its row stays for those that begin alike."""
        if sequence in self.running:
            self.running.remove(sequence)
            if keep and sequence.beams is None:
                held = prefix.extended(sequence.symbols, sequence.ids[sequence.n_prompt :], sequence.computed)
                self.table.keep(sequence.slots[0], held)
            else:
                self.table.give_back(sequence.slots)
            sequence.slots = ()
        elif sequence in self.waiting:
            self.waiting.remove(sequence)

    def match(self, sequence: Sequence) -> Match:
        """What of the prompt is there to begin from, kept or in a running row."""
        if not self.table.keep_tokens:
            return Match()
        kept = (Source(row, held.symbols, len(held.symbols)) for row, held in self.table.kept.items())
        running = (
            Source(other.slots[0], other.symbols, min(other.computed, other.n_prompt))
            for other in self.running
            if other is not sequence and other.slots and other.key < sequence.key and not other.decodes_beams
        )
        return prefix.best(sequence.symbols, (*kept, *running), sequence.prompt.spans)

    def check(self) -> None:
        """Our own bookkeeping: the rows in use are exactly those of the running sequences."""
        self.table.check()
        held = [slot for sequence in self.running for slot in sequence.slots]
        assert len(held) == len(set(held)) == self.table.n_used, (held, self.table.n_used)

    def _admit(self) -> None:
        """Give rows to waiting sequences, in order."""
        unread = sum(_image_tokens_ahead(sequence) for sequence in self.running)
        while self.waiting:
            sequence = self.waiting[0]
            unread += sequence.prompt.image_tokens
            crowded = unread > self.max_image_tokens and unread > sequence.prompt.image_tokens
            if crowded or not self.table.fits(sequence.rows, sequence.reserve):
                return
            self.waiting.popleft()
            self._give_rows(sequence)
            self.running.append(sequence)

    def _give_rows(self, sequence: Sequence) -> None:
        """A kept row is taken over where the rest of what it holds is worth less than what it spares."""
        match = self.match(sequence)
        kept = self.table.kept.get(match.row) if match.row is not None else None
        if kept is not None and match.row is not None and sequence.rows == 1 and not match.worth_waiting:
            self.table.touch(match.row)
            if len(kept.symbols) - match.length <= match.length:
                self.table.take_over(match.row, sequence.reserve)
                sequence.slots = (match.row,)
                sequence.computed = sequence.cached = match.length
                return
        sequence.slots = self.table.take(sequence.rows, sequence.reserve)

    def _answers(self) -> list[Chunk]:
        """The newest token of every answer, with guesses behind it as far as there are rows for them."""
        answering = [sequence for sequence in self.running if sequence.answering]
        each = self.lookup_rows // len(answering) - 1 if answering else 0
        chunks = []
        for sequence in answering:
            most = min(each, sequence.limit - sequence.n_new - 1)
            guesses = sequence.lookup.guess(sequence.ids, most) if sequence.lookup and most > 0 else ()
            chunks.append(Chunk(sequence, sequence.computed, 1 + len(guesses), guesses=guesses))
        return chunks

    def _reading(self, prompts: list[Sequence], matches: Mapping[int, Match], budget: int) -> list[Chunk]:
        """Chunks of prompts whose pictures are ready, oldest first, within the budget."""
        chunks: list[Chunk] = []
        for sequence in prompts:
            start, source = sequence.computed, None
            if start == 0:
                match = matches[sequence.key]
                if match.worth_waiting:
                    continue
                start, source = match.length, match.row
            if self._missing(sequence, start):
                continue
            length = chunk_length(sequence, start, budget, must_progress=not chunks)
            if length == 0:
                break
            if source is not None:
                self.table.touch(source)
            chunks.append(Chunk(sequence, start, length, source))
            budget -= length
            if budget <= 0:
                break
        return chunks

    def _looking(
        self, prompts: list[Sequence], matches: Mapping[int, Match]
    ) -> tuple[tuple[Sequence, ...], tuple[ImageInput, ...]]:
        """The sequences that wait for pictures, oldest first, and those pictures, each once."""
        looking: list[Sequence] = []
        pictures: dict[str, ImageInput] = {}
        for sequence in prompts:
            if not sequence.prompt.images:
                continue
            missing = self._missing(sequence, sequence.computed or matches[sequence.key].coming)
            if missing:
                looking.append(sequence)
                pictures.update({picture.digest: picture for picture in missing})
        return tuple(looking), tuple(pictures.values())

    def _missing(self, sequence: Sequence, start: int) -> list[ImageInput]:
        """Pictures that the prompt needs from place `start` on and that are not encoded; all it needs are held."""
        prompt = sequence.prompt
        needed = [prompt.images[span.image] for span in prompt.spans if span.stop > start]
        for picture in needed:
            self._pictures.hold(sequence, picture.digest)
        return [picture for picture in needed if not self._pictures.ready(picture.digest)]


def chunk_length(sequence: Sequence, start: int, budget: int, *, must_progress: bool) -> int:
    """How many tokens to run from place `start` within `budget` without cutting a span that attends both ways.

    Where even the first piece is longer than the budget: 0, or the whole span if `must_progress`.
    """
    pending = sequence.pending_from(start)
    if sequence.branching:
        return pending if pending <= budget or must_progress else 0
    stop = start + min(budget, pending)
    cut = next((s for s in _whole_spans(sequence) if s[0] < stop < s[1]), None)
    if cut is None:
        return stop - start
    if cut[0] > start:
        return cut[0] - start
    return cut[1] - start if must_progress else 0


def _whole_spans(sequence: Sequence) -> Iterable[tuple[int, int]]:
    return ((span.start, span.stop) for span in sequence.prompt.spans if span.bidirectional)


def _yielding(prompts: list[Sequence], answers: list[Chunk]) -> bool:
    """Whether an answer runs that began before the oldest unread prompt came."""
    if not prompts or not answers:
        return False
    return min(chunk.sequence.began for chunk in answers) <= prompts[0].key


def _image_tokens_ahead(sequence: Sequence) -> int:
    return sum(span.length for span in sequence.prompt.spans if span.stop > sequence.computed)
