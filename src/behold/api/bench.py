"""How fast a checkpoint answers on this machine, and how much memory it takes, for each way to hold its weights.

Each is measured in a process of its own, so that its peak of memory is its own and its loading that of a fresh start.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from behold.errors import BeholdError

if TYPE_CHECKING:
    from multiprocessing.connection import Connection

    from PIL.Image import Image

    from behold.types import Prompt

QUESTION = "What do we see in this image?"
SIDES = (640, 480)  # of the built-in picture


@dataclass(frozen=True)
class Setup:
    """What is measured. quantize: a scheme's name or None. tokens: of an answer, at least 2."""

    folder: Path
    picture: Image
    quantize: str | None = None
    device: str = "auto"
    dtype: str = "auto"
    tokens: int = 64
    runs: int = 3

    @property
    def steps(self) -> int:
        """How often `measure` reports: loading, a warm-up, and the runs."""
        return 2 + self.runs


@dataclass(frozen=True)
class Figures:
    """What was measured; one value a run where there are several.

    first_token_s: from the decoded picture to the first token. decode_tokens_per_s: of the tokens after it, one a step.
    load_s: without importing. peak_bytes: the most resident memory, None where the system does not say.
    """

    quantize: str | None
    dtype: str
    device: str
    threads: int
    import_s: float
    load_s: float
    first_token_s: tuple[float, ...]
    decode_tokens_per_s: tuple[float, ...]
    peak_bytes: int | None
    prompt_tokens: int
    image_tokens: int


def schemes() -> tuple[str | None, ...]:
    """Every way to hold the weights that is of use anywhere: as they are, and names of what `quantize` takes."""
    from behold.quant.schemes import SCHEMES

    return (None, *(name for name, scheme in SCHEMES.items() if not scheme.for_gpus))


def built_in_picture() -> Image:
    """Seeded noise over a gradient: always the same picture."""
    import numpy as np
    from PIL import Image as Pillow

    width, height = SIDES
    noise = np.random.default_rng(0).integers(0, 64, (height, width, 3))
    slope = np.linspace(0, 191, width)[None, :, None]
    return Pillow.fromarray((noise + slope).astype(np.uint8))


def peak_bytes() -> int | None:
    """The most resident memory this process has had; None where the system does not say."""
    status = Path("/proc/self/status")
    if status.exists():
        for line in status.read_text("utf-8").splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    try:
        import resource
    except ImportError:  # Windows
        return None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def measure(setup: Setup, done: Callable[[], object] = lambda: None) -> Figures:
    """The figures of one way, in this process; `done` is called after each of its steps.

    Raises:
        BeholdError: the checkpoint cannot be used like this.
    """
    start = time.perf_counter()
    import torch

    from behold.api.session import open_checkpoint, open_engine, open_model, open_processor
    from behold.api.turns import user_message
    from behold.engine.options import EngineOptions
    from behold.quant.schemes import FULL
    from behold.types import SamplingParams

    import_s = time.perf_counter() - start
    start = time.perf_counter()
    files = open_checkpoint(setup.folder)
    processor = open_processor(files)
    model = open_model(files, device=setup.device, dtype=setup.dtype, quantize=setup.quantize or FULL, progress=False)
    engine = open_engine(
        model,
        tokenizer=processor.tokenizer,
        eos_token_ids=processor.eos_token_ids,
        options=EngineOptions(prefix_cache_bytes=0, image_cache_bytes=0),  # every run does all the work
    )
    load_s = time.perf_counter() - start
    done()
    # A least number of tokens also keeps the engine from guessing ahead, whose gain depends on the text.
    params = SamplingParams(max_new_tokens=setup.tokens, min_new_tokens=setup.tokens)
    firsts, speeds, prompt = [], [], None
    for run in range(1 + setup.runs):
        start = time.perf_counter()
        prompt = processor.chat([user_message(setup.picture, QUESTION)])
        arrivals = [time.perf_counter() for delta in engine.stream(prompt, params) for _ in delta.ids]
        done()
        if run:  # the first is a warm-up
            firsts.append(arrivals[0] - start)
            speeds.append((len(arrivals) - 1) / (arrivals[-1] - arrivals[0]))
    return Figures(
        quantize=setup.quantize,
        dtype=str(model.dtype).removeprefix("torch."),
        device=str(model.device),
        threads=torch.get_num_threads(),
        import_s=import_s,
        load_s=load_s,
        first_token_s=tuple(firsts),
        decode_tokens_per_s=tuple(speeds),
        peak_bytes=peak_bytes(),
        **_counts(prompt),
    )


def _counts(prompt: Prompt | None) -> dict[str, int]:
    assert prompt is not None
    return {"prompt_tokens": len(prompt.ids), "image_tokens": prompt.image_tokens}


def measure_apart(setup: Setup, done: Callable[[], object] = lambda: None) -> Figures:
    """`measure` in a fresh process, which ends with this call.

    Raises:
        BeholdError: as `measure`; or the process was ended from outside, as systems do that run out of memory.
    """
    import multiprocessing

    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe(duplex=False)
    process = context.Process(target=_work, args=(setup, theirs), daemon=True)
    process.start()
    theirs.close()
    try:
        while True:
            kind, value = ours.recv()
            if kind == "done":
                done()
            elif kind == "figures":
                figures: Figures = value
                return figures
            else:
                raise value
    except EOFError:
        process.join()
        raise BeholdError(
            f"the process that measured quantize={setup.quantize!r} ended without a result (exit code "
            f"{process.exitcode}); -9 usually means that memory ran out: try a smaller scheme"
        ) from None
    finally:
        process.terminate()
        process.join()
        ours.close()


def _work(setup: Setup, connection: Connection[Any, Any]) -> None:
    """What the other process does: sends ("done", None) after each step, then ("figures", …) or ("error", …)."""
    import signal

    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl+C is for the one who waits, who ends this process
    try:
        connection.send(("figures", measure(setup, lambda: connection.send(("done", None)))))
    except BeholdError as error:
        connection.send(("error", error))
