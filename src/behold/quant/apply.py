"""Quantisation as a module swap: linear layers are replaced one by one, models know nothing of it."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import nn

from behold.quant.linear import Int8Linear
from behold.quant.schemes import find_scheme

# The head stays: it decides between close candidates, and a tied one is the embedding table.
KEPT = ("lm_head",)


def quantize_(model: nn.Module, scheme: str, *, skip: tuple[str, ...] = ()) -> nn.Module:
    """Replaces every linear layer of `model`, in place, except the head and names that end with one of `skip`.

    Raises:
        OptionError: no such scheme.
    """
    find_scheme(scheme)
    for name, module in list(model.named_modules()):
        _swap(model, name, module, skip)
    return model


def quantizer(
    scheme: str | None, device: torch.device
) -> Callable[[nn.Module], Callable[[str, nn.Module], None]] | None:
    """For `load_weights(finished=…)`: given the model, a hook that replaces each linear layer once it is filled.

    Raises:
        OptionError: no such scheme.
    """
    if scheme is None:
        return None
    find_scheme(scheme)
    return lambda model: lambda name, module: _swap(model, name, module, ())


def _swap(model: nn.Module, name: str, module: nn.Module, skip: tuple[str, ...]) -> None:
    if not isinstance(module, nn.Linear) or name.endswith((*KEPT, *skip)):
        return
    parent, _, attribute = name.rpartition(".")
    setattr(model.get_submodule(parent), attribute, Int8Linear.of(module))
