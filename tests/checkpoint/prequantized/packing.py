"""Packs weights the way other quantizers publish them: integer by integer, from the layouts' descriptions.

packed = gptq(weight, bits=4, group=32)
packed.parts      {"qweight": …, "qzeros": …} by the ending behind the layer's name
packed.expected   the float32 weights that they stand for, from a formula for one weight at a time
packed.config     the quantization_config that announces them
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

Floats = NDArray[np.float32]
Integers = NDArray[np.int64]


@dataclass
class Packed:
    parts: dict[str, torch.Tensor]
    expected: torch.Tensor
    config: dict[str, Any] = field(default_factory=dict)


def words(values: Integers, bits: int) -> NDArray[np.int32]:
    """Rows of non-negative integers as 32-bit words: the first value in the lowest bits."""
    per_word = 32 // bits
    rows = []
    for row in values.tolist():
        filled = row + [0] * (-len(row) % per_word)
        packed = [
            sum(value << bits * place for place, value in enumerate(filled[start : start + per_word]))
            for start in range(0, len(filled), per_word)
        ]
        rows.append([word - (1 << 32) if word >> 31 else word for word in packed])
    return np.array(rows, dtype=np.int32)


def affine(weight: Floats, bits: int, groups: list[int], lowest_zero: int = 1) -> tuple[Integers, Integers, Floats]:
    """(codes (out, in), zeros (out, G), scales (out, G) of 16 bits) for columns in the given groups."""
    top, index = 2**bits - 1, np.array(groups)
    codes = np.zeros(weight.shape, dtype=np.int64)
    zeros, scales = [], []
    for group in range(max(groups) + 1):
        part = weight[:, index == group]
        low, high = np.minimum(part.min(1), 0), np.maximum(part.max(1), 0)
        scale = np.maximum((high - low) / top, 1e-4).astype(np.float16).astype(np.float32)
        zero = np.clip(np.round(-low / scale), lowest_zero, top).astype(np.int64)
        codes[:, index == group] = np.clip(np.round(part / scale[:, None]) + zero[:, None], 0, top)
        zeros.append(zero)
        scales.append(scale)
    return codes, np.stack(zeros, 1), np.stack(scales, 1).astype(np.float32)


def affine_expected(codes: Integers, zeros: Integers, scales: Floats, groups: list[int]) -> torch.Tensor:
    rows = [
        [np.float32(code - zeros[row, group]) * scales[row, group] for code, group in zip(line, groups, strict=True)]
        for row, line in enumerate(codes.tolist())
    ]
    return torch.from_numpy(np.array(rows, dtype=np.float32))


def gptq(weight: Floats, *, bits: int = 4, group: int = 32, version: int = 1, order: bool = False) -> Packed:
    n_in = weight.shape[1]
    size = n_in if group == -1 else group
    groups = [column // size for column in range(n_in)]
    if order:  # groups hold columns of similar size, so neighbours belong to different ones
        ranks = np.argsort(np.argsort(-np.abs(weight).sum(0), kind="stable"))
        groups = [int(rank) // size for rank in ranks]
    codes, zeros, scales = affine(weight, bits, groups, lowest_zero=2 - version)
    parts = {
        "qweight": torch.from_numpy(words(codes, bits).T.copy()),
        "qzeros": torch.from_numpy(words(zeros.T - (version == 1), bits)),
        "scales": torch.from_numpy(scales.T.copy()).half(),
        "g_idx": torch.tensor(groups, dtype=torch.int32),
    }
    config = {"quant_method": "gptq", "bits": bits, "group_size": group, "desc_act": order, "sym": False}
    config["checkpoint_format"] = "gptq_v2" if version == 2 else "gptq"
    return Packed(parts, affine_expected(codes, zeros, scales, groups), config)


def awq(weight: Floats, *, group: int = 32) -> Packed:
    n_out, n_in = weight.shape
    size = n_in if group == -1 else group
    groups = [column // size for column in range(n_in)]
    codes, zeros, scales = affine(weight, 4, groups, lowest_zero=0)
    shuffled = [start + place for start in range(0, n_out, 8) for place in (0, 2, 4, 6, 1, 3, 5, 7)]
    parts = {
        "qweight": torch.from_numpy(words(codes.T[:, shuffled], 4)),
        "qzeros": torch.from_numpy(words(zeros.T[:, shuffled], 4)),
        "scales": torch.from_numpy(scales.T.copy()).half(),
    }
    config = {"quant_method": "awq", "bits": 4, "group_size": group, "version": "gemm", "zero_point": True}
    return Packed(parts, affine_expected(codes, zeros, scales, groups), config)


def bnb8(weight: Floats) -> Packed:
    largest = np.abs(weight).max(1)
    codes = np.round(weight * (127 / largest)[:, None]).astype(np.int8)
    parts = {"weight": torch.from_numpy(codes), "SCB": torch.from_numpy(largest)}
    parts["weight_format"] = torch.tensor(0, dtype=torch.uint8)
    expected = torch.from_numpy(codes.astype(np.float32)) * (torch.from_numpy(largest)[:, None] / 127)
    return Packed(parts, expected, {"quant_method": "bitsandbytes", "load_in_8bit": True, "load_in_4bit": False})


NF4 = [-1, -0.6961928, -0.52507305, -0.3949175, -0.28444138, -0.18477343, -0.091050036, 0]
NF4 += [0.0795803, 0.1609302, 0.2461123, 0.33791524, 0.44070983, 0.562617, 0.72295684, 1]
FP4 = [value / 12 for value in (0, 0.0625, 8, 12, 4, 6, 2, 3, 0, -0.0625, -8, -12, -4, -6, -2, -3)]


def bnb4(
    weight: Floats,
    *,
    kind: str = "nf4",
    block: int = 64,
    nested: bool = False,
    storage: torch.dtype = torch.uint8,
) -> Packed:
    levels = np.array(NF4 if kind == "nf4" else FP4, dtype=np.float32)
    flat = weight.reshape(-1)
    starts = range(0, len(flat), block)
    absmax = np.array([np.abs(flat[start : start + block]).max() for start in starts], dtype=np.float32)
    state: dict[str, Any] = {"quant_type": kind, "blocksize": block, "dtype": "bfloat16", "shape": list(weight.shape)}
    parts = {}
    if nested:
        steps = np.linspace(-1, 1, 256, dtype=np.float32)
        offset = float(absmax.mean())
        outer = [np.abs(absmax[start : start + 256] - offset).max() or 1 for start in range(0, len(absmax), 256)]
        small = [int(np.abs(steps - (a - offset) / outer[i // 256]).argmin()) for i, a in enumerate(absmax)]
        absmax = np.array([steps[s] * np.float32(outer[i // 256]) for i, s in enumerate(small)], dtype=np.float32)
        absmax = absmax + np.float32(offset)
        parts["weight.nested_absmax"] = torch.tensor(np.array(outer, dtype=np.float32))
        parts["weight.nested_quant_map"] = torch.from_numpy(steps)
        state |= {"nested_blocksize": 256, "nested_dtype": "float32", "nested_offset": offset}
        parts["weight.absmax"] = torch.tensor(small, dtype=torch.uint8)
    else:
        parts["weight.absmax"] = torch.from_numpy(absmax)
    codes = [int(np.abs(levels - value / absmax[i // block]).argmin()) for i, value in enumerate(flat)]
    expected = np.array([levels[code] * absmax[i // block] for i, code in enumerate(codes)], dtype=np.float32)
    halves = codes + [0] * (len(codes) % 2)
    octets = [first * 16 + second for first, second in zip(halves[::2], halves[1::2], strict=True)]
    parts["weight"] = torch.tensor(octets, dtype=torch.uint8).view(storage)[:, None]
    parts["weight.quant_map"] = torch.from_numpy(levels)
    parts[f"weight.quant_state.bitsandbytes__{kind}"] = torch.tensor(
        list(json.dumps(state).encode()), dtype=torch.uint8
    )
    config = {"quant_method": "bitsandbytes", "load_in_4bit": True, "bnb_4bit_quant_type": kind}
    return Packed(parts, torch.from_numpy(expected).view(weight.shape), config)


def compressed(weight: Floats, *, bits: int = 4, group: int | None = 32, symmetric: bool = True) -> Packed:
    """pack-quantized. group: None for one scale a row."""
    n_in = weight.shape[1]
    groups = [column // (group or n_in) for column in range(n_in)]
    codes, zeros, scales = affine(weight, bits, groups, lowest_zero=0)
    if symmetric:
        middle = 1 << bits - 1
        codes = np.clip(codes - zeros[:, groups] + middle, 0, 2**bits - 1)
        zeros = np.full_like(zeros, middle)
    parts = {
        "weight_packed": torch.from_numpy(words(codes, bits)),
        "weight_shape": torch.tensor(weight.shape),
        "weight_scale": torch.from_numpy(scales),
    }
    if not symmetric:
        parts["weight_zero_point"] = torch.from_numpy(words(zeros.T, bits).T.copy())
    strategy = "group" if group else "channel"
    config = compressed_config("pack-quantized", num_bits=bits, type="int", symmetric=symmetric, strategy=strategy)
    config["config_groups"]["group_0"]["weights"]["group_size"] = group
    return Packed(parts, affine_expected(codes, zeros, scales, groups), config)


def compressed_int(weight: Floats) -> Packed:
    """int-quantized, one scale a row, with a scale of the inputs beside it."""
    scales = np.abs(weight).max(1) / np.float32(127)
    codes = np.round(weight / scales[:, None]).astype(np.int8)
    parts = {"weight": torch.from_numpy(codes), "weight_scale": torch.from_numpy(scales)[:, None]}
    parts["input_scale"] = torch.tensor([0.1])
    expected = torch.from_numpy(codes.astype(np.float32) * scales[:, None])
    config = compressed_config("int-quantized", num_bits=8, type="int", symmetric=True, strategy="channel")
    return Packed(parts, expected, config)


def compressed_config(form: str, **weights: Any) -> dict[str, Any]:
    group = {
        "targets": ["Linear"],
        "weights": {**weights, "actorder": None, "dynamic": False},
        "input_activations": None,
    }
    config = {"quant_method": "compressed-tensors", "format": form, "config_groups": {"group_0": group}}
    return config | {"ignore": ["lm_head", "re:.*vision.*"], "quantization_status": "compressed"}


def fp8(weight: Floats, *, block: tuple[int, int] | None = (16, 32)) -> Packed:
    n_out, n_in = weight.shape
    height, width = block or weight.shape
    scales = np.zeros((math.ceil(n_out / height), math.ceil(n_in / width)), dtype=np.float32)
    codes, expected = torch.zeros(n_out, n_in, dtype=torch.float8_e4m3fn), torch.zeros(n_out, n_in)
    for i, j in np.ndindex(*scales.shape):
        rows, columns = slice(i * height, (i + 1) * height), slice(j * width, (j + 1) * width)
        part = torch.from_numpy(weight[rows, columns].copy())
        scales[i, j] = float(part.abs().max()) / 448
        codes[rows, columns] = (part / scales[i, j].item()).to(torch.float8_e4m3fn)
        expected[rows, columns] = codes[rows, columns].float() * torch.tensor(scales[i, j])
    config: dict[str, Any] = {"quant_method": "fp8", "activation_scheme": "dynamic", "weight_block_size": block}
    if block is None:
        parts = {"weight": codes, "weight_scale": torch.tensor(scales[0, 0]), "input_scale": torch.tensor(1.0)}
        return Packed(parts, expected, config)
    config["weight_block_size"] = list(block)
    return Packed({"weight": codes, "weight_scale_inv": torch.from_numpy(scales)}, expected, config)
