"""Draw the pictures of `examples/` from held-out seeds, and check what an exported folder answers about them."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from PIL import Image
from transformers import AutoModelForImageTextToText, AutoProcessor

from drawing import draw_scene
from questions import describe
from scenes import HELD_OUT_SEED, make_scene

# Name, offset of the held-out seed, size.
PICTURES = {
    "scene": (5304, (640, 480)),
    "word": (5232, (640, 480)),
    "number": (5073, (480, 640)),
    "two_a": (6070, (640, 480)),
    "two_b": (6071, (640, 480)),
}
DESCRIBE = "What do we see in this image?"


def draw_examples(folder: Path) -> None:
    """Write the pictures as PNG."""
    folder.mkdir(exist_ok=True)
    for name, (offset, size) in PICTURES.items():
        drawn = draw_scene(make_scene(HELD_OUT_SEED + offset), size)
        drawn.image.save(folder / f"{name}.png", optimize=True)


def truths() -> list[tuple[list[str], str, str]]:
    """Pictures, question, true answer."""
    scenes = {name: make_scene(HELD_OUT_SEED + offset) for name, (offset, _) in PICTURES.items()}
    made = [([name], DESCRIBE, describe(scene)) for name, scene in scenes.items()]
    made += [([name], "What does the text say?", scenes[name].text or "") for name in ("word", "number")]
    more = "The first" if len(scenes["two_a"].things) > len(scenes["two_b"].things) else "The second"
    return [*made, (["two_a", "two_b"], "Which picture has more shapes?", more)]


def check_examples(folder: Path, model_folder: Path) -> bool:
    """Ask the exported model; prints a table and says whether all answers are true."""
    processor = AutoProcessor.from_pretrained(model_folder)
    model = AutoModelForImageTextToText.from_pretrained(model_folder).eval()
    right = True
    for names, question, truth in truths():
        content = [{"type": "image", "image": Image.open(folder / f"{name}.png")} for name in names]
        messages = [{"role": "user", "content": [*content, {"type": "text", "text": question}]}]
        inputs = processor.apply_chat_template(
            messages, add_generation_prompt=True, tokenize=True, return_dict=True, return_tensors="pt"
        )
        ids = model.generate(**inputs, max_new_tokens=96)[0, inputs["input_ids"].shape[1] :]
        answer = processor.decode(ids, skip_special_tokens=True)
        right = right and answer == truth
        print(f"| {', '.join(names)} | {question} | {truth} | {'true' if answer == truth else 'WRONG: ' + answer} |")
    return right


if __name__ == "__main__":
    root = Path(__file__).parents[2]
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pictures", type=Path, default=root / "examples")
    parser.add_argument("--model", type=Path, default=root / "src" / "behold" / "demo")
    arguments = parser.parse_args()
    draw_examples(arguments.pictures)
    sys.exit(not check_examples(arguments.pictures, arguments.model))
