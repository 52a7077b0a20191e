"""Kernels are tested at every level of instructions this machine has, beside torch."""

from __future__ import annotations

import ctypes
from pathlib import Path

import pytest

from behold.kernels import native


@pytest.fixture(params=native.libraries(), ids=lambda path: path.name.split(".")[0])
def library(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> ctypes.CDLL:
    """One of the compiled libraries, in use."""
    path: Path = request.param
    loaded = native.load(path)
    assert loaded is not None, path
    monkeypatch.setattr(native, "LIBRARY", loaded)
    return loaded
