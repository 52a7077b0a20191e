"""What is written of a run depends on the CPU: here it is always the same."""

from __future__ import annotations

import pytest

from benchmarks import report


@pytest.fixture(autouse=True)
def a_cpu_with_avx2(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(report, "cpu_flags", lambda: frozenset({"avx2", "fma", "f16c"}))
