"""Safetensors files to module: everything is checked from the headers first, then streamed tensor by tensor.

The module is built on the meta device, so nothing is initialised twice. A tensor whose type already fits stays memory
mapped on the CPU (a private mapping: the file is never written to); any other is read, converted and placed alone, so
the peak is the module plus one tensor. What is replaced at once stays in its file and is read by rows (rows.py). File
format: github.com/huggingface/safetensors (8 bytes little-endian header length, a JSON header, the data).
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from behold.checkpoint.rename import RenameRules
from behold.checkpoint.stored import StoredRows, StoredTensor, fetched, map_as_all
from behold.errors import CheckpointNotFoundError, WeightsError

_UNSAFE = ("*.bin", "*.pt", "*.pth", "*.ckpt")
_MAX_HEADER_BYTES = 100_000_000  # as in the safetensors library
_NAMES_SHOWN = 8

Progress = Callable[[int, int], None]  # bytes done, bytes in all


class StoredWeight(Protocol):
    """What one parameter is filled from: a stored tensor, or several that make it together (see prequantized/)."""

    @property
    def name(self) -> str: ...
    @property
    def path(self) -> Path: ...
    @property
    def dtype(self) -> str: ...
    @property
    def shape(self) -> tuple[int, ...]: ...
    @property
    def n_bytes(self) -> int: ...
    @property
    def torch_dtype(self) -> torch.dtype | None: ...

    def read(self) -> Tensor:
        """The values, in memory of their own."""
        ...


class Finisher(Protocol):
    """Told of each submodule as soon as its parameters are in place, so that it can be replaced (quantised)."""

    def takes(self, name: str) -> bool:
        """Whether it will replace the submodule: its weights then come on the CPU, in the type they are stored in."""
        ...

    def __call__(self, name: str, module: nn.Module, weight: StoredRows | None) -> object:
        """weight: the module's parameter of that name where it is still in its file; only of what it `takes`."""
        ...


def stored_tensors(folder: Path) -> dict[str, StoredTensor]:
    """Every tensor of a folder's safetensors files, by its name in the file; no data is read.

    Raises:
        CheckpointNotFoundError: there are no weights at all, or a file named by the index is missing.
        WeightsError: only pickled weights are there, or a file is damaged.
    """
    tensors: dict[str, StoredTensor] = {}
    for path in _weight_files(folder):
        for tensor in file_tensors(path):
            tensors[tensor.name] = tensor
    return tensors


def stored_dtype(folder: Path) -> torch.dtype | None:
    """The floating type that most of the stored bytes have; None where there is none."""
    totals: dict[torch.dtype, int] = {}
    for tensor in stored_tensors(folder).values():
        dtype = tensor.torch_dtype
        if dtype is not None and _is_floating(tensor):
            totals[dtype] = totals.get(dtype, 0) + tensor.n_bytes
    return max(totals, key=lambda dtype: totals[dtype]) if totals else None


def load_weights(
    module: nn.Module,
    folder: Path,
    rules: RenameRules,
    *,
    device: torch.device,
    dtype: torch.dtype,
    progress: Progress | None = None,
    finished: Finisher | None = None,
    stored: Mapping[str, StoredWeight] | None = None,
) -> None:
    """Fills `module` (built on the meta device) from a folder; nothing is read before names and shapes agree.

    Args:
        stored: the weights by their names in the files, where they are not simply the tensors of the folder.
        progress: called after each tensor with the bytes done and the bytes in all.
        finished: called with the name and the submodule as soon as all parameters of one submodule are in place; the
            next submodule's are read meanwhile.

    Raises:
        WeightsError: one report of missing, unexpected, doubled and wrongly shaped weights.
        CheckpointNotFoundError: as `stored_tensors`.
    """
    plan = check(module, stored_tensors(folder) if stored is None else stored, rules)
    total, done = sum(tensor.n_bytes for tensor in plan.values()), 0
    # what is replaced soon is not mapped: the pages would stay in memory beside the replacement
    mappings: dict[Path, dict[torch.dtype, Tensor]] | None = None if finished else {}
    # by name: a list of the modules themselves would keep alive those that `finished` replaces
    owners = {name: [key for key, _ in owner.named_parameters(recurse=False)] for name, owner in module.named_modules()}

    def read(prefix: str) -> list[Tensor | StoredRows]:
        replaced = finished is not None and finished.takes(prefix)
        tensors = [plan[f"{prefix}.{key}" if prefix else key] for key in owners[prefix]]
        if replaced:
            kinds = zip(owners[prefix], tensors, strict=True)
            return [fetched(t) if key == "weight" and isinstance(t, StoredTensor) else t.read() for key, t in kinds]
        return [_materialise(tensor, mappings, device, dtype) for tensor in tensors]

    for prefix, values in _read_ahead(read, [prefix for prefix, keys in owners.items() if keys], finished is not None):
        owner, weight = module.get_submodule(prefix), None
        for key in owners[prefix]:
            value = values.pop(0)
            if isinstance(value, StoredRows):
                weight = value
            else:
                setattr(owner, key, nn.Parameter(value, requires_grad=False))
            del value
            done += plan[f"{prefix}.{key}" if prefix else key].n_bytes
            if progress:
                progress(done, total)
        if finished:
            finished(prefix, owner, weight)
        del owner  # it would stay in memory beside the next one


