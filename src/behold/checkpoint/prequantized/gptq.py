"""GPTQ, as AutoGPTQ, Optimum and GPTQModel store it: groups of inputs, codes packed along the inputs.

    X.qweight (in · bits / 32, out) int32     the inputs of one output in consecutive fields, lowest bits first
    X.qzeros  (G, out · bits / 32) int32      zero points along the outputs; the first version stores them less one
    X.scales  (G, out)                        weight = (code - zero) · scale
    X.g_idx   (in,) int32                     the group of every input; without it input i is in group i // group_size

Sources: auto_gptq 0.7.1 (nn_modules/qlinear), gptqmodel 7.7 (nn_modules/qlinear, utils/model.py: the first version is
turned into the second by adding one to every field of the words).
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from behold.checkpoint.files import Json
from behold.checkpoint.prequantized.layout import FLOATS, Decode, Misfit, Parts, PreQuantized, part
from behold.checkpoint.prequantized.options import choice, group_size, refused
from behold.checkpoint.prequantized.scales import Grid, fields, scaled

_FORMATS = ("gptq", "gptq_v2")
# what adding one to each field of a word is, as a signed number
_ONES = {4: 0x11111111, 8: 0x01010101}


def read(config: Json) -> PreQuantized:
    """The layout that a `quantization_config` of quant_method "gptq" announces.

    Raises:
        UnsupportedModelError: other widths, layouts of one kernel (marlin, bitblas), or layers that differ.
    """
    bits = choice(config, "bits", (4, 8))
    found = config.get("checkpoint_format") or config.get("format") or "gptq"
    layout = choice({"checkpoint_format": found}, "checkpoint_format", _FORMATS)
    size = group_size(config)
    sorted_columns = bool(config.get("desc_act"))
    for rule, changes in (config.get("dynamic") or {}).items():
        changed = sorted({"bits", "group_size"} & set(changes or ())) if not rule.startswith("-") else []
        if changed:
            raise refused(f"dynamic gives {rule!r} its own {' and '.join(changed)}", "one width for all layers")

    def plan(parts: Parts) -> tuple[tuple[int, ...], Decode]:
        qweight = part(parts, "qweight", ("I32",))
        if len(qweight.shape) != 2:
            raise Misfit(f"its qweight is {list(qweight.shape)}, expected two sides")
        n_out, n_in = qweight.shape[1], qweight.shape[0] * 32 // bits
        grid = Grid(1, size or max(n_in, 1))
        n_groups = grid.shape(n_out, n_in)[1]
        part(parts, "scales", FLOATS, (n_groups, n_out))
        part(parts, "qzeros", ("I32",), (n_groups, -(-n_out * bits // 32)))
        if "g_idx" in parts or (sorted_columns and n_groups > 1):
            part(parts, "g_idx", ("I32", "I64"), (n_in,))
        one = _ONES[bits] if layout == "gptq" else 0
        return (n_out, n_in), lambda tensors: _decode(tensors, grid, bits, one)

    endings = {role: f".{role}" for role in ("qweight", "qzeros", "scales", "g_idx")}
    return PreQuantized(f"gptq ({bits} bits)", bits, endings, ("qweight",), plan)


def _decode(tensors: Mapping[str, Tensor], grid: Grid, bits: int, one: int) -> Tensor:
    codes = fields(tensors["qweight"].T, bits)
    # added to whole words, so that what borrowed from its neighbour when one was taken away gets it back
    zeros = fields(tensors["qzeros"] + one, bits)[:, : len(codes)]
    columns, place = tensors.get("g_idx"), torch.arange(codes.shape[1]) // min(grid.columns, codes.shape[1])
    if columns is not None and torch.equal(columns.long(), place):
        columns = None
    return scaled(codes, tensors["scales"].T, zeros.T, grid, None if columns is None else columns.long())
