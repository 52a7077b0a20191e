"""The kernels under the sanitizers for addresses and undefined behaviour, in programs of their own."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from behold.kernels import native

HERE = Path(__file__).parent
SOURCES = Path(native.__file__).parent / "csrc"
COMPILER = shutil.which("g++") or shutil.which("c++")
LEVELS: dict[str, list[str]] = {"base": [], "avx2": ["-mavx2", "-mfma", "-mf16c"]}
LEVELS["avx512"] = [*LEVELS["avx2"], "-mavx512f", "-mavx512bw", "-mavx512dq", "-mavx512vl", "-mavx512vnni"]
FLAGS = ["-std=c++17", "-O0", "-fno-math-errno", "-fsanitize=address,undefined", "-fno-sanitize-recover=all"]
PROGRAMS = [
    (
        "sanitized.cpp",
        ("linear_q.cpp", "linear_q8.cpp", "linear_q4.cpp", "best_q8.cpp", "round_q4.cpp", "rows.cpp"),
        "300 products",
    ),
    (
        "sanitized_attention.cpp",
        ("attention_few.cpp", "attention_many_q8.cpp", "attention_tiles.cpp", "attention_rows.cpp", "attention_q8.cpp"),
        "192 attentions",
    ),
    ("sanitized_resample.cpp", ("resample.cpp",), "120 pictures"),
    ("sanitized_f32.cpp", ("linear_f32.cpp", "pointwise_f32.cpp", "tables.cpp", "replay.cpp"), "250 results"),
]


@pytest.mark.skipif(COMPILER is None, reason="no C++ compiler here")
@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize(("main", "kernels", "printed"), PROGRAMS)
def test_they_stay_in_their_memory(
    tmp_path: Path, level: str, main: str, kernels: tuple[str, ...], printed: str
) -> None:
    if LEVELS[level] and not any(level in path.name for path in native.libraries()):
        pytest.skip(f"this CPU has no {level}")
    flags = [*FLAGS, *LEVELS[level]]
    program = tmp_path / "sanitized"
    files = [HERE / main, *(SOURCES / name for name in kernels)]
    command = [str(COMPILER), *flags, f"-I{SOURCES}", *map(str, files), str(SOURCES / "pool.cpp"), "-o", str(program)]
    built = subprocess.run(command, capture_output=True, text=True, check=False)
    if "cannot find -lasan" in built.stderr or "unrecognized" in built.stderr:
        pytest.skip("this compiler has no sanitizers")
    assert built.returncode == 0, built.stderr
    run = subprocess.run([str(program)], capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
    assert run.stdout.strip() == printed


def test_every_kernel_is_in_one_of_the_programs() -> None:
    built = {name for _, kernels, _ in PROGRAMS for name in kernels} | {"pool.cpp"}
    assert built == {path.name for path in SOURCES.glob("*.cpp")}
