"""One of the processes of benchmarks.together: reads prompts and writes tokens for as long as it is told to."""

from __future__ import annotations

import json
import sys
import time
from random import Random
from typing import Any

from benchmarks.worker import own_stdout

PROMPT_TOKENS = 760
SHORT_TOKENS = 32


class Asker:
    """A model that is asked for tokens. shares: whether it makes room for other processes, as behold does."""

    def __init__(self, folder: str, *, quantize: str | None, shares: bool) -> None:
        import behold
        from behold.engine.engine import Engine
        from behold.engine.options import EngineOptions
        from behold.threads import SHARE

        if not shares:
            SHARE.threads = lambda most: most  # type: ignore[method-assign]
        model = behold.load(folder, device="cpu", quantize=quantize).model
        options = EngineOptions(lookup_rows=0, prefix_cache_bytes=0)
        self._engine = Engine(model, tokenizer=None, eos_token_ids=frozenset(), options=options)
        self._draw = Random(0)

    def decode(self, seconds: float) -> dict[str, float]:
        """Tokens a second of one answer, and CPUs at work meanwhile."""
        request = self._submit(SHORT_TOKENS, 100_000)
        while not request.sequence.began:
            self._engine.step()
        start, own, steps = time.perf_counter(), time.process_time(), 0
        while time.perf_counter() - start < seconds:
            self._engine.step()
            steps += 1
        took = time.perf_counter() - start
        self._engine.cancel(request)
        return {"tokens_per_s": steps / took, "cpus": (time.process_time() - own) / took}

    def read(self, seconds: float) -> dict[str, float]:
        """Prompts a second, at least one."""
        start, prompts = time.perf_counter(), 0
        while not prompts or time.perf_counter() - start < seconds:
            self._submit(PROMPT_TOKENS, 1)
            while self._engine.step():
                pass
            prompts += 1
        return {"prompts_per_s": prompts / (time.perf_counter() - start)}

    def idle(self, seconds: float) -> dict[str, float]:
        """CPUs at work while nothing is asked."""
        own = time.process_time()
        time.sleep(seconds)
        return {"cpus": (time.process_time() - own) / seconds}

    def _submit(self, prompt: int, new: int) -> Any:
        from behold.types import Prompt, SamplingParams

        ids = tuple(self._draw.randrange(100, 100_000) for _ in range(prompt))
        return self._engine.submit(Prompt(ids), SamplingParams(max_new_tokens=new, ignore_eos=True))


def main() -> None:
    """A setup, then one JSON object a line: {"what": "decode", "read" or "idle", "seconds": ...}."""
    out = own_stdout()

    def say(record: dict[str, Any]) -> None:
        out.write(json.dumps(record) + "\n")
        out.flush()

    asker = Asker(**json.loads(sys.stdin.readline()))
    asker.decode(0.5)
    asker.read(0)
    say({})
    for line in sys.stdin:
        asked = json.loads(line)
        say(getattr(asker, asked["what"])(asked["seconds"]))


if __name__ == "__main__":
    main()
