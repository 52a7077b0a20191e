"""One file of quantized weights: written while a model is being quantized, mapped when it is loaded again.

A safetensors file whose header is written last, into room that was left for it. It is written under another name and
renamed when all of it is on the disk, so that a file with its final name is whole, whenever the power fails. Tensors
begin at multiples of 64 bytes; "pad.N" tensors fill the gaps, as the format allows none. It is written by blocks of
2 MiB, since the system keeps in large pages what came so (Linux, on file systems that have them): one look at where a
page is then serves 500 times as many bytes, which takes 5 % off a token.

What is mapped and was read counts as the process's memory until somebody else wants it. Of blocks that are wanted once
for a picture it is given back at once: the system still has it in its cache of files, and maps it anew in no time.
"""

from __future__ import annotations

import json
import os
import shutil
import tempfile
import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from behold.checkpoint.stored import dtype_name, map_as_all
from behold.checkpoint.weights import file_contents
from behold.errors import WeightsError
from behold.pages import Advice, advise
from behold.quant import cache

ALIGNMENT = 64
_BLOCK = 1 << 21  # bytes; a large page has as many on x86 and, most often, on ARM
_PAD = "pad."
_READ_AHEAD = 1 << 23  # bytes to ask for at a time, in order
_SPARE_BYTES = 10**9  # of the disk that are left to others


class WeightsFile:
    """A file in the making. Nothing here raises: what goes wrong is said once, and only means that nothing is kept.

    Tensors are written by a thread of its own, in order; they must not change until `finish`.
    """

    def __init__(self, key: str, *, limit: int, n_tensors: int) -> None:
        """limit: bytes that all kept files may have together. n_tensors: at most so many will be added."""
        self.path = cache.path_of(key)
        self._limit = limit
        self._header: dict[str, Any] = {}
        # names, types, shapes and places of a tensor and its pad, and what the metadata says of its layer
        self._data_start = -(-(4096 + 1024 * n_tensors) // 4096) * 4096
        self._end = 0
        self._block, self._filled = memoryview(bytearray(_BLOCK)), 0
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="behold-keep")
        self._temporary: Path | None = None
        self._attempt(self._open)

    def add(self, name: str, tensor: Tensor) -> None:
        """The next tensor."""
        if self._temporary is not None:
            self._thread.submit(self._attempt, self._append, name, tensor)

    def finish(self, about: dict[str, Any]) -> None:
        """All tensors are there: waits until they are on the disk and gives the file its name."""
        self._thread.shutdown(wait=True)
        self._attempt(self._publish, about)
        self.abandon()

    def abandon(self) -> None:
        """Leaves nothing, unless it is finished."""
        self._thread.shutdown(wait=True, cancel_futures=True)
        self._drop()

    # --- the thread's part; `_temporary` is None before the first step and after the last or a failure --------------

    def _attempt(self, step: Any, *arguments: Any) -> None:  # noqa: ANN401 - any of the three below
        if self._temporary is None and step != self._open:
            return
        try:
            step(*arguments)
        except (OSError, ValueError) as error:
            self._drop()
            cache.say_why_not(f"{cache.cache_folder()}: {getattr(error, 'strerror', None) or error}.")

    def _open(self) -> None:
        folder = self.path.parent
        folder.mkdir(parents=True, exist_ok=True)
        cache.sweep()
        descriptor, name = tempfile.mkstemp(suffix=cache.UNFINISHED, dir=folder)
        self._temporary, self._file = Path(name), os.fdopen(descriptor, "wb", buffering=0)
        with suppress(ImportError, OSError):  # a lock only tells others that somebody is at work
            import fcntl

            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        self._put(memoryview(bytes(self._data_start)))

    def _append(self, name: str, tensor: Tensor) -> None:
        data = tensor.detach().cpu().contiguous()
        gap = -self._end % ALIGNMENT
        if gap:
            self._write(f"{_PAD}{len(self._header)}", torch.zeros(gap, dtype=torch.uint8))
        self._write(name, data)

    def _write(self, name: str, data: Tensor) -> None:
        n_bytes = data.numel() * data.element_size()
        if self._data_start + self._end + n_bytes > self._limit:
            raise ValueError(
                f"they are larger than the limit of {self._limit / 1e9:.3g} GB; BEHOLD_CACHE_LIMIT changes it"
            )
        if shutil.disk_usage(self.path.parent).free < n_bytes + _SPARE_BYTES:
            raise ValueError("the disk is nearly full")
        if n_bytes:
            self._put(memoryview(data.reshape(-1).view(torch.uint8).numpy().data))
        self._header[name] = {
            "dtype": dtype_name(data.dtype),
            "shape": list(data.shape),
            "data_offsets": [self._end, self._end + n_bytes],
        }
        self._end += n_bytes

    def _put(self, view: memoryview) -> None:
        while len(view):
            count = min(len(view), _BLOCK - self._filled)
            self._block[self._filled : self._filled + count] = view[:count]
            self._filled, view = self._filled + count, view[count:]
            if self._filled == _BLOCK:
                self._flush()

    def _flush(self) -> None:
        view, self._filled = self._block[: self._filled], 0
        while len(view):
            view = view[self._file.write(view) :]

    def _publish(self, about: dict[str, Any]) -> None:
        assert self._temporary is not None
        header = {"__metadata__": {cache.METADATA_KEY: json.dumps(about)}} | self._header
        text = json.dumps(header, separators=(",", ":")).encode()
        room = self._data_start - 8
        if len(text) > room:
            raise ValueError(f"a header of {len(text)} bytes does not fit into {room}")
        self._flush()
        self._file.seek(0)
        self._file.write(room.to_bytes(8, "little") + text.ljust(room))
        os.fsync(self._file.fileno())
        os.replace(self._temporary, self.path)
        self._temporary = None
        self._file.close()
        _sync_folder(self.path.parent)
        cache.make_room(self._limit, self.path)

    def _drop(self) -> None:
        if self._temporary is not None:
            with suppress(OSError):
                self._file.close()
                self._temporary.unlink()
            self._temporary = None


