"""Beside transformers on the same device: logits in both types, generated ids in float32."""

from __future__ import annotations

import functools
from typing import Any

import pytest
import torch
from torch import Tensor

from behold import AutoModelForImageTextToText
from tests import toys


@functools.cache
def theirs(name: str, device: torch.device, dtype: torch.dtype) -> tuple[Any, Any]:
    model, processor = toys.reference(toys.checkpoint(name), device=device, dtype=dtype)
    processor.tokenizer.padding_side = "left"
    return model.to(dtype), processor


@functools.cache
def ours(name: str, device: torch.device, dtype: torch.dtype) -> Any:
    return AutoModelForImageTextToText.from_pretrained(toys.checkpoint(name), dtype=dtype, device_map=str(device))


def batch(name: str, device: torch.device) -> Any:
    """Two rows of different lengths and pictures of different sizes, left-padded by the reference."""
    processor = theirs(name, device, torch.float32)[1]
    pictures = [toys.picture(40, 30, 0), toys.picture(23, 51, 1), toys.picture(56, 56, 2)]
    texts = []
    for count, question in ((2, "What changed between these two pictures?"), (1, "How many shapes?")):
        content = [{"type": "image"}] * count + [{"type": "text", "text": question}]
        texts.append(processor.apply_chat_template([{"role": "user", "content": content}], add_generation_prompt=True))
    images = [pictures[:2], pictures[2:]] if "idefics" in name else pictures
    return processor(text=texts, images=images, padding=True, return_tensors="pt").to(device)


@torch.inference_mode()
def logits(model: Any, inputs: Any) -> Tensor:
    """(rows, V) of the real tokens, in float32 on the CPU: what a model says at padding means nothing."""
    found = model(**inputs).logits.float()
    return found[inputs["attention_mask"].bool()].cpu()


@pytest.mark.parametrize("name", toys.TOYS)
def test_logits(name: str, device: torch.device, dtype: torch.dtype) -> None:
    """float32: equal to rounding. bfloat16: no further from the float32 logits than the reference's bfloat16 is."""
    inputs = batch(name, device)
    truth = logits(theirs(name, device, torch.float32)[0], inputs)
    found = logits(ours(name, device, dtype), inputs)
    if dtype is torch.float32:
        torch.testing.assert_close(found, truth, rtol=1e-4, atol=1e-4)
        return
    error = (found - truth).pow(2).mean().sqrt()
    accepted = (logits(theirs(name, device, dtype)[0], inputs) - truth).pow(2).mean().sqrt()
    assert 0 < error <= 1.5 * accepted


@pytest.mark.parametrize("name", toys.TOYS)
def test_generated_ids(name: str, device: torch.device) -> None:
    inputs = batch(name, device)
    options = {"max_new_tokens": 12, "do_sample": False}
    expected = theirs(name, device, torch.float32)[0].generate(**inputs, **options)
    assert ours(name, device, torch.float32).generate(**inputs, **options).tolist() == expected.tolist()


@pytest.mark.parametrize("name", ["llava-siglip-qwen2", "idefics2-split"])
def test_beams(name: str, device: torch.device) -> None:
    inputs = batch(name, device)
    options = {"max_new_tokens": 8, "do_sample": False, "num_beams": 3}
    expected = theirs(name, device, torch.float32)[0].generate(**inputs, **options)
    assert ours(name, device, torch.float32).generate(**inputs, **options).tolist() == expected.tolist()
