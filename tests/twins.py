"""Random twins: a toy's model as wide as rounding is made for, with the weights that torch gives to new layers.

Toys are so narrow, and their weights so large, that each layer's rounding is carried on undamped; what quantizing does
to answers shows in these.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields, is_dataclass, replace
from typing import Any

import torch

from behold.models.base import VisionLanguageModel
from behold.models.config import ModelConfig
from behold.models.registry import find_family
from behold.nn.attention import AttentionPlan, PlainCache
from behold.types import Prompt

_SIDES = {"hidden_size": 256, "head_dim": 64, "intermediate_size": 688}


def twin(config: ModelConfig) -> VisionLanguageModel:
    """The model of a toy's config made wider, random, always the same; it takes the toy's prompts."""
    config = _widened(config)
    model = find_family(config.model_type).build(config).requires_grad_(False).eval()
    generator = torch.Generator().manual_seed(0)
    for name, parameter in model.named_parameters():
        if parameter.ndim == 1:
            parameter.normal_(0, 0.02, generator=generator)
            parameter.add_(float("norm" in name and name.endswith("weight")))
        else:
            looked_up = "embed_tokens" in name or "position" in name or "latents" in name
            wide = 1.0 if looked_up else (3 * parameter[0].numel()) ** -0.5
            parameter.normal_(0, wide, generator=generator)
    return model


@torch.inference_mode()
def logits(model: VisionLanguageModel, prompts: Sequence[Prompt]) -> torch.Tensor:
    """(N, V) of every token of prompts that go through the model together, and so do their pictures."""
    pictures = model.encode_images([image for prompt in prompts for image in prompt.images])
    rows, at, n_rows, n_pictures = [], [], 0, 0
    for prompt in prompts:
        rows += [pictures[n_pictures + span.image] for span in prompt.spans]
        at += [torch.arange(span.start, span.stop) + n_rows for span in prompt.spans]
        n_rows, n_pictures = n_rows + len(prompt.ids), n_pictures + len(prompt.images)
    ids = torch.tensor([token for prompt in prompts for token in prompt.ids])
    embeddings = model.embed(ids, torch.cat(rows), torch.cat(at)) if rows else model.embed(ids)
    positions = torch.cat([model.positions(len(prompt.ids)) for prompt in prompts])
    both_ways = tuple(tuple((s.start, s.stop) for s in prompt.spans if s.bidirectional) for prompt in prompts)
    lengths, zeros = tuple(len(prompt.ids) for prompt in prompts), (0,) * len(prompts)
    plan = AttentionPlan(lengths, zeros, tuple(range(len(prompts))), both_ways)
    return model.logits(model.hidden(embeddings, positions, PlainCache(plan)))


def _widened(config: Any) -> Any:
    """Any family's record, and those in it, with our sides."""
    changes = {}
    for field in fields(config):
        value = getattr(config, field.name)
        if is_dataclass(value):
            changes[field.name] = _widened(value)
        elif field.name in _SIDES:
            changes[field.name] = _SIDES[field.name]
    return replace(config, **changes)
