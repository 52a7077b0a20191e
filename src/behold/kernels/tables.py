"""Rows of tables by their numbers: of float32, and of 8 bits as an int8 layer is packed (csrc/tables.cpp)."""

from __future__ import annotations

import torch
from torch import Tensor

from behold.kernels import native

FORK_NUMBERS = 1 << 18  # less is done before a second thread has begun


def suits(ids: Tensor) -> bool:
    """Whether these can be numbers of rows for the kernels."""
    return native.LIBRARY is not None and ids.is_cpu and ids.dtype is torch.int64


def rows_f32(ids: Tensor, table: Tensor) -> Tensor:
    """ids (…,) int64 to the rows of a table (R, D) float32, contiguous: (…, D).

    Raises:
        IndexError: an id is not a row of the table.
    """
    rows, width = table.shape
    ids, out = _checked(ids, rows), table.new_empty((*ids.shape, width))
    addresses = (table.data_ptr(), out.data_ptr())
    native.call("bh_table_f32", ids.data_ptr(), ids.numel(), *addresses, width, _threads(out), kept=(ids, table, out))
    return out


def rows_q8(ids: Tensor, weight: Tensor, scale: Tensor, width: int) -> Tensor:
    """ids (…,) int64 to the table's rows (…, width) float32.

    weight, scale: an int8 layer's, the table's rows being its outputs.

    Raises:
        IndexError: an id is not a row of the table.
    """
    ids, out = _checked(ids, scale.shape[0]), scale.new_empty((*ids.shape, width))
    addresses = (weight.data_ptr(), scale.data_ptr(), out.data_ptr())
    kept = (ids, weight, scale, out)
    native.call("bh_table_q8", ids.data_ptr(), ids.numel(), *addresses, width, _threads(out), kept=kept)
    return out


def _checked(ids: Tensor, rows: int) -> Tensor:
    """The ids, contiguous, if all are among so many rows."""
    if ids.numel():
        least, most = (int(end) for end in ids.aminmax())
        if least < 0 or most >= rows:
            raise IndexError(f"ids from {least} to {most}, in a table with rows 0 to {rows - 1}")
    return ids.contiguous()


def _threads(out: Tensor) -> int:
    return torch.get_num_threads() if out.numel() >= FORK_NUMBERS else 1
