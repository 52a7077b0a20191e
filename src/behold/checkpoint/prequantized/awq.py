"""AWQ in its "gemm" layout, as AutoAWQ and GPTQModel store it: codes packed along the outputs.

    X.qweight (in, out / 8) int32    the 8 outputs of a word are, from the lowest bits on, 0 2 4 6 1 3 5 7
    X.qzeros  (G, out / 8) int32     zero points, packed alike
    X.scales  (G, out)               weight = (code - zero) · scale; input i is in group i // group_size

Source: autoawq 0.2.9 (modules/linear/gemm.py, utils/packing_utils.py).
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from behold.checkpoint.files import Json
from behold.checkpoint.prequantized.layout import FLOATS, Decode, Misfit, Parts, PreQuantized, part
from behold.checkpoint.prequantized.options import choice, group_size
from behold.checkpoint.prequantized.scales import Grid, scaled

_PER_WORD = 8
_PLACES = (0, 4, 1, 5, 2, 6, 3, 7)  # the field in which each of the 8 outputs of a word lies


def read(config: Json) -> PreQuantized:
    """The layout that a `quantization_config` of quant_method "awq" announces.

    Raises:
        UnsupportedModelError: other widths, or a layout of other kernels (gemv, gemv_fast, llm-awq, marlin).
    """
    bits = choice({"bits": config.get("bits", config.get("w_bit", 4))}, "bits", (4,))
    version = str(config.get("version") or config.get("format") or "gemm").lower()
    choice({"version": version}, "version", ("gemm",))
    choice({"zero_point": config.get("zero_point", True)}, "zero_point", (True,))
    size = group_size({"group_size": config.get("group_size", config.get("q_group_size", 128))})

    def plan(parts: Parts) -> tuple[tuple[int, ...], Decode]:
        qweight = part(parts, "qweight", ("I32",))
        if len(qweight.shape) != 2:
            raise Misfit(f"its qweight is {list(qweight.shape)}, expected two sides")
        n_in, n_words = qweight.shape
        grid = Grid(1, size or max(n_in, 1))
        n_groups = grid.shape(n_words, n_in)[1]
        part(parts, "qzeros", ("I32",), (n_groups, n_words))
        part(parts, "scales", FLOATS, (n_groups, n_words * _PER_WORD))
        return (n_words * _PER_WORD, n_in), lambda tensors: _decode(tensors, grid)

    endings = {role: f".{role}" for role in ("qweight", "qzeros", "scales")}
    return PreQuantized("awq (4 bits, gemm)", bits, endings, ("qweight",), plan)


def _decode(tensors: Mapping[str, Tensor], grid: Grid) -> Tensor:
    return scaled(_outputs(tensors["qweight"]), tensors["scales"].T, _outputs(tensors["qzeros"]), grid)


def _outputs(words: Tensor) -> Tensor:
    """(n, out / 8) int32 to (out, n) uint8, outputs in their order."""
    words = words.T.contiguous()
    codes = torch.empty((words.shape[0], _PER_WORD, words.shape[1]), dtype=torch.uint8)
    for output, place in enumerate(_PLACES):
        codes[:, output] = words >> 4 * place & 15
    return codes.flatten(0, 1)
