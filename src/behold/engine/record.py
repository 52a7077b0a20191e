"""After a step: every sequence is moved on by what the step found, and counted. No torch."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

from behold.engine.pace import Pace
from behold.engine.request import Request
from behold.engine.scheduler import Step
from behold.engine.sequence import Chunk
from behold.engine.stats import Counters
from behold.errors import BeholdError

if TYPE_CHECKING:
    from behold.engine.runner import Runner, StepOutput


class Recorder:
    """Called under the engine's lock.

    requests: all that are not over, by key. next_key: the key that the next request to come will have.
    """

    def __init__(
        self,
        requests: Mapping[int, Request],
        *,
        runner: Runner,
        pace: Pace,
        counters: Counters,
        next_key: Callable[[], int],
    ) -> None:
        self._requests = requests
        self._runner = runner
        self._pace = pace
        self._counters = counters
        self._next_key = next_key

    def record(self, step: Step, output: StepOutput, seconds: float) -> None:
        """Move every sequence of the step on. An error ends the request where it happens, no other."""
        self._count(step, seconds)
        for key, spent in output.vision_s.items():
            self._requests[key].clock.vision_s += spent
        for chunk in step.chunks:
            request = self._requests[chunk.sequence.key]
            if request.done:  # cancelled while the step ran
                continue
            try:
                self._move_on(request, chunk, output)
            except BaseException as error:
                plain = isinstance(error, Exception)
                request.fail(error if plain else BeholdError("interrupted while its newest token was recorded"))
                if not plain:
                    raise

    def _count(self, step: Step, seconds: float) -> None:
        answering = sum(chunk.sequence.answering for chunk in step.chunks)
        read = sum(chunk.length for chunk in step.chunks if not chunk.sequence.answering)
        self._pace.record(seconds, decoding=answering, prompt_tokens=read, pictures=bool(step.pictures))
        self._counters.step(prompt_tokens=read)

    def _move_on(self, request: Request, chunk: Chunk, output: StepOutput) -> None:
        sequence = chunk.sequence
        if sequence.computed < sequence.n_prompt <= chunk.stop:
            self._counters.prompt(cached=sequence.cached + max(0, chunk.start - sequence.computed))
        sequence.cached += chunk.start - sequence.computed
        if not chunk.branches:
            sequence.computed = chunk.stop
        self._runner.recorded(sequence)
        sequence.began = sequence.began or (self._next_key() if chunk.samples else 0)
        if sequence.key in output.sampled:
            self._add_tokens(request, chunk, output)
        elif sequence.beams is not None and sequence.key in output.candidates:
            parents = sequence.beams.advance(output.candidates[sequence.key])
            self._counters.token(len(parents))
            if sequence.beams.done:
                request.finish_beams()
            else:
                self._runner.follow(sequence, parents)
        elif sequence.scoring is not None and sequence.key in output.ratings:
            request.add_ratings(output.ratings[sequence.key])

    def _add_tokens(self, request: Request, chunk: Chunk, output: StepOutput) -> None:
        sequence = chunk.sequence
        chosen = output.sampled[sequence.key]
        for pick in chosen:
            if sequence.guide is not None:
                sequence.guide.accept(pick.id)
            sequence.ids.append(pick.id)
            self._counters.token()
            if request.add(pick.id, pick.logprob) is not None:
                break
        if chunk.guesses:
            sequence.computed = len(sequence.ids) - 1
            assert sequence.lookup is not None
            sequence.lookup.learn(len(sequence.ids), len(chosen) - 1)
