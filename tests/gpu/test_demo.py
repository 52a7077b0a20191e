"""The bundled checkpoint on this device answers as it does on the CPU."""

from __future__ import annotations

import functools
from pathlib import Path

import pytest
import torch

import behold

PICTURE = Path(__file__).parents[2] / "examples" / "scene.png"
QUESTIONS = ("What do we see in this image?", "How many shapes are there?")


@functools.cache
def on_cpu(question: str) -> str:
    return behold.load("demo", device="cpu", dtype="float32").ask(PICTURE, question)


@pytest.mark.parametrize("question", QUESTIONS)
def test_answers(question: str, device: torch.device, dtype: torch.dtype) -> None:
    vlm = behold.load("demo", device=device, dtype=dtype)
    assert (vlm.model.device.type, vlm.model.dtype) == (device.type, dtype)
    assert vlm.ask(PICTURE, question) == on_cpu(question)


def test_streaming_and_batches(device: torch.device, dtype: torch.dtype) -> None:
    vlm = behold.load("demo", device=device, dtype=dtype)
    assert "".join(vlm.stream(PICTURE, QUESTIONS[0])) == on_cpu(QUESTIONS[0])
    assert vlm.batch([(PICTURE, question) for question in QUESTIONS]) == [on_cpu(question) for question in QUESTIONS]


def test_int8(device: torch.device) -> None:
    vlm = behold.load("demo", device=device, quantize="int8")
    assert vlm.ask(PICTURE, QUESTIONS[1]) == on_cpu(QUESTIONS[1])


def test_auto_picks_the_gpu(device: torch.device) -> None:
    if device.type != "cuda":
        pytest.skip(f"{device} is not what auto picks first")
    assert behold.load("demo").model.device.type == "cuda"
