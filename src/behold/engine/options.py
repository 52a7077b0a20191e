"""What an engine may take: rows, waiting requests, memory. No torch."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class EngineOptions:
    """Limits of one engine.

    max_rows: sequences that run at once (a beam search takes num_beams of them).
    max_waiting: requests that may wait for a row; further ones are refused. None: any number.
    max_step_tokens: prompt tokens of one step; longer prompts are read in chunks. None: 1024 on a CPU, where more
        gains nothing, else 2048. As many places of pictures go through the tower together.
    kv_cache_bytes: memory for keys and values; None takes up to half of what is free on the device.
    kv_dtype: how keys and values are stored: "float32", "float16" (half the memory, and less to read for each token),
        "int8" (a quarter, with a scale for each token and head), or "auto": as the model computes, but int8 for a
        quantized one on a CPU with AVX2.
    prefix_cache_bytes: how much of that finished sequences may fill, for those that begin alike; 0 keeps nothing. None:
        a quarter of what the weights take, from 128 MiB to 1 GiB.
    image_cache_bytes: memory for image embeddings that are kept for a next time.
    lookup_rows: rows of a step that greedy answers may fill with guesses from their own text (engine/lookup.py).
    """

    max_rows: int = 16
    max_waiting: int | None = None
    max_step_tokens: int | None = None
    kv_cache_bytes: int | None = None
    kv_dtype: str = "auto"
    prefix_cache_bytes: int | None = None
    image_cache_bytes: int = 256 << 20
    lookup_rows: int = 8