def _read_ahead(
    read: Callable[[str], list[Tensor | StoredRows]], names: list[str], ahead: bool
) -> Iterator[tuple[str, list[Tensor | StoredRows]]]:
    """(name, what was read for it), each read while the one before is worked on, or only when its turn comes."""
    if not ahead:
        yield from ((name, read(name)) for name in names)
        return
    with ThreadPoolExecutor(max_workers=1, thread_name_prefix="behold-read") as reader:
        coming = [reader.submit(read, name) for name in names[:1]]
        for number, name in enumerate(names):
            values = coming.pop().result()
            coming += [reader.submit(read, after) for after in names[number + 1 : number + 2]]
            yield name, values
            del values


def check(module: nn.Module, stored: Mapping[str, StoredWeight], rules: RenameRules) -> dict[str, StoredWeight]:
    """Which stored weight fills which parameter of `module`, by our names.

    Raises:
        WeightsError: they do not match one to one; the message lists every kind of mismatch.
    """
    wanted = {name: tuple(parameter.shape) for name, parameter in module.named_parameters()}
    found = rules.apply_all(stored)
    problems = [
        _listed("missing", [name for name in wanted if name not in found]),
        _listed("unexpected", [names[0] for ours, names in found.items() if ours not in wanted]),
        _listed("twice", [" and ".join(names) for ours, names in found.items() if ours in wanted and len(names) > 1]),
        _listed(
            "wrong shape",
            [
                f"{names[0]}: the file has {list(stored[names[0]].shape)}, the config asks for {list(wanted[ours])}"
                for ours, names in found.items()
                if ours in wanted and stored[names[0]].shape != wanted[ours]
            ],
        ),
        _listed(
            "not a floating type",
            [
                f"{names[0]}: {stored[names[0]].dtype}"
                for ours, names in found.items()
                if ours in wanted and not _is_floating(stored[names[0]])
            ],
        ),
    ]
    report = "\n".join(problem for problem in problems if problem)
    if report:
        folder = next((tensor.path.parent for tensor in stored.values()), Path())
        raise WeightsError(
            f"The weights in {folder} do not fit their config.json.\n{report}\n"
            "The folder may be incomplete, changed, or of another model: download it again, or correct config.json."
        )
    return {ours: stored[names[0]] for ours, names in found.items()}


def equal_data(first: StoredWeight, second: StoredWeight) -> bool:
    """Whether two stored tensors hold the same values; compared in pieces, so that little memory is needed.

    Weights that are made of several tensors are never called equal.
    """
    if not isinstance(first, StoredTensor) or not isinstance(second, StoredTensor):
        return False
    if (first.dtype, first.shape) != (second.dtype, second.shape):
        return False
    piece = 1 << 24
    with first.path.open("rb") as one, second.path.open("rb") as two:
        for offset in range(0, first.n_bytes, piece):
            size = min(piece, first.n_bytes - offset)
            one.seek(first.start + offset)
            two.seek(second.start + offset)
            if one.read(size) != two.read(size):
                return False
    return True


# --- files -------------------------------------------------------------------------------------------------------


