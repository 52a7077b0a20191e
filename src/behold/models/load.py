"""From a checkpoint's files to a model that answers: a straight line, with no model's name in it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from huggingface_hub.utils.tqdm import tqdm

from behold.checkpoint.hub import DEMO, demo_folder
from behold.checkpoint.prequantized.formats import read_prequantized
from behold.checkpoint.prequantized.layout import PackedWeight, without_zero_biases
from behold.checkpoint.stored import StoredTensor
from behold.checkpoint.weights import StoredWeight, equal_data, load_weights, stored_dtype, stored_tensors
from behold.collector import PAUSED
from behold.device import give_back_memory
from behold.errors import OptionError
from behold.kernels import native
from behold.models.registry import find_family
from behold.quant.apply import Quantizer
from behold.quant.keep import Keeper, Shelf
from behold.quant.schemes import FULL, PACKED, find_scheme
from behold.threads import use_threads

if TYPE_CHECKING:
    from behold.checkpoint.files import CheckpointFiles
    from behold.checkpoint.rename import RenameRules
    from behold.checkpoint.weights import Progress
    from behold.models.base import Family, VisionLanguageModel
    from behold.models.config import ModelConfig

ATTENTIONS = ("auto", "eager", "sdpa", "flash_attention_2")


def load_model(
    files: CheckpointFiles,
    *,
    device: torch.device,
    dtype: torch.dtype,
    quantize: str | None = None,
    progress: bool = True,
    attention: str = "auto",
    cache_limit: str | int | None = None,
) -> VisionLanguageModel:
    """The model of a folder, in eval mode and without gradients.

    A checkpoint that arrives quantized by another program is decoded one weight at a time.
    quantize: a name from quant.schemes; weights are quantised one by one while they are read, and kept on disk for the
    next time. "full": every weight in `dtype`. None: the same, but on a CPU those that arrive quantized are kept as
    int8, which moves them by less than a percent. cache_limit: see quant.cache.
    attention: every name stands for torch's fused attention, which is what there is so far.

    Raises:
        UnsupportedModelError: the model_type or a config value is not supported.
        WeightsError: missing, unexpected, wrongly shaped or unsafe weights.
        OptionError: no such quantization, none for this device, no such attention, or no such number of threads.
    """
    if attention not in ATTENTIONS:
        raise OptionError(f"attention={attention!r} is not known. Use one of {', '.join(ATTENTIONS)}.")
    if device.type == "cpu":
        native.say_what_is_missing()
        use_threads()
    with PAUSED:
        family = find_family(files.config)
        config = family.read_config(files.config)
        tensors = stored_tensors(files.folder)
        model, shelf = None, None
        scheme = _scheme(quantize, files, device)
        if scheme is not None:
            paths, name = {tensor.path for tensor in tensors.values()}, _name(files.folder)
            shelf = Shelf(paths, files.config, name=name, scheme=scheme, dtype=dtype, limit=cache_limit)
            model = _kept_model(shelf, family, config)
    if model is None:
        bar = _Bar("Loading weights" if shelf is None else "Quantizing weights") if progress else None
        try:
            model = _read_model(files, tensors, family, config, shelf, device=device, dtype=dtype, progress=bar)
        finally:
            if bar:
                bar.close()
        if shelf is not None:
            give_back_memory()
    # its layers are there already where it is kept, and each would be asked
    return (model if device.type == "cpu" else model.to(device)).eval()


def _scheme(quantize: str | None, files: CheckpointFiles, device: torch.device) -> str | None:
    """What weights are rounded to while they are loaded; None: not at all.

    Raises:
        OptionError: no such scheme, or none for this device.
    """
    if quantize is None and device.type == "cpu" and read_prequantized(files.config) is not None:
        return PACKED
    if quantize is None or quantize == FULL:
        return None
    if find_scheme(quantize).for_gpus and device.type not in ("cpu", "cuda"):
        raise OptionError(f"quantize={quantize!r} needs a CUDA device; use int8 or int4 on {device.type!r}.")
    return quantize


def _kept_model(shelf: Shelf, family: Family, config: ModelConfig) -> VisionLanguageModel | None:
    """The model with weights that were quantized before; None where none are kept."""
    kept = shelf.read()
    if kept is None:
        return None
    with torch.device("meta"):
        model = family.build(_untied(config) if kept.untied else config)
    layers = kept.fill(model)
    if layers is None:
        return None
    model.quantized_layers = layers
    return model


def _read_model(
    files: CheckpointFiles,
    tensors: Mapping[str, StoredTensor],
    family: Family,
    config: ModelConfig,
    shelf: Shelf | None,
    *,
    device: torch.device,
    dtype: torch.dtype,
    progress: Progress | None,
) -> VisionLanguageModel:
    """The model with the checkpoint's weights, quantized as the shelf's are, and put there."""
    stored = _gathered(files, tensors)
    config, rules = _settle_head(config, family.rename, stored)
    with torch.device("meta"):
        model = family.build(config)
    stored = without_zero_biases(stored, {name for name, _ in model.named_parameters()}, rules)
    if shelf is None:
        load_weights(model, files.folder, rules, device=device, dtype=dtype, progress=progress, stored=stored)
        return model
    arrived = {
        ours.removesuffix(".weight"): stored[names[0]].n_bytes
        for ours, names in rules.apply_all(stored).items()
        if isinstance(stored[names[0]], PackedWeight)
    }
    quantizer = Quantizer(shelf.scheme, model, decoder=model.decoder, device=device, dtype=dtype, arrived=arrived)
    filled = sum(1 for module in model.modules() if any(True for _ in module.parameters(recurse=False)))
    with Keeper(quantizer, shelf, n_modules=filled) as keeper:
        load_weights(
            model, files.folder, rules, device=device, dtype=dtype, progress=progress, finished=keeper, stored=stored
        )
        keeper.finish(untied=not config.text.tied)
    model.quantized_layers = tuple(quantizer.layers)
    return model


def full_weights(model: VisionLanguageModel, files: CheckpointFiles) -> dict[str, StoredWeight]:
    """What a model's weights are in its checkpoint, by our names; nothing is read yet.

    Raises:
        WeightsError: the files are damaged.
        CheckpointNotFoundError: they are gone.
    """
    stored = _gathered(files, stored_tensors(files.folder))
    rules = find_family(files.config).rename
    return {ours: stored[names[0]] for ours, names in rules.apply_all(stored).items()}


def _name(folder: Path) -> str:
    """What a person calls a checkpoint: its id on the hub, "demo", or its folder."""
    if folder.absolute() == demo_folder().absolute():
        return DEMO
    owner, _, name = folder.absolute().parent.parent.name.removeprefix("models--").partition("--")
    return f"{owner}/{name}" if name and folder.parent.name == "snapshots" else str(folder.absolute())


def checkpoint_dtype(files: CheckpointFiles) -> torch.dtype | None:
    """The type a checkpoint says it is in, or, where it is silent, the one most of its weights have."""
    named = files.config.get("dtype")
    dtype = getattr(torch, named.removeprefix("torch."), None) if isinstance(named, str) else None
    return dtype if isinstance(dtype, torch.dtype) else stored_dtype(files.folder)


def _gathered(files: CheckpointFiles, tensors: Mapping[str, StoredTensor]) -> Mapping[str, StoredWeight]:
    """What the folder's files hold, by the names there; a weight stored in parts is one entry."""
    arrived = read_prequantized(files.config)
    return arrived.gather(tensors) if arrived else tensors


