"""One peer in a process of its own, without HTTP: one line of JSON with an operation in, one with its figures out.

behold runs through its engine's public methods, with a fresh engine (and so empty caches) for every operation;
transformers through `generate`, one request after another, which is all it can do with pictures.
"""

from __future__ import annotations

import gc
import hashlib
import json
import os
import sys
import time
from collections.abc import Sequence
from typing import Any

from benchmarks.serving.figures import intervals, percentile
from benchmarks.serving.workload import picture
from benchmarks.worker import Clock, Peer, own_stdout, peak_bytes

ALONE_TOKENS = 64  # of the running answer, before others come
LONGEST = 1024  # tokens of the running answer at most; it is cancelled when the measurement is over


def question(number: int) -> str:
    """Of one length for all numbers below ten."""
    return f"Number {number}: what is it?"


def digest(ids: Sequence[int]) -> str:
    """To compare answers between processes."""
    return hashlib.sha256(json.dumps(list(ids)).encode()).hexdigest()[:16]


class Transformers:
    """transformers, one after another."""

    def __init__(self, folder: str, *, dtype: str, device: str) -> None:
        self.peer = Peer("transformers", folder, dtype=dtype, device=device, quantize=None)
        self.described = self.peer.described()

    def answers(self, *, pictures: list[int], side: int, tokens: int, together: bool, **_: Any) -> dict[str, Any]:
        """Question i about picture `pictures[i]`, `tokens` new tokens each."""
        assert not together, "transformers cannot batch requests with pictures as they come"
        first_token_s, digests = [], []
        start = time.perf_counter()
        for number, seed in enumerate(pictures):
            clock, asked = Clock(), time.perf_counter()
            inputs = self.peer.inputs(picture(seed, side), question(number))
            counts = {"max_new_tokens": tokens, "min_new_tokens": tokens}
            self.peer.model.generate(**inputs, **counts, do_sample=False, streamer=clock)
            first_token_s.append(clock.arrivals[1][0] - asked)
            digests.append(digest(clock.ids))
        total_s = time.perf_counter() - start
        return {"total_s": total_s, "first_token_s": first_token_s, "digests": digests, "peak_bytes": peak_bytes()}


