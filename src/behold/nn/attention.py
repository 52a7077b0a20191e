"""Attention over a ragged batch: the plan of one step, what a decoder may ask of a cache, and the plain torch path.

A step packs the new tokens of several sequences into one row dimension N, without padding. `AttentionPlan` says
which rows belong to whom; a `CacheView` knows where the earlier keys and values are. The decoder only calls
`cache.attend(...)` per layer, so rows, pages, prefix sharing and native kernels can change behind it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor
from torch.nn import functional as F


@dataclass(frozen=True, slots=True)
class AttentionPlan:
    """Who the N rows of one step belong to. Everything is plain integers, one entry a sequence.

    lengths: new tokens of each sequence in this step; they sum to N, in row order.
    contexts: tokens of each sequence that are in the cache already (0 for a first chunk).
    slots: the cache row of each sequence.
    bidirectional: for each sequence the [start, stop) token ranges, counted from its first token, that attend
        both ways inside themselves; such a range is never split over two steps.
    branches: for each sequence the lengths of runs of new tokens, one behind the other, that all go on from the
        context and do not see each other; () is one run.
    prompts: for each sequence whether its new tokens are of its prompt: they are computed alike, however few of them
        come in one step; () is none.
    """

    lengths: tuple[int, ...]
    contexts: tuple[int, ...]
    slots: tuple[int, ...]
    bidirectional: tuple[tuple[tuple[int, int], ...], ...] = ()
    branches: tuple[tuple[int, ...], ...] = ()
    prompts: tuple[bool, ...] = ()

    @property
    def n_rows(self) -> int:
        return sum(self.lengths)

    @property
    def is_decode(self) -> bool:
        """Every sequence adds exactly one token."""
        return all(length == 1 for length in self.lengths)

    def spans_of(self, index: int) -> tuple[tuple[int, int], ...]:
        return self.bidirectional[index] if self.bidirectional else ()

    def branches_of(self, index: int) -> tuple[int, ...]:
        return self.branches[index] if self.branches else ()

    def is_prompt(self, index: int) -> bool:
        return bool(self.prompts) and self.prompts[index]


class CacheView(Protocol):
    """What the decoder sees of the KV cache during one step."""

    def attend(self, layer: int, q: Tensor, k: Tensor, v: Tensor, *, window: int | None = None) -> Tensor:
        """Store this step's keys and values and return the attention output.

        q: (N, Hq, d), k and v: (N, Hkv, d), already rotated; Hq is a multiple of Hkv. Rows attend to their own
        sequence only: causally, and both ways inside bidirectional ranges. `window` limits how far back a row sees
        (window=4: itself and the three before). Returns (N, Hq, d). Scores are scaled by 1/sqrt(d).
        """


def attention_mask(
    length: int, context: int, *, window: int | None, spans: tuple[tuple[int, int], ...], device: torch.device
) -> Tensor | None:
    """(length, context + length) boolean mask, True where a row may look; None where a plain causal flag suffices.

    None is returned for a single new token that sees everything and for a first chunk without spans that fits the
    window: the caller then uses no mask, or `is_causal`, which lets torch choose its fastest kernel.
    """
    total = context + length
    windowed = window is not None and total > window
    if not windowed and not spans and (length == 1 or context == 0):
        return None
    rows = torch.arange(context, total, device=device)[:, None]
    columns = torch.arange(total, device=device)[None, :]
    mask = columns <= rows
    if window is not None and windowed:
        mask &= columns > rows - window
    for start, stop in spans:
        mask |= (rows >= start) & (rows < stop) & (columns >= start) & (columns < stop)
    return mask


def branch_mask(branches: tuple[int, ...], context: int, *, window: int | None, device: torch.device) -> Tensor:
    """(N, context + N) boolean mask of N = sum(branches) new tokens: each run sees the context and itself, causally."""
    run = torch.repeat_interleave(torch.arange(len(branches)), torch.tensor(branches))
    place = torch.cat([torch.arange(length) for length in branches]) + context
    own = (run[:, None] == run[None, :]) & (place[None, :] <= place[:, None])
    mask = torch.cat([torch.ones(len(run), context, dtype=torch.bool), own], dim=1)
    if window is not None:
        mask &= torch.cat([torch.arange(context), place])[None, :] > place[:, None] - window
    return mask.to(device)


def attend_one(
    q: Tensor, k: Tensor, v: Tensor, *, window: int | None = None, spans: tuple[tuple[int, int], ...] = ()
) -> Tensor:
    """Reference attention of one sequence's new rows over all its keys.

    q: (T, Hq, d) the newest T tokens; k, v: (Hkv, S, d) all S >= T tokens so far. Returns (T, Hq, d).
    """
    length, total = q.shape[0], k.shape[1]
    mask = attention_mask(length, total - length, window=window, spans=spans, device=q.device)
    return attend_masked(q, k, v, mask)


def attend_masked(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
    """attend_one with a mask that is ready: (T, S) booleans, or None as from `attention_mask`.

    q: (T, Hq, d), k and v: (Hkv, S, d), strided views allowed. Returns (T, Hq, d).
    """
    length, n_heads, dim = q.shape
    if length == 1 and mask is None:
        # One row sees all: the query heads of a group are as good as query rows, which spares copies of k and v.
        out = F.scaled_dot_product_attention(q.view(1, k.shape[0], -1, dim), k[None], v[None])
        return out.view(1, n_heads, dim)
    out = F.scaled_dot_product_attention(
        q.transpose(0, 1)[None],
        k[None],
        v[None],
        attn_mask=mask,
        is_causal=mask is None and length > 1,
        enable_gqa=n_heads != k.shape[0],
    )
    return out[0].transpose(0, 1)


class PlainCache:
    """A CacheView that keeps nothing: whole sequences in one pass, differentiable. Used by `model(**inputs)`."""

    def __init__(self, plan: AttentionPlan) -> None:
        assert not any(plan.contexts), "PlainCache sees whole sequences only"
        self.plan = plan

    def attend(self, layer: int, q: Tensor, k: Tensor, v: Tensor, *, window: int | None = None) -> Tensor:
        """See CacheView.attend."""
        outputs, start = [], 0
        for index, length in enumerate(self.plan.lengths):
            rows = slice(start, start + length)
            keys, values = k[rows].transpose(0, 1), v[rows].transpose(0, 1)
            outputs.append(attend_one(q[rows], keys, values, window=window, spans=self.plan.spans_of(index)))
            start += length
        return torch.cat(outputs)
