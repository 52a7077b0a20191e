"""A processor from a folder without its model: what a family's record does, from the raw config."""

from __future__ import annotations

from pathlib import Path

from behold.checkpoint.files import CheckpointFiles
from behold.processing.layouts import NativeSizeLayout, WholeImageLayout
from behold.processing.processor import Processor


def open_processor(folder: Path) -> Processor:
    """The processor of a llava or idefics2 folder."""
    files = CheckpointFiles.read(folder)
    config = files.config
    vision = config["vision_config"]
    layout: WholeImageLayout | NativeSizeLayout
    if config["model_type"] == "idefics2":
        layout = NativeSizeLayout.read(
            files,
            image_token_id=config["image_token_id"],
            n_tokens=config["perceiver_config"]["resampler_n_latents"],
        )
    else:
        layout = WholeImageLayout.read(
            files,
            image_token_id=config["image_token_id"],
            patch_size=vision["patch_size"],
            n_class_tokens=int(vision["model_type"] == "clip_vision_model"),
            select_strategy=config.get("vision_feature_select_strategy", "default"),
        )
    return Processor.load(files, layout)
