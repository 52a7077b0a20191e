"""The numbers of quantized layers: how weights and inputs are rounded to integers, in plain torch.

**Weights, int8**: integers in [-127, 127] and one float32 scale for each output row.

**Inputs, of every scheme**: each row x of K numbers is rounded to integers round(x / step), with a step of its own. All
but a few of them lie in a window that contains 0: of 128 integers at int8, for two products of 7 by 8 bits fit the
16-bit sums of AVX2; of 256 at int4, for so do sixteen of 8 by 4 bits. The few that lie outside, the row's outliers,
keep all of their (up to 16) bits and are multiplied separately. So one product of integers is computed, exactly, in any
order: a row's result is the same to the bit whatever other rows there are and however the work is cut.

The window comes from the row alone: `input_steps`. At int8 it is narrower where a row has huge entries that do not
drown what the rest is off by: their channels may be 50 to 100 times larger, and a layer's output is still not more than
1 % off. Measured (gaussian weights and inputs, relative to the layer with full weights and inputs, mean over rows and
four draws; "loud": 6 input channels 50 or 100 times larger than the rest, and 2 rows 100 times):

                              K =     1024     2816     4096    14336
    int8, gaussian                  0.0147   0.0152   0.0156   0.0163
    int8, loud, 50 times            0.0086   0.0097   0.0098   0.0112
    int8, loud, 100 times           0.0082   0.0090   0.0094   0.0106
    int8, inputs silu(2a) · b       0.0182   0.0190   0.0200   0.0215
    weights alone                   0.0079   0.0085   0.0087   0.0093
    without outliers: gaussian      0.0169   0.0184   0.0187   0.0202
    without outliers: loud           0.076    0.115    0.139    0.202

Weights cost more in long rows, as the largest of more gaussian numbers is larger: a row's step is its largest / 127,
and the error step / √12. At K = 14336 that leaves √(1 - 0.93²) = 0.37 % of a row to its inputs. 6 channels of 50 times
make half of such a row, so the other half would have to be rounded by 0.52 % (gaussian rows are: by 1.3 %), which
takes a window that leaves a quarter of all places outside, and twice the time. LEAST stops well before. Clipping
weights where the squared error is least gains 1.2 % of their error at K = 2816 and 3 % at 14336: not enough there.

**Weights, int4**: integers (code - 8) · multiplier with codes of 4 bits, a signed multiplier for each 32 places of a
row, and one float32 scale for each row: `round_groups`. Gaussian weights are 0.082 off. What rounded inputs add is lost
in that, so the window of twice as many integers is twice as wide as int8's, and no finer: outliers are rare. Gaussian
rows have none (int8: 5 in 1000 places), silu(2a) · b 1 in 1000 (int8: 14). Inputs alone, with full weights:

                              K =     1024     2816     4096
    gaussian                        0.0074   0.0081   0.0082
    loud                            0.0036   0.0055   0.0065
    silu(2a) · b                    0.0151   0.0165   0.0175
"""

from __future__ import annotations

import torch
from torch import Tensor

LIMIT = 127  # the largest int8 weight
GROUP = 32  # places of a row that share an int4 multiplier
MULTIPLIER = 63  # the largest: sums of products keep to 32 bits
SHRINK = tuple(0.65 + 0.05 * number for number in range(11))  # what is tried of a group's largest as the code -8
PANEL = 32  # output columns that lie together in the packed layout
TINY = 1e-30  # the smallest step: a row of zeros is divided by this

# The kernels (csrc/rows.h) hold the same constants.
BLOCK = 1024  # of K, at most, for each statistic
GROUPS = 64  # in a block; each is represented by its largest entry
RANK = 24  # so many of a block's groups may hold outliers
LOUD = 1.25  # an outlier is this much above the largest entry of the group at RANK, twice as much for 8-bit inputs
WIDEST = 32000  # integers are at most this large, plus rounding
HUGE = 8.0  # a row has huge entries where the largest is this much above the group at RANK. At 7 bits,
LEAST = 0.8  # of the latter is then what an outlier is above, or as much more as rounding may cost:
SHARE, LENGTH = 1.4, 8192  # (SHARE - K / LENGTH) times the row's root mean square. Weights of long rows cost more
MAX_OUTLIERS = 1024  # in a row, and at most 32 + K / 12
MAX_EXCESS = 1 << 21  # the sum of what the outliers have beyond the window
MAX_SUM = ((1 << 31) - 1) // (8 * MULTIPLIER)  # of a row's integers, for int4: its products are to fit 32 bits


