"""Feed-forward blocks and the activations that configs may name."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from behold.errors import UnsupportedModelError
from behold.kernels import pointwise_f32
from behold.kernels.linear_q import After
from behold.nn.linear import Linear
from behold.nn.norms import LayerNorm, RMSNorm
from behold.quant.joined import Joined

Activation = Callable[[Tensor], Tensor]


def _quick_gelu(x: Tensor) -> Tensor:
    return x * torch.sigmoid(1.702 * x)


def _tanh_gelu(x: Tensor) -> Tensor:
    """F.gelu(x, approximate="tanh"), as x · sigmoid(2u) with 2u = x · (a + b · x²): half of its time on a CPU."""
    if x.device.type != "cpu" or x.dtype is not torch.float32 or torch.is_grad_enabled():
        return F.gelu(x, approximate="tanh")
    gate = x * x
    return gate.mul_(0.044715 * _GELU_SLOPE).add_(_GELU_SLOPE).mul_(x).sigmoid_().mul_(x)


_GELU_SLOPE = 2 * math.sqrt(2 / math.pi)

# under the names that config.json files use
ACTIVATIONS: dict[str, Activation] = {
    "gelu": F.gelu,
    "gelu_python": F.gelu,
    "gelu_new": _tanh_gelu,
    "gelu_fast": _tanh_gelu,
    "gelu_pytorch_tanh": _tanh_gelu,
    "quick_gelu": _quick_gelu,
    "silu": F.silu,
    "swish": F.silu,
    "relu": F.relu,
}


def activation(name: str) -> Activation:
    """The function a config names.

    Raises:
        UnsupportedModelError: it is not one of ACTIVATIONS.
    """
    if name not in ACTIVATIONS:
        raise UnsupportedModelError(
            f"The activation {name!r} is not supported. Known: {', '.join(sorted(ACTIVATIONS))}."
        )
    return ACTIVATIONS[name]


class GatedMLP(nn.Module):
    """down(act(gate(x)) · up(x)), as in Llama (SwiGLU, Shazeer 2020, arxiv.org/abs/2002.05202)."""

    def __init__(self, width: int, inner: int, act: str, *, out: int | None = None, bias: bool = False) -> None:
        super().__init__()
        self.gate_proj = Linear(width, inner, bias=bias)
        self.up_proj = Linear(width, inner, bias=bias)
        self.down_proj = Linear(inner, width if out is None else out, bias=bias)
        self.act = activation(act)
        self._joined = Joined()

    def forward(self, x: Tensor, norm: RMSNorm | None = None, plus: Tensor | None = None) -> Tensor:
        """(…, width) to (…, out); x goes through `norm` before, and `plus` is added."""
        kernel = self._joined.kernel(x, self.gate_proj, self.up_proj) if self.act is F.silu else None
        if kernel is not None and (norm is None or norm.can_join(x)):
            weight, eps = (None, 0.0) if norm is None else (norm.weight, norm.eps)
            inner = kernel(x, After.TIMES_SILU, norm=weight, eps=eps)
        else:
            x = x if norm is None else norm(x)
            inner = _gated(self.act, self.gate_proj(x), self.up_proj(x))
        y: Tensor = self.down_proj(inner, plus)
        return y


def _gated(act: Activation, gate: Tensor, up: Tensor) -> Tensor:
    """act(gate) · up, of one shape."""
    if act is F.silu and pointwise_f32.suits_gate(gate, up):
        return pointwise_f32.silu_times(gate, up)
    return act(gate) * up


class MLP(nn.Module):
    """fc2(act(fc1(x))), as in vision transformers."""

    def __init__(self, width: int, inner: int, act: str) -> None:
        super().__init__()
        self.fc1 = Linear(width, inner)
        self.fc2 = Linear(inner, width)
        self.act = activation(act)
        self._joined = Joined()

    def forward(self, x: Tensor, norm: LayerNorm, plus: Tensor, out: Tensor) -> None:
        """out = fc2(act(fc1(norm(x)))) + plus, all (…, width)."""
        kernel = self._joined.kernel(x, self.fc1) if self.act is _tanh_gelu else None
        if kernel is not None and norm.can_join(x):
            inner = kernel(x, After.GELU, norm=norm.weight, norm_bias=norm.bias, eps=norm.eps)
        else:
            inner = self.act(self.fc1(norm(x)))
        self.fc2(inner, plus, out)