def _settle_head(
    config: ModelConfig, rules: RenameRules, stored: Mapping[str, StoredWeight]
) -> tuple[ModelConfig, RenameRules]:
    """A tied head that is stored nevertheless is dropped where it equals the embeddings, and kept where it does not."""
    if not config.text.tied:
        return config, rules
    names = {ours: found[0] for ours, found in rules.apply_all(stored).items()}
    head = next((name for name in names if name.endswith("lm_head.weight")), None)
    if head is None:
        return config, rules
    embeddings = names.get(head.replace("lm_head.weight", "embed_tokens.weight"))
    if embeddings and not equal_data(stored[names[head]], stored[embeddings]):
        return _untied(config), rules
    return config, rules.dropping("lm_head.weight")


def _untied(config: ModelConfig) -> ModelConfig:
    return replace(config, text=replace(config.text, tied=False))


class _Bar:
    """A progress bar on a terminal, for loads that take longer than a second."""

    def __init__(self, what: str) -> None:
        self._what = what
        self._bar: tqdm | None = None

    def __call__(self, done: int, total: int) -> None:
        if self._bar is None:
            self._bar = tqdm(  # type: ignore[no-untyped-call]
                total=total, unit="B", unit_scale=True, desc=self._what, delay=1.0, disable=None, leave=False
            )
        self._bar.update(done - self._bar.n)

    def close(self) -> None:
        if self._bar is not None:
            self._bar.close()
