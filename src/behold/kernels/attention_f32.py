"""Our own attention of a few new tokens over rows of the cache, float32: one call for all sequences of a step.

Against `scaled_dot_product_attention`, sequence by sequence, on a 2-core AVX2 machine at 800 places it takes 0.6 to 0.7
of the time, and reads 21 of the 22 GB/s that memory gives with eight sequences (`python -m benchmarks.attention`).
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence

import torch
from torch import Tensor

from behold.kernels import native

MAX_TOKENS = 16  # of one sequence; more share more, which torch's tiles make better use of


def suits(storage: Tensor, tokens: int) -> bool:
    """Whether `FewTokens` is right and faster for so many new causal tokens over a row (L, 2, Hkv, places, d)."""
    return native.LIBRARY is not None and tokens <= MAX_TOKENS and storage.shape[-1] % 8 == 0 and native.ready(storage)


class FewTokens:
    """The sequences of one step that add few tokens each, ready for any layer."""

    def __init__(self, rows: Sequence[tuple[Tensor, int, int, int]]) -> None:
        """rows: for each sequence its storage (L, 2, Hkv, places, d), how many places are filled, how many tokens
        come, and which of the step's tokens is its first.
        """
        numbers = [
            number
            for storage, context, length, first in rows
            for number in (storage.data_ptr(), storage.shape[3], context, length, first)
        ]
        self._storages = [storage for storage, *_ in rows]  # as long as their addresses are used
        self._rows = (ctypes.c_int64 * len(numbers))(*numbers)
        self._n_rows = len(rows)
        self._work = sum(context + length for _, context, length, _ in rows)

    def attend(self, layer: int, q: Tensor, k: Tensor, v: Tensor, out: Tensor, *, window: int | None) -> None:
        """Store the sequences' new keys and values and fill their rows of out (N, Hq, d).

        q: (N, Hq, d), k and v: (N, Hkv, d), float32. window: see CacheView.attend.
        """
        assert native.LIBRARY is not None
        q, k, v = q.contiguous(), k.contiguous(), v.contiguous()
        native.LIBRARY.bh_attend_f32(
            self._rows,
            self._n_rows,
            q.data_ptr(),
            k.data_ptr(),
            v.data_ptr(),
            out.data_ptr(),
            layer,
            q.shape[1],
            k.shape[1],
            k.shape[2],
            window or 0,
            torch.get_num_threads() if self._work * k[0].numel() >= 1 << 15 else 1,
        )
