"""The files themselves: whole or not there, whatever happens while they are written."""

from __future__ import annotations

import copy
import os
import signal
import subprocess
import sys
import warnings
from io import FileIO
from pathlib import Path

import pytest
import torch
from safetensors import safe_open

from behold.quant import cache, weights_file
from behold.quant.weights_file import _BLOCK as BLOCK
from behold.quant.weights_file import ALIGNMENT, Mapped, Pages, WeightsFile, map_file

ABOUT = {"name": "org/model", "scheme": "int8", "dtype": "float32", "layers": []}
TENSORS = {
    "a.weight": torch.arange(-50, 77, dtype=torch.int8).view(127, 1),
    "a.scale": torch.linspace(0, 1, 127),
    "a.sums": torch.arange(127, dtype=torch.int32),
    "b.weight": torch.randn(3, 5, dtype=torch.bfloat16),
    "c.empty": torch.empty(0, 4),
    "d": torch.tensor(2.5),
}


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("BEHOLD_CACHE", str(tmp_path / "kept"))
    return tmp_path / "kept" / "quantized"


def write(key: str = "key", limit: int = 10**9) -> WeightsFile:
    file = WeightsFile(key, limit=limit, n_tensors=len(TENSORS))
    for name, tensor in TENSORS.items():
        file.add(name, tensor)
    return file


def test_what_was_written_comes_back() -> None:
    write().finish(ABOUT)
    found = map_file(cache.path_of("key"))
    assert found is not None
    about, tensors, _ = found
    assert about == ABOUT and set(tensors) == set(TENSORS)
    for name, tensor in TENSORS.items():
        assert torch.equal(tensors[name], tensor) and tensors[name].dtype == tensor.dtype
        assert tensors[name].data_ptr() % ALIGNMENT == 0 or not tensor.numel()


def test_it_is_a_safetensors_file() -> None:
    write().finish(ABOUT)
    with safe_open(cache.path_of("key"), framework="pt") as file:
        assert torch.equal(file.get_tensor("b.weight"), TENSORS["b.weight"])
        assert cache.METADATA_KEY in file.metadata()


def test_writing_to_a_tensor_does_not_change_the_file() -> None:
    write().finish(ABOUT)
    first, second = map_file(cache.path_of("key")), map_file(cache.path_of("key"))
    assert first is not None and second is not None
    first[1]["a.scale"].fill_(9.0)
    assert torch.equal(second[1]["a.scale"], TENSORS["a.scale"])


def mapped(weights: torch.Tensor) -> Mapped:
    file = WeightsFile("key", limit=10**9, n_tensors=2)
    file.add("weight", weights), file.add("scale", torch.ones(1000))
    file.finish(ABOUT)
    found = map_file(cache.path_of("key"))
    assert found is not None
    return found


def resident_bytes(tensor: torch.Tensor) -> int:
    """Of the mapping that a tensor lies in."""
    lines = iter(Path("/proc/self/smaps").read_text().splitlines())
    for line in lines:
        first, dash, rest = line.partition(" ")[0].partition("-")
        if dash and int(first, 16) <= tensor.data_ptr() < int(rest, 16):
            return next(int(line.split()[1]) for line in lines if line.startswith("Rss:")) << 10
    raise AssertionError("it is not mapped")


@pytest.mark.skipif(sys.platform != "linux", reason="only there pages are given back")
def test_pages_are_given_back_and_read_again() -> None:
    weights = torch.arange(1 << 20, dtype=torch.int32).view(torch.uint8)
    file = mapped(weights)
    mine, scale = file.tensors["weight"], file.tensors["scale"]
    pages = Pages(file.mapping, [mine, scale, torch.zeros(1 << 20, dtype=torch.int8)])
    assert torch.equal(mine, weights) and resident_bytes(mine) >= weights.nbytes
    pages()
    assert resident_bytes(mine) < weights.nbytes // 8
    assert torch.equal(mine, weights) and torch.equal(scale, torch.ones(1000))
    assert copy.deepcopy(pages) is None


def test_what_somebody_wrote_is_not_given_back() -> None:
    file = mapped(torch.zeros(1 << 16, dtype=torch.int8))
    pages = Pages(file.mapping, [file.tensors["weight"]])
    file.tensors["weight"][50_000:] = 7
    pages()
    assert file.tensors["weight"].sum() == 7 * ((1 << 16) - 50_000)


