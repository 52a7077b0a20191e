"""Advice to the system: whole pages alone, and nothing where it cannot be taken."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch

from behold import pages
from behold.pages import Advice, advise

PAGE = 4096


@pytest.fixture
def told(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, int, int]]:
    calls: list[tuple[int, int, int]] = []

    def system(address: int, n_bytes: int, advice: int) -> int:
        calls.append((address, n_bytes, advice))
        return 0

    monkeypatch.setattr(pages, "_system", lambda: system)
    monkeypatch.setattr("mmap.PAGESIZE", PAGE)
    return calls


def test_pages_that_somebody_shares_are_left_alone(told: list[tuple[int, int, int]]) -> None:
    assert advise(10 * PAGE + 1, 3 * PAGE, Advice.TAKE_BACK)
    assert advise(10 * PAGE, 3 * PAGE, Advice.LARGE)
    assert told == [(11 * PAGE, 2 * PAGE, 4), (10 * PAGE, 3 * PAGE, 14)]


@pytest.mark.parametrize(("address", "n_bytes"), [(PAGE + 1, PAGE), (PAGE, 0), (PAGE + 8, 16)])
def test_less_than_a_page_is_not_worth_a_word(told: list[tuple[int, int, int]], address: int, n_bytes: int) -> None:
    assert not advise(address, n_bytes, Advice.LARGE)
    assert told == []


def test_other_systems_are_not_told(monkeypatch: pytest.MonkeyPatch) -> None:
    pages._system.cache_clear()
    with monkeypatch.context() as patch:
        patch.setattr(sys, "platform", "win32")
        assert not advise(PAGE, PAGE, Advice.LARGE)
    pages._system.cache_clear()


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux is told")
def test_what_is_taken_back_is_read_again(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(bytes([7]) * (1 << 16))
    tensor = torch.from_file(str(tmp_path / "file"), size=1 << 16, dtype=torch.uint8)
    tensor += 1
    assert advise(tensor.data_ptr(), tensor.nbytes, Advice.TAKE_BACK)
    assert tensor.unique().tolist() == [7]
    assert not advise(PAGE, PAGE, Advice.READ), "nothing is there"
