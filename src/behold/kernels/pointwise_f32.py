"""What stands between the products of a decoder layer, float32: norms, rotations and gates in one pass each.

torch makes six to eight passes of a root mean square norm on a CPU: 80 µs for one row of 1024, here 3.
"""

from __future__ import annotations

import torch
from torch import Tensor

from behold.kernels import native

FORK_NUMBERS = 1 << 15  # less is done before a second thread has begun


def suits_norm(x: Tensor, weight: Tensor) -> bool:
    """Whether `rms_norm` can be used."""
    return native.LIBRARY is not None and x.shape[-1] % 8 == 0 and native.ready(x, weight)


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """(…, D) and (D,) to (…, D), as F.rms_norm."""
    out, width = torch.empty_like(x), weight.shape[0]
    addresses = (x.data_ptr(), weight.data_ptr(), out.data_ptr())
    native.call("bh_rms_norm_f32", *addresses, x.numel() // width, width, eps, _threads(x), kept=(x, weight, out))
    return out


def suits_angles(positions: Tensor, frequencies: Tensor) -> bool:
    """Whether `angles` can be used."""
    return native.LIBRARY is not None and positions.dtype is torch.int64 and native.ready(frequencies)


def angles(positions: Tensor, frequencies: Tensor) -> tuple[Tensor, Tensor]:
    """(N,) int64 and (d / 2,) to cosines and signed sines, (N, 1, d) each, as behold.nn.rotary.Rotary."""
    positions, (half,) = positions.contiguous(), frequencies.shape
    cosines, sines = (frequencies.new_empty(len(positions), 1, 2 * half) for _ in range(2))
    addresses = (positions.data_ptr(), frequencies.data_ptr(), cosines.data_ptr(), sines.data_ptr())
    kept = (positions, frequencies, cosines, sines)
    native.call("bh_angles_f32", *addresses, len(positions), half, _threads(cosines), kept=kept)
    return cosines, sines


def suits_rotation(x: Tensor, cosines: Tensor, sines: Tensor) -> bool:
    """Whether `rotate` can be used."""
    return native.LIBRARY is not None and x.shape[-1] % 16 == 0 and native.ready(x, cosines, sines)


def rotate(x: Tensor, cosines: Tensor, sines: Tensor) -> Tensor:
    """(N, H, d), with cosines and signed sines (N, 1, d), to (N, H, d), as behold.nn.rotary.rotate."""
    return _rotate(x, x.shape[1], cosines, sines, torch.empty_like(x))


def rotate_(x: Tensor, heads: int, cosines: Tensor, sines: Tensor) -> Tensor:
    """x (N, H, d) with its first heads rotated in place."""
    return _rotate(x, heads, cosines, sines, x)


def _rotate(x: Tensor, heads: int, cosines: Tensor, sines: Tensor, out: Tensor) -> Tensor:
    rows, all_heads, dim = x.shape
    width, angles = all_heads * dim, (cosines.data_ptr(), sines.data_ptr())
    sizes = (rows, heads, dim, _threads(x))
    kept = (x, cosines, sines, out)
    native.call("bh_rotate_f32", x.data_ptr(), width, *angles, out.data_ptr(), width, *sizes, kept=kept)
    return out


def suits_gate(gate: Tensor, up: Tensor) -> bool:
    """Whether `silu_times` can be used."""
    return native.LIBRARY is not None and gate.numel() % 8 == 0 and native.ready(gate, up)


def silu_times(gate: Tensor, up: Tensor) -> Tensor:
    """silu(gate) · up, of one shape."""
    out = torch.empty_like(gate)
    addresses = (gate.data_ptr(), up.data_ptr(), out.data_ptr())
    native.call("bh_silu_times_f32", *addresses, gate.numel(), _threads(gate), kept=(gate, up, out))
    return out


def _threads(x: Tensor) -> int:
    return torch.get_num_threads() if x.numel() >= FORK_NUMBERS else 1
