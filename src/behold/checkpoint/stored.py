"""Stored numbers: a tensor as a file's header has it, read or mapped; a matrix whose rows are read when needed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from behold.errors import WeightsError

_TORCH_DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
    "F8_E4M3": torch.float8_e4m3fn,
}
_FETCHED_BYTES = 1 << 20  # at a time; they stay in the processor's cache


def read_bytes(path: Path, start: int, n_bytes: int) -> Tensor:
    """(n_bytes,) uint8 from `start` of a file, in memory of their own.

    Raises:
        WeightsError: the file is shorter than its header said.
    """
    if not n_bytes:
        return torch.empty(0, dtype=torch.uint8)
    data = np.empty(n_bytes, np.uint8)  # not torch's: the hole that a piece leaves in the heap does not fit the next
    with path.open("rb", buffering=0) as file:
        file.seek(start)
        view = memoryview(data.data)
        while view:
            got = file.readinto(view)
            if not got:
                raise WeightsError(f"{path} ended while it was read. Download it again.")
            view = view[got:]
    return torch.from_numpy(data)


@dataclass(frozen=True, slots=True)
class StoredTensor:
    """One tensor as a header describes it; its bytes are [start, stop) of the file."""

    name: str
    path: Path
    dtype: str
    shape: tuple[int, ...]
    start: int
    stop: int

    @property
    def n_bytes(self) -> int:
        return self.stop - self.start

    @property
    def torch_dtype(self) -> torch.dtype | None:
        return _TORCH_DTYPES.get(self.dtype)

    def map(self, mapping: Mapping[torch.dtype, Tensor]) -> Tensor | None:
        """A view into the mapped file (`map_as_all`), or None where the bytes are not aligned for the type."""
        assert self.torch_dtype is not None
        if self.start % self.torch_dtype.itemsize:
            return None
        first, strides = self.start // self.torch_dtype.itemsize, [1] * len(self.shape)
        for axis in range(len(strides) - 1, 0, -1):
            strides[axis - 1] = strides[axis] * self.shape[axis]
        # one call in place of three: there are thousands of tensors
        return mapping[self.torch_dtype].as_strided(self.shape, strides, first)

    def read(self) -> Tensor:
        """A private copy. Read, not mapped: mapped pages would count as memory beside the converted tensor."""
        assert self.torch_dtype is not None
        return read_bytes(self.path, self.start, self.n_bytes).view(self.torch_dtype).view(self.shape)


class StoredRows:
    """A matrix that stays in its file: a slice of its rows is read when it is asked for, all of it as `[:]`."""

    device = torch.device("cpu")

    def __init__(self, path: Path, start: int, *, shape: tuple[int, ...], dtype: torch.dtype) -> None:
        """start: of its first number, in bytes. shape: (N, K), neither of them 0."""
        self._path, self._start = path, start
        self.shape, self.dtype = torch.Size(shape), dtype
        self.nbytes = self.shape.numel() * dtype.itemsize

    def __getitem__(self, rows: slice, /) -> Tensor:
        """Neighbouring rows.

        Raises:
            WeightsError: the file was cut off meanwhile.
        """
        first, last, step = rows.indices(self.shape[0])
        assert step == 1, rows
        row_bytes = self.nbytes // self.shape[0]
        data = read_bytes(self._path, self._start + first * row_bytes, max(last - first, 0) * row_bytes)
        return data.view(self.dtype).view(-1, self.shape[1])


def fetched(tensor: StoredTensor) -> Tensor | StoredRows:
    """A matrix that stays in its file, which the system now has in its cache; of what is none, all is read."""
    if len(tensor.shape) != 2 or not tensor.n_bytes or tensor.torch_dtype is None:
        return tensor.read()
    place, left = memoryview(bytearray(min(_FETCHED_BYTES, tensor.n_bytes))), tensor.n_bytes
    with tensor.path.open("rb", buffering=0) as file:
        file.seek(tensor.start)
        while left > 0 and (got := file.readinto(place[:left])):
            left -= got
    return StoredRows(tensor.path, tensor.start, shape=tensor.shape, dtype=tensor.torch_dtype)


def map_as_all(path: Path) -> dict[torch.dtype, Tensor]:
    """A file, mapped, as numbers of each type; a private mapping: writing to it never reaches the file."""
    size = path.stat().st_size
    mapping = torch.from_file(str(path), shared=False, size=size, dtype=torch.uint8)
    return {dtype: mapping[: size - size % dtype.itemsize].view(dtype) for dtype in _TORCH_DTYPES.values()}


def dtype_name(dtype: torch.dtype) -> str:
    """How safetensors headers spell a type."""
    return next(name for name, known in _TORCH_DTYPES.items() if known == dtype)
