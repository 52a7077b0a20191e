"""How far quantized layers are off in real work: what they made of what came in, against the full weights.

While a quantized model runs, a few rows of each layer's inputs and outputs are kept. Afterwards the full weights are
read from the checkpoint again, one layer at a time, so that neither two models nor two layers are ever in memory.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from behold.quant.apply import full_product, relative_error
from behold.quant.linear import QuantizedEmbedding, QuantizedLinear
from behold.quant.schemes import FULL, Layer

ROWS = 16  # of a layer that are looked at; they are spread evenly over what came in


class Weight(Protocol):
    """Where full weights are read from."""

    def read(self) -> Tensor:
        """The values, in the type they are stored in."""
        ...


@dataclass(frozen=True, slots=True)
class MeasuredLayer(Layer):
    """`output_error`: the relative error of the layer's output for the inputs that a picture gave it; None where
    nothing came in, and 0 for a layer that is not quantized."""

    output_error: float | None

    @classmethod
    def of(cls, layer: Layer, output_error: float | None) -> MeasuredLayer:
        """A layer with what was measured."""
        fields = {name: getattr(layer, name) for name in Layer.__slots__}
        return cls(**fields, output_error=output_error)


@dataclass
class _Seen:
    """Some rows of what one layer was given (or their ids) and of what it made of them, without bias."""

    given: Tensor
    made: Tensor


@dataclass
class Watch:
    """Which rows were seen, by the layers' names."""

    seen: dict[str, _Seen] = field(default_factory=dict)

    def errors(self, layers: Sequence[Layer], weights: Mapping[str, Weight]) -> Iterator[MeasuredLayer]:
        """Each layer with its error; `weights` has the full ones by our names ("….weight")."""
        for layer in layers:
            seen = self.seen.get(layer.name)
            if layer.scheme == FULL:
                yield MeasuredLayer.of(layer, 0.0)
            elif seen is None:
                yield MeasuredLayer.of(layer, None)
            else:
                weight = weights[f"{layer.name}.weight"].read()
                exact = full_product(seen.given, weight) if seen.given.is_floating_point() else weight[seen.given]
                yield MeasuredLayer.of(layer, relative_error(seen.made, exact.float()))


@contextmanager
def watching(model: nn.Module, layers: Sequence[Layer]) -> Iterator[Watch]:
    """Looks at the quantized layers while a model runs; the first call of each counts."""
    watch = Watch()
    handles = [
        model.get_submodule(layer.name).register_forward_hook(_hook(watch, layer.name))
        for layer in layers
        if layer.scheme != FULL
    ]
    try:
        yield watch
    finally:
        for handle in handles:
            handle.remove()


def _hook(watch: Watch, name: str) -> Callable[[nn.Module, tuple[Any, ...], Tensor], None]:
    def look(module: nn.Module, given: tuple[Any, ...], made: Tensor) -> None:
        if name in watch.seen:
            return
        assert isinstance(module, QuantizedLinear | QuantizedEmbedding)
        inputs, outputs = given[0].detach(), made.detach()
        if len(given) > 1 and given[1] is not None:  # what was added to the product
            outputs = outputs - given[1]
        inputs = inputs.reshape(-1, inputs.shape[-1]) if inputs.is_floating_point() else inputs.reshape(-1)
        n_rows = min(ROWS, len(inputs))
        at = torch.arange(n_rows) * len(inputs) // max(n_rows, 1)
        some = outputs.reshape(-1, outputs.shape[-1])[at].float().cpu()
        bias = getattr(module, "bias", None)
        if isinstance(bias, Tensor):
            some = some - bias.float().cpu()
        picked = inputs[at].cpu()
        watch.seen[name] = _Seen(picked.float() if picked.is_floating_point() else picked, some)

    return look
