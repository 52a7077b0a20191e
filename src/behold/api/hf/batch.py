"""`Batch`: what processors and tokenizers return, a mapping whose values are also attributes."""

from __future__ import annotations

from collections import UserDict
from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias

import numpy as np
import torch

from behold.errors import OptionError

TensorKind: TypeAlias = str | None


class Batch(UserDict[str, Any]):
    """Model inputs by name: `batch["input_ids"]`, `batch.input_ids`, `model.generate(**batch)`."""

    def __getattr__(self, name: str) -> Any:  # noqa: ANN401 - whatever was stored
        # `data` itself is missing while copy and pickle rebuild the object; asking for it again would never end.
        data = self.__dict__.get("data", {})
        if name in data:
            return data[name]
        raise AttributeError(f"{name!r} is not among the inputs {sorted(data)}.")

    def to(
        self,
        *args: str | int | torch.device | torch.dtype | None,
        device: str | int | torch.device | None = None,
        dtype: torch.dtype | None = None,
        non_blocking: bool = False,
    ) -> Batch:
        """Move every tensor to a device and cast the floating ones to a dtype, in place; ids and masks keep theirs.

        Args are those of `torch.Tensor.to`: `to("cuda")`, `to(torch.float16)`, `to("cuda", torch.bfloat16)`,
        `to(device=, dtype=, non_blocking=)`. Without arguments, or with None, nothing changes.
        """
        place, dtype = _placement(args, device, dtype)
        for name, value in self.data.items():
            if isinstance(value, torch.Tensor):
                cast = dtype if value.is_floating_point() else None
                self.data[name] = value.to(device=place, dtype=cast, non_blocking=non_blocking)
        return self


def _placement(
    args: Sequence[object], device: str | int | torch.device | None, dtype: torch.dtype | None
) -> tuple[torch.device | None, torch.dtype | None]:
    for value in args:
        if isinstance(value, torch.dtype):
            dtype = value
        elif isinstance(value, str | torch.device | int) and not isinstance(value, bool):
            device = value
        elif value is not None:
            raise OptionError(f"to({value!r}): give a device, a dtype, or both.")
    return (None if device is None else torch.device(device)), dtype


def check_kind(return_tensors: TensorKind) -> None:
    """Refuse a `return_tensors` other than None, "pt" and "np"."""
    if return_tensors not in (None, "pt", "np"):
        raise OptionError(f"return_tensors={return_tensors!r} is not supported; use 'pt', 'np' or None.")


def integers(name: str, rows: Sequence[Sequence[int]], return_tensors: TensorKind) -> object:
    """Rows of integers as they are, or (B, T) as a torch or numpy array.

    Raises:
        OptionError: an array is asked for and the rows differ in length.
    """
    if return_tensors is None:
        return [list(row) for row in rows]
    if len({len(row) for row in rows}) > 1:
        lengths = [len(row) for row in rows]
        raise OptionError(f"{name}: rows of {lengths} tokens make no tensor; use padding=True, or return_tensors=None.")
    array = np.asarray([list(row) for row in rows], dtype=np.int64)
    return torch.from_numpy(array) if return_tensors == "pt" else array


def pictures_as(return_tensors: TensorKind, packed: Mapping[str, torch.Tensor]) -> dict[str, object]:
    """A layout's tensors as they are or as numpy arrays.

    Without return_tensors, pictures that need no mask are a list with one array each, as in transformers; those that
    were padded to one size stay one array.
    """
    if return_tensors == "pt":
        return dict(packed)
    arrays = {name: tensor.numpy() for name, tensor in packed.items()}
    if return_tensors is None and len(arrays) == 1:
        return {name: list(array) for name, array in arrays.items()}
    return dict(arrays)