class Behold:
    """behold's engine."""

    def __init__(self, folder: str, *, dtype: str, device: str) -> None:
        start = time.perf_counter()
        from behold.api.session import open_checkpoint, open_model, open_processor

        files = open_checkpoint(folder)
        self.processor = open_processor(files)
        self.model = open_model(files, device=device, dtype=dtype)
        self.described = {"load_s": time.perf_counter() - start, "dtype": str(self.model.dtype).removeprefix("torch.")}

    def _driver(self, options: dict[str, Any]) -> Any:
        from behold.api.session import open_engine
        from behold.engine.engine import EngineOptions
        from benchmarks.serving.driver import Driver

        gc.collect()
        engine = open_engine(
            self.model,
            tokenizer=self.processor.tokenizer,
            eos_token_ids=self.processor.eos_token_ids,
            options=EngineOptions(**options),
        )
        return Driver(engine, self.processor.chat)

    def _track(self, image: Any, text: str, tokens: int) -> Any:
        from behold.types import ImagePart, Message, TextPart
        from benchmarks.serving.driver import Track

        return Track([Message("user", (ImagePart(image), TextPart(text)))], _exactly(tokens))

    def answers(
        self, *, pictures: list[int], side: int, tokens: int, together: bool, options: dict[str, Any]
    ) -> dict[str, Any]:
        """Question i about picture `pictures[i]`, `tokens` new tokens each: all at once, or one after another."""
        images = {seed: picture(seed, side) for seed in pictures}
        tracks = [self._track(images[seed], question(number), tokens) for number, seed in enumerate(pictures)]
        driver = self._driver(options)
        start = time.perf_counter()
        for group in [tracks] if together else [[track] for track in tracks]:
            driver.answer(*group)
        total_s = time.perf_counter() - start
        driver.close()
        short = [len(track.ids) for track in tracks if len(track.ids) != tokens]
        if short:
            raise SystemExit(f"answers of {short} tokens came, {tokens} were asked for")
        return {
            "total_s": total_s,
            "first_token_s": [track.first_token_s for track in tracks],
            "digests": [digest(track.ids) for track in tracks],
            "cached_tokens": [track.cached_tokens for track in tracks],
            "prompt_tokens": len(tracks[0].prompt.ids),
            "peak_bytes": peak_bytes(),
        }

    def follow_up(self, *, picture_seed: int, side: int, tokens: int) -> dict[str, Any]:
        """Seconds to the first token of a question about a new picture, and of the next turn about it."""
        from behold.types import Message, TextPart
        from benchmarks.serving.driver import Track

        driver = self._driver({})
        first = self._track(picture(picture_seed, side), question(1), tokens)
        driver.answer(first)
        turns = [Message("assistant", (TextPart("."),)), Message("user", (TextPart("What colour is it?"),))]
        asked = time.perf_counter()
        whole = self.processor.chat([*first.source, *turns])
        # The tokenizer of a checkpoint with random weights does not read its own answers back as the same tokens, as
        # a trained one does (nearly always): so the answer's ids are put where its text would be.
        n_first = len(first.prompt.ids)
        assert whole.ids[:n_first] == first.prompt.ids, "the second turn's prompt does not continue the first's"
        ids = (*whole.ids[:n_first], *first.ids, *whole.ids[n_first:])
        second = Track(type(whole)(ids, whole.images, whole.spans), _exactly(tokens))
        driver.answer(second)
        driver.close()
        return {
            "first_s": first.first_token_s,
            "second_s": second.arrivals[0] - asked,
            "prompt_tokens": [n_first, len(ids)],
            "cached_tokens": second.cached_tokens,
        }

    def interval(self, *, picture_seeds: list[int], side: int) -> dict[str, Any]:
        """Token intervals of a running answer: alone, and from the arrival of others until all have a first token."""
        running, *others = [self._track(picture(s, side), question(i), LONGEST) for i, s in enumerate(picture_seeds)]
        driver = self._driver({})
        driver.begin(running)
        driver.until(lambda: len(running.arrivals) > ALONE_TOKENS)
        came = time.perf_counter()
        for track in others:
            driver.begin(track)
        driver.until(lambda: all(track.arrivals for track in others) or bool(running.ended))
        driver.close()
        if running.ended:
            raise SystemExit(f"the running answer ended after {LONGEST} tokens, before the others had begun")
        before = [moment for moment in running.arrivals if moment <= came]
        alone, beside = intervals(before), intervals([before[-1], *running.arrivals[len(before) :]])
        return {
            "alone_s": {p: percentile(alone, p) for p in (50, 95, 100)},
            "beside_s": {p: percentile(beside, p) for p in (50, 95, 100)},
            "n_beside": len(beside),
            "first_token_s": [track.first_token_s for track in others],
        }


def _exactly(tokens: int) -> Any:
    from behold.types import SamplingParams

    return SamplingParams(max_new_tokens=tokens, min_new_tokens=tokens, loop_stop=False)


def main() -> None:
    """Read a setup, then operations, until standard input ends."""
    out = own_stdout()

    def say(record: dict[str, Any]) -> None:
        out.write(json.dumps(record) + "\n")
        out.flush()

    setup = json.loads(sys.stdin.readline())
    import torch

    torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
    peer = {"behold": Behold, "transformers": Transformers}[setup["library"]](
        setup["folder"], dtype=setup["dtype"], device=setup["device"]
    )
    say(peer.described)
    for line in sys.stdin:
        request = json.loads(line)
        say(getattr(peer, request.pop("do"))(**request))


if __name__ == "__main__":
    main()
