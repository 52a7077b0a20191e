"""Integer or float8 codes times their scales, and codes out of 32-bit words. Pure functions on CPU tensors."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from behold.checkpoint.prequantized.layout import Misfit

_STEP = 1 << 20  # weights decoded at a time: temporaries stay in the cache and the peak is one float32 weight


@dataclass(frozen=True, slots=True)
class Grid:
    """Which weights share a scale: blocks of `rows` × `columns` of the weight (out, in), the last ones ragged."""

    rows: int
    columns: int

    def shape(self, n_out: int, n_in: int) -> tuple[int, int]:
        """Of the scales: (R, C)."""
        return -(-n_out // self.rows), -(-n_in // self.columns)

    def shapes(self, n_out: int, n_in: int) -> tuple[tuple[int, ...], ...]:
        """The same, and with sides of one left out."""
        n_rows, n_columns = self.shape(n_out, n_in)
        shorter: tuple[tuple[int, ...], ...] = ((n_rows,),) if n_columns == 1 else ()
        return ((n_rows, n_columns), *shorter, *(((),) if n_rows == n_columns == 1 else ()))


def scaled(codes: Tensor, scales: Tensor, zeros: Tensor | None, grid: Grid, columns: Tensor | None = None) -> Tensor:
    """(codes - zeros) · scales in float32, shape (out, in).

    codes: (out, in), integers or float8. scales, zeros: (R, C) of `grid`, any type. columns: (in,) the column of the
    scales that each column of the weight uses, where that is not its place in the grid.

    Raises:
        Misfit: a scale is not finite, or `columns` names one that does not exist.
    """
    n_out, n_in = codes.shape
    scales = finite(scales.float(), "scales")
    zeros = None if zeros is None else zeros.float()
    width = min(grid.columns, n_in)
    if columns is not None:
        if int(columns.min()) < 0 or int(columns.max()) >= scales.shape[1]:
            raise Misfit(f"a column belongs to a group outside of 0 … {scales.shape[1] - 1}")
    elif n_in % width:
        columns = torch.arange(n_in) // width
    weight = torch.empty((n_out, n_in), dtype=torch.float32)
    step = max(1, _STEP // n_in)
    for start in range(0, n_out, step):
        block = weight[start : start + step].copy_(codes[start : start + step])
        rows = torch.arange(start, start + len(block)) // min(grid.rows, n_out)
        groups = block.view(len(block), -1, width) if columns is None else block
        if zeros is not None:
            groups.sub_(_spread(zeros[rows], columns))
        groups.mul_(_spread(scales[rows], columns))
    return weight


def _spread(values: Tensor, columns: Tensor | None) -> Tensor:
    """(n, C) against (n, C, width) or, with `columns`, against (n, in)."""
    return values[..., None] if columns is None else values[:, columns]


def finite(values: Tensor, what: str) -> Tensor:
    """The same values.

    Raises:
        Misfit: some are infinite or not a number.
    """
    if not bool(torch.isfinite(values).all()):
        raise Misfit(f"its {what} are not all finite")
    return values


def fields(words: Tensor, bits: int) -> Tensor:
    """(…, W) int32 to (…, W · 32 / bits) uint8: the fields of each word from its lowest bits on. bits: 4 or 8."""
    # a copy, for a transposed side of one passes for contiguous while its stride forbids the view
    octets = torch.empty(words.shape, dtype=torch.int32).copy_(words).view(torch.uint8)
    return octets if bits == 8 else torch.stack((octets & 15, octets >> 4), dim=-1).flatten(-2)
