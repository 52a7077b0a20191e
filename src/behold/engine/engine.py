"""The one engine under every door: requests in, deltas out; schedule → run → record.

There is no thread of its own. Whoever waits for a delta drives steps, one driver at a time, and every step serves all
requests there are; deltas for others go to their requests, whose consumers are woken after each step.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Generator
from collections.abc import Sequence as Many
from dataclasses import dataclass

from behold.engine.admission import Admission
from behold.engine.blocks import RowTable
from behold.engine.kv_cache import budget_bytes
from behold.engine.request import Request
from behold.engine.runner import Runner, StepOutput
from behold.engine.scheduler import Scheduler
from behold.engine.sequence import Chunk, Sequence
from behold.errors import BeholdError, OptionError
from behold.models.base import VisionLanguageModel
from behold.processing.tokenizer import Tokenizer
from behold.types import Completion, Delta, Prompt, SamplingParams


@dataclass(frozen=True, slots=True)
class EngineOptions:
    """Limits of one engine.

    max_rows: sequences that run at once (a beam search takes num_beams of them).
    max_step_tokens: prompt tokens of one step; longer prompts are read in chunks.
    kv_cache_bytes: memory for keys and values; None takes up to half of what is free on the device.
    image_cache_bytes: memory for image embeddings that are kept for a next time.
    """

    max_rows: int = 16
    max_step_tokens: int = 2048
    kv_cache_bytes: int | None = None
    image_cache_bytes: int = 256 << 20


@dataclass(frozen=True, slots=True)
class EngineStats:
    """What the engine has done and holds."""

    waiting: int
    running: int
    rows_free: int
    steps: int
    prompt_tokens: int
    new_tokens: int
    kv_cache_bytes: int
    image_cache_bytes: int
    image_cache_hits: int
    image_cache_misses: int


class Engine:
    """Runs any number of requests on one model. All methods may be called from any thread."""

    def __init__(
        self,
        model: VisionLanguageModel,
        *,
        tokenizer: Tokenizer | None,
        eos_token_ids: frozenset[int],
        options: EngineOptions = EngineOptions(),
    ) -> None:
        bytes_a_token = kv_bytes_a_token(model)
        kv_bytes = budget_bytes(model.device) if options.kv_cache_bytes is None else options.kv_cache_bytes
        self._table = RowTable(max_rows=options.max_rows, budget_tokens=kv_bytes // bytes_a_token)
        self._admission = Admission(
            model.config.text,
            tokenizer=tokenizer,
            eos=eos_token_ids,
            table=self._table,
            bytes_a_token=bytes_a_token,
        )
        self._runner = Runner(model, table=self._table, image_cache_bytes=options.image_cache_bytes)
        self._scheduler = Scheduler(self._table, max_step_tokens=options.max_step_tokens)
        self._requests: dict[int, Request] = {}
        # One lock for all state but tensors; those belong to the driver, the one thread that is inside a step.
        self._turn = threading.Condition()
        self._driver: int | None = None
        self._steps = self._prompt_tokens = self._new_tokens = 0

    # --- requests ---------------------------------------------------------------------------------------------------

    def submit(self, prompt: Prompt, params: SamplingParams, *, on_news: Callable[[], object] | None = None) -> Request:
        """Queue a request. An answer ends at the latest where the model's context does.

        on_news: called when `take` has something, in the thread that drives; it must neither wait nor call the engine.

        Raises:
            OptionError: an option is out of range, clashes with another, or needs a tokenizer that is not there.
            CapacityError: the prompt is longer than the context, or the request needs more memory than there is.
        """
        return self._queue(self._admission.sequence(prompt, params), on_news)

    def take(self, request: Request) -> tuple[list[Delta], bool]:
        """The deltas since the last call, and whether they were the last. Waits for nothing.

        Raises:
            Exception: what ended the request, where it failed.
        """
        with self._turn:
            deltas, done = request.take(), request.done
        if request.error is not None:
            raise request.error
        return deltas, done

    def cancel(self, request: Request) -> None:
        """End a request. Its rows are free at once, or after the step that is under way."""
        with self._turn:
            request.cancel()
            if self._driver is None:
                self._drop_ended()
            self._turn.notify_all()

    def cancel_all(self) -> None:
        """End every request there is."""
        for request in list(self._requests.values()):
            self.cancel(request)

    def deltas(self, request: Request) -> Generator[Delta, None, None]:
        """The increments of a submitted request, until its end. Closing the generator cancels it."""
        try:
            done = False
            while not done:
                self._until(lambda: request.has_news)
                with self._turn:
                    done, fresh = request.done, request.take()
                yield from fresh
            if request.error is not None:
                raise request.error
        finally:
            self.cancel(request)

    def wait(self, requests: Many[Request], *, on_done: Callable[[int, Request], object] | None = None) -> None:
        """Until all are over. The first error, Ctrl+C included, cancels the others and is raised.

        on_done: called with a request's index and the request, in the order in which they end.
        """
        ahead = dict(enumerate(requests))
        try:
            while ahead:
                self._until(lambda: any(request.done for request in ahead.values()))
                for index in [index for index, request in ahead.items() if request.done]:
                    request = ahead.pop(index)
                    if request.error is not None:
                        raise request.error
                    if on_done is not None:
                        on_done(index, request)
        finally:
            for request in ahead.values():
                self.cancel(request)

    # --- whole answers ----------------------------------------------------------------------------------------------

    def stream(self, prompt: Prompt, params: SamplingParams) -> Generator[Delta, None, None]:
        """Increments as they come. Options are checked now, the request is queued by the first `next`.

        Closing the generator stops the work within one step. Raises as `submit` does.
        """
        if params.num_beams > 1:
            raise OptionError(
                f"num_beams={params.num_beams} cannot be streamed: a beam may be replaced until the end; "
                "ask for the whole answer, or set num_beams=1"
            )
        sequence = self._admission.sequence(prompt, params)

        def increments() -> Generator[Delta, None, None]:
            # Queued here, not above: a generator that is closed before its first `next` runs none of its code.
            yield from self.deltas(self._queue(sequence))

        return increments()

    def complete(
        self,
        requests: Many[tuple[Prompt, SamplingParams]],
        *,
        on_done: Callable[[int, Completion], object] | None = None,
    ) -> list[Completion]:
        """Whole answers, in the order of the requests; of a beam search the best."""
        sequences = [self._admission.sequence(*request) for request in requests]
        done = self._run(sequences, None if on_done is None else lambda i, r: on_done(i, r.completions[0]))
        return [request.completions[0] for request in done]

    def beams(self, prompt: Prompt, params: SamplingParams) -> list[Completion]:
        """The num_return_sequences best answers of one beam search, the best first."""
        (request,) = self._run([self._admission.sequence(prompt, params)])
        return list(request.completions)

    def _run(self, sequences: Many[Sequence], on_done: Callable[[int, Request], object] | None = None) -> list[Request]:
        """Queue and wait; whatever breaks in, in the middle of queueing too, cancels all that is not over."""
        requests: list[Request] = []
        try:
            for sequence in sequences:
                requests.append(self._queue(sequence))
            self.wait(requests, on_done=on_done)
        except BaseException:
            for request in requests:
                self.cancel(request)
            raise
        return requests

    # --- steps ------------------------------------------------------------------------------------------------------

    def step(self) -> bool:
        """One step for all requests; False when there is nothing to do. Errors go to the requests they end."""
        return self._step(unless=lambda: not self._scheduler.has_work)

    def _until(self, ready: Callable[[], bool]) -> None:
        """Drive steps, or wait while another thread does, until `ready`."""
        while self._step(unless=ready):
            pass

    def _step(self, *, unless: Callable[[], bool]) -> bool:
        """Wait for the turn, then one step; False without a step once `unless` holds."""
        me = threading.get_ident()
        try:
            with self._turn:
                self._turn.wait_for(lambda: self._driver is None or unless())
                if unless():
                    return False
                self._driver = me
            chunks = self._schedule()
            output = self._runner.run(chunks)
            self._record(chunks, output)
        except Exception as error:
            self._fail(error)
        finally:
            # Also after Ctrl+C: a step that was not recorded has changed nothing and is run again by the next driver.
            with self._turn:
                if self._driver == me:
                    self._driver = None
                    self._drop_ended()
                    self._turn.notify_all()
        return True

    def _schedule(self) -> list[Chunk]:
        with self._turn:
            chunks = self._scheduler.schedule()
            assert chunks, "a step without work"
            now = time.perf_counter()
            for chunk in chunks:
                clock = self._requests[chunk.sequence.key].clock
                clock.started = clock.started or now
            return chunks

    def _record(self, chunks: list[Chunk], output: StepOutput) -> None:
        """Move every sequence on by what the step found. An error ends the request where it happens, no other."""
        with self._turn:
            self._steps += 1
            for chunk in chunks:
                request = self._requests[chunk.sequence.key]
                if request.done:  # cancelled while the step ran
                    continue
                try:
                    self._record_one(request, chunk, output)
                except BaseException as error:
                    plain = isinstance(error, Exception)
                    request.fail(error if plain else BeholdError("interrupted while its newest token was recorded"))
                    if not plain:
                        raise

    def _record_one(self, request: Request, chunk: Chunk, output: StepOutput) -> None:
        sequence = chunk.sequence
        request.clock.vision_s += output.vision_s.get(sequence.key, 0.0)
        self._prompt_tokens += max(0, min(chunk.stop, sequence.n_prompt) - chunk.start)
        sequence.computed = chunk.stop
        self._runner.recorded(sequence)
        if sequence.key in output.sampled:
            chosen = output.sampled[sequence.key]
            if sequence.guide is not None:
                sequence.guide.accept(chosen.id)
            sequence.ids.append(chosen.id)
            self._new_tokens += 1
            request.add(chosen.id, chosen.logprob)
        elif sequence.beams is not None and sequence.key in output.candidates:
            parents = sequence.beams.advance(output.candidates[sequence.key])
            self._new_tokens += len(parents)
            if sequence.beams.done:
                request.finish_beams()
            else:
                self._runner.follow(sequence, parents)

    def _fail(self, error: Exception) -> None:
        """End all running requests with the error; where none runs, those that wait, lest the error come forever."""
        with self._turn:
            for sequence in list(self._scheduler.running or self._scheduler.waiting):
                self._requests[sequence.key].fail(error)

    def _drop_ended(self) -> None:
        for key, request in list(self._requests.items()):
            # Taken out first: a stream that the garbage collector closes may call this in the middle of itself.
            if request.done and self._requests.pop(key, None) is not None:
                self._scheduler.finish(request.sequence)
                self._runner.forget(request.sequence)

    def _queue(self, sequence: Sequence, on_news: Callable[[], object] | None = None) -> Request:
        request = Request(sequence, lambda: self._admission.transcript(sequence.params), on_news)
        with self._turn:
            self._requests[sequence.key] = request
            self._scheduler.add(sequence)
        return request

    # --- state ------------------------------------------------------------------------------------------------------

    def stats(self) -> EngineStats:
        """Counts since the start, and what is held now."""
        with self._turn:
            images = self._runner.images
            return EngineStats(
                waiting=len(self._scheduler.waiting),
                running=len(self._scheduler.running),
                rows_free=self._table.n_free,
                steps=self._steps,
                prompt_tokens=self._prompt_tokens,
                new_tokens=self._new_tokens,
                kv_cache_bytes=self._runner.cache.n_bytes,
                image_cache_bytes=images.n_bytes,
                image_cache_hits=images.stats.hits,
                image_cache_misses=images.stats.misses,
            )

    def check(self) -> None:
        """Assert that the bookkeeping is whole; for tests, and callable whenever no step is under way."""
        with self._turn:
            assert self._driver is None, "check() during a step"
            self._scheduler.check()
            self._runner.check(frozenset(self._requests))
            if not self._requests:
                assert not self._scheduler.has_work
                assert self._table.n_used == 0


def kv_bytes_a_token(model: VisionLanguageModel) -> int:
    """Bytes of keys and values that one token takes in all layers."""
    text = model.config.text
    return 2 * text.num_hidden_layers * text.num_key_value_heads * text.head_dim * model.dtype.itemsize
