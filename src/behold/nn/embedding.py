"""Lookup tables."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from behold.kernels import native, tables


class Embedding(nn.Embedding):
    """Rows of a table; by our own kernel where one suits, so that steps which look some up can be replayed."""

    def forward(self, input: Tensor) -> Tensor:
        """(…,) to (…, width)."""
        if tables.suits(input) and native.ready(self.weight):
            return tables.rows_f32(input, self.weight)
        return super().forward(input)


def embedding(rows: int, width: int) -> Embedding:
    """A table that is not initialised: its weights are read from a file.

    Initialising one on the meta device makes torch import its compiler, which takes seconds.
    """
    return Embedding(rows, width, _weight=torch.empty(rows, width))
