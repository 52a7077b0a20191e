"""Tiny random checkpoints in Hugging Face layout, written by transformers' own classes.

    folder = toys.checkpoint("llava-siglip-qwen2")             # written once a run, shared, read-only
    folder = toys.checkpoint("idefics2-split", style="published", shards=3)
    model, processor = toys.reference(folder)                   # the same folder in transformers

Each toy has a real tokenizer (byte-level BPE for Qwen2, byte fallback and metaspace for Llama and Mistral), real
processor files and the published chat templates; only sizes differ. `style="saved"` is what transformers 5 writes,
`style="published"` the spelling of the files on the hub: other weight names, `torch_dtype`, `rope_theta`,
`image_token_index`, separate preprocessor and chat template files.
"""

from __future__ import annotations

import atexit
import functools
import shutil
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
from PIL import Image

from tests.toy_files import read_weights, shard, to_published, write_weights
from tests.toy_texts import CHATML, IDEFICS2, VICUNA, llama_tokenizer, qwen_tokenizer

__all__ = ["IDEFICS2_NAMES", "LLAVA", "TOYS", "Style", "Toy", "checkpoint", "copy", "picture", "read_weights"]
__all__ += ["reference", "shard", "to_published", "write", "write_weights"]

Style = Literal["saved", "published"]


@dataclass(frozen=True)
class Toy:
    """One tiny configuration. `text`, `vision` and `model` are given to transformers' config classes as they are."""

    family: Literal["llava", "idefics2"]
    text_type: Literal["llama", "mistral", "qwen2"]
    vision_type: Literal["clip_vision_model", "siglip_vision_model", "idefics2_vision"]
    text: dict[str, Any] = field(default_factory=dict)
    vision: dict[str, Any] = field(default_factory=dict)
    model: dict[str, Any] = field(default_factory=dict)
    splitting: bool = False

    @property
    def tied(self) -> bool:
        return bool(self.text.get("tie_word_embeddings", False))


TOYS: dict[str, Toy] = {
    # as llava-1.5: many-headed Llama, CLIP without its class token, next-to-last layer
    "llava-clip-llama": Toy("llava", "llama", "clip_vision_model", text={"num_key_value_heads": 4}),
    # as llava-interleave-qwen-0.5b and the bundled demo: SigLIP without head, last layer, tied
    "llava-siglip-qwen2": Toy(
        "llava",
        "qwen2",
        "siglip_vision_model",
        text={"tie_word_embeddings": True},
        vision={"vision_use_head": False},
        model={"vision_feature_layer": -1, "vision_feature_select_strategy": "full"},
    ),
    # as BakLLaVA: Mistral; several feature layers and a sliding window shorter than the prompt
    "llava-clip-mistral": Toy(
        "llava", "mistral", "clip_vision_model", text={"sliding_window": 9}, model={"vision_feature_layer": [-2, 1]}
    ),
    # every bias, heads wider than width / heads, a tower with a pooling head that is never used, scaled positions
    "llava-siglip-llama": Toy(
        "llava",
        "llama",
        "siglip_vision_model",
        text={
            "attention_bias": True,
            "mlp_bias": True,
            "head_dim": 24,
            "num_key_value_heads": 1,
            "rope_parameters": {
                "rope_type": "llama3",
                "rope_theta": 10000.0,
                "factor": 8.0,
                "low_freq_factor": 1.0,
                "high_freq_factor": 4.0,
                "original_max_position_embeddings": 64,
            },
        },
        model={
            "vision_feature_layer": [0, -1],
            "vision_feature_select_strategy": "full",
            "multimodal_projector_bias": False,
        },
    ),
    # class token kept, windows in the upper layers only, linearly scaled positions
    "llava-clip-qwen2": Toy(
        "llava",
        "qwen2",
        "clip_vision_model",
        text={
            "use_sliding_window": True,
            "sliding_window": 7,
            "max_window_layers": 1,
            "rope_parameters": {"rope_type": "linear", "rope_theta": 50000.0, "factor": 2.0},
        },
        model={"vision_feature_layer": -3, "vision_feature_select_strategy": "full", "projector_hidden_act": "silu"},
    ),
    "idefics2": Toy("idefics2", "mistral", "idefics2_vision"),
    "idefics2-split": Toy(
        "idefics2",
        "mistral",
        "idefics2_vision",
        text={"sliding_window": 24, "tie_word_embeddings": True},
        splitting=True,
    ),
}
LLAVA = tuple(name for name, toy in TOYS.items() if toy.family == "llava")
IDEFICS2_NAMES = tuple(name for name, toy in TOYS.items() if toy.family == "idefics2")


