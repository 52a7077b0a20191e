"""Every layout is decoded to what its description says, one weight at a time."""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from behold.checkpoint.prequantized.formats import read_prequantized
from behold.checkpoint.prequantized.layout import PackedWeight
from behold.checkpoint.weights import stored_tensors
from tests.checkpoint.prequantized import packing
from tests.checkpoint.prequantized.packing import Packed

part = functools.partial
LAYOUTS: dict[str, tuple[Callable[..., Packed], tuple[int, int]]] = {
    "gptq-4": (packing.gptq, (16, 64)),
    "gptq-8": (part(packing.gptq, bits=8, group=16), (8, 32)),
    "gptq-v2": (part(packing.gptq, version=2), (16, 64)),
    "gptq-8-v2": (part(packing.gptq, bits=8, version=2), (12, 64)),
    "gptq-rows": (part(packing.gptq, group=-1), (8, 40)),
    "gptq-order": (part(packing.gptq, order=True), (24, 96)),
    "gptq-order-ragged": (part(packing.gptq, order=True, bits=8), (8, 72)),
    "gptq-one-word": (packing.gptq, (8, 8)),
    "gptq-ragged": (packing.gptq, (8, 40)),
    "awq": (packing.awq, (16, 64)),
    "awq-rows": (part(packing.awq, group=-1), (24, 40)),
    "bnb-8": (packing.bnb8, (5, 7)),
    "bnb-nf4": (packing.bnb4, (6, 64)),
    "bnb-nf4-blocks-across-rows": (packing.bnb4, (5, 7)),
    "bnb-fp4": (part(packing.bnb4, kind="fp4", block=32), (4, 40)),
    "bnb-nested": (part(packing.bnb4, nested=True, block=32), (64, 160)),
    "bnb-nested-odd": (part(packing.bnb4, nested=True), (9, 33)),
    "bnb-in-bfloat16": (part(packing.bnb4, storage=torch.bfloat16), (6, 64)),
    "bnb-in-float32": (part(packing.bnb4, storage=torch.float32), (6, 64)),
    "packed-4": (packing.compressed, (6, 64)),
    "packed-8": (part(packing.compressed, bits=8), (6, 64)),
    "packed-4-asymmetric": (part(packing.compressed, symmetric=False), (12, 64)),
    "packed-4-one-word": (part(packing.compressed, symmetric=False, group=None), (3, 5)),
    "packed-8-asymmetric-rows": (part(packing.compressed, bits=8, group=None, symmetric=False), (7, 33)),
    "int-quantized": (packing.compressed_int, (6, 10)),
    "fp8-blocks": (packing.fp8, (48, 64)),
    "fp8-ragged-blocks": (packing.fp8, (40, 72)),
    "fp8-tensor": (part(packing.fp8, block=None), (4, 6)),
}


def weight(n_out: int, n_in: int) -> packing.Floats:
    generator = np.random.default_rng(n_out * n_in)
    return generator.standard_normal((n_out, n_in)).astype(np.float32) * np.float32(0.4)


def gathered(folder: Path, packed: Packed, **config: Any) -> dict[str, Any]:
    """The table of stored weights with one packed layer `a.b` in it, and a plain one."""
    parts = {f"a.b.{ending}": tensor for ending, tensor in packed.parts.items()}
    save_file(parts | {"a.c.weight": torch.ones(2, 2), "a.b.bias": torch.ones(2)}, folder / "model.safetensors")
    arrived = read_prequantized({"quantization_config": packed.config | config})
    assert arrived is not None
    return dict(arrived.gather(stored_tensors(folder)))


@pytest.mark.parametrize("name", LAYOUTS)
def test_weights_are_those_that_were_packed(tmp_path: Path, name: str) -> None:
    pack, shape = LAYOUTS[name]
    packed = pack(weight(*shape))
    found = gathered(tmp_path, packed)
    assert set(found) == {"a.b.weight", "a.b.bias", "a.c.weight"}, "every part is used, and nothing else"
    entry = found["a.b.weight"]
    assert isinstance(entry, PackedWeight) and entry.shape == shape
    unused = sum(tensor.nbytes for ending, tensor in packed.parts.items() if ending.startswith("input"))
    assert entry.n_bytes == sum(tensor.nbytes for tensor in packed.parts.values()) - unused
    value = entry.read()
    assert value.dtype is torch.float32
    torch.testing.assert_close(value, packed.expected, rtol=3e-7, atol=1e-8)
    assert float((value - torch.from_numpy(weight(*shape))).abs().max()) < 0.5, "and they are near the original"


