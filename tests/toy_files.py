"""The file half of the toys: weights as a dict, sharding, and the spelling of the published checkpoints."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

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


def _read_json(path: Path) -> dict[str, Any]:
    value: dict[str, Any] = json.loads(path.read_text())
    return value


def _write_json(path: Path, value: dict[str, Any]) -> None:
    path.write_text(json.dumps(value, indent=2))
