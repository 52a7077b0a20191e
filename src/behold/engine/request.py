"""The handle of one request: what its consumer takes from, and how ids become text, deltas and completions. No torch.

All methods are called under the engine's lock, except `completions` and `error`, which are read after `done`.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from behold.engine.loops import LoopDetector
from behold.engine.sequence import Sequence
from behold.engine.stops import StopStrings
from behold.types import Completion, Delta, EndedBy, FinishReason, Timings, TokenLogprob, Usage

_FINISH_REASONS: dict[EndedBy, FinishReason] = {
    "end": "stop",
    "stop_string": "stop",
    "length": "length",
    "loop": "length",  # standard words only: an answer that was cut off
    "cancelled": "cancelled",
}


class TextBuilder(Protocol):
    """What is needed of processing.detokenizer.Detokenizer."""

    def add(self, ids: list[int], /) -> str:
        """Text that is final with these further ids; never half a character."""

    def finish(self) -> str:
        """Whatever is left."""


class Transcript:
    """Ids to visible text: detokenized, and cut before a stop string."""

    def __init__(self, detokenizer: TextBuilder | None, stop: tuple[str, ...]) -> None:
        self._detokenizer = detokenizer
        self._stops = StopStrings(stop)

    @property
    def stopped(self) -> bool:
        return self._stops.hit is not None

    def add(self, token: int) -> str:
        return "" if self._detokenizer is None else self._stops.add(self._detokenizer.add([token]))

    def finish(self) -> str:
        """What was held back. The tail may still complete a stop string; then the text ends before it."""
        if self._detokenizer is None or self.stopped:
            return ""
        return self._stops.add(self._detokenizer.finish()) + self._stops.finish()


@dataclass(slots=True)
class Clock:
    """Moments in the life of a request, in seconds of time.perf_counter; 0.0 is "not yet"."""

    submitted: float
    started: float = 0.0
    first_token: float = 0.0
    vision_s: float = 0.0

    def timings(self, n_new: int) -> Timings:
        now = time.perf_counter()
        decoding = now - self.first_token if self.first_token else 0.0
        return Timings(
            queue_s=(self.started or now) - self.submitted,
            vision_s=self.vision_s,
            first_token_s=self.first_token - self.submitted if self.first_token else 0.0,
            total_s=now - self.submitted,
            decode_tokens_per_s=(n_new - 1) / decoding if n_new > 1 and decoding > 0 else 0.0,
        )


class Request:
    """One request from submission to its end. Its consumer takes deltas; `completions` hold the result when `done`.

    completions: one, or for beam search num_return_sequences, the best first.
    on_news: called whenever there is a new delta or the end, under the engine's lock, in the thread that drives.
    """

    def __init__(
        self,
        sequence: Sequence,
        new_text: Callable[[], Transcript],
        on_news: Callable[[], object] | None = None,
    ) -> None:
        self.sequence = sequence
        self.clock = Clock(time.perf_counter())
        self.completions: tuple[Completion, ...] = ()
        self.error: BaseException | None = None
        self._on_news = on_news or (lambda: None)
        self._new_text = new_text
        self._transcript = new_text()
        self._deltas: deque[Delta] = deque()
        self._text: list[str] = []
        self._logprobs: list[TokenLogprob] = []
        self._loop = LoopDetector() if sequence.params.loop_stop else None

    @property
    def done(self) -> bool:
        """No further delta will be added."""
        return bool(self.completions) or self.error is not None

    @property
    def has_news(self) -> bool:
        return bool(self._deltas) or self.done

    @property
    def ratings(self) -> list[tuple[float, ...]]:
        """What was asked for in place of an answer: a natural logarithm for each id of each text. Read it when done."""
        assert self.sequence.scoring is not None
        return [tuple(found) for found in self.sequence.scoring.logprobs]

    def take(self) -> list[Delta]:
        """The deltas since the last call."""
        deltas = list(self._deltas)
        self._deltas.clear()
        return deltas

    def add(self, token: int, logprob: TokenLogprob | None) -> EndedBy | None:
        """Publish a new token, already in `sequence.ids`; returns why the request is over, if it is."""
        self.clock.first_token = self.clock.first_token or time.perf_counter()
        ends = token in self.sequence.eos
        text = "" if ends else self._transcript.add(token)
        loops = self._loop is not None and self._loop.add(token)
        reason = self._ended_by(ends=ends, loops=loops)
        if reason is not None:
            text += self._transcript.finish()
            reason = "stop_string" if self._transcript.stopped else reason
        self._publish((token,), text, () if logprob is None else (logprob,), reason)
        return reason

    def _ended_by(self, *, ends: bool, loops: bool) -> EndedBy | None:
        """Why the newest token is the last, if it is."""
        if ends:
            return "end"
        if self._transcript.stopped:
            return "stop_string"
        if self.sequence.guide is not None and self.sequence.guide.over:
            return "end"  # an id that says so would cost one more step
        if self.sequence.n_new >= self.sequence.limit:
            return "length"
        if loops and self.sequence.n_new >= self.sequence.params.min_new_tokens:
            return "loop"
        return None

    def cancel(self) -> None:
        """End it where it is. Text that was held back is still text."""
        if not self.done:
            self._publish((), self._transcript.finish(), (), "cancelled")

    def fail(self, error: BaseException) -> None:
        if not self.done:
            self.error = error
            self._on_news()

    def finish_beams(self) -> None:
        """The search is over: publish the best line as one delta and all of them as completions."""
        assert self.sequence.beams is not None
        lines = [beam.ids for beam in self.sequence.beams.answers()]
        self.clock.first_token = self.clock.first_token or time.perf_counter()
        self.completions = tuple(self._whole(ids) for ids in lines)
        best = self.completions[0]
        last = Delta(best.ids, best.text, (), best.finish_reason, best.usage, best.timings, best.ended_by)
        self._deltas.append(last)
        self._on_news()

    def add_ratings(self, logprobs: list[list[float]]) -> None:
        """What is known of the texts to rate: their first ids', then all the others'. Ends when nothing is left."""
        scoring = self.sequence.scoring
        assert scoring is not None
        self.clock.first_token = self.clock.first_token or time.perf_counter()
        known = scoring.logprobs or [[] for _ in logprobs]
        scoring.logprobs = [[*old, *new] for old, new in zip(known, logprobs, strict=True)]
        if all(len(k) == len(ids) for k, ids in zip(scoring.logprobs, scoring.continuations, strict=True)):
            self._publish((), "", (), "end")

    def _whole(self, ids: tuple[int, ...]) -> Completion:
        transcript, ends = self._new_text(), bool(ids) and ids[-1] in self.sequence.eos
        text = "".join(transcript.add(token) for token in (ids[:-1] if ends else ids)) + transcript.finish()
        reason: EndedBy = "stop_string" if transcript.stopped else "end" if ends else "length"
        usage, timings = self._usage(len(ids)), self.clock.timings(len(ids))
        return Completion(ids, text, _FINISH_REASONS[reason], usage, timings, ended_by=reason)

    def _satisfied(self, reason: EndedBy) -> bool:
        """Whether the text is all that the constraint asks for. A stop string cuts some of it off."""
        guide = self.sequence.guide
        return guide is None or reason == "end" or (reason != "stop_string" and guide.may_end)

    def _usage(self, n_new: int) -> Usage:
        return Usage(self.sequence.n_prompt, n_new, self.sequence.prompt.image_tokens, self.sequence.cached)

    def _publish(
        self, ids: tuple[int, ...], text: str, logprobs: tuple[TokenLogprob, ...], reason: EndedBy | None
    ) -> None:
        self._text.append(text)
        self._logprobs.extend(logprobs)
        if reason is None:
            self._deltas.append(Delta(ids, text, logprobs))
        else:
            answer, finish = tuple(self.sequence.ids[self.sequence.n_prompt :]), _FINISH_REASONS[reason]
            usage, timings = self._usage(len(answer)), self.clock.timings(len(answer))
            how, whole = (finish, usage, timings), "".join(self._text)
            satisfied = self._satisfied(reason)
            self._deltas.append(Delta(ids, text, logprobs, *how, reason, satisfied))
            self.completions = (Completion(answer, whole, *how, tuple(self._logprobs), reason, satisfied),)
        self._on_news()
