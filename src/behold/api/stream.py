"""An answer while it is being written: text pieces now, the whole `Answer` afterwards."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator
from types import TracebackType

from behold.types import Answer, Completion, Delta, FinishReason, Prompt, Timings, TokenLogprob, Usage


class AnswerStream(Iterator[str]):
    """Pieces of one answer, in order; together they are its text.

    Closing it (`close()`, leaving a `with` block, or dropping it) stops the work within one step. `answer` is what
    there is: complete after the last piece, and with `finish_reason="cancelled"` after closing early.
    """

    def __init__(
        self, deltas: Generator[Delta, None, None], prompt: Prompt, on_end: Callable[[Answer], None] | None = None
    ) -> None:
        # The generator holds the record, not this object: without a reference cycle, dropping the stream closes it.
        self._record = _Record(prompt)
        self._pieces = _pieces(deltas, self._record, on_end)

    def __iter__(self) -> AnswerStream:
        return self

    def __next__(self) -> str:
        return next(self._pieces)

    def close(self) -> None:
        """Stop the work. Harmless when the answer is complete."""
        self._pieces.close()

    @property
    def done(self) -> bool:
        """True when no further piece will come."""
        return self._pieces.gi_frame is None

    @property
    def answer(self) -> Answer:
        """The answer so far."""
        return self._record.answer()

    def __enter__(self) -> AnswerStream:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()


class _Record:
    """What has come of one answer."""

    def __init__(self, prompt: Prompt) -> None:
        self._prompt = prompt
        self._text: list[str] = []
        self._ids: list[int] = []
        self._logprobs: list[TokenLogprob] = []
        self._finish_reason: FinishReason = "cancelled"
        self._usage: Usage | None = None
        self._timings: Timings | None = None

    def add(self, delta: Delta) -> None:
        self._text.append(delta.text)
        self._ids.extend(delta.ids)
        self._logprobs.extend(delta.logprobs)
        self._finish_reason = delta.finish_reason or self._finish_reason
        self._usage = delta.usage or self._usage
        self._timings = delta.timings or self._timings

    def answer(self) -> Answer:
        counted = Usage(len(self._prompt.ids), len(self._ids), self._prompt.image_tokens)
        completion = Completion(
            ids=tuple(self._ids),
            text="".join(self._text),
            finish_reason=self._finish_reason,
            usage=self._usage or counted,
            timings=self._timings or Timings(),
            logprobs=tuple(self._logprobs),
        )
        return Answer.of(completion)


def _pieces(
    deltas: Generator[Delta, None, None], record: _Record, on_end: Callable[[Answer], None] | None
) -> Generator[str, None, None]:
    try:
        for delta in deltas:
            record.add(delta)
            if delta.text:
                yield delta.text
    except Exception:
        # A failed answer is no answer: whoever keeps a history must not keep half of it.
        on_end = None
        raise
    finally:
        deltas.close()
        if on_end is not None:
            on_end(record.answer())
