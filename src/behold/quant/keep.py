"""Quantizing at load and keeping the result: the second load maps a file and computes nothing."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import nn

from behold.device import give_back_memory
from behold.nn.seldom import Seldom
from behold.quant import cache
from behold.quant.apply import Quantizer, restore, tensors_of
from behold.quant.linear import Rows
from behold.quant.schemes import Layer
from behold.quant.weights_file import Mapped, Pages, WeightsFile, map_file

_TRIM_BYTES = 1 << 26  # of finished weights: the heap of what was needed for them grows by as much again, and more
_TENSORS_A_MODULE = 8  # at most, pads included


class Shelf:
    """The place of one checkpoint's weights, quantized one way, in the cache; it may be empty."""

    def __init__(
        self,
        files: Iterable[Path],
        config: Mapping[str, Any],
        *,
        name: str,
        scheme: str,
        dtype: torch.dtype,
        limit: str | int | None = None,
    ) -> None:
        """files, config: the weights and settings of the checkpoint. name: what a person calls it.

        Raises:
            OptionError: `limit`, or the variable that stands in for it, is no size.
        """
        self.scheme = scheme
        self._dtype = dtype
        self._about = {"name": name, "scheme": scheme, "dtype": str(dtype).removeprefix("torch.")}
        self._limit = cache.size_limit(limit)
        self._key = (
            cache.checkpoint_key(files, config, scheme=scheme, dtype=self._about["dtype"]) if self._limit else None
        )

    def read(self) -> Kept | None:
        """What lies there; None where there is nothing, or nothing whole."""
        if self._key is None:
            return None
        path = cache.path_of(self._key)
        found = map_file(path) if path.is_file() else None
        if found is None:
            return None
        cache.mark_used(path)
        return Kept(found, dtype=self._dtype)

    def writer(self, n_modules: int) -> WeightsFile | None:
        """To put weights there; None where nothing is kept."""
        if self._key is None:
            return None
        return WeightsFile(self._key, limit=self._limit, n_tensors=_TENSORS_A_MODULE * n_modules)

    def about(self, layers: list[Layer], *, untied: bool) -> dict[str, Any]:
        """What a file says of itself."""
        return {**self._about, "untied": untied, "layers": [asdict(layer) for layer in layers]}


class Kept:
    """A file from the cache. untied: the checkpoint has a head of its own, whatever its config says."""

    def __init__(self, file: Mapped, *, dtype: torch.dtype) -> None:
        self._file, self._dtype = file, dtype
        self.untied = bool(file.about.get("untied"))

    def fill(self, model: nn.Module) -> tuple[Layer, ...] | None:
        """Fills a model on the meta device; None where the file does not fit it."""
        try:
            layers = tuple(Layer.read(record) for record in self._file.about["layers"])
        except (KeyError, TypeError):
            return None
        if not restore(model, layers, self._file.tensors, self._dtype):
            return None
        for module in model.modules():
            if isinstance(module, Seldom):
                module.when_through = Pages(self._file.mapping, module.buffers())
        return layers


class Keeper:
    """A Quantizer whose results go to a shelf, too: what it replaced, and what it left."""

    def __init__(self, quantizer: Quantizer, shelf: Shelf, *, n_modules: int) -> None:
        """n_modules: at most so many have weights."""
        self._quantizer, self._shelf = quantizer, shelf
        self._file = shelf.writer(n_modules)
        self._untrimmed = 0

    def __enter__(self) -> Keeper:
        return self

    def __exit__(self, *error: object) -> None:
        if self._file is not None:
            self._file.abandon()

    def takes(self, name: str) -> bool:
        """As Quantizer has it."""
        return self._quantizer.takes(name)

    def __call__(self, name: str, module: nn.Module, weight: Rows | None = None) -> None:
        small = self._quantizer(name, module, weight)
        self._untrimmed += 0 if small is None else small.n_bytes
        if self._untrimmed >= _TRIM_BYTES:
            self._untrimmed = 0
            give_back_memory()
        if self._file is not None:
            for key, tensor in tensors_of(name, module if small is None else small).items():
                self._file.add(key, tensor)

    def finish(self, *, untied: bool) -> None:
        """Everything came; without this nothing is kept. untied: see Kept."""
        if self._file is not None:
            self._file.finish(self._shelf.about(self._quantizer.layers, untied=untied))
