"""The code of transformers' image-text-to-text page, run with only the import line changed.

Each snippet is one text: it runs once with `transformers` and once with `behold`, on the same tiny checkpoints, and
must leave the same results behind.
"""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import pytest

from tests import toys

CHAT_WITH_TWO_IMAGES = """
import torch
from PIL import Image
from LIBRARY import AutoProcessor, AutoModelForImageTextToText

device = torch.device("cpu")
model = AutoModelForImageTextToText.from_pretrained(
    "IDEFICS2",
    dtype=torch.float32,
    attn_implementation="sdpa",
).to(device)

processor = AutoProcessor.from_pretrained("IDEFICS2")
images = [Image.open("FIRST.png"), Image.open("SECOND.png")]

messages = [
    {
        "role": "user",
        "content": [
            {"type": "image"},
            {"type": "text", "text": "What do we see in this image?"},
        ]
    },
    {
        "role": "assistant",
        "content": [
            {"type": "text", "text": "In this image we can see two cats on the nets."},
        ]
    },
    {
        "role": "user",
        "content": [
            {"type": "image"},
            {"type": "text", "text": "And how about this image?"},
        ]
    },
]

prompt = processor.apply_chat_template(messages, add_generation_prompt=True)
inputs = processor(text=prompt, images=[images[0], images[1]], return_tensors="pt").to(device)

with torch.no_grad():
    generated_ids = model.generate(**inputs, max_new_tokens=20)
generated_texts = processor.batch_decode(generated_ids, skip_special_tokens=True)

shapes = {name: tuple(value.shape) for name, value in inputs.items()}
results = [prompt, shapes, generated_ids.tolist(), generated_texts]
"""

PIPELINE = """
from LIBRARY import pipeline
pipe = pipeline("image-text-to-text", model="LLAVA", device="cpu")
messages = [
    {
        "role": "user",
        "content": [
            {"type": "image", "image": "FIRST.png"},
            {"type": "text", "text": "Describe this image."},
        ],
    },
    {
        "role": "assistant",
        "content": [
            {"type": "text", "text": "There's a"},
        ],
    },
]
outputs = pipe(text=messages, max_new_tokens=20, return_full_text=False)
results = [outputs[0]["generated_text"], outputs]
outputs = pipe(text=messages, max_new_tokens=20)
results.append(outputs)
"""

STREAMING = """
import threading
import time

import torch
from PIL import Image
from LIBRARY import AutoModelForImageTextToText, AutoProcessor, TextIteratorStreamer

model = AutoModelForImageTextToText.from_pretrained("IDEFICS2", dtype=torch.float32)
processor = AutoProcessor.from_pretrained("IDEFICS2")

def model_inference(user_prompt, chat_history, max_new_tokens, images):
    user_prompt = {
        "role": "user",
        "content": [
            {"type": "image"},
            {"type": "text", "text": user_prompt},
        ]
    }
    chat_history.append(user_prompt)
    streamer = TextIteratorStreamer(
        processor.tokenizer,
        skip_prompt=True,
        timeout=30.0,
    )

    generation_args = {
        "max_new_tokens": max_new_tokens,
        "streamer": streamer,
        "do_sample": False
    }

    # add_generation_prompt=True makes model generate bot response
    prompt = processor.apply_chat_template(chat_history, add_generation_prompt=True)
    inputs = processor(
        text=prompt,
        images=images,
        return_tensors="pt",
    ).to("cpu")
    generation_args.update(inputs)

    thread = threading.Thread(target=model.generate, kwargs=generation_args)
    thread.start()

    acc_text = ""
    for text_token in streamer:
        time.sleep(0.001)
        acc_text += text_token
        if acc_text.endswith("<end_of_utterance>"):
            acc_text = acc_text[:-18]
        yield acc_text

    thread.join()

generator = model_inference(
    user_prompt="And what is in this image?",
    chat_history=[],
    max_new_tokens=24,
    images=[Image.open("FIRST.png")],
)
for value in generator:
    last = value
results = [last]
"""

CAPTIONING = """
import torch
from LIBRARY import AutoProcessor, AutoModelForImageTextToText

processor = AutoProcessor.from_pretrained("LLAVA")
model = AutoModelForImageTextToText.from_pretrained("LLAVA", torch_dtype=torch.float32, low_cpu_mem_usage=True).eval()
processor.tokenizer.padding_side = "left"

conversation = [
    {
        "role": "user",
        "content": [
            {"type": "image", "url": "FIRST.png"},
            {"type": "text", "text": "What is shown in this image?"},
        ],
    },
]
other = [
    {
        "role": "user",
        "content": [
            {"type": "image", "path": "SECOND.png"},
            {"type": "image", "path": "FIRST.png"},
            {"type": "text", "text": "What is the difference, if there is any?"},
        ],
    },
]
inputs = processor.apply_chat_template(
    [conversation, other],
    add_generation_prompt=True,
    tokenize=True,
    return_dict=True,
    return_tensors="pt",
    padding=True,
).to(model.device, torch.float32)
generate_ids = model.generate(**inputs, do_sample=False, max_new_tokens=30)
results = [
    inputs["input_ids"].tolist(), inputs.attention_mask.tolist(), generate_ids.tolist(),
    processor.batch_decode(generate_ids, skip_special_tokens=True),
    processor.batch_decode(generate_ids[:, inputs["input_ids"].shape[1]:], skip_special_tokens=True),
    processor.decode(generate_ids[0], skip_special_tokens=True),
    model.config.text_config.hidden_size, model.config.image_token_id, model.config.model_type,
]
"""

