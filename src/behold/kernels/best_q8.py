"""The largest outputs of an int8 layer, where it is roughly known how large each is: csrc/best_q8.cpp."""

from __future__ import annotations

import ctypes

import torch
from torch import Tensor

from behold.kernels import native


def best(x: Tensor, layer: ctypes.Array[ctypes.c_int64], rough: Tensor, errors: Tensor) -> Tensor:
    """x (R, K) to the first largest output of each row, (R,) int64; -1 where an error turns out to be larger.

    layer: as linear_q.Parts.numbers has it. rough: (R, N) about its outputs; what is computed is written over them.
    errors: (N,) how far they are off at most, relative to the norm of the inputs. All float32 and contiguous.
    """
    rows, width = x.shape
    found = torch.empty(rows, dtype=torch.int64)
    native.call(
        "bh_best_q8",
        x.data_ptr(),
        layer,
        rough.data_ptr(),
        errors.data_ptr(),
        found.data_ptr(),
        rows,
        width,
        torch.get_num_threads(),
        kept=(x, layer, rough, errors, found),
    )
    return found
