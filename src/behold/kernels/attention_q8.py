"""Attention among all patches of a picture with rounded numbers, for towers whose layers are rounded as well.

Queries and keys become integers of up to ±90, weights of up to 127 and values of up to ±104, each without its mean over
the patches; csrc/attention_q8.cpp says with which scales. Of normally distributed numbers the result is 2 % off. A
picture's result depends neither on others beside it nor on the pieces in which its rows are asked for.
"""

from __future__ import annotations

import torch
from torch import Tensor

from behold.kernels import native

# What csrc/attention_q8.cpp calls the same.
CHUNK = 96
SHORT = 5
MAX_DIM = 128

FORK_NUMBERS = 1 << 17  # less is done before a second thread has begun


def suits(width: int, heads: int) -> bool:
    """Whether `Rounded` can take heads that are so wide together."""
    dim = width // heads
    return native.LIBRARY is not None and dim % 8 == 0 and dim <= MAX_DIM


class Rounded:
    """The rounded keys and values of pictures of one size, and the queries that look at them."""

    def __init__(self, joined: Tensor, heads: int) -> None:
        """joined: (B, n, 3 · heads · d) float32, contiguous: queries, keys and values side by side."""
        self._joined, self._heads = joined, heads
        batch, length, width = joined.shape
        self._width = width // 3
        self._kept = torch.empty(batch * heads * _head_bytes(length, self._width // heads), dtype=torch.uint8)
        self._threads = torch.get_num_threads() if joined.numel() >= FORK_NUMBERS else 1
        addresses = (joined.data_ptr() + i * self._width * joined.element_size() for i in range(3))
        shape = (batch, length, heads, self._width // heads, width)
        native.call(
            "bh_attend_q8_keep",
            *addresses,
            self._kept.data_ptr(),
            *shape,
            self._threads,
            kept=(joined, self._kept),
        )

    def attend(self, start: int, stop: int) -> Tensor:
        """Rows [start, stop) of every picture, (B, stop - start, heads · d)."""
        batch, length, width = self._joined.shape
        out = self._joined.new_empty(batch, stop - start, self._width)
        native.call(
            "bh_attend_q8",
            self._joined.data_ptr(),
            self._kept.data_ptr(),
            out.data_ptr(),
            batch,
            length,
            start,
            stop,
            self._heads,
            self._width // self._heads,
            width,
            self._threads,
            kept=(self._joined, self._kept, out),
        )
        return out


def _head_bytes(length: int, dim: int) -> int:
    """What one head of a picture takes: two means, then chunk by chunk scales, begins of sums, keys and values."""
    begins = -(-dim // (8 * SHORT)) * 4 * CHUNK
    return 8 * dim + -(-length // CHUNK) * (CHUNK * (8 + 2 * dim) + begins + 4 * dim)
