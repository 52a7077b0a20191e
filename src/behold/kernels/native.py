"""The library of our own kernels for CPUs (csrc/), where it was compiled: loaded once, for this CPU's instructions.

Every kernel has a plain torch path beside it; without the library, or with the environment variable
BEHOLD_KERNELS=torch, that is what runs. The kernels work in the threads of torch's own OpenMP runtime: two pools on
the same cores cost milliseconds a call.
"""

from __future__ import annotations

import ctypes
import functools
import importlib.machinery
import os
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple, Union

import torch

from behold.device import cpu_flags

_HERE = Path(__file__).parent
_AVX2 = frozenset({"avx2", "fma", "f16c"})
_AVX512 = _AVX2 | {"avx512f", "avx512bw", "avx512dq", "avx512vl", "avx512_vnni"}
_LEVELS = (("_native_avx512", _AVX512), ("_native_avx2", _AVX2), ("_native", frozenset[str]()))  # the fastest first
_SIGNATURES: dict[str, str] = {  # p: address, i: 64-bit integer, d: double, t: number of threads
    "bh_linear_f32": "pppppiiit",
    "bh_linear_q": "ppiippdppiit",
    "bh_wide_q8": "piipppt",
    "bh_table_f32": "pippit",
    "bh_table_q8": "pipppit",
    "bh_best_q8": "pppppiit",
    "bh_round_q4": "ppppiit",
    "bh_rms_norm_f32": "pppiidt",
    "bh_angles_f32": "ppppiit",
    "bh_rotate_f32": "pipppiiiit",
    "bh_silu_times_f32": "pppit",
    "bh_attend_rows": "pippppiiiiiiiiit",
    "bh_attend_all": "ppppiiiiiiit",
    "bh_attend_q8_keep": "ppppiiiiit",
    "bh_attend_q8": "pppiiiiiiit",
    "bh_replay": "pi",
    "bh_resample_rows": "pppppiiii",
    "bh_resample_columns": "pppppiiii",
}
Argument = Union[int, float, "ctypes.Array[ctypes.c_int64]", None]
_TYPES = {"p": ctypes.c_void_p, "i": ctypes.c_int64, "d": ctypes.c_double, "t": ctypes.c_int}


def libraries() -> list[Path]:
    """The compiled libraries that this CPU can run, the fastest first; none where behold was installed without."""
    flags = cpu_flags()
    names = [name for name, needed in _LEVELS if flags >= needed]
    files = (_HERE / (name + suffix) for name in names for suffix in importlib.machinery.EXTENSION_SUFFIXES)
    return [path for path in files if path.exists()]


def load(path: Path) -> ctypes.CDLL | None:
    """The library of a file, ready for calls; None where it is for another system or of other sources."""
    try:
        library = ctypes.CDLL(str(path))
        for name, letters in _SIGNATURES.items():
            function = getattr(library, name)
            function.argtypes, function.restype = [_TYPES[letter] for letter in letters], None
    except (OSError, AttributeError):
        return None
    library.bh_init(_fork())
    return library


def _chosen() -> ctypes.CDLL | None:
    if os.environ.get("BEHOLD_KERNELS") == "torch":
        return None
    return next((library for library in map(load, libraries()) if library is not None), None)


def _fork() -> ctypes.c_void_p | None:
    """GOMP_parallel of the runtime that torch runs on; None: kernels then use one thread."""
    try:
        torch_library = ctypes.CDLL(str(Path(torch.__file__).parent / "lib" / "libtorch_cpu.so"))
        return ctypes.cast(torch_library.GOMP_parallel, ctypes.c_void_p)
    except (OSError, AttributeError):
        return None


LIBRARY = _chosen()


class _Thread(threading.local):
    calls: list[Call] | None = None  # where they are written down


_thread = _Thread()


class Call(NamedTuple):
    """A kernel's name, its arguments, and what must live as long as they are used."""

    name: str
    arguments: tuple[Argument, ...]
    kept: tuple[object, ...]


def call(name: str, *arguments: Argument, kept: tuple[object, ...]) -> None:
    """Run a kernel.

    kept: the tensors whose addresses are given; where calls are written down, they are kept with them.
    """
    getattr(LIBRARY, name)(*arguments)
    if _thread.calls is not None:
        _thread.calls.append(Call(name, arguments, kept))


@contextmanager
def written_down() -> Iterator[list[Call]]:
    """The calls that this thread makes meanwhile."""
    assert _thread.calls is None, "calls are being written down already"
    calls: list[Call] = []
    _thread.calls = calls
    try:
        yield calls
    finally:
        _thread.calls = None


def letters(name: str) -> str:
    """The types of a kernel's arguments: p for an address, d for a real number, all others are integers."""
    return _SIGNATURES[name]


@functools.cache
def say_what_is_missing() -> None:
    """Warn, once, where behold was installed without a compiler."""
    if LIBRARY is None and os.environ.get("BEHOLD_KERNELS") != "torch":
        warnings.warn(
            "behold was installed without its compiled CPU kernels: answers are the same, but slower. Install a C++ "
            "compiler (Debian: g++, macOS: xcode-select --install) and reinstall behold-vlm.",
            stacklevel=2,
        )


def ready(*tensors: torch.Tensor) -> bool:
    """Whether kernels can work on these: float32, contiguous, on a CPU, no gradients."""
    return not torch.is_grad_enabled() and all(
        tensor.dtype is torch.float32 and tensor.device.type == "cpu" and tensor.is_contiguous() for tensor in tensors
    )
