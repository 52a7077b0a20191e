"""The int8 layer that chooses among very many ids: it finds the likeliest without computing all.

Beside its weights of 8 bits it has the same in codes of 4, half the bytes to read. What the codes say of every output
is rough, but no further off than `errors` times the norm of the inputs; the outputs that may then be the largest, some
hundred, are computed exactly, and the largest of those is the largest of all.

How far off a rough output may be is a matter of probability: WIDTH standard deviations of a sum of rounding errors, of
which none is known to lie one way. Should inputs be such that this does not hold, it shows in the outputs that are
computed exactly, each of which is compared with what was said of it; then all are computed.
"""

from __future__ import annotations

import ctypes

import torch
from torch import Tensor

from behold.kernels import best_q8, linear_q, native
from behold.quant.linear import Int4Linear, Int8Linear, Rows, portions

WIDTH = 8.0  # standard deviations
OF_INPUTS = 0.02  # of an output, at most, by the rounding of inputs
LEAST_WEIGHTS = 1 << 24  # of a smaller layer all is computed sooner
MOST_ROWS = 4  # for more, products take the time and not reading
_ROUGH = "rough_"


class Int8Head(Int8Linear):
    """An Int8Linear that finds the largest of its outputs sooner than all of them.

    rough_…: the buffers of an Int4Linear of the same weights. errors: (out,) float32, see above.
    """

    NAMES = (*Int8Linear.NAMES, *(_ROUGH + name for name in Int4Linear.NAMES), "errors")
    errors: Tensor
    rough_weight: Tensor
    _rough: linear_q.Kernel | None = None  # it and the next are made when they are first wanted
    _exact: ctypes.Array[ctypes.c_int64]

    @classmethod
    def _rounded(cls, weight: Rows) -> dict[str, Tensor]:
        exact, rough = Int8Linear._rounded(weight), Int4Linear._rounded(weight)
        named = {_ROUGH + name: tensor for name, tensor in rough.items()}
        return exact | named | {"errors": _errors(exact, rough, *weight.shape)}

    def best(self, x: Tensor) -> Tensor | None:
        """x (R, in) to the first largest output of each row, (R,) int64, or -1 where it was not found.

        None where the outputs are to be asked.
        """
        if not (self.has_kernel and self.in_features <= Int4Linear.MOST_INPUTS and native.ready(x)):
            return None
        if self._forward_hooks or not 0 < len(x) <= MOST_ROWS:
            return None
        if self._rough is None or not self._rough.fits(self.rough_weight):
            codes = [self.get_buffer(_ROUGH + name) for name in ("weight", "multipliers", "scale", "sums")]
            rough = linear_q.Parts(codes[0], codes[1], codes[2], codes[3], self.bias, self.out_features)
            self._rough, self._exact = (
                linear_q.Kernel([rough], self.in_features),
                linear_q.words([self.parts().numbers()]),
            )
        return best_q8.best(x, self._exact, self._rough(x), self.errors)


def _errors(exact: dict[str, Tensor], rough: dict[str, Tensor], n: int, k: int) -> Tensor:
    """(n,) what a rough output may be off, for inputs of norm 1; exact, rough: the states of layers of n times k."""
    size = {"in_features": k}
    errors = torch.empty(n, device=exact["scale"].device)
    for rows, panels in portions(n, k):
        cut = {"weight": panels, "multipliers": panels, "scale": rows, "sums": rows}
        count = len(errors[rows])
        fine, coarse = (
            kind({name: tensor[cut[name]] for name, tensor in state.items()}, **size, out_features=count).dequantized()
            for kind, state in ((Int8Linear, exact), (Int4Linear, rough))
        )
        weights = coarse.sub_(fine).square_().sum(1)
        errors[rows] = (weights + OF_INPUTS**2 * fine.square_().sum(1)).sqrt_().mul_(WIDTH / k**0.5)
    return errors
