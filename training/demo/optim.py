"""The optimiser: Muon for the matrices inside the layers, AdamW for the rest, with a running mean of the weights."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable

import torch
from torch import Tensor, nn


class Muon(torch.optim.Optimizer):
    """Momentum whose update is made orthogonal, so that all directions of a matrix learn at the same pace.

    Matrices of one shape are handled as one batch, in float32: CPUs are slow at the usual bfloat16.
    """

    def __init__(self, parameters: Iterable[Tensor], lr: float, momentum: float = 0.95, decay: float = 0.02) -> None:
        super().__init__(parameters, {"lr": lr, "momentum": momentum, "decay": decay})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:
        for group in self.param_groups:
            shapes: dict[torch.Size, list[Tensor]] = defaultdict(list)
            for weight in group["params"]:
                if weight.grad is not None:
                    shapes[weight.shape].append(weight)
            for weights in shapes.values():
                self._step_alike(weights, group)

    def _step_alike(self, weights: list[Tensor], group: dict[str, float]) -> None:
        updates = []
        for weight in weights:
            state = self.state[weight]
            if not state:
                state["mean"] = torch.zeros_like(weight)
            state["mean"].lerp_(weight.grad, 1 - group["momentum"])
            updates.append(weight.grad.lerp(state["mean"], group["momentum"]))
        # 0.2 * sqrt(longer side) would give an update the size of AdamW's; being well conditioned it bears twice that.
        scale = 0.4 * max(weights[0].shape) ** 0.5
        for weight, update in zip(weights, orthogonal(torch.stack(updates)), strict=True):
            weight.mul_(1 - group["lr"] * group["decay"]).add_(update, alpha=-group["lr"] * scale)


def orthogonal(matrices: Tensor) -> Tensor:
    """The nearest orthogonal matrices of [N, rows, columns], roughly, by five Newton-Schulz rounds."""
    tall = matrices.shape[-2] > matrices.shape[-1]
    x = matrices.mT if tall else matrices
    x = x / (x.norm(dim=(-2, -1), keepdim=True) + 1e-7)
    for _ in range(5):
        square = x @ x.mT
        x = 3.4445 * x + (-4.775 * square + 2.0315 * square @ square) @ x
    return x.mT if tall else x


def make_optimizers(modules: list[nn.Module], lr: float) -> list[torch.optim.Optimizer]:
    """Muon and AdamW over all parameters of `modules`."""
    matrices, rest = [], []
    for module in modules:
        for name, weight in module.named_parameters():
            inside = weight.dim() == 2 and ("layers." in name or "projector" in name)
            (matrices if inside else rest).append(weight)
    return [Muon(matrices, lr), torch.optim.AdamW(rest, lr, betas=(0.9, 0.97), weight_decay=0.0, fused=True)]


def learning_rate(step: int, steps: int, peak: float) -> float:
    """Warm-up, a plateau, and a linear descent over the last three fifths of all steps."""
    warm, descent = max(1, min(150, steps // 10)), max(1, steps * 3 // 5)
    return peak * min(1.0, (step + 1) / warm, max(0.02, (steps - step) / descent))


class RunningMean:
    """The exponential mean of a module's parameters, which answers better than the last weights do."""

    def __init__(self, module: nn.Module, decay: float) -> None:
        self.decay = decay
        self.weights = {name: weight.detach().clone() for name, weight in module.named_parameters()}

    @torch.no_grad()
    def update(self, module: nn.Module, step: int) -> None:
        # Early on the mean must forget quickly, or it would remember the random start.
        decay = min(self.decay, (1 + step) / (10 + step))
        for name, weight in module.named_parameters():
            self.weights[name].lerp_(weight, 1 - decay)
