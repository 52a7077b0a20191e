"""Lookup tables."""

from __future__ import annotations

import torch
from torch import nn


def embedding(rows: int, width: int) -> nn.Embedding:
    """An nn.Embedding that is not initialised: its weights are read from a file.

    Initialising one on the meta device makes torch import its compiler, which takes seconds.
    """
    return nn.Embedding(rows, width, _weight=torch.empty(rows, width))
