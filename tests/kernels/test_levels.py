"""AVX2 and AVX-512 give the same bits: an answer does not depend on which of the two computed it."""

from __future__ import annotations

import copy
import ctypes
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import behold
from behold.kernels import native
from behold.kernels.attention_q8 import Rounded
from behold.quant.linear import Int4Linear, Int8Linear, QuantizedLinear

SCENE = Path(__file__).parents[2] / "examples" / "scene.png"
LIBRARIES = {path.name.split(".")[0]: path for path in native.libraries()}

pytestmark = pytest.mark.skipif("_native_avx512" not in LIBRARIES, reason="this CPU has no AVX-512 with VNNI")


@pytest.fixture(scope="module")
def both() -> list[ctypes.CDLL]:
    loaded = [native.load(LIBRARIES[name]) for name in ("_native_avx2", "_native_avx512")]
    return [library for library in loaded if library is not None]


def loud(rows: int, k: int) -> Tensor:
    """Rows with channels that leave the window: by little, and by more than a byte has room for."""
    x = torch.randn(rows, k)
    x[:, torch.randperm(k)[:6]] *= 50
    x[:, torch.randperm(k)[:3]] *= 4
    return x


@pytest.mark.parametrize("kind", [Int8Linear, Int4Linear])
@pytest.mark.parametrize("shape", [(33, 160), (400, 1024), (1000, 1152)])
@torch.inference_mode()
def test_layers(
    both: list[ctypes.CDLL], kind: type[QuantizedLinear], shape: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    n, k = shape
    layer = kind.of(nn.Linear(k, n))
    for rows in (1, 2, 3, 7, 12, 17, 100):
        x, found = loud(rows, k), list[Tensor]()
        for library in both:
            monkeypatch.setattr(native, "LIBRARY", library)
            found.append(copy.deepcopy(layer)(x))
        assert torch.equal(*found), rows


@pytest.mark.parametrize("dim", [16, 72, 128])
@torch.inference_mode()
def test_attention_of_a_picture(both: list[ctypes.CDLL], dim: int, monkeypatch: pytest.MonkeyPatch) -> None:
    joined, found = torch.randn(2, 130, 3 * 2 * dim), list[Tensor]()
    for library in both:
        monkeypatch.setattr(native, "LIBRARY", library)
        found.append(Rounded(joined, 2).attend(0, 130))
    assert torch.equal(*found)


@pytest.mark.parametrize("quantize", ["int8", "int4"])
def test_a_whole_model(both: list[ctypes.CDLL], quantize: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Prompts, pictures and later tokens: probabilities to the last place, and what is answered."""
    found = []
    for library in both:
        monkeypatch.setattr(native, "LIBRARY", library)
        vlm = behold.load("demo", quantize=quantize, dtype="float32")
        labels = vlm.choose(SCENE, "How many shapes are there?", ["One", "Three", "A red circle"])
        found.append((labels.logprobs, str(vlm.ask(SCENE, "What do we see in this image?"))))
    assert found[0] == found[1]
