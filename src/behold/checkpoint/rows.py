"""Reading stored numbers: all of a tensor, or a few rows at a time of a matrix that is needed once."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from behold.errors import WeightsError

if TYPE_CHECKING:
    from behold.checkpoint.weights import StoredTensor

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
