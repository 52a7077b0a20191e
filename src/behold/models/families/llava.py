"""LLaVA: a CLIP or SigLIP tower, a two-layer MLP and a Llama, Mistral or Qwen2 decoder.

One picture (3, S, S) → patches of chosen tower layers (n, W) → projector → (n, D): the embeddings of its n image
tokens. Such are llava-1.5-7b and 13b, BakLLaVA and llava-interleave-qwen-0.5b. Sources: arxiv.org/abs/2304.08485 and
2310.03744; the numbers follow transformers' LlavaForConditionalGeneration.
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
from behold.models.connectors import MLPProjector
from behold.models.decoder import Decoder
from behold.models.towers.vit import VisionTransformer
from behold.nn.mlp import activation
from behold.processing.layouts import WholeImageLayout

if TYPE_CHECKING:
    from behold.checkpoint.files import CheckpointFiles
    from behold.types import ImageInput

# --- config ------------------------------------------------------------------------------------------------------

_TOWERS = ("clip_vision_model", "siglip_vision_model")


@dataclass(frozen=True, slots=True)
class LlavaConfig(ModelConfig):
    """feature_layers: numbers of tower layers, 0 being the encoder's input, whose states are joined side by side."""

    feature_layers: tuple[int, ...]
    drops_class_token: bool
    projector_act: str
    projector_bias: bool


def read_config(config: Mapping[str, Any]) -> LlavaConfig:
    """config.json of a llava checkpoint, with transformers' defaults where it is silent.

    Raises:
        UnsupportedModelError: a tower, decoder or option that is not supported.
    """
    text, vision = config.get("text_config") or {}, config.get("vision_config")
    if vision is None:  # transformers' default tower when none is described
        vision = {"hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 24, "num_attention_heads": 16}
        vision |= {"image_size": 336, "patch_size": 14}
    tower = vision.get("model_type") or "clip_vision_model"
    if tower not in _TOWERS:
        raise UnsupportedModelError(
            f"vision_config.model_type={tower!r} is not supported. Known: {', '.join(_TOWERS)}."
        )
    vision_config = read_vision_config(vision, model_type=tower)
    strategy = config.get("vision_feature_select_strategy") or "default"
    if strategy not in ("default", "full"):
        raise UnsupportedModelError(f'vision_feature_select_strategy={strategy!r} must be "default" or "full".')
    act = config.get("projector_hidden_act") or "gelu"
    activation(act)
    bias, token = config.get("multimodal_projector_bias"), config.get("image_token_id")
    return LlavaConfig(
        model_type="llava",
        text=read_text_config(
            text,
            default_type="llama",
            tied=bool(config.get("tie_word_embeddings") or text.get("tie_word_embeddings")),
        ),
        vision=vision_config,
        image_token_id=32000 if token is None else token,
        feature_layers=_feature_layers(config.get("vision_feature_layer"), vision_config.num_hidden_layers),
        drops_class_token=strategy == "default",
        projector_act=act,
        projector_bias=True if bias is None else bias,
    )


def _feature_layers(value: Any, depth: int) -> tuple[int, ...]:  # noqa: ANN401 - whatever a JSON file holds
    """Indices into the depth + 1 hidden states of the tower, negative ones counted from the end."""
    given = [-2] if value is None else value if isinstance(value, list) else [value]
    if not given or not all(isinstance(index, int) and -depth - 1 <= index <= depth for index in given):
        raise UnsupportedModelError(
            f"vision_feature_layer={value!r} must be one or several of {-depth - 1} … {depth} for a tower of {depth} "
            "layers."
        )
    return tuple(index % (depth + 1) for index in given)


# --- image layout ------------------------------------------------------------------------------------------------


def read_layout(config: ModelConfig, files: CheckpointFiles) -> WholeImageLayout:
    """Every picture is brought to one size; its tokens stand alone, with nothing around them."""
    assert isinstance(config, LlavaConfig)
    return WholeImageLayout.read(
        files,
        image_token_id=config.image_token_id,
        patch_size=config.vision.patch_size,
        n_class_tokens=int(config.vision.class_token),
        select_strategy="default" if config.drops_class_token else "full",
    )


# --- weights -----------------------------------------------------------------------------------------------------

RENAME = RenameRules(
    prefixes=(
        # published files, and what transformers 5 writes
        ("language_model.model.", "language_model."),
        # transformers 4.52 and later in memory
        ("model.language_model.", "language_model."),
        ("lm_head.", "language_model.lm_head."),
        ("model.multi_modal_projector.", "multi_modal_projector."),
        ("model.vision_tower.vision_model.", "vision_tower."),
        ("model.vision_tower.", "vision_tower."),
        ("vision_tower.vision_model.", "vision_tower."),
    ),
    drop=(
        ".rotary_emb.inv_freq",  # computed
        "vision_tower.embeddings.position_ids",  # 0 … n - 1
        "vision_model.embeddings.position_ids",
        "vision_tower.head.",  # SigLIP's pooling head: the projector reads patches
        "vision_model.head.",
    ),
)


# --- model -------------------------------------------------------------------------------------------------------


class Llava(VisionLanguageModel):
    """Tower, projector, decoder."""

    def __init__(self, config: LlavaConfig) -> None:
        super().__init__()
        self.config: LlavaConfig = config
        self.vision_tower = VisionTransformer(config.vision)
        self.multi_modal_projector = MLPProjector(
            config.vision.hidden_size * len(config.feature_layers),
            config.text.hidden_size,
            config.projector_act,
            bias=config.projector_bias,
        )
        self.language_model = Decoder(config.text)

    @property
    def decoder(self) -> Decoder:
        return self.language_model

    def encoding(self, images: Sequence[ImageInput]) -> Generator[None, None, list[Tensor]]:
        """Embeddings (n_tokens, D) of pictures (3, S, S); see VisionLanguageModel."""
        if not images:
            return []
        side = self.config.vision.image_size
        pixels = torch.from_numpy(np.stack([image.pixels for image in images]))
        if pixels.shape[-2:] != (side, side):
            raise UnsupportedModelError(
                f"The image processor makes pictures of {tuple(pixels.shape[-2:])} pixels, but the vision tower takes "
                f"{(side, side)} only: preprocessor_config.json and config.json do not belong together."
            )
        states = yield from self.vision_tower.steps(pixels.to(self.device, self.dtype), self.config.feature_layers)
        if self.config.drops_class_token:
            states = [state[:, 1:] for state in states]
        embeddings: Tensor = self.multi_modal_projector(states[0] if len(states) == 1 else torch.cat(states, dim=-1))
        return list(embeddings)


def build(config: ModelConfig) -> Llava:
    assert isinstance(config, LlavaConfig)
    return Llava(config)


FAMILY = Family(
    name="llava", model_types=("llava",), read_config=read_config, rename=RENAME, build=build, layout=read_layout
)
