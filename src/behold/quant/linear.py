"""Linear layers and embedding tables with rounded weights; behold.quant.rounding says how numbers are rounded.

All that a layer is made of lies in buffers in the order in which the kernels read it, for one row and for many alike:
a layer that was written to a file is used where the file is mapped. Where there are no compiled kernels, torch computes
the same from the same buffers. On other devices than CPUs the weights are widened for the product.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, ClassVar, Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from behold.kernels import linear_q, native, tables
from behold.quant import integers
from behold.quant.rounding import (
    GROUP,
    PANEL,
    pack,
    pack_codes,
    round_groups,
    round_rows,
    unpack,
    unpack_codes,
)

if TYPE_CHECKING:
    from typing_extensions import Self

AT_ONCE = 1 << 20  # weights that are rounded at a time: what is needed beside the result stays small


class Rows(Protocol):
    """What a tensor is to those who look at a few rows at a time: others may read them from a file."""

    @property
    def shape(self) -> torch.Size: ...
    @property
    def dtype(self) -> torch.dtype: ...
    @property
    def device(self) -> torch.device: ...
    @property
    def nbytes(self) -> int: ...

    def __getitem__(self, rows: slice, /) -> Tensor: ...


class QuantizedLinear(nn.Module, ABC):
    """A replacement for nn.Linear, not differentiable. Its buffers are its state; `bias` may be None.

    weight: the rounded weights, packed. scale: (out,) float32. sums: (out,) int32, of each output's integer weights
    (float8 has none).
    """

    scheme: ClassVar[str]
    NAMES: ClassVar[tuple[str, ...]]  # of the buffers, beside the bias
    MOST_INPUTS: ClassVar[int]  # that the kernel takes
    INPUT_BITS: ClassVar[int]  # that each input is rounded to, but for outliers
    weight: Tensor
    scale: Tensor
    sums: Tensor
    bias: Tensor | None

    def __init__(self, state: Mapping[str, Tensor], *, in_features: int, out_features: int) -> None:
        """state: as `state` gives it; tensors are taken as they are, and may be read-only."""
        super().__init__()
        self.in_features, self.out_features = in_features, out_features
        for name in self.NAMES:
            self.register_buffer(name, state[name])
        self.register_buffer("bias", state.get("bias"))
        self._torch = integers.Product()
        self._kernel: linear_q.Kernel | None = None

    @classmethod
    def of(cls, linear: nn.Linear, weight: Rows | None = None) -> Self:
        """The same layer, rounded; nothing of `linear` is kept. weight: in place of its own, which may be missing."""
        state = cls._rounded(linear.weight.detach() if weight is None else weight)
        if linear.bias is not None:
            state["bias"] = linear.bias.detach().to(torch.float32, copy=True)
        return cls(state, in_features=linear.in_features, out_features=linear.out_features)

    @classmethod
    def from_state(cls, state: Mapping[str, Tensor], *, in_features: int, out_features: int) -> Self:
        """The layer that `state` came from. Tensors are not copied: they may be mapped from a file, read-only."""
        return cls(state, in_features=in_features, out_features=out_features)

    @classmethod
    @abstractmethod
    def _rounded(cls, weight: Rows) -> dict[str, Tensor]:
        """The state, without bias, of (out, in) weights."""

    def state(self) -> dict[str, Tensor]:
        """All that it is made of, by name; not copies."""
        return {name: buffer for name, buffer in self.named_buffers() if buffer is not None}

    @property
    def n_bytes(self) -> int:
        """What its state takes."""
        return sum(tensor.numel() * tensor.element_size() for tensor in self.state().values())

    def forward(self, x: Tensor, plus: Tensor | None = None, out: Tensor | None = None) -> Tensor:
        """(…, in) to (…, out), in the type of x, written to `out` where that is given; `plus` is added.

        Both are of the result's shape.
        """
        if x.is_cpu and x.dtype is torch.float32 and x.numel():
            kernel = self._kernel
            if kernel is None or not kernel.fits(self.weight):
                kernel = self._kernel = linear_q.Kernel([self.parts()], self.in_features) if self.has_kernel else None
            if kernel is not None and (plus is None or native.ready(plus)):
                after = linear_q.After.STORE if plus is None else linear_q.After.ADD
                if out is None or native.ready(out):
                    return kernel(x.contiguous(), after, residual=plus, out=out)
                return out.copy_(kernel(x.contiguous(), after, residual=plus))
        y = self._plain(x)
        y = y if plus is None else plus + y
        return y if out is None else out.copy_(y)

    def _plain(self, x: Tensor) -> Tensor:
        """The product without kernels."""
        if not x.is_cpu or not x.numel():
            return F.linear(x, self.dequantized().to(x.dtype), None if self.bias is None else self.bias.to(x.dtype))
        if x.dtype is not torch.float32:
            wide: Tensor = self(x.float())
            return wide.to(x.dtype)
        return self._product(x.detach().reshape(-1, self.in_features)).view(*x.shape[:-1], self.out_features)

    @property
    def has_kernel(self) -> bool:
        """Whether our compiled kernels can do this layer."""
        return native.LIBRARY is not None and self.in_features <= self.MOST_INPUTS and self.weight.is_cpu

    def parts(self) -> linear_q.Parts:
        """What a kernel has to know."""
        multipliers = getattr(self, "multipliers", None)
        return linear_q.Parts(self.weight, multipliers, self.scale, self.sums, self.bias, self.out_features)

    @abstractmethod
    def _product(self, x: Tensor) -> Tensor:
        """(M, in) to (M, out), contiguous float32 on a CPU, in torch."""

    def dequantized(self) -> Tensor:
        """(out, in) float32 weights as this layer uses them."""
        return self.wide(0, self.out_features)

    @abstractmethod
    def wide(self, start: int, stop: int) -> Tensor:
        """(stop - start, in) of `dequantized`, those of some outputs; nothing else is widened."""

    def extra_repr(self) -> str:
        return f"in_features={self.in_features}, out_features={self.out_features}, bias={self.bias is not None}"

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        """Follows the model to another device; nothing changes its type."""
        for name, buffer in self.state().items():
            device = fn(torch.empty(0, device=buffer.device)).device
            if device != buffer.device:
                setattr(self, name, buffer.to(device))
        self._torch, self._kernel = integers.Product(), None
        return self


class Int8Linear(QuantizedLinear):
    """y = x · (q · scale)ᵀ + bias with integers q of 8 bits. weight: (⌈out / 32⌉, ⌈in / 4⌉, 32, 4) int8."""

    scheme = "int8"
    NAMES: ClassVar[tuple[str, ...]] = ("weight", "scale", "sums")
    MOST_INPUTS, INPUT_BITS = linear_q.MAX_INPUTS_8, 7

    @classmethod
    def _rounded(cls, weight: Rows) -> dict[str, Tensor]:
        n, k = weight.shape
        device = weight.device
        state = {
            "weight": torch.empty(-(-n // PANEL), -(-k // 4), PANEL, 4, dtype=torch.int8, device=device),
            "scale": torch.empty(n, device=device),
            "sums": torch.empty(n, dtype=torch.int32, device=device),
        }
        for rows, panels in portions(n, k):
            rounded, state["scale"][rows] = round_rows(weight[rows])
            state["weight"][panels] = pack(rounded)
            state["sums"][rows] = rounded.sum(1, dtype=torch.int32)
        return state

    def _product(self, x: Tensor) -> Tensor:
        return self._torch(x, self._integers, self.scale, self.sums, self.bias)

    def wide(self, start: int, stop: int) -> Tensor:
        first, last = start // PANEL, -(-stop // PANEL)
        integers = unpack(self.weight[first:last], stop - first * PANEL, self.in_features)[start - first * PANEL :]
        return integers.float().mul_(self.scale[start:stop, None])

    def _integers(self) -> Tensor:
        return unpack(self.weight, self.out_features, self.in_features)


class Int4Linear(QuantizedLinear):
    """y = x · ((code - 8) · multiplier · scale)ᵀ + bias.

    weight: (⌈out / 32⌉, ⌈in / 32⌉, 4, 32, 4) bytes of two codes. multipliers: (⌈out / 32⌉, ⌈in / 32⌉, 32) int8.
    """

    scheme = "int4"
    NAMES = ("weight", "multipliers", "scale", "sums")
    MOST_INPUTS, INPUT_BITS = linear_q.MAX_INPUTS_4, 8
    multipliers: Tensor

    @classmethod
    def _rounded(cls, weight: Rows) -> dict[str, Tensor]:
        n, k = weight.shape
        panels, groups, device = -(-n // PANEL), -(-k // GROUP), weight.device
        state = {
            "weight": torch.empty(panels, groups, 4, PANEL, 4, dtype=torch.uint8, device=device),
            "multipliers": torch.zeros(panels, groups, PANEL, dtype=torch.int8, device=device),
            "scale": torch.empty(n, device=device),
            "sums": torch.empty(n, dtype=torch.int32, device=device),
        }
        rounding = linear_q.round_groups if native.LIBRARY is not None and device.type == "cpu" else round_groups
        for rows, panel in portions(n, k):
            codes, multipliers, state["scale"][rows] = rounding(weight[rows])
            state["weight"][panel] = pack_codes(codes)
            wide = F.pad(multipliers, (0, 0, 0, -len(multipliers) % PANEL))
            state["multipliers"][panel] = wide.view(-1, PANEL, groups).transpose(1, 2)
            sums = (codes.view(-1, groups, GROUP).sum(2) - 8 * GROUP) * multipliers
            state["sums"][rows] = sums.sum(1, dtype=torch.int32)
        return state

    def _product(self, x: Tensor) -> Tensor:
        return F.linear(integers.rounded_inputs(x, self.INPUT_BITS), self.dequantized(), self.bias)

    def wide(self, start: int, stop: int) -> Tensor:
        first, last = start // PANEL, -(-stop // PANEL)
        rows = slice(start - first * PANEL, stop - first * PANEL)
        codes = unpack_codes(self.weight[first:last], rows.stop)[rows].float().sub_(8)
        factors = self.multipliers[first:last].transpose(1, 2).reshape(-1, self.multipliers.shape[1])[rows]
        groups = codes.view(*factors.shape, GROUP).mul_((factors * self.scale[start:stop, None])[..., None])
        return groups.view(len(codes), -1)[:, : self.in_features]


class QuantizedEmbedding(nn.Module):
    """A table of rows with 8 bits a number and a scale for each row, packed as an int8 layer, which it can serve as."""

    def __init__(self, layer: Int8Linear) -> None:
        """layer: (width) to (rows), without bias."""
        super().__init__()
        self.num_embeddings, self.embedding_dim = layer.out_features, layer.in_features
        self.dtype = torch.float32  # of what it gives
        self.layer = layer

    @classmethod
    def of(cls, table: nn.Embedding, kind: type[Int8Linear] = Int8Linear, weight: Rows | None = None) -> Self:
        """The same table, rounded, as a layer of this kind; nothing of `table` is kept. weight: in place of its own."""
        weight = table.weight.detach() if weight is None else weight
        rows, width = weight.shape
        return cls(kind(kind._rounded(weight), in_features=width, out_features=rows))

    @classmethod
    def from_state(
        cls,
        state: Mapping[str, Tensor],
        *,
        num_embeddings: int,
        embedding_dim: int,
        kind: type[Int8Linear] = Int8Linear,
    ) -> Self:
        """The table that `state` came from, as a layer of this kind. Tensors are not copied."""
        return cls(kind.from_state(state, in_features=embedding_dim, out_features=num_embeddings))

    def state(self) -> dict[str, Tensor]:
        """All that it is made of, by name; not copies."""
        return self.layer.state()

    @property
    def n_bytes(self) -> int:
        """What its state takes."""
        return self.layer.n_bytes

    def forward(self, ids: Tensor) -> Tensor:
        """(…,) to (…, width) in the model's type."""
        weight, scale = self.layer.weight, self.layer.scale
        if tables.suits(ids):
            return tables.rows_q8(ids, weight, scale, self.embedding_dim).to(self.dtype)
        rows = weight[ids // PANEL, :, ids % PANEL].flatten(-2)[..., : self.embedding_dim]
        return (rows.float() * scale[ids][..., None]).to(self.dtype)

    def logits(self, hidden: Tensor) -> Tensor:
        """(…, width) by the table, as a tied head: (…, rows)."""
        out: Tensor = self.layer(hidden)
        return out

    def dequantized(self) -> Tensor:
        """(rows, width) float32 as this table uses them."""
        return self.layer.dequantized()

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        self.dtype = fn(torch.empty(0, dtype=self.dtype)).dtype
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call, unused-ignore]
        return self


def portions(n: int, k: int) -> Iterator[tuple[slice, slice]]:
    """(n, k) weights in portions of rows, and of panels: what is widened at a time stays small."""
    panels = max(1, AT_ONCE // (PANEL * k))
    for first in range(0, -(-n // PANEL), panels):
        yield slice(first * PANEL, (first + panels) * PANEL), slice(first, first + panels)
