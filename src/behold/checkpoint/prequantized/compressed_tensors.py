"""compressed-tensors, as llm-compressor stores it: integer codes plain or packed, and float8.

    pack-quantized    X.weight_packed (out, in · bits / 32) int32: inputs in consecutive fields, lowest bits first, each
                      stored more by 2^(bits - 1) · X.weight_shape (2,) · X.weight_scale · X.weight_zero_point, packed
                      alike along the outputs (older files: plain int8) · X.weight_g_idx (in,), older files only
    int-quantized     X.weight (out, in) int8 · X.weight_scale · X.weight_zero_point, plain
    float-quantized   X.weight (out, in) float8_e4m3fn · X.weight_scale

weight = (code - zero) · scale, with a scale for all (strategy tensor), each output (channel), each group of inputs
(group) or each block. Several config groups may have different settings; names in their targets are those of another
program's modules, so a weight is matched with the group that its parts fit. Scales of activations are left out: inputs
are not rounded here. Source: compressed-tensors 0.20 (compressors/, quantization/lifecycle/forward_helpers.py).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor

from behold.checkpoint.files import Json
from behold.checkpoint.prequantized.fp8 import UNUSED, block_sides
from behold.checkpoint.prequantized.layout import FLOATS, Decode, Misfit, Parts, PreQuantized, part
from behold.checkpoint.prequantized.options import choice, group_size, refused
from behold.checkpoint.prequantized.scales import Grid, fields, scaled

_FORMATS = ("pack-quantized", "int-quantized", "float-quantized", "naive-quantized")
_STRATEGIES = ("tensor", "channel", "group", "block")
_ALL = 1 << 62  # a side of a block that covers the whole weight


@dataclass(frozen=True, slots=True)
class _Scheme:
    """One config group's way of storing a weight."""

    packed: bool
    bits: int
    is_float: bool
    symmetric: bool
    grid: Grid


def read(config: Json) -> PreQuantized:
    """The layout that a `quantization_config` of quant_method "compressed-tensors" announces.

    Raises:
        UnsupportedModelError: other formats (mxfp4, nvfp4, marlin), widths, sparse weights, or rotated ones.
    """
    sparse = (config.get("sparsity_config") or {}).get("format") or "dense"
    choice({"sparsity_config.format": sparse}, "sparsity_config.format", ("dense",))
    if (config.get("transform_config") or {}).get("config_groups"):
        raise refused("transform_config (rotated weights)", "none")
    groups = config.get("config_groups")
    if not isinstance(groups, dict) or not all(isinstance(group, dict) for group in groups.values()):
        raise refused(f"config_groups={groups!r}", "settings by name of the group")
    schemes = [
        _scheme(group["weights"], group.get("format") or config.get("format"))
        for group in groups.values()
        if group.get("weights")
    ]
    if not schemes:
        raise refused("no config group has weights", "at least one")

    def plan(parts: Parts) -> tuple[tuple[int, ...], Decode]:
        misfits = []
        for scheme in schemes:
            try:
                return _plan(scheme, parts)
            except Misfit as misfit:
                misfits.append(misfit)
        raise misfits[0]

    endings = {"packed": ".weight_packed", "shape": ".weight_shape", "scale": ".weight_scale"}
    endings |= {"weight": ".weight", "zero_point": ".weight_zero_point", "g_idx": ".weight_g_idx"}
    unused = (*UNUSED, ".q_scale", ".input_zero_point", ".output_scale", ".output_zero_point")
    bits = max(scheme.bits for scheme in schemes)
    return PreQuantized(f"compressed-tensors ({bits} bits)", bits, endings, ("packed", "scale"), plan, unused)


def _scheme(weights: Json, layout: object) -> _Scheme:
    layout = choice({"format": layout}, "format", _FORMATS)
    kind = choice({"type": weights.get("type", "int")}, "type", ("int", "float"))
    is_float, packed = kind == "float", layout == "pack-quantized"
    if is_float and packed:
        raise refused("format='pack-quantized' with type='float'", "type='int'")
    bits = choice({"num_bits": weights.get("num_bits", 8)}, "num_bits", (8,) if is_float else (4, 8))
    size = weights.get("group_size")
    inferred = "tensor" if size is None else "channel" if size == -1 else "group"
    strategy = choice({"strategy": weights.get("strategy") or inferred}, "strategy", _STRATEGIES)
    if strategy == "group":
        grid = Grid(1, group_size(weights) or _ALL)
    elif strategy == "block":
        grid = block_sides(weights.get("block_structure"))
    else:
        grid = Grid(_ALL if strategy == "tensor" else 1, _ALL)
    return _Scheme(packed, bits, is_float, bool(weights.get("symmetric", True)), grid)


def _plan(scheme: _Scheme, parts: Parts) -> tuple[tuple[int, ...], Decode]:
    n_out, n_in = shape = _shape(scheme, parts)
    sides = scheme.grid.shapes(n_out, n_in)
    part(parts, "scale", FLOATS, *sides)
    n_groups = sides[0][1]
    if "zero_point" in parts or not scheme.symmetric:
        if scheme.is_float:
            raise Misfit("it has a zero point beside float8 codes")
        if scheme.packed and parts.get("zero_point") and parts["zero_point"].dtype == "I32":
            part(parts, "zero_point", ("I32",), (-(-n_out * scheme.bits // 32), n_groups))
        else:
            part(parts, "zero_point", ("I8",), *sides)
    if "g_idx" in parts:
        part(parts, "g_idx", ("I32", "I64"), (n_in,))
    return shape, lambda tensors: _decode(tensors, scheme, n_out, n_in)


def _shape(scheme: _Scheme, parts: Parts) -> tuple[int, int]:
    if not scheme.packed:
        if "packed" in parts:
            raise Misfit("it is packed, which its config group does not say")
        shape = part(parts, "weight", ("F8_E4M3" if scheme.is_float else "I8",)).shape
    else:
        if "weight" in parts:
            raise Misfit("it is stored both plain and packed" if "packed" in parts else "its packed is missing")
        shape = tuple(part(parts, "shape", ("I64", "I32"), (2,)).read().tolist())
    if len(shape) != 2 or min(shape) < 1:
        raise Misfit(f"its shape is {list(shape)}, expected two positive sides")
    n_out, n_in = shape
    if scheme.packed:
        part(parts, "packed", ("I32",), (n_out, -(-n_in * scheme.bits // 32)))
    return n_out, n_in


def _decode(tensors: Mapping[str, Tensor], scheme: _Scheme, n_out: int, n_in: int) -> Tensor:
    sides = scheme.grid.shape(n_out, n_in)
    zeros = tensors.get("zero_point")
    if not scheme.packed:
        codes, zeros = tensors["weight"], None if zeros is None else zeros.reshape(sides)
    else:
        codes, middle = fields(tensors["packed"], scheme.bits)[:, :n_in], 1 << scheme.bits - 1
        if zeros is None:
            zeros = tensors["scale"].new_full(sides, middle)
        elif zeros.dtype.itemsize == 1:
            zeros = zeros.reshape(sides).float() + middle
        else:
            zeros = fields(zeros.T, scheme.bits)[:, :n_out].T
    columns = tensors.get("g_idx")
    if columns is not None and int(columns.min()) == -1:  # its mark for columns in their order
        columns = None
    scales = tensors["scale"].reshape(sides)
    return scaled(codes, scales, zeros, scheme.grid, None if columns is None else columns.long())
