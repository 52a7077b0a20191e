"""What the server's tests share."""

from __future__ import annotations

import pytest

import behold
from behold.api.vlm import VLM


@pytest.fixture(scope="session")
def vlm() -> VLM:
    """The bundled model. Its engine is shared: tests look at what changes, not at how much there is."""
    return behold.load("demo", device="cpu")
