"""The demo model: transformers' own Llava class from a small config, with an initialisation that learns quickly.

Letters: B pictures, P patches per picture, T tokens, D width.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import LlavaConfig, LlavaForConditionalGeneration, Qwen2Config, SiglipVisionConfig

from drawing import GRID, LABEL_CLASSES, PATCH, SIDE
from scenes import COLOURS, PLACES, SHAPES, SIZES

WIDTH = 192
TOWER_LAYERS = 4
DECODER_LAYERS = 4
LABEL_WEIGHTS = (1.0, 1.0, 1.0, 1.0, 2.0, 2.0)  # characters are the hardest to learn


@dataclass(frozen=True, slots=True)
class TokenIds:
    """What the config has to know about the tokenizer."""

    size: int
    pad: int
    end: int
    image: int


def build_model(ids: TokenIds) -> LlavaForConditionalGeneration:
    """A freshly initialised model; about 3.4 M parameters."""
    vision = SiglipVisionConfig(
        hidden_size=WIDTH,
        intermediate_size=576,
        num_hidden_layers=TOWER_LAYERS,
        num_attention_heads=6,
        image_size=SIDE,
        patch_size=PATCH,
        vision_use_head=False,
    )
    text = Qwen2Config(
        vocab_size=ids.size,
        hidden_size=WIDTH,
        intermediate_size=512,
        num_hidden_layers=DECODER_LAYERS,
        num_attention_heads=6,
        num_key_value_heads=3,
        max_position_embeddings=2048,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=ids.end,
        pad_token_id=ids.pad,
    )
    config = LlavaConfig(
        vision_config=vision,
        text_config=text,
        image_token_index=ids.image,
        image_seq_length=GRID * GRID,
        vision_feature_layer=-1,
        vision_feature_select_strategy="full",
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=ids.end,
        pad_token_id=ids.pad,
    )
    model = LlavaForConditionalGeneration(config)
    _initialise(model)
    return model.train()


class DenseHeads(nn.Module):
    """Reads the labels of every patch off the tower; used only in training."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(WIDTH)
        self.read = nn.Linear(WIDTH, sum(LABEL_CLASSES))

    def forward(self, features: Tensor) -> tuple[Tensor, ...]:
        """[B, P, D] to one [B, P, classes] for each column of the labels."""
        return self.read(self.norm(features)).split(LABEL_CLASSES, dim=-1)


class SubjectHeads(nn.Module):
    """Reads off the decoder, where an answer begins, all about the shape that the question is about.

    An answer tells one word of it; learning to find the shape goes much quicker from all four.
    """

    classes = (len(SHAPES), len(COLOURS), len(SIZES), len(PLACES))

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(WIDTH)
        self.read = nn.Linear(WIDTH, sum(self.classes))

    def loss(self, states: Tensor, subjects: Tensor) -> Tensor:
        """Cross-entropy of [A, D] states with the [A, 4] words of their subjects; rows of -1 have none."""
        scores = self.read(self.norm(states)).split(self.classes, dim=-1)
        losses = [
            functional.cross_entropy(score, word, ignore_index=-1, reduction="sum")
            for score, word in zip(scores, subjects.T, strict=True)
        ]
        return torch.stack(losses).sum() / (subjects >= 0).sum().clamp(min=1)


def dense_loss(logits: tuple[Tensor, ...], labels: Tensor) -> tuple[Tensor, Tensor]:
    """Mean cross-entropy over columns, patches that show something counting more; and accuracy there, [columns]."""
    losses, hits = [], []
    for column, scores in enumerate(logits):
        truth = labels[..., column].long()
        shown = truth > 0
        weight = torch.where(shown, 1.0, 0.15)
        each = functional.cross_entropy(scores.flatten(0, 1), truth.flatten(), reduction="none")
        losses.append((each * weight.flatten()).sum() / weight.sum())
        hits.append(((scores.argmax(-1) == truth) & shown).sum() / shown.sum().clamp(min=1))
    weights = torch.tensor(LABEL_WEIGHTS, device=labels.device)
    return (torch.stack(losses) * weights).sum() / weights.sum(), torch.stack(hits)


