"""float8 weights with scales, as transformers' fine-grained and fbgemm schemes and AutoFP8 store them.

    X.weight (out, in) float8_e4m3fn
    X.weight_scale_inv or X.weight_scale    weight = code · scale, despite the name of the first. One scale for all
                                            weights, one for each output, or one for each block of weight_block_size

Scales of activations (input_scale, activation_scale) are left out: inputs are not rounded here. Sources: transformers
5.23 (integrations/finegrained_fp8.py, integrations/fbgemm_fp8.py), arxiv.org/abs/2412.19437 (blocks of 128 × 128).
"""

from __future__ import annotations

from behold.checkpoint.files import Json
from behold.checkpoint.prequantized.layout import FLOATS, Decode, Misfit, Parts, PreQuantized, part
from behold.checkpoint.prequantized.options import choice, refused
from behold.checkpoint.prequantized.scales import Grid, scaled

UNUSED = (".input_scale", ".activation_scale", ".input_scale_ub", ".k_scale", ".v_scale")


def read(config: Json) -> PreQuantized:
    """The layout that a `quantization_config` of quant_method "fp8" or "fbgemm_fp8" announces.

    Raises:
        UnsupportedModelError: scales that are exponents or divisors, or blocks without a size.
    """
    choice({"scale_fmt": config.get("scale_fmt") or "float"}, "scale_fmt", ("float",))
    if "weight_scale_semantics" in config:
        raise refused(f"weight_scale_semantics={config['weight_scale_semantics']!r}", "scales that are factors")
    block = None if config.get("weight_block_size") is None else block_sides(config["weight_block_size"])

    def plan(parts: Parts) -> tuple[tuple[int, ...], Decode]:
        shape = part(parts, "weight", ("F8_E4M3",)).shape
        if len(shape) != 2 or 0 in shape:
            raise Misfit(f"its weight is {list(shape)}, expected two sides")
        role = "scale_inv" if "scale_inv" in parts else "scale"
        grids = (*(() if block is None else (block,)), Grid(*shape), Grid(1, shape[1]))
        scale = part(parts, role, FLOATS, *(sides for grid in grids for sides in grid.shapes(*shape)))
        grid = next(grid for grid in grids if scale.shape in grid.shapes(*shape))
        sides = grid.shape(*shape)
        return shape, lambda tensors: scaled(tensors["weight"], tensors[role].reshape(sides), None, grid)

    endings = {"weight": ".weight", "scale_inv": ".weight_scale_inv", "scale": ".weight_scale"}
    return PreQuantized("fp8", 8, endings, ("scale_inv", "scale"), plan, UNUSED)


def block_sides(value: object) -> Grid:
    """The grid of a `weight_block_size` or `block_structure`.

    Raises:
        UnsupportedModelError: it is not two positive numbers.
    """
    sides = list(value) if isinstance(value, list | tuple) else []
    if len(sides) != 2 or not all(isinstance(side, int) and side is not True and side > 0 for side in sides):
        raise refused(f"blocks of {value!r}", "two positive numbers, such as [128, 128]")
    return Grid(*sides)
