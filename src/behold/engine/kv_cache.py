"""Keys and values as rows, one storage a row, and the view of them that one step works through.

A row is (layers, 2, Hkv, capacity, d): a head's keys lie next to each other, as every kernel reads them; what its
numbers are, kernels/rows.py says. It grows by doubling, so a decode step writes one place a head and copies nothing of
the history. engine/blocks.py says which rows there are and how large they may become.
"""

from __future__ import annotations

import itertools
import os
from collections.abc import Iterator, Set
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from behold.engine.blocks import capacity
from behold.errors import OptionError
from behold.kernels import attention
from behold.kernels.attention import RowTokens, Way
from behold.kernels.rows import KeptRow, bytes_a_place
from behold.nn.attention import AttentionPlan, attend_masked, attention_mask, branch_mask

if TYPE_CHECKING:
    from behold.models.base import VisionLanguageModel
    from behold.models.config import TextConfig

FLOOR_BYTES = 1 << 30
KEPT_BYTES = 1 << 27, 1 << 30  # at least and at most, of finished sequences
SLACK_TOKENS = 256
# The share of a row that is filled at once, from which it lies in large pages: they take memory for all of it.
FULL = 2 / 3
KV_DTYPES = {"float32": torch.float32, "float16": torch.float16, "int8": torch.int8}


class KVCache:
    """The storage of all rows."""

    def __init__(
        self,
        *,
        n_layers: int,
        n_kv_heads: int,
        head_dim: int,
        device: torch.device,
        dtype: torch.dtype,
        computes: torch.dtype | None = None,
    ) -> None:
        """dtype: what is stored. computes: what queries, keys and values come in; None: the same."""
        self.n_layers, self.n_kv_heads, self.head_dim = n_layers, n_kv_heads, head_dim
        self.device, self.dtype, self.computes = device, dtype, computes or dtype
        self.rows: dict[int, KeptRow] = {}
        self._used: dict[int, int] = {}

    @property
    def n_bytes(self) -> int:
        """Bytes of all places that were asked for."""
        a_place = 2 * self.n_layers * self.n_kv_heads * bytes_a_place(self.head_dim, self.dtype)
        return sum(self._used.values()) * a_place

    def retain(self, rows: Set[int]) -> None:
        """Free every row that is not among `rows`."""
        for row in self.rows.keys() - rows:
            del self.rows[row], self._used[row]

    def grow(self, row: int, tokens: int, *, reserve: int) -> None:
        """Make room for `tokens` places in a row that may come to need `reserve`."""
        old = self.rows.get(row)
        if old is None or old.places < tokens:
            new = KeptRow.empty(self._shape(tokens, reserve), self.dtype, self.device)
            if tokens >= new.places * FULL:
                new.in_large_pages()
            if old is not None:
                new.take(old, 0, old.places)
            self.rows[row] = new
        self._used[row] = max(tokens, self._used.get(row, 0))

    def copy(self, source: int, target: int, start: int, stop: int) -> None:
        """Copy places [start, stop) of one row into another, which has room for them."""
        self.rows[target].take(self.rows[source], start, stop)

    def view(self, plan: AttentionPlan) -> RowView:
        return RowView(self, plan)

    def _shape(self, tokens: int, reserve: int) -> tuple[int, ...]:
        places = capacity(tokens, reserve)
        if self.device.type == "cpu":
            # What is never written takes no memory there, and moving a row to a larger place takes a quarter of a
            # second for a picture's worth of it: room for the next turns of a conversation is free.
            places = capacity(max(tokens, min(reserve, tokens + SLACK_TOKENS)))
        return (self.n_layers, 2, self.n_kv_heads, places, self.head_dim)


