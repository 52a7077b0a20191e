"""Attention in which every row sees all of its own picture, with what projects its input."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor, nn

from behold.kernels import attention_q8
from behold.nn.attention import attend_all
from behold.quant.joined import Joined


class AllToAll:
    """Heads of queries, keys and values of one input; rounded where the layers that make them are."""

    def __init__(self, heads: int) -> None:
        self._heads, self._joined = heads, Joined()

    def rows_of(self, x: Tensor, *layers: nn.Module) -> Callable[[slice], Tensor]:
        """What computes rows [start, stop) of every picture of x (B, n, D), as (B, stop - start, D).

        layers: those of queries, keys and values, D to D.
        """
        kernel = self._joined.kernel(x, *layers)
        if kernel is not None and attention_q8.suits(x.shape[2], self._heads):
            rounded = attention_q8.Rounded(kernel(x), self._heads)
            return lambda rows: rounded.attend(rows.start, rows.stop)
        q, k, v = (layer(x) for layer in layers)
        return lambda rows: attend_all(q, k, v, rows, heads=self._heads)
