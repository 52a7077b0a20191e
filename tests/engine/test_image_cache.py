"""Embeddings by digest: budget, order of leaving, pins."""

from __future__ import annotations

from collections import Counter

import torch
from hypothesis import given
from hypothesis import strategies as st

from behold.engine.image_cache import ImageCache

ROW_BYTES = 4 * 4


def rows(n: int) -> torch.Tensor:
    return torch.zeros(n, 4)


def test_the_least_recently_used_leaves_first() -> None:
    cache = ImageCache(3 * ROW_BYTES)
    for digest in "abc":
        cache.put(digest, rows(1))
    assert cache["a"].shape == (1, 4)
    cache.put("d", rows(1))
    assert [digest in cache for digest in "abcd"] == [True, False, True, True]
    assert cache.n_bytes == 3 * ROW_BYTES


def test_pinned_ones_stay_above_the_budget_until_released() -> None:
    cache = ImageCache(ROW_BYTES)
    for digest in "ab":
        cache.pin(digest)
        cache.put(digest, rows(2))
    assert len(cache) == 2 and cache.n_bytes == 4 * ROW_BYTES
    cache.pin("a")
    cache.unpin("a")
    assert "a" in cache, "pins are counted"
    cache.unpin("b")
    assert "b" not in cache and "a" in cache
    cache.unpin("a")
    assert len(cache) == 0
    cache.check()


def test_a_slice_of_a_batch_does_not_keep_the_batch() -> None:
    cache = ImageCache(1 << 20)
    batch = torch.zeros(100, 4)
    cache.put("a", batch[3:5])
    assert cache["a"].untyped_storage().nbytes() == 2 * ROW_BYTES == cache.n_bytes


def test_clear_leaves_what_is_in_use() -> None:
    cache = ImageCache(1 << 20)
    cache.pin("a")
    cache.put("a", rows(1))
    cache.put("b", rows(1))
    cache.clear()
    assert "a" in cache and "b" not in cache


actions = st.tuples(st.sampled_from(["put", "pin", "unpin", "get"]), st.sampled_from("abcdef"), st.integers(1, 5))


@given(actions=st.lists(actions, max_size=60), budget=st.integers(0, 12))
def test_any_use_keeps_the_books(actions: list[tuple[str, str, int]], budget: int) -> None:
    cache, pins = ImageCache(budget * ROW_BYTES), Counter[str]()
    present: set[str] = set()
    for action, digest, n in actions:
        if action == "put":
            cache.put(digest, rows(n))
            present.add(digest)
        elif action == "pin":
            cache.pin(digest)
            pins[digest] += 1
        elif action == "unpin" and pins[digest]:
            cache.unpin(digest)
            pins[digest] -= 1
        elif action == "get" and digest in cache:
            cache[digest]
        cache.check()
        present &= {key for key in "abcdef" if key in cache} | {key for key in present if pins[key]}
        assert all(key in cache for key in present if pins[key])
        unpinned = [key for key in "abcdef" if key in cache and not pins[key]]
        assert cache.n_bytes <= budget * ROW_BYTES or not unpinned
