"""From a checkpoint's files to a model that answers: a straight line, with no model's name in it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING

import torch
from huggingface_hub.utils.tqdm import tqdm

from behold.checkpoint.prequantized.formats import read_prequantized
from behold.checkpoint.prequantized.layout import without_zero_biases
from behold.checkpoint.weights import StoredWeight, equal_data, load_weights, stored_dtype, stored_tensors
from behold.errors import OptionError
from behold.kernels import native
from behold.models.registry import find_family
from behold.quant.apply import quantizer

if TYPE_CHECKING:
    from behold.checkpoint.files import CheckpointFiles
    from behold.checkpoint.rename import RenameRules
    from behold.models.base import VisionLanguageModel
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
) -> VisionLanguageModel:
    """The model of a folder, in eval mode and without gradients.

    A checkpoint that arrives quantized by another program is decoded one weight at a time.
    quantize: None (such a checkpoint then runs in `dtype`, at that size) or a name from quant.schemes; weights are
    quantised one by one while they are read.
    attention: every name stands for torch's fused attention, which is what there is so far.

    Raises:
        UnsupportedModelError: the model_type or a config value is not supported.
        WeightsError: missing, unexpected, wrongly shaped or unsafe weights.
        OptionError: no such quantization or attention.
    """
    if attention not in ATTENTIONS:
        raise OptionError(f"attention={attention!r} is not known. Use one of {', '.join(ATTENTIONS)}.")
    if device.type == "cpu":
        native.say_what_is_missing()
    family = find_family(files.config)
    config = family.read_config(files.config)
    finished = quantizer(quantize, device)
    stored = _stored_weights(files)
    config, rules = _settle_head(config, family.rename, stored)
    with torch.device("meta"):
        model = family.build(config)
    stored = without_zero_biases(stored, {name for name, _ in model.named_parameters()}, rules)
    bar = _Bar() if progress else None
    try:
        load_weights(
            model,
            files.folder,
            rules,
            device=device,
            dtype=dtype,
            progress=bar,
            finished=finished(model) if finished else None,
            stored=stored,
        )
    finally:
        if bar:
            bar.close()
    return model.to(device).eval()


def checkpoint_dtype(files: CheckpointFiles) -> torch.dtype | None:
    """The type a checkpoint says it is in, or, where it is silent, the one most of its weights have."""
    named = files.config.get("dtype")
    dtype = getattr(torch, named.removeprefix("torch."), None) if isinstance(named, str) else None
    return dtype if isinstance(dtype, torch.dtype) else stored_dtype(files.folder)


def _stored_weights(files: CheckpointFiles) -> Mapping[str, StoredWeight]:
    """What the folder's files hold, by the names there; a weight stored in parts is one entry."""
    arrived, tensors = read_prequantized(files.config), stored_tensors(files.folder)
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
        return replace(config, text=replace(config.text, tied=False)), rules
    return config, rules.dropping("lm_head.weight")


class _Bar:
    """A progress bar on a terminal, for loads that take longer than a second."""

    def __init__(self) -> None:
        self._bar: tqdm | None = None

    def __call__(self, done: int, total: int) -> None:
        if self._bar is None:
            self._bar = tqdm(  # type: ignore[no-untyped-call]
                total=total, unit="B", unit_scale=True, desc="Loading weights", delay=1.0, disable=None, leave=False
            )
        self._bar.update(done - self._bar.n)

    def close(self) -> None:
        if self._bar is not None:
            self._bar.close()
