"""Layers of one input, such as queries, keys and values, as one call: the input is normed and rounded once."""

from __future__ import annotations

from torch import Tensor, nn

from behold.kernels import linear_q, native
from behold.quant.linear import QuantizedLinear


class Joined:
    """What joins the layers of a block. A block keeps one; it notices when a layer was replaced."""

    def __init__(self) -> None:
        self._kernel: linear_q.Kernel | None = None

    def kernel(self, x: Tensor, *layers: nn.Module) -> linear_q.Kernel | None:
        """For x (…, K) and layers in the order of their outputs; None where it takes more than a kernel.

        Somebody who watches a layer, with a hook, is to see what goes in and comes out.
        """
        if not native.ready(x) or not x.numel() or any(layer._forward_hooks for layer in layers):
            return None
        kernel = self._kernel
        # past nn.Module's own look-up, which for a step of one token is as slow as a small layer
        if kernel is None or not kernel.fits(*(layer._buffers.get("weight") for layer in layers)):
            kernel = self._kernel = _found(layers)
        return kernel


def _found(layers: tuple[nn.Module, ...]) -> linear_q.Kernel | None:
    parts = [layer.parts() for layer in layers if isinstance(layer, QuantizedLinear) and layer.has_kernel]
    return linear_q.Kernel(parts, int(layers[0].in_features)) if len(parts) == len(layers) else None  # type: ignore[arg-type]