class Mapped(NamedTuple):
    """What a file says of itself, its tensors as views of the mapped file, and all of that, (bytes,) uint8."""

    about: dict[str, Any]
    tensors: dict[str, Tensor]
    mapping: Tensor


class Pages:
    """Called, it gives the memory of some tensors of a mapped file back; they are read anew when they are next used.

    Only packed weights, and only while nothing wrote to any tensor of the file: what was written would be lost, and who
    wants to change a model changes norms and biases. A copy is None, as it would speak of the original's tensors.
    """

    __slots__ = ("_mapping", "_ranges")

    def __init__(self, mapping: Tensor, tensors: Iterable[Tensor]) -> None:
        """mapping: of the whole file. tensors: those that do not lie in it are left alone."""
        self._mapping = mapping
        self._ranges = [] if mapping.is_inference() else [*_places(mapping, tensors)]

    def __call__(self) -> None:
        if self._ranges and not self._mapping._version:
            for start, n_bytes in self._ranges:
                advise(start, n_bytes, Advice.TAKE_BACK)

    def __reduce__(self) -> tuple[Callable[[], None], tuple[()]]:
        return _nothing, ()


def _places(mapping: Tensor, tensors: Iterable[Tensor]) -> Iterator[tuple[int, int]]:
    """(address, bytes) of the packed weights among some tensors."""
    first, last = mapping.data_ptr(), mapping.data_ptr() + mapping.nbytes
    for tensor in tensors:
        start, stop = tensor.data_ptr(), tensor.data_ptr() + tensor.nbytes
        if tensor.is_cpu and not tensor.is_floating_point() and first <= start and stop <= last:
            yield start, tensor.nbytes


def _nothing() -> None:
    return None


def map_file(path: Path) -> Mapped | None:
    """A file's tensors; None where it is not whole or not ours.

    The mapping is private: writing to a tensor never reaches the file. What of it is not in memory is read from now on,
    beside whatever comes next: the decoder of a large model is wanted only after its tower has looked at a picture.
    """
    try:
        said, stored = file_contents(path)
        about = cache.metadata_of(said)
        if about is None:
            return None
        mapping = map_as_all(path)
        tensors = {tensor.name: tensor.map(mapping) for tensor in stored if not tensor.name.startswith(_PAD)}
    except (OSError, RuntimeError, WeightsError):
        return None
    whole = {name: tensor for name, tensor in tensors.items() if tensor is not None}
    if len(whole) < len(tensors):
        return None
    threading.Thread(target=_read_ahead, args=(path,), name="behold-read-ahead", daemon=True).start()
    return Mapped(about, whole, mapping[torch.uint8])


def _read_ahead(path: Path) -> None:
    """Has the system read a file into its cache, where systems can be asked to: in large pages if it keeps such.

    What `posix_fadvise` fetches lies in pages of 4 KB. To map those of a tower and to give them back takes 75 ms a
    picture, and 3 ms where they came as this mapping asks for them.
    """
    if not hasattr(os, "posix_fadvise"):
        return
    with suppress(OSError, RuntimeError), path.open("rb", buffering=0) as file:
        size = path.stat().st_size
        mapping = torch.from_file(str(path), shared=False, size=size, dtype=torch.uint8)
        advise(mapping.data_ptr(), size, Advice.LARGE)
        for start in range(0, size, _READ_AHEAD):
            piece = mapping.data_ptr() + start, min(_READ_AHEAD, size - start)
            if advise(*piece, Advice.READ):
                advise(*piece, Advice.TAKE_BACK)  # it is not to count as ours twice
            else:
                os.posix_fadvise(file.fileno(), start, _READ_AHEAD, os.POSIX_FADV_WILLNEED)


def _sync_folder(folder: Path) -> None:
    """The new name is on the disk, too, where folders can be opened."""
    with suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