# --- what tests call ---------------------------------------------------------------------------------------------


@functools.cache
def _home() -> Path:
    home = tempfile.mkdtemp(prefix="behold-toys-")
    atexit.register(shutil.rmtree, home, ignore_errors=True)
    return Path(home)


@functools.cache
def checkpoint(name: str, *, style: Style = "saved", shards: int = 1, dtype: str = "float32") -> Path:
    """The folder of a toy, written on first use and removed when the process ends. Copy it before changing it."""
    folder = _home() / f"{name}-{style}-{shards}-{dtype}"
    write(name, folder, style=style, shards=shards, dtype=dtype)
    return folder


def write(
    name: str, folder: Path, *, style: Style = "saved", shards: int = 1, dtype: str = "float32", seed: int = 0
) -> Path:
    """Writes the toy `name` to `folder` and returns it. The same arguments give the same weights."""
    import torch

    toy = TOYS[name]
    tokenizer = qwen_tokenizer() if toy.text_type == "qwen2" else llama_tokenizer(idefics2=toy.family == "idefics2")
    _quiet()
    model = _model(toy, tokenizer)
    _randomise(model, seed)
    model.to(getattr(torch, dtype)).save_pretrained(folder)
    _processor(toy, tokenizer).save_pretrained(folder)
    if style == "published":
        to_published(folder)
    if shards > 1:
        shard(folder, shards)
    return folder


def reference(folder: Path, *, device: Any = "cpu", dtype: Any = None) -> tuple[Any, Any]:
    """The folder as transformers loads it: (model in eval mode, processor)."""
    import torch
    from transformers import AutoModelForImageTextToText, AutoProcessor

    _quiet()
    model = AutoModelForImageTextToText.from_pretrained(folder, dtype=dtype or torch.float32)
    return model.to(device).eval(), AutoProcessor.from_pretrained(folder)


def copy(folder: Path, target: Path) -> Path:
    """A private copy of a shared folder, to be changed by a test."""
    shutil.copytree(folder, target)
    return target


