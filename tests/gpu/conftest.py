"""The device-agnostic checks once more, on a GPU, in float32 and bfloat16. Skipped, saying so, where there is none.

BEHOLD_TEST_DEVICE names another device, for instance "cpu" to try these tests themselves, or "cuda:1".
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

DEVICE = os.environ.get("BEHOLD_TEST_DEVICE", "cuda")
WHY = f"no {DEVICE} device on this machine: the GPU tests need one (BEHOLD_TEST_DEVICE names another)"
HERE = Path(__file__).parent


def _available() -> bool:
    try:
        torch.empty(1, device=DEVICE)
    except (RuntimeError, AssertionError):  # torch without CUDA asserts
        return False
    return True


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark what lies in this folder; the hook is given the items of the whole run."""
    if not _available():
        for item in items:
            if item.path.is_relative_to(HERE):
                item.add_marker(pytest.mark.skip(reason=WHY))


@pytest.fixture(scope="session")
def device() -> torch.device:
    return torch.device(DEVICE)


@pytest.fixture(scope="session", params=[torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
def dtype(request: pytest.FixtureRequest) -> torch.dtype:
    chosen: torch.dtype = request.param
    return chosen


@pytest.fixture(autouse=True)
def true_float32() -> Iterator[None]:
    """float32 means float32: TensorFloat-32 has ten bits of fraction, too few to compare ids."""
    before = torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False
    yield
    torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32 = before
