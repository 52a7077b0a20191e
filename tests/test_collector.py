"""The collector of cycles is back as soon as nobody wants it quiet, and only where it was on."""

from __future__ import annotations

import gc

import pytest

from behold.collector import Pauses


def test_it_rests_until_the_last_one_leaves() -> None:
    paused = Pauses()
    with paused:
        with paused:
            assert not gc.isenabled()
        assert not gc.isenabled()
    assert gc.isenabled()


def test_it_is_back_after_an_error() -> None:
    with pytest.raises(KeyError), Pauses():
        raise KeyError
    assert gc.isenabled()


def test_who_had_turned_it_off_finds_it_off() -> None:
    gc.disable()
    try:
        with Pauses():
            assert not gc.isenabled()
        assert not gc.isenabled()
    finally:
        gc.enable()