@pytest.mark.parametrize("name", ["gptq-4", "awq", "bnb-nf4", "packed-4", "bnb-8", "fp8-blocks", "packed-8"])
def test_the_width_is_known_before_anything_is_read(tmp_path: Path, name: str) -> None:
    pack, shape = LAYOUTS[name]
    arrived = read_prequantized({"quantization_config": pack(weight(*shape)).config})
    assert arrived is not None
    assert arrived.bits == (8 if name.endswith("8") or name.startswith("fp8") else 4)
    assert f"{arrived.bits} bits" in arrived.name or arrived.name == "fp8"


def test_a_checkpoint_that_is_not_quantized() -> None:
    assert read_prequantized({}) is None
    assert read_prequantized({"quantization_config": None, "text_config": {}}) is None


def test_the_config_may_be_that_of_the_text_model_or_older() -> None:
    for config in (
        {"text_config": {"quantization_config": packing.awq(weight(8, 32)).config}},
        {"quantization_config": {"_load_in_4bit": True, "load_in_4bit": True}},
        {"quantization_config": packing.compressed(weight(8, 32)).config | {"quant_method": "compressed_tensors"}},
    ):
        arrived = read_prequantized(config)
        assert arrived is not None and arrived.bits == 4


def test_zero_points_that_borrowed_from_their_neighbours(tmp_path: Path) -> None:
    """Taking one from whole words lets a zero of 0 borrow from the next field; adding one to whole words repays it."""
    values = weight(16, 64)
    values[::8] = np.abs(values[::8])
    packed = packing.gptq(values, version=2)
    assert not (packed.parts["qzeros"] & 15).any(), "the lowest zero point of every word is 0"
    packed.parts["qzeros"] -= 0x11111111
    found = gathered(tmp_path, packed, checkpoint_format="gptq")
    torch.testing.assert_close(found["a.b.weight"].read(), packed.expected, rtol=3e-7, atol=1e-8)


def test_zero_points_of_older_compressed_tensors_are_plain(tmp_path: Path) -> None:
    packed = packing.compressed(weight(8, 64), symmetric=False)
    words = packed.parts["weight_zero_point"]
    fields = torch.stack([words >> 4 * place & 15 for place in range(8)], dim=1).flatten(0, 1)
    packed.parts["weight_zero_point"] = (fields - 8).to(torch.int8)
    packed.parts["weight_g_idx"] = torch.full((64,), -1, dtype=torch.int32)  # columns are in their order
    found = gathered(tmp_path, packed)
    torch.testing.assert_close(found["a.b.weight"].read(), packed.expected, rtol=3e-7, atol=1e-8)


def test_columns_of_older_compressed_tensors_have_groups(tmp_path: Path) -> None:
    groups = (torch.arange(64) // 32)[torch.randperm(64, generator=torch.Generator().manual_seed(0))]
    codes, scale = packing.compressed_int(weight(8, 64)).parts["weight"], torch.rand(8, 2)
    parts = {"weight": codes, "weight_scale": scale, "weight_g_idx": groups.int()}
    config = packing.compressed_config("int-quantized", strategy="group", group_size=32)
    value = gathered(tmp_path, Packed(parts, codes, config))["a.b.weight"].read()
    torch.testing.assert_close(value, codes.float() * scale[:, groups])


def test_config_groups_of_different_widths(tmp_path: Path) -> None:
    """A layer is read by the group that its parts fit."""
    narrow, wide = packing.compressed(weight(4, 64)), packing.compressed(weight(4, 64), bits=8, group=None)
    groups = [packed.config["config_groups"]["group_0"] for packed in (narrow, wide)]
    for group in groups:
        group["format"] = "pack-quantized"
    config = narrow.config | {"config_groups": dict(zip("ab", groups, strict=True)), "format": "mixed-precision"}
    arrived = read_prequantized({"quantization_config": config})
    assert arrived is not None and arrived.bits == 8
    for packed in (narrow, wide):
        value = gathered(tmp_path, Packed(packed.parts, packed.expected, config))["a.b.weight"].read()
        torch.testing.assert_close(value, packed.expected, rtol=3e-7, atol=1e-8)


def test_a_weight_larger_than_one_piece(tmp_path: Path) -> None:
    """Rows are decoded in pieces; the seams do not show."""
    codes = torch.randint(-127, 128, (1100, 2000), generator=torch.Generator().manual_seed(0), dtype=torch.int8)
    packed = packing.bnb8(weight(1, 1))
    packed.parts |= {"weight": codes, "SCB": torch.arange(1100).float()}
    value = gathered(tmp_path, packed)["a.b.weight"].read()
    torch.testing.assert_close(value, codes.float() * (torch.arange(1100).float() / 127)[:, None])


def test_groups_of_zeros_are_zeros(tmp_path: Path) -> None:
    packed = packing.gptq(weight(8, 64))
    packed.parts["scales"][1] = 0
    value = gathered(tmp_path, packed)["a.b.weight"].read()
    assert not value[:, 32:].any() and torch.equal(value[:, :32], packed.expected[:, :32])
