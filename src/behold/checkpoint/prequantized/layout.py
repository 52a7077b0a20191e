"""Weights that several stored tensors make together, as other quantizers leave them in a checkpoint.

A format names the endings of the tensors that belong to one weight `X.weight`, and a plan from them to its shape and a
function that decodes it. `PreQuantized.gather` then turns the table of stored tensors into one in which every such
group is a single `X.weight`, so that renaming, the strict report and streaming treat it like any other. Layers that a
checkpoint leaves unquantized (ignore lists, modules that are not targeted) have no such group and stay as stored.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from behold.checkpoint.rename import RenameRules
from behold.checkpoint.stored import StoredTensor
from behold.checkpoint.weights import StoredWeight
from behold.errors import WeightsError

FLOATS = ("F32", "F16", "BF16")
REMEDY = 'Load the unquantized checkpoint instead and quantize while loading, for instance with quantize="int8".'
_SHOWN = 4

Parts = Mapping[str, StoredTensor]
Decode = Callable[[Mapping[str, Tensor]], Tensor]


class Misfit(ValueError):
    """What is wrong with one weight; whoever knows its name makes a WeightsError of it."""


@dataclass(frozen=True, slots=True)
class PackedWeight:
    """One weight of the model, made of `parts` by `decode`. shape: decoded. dtype: its form, for messages."""

    name: str
    path: Path
    dtype: str
    shape: tuple[int, ...]
    parts: Parts
    decode: Decode

    @property
    def n_bytes(self) -> int:
        """On disk, all parts together."""
        return sum(part.n_bytes for part in self.parts.values())

    @property
    def torch_dtype(self) -> torch.dtype:
        return torch.float32

    def read(self) -> Tensor:
        """The decoded float32 tensor.

        Raises:
            WeightsError: the values cannot be decoded, such as a group number that does not exist.
        """
        try:
            return self.decode({role: part.read() for role, part in self.parts.items()}).view(self.shape)
        except Misfit as error:
            raise WeightsError(f"{self.name} in {self.path} ({self.dtype}): {error}. {REMEDY}") from error


@dataclass(frozen=True, slots=True)
class PreQuantized:
    """How the weights of a checkpoint were stored smaller.

    name: for messages. bits: of one weight, the widest where they differ. endings: role → ending of the tensors that
    make `X.weight`, starting with a dot. marks: the roles of which one must be there for the weight to count as packed.
    unused: endings of tensors that are stored beside and not needed, such as scales of activations. plan: the parts of
    one weight → (shape, decode), or Misfit.
    """

    name: str
    bits: int
    endings: Mapping[str, str]
    marks: tuple[str, ...]
    plan: Callable[[Parts], tuple[tuple[int, ...], Decode]]
    unused: tuple[str, ...] = ()

    def gather(self, stored: Mapping[str, StoredTensor]) -> dict[str, StoredWeight]:
        """The stored weights with each packed one as a single entry `X.weight`; only headers and descriptions are read.

        Raises:
            WeightsError: one report of parts that are missing, doubled, or of the wrong type or shape.
        """
        weights: dict[str, StoredWeight] = {n: tensor for n, tensor in stored.items() if not n.endswith(self.unused)}
        problems = []
        for layer, parts in self._layers(stored).items():
            for part in parts.values():
                weights.pop(part.name)
            name = f"{layer}.weight"
            if name in weights:
                problems.append(f"{name}: is stored both plain and packed")
                continue
            try:
                shape, decode = self.plan(parts)
            except Misfit as misfit:
                problems.append(f"{name}: {misfit}")
                continue
            path = next(iter(parts.values())).path
            weights[name] = PackedWeight(name, path, self.name, shape, parts, decode)
        if problems:
            folder = next(iter(stored.values())).path.parent
            more = [f"and {len(problems) - _SHOWN} more"] if len(problems) > _SHOWN else []
            report = "\n".join(f"  {problem}" for problem in [*problems[:_SHOWN], *more])
            raise WeightsError(
                f"The weights in {folder} are not stored as {self.name}, which its config.json announces.\n{report}\n"
                f"The folder may be incomplete or changed: download it again. {REMEDY}"
            )
        return weights

    def _layers(self, stored: Mapping[str, StoredTensor]) -> dict[str, dict[str, StoredTensor]]:
        layers: dict[str, dict[str, StoredTensor]] = {}
        for name, tensor in stored.items():
            for role, ending in self.endings.items():
                if name.endswith(ending):
                    layers.setdefault(name.removesuffix(ending), {})[role] = tensor
        return {layer: parts for layer, parts in layers.items() if any(mark in parts for mark in self.marks)}


def without_zero_biases(
    weights: Mapping[str, StoredWeight], wanted: set[str], rules: RenameRules
) -> dict[str, StoredWeight]:
    """Leaves out biases of packed layers that the model does not have and that are all zero.

    Some quantizers give every layer they replace a bias, and store its zeros.
    """
    kept = dict(weights)
    for name, tensor in weights.items():
        bias = f"{name.removesuffix('.weight')}.bias"
        if not isinstance(tensor, PackedWeight) or bias not in weights or rules.apply(bias) in wanted:
            continue
        if not weights[bias].read().any():
            del kept[bias]
    return kept


def part(parts: Parts, role: str, dtypes: tuple[str, ...], *shapes: tuple[int, ...]) -> StoredTensor:
    """The part of a role, if its type is one of `dtypes` and its shape one of `shapes` (any, if none is given).

    Raises:
        Misfit: it is missing or different.
    """
    if role not in parts:
        raise Misfit(f"its {role} is missing")
    tensor = parts[role]
    if tensor.dtype not in dtypes or (shapes and tensor.shape not in shapes):
        sides = f" {list(shapes[0])}" if shapes else ""
        raise Misfit(
            f"its {role} is {tensor.dtype} {list(tensor.shape)}, expected {' or '.join(dtypes)}{sides} beside the "
            "other parts"
        )
    return tensor