def to_pixels(images: Tensor) -> Tensor:
    """uint8 [B, SIDE, SIDE, 3] to the processor's float [B, 3, SIDE, SIDE]."""
    return images.permute(0, 3, 1, 2).float().div_(127.5).sub_(1.0).contiguous()


def tower_features(model: LlavaForConditionalGeneration, images: Tensor) -> Tensor:
    """uint8 [B, SIDE, SIDE, 3] to the last encoder layer's output, [B, P, D] (`vision_feature_layer` -1)."""
    vision = model.model.vision_tower
    hidden = vision.embeddings(to_pixels(images))
    return vision.encoder(inputs_embeds=hidden).last_hidden_state


def decode(model: LlavaForConditionalGeneration, features: Tensor, ids: Tensor) -> tuple[Tensor, Tensor]:
    """The decoder's states [R, T, D] before its last layer and after it, for the sequences `ids` [R, T].

    Features [pictures, P, D] go to the image tokens in order. Rows are padded on the right, where causal attention
    needs no mask.
    """
    inner = model.model
    embeds = inner.get_input_embeddings()(ids)
    spots = (ids == model.config.image_token_id).unsqueeze(-1).expand_as(embeds)
    embeds = embeds.masked_scatter(spots, inner.multi_modal_projector(features))
    output = inner.language_model(inputs_embeds=embeds, use_cache=False, output_hidden_states=True)
    return output.hidden_states[DECODER_LAYERS - 1], output.last_hidden_state


def _initialise(model: LlavaForConditionalGeneration) -> None:
    """Patches as low cosine frequencies, positions as sines and cosines, residual outputs small."""
    vision = model.model.vision_tower
    with torch.no_grad():
        vision.embeddings.patch_embedding.weight.copy_(_cosine_filters())
        vision.embeddings.patch_embedding.bias.zero_()
        vision.embeddings.position_embedding.weight.copy_(0.5 * _positions())
        for name, weight in model.named_parameters():
            if "layers." not in name or weight.dim() != 2:
                continue
            nn.init.normal_(weight, std=weight.shape[1] ** -0.5 * 0.6)
            if name.endswith(("out_proj.weight", "o_proj.weight", "fc2.weight", "down_proj.weight")):
                weight.mul_((2 * (TOWER_LAYERS + DECODER_LAYERS)) ** -0.5)
        for layer in model.model.multi_modal_projector.modules():
            if isinstance(layer, nn.Linear):
                nn.init.normal_(layer.weight, std=layer.in_features**-0.5)
        nn.init.normal_(model.get_input_embeddings().weight, std=0.03)
        model.lm_head.weight = model.get_input_embeddings().weight


def _cosine_filters() -> Tensor:
    """[D, 3, PATCH, PATCH]: the lowest 2-D cosine frequencies of brightness and of two colour differences."""
    steps = (torch.arange(PATCH) + 0.5) * math.pi / PATCH
    channels = torch.tensor([[1.0, 1.0, 1.0], [1.0, -1.0, 0.0], [0.5, 0.5, -1.0]])
    channels = channels / channels.norm(dim=1, keepdim=True)
    order = sorted((u * u + v * v, u, v) for u in range(PATCH) for v in range(PATCH))
    filters = []
    for channel, count in zip(channels, (WIDTH * 3 // 4, WIDTH // 8, WIDTH // 8), strict=True):
        for _, u, v in order[:count]:
            wave = torch.outer(torch.cos(u * steps), torch.cos(v * steps))
            # Low frequencies carry most of a picture's energy; higher ones are lifted to be heard.
            gain = 0.5 * (1 + u * u + v * v) ** 0.25
            filters.append(gain * channel[:, None, None] * wave / wave.norm())
    return torch.stack(filters)


def _positions() -> Tensor:
    """[P, D]: half of the width codes the row of a patch, half its column."""
    frequencies = 2.0 ** torch.linspace(0, -3.5, WIDTH // 4)
    angles = torch.arange(GRID)[:, None] * frequencies[None, :] * math.pi / 2
    code = torch.cat((angles.sin(), angles.cos()), dim=1)
    rows = code[:, None, :].expand(GRID, GRID, -1)
    columns = code[None, :, :].expand(GRID, GRID, -1)
    return torch.cat((rows, columns), dim=-1).reshape(GRID * GRID, WIDTH)