@pytest.mark.parametrize("part", [0.0, 0.001, 0.5, 0.999])
def test_half_a_file_is_not_used(part: float) -> None:
    write().finish(ABOUT)
    path = cache.path_of("key")
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * part)])
    assert map_file(path) is None


def test_another_safetensors_file_is_not_used(tmp_path: Path) -> None:
    from safetensors.torch import save_file

    save_file({"a": torch.zeros(3)}, tmp_path / "x.safetensors", {"format": "pt"})
    assert map_file(tmp_path / "x.safetensors") is None
    assert map_file(tmp_path / "missing.safetensors") is None


def test_nothing_is_there_until_it_is_finished(folder: Path) -> None:
    file = write()
    assert not list(folder.glob("*.safetensors"))
    file.abandon()
    assert not list(folder.iterdir())
    file.add("late", torch.zeros(1))
    file.finish(ABOUT)
    assert not list(folder.iterdir())


def test_two_writers_at_once(folder: Path) -> None:
    one, two = write(), write()
    one.finish(ABOUT)
    assert map_file(cache.path_of("key")) is not None
    two.finish(ABOUT)
    assert map_file(cache.path_of("key")) is not None
    assert [path.name for path in folder.iterdir()] == ["key.safetensors"]


def test_what_is_longer_than_a_block_is_written_in_whole_ones() -> None:
    sizes = {"a": 5_000_001, "b": 70, "c": BLOCK}
    tensors = {name: torch.randint(255, (n,), dtype=torch.uint8) for name, n in sizes.items()}
    file = WeightsFile("key", limit=10**9, n_tensors=len(tensors))
    pieces: list[tuple[int, int]] = []

    class Told:
        def __init__(self, inner: FileIO) -> None:
            self.inner = inner

        def write(self, data: memoryview) -> int:
            pieces.append((self.inner.tell(), len(data)))
            return self.inner.write(data)

        def __getattr__(self, name: str) -> object:
            return getattr(self.inner, name)

    file._file = Told(file._file)  # type: ignore[assignment]
    for name, tensor in tensors.items():
        file.add(name, tensor)
    file.finish(ABOUT)
    found = map_file(cache.path_of("key"))
    assert found is not None and all(torch.equal(found.tensors[name], tensor) for name, tensor in tensors.items())
    whole, last, header = pieces[:-2], pieces[-2], pieces[-1]
    assert whole == [(at * BLOCK, BLOCK) for at in range(3)]
    assert last[0] == 3 * BLOCK and header[0] == 0


KILLED = """
import os, sys, torch
from behold.quant.weights_file import WeightsFile
file = WeightsFile("key", limit=10**9, n_tensors=4)
file.add("a", torch.zeros(1 << 20))
file._thread.shutdown()
print("written", flush=True)
os.kill(os.getpid(), 9)
"""


@pytest.mark.skipif(sys.platform == "win32", reason="no such signal")
def test_a_killed_writer_leaves_nothing_that_is_used(folder: Path) -> None:
    done = subprocess.run([sys.executable, "-c", KILLED], capture_output=True, text=True, check=False)
    assert done.returncode == -signal.SIGKILL and done.stdout == "written\n"
    (left,) = folder.iterdir()
    assert left.suffix == cache.UNFINISHED and left.stat().st_size >= 1 << 22
    assert cache.entries() == [] and not cache.path_of("key").exists()
    os.utime(left, (1, 1))
    write().finish(ABOUT)
    assert [path.name for path in folder.iterdir()] == ["key.safetensors"], "the next writer sweeps"


def test_a_full_disk_is_said_once_and_nothing_is_kept(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(weights_file, "_SPARE_BYTES", 1 << 60)
    with pytest.warns(UserWarning, match=r"not kept on disk: .*nearly full"):
        write().finish(ABOUT)
    assert not list(folder.iterdir())
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        write().finish(ABOUT)


def test_a_disk_that_fills_up_meanwhile(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.warns(UserWarning, match=r"No space left on device"):
        write().finish(ABOUT)
    assert not list(folder.iterdir())


def test_a_folder_that_cannot_be_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("BEHOLD_CACHE", str(tmp_path / "file"))
    with pytest.warns(UserWarning, match="not kept on disk"):
        write().finish(ABOUT)
    assert cache.entries() == []


def test_a_header_that_does_not_fit_is_not_written(folder: Path) -> None:
    file = WeightsFile("key", limit=10**9, n_tensors=0)
    file.add("a", torch.zeros(1))
    with pytest.warns(UserWarning, match="header"):
        file.finish({"name": "x" * 5000})
    assert not list(folder.iterdir())
