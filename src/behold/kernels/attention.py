"""Our own attention on CPUs: over rows of the cache (float32, float16 or integers), and among all patches.

Of the time of `scaled_dot_product_attention` on a 2-core AVX2 machine it takes 0.75 to 0.9 for a picture, 0.6 to 0.7
for a prompt (torch computes the masked half) and 0.3 to 0.7 for a few tokens (`python -m benchmarks.attention`).
A token's result depends neither on its neighbours in a step nor on how a prompt is cut, but for a rounding that the way
chosen by the number of new tokens makes. Over rows of integers, a prompt's queries and weights are of 7 bits
(csrc/attention_many_q8.cpp: 0.6 of the time of float32), those of later tokens of 15.
"""

from __future__ import annotations

import ctypes
import functools
from collections.abc import Hashable, Sequence
from enum import Enum

import torch
from torch import Tensor

from behold.device import cpu_flags
from behold.kernels import native
from behold.kernels.rows import KeptRow

# New tokens of a sequence up to which its row is streamed; more share turned chunks of it. From four on that is faster,
# but a token and the guesses behind it (engine/lookup.py) are to come out as they do one by one, to the last bit.
FEW = 8
MAX_DIM = 128
MAX_ROUNDED_DIM = 256
FORK_WORK = 1 << 15  # places × width; less is done before a second thread has begun


class Way(Enum):
    """The kernels for rows of the cache."""

    FEW = 0
    MANY = 1


def way(row: KeptRow, tokens: int, *, prompt: bool = False) -> Way | None:
    """Which kernel is right for so many new causal tokens of a row, if one is.

    prompt: they are a prompt's. With rows of integers all of those go one way, as the other rounds less: what is
    answered does not depend on how a prompt was cut.
    """
    dim = row.dim
    if (
        native.LIBRARY is None
        or torch.is_grad_enabled()
        or row.dtype not in (torch.float32, torch.float16, torch.int8)
        or row.device != "cpu"
        or dim % 8
        or (row.dtype is torch.int8 and dim > MAX_ROUNDED_DIM)
    ):
        return None
    if tokens <= FEW and not (prompt and row.dtype is torch.int8 and dim <= MAX_DIM):
        return Way.FEW
    return Way.MANY if dim <= MAX_DIM else None


def integers_pay() -> bool:
    """Whether rows of 8 bits are read faster than those of float32: where kernels multiply integers of 16 bits."""
    return native.LIBRARY is not None and "avx2" in cpu_flags()


class RowTokens:
    """The sequences of one step that go the same way, ready for any layer."""

    def __init__(self, way: Way, rows: Sequence[tuple[KeptRow, int, int, int]]) -> None:
        """rows: for each sequence its row, how many places are filled, how many tokens come, and which of the step's
        tokens is its first.
        """
        self.words = [word for row, *numbers in rows for word in (*row.words, *numbers)]
        self._kept = [row for row, *_ in rows]  # as long as their addresses are used
        first = self._kept[0]
        self._bits, self._kv_heads, self._dim = 8 * first.dtype.itemsize, first.heads, first.dim
        work = sum(context + length for _, context, length, _ in rows) * first.heads * first.dim
        self._threads = torch.get_num_threads() if work >= FORK_WORK else 1
        self._way = way
        self.sameness: Hashable = (way, self._threads, tuple((length, begin) for _, _, length, begin in rows))
        """What must be alike for two steps of one cache to differ in nothing but `words`: threads, and tokens."""

    @functools.cached_property
    def places(self) -> ctypes.Array[ctypes.c_int64]:
        """`words`, where the kernels read them: when others are written here, a replayed call works on those."""
        return (ctypes.c_int64 * len(self.words))(*self.words)

    def attend(self, layer: int, q: Tensor, k: Tensor, v: Tensor, out: Tensor, *, window: int | None) -> None:
        """Store the sequences' new keys and values and fill their rows of out (N, Hq, d).

        q: (N, Hq, d), k and v: (N, Hkv, d), float32. window: see CacheView.attend. Tokens may lie apart, as where q, k
        and v are parts of one product; out is contiguous.
        """
        q, k, v = _whole_tokens(q), _whole_tokens(k), _whole_tokens(v)
        if k.stride(0) != v.stride(0):
            k, v = k.contiguous(), v.contiguous()
        native.call(
            "bh_attend_rows",
            self.places,
            len(self._kept),
            q.data_ptr(),
            k.data_ptr(),
            v.data_ptr(),
            out.data_ptr(),
            q.stride(0),
            k.stride(0),
            layer,
            q.shape[1],
            self._kv_heads,
            self._dim,
            window or 0,
            self._bits,
            self._way.value,
            self._threads,
            kept=(q, k, v, out),
        )


def _whole_tokens(x: Tensor) -> Tensor:
    """(N, H, d) with each token's numbers one behind the other."""
    return x if x.stride(2) == 1 and x.stride(1) == x.shape[2] else x.contiguous()


def suits_all(q: Tensor, k: Tensor, v: Tensor, heads: int) -> bool:
    """Whether `attend_all` is right here."""
    dim = q.shape[-1] // heads
    return native.LIBRARY is not None and dim % 8 == 0 and dim <= MAX_DIM and native.ready(q, k, v)


def attend_all(q: Tensor, k: Tensor, v: Tensor, heads: int, *, start: int, stop: int) -> Tensor:
    """Rows [start, stop) of attention in which every row sees all of its own picture.

    q, k, v: (B, n, heads · d) float32, contiguous. Returns (B, stop - start, heads · d).
    """
    assert native.LIBRARY is not None
    batch, length, width = q.shape
    out = q.new_empty(batch, stop - start, width)
    native.LIBRARY.bh_attend_all(
        q.data_ptr(),
        k.data_ptr(),
        v.data_ptr(),
        out.data_ptr(),
        batch,
        length,
        start,
        stop,
        heads,
        width // heads,
        width,
        torch.get_num_threads() if q.numel() >= FORK_WORK else 1,
    )
    return out
