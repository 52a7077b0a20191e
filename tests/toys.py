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
import json
import re
import shutil
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
from PIL import Image

Style = Literal["saved", "published"]

CHATML = (
    "{% for message in messages %}{{'<|im_start|>' + message['role'] + '\n'}}{# Render all images first #}"
    "{% for content in message['content'] | selectattr('type', 'equalto', 'image') %}{{ '<image>' }}{% endfor %}"
    "{# Render all text next #}{% if message['role'] != 'assistant' %}"
    "{% for content in message['content'] | selectattr('type', 'equalto', 'text') %}"
    "{{ '\n' + content['text'] }}{% endfor %}"
    "{% else %}{% for content in message['content'] | selectattr('type', 'equalto', 'text') %}"
    "{% generation %}{{ '\n' + content['text'] }}{% endgeneration %}{% endfor %}{% endif %}{{'<|im_end|>' + '\n'}}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
VICUNA = (
    "{% for message in messages %}{% if message['role'] != 'system' %}{{ message['role'].upper() + ': '}}{% endif %}"
    "{# Render all images first #}{% for content in message['content'] | selectattr('type', 'equalto', 'image') %}"
    "{{ '<image>\n' }}{% endfor %}{# Render all text next #}{% if message['role'] != 'assistant' %}"
    "{% for content in message['content'] | selectattr('type', 'equalto', 'text') %}"
    "{{ content['text'] + ' '}}{% endfor %}"
    "{% else %}{% for content in message['content'] | selectattr('type', 'equalto', 'text') %}"
    "{% generation %}{{ content['text'] + ' '}}{% endgeneration %}{% endfor %}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ 'ASSISTANT:' }}{% endif %}"
)
IDEFICS2 = (
    "{% for message in messages %}{{message['role'].capitalize()}}{% if message['content'][0]['type'] == 'image' %}"
    "{{':'}}{% else %}{{': '}}{% endif %}{% for line in message['content'] %}{% if line['type'] == 'text' %}"
    "{{line['text']}}{% elif line['type'] == 'image' %}{{ '<image>' }}{% endif %}{% endfor %}<end_of_utterance>\n"
    "{% endfor %}{% if add_generation_prompt %}{{ 'Assistant:' }}{% endif %}"
)
CORPUS = (
    "What do we see in this image? A red square left of a blue circle, above the green triangle. "
    "user assistant system USER: ASSISTANT: User: Assistant: How many shapes are there? There are three. "
    "Which colour is the largest one? It cannot be told from the picture. The quick brown fox jumps over the lazy dog. "
    "Describe the scene; read the text: 0123456789. Ünïcode, naïve café, 日本語, emoji 🙂."
)


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
    tokenizer = _qwen_tokenizer() if toy.text_type == "qwen2" else _llama_tokenizer(idefics2=toy.family == "idefics2")
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


def read_weights(folder: Path) -> dict[str, Any]:
    """Every tensor of a folder, by name."""
    from safetensors.torch import load_file

    weights: dict[str, Any] = {}
    for path in sorted(folder.glob("*.safetensors")):
        weights |= load_file(path)
    return weights


def write_weights(folder: Path, weights: dict[str, Any]) -> None:
    """Replaces the folder's weights by one file."""
    from safetensors.torch import save_file

    for path in [*folder.glob("*.safetensors"), *folder.glob("*.safetensors.index.json")]:
        path.unlink()
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})


def shard(folder: Path, shards: int) -> None:
    """Splits the folder's weights over `shards` files with an index, names dealt out in turn."""
    from safetensors.torch import save_file

    weights = read_weights(folder)
    (folder / "model.safetensors").unlink()
    weight_map = {}
    for index in range(shards):
        part = {name: weights[name] for name in sorted(weights)[index::shards]}
        filename = f"model-{index + 1:05d}-of-{shards:05d}.safetensors"
        save_file(part, folder / filename, metadata={"format": "pt"})
        weight_map |= dict.fromkeys(part, filename)
    total = sum(weight.numel() * weight.element_size() for weight in weights.values())
    _write_json(folder / "model.safetensors.index.json", {"metadata": {"total_size": total}, "weight_map": weight_map})


# --- the published spelling --------------------------------------------------------------------------------------

# canonical names, as transformers 5 has them in memory, to those of the files on the hub (first match wins)
_PUBLISHED_NAMES = {
    "llava": (
        (r"^(language_model\.)?lm_head\.", "language_model.lm_head."),
        (r"^(model\.)?language_model\.(model\.)?", "language_model.model."),
        (r"^(model\.)?vision_tower\.(vision_model\.)?", "vision_tower.vision_model."),
        (r"^(model\.)?multi_modal_projector\.", "multi_modal_projector."),
    ),
    "idefics2": (),
}


