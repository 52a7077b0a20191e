"""Attention in which every row sees all of its own picture, with what projects its input."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor, nn
from torch.nn import functional as F

from behold.kernels import attention, attention_q8
from behold.nn.norms import LayerNorm
from behold.quant.joined import Joined


class AllToAll:
    """Heads of queries, keys and values of one input; rounded where the layers that make them are."""

    def __init__(self, heads: int) -> None:
        self._heads, self._joined = heads, Joined()

    def rows_of(self, x: Tensor, norm: LayerNorm, *layers: nn.Module) -> Callable[[slice], Tensor]:
        """What computes rows [start, stop) of every picture of norm(x) (B, n, D), as (B, stop - start, D).

        layers: those of queries, keys and values, D to D.
        """
        kernel = self._joined.kernel(x, *layers)
        if kernel is not None and norm.can_join(x) and attention_q8.suits(x.shape[2], self._heads):
            joined = kernel(x, norm=norm.weight, norm_bias=norm.bias, eps=norm.eps)
            rounded = attention_q8.Rounded(joined, self._heads)
            return lambda rows: rounded.attend(rows.start, rows.stop)
        x = norm(x)
        q, k, v = (layer(x) for layer in layers)
        return lambda rows: attend_all(q, k, v, rows, heads=self._heads)


def attend_all(q: Tensor, k: Tensor, v: Tensor, rows: slice, *, heads: int) -> Tensor:
    """Those rows [start, stop) of attention in which each sees all of its own batch entry.

    q, k, v: (B, n, heads · d). Returns (B, stop - start, heads · d).
    """
    if attention.suits_all(q, k, v, heads):
        return attention.attend_all(q, k, v, heads, start=rows.start, stop=rows.stop)
    q, k, v = (x.reshape(*x.shape[:2], heads, -1).transpose(1, 2) for x in (q[:, rows], k, v))
    return F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
