"""The compiled library: there after an installation with a compiler, and its absence is said once."""

from __future__ import annotations

import shutil
import subprocess
import sys
import warnings
from pathlib import Path

import pytest

from behold.kernels import native


@pytest.mark.skipif(shutil.which("c++") is None and shutil.which("g++") is None, reason="no C++ compiler here")
def test_it_was_built() -> None:
    assert native.libraries(), "run: pip install -e . (or python setup.py build_ext --inplace)"
    assert native.load(native.libraries()[-1]) is not None


@pytest.mark.parametrize(
    ("flags", "fastest"),
    [
        ({"sse2"}, "_native"),
        ({"avx2", "fma", "f16c", "avx512f"}, "_native_avx2"),
        ({"avx2", "fma", "f16c", "avx512f", "avx512bw", "avx512dq", "avx512vl", "avx512_vnni"}, "_native_avx512"),
    ],
)
def test_the_library_is_chosen_by_what_the_cpu_has(
    flags: set[str], fastest: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("_native", "_native_avx2", "_native_avx512"):
        (tmp_path / f"{name}.so").touch()
    monkeypatch.setattr(native, "_HERE", tmp_path)
    monkeypatch.setattr(native, "cpu_flags", lambda: frozenset(flags))
    assert native.libraries()[0].stem == fastest and native.libraries()[-1].stem == "_native"


def test_a_broken_file_is_no_library(tmp_path: Path) -> None:
    path = tmp_path / "_native.so"
    path.write_bytes(b"no library")
    assert native.load(path) is None


def test_what_is_missing_is_said_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(native, "LIBRARY", None)
    monkeypatch.delenv("BEHOLD_KERNELS", raising=False)
    native.say_what_is_missing.cache_clear()
    with pytest.warns(UserWarning, match="compiler"):
        native.say_what_is_missing()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        native.say_what_is_missing()


def test_they_can_be_switched_off() -> None:
    code = "from behold.kernels import native; print(native.LIBRARY)"
    run = subprocess.run(
        [sys.executable, "-W", "error", "-c", code],
        env={"BEHOLD_KERNELS": "torch", "PYTHONPATH": ":".join(sys.path)},
        capture_output=True,
        text=True,
        check=True,
    )
    assert run.stdout.strip() == "None"
