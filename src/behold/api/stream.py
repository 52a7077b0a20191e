"""An answer while it is being written: text pieces now, the whole `Answer` afterwards."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Generator, Iterator
from types import TracebackType
from typing import TYPE_CHECKING

from behold.types import Answer, Completion, Delta, FinishReason, Timings, TokenLogprob, Usage

if TYPE_CHECKING:
    from behold.engine.engine import Engine
    from behold.engine.request import Request
    from behold.types import Prompt, SamplingParams


class AnswerStream(Iterator[str]):
    """Pieces of one answer, in order; together they are its text.

    Closing it (`close()`, leaving a `with` block, or dropping it) stops the work within one step. `answer` is what
    there is: complete after the last piece, and with `finish_reason="cancelled"` after closing early.
    """

    def __init__(
        self, engine: Engine, prompt: Prompt, params: SamplingParams, on_end: Callable[[Answer], None] | None = None
    ) -> None:
        """Submits the request; `on_end` gets the answer when it is complete or closed early, but not if it fails.

        Raises:
            OptionError: an option is out of range or clashes with another.
            CapacityError: the request can never fit.
        """
        request = engine.submit(prompt, params)
        # A generator that was never asked for anything does nothing when it is closed, so the request needs this too.
        self._cancel = weakref.finalize(self, engine.cancel, request)
        # The generator holds the record, not this object: without a reference cycle, dropping the stream closes it.
        self._record = _Record(request)
        self._pieces = _pieces(engine.deltas(request), self._record, on_end)

    def __iter__(self) -> AnswerStream:
        return self

    def __next__(self) -> str:
        return next(self._pieces)

    def close(self) -> None:
        """Stop the work. Harmless when the answer is complete."""
        self._pieces.close()
        self._cancel()

    @property
    def done(self) -> bool:
        """True when no further piece will come."""
        return self._pieces.gi_frame is None

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

    def __init__(self, request: Request) -> None:
        self._request = request
        self._text: list[str] = []
        self._ids: list[int] = []
        self._logprobs: list[TokenLogprob] = []
        self._finish_reason: FinishReason = "cancelled"

    def add(self, delta: Delta) -> None:
        self._text.append(delta.text)
        self._ids.extend(delta.ids)
        self._logprobs.extend(delta.logprobs)
        self._finish_reason = delta.finish_reason or self._finish_reason

    def answer(self) -> Answer:
        prompt = self._request.sequence.prompt
        ended = self._request.completions
        completion = Completion(
            ids=tuple(self._ids),
            text="".join(self._text),
            finish_reason=self._finish_reason,
            usage=ended[0].usage if ended else Usage(len(prompt.ids), len(self._ids), prompt.image_tokens),
            timings=ended[0].timings if ended else Timings(),
            logprobs=tuple(self._logprobs),
        )
        return Answer.of(completion)


def _pieces(
    deltas: Iterator[Delta], record: _Record, on_end: Callable[[Answer], None] | None
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
        if isinstance(deltas, Generator):
            deltas.close()
        if on_end is not None:
            on_end(record.answer())