BASE_MODEL = """
import torch
from PIL import Image
from LIBRARY import AutoProcessor, AutoModelForImageTextToText

processor = AutoProcessor.from_pretrained("IDEFICS2")
model = AutoModelForImageTextToText.from_pretrained("IDEFICS2", dtype=torch.float32)
image1, image2 = Image.open("FIRST.png"), Image.open("SECOND.png")

BAD_WORDS_IDS = processor.tokenizer(["<image>", "<fake_token_around_image>"], add_special_tokens=False).input_ids
EOS_WORDS_IDS = [processor.tokenizer.eos_token_id]

prompts = [
  "<image>In this image, we can see the city of New York.<image>In this image,",
  "In which city is that bridge located?<image>",
]
images = [[image1, image2], [image2]]
inputs = processor(images=images, text=prompts, padding=True, padding_side="left", return_tensors="pt").to("cpu")
generated_ids = model.generate(**inputs, bad_words_ids=BAD_WORDS_IDS, eos_token_id=EOS_WORDS_IDS, max_new_tokens=20)
generated_texts = processor.batch_decode(generated_ids, skip_special_tokens=True)
results = [BAD_WORDS_IDS, EOS_WORDS_IDS, inputs.input_ids.tolist(), generated_ids.tolist(), generated_texts]
"""

QUANTO = """
import torch
from PIL import Image
from LIBRARY import AutoModelForImageTextToText, AutoProcessor, QuantoConfig

model_id = "LLAVA"
quantization_config = QuantoConfig(weights="int8")
quantized_model = AutoModelForImageTextToText.from_pretrained(
    model_id, device_map="cpu", quantization_config=quantization_config
)
processor = AutoProcessor.from_pretrained(model_id)
messages = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "What do we see?"}]}]
prompt = processor.apply_chat_template(messages, add_generation_prompt=True)
inputs = processor(text=prompt, images=[Image.open("FIRST.png")], return_tensors="pt")
generated_ids = quantized_model.generate(**inputs, max_new_tokens=8)
logits = quantized_model(**inputs).logits
"""

BOTH = {
    "chat with two images": CHAT_WITH_TWO_IMAGES,
    "pipeline with a started answer": PIPELINE,
    "streaming from a thread": STREAMING,
    "captioning a batch": CAPTIONING,
    "base model with forbidden words": BASE_MODEL,
}


def run(snippet: str, library: str, folder: Path) -> dict[str, Any]:
    """The names a snippet leaves behind, with `library` in its import line."""
    toys._quiet()
    for name, seed in (("FIRST.png", 0), ("SECOND.png", 1)):
        if not (folder / name).exists():
            toys.picture(40 + 9 * seed, 30 + 15 * seed, seed).save(folder / name)
        snippet = snippet.replace(name, str(folder / name))
    snippet = snippet.replace("IDEFICS2", str(toys.checkpoint("idefics2-split")))
    snippet = snippet.replace("LLAVA", str(toys.checkpoint("llava-siglip-qwen2"))).replace("LIBRARY", library)
    names: dict[str, Any] = {}
    exec(compile(snippet, f"the page, with {library}", "exec"), names)
    return names


@pytest.mark.parametrize("snippet", BOTH.values(), ids=BOTH)
def test_the_page_gives_the_same_with_only_the_import_changed(snippet: str, tmp_path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        expected = run(snippet, "transformers", tmp_path)["results"]
    assert run(snippet, "behold", tmp_path)["results"] == expected


def test_the_pages_quantization_needs_no_other_package(tmp_path: Path) -> None:
    """quanto is not installed here, so this page's numbers are held against the plain model's."""
    import torch

    import behold

    names = run(QUANTO, "behold", tmp_path)
    plain = behold.AutoModelForImageTextToText.from_pretrained(names["model_id"], dtype=torch.float32)
    quantized = names["quantized_model"]
    assert quantized.get_memory_footprint() < 0.6 * plain.get_memory_footprint()
    with torch.no_grad():
        exact = plain(**names["inputs"]).logits
    error = (names["logits"].float() - exact).norm() / exact.norm()
    assert 0 < error < 0.05, "rounded, and not by much"
    assert names["generated_ids"].shape[1] <= names["inputs"].input_ids.shape[1] + 8
