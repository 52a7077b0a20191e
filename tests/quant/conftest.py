"""Quantized layers are tested in every way they can be computed."""

from __future__ import annotations

import pytest

from behold.kernels import native
from behold.quant import integers


@pytest.fixture(params=["native", "torch", "plain torch"])
def form(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """All ways to compute: our kernels, torch's int8 product, and widened weights as on other devices."""
    if request.param == "native" and native.LIBRARY is None:
        pytest.skip("installed without kernels")
    if request.param == "torch" and not integers.can_pack():
        pytest.skip("torch has no int8 product for this CPU")
    if native.LIBRARY is not None:
        native.say_what_is_missing()  # nothing, now and later: what is hidden below is not missing
    if request.param != "native":
        monkeypatch.setattr(native, "LIBRARY", None)
    if request.param == "plain torch":
        monkeypatch.setattr(integers, "can_pack", lambda: False)
    return str(request.param)
