"""The one engine under every door: requests in, deltas out; schedule → run → record.

There is no thread of its own. Whoever waits for a delta drives steps, one driver at a time, and every step serves all
requests there are; deltas for others go to their requests, whose consumers are woken after each step.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Generator
from collections.abc import Sequence as Many

from behold.engine.admission import Admission
from behold.engine.blocks import RowTable
from behold.engine.kv_cache import budget_bytes, bytes_a_token, kept_bytes, stored_as
from behold.engine.options import EngineOptions
from behold.engine.record import Recorder
from behold.engine.request import Request
from behold.engine.runner import Runner
from behold.engine.scheduler import Scheduler, Step
from behold.engine.sequence import Sequence
from behold.engine.stats import Counters, EngineStats, Estimate
from behold.errors import BusyError, OptionError
from behold.models.base import VisionLanguageModel
from behold.processing.tokenizer import Tokenizer
from behold.threads import SHARE
from behold.types import Completion, Delta, Prompt, SamplingParams


class Engine:
    """Runs any number of requests on one model. All methods may be called from any thread."""

    def __init__(
        self,
        model: VisionLanguageModel,
        *,
        tokenizer: Tokenizer | None,
        eos_token_ids: frozenset[int],
        options: EngineOptions | None = None,
    ) -> None:
        options = options or EngineOptions()
        kv_dtype = stored_as(options.kv_dtype, model)
        self._bytes_a_token = bytes_a_token(model.config.text, kv_dtype)
        self._bytes_an_image_token = model.config.text.hidden_size * model.dtype.itemsize
        kv_bytes = budget_bytes(model.device) if options.kv_cache_bytes is None else options.kv_cache_bytes
        step_tokens = options.max_step_tokens or (1024 if model.device.type == "cpu" else 2048)
        self.max_waiting = options.max_waiting
        self._table = RowTable(
            max_rows=options.max_rows,
            budget_tokens=kv_bytes // self._bytes_a_token,
            keep_tokens=kept_bytes(options.prefix_cache_bytes, model) // self._bytes_a_token,
        )
        self._admission = Admission(
            model.config.text,
            tokenizer=tokenizer,
            eos=eos_token_ids,
            table=self._table,
            bytes_a_token=self._bytes_a_token,
        )
        self._runner = Runner(
            model,
            table=self._table,
            kv_dtype=kv_dtype,
            image_cache_bytes=options.image_cache_bytes,
            max_image_tokens=step_tokens,
        )
        self._scheduler = Scheduler(
            self._table,
            self._runner,
            max_step_tokens=step_tokens,
            max_image_tokens=options.image_cache_bytes // self._bytes_an_image_token,
            lookup_rows=options.lookup_rows,
        )
        self._requests: dict[int, Request] = {}
        # One lock for all state but tensors; those belong to the driver, the one thread that is inside a step.
        self._turn = threading.Condition()
        self._driver: int | None = None
        self._counters = Counters()
        self._recorder = Recorder(
            self._requests,
            runner=self._runner,
            pace=self._scheduler.pace,
            counters=self._counters,
            next_key=lambda: self._admission.next_key,
        )

    # --- requests ---------------------------------------------------------------------------------------------------

    def submit(self, prompt: Prompt, params: SamplingParams, *, on_news: Callable[[], object] | None = None) -> Request:
        """Queue a request. An answer ends at the latest where the model's context does.

        on_news: called when `take` has something, in the thread that drives; it must neither wait nor call the engine.

        Raises:
            OptionError: an option is out of range, clashes with another, or needs a tokenizer that is not there.
            CapacityError: the prompt is longer than the context, or the request needs more memory than there is.
            BusyError: `max_waiting` requests wait already.
        """
        return self._queue(self._admission.sequence(prompt, params), on_news)

    def prepare(self, params: SamplingParams) -> None:
        """Check options and compile their constraint ahead of `submit`: it can take seconds. Raises as `submit`."""
        self._admission.prepare(params)

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

    def estimate(self, prompt: Prompt, params: SamplingParams) -> Estimate:
        """What a request would cost now; nothing is run.

        Raises:
            OptionError, CapacityError: as `submit`.
        """
        sequence = self._admission.sequence(prompt, params)
        with self._turn:
            cached = self._scheduler.match(sequence).length
            unseen = {
                picture.digest: picture.n_tokens
                for picture in (prompt.images[span.image] for span in prompt.spans if span.stop > cached)
                if not self._runner.ready(picture.digest)
            }
            fits = not self._scheduler.waiting and self._table.fits(sequence.rows, sequence.reserve)
        return Estimate(
            prompt_tokens=sequence.n_prompt,
            image_tokens=prompt.image_tokens,
            cached_tokens=cached,
            max_new_tokens=sequence.limit,
            kv_bytes=sequence.rows * sequence.reserve * self._bytes_a_token,
            image_bytes=sum(unseen.values()) * self._bytes_an_image_token,
            fits=fits,
        )

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

    def score(self, prompt: Prompt, continuations: Many[tuple[int, ...]]) -> list[tuple[float, ...]]:
        """How likely each of several texts is to follow the prompt, from one reading of it.

        Returns for each continuation the natural logarithm of the probability of each of its ids, given the prompt
        and the ids before.

        Raises:
            OptionError: no continuation, an empty one, or ids outside the vocabulary.
            CapacityError: as `submit`.
        """
        request = self.submit_scoring(prompt, continuations)
        self.wait([request])
        return request.ratings

    def submit_scoring(self, prompt: Prompt, continuations: Many[tuple[int, ...]]) -> Request:
        """Queue what `score` does: `request.ratings` is its result when it is done. Raises as `score` does."""
        return self._queue(self._admission.scoring(prompt, continuations))

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
            begin = time.perf_counter()
            step = self._schedule()
            with SHARE:
                output = self._runner.run(step)
            seconds = time.perf_counter() - begin
            with self._turn:
                self._recorder.record(step, output, seconds)
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

    def _schedule(self) -> Step:
        with self._turn:
            step = self._scheduler.schedule()
            assert step.chunks or step.pictures, "a step without work"
            now = time.perf_counter()
            for sequence in (*(chunk.sequence for chunk in step.chunks), *step.looking):
                clock = self._requests[sequence.key].clock
                clock.started = clock.started or now
            return step

    def _fail(self, error: Exception) -> None:
        """End all running requests with the error; where none runs, those that wait, lest the error come forever."""
        with self._turn:
            for sequence in list(self._scheduler.running or self._scheduler.waiting):
                self._requests[sequence.key].fail(error)

    def _drop_ended(self) -> None:
        for key, request in list(self._requests.items()):
            # Taken out first: a stream that the garbage collector closes may call this in the middle of itself.
            if request.done and self._requests.pop(key, None) is not None:
                self._scheduler.finish(request.sequence, keep=request.error is None)
                self._runner.forget(request.sequence)

    def _queue(self, sequence: Sequence, on_news: Callable[[], object] | None = None) -> Request:
        request = Request(sequence, lambda: self._admission.transcript(sequence.params), on_news)
        with self._turn:
            limit, waiting = self.max_waiting, len(self._scheduler.waiting)
            if limit is not None and waiting >= limit and not self._table.fits(sequence.rows, sequence.reserve):
                raise BusyError(
                    f"{waiting} requests wait already, and {limit} may; try again later",
                    retry_after_s=self._counters.seconds_a_request or 1.0,
                )
            self._requests[sequence.key] = request
            self._scheduler.add(sequence)
        return request

    # --- state ------------------------------------------------------------------------------------------------------

    def stats(self) -> EngineStats:
        """Counts since the start, and what is held now."""
        with self._turn:
            images, counters = self._runner.images, self._counters
            return EngineStats(
                waiting=len(self._scheduler.waiting),
                running=len(self._scheduler.running),
                rows_free=self._table.n_free,
                steps=counters.steps,
                prompt_tokens=counters.prompt_tokens,
                cached_tokens=counters.cached_tokens,
                new_tokens=counters.new_tokens,
                prefix_hits=counters.prefix_hits,
                prefix_misses=counters.prefix_misses,
                kv_cache_bytes=self._runner.cache.n_bytes,
                image_cache_bytes=images.n_bytes,
                image_cache_hits=images.stats.hits,
                image_cache_misses=images.stats.misses,
                tokens_per_s=counters.tokens_per_s(),
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