def round_rows(weight: Tensor) -> tuple[Tensor, Tensor]:
    """(N, K) to int8 values in [-127, 127] and (N,) float32 scales; the largest of each row becomes 127."""
    wide = weight.float()
    scale = (torch.linalg.vector_norm(wide, ord=float("inf"), dim=1) / LIMIT).clamp_min(TINY)
    return (wide / scale[:, None]).round_().clamp_(-LIMIT, LIMIT).to(torch.int8), scale


def pack(weight: Tensor) -> Tensor:
    """(N, K) int8 to (N / 32, K / 4, 32, 4), padded with zeros: 32 columns of four places lie together."""
    n, k = weight.shape
    padded = torch.nn.functional.pad(weight, (0, -k % 4, 0, -n % PANEL))
    return padded.view(-1, PANEL, (k + 3) // 4, 4).permute(0, 2, 1, 3).contiguous()


def unpack(packed: Tensor, n: int, k: int) -> Tensor:
    """What `pack` was given."""
    panels, quads = packed.shape[:2]
    return packed.permute(0, 2, 1, 3).reshape(panels * PANEL, quads * 4)[:n, :k]


def round_groups(weight: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """(N, K) to codes (N, K') uint8 in [0, 15], multipliers (N, K' / 32) int8 and scales (N,) float32.

    K' is K filled up to whole groups, with zeros (code 8). A group's multiplier is the one of several that leaves the
    least squared error; that of the largest group is 63 or -63. The scale is then the one that fits the row best.
    """
    n, k = weight.shape
    groups = torch.nn.functional.pad(weight.float(), (0, -k % GROUP)).view(n, -1, GROUP)
    largest = groups.gather(2, groups.abs().argmax(2, keepdim=True))
    best, error = largest / -8, torch.full_like(largest, torch.inf)
    for share in (sign * shrink for sign in (1, -1) for shrink in SHRINK):
        step = largest * (share / -8)
        rest = groups - (groups / _not_zero(step)).round_().clamp_(-8, 7) * step
        rest = rest.square_().sum(2, keepdim=True)
        best, error = torch.where(rest < error, step, best), torch.minimum(rest, error)
    scale = _not_zero(best.abs().amax(1, keepdim=True) / MULTIPLIER)
    multipliers = (best / scale).round_()
    multipliers = torch.where(multipliers == 0, 1, multipliers)
    codes = (groups / (multipliers * scale)).round_().clamp_(-8, 7)
    integers = codes * multipliers
    fit = (groups * integers).sum((1, 2)) / integers.square().sum((1, 2)).clamp_min(1)
    return (codes + 8).view(n, -1).to(torch.uint8), multipliers[:, :, 0].to(torch.int8), fit


def pack_codes(codes: Tensor) -> Tensor:
    """(N, K) uint8 codes, K a multiple of 32, to (N / 32, K / 32, 4, 32, 4) bytes, filled up with zeros.

    A byte [panel, group, j, column, i] holds the group's place 4 · j + i in its low half, and that 16 further above.
    """
    n, k = codes.shape
    padded = torch.nn.functional.pad(codes, (0, 0, 0, -n % PANEL), value=8).view(-1, PANEL, k // GROUP, 2, 4, 4)
    return (padded[:, :, :, 0] | padded[:, :, :, 1] << 4).permute(0, 2, 3, 1, 4).contiguous()


def unpack_codes(packed: Tensor, n: int) -> Tensor:
    """What `pack_codes` was given."""
    halves = torch.stack([packed & 15, packed >> 4], 2)  # (panels, groups, 2, 4, columns, 4)
    return halves.permute(0, 4, 1, 2, 3, 5).reshape(packed.shape[0] * PANEL, -1)[:n]


def _not_zero(values: Tensor) -> Tensor:
    return torch.where(values.abs() < TINY, TINY, values)


def input_steps(x: Tensor, bits: int) -> tuple[Tensor, Tensor]:
    """(M, K) float32 to the step (M,) and the zero point (M,) of each row, both float32; steps are NaN where x is not
    finite. Windows have 2 ** bits integers; bits is a layer's INPUT_BITS.

    K is cut into blocks of the same size, a block into 64 interleaved groups. A row's threshold is LOUD times the
    25th largest of the 64 groups' maxima (at 8 bits twice that), of the block where it is largest; for rows with huge
    entries, `_threshold_beside` says. The window spans the row's smallest to its largest entry, and zero, but no
    further than the threshold on either side. Where there would be too many outliers, huge entries change nothing; it
    spans them all where there still are.
    """
    rows, k = x.shape
    blocks = -(-k // BLOCK)
    size = -(-k // (blocks * GROUPS)) * GROUPS
    magnitudes = torch.nn.functional.pad(x.abs(), (0, blocks * size - k)).view(rows, blocks, -1, GROUPS)
    typical = magnitudes.amax(2).sort(dim=2, descending=True).values[:, :, RANK].amax(1)
    low, high = x.amin(1).clamp_max(0), x.amax(1).clamp_min(0)
    largest = torch.maximum(-low, high)
    end = (1 << bits) - 1
    threshold = typical * (LOUD * (end + 1) / 128)
    step, zero = _window(low, high, torch.full_like(low, torch.finfo(torch.float32).max), end)
    _narrow(x, threshold, (step, zero), end)
    finite = torch.isfinite(low) & torch.isfinite(high)
    loud = (finite & (largest > HUGE * typical) & (largest > TINY)).nonzero()[:, 0]
    if bits == 7 and len(loud):
        some, known = x[loud], (step[loud], zero[loud])
        _narrow(some, _threshold_beside(some, largest[loud], typical[loud], threshold[loud]), known, end)
        step[loud], zero[loud] = known
    return torch.where(finite, step, torch.nan), torch.where(finite, zero, 0)


def _threshold_beside(x: Tensor, largest: Tensor, typical: Tensor, threshold: Tensor) -> Tensor:
    """What takes the place of the threshold in rows with huge entries.

    What the rest is rounded by shows against the whole row, so a row that is loud enough as a whole keeps the
    threshold. Others get so narrow a window that weights and inputs together cost 1 %, if LEAST lets them. Squares are
    of integers of 16 bits, so that every order of adding gives the same.
    """
    exponent = torch.frexp(largest).exponent
    up = (127 + 15 - exponent << 23).view(torch.float32)  # a power of two, exactly: largest · up is in [2^14, 2^15)
    k = x.shape[1]
    mean = torch.round(x * up[:, None]).double().square().sum(1) / k
    wanted = ((SHARE - k / LENGTH) * mean.sqrt() / up.double()).float()
    return torch.minimum(torch.maximum(wanted, typical * LEAST), threshold)


def _narrow(x: Tensor, threshold: Tensor, window: tuple[Tensor, Tensor], end: int) -> None:
    """Changes windows (steps, zero points) to those of a threshold, where that leaves no more outliers than allowed."""
    k, bits = x.shape[1], end.bit_length()
    step, zero = _window(x.amin(1).clamp_max(0), x.amax(1).clamp_min(0), threshold, end)
    excess = _excess(x, step, zero, end).abs()
    fits = ((excess > 0).sum(1) <= min(MAX_OUTLIERS, 32 + k // 12)) & (excess.sum(1) <= _most_excess(k, bits))
    for old, new in zip(window, (step, zero), strict=True):
        old.copy_(torch.where(fits, new, old))


def _most_excess(k: int, bits: int) -> int:
    return MAX_EXCESS if bits == 7 else min(MAX_EXCESS, MAX_SUM - ((1 << bits) - 1) * k)


def _window(low: Tensor, high: Tensor, threshold: Tensor, end: int) -> tuple[Tensor, Tensor]:
    largest = torch.maximum(-low, high)
    low, high = torch.maximum(low, -threshold), torch.minimum(high, threshold)
    step = torch.maximum((high / (end - 1) - low / (end - 1)).clamp_min(TINY), largest / WIDEST)
    return step, torch.round(-low * (1 / step))


def _excess(x: Tensor, step: Tensor, zero: Tensor, end: int) -> Tensor:
    """How far each integer is outside the window, 0 within."""
    integers = torch.round(x * (1 / step)[:, None]) + zero[:, None]
    return integers - integers.clamp(0, end)