def to_published(folder: Path) -> None:
    """Rewrites a saved folder, in place, with the weight names and file spellings of the published checkpoints."""
    config = _read_json(folder / "config.json")
    weights = {}
    for name, weight in read_weights(folder).items():
        renamed = name
        for pattern, replacement in _PUBLISHED_NAMES[config["model_type"]]:
            if re.match(pattern, name):
                renamed = re.sub(pattern, replacement, name)
                break
        weights[renamed] = weight
    write_weights(folder, weights)
    _write_json(folder / "config.json", _old_config(config))
    processor = _read_json(folder / "processor_config.json")
    image_processor = processor.pop("image_processor")
    _write_json(folder / "preprocessor_config.json", image_processor)
    template = (folder / "chat_template.jinja").read_text()
    (folder / "chat_template.jinja").unlink()
    if config["model_type"] == "idefics2":
        processor["chat_template"] = template
    else:
        _write_json(folder / "chat_template.json", {"chat_template": template})
    _write_json(folder / "processor_config.json", processor)


def _old_config(config: dict[str, Any]) -> dict[str, Any]:
    """The config as transformers 4 spelled it."""
    config = dict(config)
    for key in ("text_config", "vision_config", "perceiver_config"):
        if key in config:
            config[key] = _old_config(config[key])
    if "dtype" in config:
        config["torch_dtype"] = config.pop("dtype")
    if config["model_type"] == "llava":
        config["image_token_index"] = config.pop("image_token_id", config.get("image_token_index"))
    rope = dict(config.pop("rope_parameters", None) or {})
    if rope:
        config["rope_theta"] = rope.pop("rope_theta")
        if rope.get("rope_type") != "default":
            config["rope_scaling"] = {"type": rope.pop("rope_type"), **rope}
    config.pop("layer_types", None)
    if config["model_type"].startswith("idefics2_"):
        config["model_type"] = "idefics2"
    return config


def _read_json(path: Path) -> dict[str, Any]:
    value: dict[str, Any] = json.loads(path.read_text())
    return value


def _write_json(path: Path, value: dict[str, Any]) -> None:
    path.write_text(json.dumps(value, indent=2))


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


def _bpe(tokenizer: Any, *, special_tokens: list[str], alphabet: list[str], size: int) -> tuple[dict[str, int], Any]:
    """Trains a small BPE on CORPUS and returns its (vocabulary, merges)."""
    from tokenizers import trainers

    trainer = trainers.BpeTrainer(
        vocab_size=size, special_tokens=special_tokens, initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator([CORPUS] * 2, trainer)
    state = json.loads(tokenizer.to_str())["model"]
    return state["vocab"], [tuple(merge) for merge in state["merges"]]


def _qwen_tokenizer() -> Any:
    """Byte-level BPE without a bos token; the ChatML tokens follow the vocabulary as in Qwen2."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import Qwen2Tokenizer

    raw = Tokenizer(models.BPE())
    raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    vocab, merges = _bpe(raw, special_tokens=[], alphabet=pre_tokenizers.ByteLevel.alphabet(), size=320)
    tokenizer = Qwen2Tokenizer(
        vocab=vocab, merges=merges, unk_token=None, eos_token="<|im_end|>", pad_token="<|endoftext|>"
    )
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|im_start|>", "<image>"]})
    tokenizer.padding_side = "left"
    return tokenizer


def _llama_tokenizer(*, idefics2: bool) -> Any:
    """Metaspace BPE with byte fallback and a bos token; ids 0, 1, 2 are <unk>, <s>, </s>."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import LlamaTokenizer

    raw = Tokenizer(models.BPE(byte_fallback=True, unk_token="<unk>"))
    raw.pre_tokenizer = pre_tokenizers.Metaspace()
    ascii_only = [chr(code) for code in range(33, 127)]
    special = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
    vocab, merges = _bpe(raw, special_tokens=special, alphabet=ascii_only, size=440)
    tokenizer = LlamaTokenizer(vocab=vocab, merges=merges, pad_token="<unk>" if idefics2 else "<pad>")
    extra = ["<fake_token_around_image>", "<image>", "<end_of_utterance>"] if idefics2 else ["<image>"]
    tokenizer.add_special_tokens({"additional_special_tokens": extra})
    return tokenizer
