"""Linear layers whose weights are floats of 8 bits, for GPUs that multiply such numbers.

e4m3 (Micikevicius et al. 2022, arxiv.org/abs/2209.05433) has 3 bits of fraction: a weight is off by 2.6 % on average,
whatever its size. One scale for each output row therefore only has to bring the row's largest weight to the end of the
range, and a row with a few large weights loses nothing.
"""

from __future__ import annotations

import functools

import torch
from torch import Tensor
from torch.nn import functional as F

from behold.quant.linear import QuantizedLinear, Rows

CODE = torch.float8_e4m3fn
LARGEST = torch.finfo(CODE).max  # 448
SIDE = 16  # the products' matrices have sides that are multiples of this
UNITS = (8, 9)  # the compute capability from which on a GPU multiplies such numbers
_PIECE = 1 << 24  # weights that are rounded or widened at a time: beside a head of 150,000 rows little memory is needed
_SMALLEST = 1e-30  # a scale: rows of zeros stay zeros


class Float8Linear(QuantizedLinear):
    """y = x · (code · scale)ᵀ + bias with codes of 8 bits.

    weight: (⌈out / 16⌉ · 16, ⌈in / 16⌉ · 16) float8_e4m3fn, zeros outside. scale: (⌈out / 16⌉ · 16,) float32.

    On a GPU that has units for it each row of x is rounded as the weights are, and the product is of float8. Elsewhere
    the weights are widened for the product, and x is not rounded: on other GPUs in the type of x, on CPUs in float32.
    """

    scheme = "float8"
    NAMES = ("weight", "scale")
    MOST_INPUTS = 0  # there is no compiled kernel

    @classmethod
    def _rounded(cls, weight: Rows) -> dict[str, Tensor]:
        n, k = weight.shape
        rows, columns = n + -n % SIDE, k + -k % SIDE
        codes = torch.zeros(rows, columns, dtype=CODE, device=weight.device)
        scale = torch.ones(rows, device=weight.device)
        at_once = max(_PIECE // k, 1)
        for start in range(0, n, at_once):
            piece = slice(start, min(start + at_once, n))
            codes[piece, :k], scale[piece] = round_float8(weight[piece])
        return {"weight": codes, "scale": scale}

    def _plain(self, x: Tensor) -> Tensor:
        rows = x.detach().reshape(-1, self.in_features)
        out = self.scaled_product(rows) if len(rows) and multiplies_float8(x.device) else self._product(rows)
        return out.view(*x.shape[:-1], self.out_features)

    def scaled_product(self, x: Tensor) -> Tensor:
        """(M, in) to (M, out), in the type of x, with its rows rounded to float8.

        The sum is rounded to bfloat16, the one type that every GPU's kernel for scales of rows gives.
        """
        codes, scale = round_float8(F.pad(x, (0, -self.in_features % SIDE)))
        out = torch._scaled_mm(
            codes,
            self.weight.t(),
            scale_a=scale[:, None],
            scale_b=self.scale[None],
            out_dtype=torch.bfloat16,
            use_fast_accum=False,
        )
        out = out[:, : self.out_features].to(x.dtype)
        return out.contiguous() if self.bias is None else out + self.bias.to(x.dtype)

    def _product(self, x: Tensor) -> Tensor:
        """(M, in) to (M, out), in the type of x, with the weights widened a piece at a time."""
        wide = x.float() if x.is_cpu else x  # CPUs without units for 16-bit floats take very long over them
        at_once = max(_PIECE // self.in_features, 1)
        starts = range(0, self.out_features, at_once)
        parts = [F.linear(wide, self.wide(start, start + at_once).to(wide.dtype)) for start in starts]
        out = parts[0] if len(parts) == 1 else torch.cat(parts, dim=-1)
        return (out if self.bias is None else out + self.bias.to(out.dtype)).to(x.dtype)

    def wide(self, start: int, stop: int) -> Tensor:
        rows = slice(start, min(stop, self.out_features))
        return self.weight[rows, : self.in_features].float().mul_(self.scale[rows, None])


def round_float8(x: Tensor) -> tuple[Tensor, Tensor]:
    """(M, K) floats as (float8 codes, (M,) float32 scales): each row by itself, its largest becomes 448."""
    wide = x.float()
    scale = wide.abs().amax(dim=1).div_(LARGEST).clamp_(min=_SMALLEST)
    return (wide / scale[:, None]).to(CODE), scale


@functools.cache
def multiplies_float8(device: torch.device) -> bool:
    """Whether a device has products of float8 with scales of rows; that torch has them there is tried, once."""
    if device.type != "cuda" or torch.cuda.get_device_capability(device) < UNITS:
        return False
    codes, scale = torch.ones(SIDE, SIDE, device=device).to(CODE), torch.ones(SIDE, 1, device=device)
    try:
        found = torch._scaled_mm(
            codes, codes.t(), scale_a=scale, scale_b=scale.t(), out_dtype=torch.bfloat16, use_fast_accum=False
        )
    except RuntimeError:  # another make of GPU, an older driver, an older torch
        return False
    return bool((found == SIDE).all())
