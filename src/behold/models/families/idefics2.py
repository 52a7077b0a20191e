"""Idefics2: a SigLIP-like tower for pictures of any size, a perceiver resampler and a Mistral decoder.

One picture, or one of the five parts of a split one, (3, h, w) → its whole patches (n, W), at positions bucketed from
fractions of its sides → gated MLP → (n, D) → resampler → (64, D). Pictures of one size are encoded together, so nothing
is padded and no mask is needed. Source: arxiv.org/abs/2405.02246; the numbers follow transformers'
Idefics2ForConditionalGeneration, where a patch counts when all of its pixels are the picture's.
"""

from __future__ import annotations

from collections.abc import Generator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from behold.checkpoint.rename import RenameRules
from behold.errors import UnsupportedModelError
from behold.models.base import Family, VisionLanguageModel
from behold.models.config import ModelConfig, read_text_config, read_vision_config
from behold.models.connectors import ResamplerConfig, ResamplingConnector
from behold.models.decoder import Decoder
from behold.models.towers.vit import VisionTransformer, bucketed_positions
from behold.nn.mlp import activation
from behold.processing.layouts import NativeSizeLayout

if TYPE_CHECKING:
    from behold.checkpoint.files import CheckpointFiles
    from behold.types import ImageInput

# --- config ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Idefics2Config(ModelConfig):
    """The resampler makes `resampler.n_latents` embeddings of every picture."""

    resampler: ResamplerConfig


_RESAMPLER_DEFAULTS: dict[str, Any] = {
    "hidden_size": 4096,
    "resampler_n_latents": 64,
    "resampler_depth": 3,
    "resampler_n_heads": 16,
    "num_key_value_heads": 4,
    "resampler_head_dim": 96,
    "hidden_act": "silu",
    "rms_norm_eps": 1e-6,
}


def read_config(config: Mapping[str, Any]) -> Idefics2Config:
    """config.json of an idefics2 checkpoint, with transformers' defaults where it is silent.

    Raises:
        UnsupportedModelError: a decoder or option that is not supported.
    """
    described = config.get("text_config")
    text = read_text_config(
        {"max_position_embeddings": 32768, "rms_norm_eps": 1e-5} if described is None else described,
        default_type="mistral",
        tied=bool(config.get("tie_word_embeddings")),
    )
    token = config.get("image_token_id")
    return Idefics2Config(
        model_type="idefics2",
        text=text,
        vision=read_vision_config(config.get("vision_config"), model_type="idefics2_vision"),
        image_token_id=32001 if token is None else token,
        resampler=_read_resampler(config.get("perceiver_config") or {}, text.hidden_size, text.rms_norm_eps),
    )


def _read_resampler(given: Mapping[str, Any], text_width: int, text_eps: float) -> ResamplerConfig:
    """A resampler of another width than the text's was written without its width: the text's values stand in."""
    values = {key: default if given.get(key) is None else given[key] for key, default in _RESAMPLER_DEFAULTS.items()}
    if values["hidden_size"] != text_width:
        values |= {"hidden_size": text_width, "rms_norm_eps": text_eps}
    heads, kv_heads = values["resampler_n_heads"], values["num_key_value_heads"]
    if heads % kv_heads:
        raise UnsupportedModelError(f"perceiver_config: {heads} heads are no multiple of {kv_heads} key heads.")
    activation(values["hidden_act"])
    return ResamplerConfig(
        hidden_size=values["hidden_size"],
        n_latents=values["resampler_n_latents"],
        depth=values["resampler_depth"],
        n_heads=heads,
        n_kv_heads=kv_heads,
        head_dim=values["resampler_head_dim"],
        hidden_act=values["hidden_act"],
        rms_norm_eps=values["rms_norm_eps"],
    )


# --- image layout ------------------------------------------------------------------------------------------------


def read_layout(config: ModelConfig, files: CheckpointFiles) -> NativeSizeLayout:
    """Pictures keep their own size within bounds, split in four and a whole where the checkpoint says so."""
    assert isinstance(config, Idefics2Config)
    return NativeSizeLayout.read(
        files,
        image_token_id=config.image_token_id,
        n_tokens=config.resampler.n_latents,
    )


# --- weights -----------------------------------------------------------------------------------------------------

RENAME = RenameRules(
    prefixes=(
        ("model.vision_model.", "vision_model."),
        ("model.connector.", "connector."),
        ("model.text_model.", "text_model."),
        ("lm_head.", "text_model.lm_head."),
    ),
    drop=(".rotary_emb.inv_freq", "vision_model.embeddings.position_ids", "vision_model.head."),
)


# --- model -------------------------------------------------------------------------------------------------------


class Idefics2(VisionLanguageModel):
    """Tower, connector, decoder."""

    def __init__(self, config: Idefics2Config) -> None:
        super().__init__()
        self.config: Idefics2Config = config
        self.vision_model = VisionTransformer(config.vision)
        self.connector = ResamplingConnector(
            config.vision.hidden_size, config.text.intermediate_size, config.text.hidden_act, config.resampler
        )
        self.text_model = Decoder(config.text)

    @property
    def decoder(self) -> Decoder:
        return self.text_model

    def encoding(self, images: Sequence[ImageInput]) -> Generator[None, None, list[Tensor]]:
        """Embeddings (n_latents, D) of pictures (3, h, w); see VisionLanguageModel."""
        by_grid: dict[tuple[int, int], list[int]] = {}
        for index, image in enumerate(images):
            by_grid.setdefault(self._grid(image), []).append(index)
        embeddings: dict[int, Tensor] = {}
        for grid, indices in by_grid.items():
            encoded = yield from self._encode([images[index].pixels for index in indices], grid)
            embeddings.update(zip(indices, encoded, strict=True))
        return [embeddings[index] for index in range(len(images))]

    def _grid(self, image: ImageInput) -> tuple[int, int]:
        """Rows and columns of patches that lie wholly inside the picture."""
        height, width = image.pixels.shape[-2:]
        side, most = self.config.vision.patch_size, self.config.vision.image_size
        rows, columns = height // side, width // side
        if not rows or not columns:
            raise UnsupportedModelError(f"A picture of {(height, width)} pixels has no whole patch of {side} pixels.")
        if max(height, width) > most:
            raise UnsupportedModelError(
                f"A picture of {(height, width)} pixels is larger than {most}, which is what the tower's positions "
                "span: preprocessor_config.json and config.json do not belong together."
            )
        return rows, columns

    def _encode(self, pictures: Sequence[np.ndarray], grid: tuple[int, int]) -> Generator[None, None, Tensor]:
        """Pictures with the same grid of patches to (B, n_latents, D)."""
        side, (rows, columns) = self.config.vision.patch_size, grid
        pixels = torch.from_numpy(np.stack([each[:, : rows * side, : columns * side] for each in pictures]))
        positions = bucketed_positions(rows, columns, self.config.vision.patches_per_side).to(self.device)
        last = self.config.vision.num_hidden_layers
        (features,) = yield from self.vision_model.steps(pixels.to(self.device, self.dtype), (last,), positions)
        yield
        embeddings: Tensor = self.connector(self.vision_model.post_layernorm(features))
        return embeddings


def build(config: ModelConfig) -> Idefics2:
    assert isinstance(config, Idefics2Config)
    return Idefics2(config)


FAMILY = Family(
    name="idefics2",
    model_types=("idefics2",),
    read_config=read_config,
    rename=RENAME,
    build=build,
    layout=read_layout,
)
