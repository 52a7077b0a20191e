"""Keys and values as rows: for each layer one table of growing rows, and the view of it that one step works through.

Layout, keys and values apart, per layer: (rows, Hkv, capacity, d). A row belongs to one sequence at a time
(engine/blocks.py says which); a head's keys lie next to each other, as every kernel reads them. The table grows by
doubling, so a decode step writes one place a head and copies nothing of the history.
"""

from __future__ import annotations

import os
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional as F

from behold.nn.attention import AttentionPlan, attend_masked, attention_mask

FIRST_CAPACITY = 64
FLOOR_BYTES = 1 << 30
PADDED_WORK_LIMIT = 1.5  # a padded batch may compute half as much again as is needed; beyond, rows go one by one


class KVCache:
    """Storage for `max_rows` rows at most and rows × capacity <= budget_tokens."""

    def __init__(
        self,
        *,
        n_layers: int,
        n_kv_heads: int,
        head_dim: int,
        max_rows: int,
        budget_tokens: int,
        device: torch.device,
        dtype: torch.dtype,
    ) -> None:
        self.max_rows = max_rows
        self.budget_tokens = budget_tokens
        self._like = torch.empty(0, n_kv_heads, 0, head_dim, device=device, dtype=dtype)
        self.keys: list[Tensor] = [self._like] * n_layers
        self.values: list[Tensor] = [self._like] * n_layers

    @property
    def shape(self) -> tuple[int, int]:
        """(rows, capacity) of the storage."""
        return self.keys[0].shape[0], self.keys[0].shape[2]

    @property
    def n_bytes(self) -> int:
        return sum(table.numel() * table.element_size() for table in (*self.keys, *self.values))

    def grow(self, rows: int, tokens: int, *, reserved: tuple[int, int]) -> None:
        """Make room for `tokens` places in each of `rows` rows; `reserved` (rows, capacity) is what may yet come."""
        if rows <= self.shape[0] and tokens <= self.shape[1]:
            return
        new = _grown(self.shape, (rows, tokens), reserved, self.max_rows, self.budget_tokens)
        # Layer by layer: old and new of one layer at a time is all the extra memory that growing takes. The one that
        # `shape` looks at goes last, so growing that was interrupted is simply done again.
        for tables in (self.values, self.keys):
            for layer in reversed(range(len(tables))):
                tables[layer] = _resized(tables[layer], *new)

    def fork(self, source: int, target: int, start: int, stop: int) -> None:
        """Copy places [start, stop) of one row into another."""
        for table in (*self.keys, *self.values):
            table[target, :, start:stop] = table[source, :, start:stop]

    def view(self, plan: AttentionPlan) -> RowView:
        return RowView(self, plan)


class RowView:
    """The CacheView of one step: knows the plan, keeps masks and indices that all layers share."""

    def __init__(self, cache: KVCache, plan: AttentionPlan) -> None:
        self._keys, self._values = cache.keys, cache.values
        self._masks: dict[tuple[int, int | None], Tensor | None] = {}
        device = cache.keys[0].device
        self._device = device
        self._plan = plan
        single = next((i for i, length in enumerate(plan.lengths) if length != 1), len(plan.lengths))
        self._decode = _DecodeRows(plan, single, device) if single > 1 else None
        self._rest = range(single if self._decode else 0, len(plan.lengths))

    def attend(self, layer: int, q: Tensor, k: Tensor, v: Tensor, *, window: int | None = None) -> Tensor:
        """See CacheView.attend."""
        keys, values = self._keys[layer], self._values[layer]
        if len(self._plan.lengths) == 1:
            return self._attend_row(0, keys, values, (q, k, v), window)
        outputs, start = [], 0
        if self._decode is not None:
            start = self._decode.n
            outputs.append(self._decode.attend(keys, values, (q[:start], k[:start], v[:start]), window))
        for index in self._rest:
            stop = start + self._plan.lengths[index]
            new = (q[start:stop], k[start:stop], v[start:stop])
            outputs.append(self._attend_row(index, keys, values, new, window))
            start = stop
        return torch.cat(outputs) if len(outputs) > 1 else outputs[0]

    def _attend_row(
        self, index: int, keys: Tensor, values: Tensor, new: tuple[Tensor, Tensor, Tensor], window: int | None
    ) -> Tensor:
        """One sequence's new rows (T, H, d) over its row of the table. Returns (T, Hq, d)."""
        q, k, v = new
        slot, context = self._plan.slots[index], self._plan.contexts[index]
        total = context + q.shape[0]
        row_k, row_v = keys[slot], values[slot]
        row_k[:, context:total] = k.transpose(0, 1)
        row_v[:, context:total] = v.transpose(0, 1)
        if q.shape[0] == 1 and not self._plan.spans_of(index):
            first = 0 if window is None else max(0, total - window)  # a window is a shorter history, no mask
            return attend_masked(q, row_k[:, first:total], row_v[:, first:total], None)
        mask = self._mask(index, window)
        return attend_masked(q, row_k[:, :total], row_v[:, :total], mask)

    def _mask(self, index: int, window: int | None) -> Tensor | None:
        if (index, window) not in self._masks:
            length, context = self._plan.lengths[index], self._plan.contexts[index]
            spans = self._plan.spans_of(index)
            mask = attention_mask(length, context, window=window, spans=spans, device=self._device)
            self._masks[index, window] = mask
        return self._masks[index, window]


