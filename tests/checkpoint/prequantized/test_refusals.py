"""What is damaged, hostile or not supported is an error that says what was found and what to do."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from behold.checkpoint.prequantized.formats import read_prequantized
from behold.checkpoint.weights import stored_tensors
from behold.errors import UnsupportedModelError, WeightsError
from tests.checkpoint.prequantized import packing
from tests.checkpoint.prequantized.packing import Packed
from tests.checkpoint.prequantized.test_layouts import weight

# --- settings ----------------------------------------------------------------------------------------------------

GPTQ, AWQ = packing.gptq(weight(8, 32)).config, packing.awq(weight(8, 32)).config
CT, FP8 = packing.compressed(weight(8, 32)).config, packing.fp8(weight(8, 32)).config


def scheme(**changes: Any) -> dict[str, Any]:
    group = CT["config_groups"]["group_0"]
    return CT | {"config_groups": {"g": group | {"weights": group["weights"] | changes}}}


@pytest.mark.parametrize(
    ("config", "says"),
    [
        ("awq", r"quantization_config='awq'.*gptq"),
        ({}, None),
        ({"quant_method": "aqlm"}, r"quant_method='aqlm'; supported: bitsandbytes, gptq, awq, compressed-tensors, fp8"),
        ({"bits": 4}, r"quant_method=None"),
        ({"quant_method": "bitsandbytes"}, r"load_in_8bit=False, load_in_4bit=False"),
        ({"quant_method": "bitsandbytes", "load_in_8bit": True, "load_in_4bit": True}, r"one of load_in_8bit"),
        (GPTQ | {"bits": 3}, r"bits=3; supported: bits=4, bits=8"),
        (GPTQ | {"bits": True}, r"bits=True"),
        (GPTQ | {"bits": [4]}, r"bits=\[4\]"),
        (GPTQ | {"checkpoint_format": "marlin"}, r"checkpoint_format='marlin'.*'gptq_v2'"),
        (GPTQ | {"group_size": 0}, r"group_size=0"),
        (GPTQ | {"group_size": "128"}, r"group_size='128'"),
        (GPTQ | {"dynamic": {"-:skipped": {}, "+:.*down.*": {"bits": 8}}}, r"its own bits; supported: one width"),
        (AWQ | {"version": "GEMV"}, r"version='gemv'; supported: version='gemm'"),
        (AWQ | {"version": "gemv_fast"}, r"version='gemv_fast'"),
        (AWQ | {"bits": 8}, r"bits=8; supported: bits=4"),
        (AWQ | {"zero_point": False}, r"zero_point=False"),
        (AWQ | {"group_size": -2}, r"group_size=-2"),
        (FP8 | {"scale_fmt": "ue8m0"}, r"scale_fmt='ue8m0'"),
        (FP8 | {"weight_scale_semantics": "inverse"}, r"weight_scale_semantics='inverse'"),
        (FP8 | {"weight_block_size": [128]}, r"blocks of \[128\]"),
        (FP8 | {"weight_block_size": [128, 0]}, r"blocks of \[128, 0\]"),
        (CT | {"format": "nvfp4-pack-quantized"}, r"format='nvfp4-pack-quantized'"),
        (CT | {"format": None}, r"format=None"),
        (CT | {"sparsity_config": {"format": "sparse-24-bitmask"}}, r"sparse-24-bitmask"),
        (CT | {"transform_config": {"config_groups": {"R1": {}}}}, r"rotated"),
        (CT | {"config_groups": {"W4A16": ["Linear"]}}, r"config_groups="),
        (CT | {"config_groups": None}, r"config_groups=None"),
        (CT | {"config_groups": {"g": {"targets": ["Linear"], "weights": None}}}, r"no config group has weights"),
        (scheme(num_bits=3), r"num_bits=3; supported: num_bits=4, num_bits=8"),
        (scheme(type="float"), r"type='float'"),
        (scheme(strategy="tensor_group"), r"strategy='tensor_group'"),
        (scheme(group_size=0), r"group_size=0"),
        (scheme(strategy="block", block_structure="2x4"), r"blocks of '2x4'"),
    ],
)
def test_settings_that_are_not_supported(config: Any, says: str | None) -> None:
    if says is None:
        assert read_prequantized({"quantization_config": config}) is None
        return
    with pytest.raises(UnsupportedModelError, match=says) as caught:
        read_prequantized({"quantization_config": config})
    assert 'quantize="int8"' in str(caught.value)


# --- parts -------------------------------------------------------------------------------------------------------


def value_of(folder: Path, packed: Packed) -> torch.Tensor:
    """The weight of the layer `a.b`."""
    parts = {f"a.b.{ending}": tensor.contiguous() for ending, tensor in packed.parts.items()}
    save_file(parts, folder / "model.safetensors")
    arrived = read_prequantized({"quantization_config": packed.config})
    assert arrived is not None
    return arrived.gather(stored_tensors(folder))["a.b.weight"].read()


def refused(folder: Path, packed: Packed) -> str:
    with pytest.raises(WeightsError) as caught:
        value_of(folder, packed)
    message = str(caught.value)
    assert "a.b.weight" in message and str(folder) in message and 'quantize="int8"' in message
    return message


PACKERS: dict[str, Callable[[packing.Floats], Packed]] = {
    "gptq": packing.gptq,
    "gptq-order": lambda values: packing.gptq(values, order=True),
    "awq": packing.awq,
    "bnb8": packing.bnb8,
    "bnb4": packing.bnb4,
    "nested": lambda values: packing.bnb4(values, nested=True),
    "packed": packing.compressed,
    "asymmetric": lambda values: packing.compressed(values, symmetric=False),
    "int": packing.compressed_int,
    "fp8": packing.fp8,
}
# without these a layer is complete, or not a packed one at all
OPTIONAL = {"gptq": {"g_idx", "qweight"}, "gptq-order": {"qweight"}, "awq": {"qweight"}, "bnb8": {"SCB"}}
OPTIONAL |= {"int": {"weight_scale", "input_scale"}, "fp8": {"weight_scale_inv"}}
EACH = [
    (name, ending)
    for name, pack in PACKERS.items()
    for ending in pack(weight(16, 64)).parts
    if ending not in OPTIONAL.get(name, set()) | {"weight_format"}
]


@pytest.mark.parametrize(("name", "ending"), EACH)
def test_a_part_that_is_missing(tmp_path: Path, name: str, ending: str) -> None:
    packed = PACKERS[name](weight(16, 64))
    del packed.parts[ending]
    message = refused(tmp_path, packed)
    assert "missing" in message or "expected" in message


@pytest.mark.parametrize(("name", "ending"), EACH)
def test_a_part_that_is_cut_short(tmp_path: Path, name: str, ending: str) -> None:
    packed = PACKERS[name](weight(32, 64))
    part = packed.parts[ending]
    packed.parts[ending] = part[:1] if ending == "weight" else part[:-1]
    assert "expected" in (message := refused(tmp_path, packed)) or "not valid JSON" in message


@pytest.mark.parametrize(("name", "ending"), EACH)
def test_a_part_of_another_type(tmp_path: Path, name: str, ending: str) -> None:
    packed = PACKERS[name](weight(16, 64))
    packed.parts[ending] = packed.parts[ending].to(torch.float64)
    message = refused(tmp_path, packed)
    assert "F64" in message and "expected" in message


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize(
    ("name", "ending"),
    [
        ("gptq", "scales"),
        ("awq", "scales"),
        ("bnb8", "SCB"),
        ("bnb4", "weight.absmax"),
        ("bnb4", "weight.quant_map"),
        ("nested", "weight.nested_absmax"),
        ("packed", "weight_scale"),
        ("int", "weight_scale"),
        ("fp8", "weight_scale_inv"),
    ],
)
def test_scales_that_are_not_numbers(tmp_path: Path, name: str, ending: str, value: float) -> None:
    packed = PACKERS[name](weight(16, 64))
    packed.parts[ending].view(-1)[0] = value
    assert "not all finite" in refused(tmp_path, packed)


@pytest.mark.parametrize("group", [-2, 2, 2**30])
def test_a_group_that_does_not_exist(tmp_path: Path, group: int) -> None:
    packed = packing.gptq(weight(16, 64), order=True)
    packed.parts["g_idx"][3] = group
    assert "outside of 0 … 1" in refused(tmp_path, packed)


@pytest.mark.parametrize(
    ("name", "changes"),
    [
        ("gptq", {"group_size": 2**70}),
        ("gptq", {"group_size": 1}),
        ("gptq", {"bits": 8}),
        ("awq", {"group_size": 2**70}),
        ("packed", scheme(group_size=2**70)),
        ("packed", scheme(num_bits=8)),
        ("packed", scheme(strategy="channel", group_size=None)),
        ("fp8", {"weight_block_size": [2**70, 2**70]}),
    ],
)
def test_settings_that_the_parts_do_not_have(tmp_path: Path, name: str, changes: dict[str, Any]) -> None:
    """Also where a setting is so large that memory for it would never do: it is compared, not used."""
    packed = PACKERS[name](weight(16, 64))
    packed.config |= changes
    assert "expected" in refused(tmp_path, packed)


def test_a_group_larger_than_the_row_is_one_group(tmp_path: Path) -> None:
    packed = packing.gptq(weight(16, 64), group=-1)
    packed.config["group_size"] = 2**70
    torch.testing.assert_close(value_of(tmp_path, packed), packed.expected, rtol=3e-7, atol=1e-8)


# --- the description of a 4-bit weight ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"blocksize": 0}, r"blocksize=0"),
        ({"blocksize": 2**40}, r"blocksize=1099511627776"),
        ({"blocksize": 64.0}, r"blocksize=64.0"),
        ({"blocksize": None}, r"blocksize=None"),
        ({"blocksize": 32}, r"absmax is U8 \[16\], expected U8 \[32\]"),
        ({"shape": [2**40, 2**40]}, r"weight has 512 bytes"),
        ({"shape": [-16, -64]}, r"shape=\[-16, -64\]"),
        ({"shape": "16x64"}, r"shape='16x64'"),
        ({"shape": None}, r"shape=None"),
        ({"nested_blocksize": 3}, r"nested_blocksize=3"),
        ({"nested_offset": None}, r"nested_offset=None"),
        ({"nested_offset": float("nan")}, r"nested_offset=nan"),
    ],
)
def test_a_description_that_cannot_be(tmp_path: Path, changes: dict[str, Any], says: str) -> None:
    packed = packing.bnb4(weight(16, 64), nested=True)
    key = "weight.quant_state.bitsandbytes__nf4"
    state = json.loads(bytes(packed.parts[key].tolist())) | changes
    packed.parts[key] = torch.tensor(list(json.dumps(state).encode()), dtype=torch.uint8)
    assert re.search(says, refused(tmp_path, packed))


@pytest.mark.parametrize("content", [b"", b"[]", b"{", b"\xff\xfe", b'{"a": ' + b" " * 70_000 + b"1}"])
def test_a_description_that_is_none(tmp_path: Path, content: bytes) -> None:
    packed = packing.bnb4(weight(16, 64))
    packed.parts["weight.quant_state.bitsandbytes__nf4"] = torch.tensor(list(content), dtype=torch.uint8)
    assert "its quant_state" in refused(tmp_path, packed)


# --- the rest ----------------------------------------------------------------------------------------------------


def test_an_order_of_one_kind_of_gpu(tmp_path: Path) -> None:
    packed = packing.bnb8(weight(4, 8))
    packed.parts["weight_format"].fill_(2)
    assert "weight_format is 2" in refused(tmp_path, packed)


@pytest.mark.parametrize(("name", "ending"), [("gptq", "qweight"), ("awq", "qweight"), ("bnb8", "weight"),
                                              ("int", "weight"), ("fp8", "weight")])  # fmt: skip
def test_weights_with_other_than_two_sides(tmp_path: Path, name: str, ending: str) -> None:
    packed = PACKERS[name](weight(16, 64))
    packed.parts[ending] = packed.parts[ending].flatten()
    assert "expected two" in refused(tmp_path, packed)


@pytest.mark.parametrize("sides", [[16, -64], [0, 0], [2**62, 2**62]])
def test_a_shape_that_cannot_be(tmp_path: Path, sides: list[int]) -> None:
    packed = packing.compressed(weight(16, 64))
    packed.parts["weight_shape"] = torch.tensor(sides)
    assert "expected" in refused(tmp_path, packed)


def test_parts_of_another_format_of_the_same_program(tmp_path: Path) -> None:
    packed, plain = packing.compressed(weight(16, 64)), packing.compressed_int(weight(16, 64))
    assert "which its config group does not say" in refused(
        tmp_path, Packed(packed.parts, plain.expected, plain.config)
    )
    assert "packed is missing" in refused(tmp_path, Packed(plain.parts, plain.expected, packed.config))
    packed.parts["weight"] = plain.parts["weight"]
    assert "both plain and packed" in refused(tmp_path, packed)


def test_a_zero_point_beside_floats(tmp_path: Path) -> None:
    packed = packing.fp8(weight(16, 64), block=None)
    config = packing.compressed_config("float-quantized", num_bits=8, type="float", strategy="tensor")
    packed.parts["weight_zero_point"] = torch.zeros(1, dtype=torch.int8)
    assert "zero point beside float8" in refused(tmp_path, Packed(packed.parts, packed.expected, config))
    del packed.parts["weight_zero_point"]
    value = value_of(tmp_path, Packed(packed.parts, packed.expected, config))
    torch.testing.assert_close(value, packed.expected, rtol=3e-7, atol=1e-8)


def test_a_weight_that_is_stored_twice(tmp_path: Path) -> None:
    packed = packing.awq(weight(8, 32))
    packed.parts["weight"] = packed.expected
    assert "both plain and packed" in refused(tmp_path, packed)


def test_a_long_report_is_cut_short(tmp_path: Path) -> None:
    qweight = packing.awq(weight(8, 32)).parts["qweight"]
    save_file({f"{i}.qweight": qweight.clone() for i in range(9)}, tmp_path / "model.safetensors")
    arrived = read_prequantized({"quantization_config": AWQ})
    assert arrived is not None
    with pytest.raises(WeightsError, match=r"0\.weight: its qzeros is missing[^$]*and 5 more"):
        arrived.gather(stored_tensors(tmp_path))
