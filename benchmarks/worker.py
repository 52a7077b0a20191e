"""One peer in a process of its own: loads a checkpoint, then answers one timed request per line of standard input.

The code is that of a Hugging Face user, and the same for every library that has transformers' classes; llama.cpp is in
benchmarks.llama. Answers are JSON lines on standard output, everything that libraries print goes to standard error.
"""

from __future__ import annotations

import json
import os
import sys
import time
from dataclasses import dataclass, field
from importlib import import_module
from typing import Any, TextIO

QUESTION = "What is it?"


def peak_bytes() -> int:
    """The most resident memory this process has had."""
    from behold.api.bench import peak_bytes as peak  # light, but not before the time of importing is taken

    found = peak()
    assert found is not None, "this system does not say how much memory a process had"
    return found


@dataclass
class Clock:
    """A streamer that only notes when tokens come: the prompt first, then each step's."""

    arrivals: list[tuple[float, int]] = field(default_factory=list)
    ids: list[int] = field(default_factory=list)

    def put(self, value: Any) -> None:
        now = time.perf_counter()
        new = value.reshape(-1).tolist()
        self.arrivals.append((now, len(new)))
        if len(self.arrivals) > 1:
            self.ids += new

    def end(self) -> None:
        """Part of the streamers' protocol; nothing to do."""


class Peer:
    """A loaded model and processor of one library."""

    def __init__(self, library: str, folder: str, *, dtype: str, device: str, quantize: str | None) -> None:
        start = time.perf_counter()
        module = import_module(library)
        processors, models = module.AutoProcessor, module.AutoModelForImageTextToText
        self.import_s = time.perf_counter() - start
        import torch

        torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
        self.base_bytes = peak_bytes()
        options = {"quantization_config": module.QuantoConfig(weights=quantize)} if quantize else {}
        start = time.perf_counter()
        self.processor = processors.from_pretrained(folder)
        self.model = models.from_pretrained(folder, dtype=dtype, **options).to(device).eval()
        self.load_s = time.perf_counter() - start
        self.load_bytes = peak_bytes()
        self.synchronize = torch.cuda.synchronize if device.startswith("cuda") else None

    def described(self) -> dict[str, Any]:
        """What is known after loading."""
        return {
            "import_s": self.import_s,
            "load_s": self.load_s,
            "base_bytes": self.base_bytes,
            "load_bytes": self.load_bytes,
            "dtype": str(self.model.dtype).removeprefix("torch."),
        }

    def inputs(self, picture: Any, question: str) -> Any:
        content = [{"type": "image"}, {"type": "text", "text": question}]
        text = self.processor.apply_chat_template([{"role": "user", "content": content}], add_generation_prompt=True)
        batch = self.processor(text=text, images=[picture], return_tensors="pt")
        return batch.to(self.model.device, dtype=self.model.dtype)

    def answer(self, *, picture_seed: int, side: int, prompt_tokens: int, decode_tokens: int) -> dict[str, Any]:
        """Time one request from the decoded picture to the last token; every run has a picture of its own."""
        picture, question = noise(picture_seed, side), QUESTION
        missing = prompt_tokens - self.inputs(picture, question)["input_ids"].shape[1]
        question += "?" * max(missing, 0)  # one token a byte
        clock = Clock()
        start = time.perf_counter()
        inputs = self.inputs(picture, question)
        self.model.generate(
            **inputs,
            max_new_tokens=1 + decode_tokens,
            min_new_tokens=1 + decode_tokens,
            do_sample=False,
            streamer=clock,
        )
        if self.synchronize:
            self.synchronize()
        if len(clock.ids) != 1 + decode_tokens:
            raise SystemExit(f"{len(clock.ids)} tokens came, {1 + decode_tokens} were asked for")
        first, last = clock.arrivals[1][0], clock.arrivals[-1][0]
        later = len(clock.ids) - clock.arrivals[1][1]
        return {
            "prompt_tokens": inputs["input_ids"].shape[1],
            "picture_sizes": picture_sizes(inputs),
            "first_token_s": first - start,
            "decode_tokens_per_s": later / (last - first) if later else None,
            "peak_bytes": peak_bytes(),
            "ids": clock.ids,
        }


def picture_sizes(inputs: Any) -> list[tuple[int, int]]:
    """(height, width) in pixels of every picture, or crop of one, that the tower is shown: without padding."""
    pixels, mask = inputs["pixel_values"], inputs.get("pixel_attention_mask")
    if mask is None:
        return [tuple(each.shape[-2:]) for each in pixels.flatten(0, -4)]
    return [(int(each.any(1).sum()), int(each.any(0).sum())) for each in mask.flatten(0, -3).bool()]


def noise(seed: int, side: int) -> Any:
    """A square picture of seeded noise."""
    import numpy as np
    from PIL import Image

    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (side, side, 3), dtype=np.uint8))


def own_stdout() -> TextIO:
    """Standard output for us alone: what libraries print goes to standard error."""
    ours = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    return ours


def load(library: str, setup: dict[str, Any]) -> Any:
    """A peer: `described` says what loading took, `answer` what a request takes."""
    if library == "llama.cpp":
        from benchmarks.llama import LlamaPeer

        return LlamaPeer(**setup)
    return Peer(library, **setup)


def main() -> None:
    """Read a setup, then requests, one JSON object a line, until standard input ends.

    What the library refuses to load is an answer too: {"refused": why}.
    """
    out = own_stdout()

    def say(record: dict[str, Any]) -> None:
        out.write(json.dumps(record) + "\n")
        out.flush()

    try:
        peer = load(**json.loads(sys.stdin.readline()))
    except (ImportError, ValueError) as error:
        say({"refused": str(error)})
        raise
    say(peer.described())
    for line in sys.stdin:
        say(peer.answer(**json.loads(line)))


if __name__ == "__main__":
    main()