def _weight_files(folder: Path) -> list[Path]:
    single, index = folder / "model.safetensors", folder / "model.safetensors.index.json"
    if single.is_file():
        return [single]
    if index.is_file():
        return _indexed_files(index)
    unsafe = sorted(path.name for pattern in _UNSAFE for path in folder.glob(pattern))
    if unsafe:
        raise WeightsError(
            f"{folder} has its weights only as {_shortened(unsafe)}: pickled files can run code when they are read, so "
            "they are refused. Look for a revision with *.safetensors files, or convert the folder once, where you "
            "trust it, with transformers: AutoModelForImageTextToText.from_pretrained(…).save_pretrained(…)."
        )
    raise CheckpointNotFoundError(
        f"{folder} has no weights: neither model.safetensors nor model.safetensors.index.json. Download it again; if "
        "its repository has only pickled files (*.bin), look for a revision with *.safetensors: pickles are refused."
    )


def _indexed_files(index: Path) -> list[Path]:
    try:
        weight_map = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
        names = sorted(set(weight_map.values()))
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise WeightsError(f"{index} is damaged ({error}). Download it again.") from error
    outside = [name for name in names if Path(name).name != name]
    if outside:
        raise WeightsError(f"{index} names files outside its folder ({_shortened(outside)}), which is refused.")
    missing = [name for name in names if not (index.parent / name).is_file()]
    if missing:
        raise CheckpointNotFoundError(
            f"{index.parent} lacks {len(missing)} of {len(names)} weight files: {_shortened(missing)}. Download them."
        )
    return [index.parent / name for name in names]


def file_tensors(path: Path) -> Iterator[StoredTensor]:
    """Every tensor of one safetensors file, in the order of its header; no data is read.

    Raises:
        WeightsError: the file is damaged or cut off.
    """
    yield from file_contents(path)[1]


def file_contents(path: Path) -> tuple[dict[str, Any], list[StoredTensor]]:
    """(what one safetensors file says of itself, all of its tensors in the order of its header); no data is read.

    Raises:
        WeightsError: the file is damaged or cut off.
    """
    damaged = f"{path} is not a valid safetensors file"
    file_bytes = path.stat().st_size
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if file_bytes < 8 or length > min(_MAX_HEADER_BYTES, file_bytes - 8):
            raise WeightsError(f"{damaged}: it is too short for its header. Download it again.")
        try:
            header: dict[str, Any] = json.loads(file.read(length).rstrip())  # our own end with megabytes of spaces
            about = header.pop("__metadata__", {})
            tensors = [
                StoredTensor(
                    name=name,
                    path=path,
                    dtype=entry["dtype"],
                    shape=tuple(entry["shape"]),
                    start=8 + length + entry["data_offsets"][0],
                    stop=8 + length + entry["data_offsets"][1],
                )
                for name, entry in header.items()
            ]
        except (ValueError, KeyError, TypeError, AttributeError, IndexError) as error:
            raise WeightsError(f"{damaged}: its header cannot be read ({error}). Download it again.") from error
    for tensor in tensors:
        dtype = tensor.torch_dtype
        n_values = 1
        for side in tensor.shape:
            n_values *= side
        if not 8 + length <= tensor.start <= tensor.stop <= file_bytes:
            raise WeightsError(f"{damaged}: {tensor.name!r} lies beyond its end. Download it again.")
        if dtype is not None and n_values * dtype.itemsize != tensor.n_bytes:
            raise WeightsError(f"{damaged}: {tensor.name!r} has {tensor.n_bytes} bytes for shape {list(tensor.shape)}.")
    return about, tensors


def _materialise(
    tensor: StoredWeight,
    mappings: dict[Path, dict[torch.dtype, Tensor]] | None,
    device: torch.device,
    dtype: torch.dtype,
) -> Tensor:
    fits = device.type == "cpu" and tensor.torch_dtype == dtype and tensor.n_bytes
    if mappings is not None and fits and isinstance(tensor, StoredTensor):
        if tensor.path not in mappings:
            mappings[tensor.path] = map_as_all(tensor.path)
        mapped = tensor.map(mappings[tensor.path])
        if mapped is not None:
            return mapped
    return tensor.read().to(device=device, dtype=dtype)


def _is_floating(tensor: StoredWeight) -> bool:
    """Whether the values mean themselves: float8 is nothing without its scales."""
    dtype = tensor.torch_dtype
    return dtype is not None and dtype.is_floating_point and dtype.itemsize > 1


def _listed(what: str, items: list[str]) -> str:
    return f"  {what} ({len(items)}): {_shortened(items)}" if items else ""


def _shortened(items: list[str]) -> str:
    more = len(items) - _NAMES_SHOWN
    return ", ".join(items[:_NAMES_SHOWN]) + (f" and {more} more" if more > 0 else "")
