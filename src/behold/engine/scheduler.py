"""Who runs in the next step, and how many tokens of it. Plain objects and integers, no torch.

Order of service: every running answer gets its next token first, then prompts that have begun, then waiting ones as
long as rows, cache memory and the step's token budget last. Waiting requests are taken in the order they came; one that
does not fit yet holds back those behind it, so nobody starves.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable

from behold.engine.blocks import RowTable
from behold.engine.sequence import Chunk, Sequence


class Scheduler:
    """Holds the waiting and the running sequences.

    max_step_tokens: prompt tokens of one step at most, beside one token for each running answer. A span that attends
    both ways and is longer than that still runs, alone and whole.
    """

    def __init__(self, table: RowTable, *, max_step_tokens: int) -> None:
        self.table = table
        self.max_step_tokens = max_step_tokens
        self.waiting: deque[Sequence] = deque()
        self.running: list[Sequence] = []

    @property
    def has_work(self) -> bool:
        return bool(self.waiting or self.running)

    def add(self, sequence: Sequence) -> None:
        self.waiting.append(sequence)

    def schedule(self) -> list[Chunk]:
        """The next step's chunks, decoding ones first, in the order of their rows. Moves no sequence on."""
        self._admit()
        decoding = [sequence for sequence in self.running if sequence.pending == 1]
        decoding.sort(key=lambda sequence: sequence.slots)  # neighbours in the cache are neighbours in the batch
        chunks = [Chunk(sequence, sequence.computed, 1) for sequence in decoding]
        return chunks + self._prefills()

    def finish(self, sequence: Sequence) -> None:
        """Forget a sequence, waiting or running, and free its rows."""
        if sequence in self.running:
            self.running.remove(sequence)
            self.table.give_back(sequence.slots)
            sequence.slots = ()
        elif sequence in self.waiting:
            self.waiting.remove(sequence)

    def check(self) -> None:
        """Our own bookkeeping: the rows in use are exactly those of the running sequences."""
        self.table.check()
        held = [slot for sequence in self.running for slot in sequence.slots]
        assert len(held) == len(set(held)) == self.table.n_used, (held, self.table.n_used)

    def _admit(self) -> None:
        """Give rows to waiting sequences, in order, while this step still has prompt tokens to spend on them."""
        budget = self.max_step_tokens - sum(s.pending for s in self.running if s.pending > 1)
        while self.waiting and budget > 0:
            sequence = self.waiting[0]
            if not self.table.fits(sequence.rows, sequence.reserve):
                return
            self.waiting.popleft()
            sequence.slots = self.table.take(sequence.rows, sequence.reserve)
            self.running.append(sequence)
            budget -= sequence.pending

    def _prefills(self) -> list[Chunk]:
        """Chunks of prompts, oldest first, within the budget."""
        chunks: list[Chunk] = []
        budget = self.max_step_tokens
        for sequence in self.running:
            if sequence.pending == 1:
                continue
            length = chunk_length(sequence, budget, must_progress=not chunks)
            if length == 0:
                break
            chunks.append(Chunk(sequence, sequence.computed, length))
            budget -= length
            if budget <= 0:
                break
        return chunks


def chunk_length(sequence: Sequence, budget: int, *, must_progress: bool) -> int:
    """How many pending tokens to run within `budget` without cutting a span that attends both ways.

    Where even the first piece is longer than the budget: 0, or the whole span if `must_progress`.
    """
    start = sequence.computed
    stop = min(start + budget, len(sequence.ids))
    cut = next((s for s in _whole_spans(sequence) if s[0] < stop < s[1]), None)
    if cut is None:
        return stop - start
    if cut[0] > start:
        return cut[0] - start
    return cut[1] - start if must_progress else 0


def _whole_spans(sequence: Sequence) -> Iterable[tuple[int, int]]:
    return ((span.start, span.stop) for span in sequence.prompt.spans if span.bidirectional)
