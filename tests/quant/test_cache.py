"""Where quantized weights are kept: keys, bounds, what is listed and what goes."""

from __future__ import annotations

import json
import os
import shutil
import time
from pathlib import Path

import pytest
import torch

from behold.errors import OptionError
from behold.quant import cache
from behold.quant.weights_file import WeightsFile, map_file
from tests.toy_files import write_weights

pytestmark = pytest.mark.usefixtures("folder")


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("BEHOLD_CACHE", str(tmp_path / "kept"))
    monkeypatch.delenv("BEHOLD_CACHE_LIMIT")
    return tmp_path / "kept" / "quantized"


def put(key: str, n_bytes: int = 1000, *, limit: int = 10**9, used: float | None = None) -> Path:
    file = WeightsFile(key, limit=limit, n_tensors=2)
    file.add("a.weight", torch.arange(n_bytes, dtype=torch.uint8))
    file.finish({"name": f"org/{key}", "scheme": "int8", "dtype": "float32", "layers": []})
    if used is not None and file.path.is_file():
        os.utime(file.path, (used, used))
    return file.path


# --- settings ----------------------------------------------------------------------------------------------------


def test_the_folder_follows_the_variables(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("BEHOLD_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert cache.cache_folder() == tmp_path / "behold" / "quantized"
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert cache.cache_folder() == Path.home() / ".cache" / "behold" / "quantized"


@pytest.mark.parametrize(
    ("given", "n_bytes"),
    [(0, 0), ("0", 0), (5000, 5000), ("20 GB", 20 * 10**9), ("1.5gb", 1_500_000_000), ("3M", 3_000_000), ("9 B", 9)],
)
def test_sizes(given: str | int, n_bytes: int) -> None:
    assert cache.size_limit(given) == n_bytes


def test_the_limit_is_32_gb_or_what_the_variable_says(monkeypatch: pytest.MonkeyPatch) -> None:
    assert cache.size_limit() == 32 * 10**9
    monkeypatch.setenv("BEHOLD_CACHE_LIMIT", "1 TB")
    assert cache.size_limit() == 10**12 and cache.size_limit(7) == 7
    monkeypatch.setenv("BEHOLD_CACHE_LIMIT", "a lot")
    with pytest.raises(OptionError, match=r"BEHOLD_CACHE_LIMIT='a lot'.*20 GB"):
        cache.size_limit()
    with pytest.raises(OptionError, match="cache_limit='-1'"):
        cache.size_limit("-1")


# --- keys --------------------------------------------------------------------------------------------------------


def key(folder: Path, config: dict[str, object] | None = None, scheme: str = "int8", dtype: str = "float32") -> str:
    return cache.checkpoint_key(sorted(folder.glob("*.safetensors")), config or {}, scheme=scheme, dtype=dtype)


def checkpoint(folder: Path) -> Path:
    folder.mkdir()
    torch.manual_seed(0)
    write_weights(folder, {"a.weight": torch.randn(200, 100), "b.weight": torch.randn(3)})
    return folder


def test_a_key_is_the_same_until_something_changes(tmp_path: Path) -> None:
    one = checkpoint(tmp_path / "one")
    assert key(one) == key(one)
    others = [key(one, {"rope": 1}), key(one, scheme="int4"), key(one, dtype="bfloat16")]
    assert len({key(one), *others}) == 4


@pytest.mark.parametrize("name", ["a.weight", "b.weight"])
def test_changed_weights_are_seen_whatever_the_date_says(tmp_path: Path, name: str) -> None:
    one = checkpoint(tmp_path / "one")
    path, before = one / "model.safetensors", key(one)
    status = path.stat()
    length = int.from_bytes(path.read_bytes()[:8], "little")
    start, stop = json.loads(path.read_bytes()[8 : 8 + length])[name]["data_offsets"]
    data = bytearray(path.read_bytes())
    data[8 + length + start : 8 + length + stop] = bytes(stop - start)
    path.write_bytes(data)
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert path.stat().st_mtime_ns == status.st_mtime_ns and key(one) != before


def test_a_byte_that_no_piece_shows_is_seen_by_the_time_of_the_entry(tmp_path: Path) -> None:
    if os.name == "nt":
        pytest.skip("the time of the entry is that of making it")
    one = checkpoint(tmp_path / "one")
    path, before = one / "model.safetensors", key(one)
    status = path.stat()
    length = int.from_bytes(path.read_bytes()[:8], "little")
    for _ in range(1000):  # until the system's clock has moved on
        with path.open("r+b") as file:
            file.seek(8 + length + 10_000)
            file.write(b"?")
        os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
        if path.stat().st_ctime_ns != status.st_ctime_ns:
            break
    assert path.stat().st_mtime_ns == status.st_mtime_ns and key(one) != before


def test_a_later_date_or_another_size_is_another_key(tmp_path: Path) -> None:
    one = checkpoint(tmp_path / "one")
    path, before = one / "model.safetensors", key(one)
    os.utime(path, (1, 1))
    dated = key(one)
    with path.open("ab") as file:
        file.write(b"x")
    os.utime(path, (1, 1))
    assert len({before, dated, key(one)}) == 3


def test_a_file_of_the_hubs_cache_is_known_by_its_name_alone(tmp_path: Path) -> None:
    one = checkpoint(tmp_path / "one")
    blobs = tmp_path / "blobs"
    blobs.mkdir()
    path = one / "model.safetensors"
    shutil.move(path, blobs / ("ab" * 32))
    path.symlink_to(blobs / ("ab" * 32))
    before = key(one)
    os.utime(path, (1, 1))
    assert key(one) == before, "the name is the content's digest"
    shutil.move(blobs / ("ab" * 32), blobs / ("cd" * 32))
    path.unlink()
    path.symlink_to(blobs / ("cd" * 32))
    assert key(one) != before


# --- files -------------------------------------------------------------------------------------------------------


def test_what_is_kept_is_listed_the_last_used_first(folder: Path) -> None:
    assert cache.entries() == []
    put("a", used=1000.0), put("b", used=3000.0), put("c", used=2000.0)
    assert [(e.name, e.scheme, e.dtype, e.last_used) for e in cache.entries()] == [
        ("org/b", "int8", "float32", 3000.0),
        ("org/c", "int8", "float32", 2000.0),
        ("org/a", "int8", "float32", 1000.0),
    ]
    cache.mark_used(cache.path_of("a"))
    assert cache.entries()[0].name == "org/a"
    (folder / "d.safetensors").write_bytes(b"\xff" * 20)
    (folder / "e.safetensors").write_bytes(b"")
    assert [e.name for e in cache.entries()].count("(damaged)") == 2
    assert len(cache.remove(cache.entries())) == 5 and cache.entries() == []


def test_the_longest_unused_go_when_there_is_no_room() -> None:
    size = put("a", used=1000.0).stat().st_size
    put("b", used=500.0), put("c", used=2000.0)
    put("d", limit=3 * size)
    assert {entry.name for entry in cache.entries()} == {"org/a", "org/c", "org/d"}
    put("e", limit=size)
    assert [entry.name for entry in cache.entries()] == ["org/e"]


def test_what_is_larger_than_the_limit_is_not_kept(folder: Path) -> None:
    put("a", used=1000.0)
    with pytest.warns(UserWarning, match=r"larger than the limit of .* GB; BEHOLD_CACHE_LIMIT"):
        put("b", limit=2000)
    assert [entry.name for entry in cache.entries()] == ["org/a"]
    assert [path.suffix for path in folder.iterdir()] == [".safetensors"]


def test_nobody_loses_a_file_that_is_open() -> None:
    path = put("a")
    found = map_file(path)
    assert found is not None
    cache.remove(cache.entries())
    assert found[1]["a.weight"].tolist() == [number % 256 for number in range(1000)]


def test_unfinished_files_are_swept_when_nobody_writes_them(folder: Path) -> None:
    file = WeightsFile("a", limit=10**9, n_tensors=1)
    (written,) = folder.iterdir()
    old = time.time() - 3600
    os.utime(written, (old, old))
    left = folder / f"left{cache.UNFINISHED}"
    fresh = folder / f"fresh{cache.UNFINISHED}"
    left.touch(), fresh.touch()
    os.utime(left, (old, old))
    cache.sweep()
    assert set(folder.iterdir()) == {written, fresh}, "one is being written, one has just been made"
    file.abandon()
    assert set(folder.iterdir()) == {fresh}