class RowView:
    """The CacheView of one step: knows the plan, keeps the masks that all layers share."""

    def __init__(self, cache: KVCache, plan: AttentionPlan) -> None:
        self._rows = [cache.rows[slot] for slot in plan.slots]
        self._plan = plan
        self._device = cache.device
        self._masks: dict[tuple[int, int | None], Tensor | None] = {}
        self._starts = [0, *itertools.accumulate(plan.lengths)]
        ways = [self._way(cache, index) for index in range(len(self._rows))]
        self._others = [index for index, way in enumerate(ways) if way is None]
        self._ours = [
            RowTokens(way, [given for own, given in zip(ways, self._given(), strict=True) if own is way])
            for way in dict.fromkeys(ways)
            if way is not None
        ]

    def _given(self) -> Iterator[tuple[KeptRow, int, int, int]]:
        """As RowTokens is given the sequences."""
        return zip(self._rows, self._plan.contexts, self._plan.lengths, self._starts, strict=False)

    def attend(self, layer: int, q: Tensor, k: Tensor, v: Tensor, *, window: int | None = None) -> Tensor:
        """See CacheView.attend. Each sequence's rows over its own keys: a padded batch is no faster on a CPU."""
        if len(self._others) == len(self._rows) == 1:
            return self._attend_row(0, layer, (q, k, v), window)
        out = torch.empty_like(q, memory_format=torch.contiguous_format)
        for tokens in self._ours:
            tokens.attend(layer, q, k, v, out, window=window)
        for index in self._others:
            rows = slice(self._starts[index], self._starts[index + 1])
            out[rows] = self._attend_row(index, layer, (q[rows], k[rows], v[rows]), window)
        return out

    @property
    def tokens(self) -> RowTokens | None:
        """All sequences of the step, where one kernel attends for all of them."""
        return self._ours[0] if len(self._ours) == 1 and not self._others else None

    def _way(self, cache: KVCache, index: int) -> Way | None:
        """The kernel for a sequence's tokens, if they see nothing but what is before them."""
        plain = not self._plan.spans_of(index) and not self._plan.branches_of(index)
        if not plain or cache.computes is not torch.float32:
            return None
        return attention.way(self._rows[index], self._plan.lengths[index], prompt=self._plan.is_prompt(index))

    def _attend_row(self, index: int, layer: int, new: tuple[Tensor, Tensor, Tensor], window: int | None) -> Tensor:
        """One sequence's new rows (T, H, d) over its row of the cache. Returns (T, Hq, d)."""
        q, k, v = new
        context = self._plan.contexts[index]
        total = context + q.shape[0]
        self._rows[index].put(layer, context, k, v)
        keys, values = self._rows[index].seen(layer, total, q.dtype)
        if q.shape[0] == 1 and not self._plan.spans_of(index):
            first = 0 if window is None else max(0, total - window)  # a window is a shorter history, no mask
            return attend_masked(q, keys[:, first:], values[:, first:], None)
        return attend_masked(q, keys, values, self._mask(index, window))

    def _mask(self, index: int, window: int | None) -> Tensor | None:
        if (index, window) not in self._masks:
            length, context = self._plan.lengths[index], self._plan.contexts[index]
            if branches := self._plan.branches_of(index):
                mask: Tensor | None = branch_mask(branches, context, window=window, device=self._device)
            else:
                spans = self._plan.spans_of(index)
                mask = attention_mask(length, context, window=window, spans=spans, device=self._device)
            self._masks[index, window] = mask
        return self._masks[index, window]


def stored_as(choice: str, model: VisionLanguageModel) -> torch.dtype:
    """The type of keys and values that EngineOptions.kv_dtype means for this model.

    Raises:
        OptionError: no such type.
    """
    if choice != "auto" and choice not in KV_DTYPES:
        raise OptionError(f"kv_dtype={choice!r} is not allowed: one of {', '.join(map(repr, ('auto', *KV_DTYPES)))}")
    if choice != "auto":
        return KV_DTYPES[choice]
    narrow = model.quantized and model.device.type == "cpu" and model.dtype is torch.float32
    return torch.int8 if narrow and attention.integers_pay() else model.dtype


def bytes_a_token(text: TextConfig, dtype: torch.dtype) -> int:
    """Bytes of keys and values that one token takes in all layers."""
    return 2 * text.num_hidden_layers * text.num_key_value_heads * bytes_a_place(text.head_dim, dtype)


def budget_bytes(device: torch.device) -> int:
    """Memory to set aside for keys and values when nobody says: half of what is free on the device.

    It is a ceiling: storage grows as it is needed. Not below FLOOR_BYTES, which one long request needs in any case.
    """
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0]) // 2
    return max(_free_bytes() // 2, FLOOR_BYTES)


def kept_bytes(choice: int | None, model: VisionLanguageModel) -> int:
    """What EngineOptions.prefix_cache_bytes means for this model: small ones are chosen to take little memory."""
    if choice is not None:
        return choice
    weights = sum(tensor.nbytes for tensor in (*model.parameters(), *model.buffers()))
    return min(max(weights // 4, KEPT_BYTES[0]), KEPT_BYTES[1])


def _free_bytes() -> int:
    """What programs can get on this computer; a quarter of all memory where the system does not say."""
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
        return next(int(line.split()[1]) << 10 for line in lines if line.startswith("MemAvailable"))
    except (OSError, StopIteration):
        pass
    try:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 4
    except (AttributeError, OSError, ValueError):
        return FLOOR_BYTES
