"""Keys and values of one sequence as they are kept, and the torch path of what kernels do to them.

Floats are kept as they come, or narrower. Integers of 8 bits have a scale for each place of a head, its largest number
/ 127: 0.6 % of a gaussian number. Keys are spread first, as a few of their channels stand out, by 100 times in some
models, and would leave the others few bits: a Hadamard matrix makes of every number a sum of all, with signs. Queries
are spread alike, and products stay what they were. All that attends reads what is kept, also of tokens that came in
the same step, so that it matters little how a prompt was cut; for integers not at all (kernels/attention.py, `way`).
"""

from __future__ import annotations

import torch
from torch import Tensor

from behold.pages import Advice, advise

LARGEST = 127
TINY = 1e-30  # so that nothing is divided by 0


class KeptRow:
    """numbers: (L, 2, Hkv, places, d). scales: (L, 2, Hkv, places) float32 of integers, None of floats.

    Both stay what they are. words: their addresses (0: no scales) and the places, as kernels take them; looked up once,
    as every step asks.
    """

    __slots__ = ("device", "dim", "dtype", "heads", "numbers", "places", "scales", "words")

    def __init__(self, numbers: Tensor, scales: Tensor | None) -> None:
        assert numbers.is_contiguous() and (scales is None or scales.is_contiguous())
        self.numbers, self.scales = numbers, scales
        self.dtype, self.device = numbers.dtype, numbers.device.type
        self.heads, self.places, self.dim = numbers.shape[2:]
        self.words = (numbers.data_ptr(), 0 if scales is None else scales.data_ptr(), self.places)

    @classmethod
    def empty(cls, shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> KeptRow:
        """Of shape (L, 2, Hkv, places, d); dtype: a float, or torch.int8."""
        scales = torch.empty(shape[:-1], device=device) if dtype is torch.int8 else None
        return cls(torch.empty(shape, dtype=dtype, device=device), scales)

    def in_large_pages(self) -> None:
        """Has the system keep it so, where it can: attention is a tenth faster. Before the first key is put."""
        for tensor in (self.numbers, self.scales):
            if tensor is not None and tensor.is_cpu:
                advise(tensor.data_ptr(), tensor.nbytes, Advice.LARGE)

    def take(self, source: KeptRow, start: int, stop: int) -> None:
        """Places [start, stop) as another row has them."""
        self.numbers[:, :, :, start:stop] = source.numbers[:, :, :, start:stop]
        if self.scales is not None and source.scales is not None:
            self.scales[:, :, :, start:stop] = source.scales[:, :, :, start:stop]

    def put(self, layer: int, start: int, k: Tensor, v: Tensor) -> None:
        """Write new keys and values (T, Hkv, d) from a place on."""
        new = slice(start, start + k.shape[0])
        for part, x in enumerate((k.transpose(0, 1), v.transpose(0, 1))):
            if self.scales is None:
                self.numbers[layer, part, :, new] = narrowed(x, self.numbers.dtype)
            else:
                exact = x.float() if part else spread(x.float()) / spread_by(x.shape[-1])
                most = exact.abs().amax(-1).clamp_min(TINY)
                self.numbers[layer, part, :, new] = (exact * (LARGEST / most)[..., None]).round().to(torch.int8)
                self.scales[layer, part, :, new] = most / LARGEST

    def seen(self, layer: int, stop: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """Keys and values (Hkv, stop, d) of the first places."""
        keys, values = self.numbers[layer, :, :, :stop]
        if self.scales is not None:
            keys, values = self.numbers[layer, :, :, :stop] * self.scales[layer, :, :, :stop, None]
            keys = spread(keys)
        return keys.to(dtype), values.to(dtype)


def bytes_a_place(dim: int, dtype: torch.dtype) -> int:
    """Bytes of one head's key or value."""
    return dim * dtype.itemsize + (4 if dtype is torch.int8 else 0)


def narrowed(x: Tensor, dtype: torch.dtype) -> Tensor:
    """x in another type; what that cannot hold becomes the most that it can: an infinite key would ruin all scores."""
    if dtype is x.dtype:
        return x
    most = torch.finfo(dtype).max
    return x.clamp(-most, most).to(dtype)


def spread_by(dim: int) -> int:
    """The largest power of two that divides it: so many numbers are spread over each other."""
    return dim & -dim


def spread(x: Tensor) -> Tensor:
    """(…, d) times a matrix of signs, Hadamard's for each block of `spread_by(d)`; twice is `spread_by(d)` times x."""
    shape, half = x.shape, 1
    while half < spread_by(shape[-1]):
        a, b = x.view(*shape[:-1], -1, 2, half).unbind(-2)
        x = torch.stack((a + b, a - b), -2).view(shape)
        half *= 2
    return x