class _DecodeRows:
    """The n >= 2 sequences of a plan that add one token: one padded batch, or one by one where that wastes less."""

    def __init__(self, plan: AttentionPlan, n: int, device: torch.device) -> None:
        self.n = n
        self._totals = [context + 1 for context in plan.contexts[:n]]
        self._slots = plan.slots[:n]
        self._longest = max(self._totals)
        self._low, self._high = min(self._slots), max(self._slots) + 1
        area = (self._high - self._low) * self._longest
        self._padded = device.type != "cpu" or area <= PADDED_WORK_LIMIT * sum(self._totals)
        self._rows = torch.tensor(self._slots, device=device)
        self._places = torch.tensor(plan.contexts[:n], device=device)
        # Without gaps the rows are a plain slice of the table; a gap's row is computed too and thrown away.
        self._dense = self._slots == tuple(range(self._low, self._high))
        self._masks: dict[int | None, Tensor] = {}

    def attend(self, keys: Tensor, values: Tensor, new: tuple[Tensor, Tensor, Tensor], window: int | None) -> Tensor:
        """new: q (n, Hq, d), k and v (n, Hkv, d). Returns (n, Hq, d)."""
        q, k, v = new
        keys[self._rows, :, self._places] = k
        values[self._rows, :, self._places] = v
        if not self._padded:
            return self._one_by_one(keys, values, q, window)
        n_heads, dim = q.shape[1:]
        if not self._dense:
            q = q.new_zeros(self._high - self._low, n_heads, dim).index_copy_(0, self._rows - self._low, q)
        grouped = q.reshape(q.shape[0], keys.shape[1], -1, dim)  # query heads of a group as rows: no copies of k, v
        out = F.scaled_dot_product_attention(
            grouped,
            keys[self._low : self._high, :, : self._longest],
            values[self._low : self._high, :, : self._longest],
            attn_mask=self._mask(window),
        ).reshape(-1, n_heads, dim)
        return out if self._dense else out.index_select(0, self._rows - self._low)

    def _one_by_one(self, keys: Tensor, values: Tensor, q: Tensor, window: int | None) -> Tensor:
        outputs = []
        for i, (slot, total) in enumerate(zip(self._slots, self._totals, strict=True)):
            first = 0 if window is None else max(0, total - window)
            row_k, row_v = keys[slot, :, first:total], values[slot, :, first:total]
            outputs.append(attend_masked(q[i : i + 1], row_k, row_v, None))
        return torch.cat(outputs)

    def _mask(self, window: int | None) -> Tensor:
        """(rows, 1, 1, S) booleans. A gap's row sees its first place, for a softmax over nothing is not a number."""
        if window not in self._masks:
            totals = self._places.new_ones(self._high - self._low)
            totals[self._rows - self._low] = self._places + 1
            columns = torch.arange(self._longest, device=totals.device)
            mask = columns < totals[:, None]
            if window is not None:
                mask &= columns >= totals[:, None] - window
            self._masks[window] = mask[:, None, None]
        return self._masks[window]


def budget_bytes(device: torch.device) -> int:
    """Memory to set aside for keys and values when nobody says: half of what is free on the device.

    It is a ceiling: storage grows as it is needed. Not below FLOOR_BYTES, which one long request needs in any case.
    """
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0]) // 2
    return max(_free_bytes() // 2, FLOOR_BYTES)


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


def _grown(
    old: tuple[int, int], needed: tuple[int, int], reserved: tuple[int, int], max_rows: int, budget_tokens: int
) -> tuple[int, int]:
    """The next shape: doubled where it was too small, but never more than the rows or the memory allow."""
    rows = old[0] if needed[0] <= old[0] else min(max(needed[0], 2 * old[0]), max_rows)
    capacity = old[1]
    if needed[1] > old[1]:
        ceiling = max(reserved[1], needed[1])
        capacity = min(max(_power_of_two(needed[1]), 2 * old[1]), _whole(ceiling))
    if rows * capacity > budget_tokens:  # what was reserved always fits
        rows, capacity = max(needed[0], reserved[0]), max(needed[1], reserved[1])
    return rows, capacity


def _power_of_two(tokens: int) -> int:
    return max(FIRST_CAPACITY, 1 << (tokens - 1).bit_length())


def _whole(tokens: int) -> int:
    """Up to a multiple of the first capacity."""
    return -(-tokens // FIRST_CAPACITY) * FIRST_CAPACITY


def _resized(table: Tensor, rows: int, capacity: int) -> Tensor:
    """A zeroed table of the new shape with what fits of the old. Zeroed, for masked places are multiplied by 0."""
    new = table.new_zeros(rows, table.shape[1], capacity, table.shape[3])
    kept, places = min(rows, table.shape[0]), min(capacity, table.shape[2])
    new[:kept, :, :places] = table[:kept, :, :places]
    return new
