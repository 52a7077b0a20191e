"""Which device and which number type to use, and what this CPU or GPU is good at.

Everything called "auto" is decided here, once, before a model is built.
"""

from __future__ import annotations

import ctypes
import functools
import platform
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

import torch

from behold.errors import DeviceError

_DTYPES = {
    "float32": torch.float32,
    "fp32": torch.float32,
    "float": torch.float32,
    "bfloat16": torch.bfloat16,
    "bf16": torch.bfloat16,
    "float16": torch.float16,
    "fp16": torch.float16,
    "half": torch.float16,
}
_BF16_FLAGS = {"avx512_bf16", "amx_bf16", "bf16"}  # x86 AVX-512, x86 AMX, ARM

DeviceLike = str | int | torch.device | None


def resolve_device(device: DeviceLike = "auto") -> torch.device:
    """The device to use; "auto" and None are the first CUDA device where there is one, otherwise the CPU.

    Raises:
        DeviceError: the name is unknown, or there is no such device on this machine.
    """
    if device is None or device == "auto":
        return torch.device("cuda", 0) if torch.cuda.is_available() else torch.device("cpu")
    try:
        chosen = torch.device("cuda", device) if isinstance(device, int) else torch.device(device)
    except (RuntimeError, TypeError) as error:
        raise DeviceError(f'device={device!r} is not known. Use "auto", "cpu", "cuda", "cuda:1" or "mps".') from error
    if chosen.type == "cpu":
        return torch.device("cpu")
    if chosen.type == "cuda":
        return _cuda(chosen)
    if chosen.type == "mps" and torch.backends.mps.is_available():
        return chosen
    raise DeviceError(f'device={str(device)!r} is not available on this machine. Use "auto" or "cpu".')


def _cuda(device: torch.device) -> torch.device:
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    index = device.index or 0
    if index >= count:
        have = f"this machine has {count} CUDA device(s)" if count else "torch finds no CUDA device on this machine"
        raise DeviceError(f'device={str(device)!r} was asked for, but {have}. Use "auto" or "cpu".')
    return torch.device("cuda", index)


def resolve_device_map(device_map: DeviceLike | Mapping[str, DeviceLike]) -> torch.device:
    """The one device that a Hugging Face `device_map` stands for: "auto", "cpu", "cuda", 0, {"": "cpu"} …

    Raises:
        DeviceError: the map spreads the model over several devices, which is not supported.
    """
    if isinstance(device_map, Mapping):
        places = {resolve_device(place) for place in device_map.values()}
        if len(places) != 1:
            raise DeviceError(
                f"device_map={dict(device_map)!r} names {len(places)} devices; a model lives on one device. "
                'Use "auto", "cpu", "cuda" or {"": device}.'
            )
        return places.pop()
    if device_map in ("balanced", "balanced_low_0", "sequential"):
        return resolve_device("auto")
    return resolve_device(device_map)


def resolve_dtype(
    dtype: str | torch.dtype | None = "auto",
    device: torch.device | None = None,
    checkpoint_dtype: str | torch.dtype | None = None,
) -> torch.dtype:
    """The type of the weights. "auto" and None are the checkpoint's own type where this device computes fast in it.

    A CPU without bfloat16 instructions emulates bfloat16 many times slower than float32, and no CPU path here is fast
    in float16: there "auto" is float32 (or bfloat16 where the CPU has the instructions).

    Raises:
        DeviceError: the type is not one of float32, bfloat16 and float16.
    """
    if dtype is not None and dtype != "auto":
        chosen = _named(dtype)
        if chosen is None:
            raise DeviceError(f'dtype={dtype!r} is not supported. Use "auto", "float32", "bfloat16" or "float16".')
        return chosen
    device = device or resolve_device()
    wanted = _named(checkpoint_dtype) or torch.float32
    if wanted is torch.float32:
        return wanted
    if device.type == "cpu":
        return torch.bfloat16 if cpu_has_fast_bf16() else torch.float32
    if (
        wanted is torch.bfloat16
        and device.type == "cuda"
        and not torch.cuda.is_bf16_supported(including_emulation=False)
    ):
        return torch.float16
    return wanted


def _named(dtype: str | torch.dtype | None) -> torch.dtype | None:
    if isinstance(dtype, str):
        return _DTYPES.get(dtype.removeprefix("torch.").lower())
    return dtype if dtype in _DTYPES.values() else None


@functools.cache
def cpu_has_fast_bf16() -> bool:
    """Whether this CPU has bfloat16 dot products (AVX512_BF16, AMX, ARM BF16)."""
    return bool(_BF16_FLAGS & cpu_flags())


@functools.cache
def cpu_flags() -> frozenset[str]:
    """The instruction set extensions that Linux reports; empty elsewhere, which means the safe choices."""
    if platform.system() != "Linux":
        return frozenset()
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return frozenset()
    for line in text.splitlines():
        name, _, value = line.partition(":")
        if name.strip() in ("flags", "Features"):
            return frozenset(value.split())
    return frozenset()


def give_back_memory() -> None:
    """Hands the heap's free pages back to the system, where the C library can (glibc); it keeps hundreds of MB else."""
    with suppress(OSError, AttributeError, TypeError):
        ctypes.CDLL(None).malloc_trim(0)
