"""What every test shares: one torch thread, no network, no traces in the user's cache, and the device fixture."""

from __future__ import annotations

import os
import tempfile

# Before anything imports torch or huggingface_hub. Toys are so small that a second thread only costs time, and tests
# run beside each other on shared machines. Nothing may leave the machine: tests/hub turns "online" on for its
# loopback server alone.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["HF_HUB_DISABLE_TELEMETRY"] = "1"
os.environ["HF_HUB_DISABLE_PROGRESS_BARS"] = "1"
os.environ["HF_HOME"] = tempfile.mkdtemp(prefix="behold-tests-")
os.environ["BEHOLD_CACHE"] = os.path.join(os.environ["HF_HOME"], "behold")
os.environ["BEHOLD_CACHE_LIMIT"] = "0"  # every load quantizes, but in tests of the cache
os.environ.pop("HF_TOKEN", None)
os.environ.pop("HF_ENDPOINT", None)
os.environ.pop("BEHOLD_MODEL", None)

import shutil
from typing import TYPE_CHECKING

import pytest
from hypothesis import settings

if TYPE_CHECKING:
    import torch

# No test reads a clock: an example may take long where other programs run.
settings.register_profile("without a clock", deadline=None)
settings.load_profile("without a clock")


def pytest_unconfigure() -> None:
    shutil.rmtree(os.environ["HF_HOME"], ignore_errors=True)


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> None:
    """Results of a toy do not depend on the number of cores, and the suite does not fight over them."""
    import torch

    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def device() -> torch.device:
    """Where device-agnostic tests run: the CPU here; tests/gpu overrides it with CUDA."""
    import torch

    return torch.device("cpu")


@pytest.fixture(scope="session")
def dtype() -> torch.dtype:
    """The weights' type in device-agnostic tests: float32 here; tests/gpu overrides it with float32 and bfloat16."""
    import torch

    return torch.float32
