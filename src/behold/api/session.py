"""From an id or folder to working parts: files, processor, model, engine. Every door opens its model here."""

from __future__ import annotations

import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING

from behold.checkpoint.files import CheckpointFiles
from behold.checkpoint.hub import resolve
from behold.device import resolve_device, resolve_dtype
from behold.engine.engine import Engine
from behold.engine.options import EngineOptions
from behold.models.load import checkpoint_dtype, load_model
from behold.models.registry import find_family
from behold.processing.processor import Processor

if TYPE_CHECKING:
    import torch

    from behold.models.base import VisionLanguageModel
    from behold.processing.tokenizer import Tokenizer


def open_checkpoint(
    id_or_dir: str | Path,
    *,
    revision: str | None = None,
    cache_dir: str | Path | None = None,
    token: str | bool | None = None,
    local_files_only: bool = False,
    with_weights: bool = True,
) -> CheckpointFiles:
    """The settings of a checkpoint, fetched first where it is a hub id that is not cached; "demo" is the bundled one.

    Raises:
        CheckpointNotFoundError: no such folder or id, or nothing cached and no network.
    """
    folder = resolve(
        id_or_dir,
        revision=revision,
        cache_dir=cache_dir,
        token=token,
        local_files_only=local_files_only,
        with_weights=with_weights,
    )
    return CheckpointFiles.read(folder)


def open_processor(files: CheckpointFiles) -> Processor:
    """Tokenizer, template and image rules of a checkpoint; its weights are not needed.

    Raises:
        UnsupportedModelError: no family knows the checkpoint's model_type.
    """
    family = find_family(files.config)
    return Processor.load(files, family.layout(family.read_config(files.config), files))


def open_model(
    files: CheckpointFiles,
    *,
    device: str | torch.device | None = "auto",
    dtype: str | torch.dtype | None = "auto",
    quantize: str | None = None,
    attention: str = "auto",
    cache_limit: str | int | None = None,
    progress: bool | None = None,
) -> VisionLanguageModel:
    """The weights of a checkpoint as a module in eval mode. `progress` None shows a bar only on a terminal.

    Raises:
        WeightsError: missing, unexpected or wrongly shaped weights.
        DeviceError: no such device, or it cannot compute in `dtype`.
        OptionError: no such quantization or attention.
    """
    place = resolve_device(device)
    return load_model(
        files,
        device=place,
        dtype=resolve_dtype(dtype, place, checkpoint_dtype(files)),
        quantize=quantize,
        progress=sys.stderr.isatty() if progress is None else progress,
        attention=attention,
        cache_limit=cache_limit,
    )


def open_both(
    files: CheckpointFiles,
    *,
    device: str | torch.device | None = "auto",
    dtype: str | torch.dtype | None = "auto",
    quantize: str | None = None,
    attention: str = "auto",
    cache_limit: str | int | None = None,
) -> tuple[Processor, VisionLanguageModel]:
    """`open_processor` and `open_model` at the same time: a large tokenizer takes as long as weights that are kept.

    Raises:
        BeholdError: what either of them raises.
    """
    with ThreadPoolExecutor(max_workers=1) as aside:
        processor = aside.submit(open_processor, files)
        model = open_model(
            files, device=device, dtype=dtype, quantize=quantize, attention=attention, cache_limit=cache_limit
        )
        return processor.result(), model


def open_engine(
    model: VisionLanguageModel,
    *,
    tokenizer: Tokenizer | None,
    eos_token_ids: frozenset[int],
    options: EngineOptions | None = None,
) -> Engine:
    """The engine that schedules every request to `model`."""
    return Engine(model, tokenizer=tokenizer, eos_token_ids=eos_token_ids, options=options or EngineOptions())