def picture(width: int = 40, height: int = 30, seed: int = 0) -> Image.Image:
    """A smooth, colourful, reproducible picture with a few hard edges."""
    generator = np.random.default_rng(seed)
    coarse = Image.fromarray(generator.integers(0, 256, (5, 6, 3), dtype=np.uint8))
    canvas = np.asarray(coarse.resize((width, height), Image.Resampling.BICUBIC)).copy()
    canvas[height // 4 : height // 2, width // 3 : width // 2] = generator.integers(0, 256, 3, dtype=np.uint8)
    return Image.fromarray(canvas)


def _quiet() -> None:
    from transformers.utils import logging

    logging.disable_progress_bar()


# --- building ----------------------------------------------------------------------------------------------------


def _model(toy: Toy, tokenizer: Any) -> Any:
    """The transformers model of a toy, on the meta of its config, not yet random."""
    from transformers import AutoConfig, Idefics2Config, Idefics2ForConditionalGeneration, LlavaConfig
    from transformers import LlavaForConditionalGeneration as Llava

    text = {
        "vocab_size": (len(tokenizer) + 15) // 16 * 16,
        "hidden_size": 64,
        "intermediate_size": 96,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 512,
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    } | toy.text
    vision = {
        "hidden_size": 32,
        "intermediate_size": 72,
        "num_hidden_layers": 4,
        "num_attention_heads": 4,
        "image_size": 56 if toy.family == "idefics2" else 24,
        "patch_size": 7 if toy.family == "idefics2" else 6,
    } | toy.vision
    image_token_id = tokenizer.convert_tokens_to_ids("<image>")
    model: Any
    if toy.family == "idefics2":
        perceiver = {
            "hidden_size": text["hidden_size"],
            "resampler_n_latents": 5,
            "resampler_depth": 2,
            "resampler_n_heads": 4,
            "resampler_head_dim": 8,
            "num_key_value_heads": 2,
        }
        model = Idefics2ForConditionalGeneration(
            Idefics2Config(
                text_config={"model_type": "mistral", "rms_norm_eps": 1e-5, **text},
                vision_config=vision,
                perceiver_config=perceiver,
                image_token_id=image_token_id,
                tie_word_embeddings=toy.tied,
                **toy.model,
            )
        )
        model.generation_config.eos_token_id = [
            tokenizer.eos_token_id,
            tokenizer.convert_tokens_to_ids("<end_of_utterance>"),
        ]
        model.generation_config.bad_words_ids = [
            [tokenizer.convert_tokens_to_ids(token)] for token in ("<fake_token_around_image>", "<image>")
        ]
        return model
    config = LlavaConfig(
        text_config=AutoConfig.for_model(toy.text_type, **text),
        vision_config=AutoConfig.for_model(toy.vision_type, **vision),
        image_token_index=image_token_id,
        **toy.model,
    )
    return Llava(config)


def _randomise(model: Any, seed: int) -> None:
    """Weights large enough that a wrong norm, bias, mask or position moves the logits far beyond rounding."""
    import torch

    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, weight in sorted(model.named_parameters()):
            noise = torch.randn(weight.shape, generator=generator)
            if "embed_tokens" in name:
                # a tied head that is too large would make every token answer with itself
                weight.copy_(noise * (0.12 if model.config.text_config.tie_word_embeddings else 0.6))
            elif "latents" in name:
                weight.copy_(noise * 0.6)
            elif weight.ndim == 1:
                weight.copy_(noise * 0.2 + (1.0 if "norm" in name and name.endswith("weight") else 0.0))
            else:
                weight.copy_(noise * 1.3 / (weight[0].numel() ** 0.5))


def _processor(toy: Toy, tokenizer: Any) -> Any:
    """The transformers processor of a toy, with Pillow image processors."""
    from transformers import (
        CLIPImageProcessorPil,
        Idefics2ImageProcessorPil,
        Idefics2Processor,
        LlavaProcessor,
        SiglipImageProcessorPil,
    )

    if toy.family == "idefics2":
        return Idefics2Processor(
            Idefics2ImageProcessorPil(
                size={"shortest_edge": 23, "longest_edge": 56}, do_image_splitting=toy.splitting, do_convert_rgb=True
            ),
            tokenizer,
            image_seq_len=5,
            chat_template=IDEFICS2,
        )
    clip = toy.vision_type == "clip_vision_model"
    image_processor: Any
    if clip:
        image_processor = CLIPImageProcessorPil(size={"shortest_edge": 24}, crop_size={"height": 24, "width": 24})
    else:
        image_processor = SiglipImageProcessorPil(
            size={"height": 24, "width": 24}, resample=3, image_mean=[0.5] * 3, image_std=[0.5] * 3
        )
    return LlavaProcessor(
        image_processor,
        tokenizer,
        patch_size=6,
        vision_feature_select_strategy=toy.model.get("vision_feature_select_strategy", "default"),
        chat_template=CHATML if toy.text_type == "qwen2" else VICUNA,
        num_additional_image_tokens=int(clip),
    )
