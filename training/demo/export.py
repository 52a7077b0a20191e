"""Write the trained model as a plain Hugging Face folder, weights in float16 to be small, used in float32."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import torch
from transformers import GenerationConfig, LlavaProcessor, PreTrainedTokenizerFast
from transformers.models.siglip.image_processing_pil_siglip import SiglipImageProcessorPil

from drawing import PATCH, SIDE
from model import build_model
from tokenizer import kept_tokenizer, token_ids


def export(work: Path, folder: Path) -> None:
    """The running mean of the weights in `work`, with tokenizer and processor, to `folder`."""
    tokenizer = kept_tokenizer(work / "tokenizer")
    ids = token_ids(tokenizer)
    model = build_model(ids)
    model.load_state_dict(torch.load(work / "model.pt", map_location="cpu", weights_only=True)["mean"], strict=False)
    model.generation_config = GenerationConfig(
        do_sample=False, eos_token_id=ids.end, pad_token_id=ids.pad, max_new_tokens=96
    )
    model.half().save_pretrained(folder)
    (folder / "model.safetensors").chmod(0o644)
    _say_float32(folder / "config.json")
    _save_processor(tokenizer, folder)
    size = sum(path.stat().st_size for path in folder.iterdir())
    print(f"{folder}: {size / 1e6:.2f} MB, {model.num_parameters() / 1e6:.2f} M parameters")


def _save_processor(tokenizer: PreTrainedTokenizerFast, folder: Path) -> None:
    images = SiglipImageProcessorPil(size={"height": SIDE, "width": SIDE}, do_convert_rgb=True)
    processor = LlavaProcessor(
        images,
        tokenizer,
        patch_size=PATCH,
        vision_feature_select_strategy="full",
        chat_template=tokenizer.chat_template,
        image_token="<image>",
        num_additional_image_tokens=0,
    )
    processor.save_pretrained(folder)
    images.save_pretrained(folder)
    # The reader of either file finds the type under the name that needs no particular backend.
    for name in ("preprocessor_config.json", "processor_config.json"):
        path = folder / name
        path.write_text(path.read_text().replace("SiglipImageProcessorPil", "SiglipImageProcessor"))


def _say_float32(path: Path) -> None:
    """Halved weights are a matter of storage: float16 arithmetic is slow on CPUs."""
    config = json.loads(path.read_text())
    for part in (config, config["text_config"], config["vision_config"]):
        part["dtype"] = "float32"
    path.write_text(json.dumps(config, indent=2) + "\n")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--work", type=Path, required=True, help="the folder that train.py worked in")
    parser.add_argument("--out", type=Path, default=Path(__file__).parents[2] / "src" / "behold" / "demo")
    arguments = parser.parse_args()
    export(arguments.work, arguments.out)
