"""The native kernels. All else about the package is in pyproject.toml.

They are compiled where a C++ compiler is; where there is none, installing goes on and behold works through torch.
"""

from __future__ import annotations

import platform
import sys
from pathlib import Path

from setuptools import Extension, setup

SOURCES = sorted(path.as_posix() for path in Path("src/behold/kernels/csrc").glob("*.cpp"))
HEADERS = sorted(path.as_posix() for path in Path("src/behold/kernels/csrc").glob("*.h"))
FLAGS = ["-std=c++17", "-O3", "-ffp-contract=fast", "-fno-math-errno", "-fvisibility=hidden", "-Wno-psabi"]
AVX2 = ["-mavx2", "-mfma", "-mf16c", "-mtune=haswell"]
AVX512 = [*AVX2, "-mavx512f", "-mavx512bw", "-mavx512dq", "-mavx512vl", "-mavx512vnni", "-mprefer-vector-width=256"]


def library(name: str, flags: list[str]) -> Extension:
    """The same sources for one level of instructions; behold.kernels.native chooses when it loads."""
    return Extension(
        f"behold.kernels.{name}",
        sources=SOURCES,
        depends=HEADERS,
        language="c++",
        extra_compile_args=[*FLAGS, *flags],
        optional=True,
    )


def libraries() -> list[Extension]:
    """None on Windows, whose compiler has no vector types."""
    if sys.platform == "win32":
        return []
    x86 = platform.machine().lower() in ("x86_64", "amd64")
    own = [library("_native_avx2", AVX2), library("_native_avx512", AVX512)] if x86 else []
    return [library("_native", []), *own]


setup(ext_modules=libraries())
