"""An answer while it is being written: text pieces now, the whole `Answer` afterwards."""

from __future__ import annotations

import time
from collections.abc import Callable, Generator, Iterator
from types import TracebackType

from behold.types import Answer, Completion, Delta, FinishReason, Prompt, Timings, TokenLogprob, Usage


class AnswerStream(Iterator[str]):
    """Pieces of one answer, in order; together they are its text.

    Closing it (`close()`, leaving a `with` block, or dropping it) stops the work within one step. `answer` is what
    there is: complete after the last piece, and with `finish_reason="cancelled"` after closing early.
    """

    def __init__(
        self,
        deltas: Iterator[Delta],
        prompt: Prompt,
        on_end: Callable[[Answer], None] | None = None,
        *,
        read: Callable[[Answer], Answer] | None = None,
    ) -> None:
        """`on_end` gets the answer when it is complete or closed early, but not if it fails.

        read: for an answer under a constraint; what makes values of a complete answer, or raises if it is no such.
        """
        # The generator holds the record, not this object: without a reference cycle, dropping the stream closes it.
        self._record = _Record(prompt, read)
        self._pieces = _pieces(deltas, self._record, on_end)

    def __iter__(self) -> AnswerStream:
        return self

    def __next__(self) -> str:
        return next(self._pieces)

    def close(self) -> None:
        """Stop the work. Harmless when the answer is complete."""
        self._pieces.close()
        self._record.ended = True

    @property
    def done(self) -> bool:
        """True when no further piece will come."""
        return self._record.ended

    @property
    def answer(self) -> Answer:
        """The answer so far: the text of the pieces that have come."""
        return self._record.answer()

    def __enter__(self) -> AnswerStream:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()


class _Record:
    """What has come of one answer."""

    def __init__(self, prompt: Prompt, read: Callable[[Answer], Answer] | None) -> None:
        self.ended = False
        self._prompt = prompt
        self._reader = read
        self._read: Answer | None = None
        self._started_s = time.perf_counter()
        self._first_token_s = 0.0
        self._text: list[str] = []
        self._ids: list[int] = []
        self._logprobs: list[TokenLogprob] = []
        self._last = Delta()

    def add(self, delta: Delta) -> None:
        if not self._ids:
            self._first_token_s = time.perf_counter() - self._started_s
        self._text.append(delta.text)
        self._ids.extend(delta.ids)
        self._logprobs.extend(delta.logprobs)
        self._last = delta

    def read(self) -> None:
        """The answer is complete: make values of it.

        Raises:
            StructuredOutputError: it is not what was asked for.
        """
        if self._reader is not None:
            self._read = self._reader(self.answer())

    def answer(self) -> Answer:
        if self._read is not None:
            return self._read
        reason: FinishReason = self._last.finish_reason or "cancelled"
        completion = Completion(
            ids=tuple(self._ids),
            text="".join(self._text),
            finish_reason=reason,
            usage=self._last.usage or Usage(len(self._prompt.ids), len(self._ids), self._prompt.image_tokens),
            timings=self._last.timings or self._timings_so_far(),
            logprobs=tuple(self._logprobs),
            ended_by=self._last.ended_by or "cancelled",
            satisfied=self._last.satisfied if self._last.finish_reason else self._reader is None,
        )
        return Answer.of(completion)

    def _timings_so_far(self) -> Timings:
        return Timings(first_token_s=self._first_token_s, total_s=time.perf_counter() - self._started_s)


def _pieces(
    deltas: Iterator[Delta], record: _Record, on_end: Callable[[Answer], None] | None
) -> Generator[str, None, None]:
    try:
        for delta in deltas:
            record.add(delta)
            if delta.text:
                yield delta.text
        record.read()
    except Exception:
        # A failed answer is no answer: whoever keeps a history must not keep half of it.
        on_end = None
        raise
    finally:
        record.ended = True
        if isinstance(deltas, Generator):
            deltas.close()
        if on_end is not None:
            on_end(record.answer())
