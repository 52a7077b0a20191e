"""bitsandbytes, as transformers' save_pretrained stores it.

8 bits: X.weight (out, in) int8 · X.SCB (out,) the largest of each row, so weight = code · SCB / 127 ·
X.weight_format, one byte: 0 for rows, the only order that is still written.

4 bits: X.weight, (n / 2, 1) bytes, the weight's n values in order, the first of two in the high half; in blocks of
`blocksize` values that share a largest value, so weight = quant_map[code] · absmax[block]. With nested statistics
absmax are codes themselves: absmax = nested_quant_map[code] · nested_absmax[block of blocks] + nested_offset.
X.weight.quant_state.bitsandbytes__nf4 (or fp4) holds shape, blocksize and so on as JSON.

Source: bitsandbytes 0.50 (functional.py, nn/modules.py, backends/default/ops.py).
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from behold.checkpoint.files import Json
from behold.checkpoint.prequantized.layout import FLOATS, Decode, Misfit, Parts, PreQuantized, part
from behold.checkpoint.prequantized.options import refused
from behold.checkpoint.prequantized.scales import Grid, finite, scaled
from behold.checkpoint.stored import StoredTensor

_BLOCK_SIZES = (32, 64, 128, 256, 512, 1024, 2048, 4096)
_STORAGES = ("U8", "I8", *FLOATS)  # bnb_4bit_quant_storage: only the name of the bytes changes
_MAX_STATE_BYTES = 1 << 16
_STEP = 1 << 20  # bytes decoded at a time
_KINDS = ("nf4", "fp4")


def read(config: Json) -> PreQuantized:
    """The layout that a `quantization_config` of quant_method "bitsandbytes" announces.

    Raises:
        UnsupportedModelError: it says neither 8 nor 4 bits.
    """
    eight, four = (bool(config.get(key) or config.get(f"_{key}")) for key in ("load_in_8bit", "load_in_4bit"))
    if eight == four:
        raise refused(f"load_in_8bit={eight}, load_in_4bit={four}", "one of load_in_8bit=True, load_in_4bit=True")
    if eight:
        endings = {"weight": ".weight", "SCB": ".SCB", "weight_format": ".weight_format"}
        return PreQuantized("bitsandbytes (8 bits)", 8, endings, ("SCB",), _plan_8bit)
    names = ("absmax", "quant_map", "nested_absmax", "nested_quant_map")
    endings = {"weight": ".weight"} | {name: f".weight.{name}" for name in names}
    endings |= {kind: f".weight.quant_state.bitsandbytes__{kind}" for kind in _KINDS}
    return PreQuantized("bitsandbytes (4 bits)", 4, endings, ("absmax", *_KINDS), _plan_4bit)


# --- 8 bits ------------------------------------------------------------------------------------------------------


def _plan_8bit(parts: Parts) -> tuple[tuple[int, ...], Decode]:
    shape = part(parts, "weight", ("I8",)).shape
    if len(shape) != 2:
        raise Misfit(f"its weight is {list(shape)}, expected two sides")
    part(parts, "SCB", FLOATS, (shape[0],))
    if "weight_format" in parts:
        order = part(parts, "weight_format", ("U8", "I8"), (), (1,)).read()
        if int(order):
            raise Misfit(f"its weight_format is {int(order)}, an order of one kind of GPU; expected 0, rows")
    grid = Grid(1, max(shape[1], 1))
    return shape, lambda tensors: scaled(tensors["weight"], tensors["SCB"].float()[:, None] / 127, None, grid)


# --- 4 bits ------------------------------------------------------------------------------------------------------


def _plan_4bit(parts: Parts) -> tuple[tuple[int, ...], Decode]:
    kind = next((kind for kind in _KINDS if kind in parts), None)
    if kind is None:
        raise Misfit("its quant_state (bitsandbytes__nf4 or bitsandbytes__fp4) is missing")
    state = _state(part(parts, kind, ("U8",)))
    shape, blocksize = _shape(state), _block_size(state, "blocksize")
    n_values = math.prod(shape)
    n_blocks = -(-n_values // blocksize)
    weight = part(parts, "weight", _STORAGES)
    if weight.n_bytes != -(-n_values // 2):
        raise Misfit(f"its weight has {weight.n_bytes} bytes, expected half of the {n_values} values of {list(shape)}")
    part(parts, "quant_map", ("F32",), (16,))
    if "nested_absmax" not in parts:
        part(parts, "absmax", ("F32",), (n_blocks,))
        return shape, lambda tensors: _decode_4bit(tensors, tensors["absmax"], n_values, blocksize)
    nested, offset = _block_size(state, "nested_blocksize"), state.get("nested_offset")
    if not isinstance(offset, float | int) or not math.isfinite(offset):
        raise Misfit(f"its quant_state has nested_offset={offset!r}, expected a number")
    part(parts, "absmax", ("U8",), (n_blocks,))
    part(parts, "nested_quant_map", ("F32",), (256,))
    part(parts, "nested_absmax", ("F32",), (-(-n_blocks // nested),))

    def decode(tensors: Mapping[str, Tensor]) -> Tensor:
        levels = tensors["nested_quant_map"][tensors["absmax"].int()]
        absmax = levels * tensors["nested_absmax"].repeat_interleave(nested)[:n_blocks] + offset
        return _decode_4bit(tensors, absmax, n_values, blocksize)

    return shape, decode


def _decode_4bit(tensors: Mapping[str, Tensor], absmax: Tensor, n_values: int, blocksize: int) -> Tensor:
    """(n_values,) float32, in the order of the stored bytes."""
    finite(absmax, "absmax")
    levels = finite(tensors["quant_map"], "quant_map")
    pairs = torch.cartesian_prod(levels, levels)  # (256, 2): the two values of a byte, that of the high half first
    octets = tensors["weight"].flatten().view(torch.uint8)
    values = torch.empty(absmax.numel() * blocksize, dtype=torch.float32)  # whole blocks; the last is cut off below
    for start in range(0, len(octets), _STEP):
        codes = octets[start : start + _STEP].int()
        values[2 * start : 2 * (start + len(codes))] = pairs.index_select(0, codes).flatten()
    values.view(-1, blocksize).mul_(absmax[:, None])
    return values[:n_values]


def _state(tensor: StoredTensor) -> dict[str, Any]:
    """The JSON in the bytes of a small tensor."""
    if tensor.n_bytes > _MAX_STATE_BYTES:
        raise Misfit(f"its quant_state has {tensor.n_bytes} bytes, expected a short JSON text")
    try:
        state = json.loads(bytes(tensor.read().tolist()))
    except ValueError as error:
        raise Misfit(f"its quant_state is not valid JSON ({error})") from error
    if not isinstance(state, dict):
        raise Misfit("its quant_state is not a JSON object")
    return state


def _shape(state: Mapping[str, Any]) -> tuple[int, ...]:
    shape = state.get("shape")
    sides = shape if isinstance(shape, list) else []
    if not sides or not all(isinstance(side, int) and not isinstance(side, bool) and side > 0 for side in sides):
        raise Misfit(f"its quant_state has shape={shape!r}, expected the sides of the weight")
    return tuple(sides)


def _block_size(state: Mapping[str, Any], key: str) -> int:
    size = state.get(key)
    if size not in _BLOCK_SIZES or not isinstance(size, int):
        raise Misfit(f"its quant_state has {key}={size!r}, expected one of {', '.join(map(str, _BLOCK_SIZES))}")
    return size
