"""Integer probability tables of zero-mean Gaussians on a GPU: the rule and the reference are in `rans/gaussians.py`.

An entry's gains fall with its frequency f, so nearly all of the order is known from a threshold: every gain above it
is taken. The kernel, a program for each table, finds the threshold t by bisection, with f = ceil(1 / (exp(t / p) - 1)),
the least f whose gain is no more than t, for all entries at once. The slots S(t) that this takes satisfy

    1 / t - K - 1 <= S(t) <= 1 / t + 2 K + 2          (the sum of p is 1)

between which the search begins. It ends a little above the least t that fits, at 1 + 1e-9 times it, since rounding,
3e-11 of t at most, may have put a gain on the wrong side. What is left, as a rule one slot or none, is given away
in the rule's order.
"""

from __future__ import annotations

import math

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..rans.gaussians import ABOVE, LEAST_SCALE, STEPS, gaussian_frequencies_reference, table_width
from .common import Build, on_gpu, operator
from .gaussian_likelihood import erfcx, interval

_LEAST_SCALE = tl.constexpr(LEAST_SCALE)
_ROOT_2 = tl.constexpr(math.sqrt(2))

_STEPS, _ABOVE = tl.constexpr(STEPS), tl.constexpr(ABOVE)


# ---- in kernels


@triton.jit
def _raised(threshold, inverse_mass):
    """The least frequencies whose gain is no more than the threshold. inverse_mass: float64 [lanes], 1 / p."""
    # From log 2 on, f is 1. At 1 the formula says so too (0.58, rounded up), and does not overflow.
    exponent = tl.minimum(threshold * inverse_mass, 1.0)
    return tl.ceil(1.0 / (tl.exp(exponent) - 1.0)).to(tl.int32)


@triton.jit
def _gain(mass, frequency):
    """p log(1 + 1 / f) for float64 p and int32 f >= 1, to a few units in the last place."""
    inverse = 1.0 / frequency.to(tl.float64)
    rounded = 1.0 + inverse
    return mass * tl.log(rounded) * (inverse / (rounded - 1.0))  # Kahan: makes up for the sum's rounding


@triton.jit
def _frequencies_kernel(scales, firsts, sizes, frequencies, total, widest, SUPPORT: tl.constexpr, BLOCK: tl.constexpr):
    table = tl.program_id(0)
    scale = tl.load(scales + table)
    limit = tl.minimum(total, widest) // 2 - 1
    exists = (scale >= _LEAST_SCALE) & (scale * SUPPORT <= limit.to(tl.float64))
    scale = tl.where(exists, scale, 1.0)
    reach = tl.maximum(tl.ceil(scale * SUPPORT).to(tl.int32), 1)

    # Lane 0 is the centre, lanes 1 .. K are the pairs (one side's mass), lane K + 1 is the sentinel.
    lane = tl.arange(0, BLOCK)
    sentinel = tl.where(exists, reach + 1, -1)
    lower, exponential, _, mass = interval(lane.to(tl.float64), 1.0 / (scale * _ROOT_2))
    mass = tl.where(lane == sentinel, exponential * erfcx(tl.abs(lower)), mass)
    mass = tl.maximum(mass, _LEAST_SCALE)
    inverse_mass = 1.0 / mass
    slots = tl.where((lane == 0) | (lane == sentinel), 1, 2)
    slots = tl.where(lane <= sentinel, slots, 0)

    low = 1.0 / (total + reach + 1).to(tl.float64)
    high = 1.0 / tl.maximum(total - 2 * reach - 2, 1).to(tl.float64)
    for _ in range(_STEPS):
        middle = 0.5 * (low + high)
        fits = tl.sum(_raised(middle, inverse_mass) * slots) <= total
        low = tl.where(fits, low, middle)
        high = tl.where(fits, middle, high)
    frequency = _raised(high * _ABOVE, inverse_mass)
    left = tl.where(exists, total - tl.sum(frequency * slots), 0)
    while left > 0:
        gain = tl.where((slots > 0) & (slots <= left), _gain(mass, frequency), -1.0)
        best = lane == tl.argmax(gain, 0)
        frequency += best.to(tl.int32)
        left -= tl.sum(tl.where(best, slots, 0))

    tl.store(firsts + table, tl.where(exists, -reach, 0))
    tl.store(sizes + table, tl.where(exists, 2 * reach + 2, 0))
    row = frequencies + table.to(tl.int64) * widest
    tl.store(row + (reach - lane), frequency, mask=lane < sentinel)
    tl.store(row + (reach + lane), frequency, mask=lane <= sentinel)


# ---- operator


def gaussian_frequencies(
    scales: Tensor, support: float, total: int, widest: int | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    """Tables of zero-mean Gaussians, as `TableSet` takes them.

    scales: float64 [T], standard deviations in quantisation steps; support: reach of a table in scales; total: the sum
    of a table's frequencies, 4 to 2^16; widest: the width of the result, at least 4. Without it, it follows from the
    greatest scale, for which the host waits, and a scale without a table raises ValueError. With it, nothing waits, and
    a scale without a table (not finite and positive, or of more than `widest` or `total` entries) gives size 0.

    Returns the first symbols -K int32 [T], the sizes 2 K + 2 int32 [T], and int32 [T, widest]: the frequencies of the
    symbols -K .. K, the sentinel's, and zeros.
    """
    widest = table_width(scales, support, total, widest)
    return torch.ops.fastcodec.gaussian_frequencies(scales, support, total, widest)


def _launch_shape(entries: int) -> tuple[int, int]:
    """Lanes of a program for tables of up to so many entries, and its warps."""
    block = triton.next_power_of_2(entries // 2 + 1)
    return block, min(max(block // 64, 1), 16)


def _gaussian_frequencies(scales: Tensor, support: float, total: int, widest: int) -> tuple[Tensor, Tensor, Tensor]:
    if not on_gpu(scales):
        return gaussian_frequencies_reference(scales, support, total, widest)
    tables = scales.shape[0]
    firsts, sizes = (torch.empty(tables, dtype=torch.int32, device=scales.device) for _ in range(2))
    frequencies = torch.zeros(tables, widest, dtype=torch.int32, device=scales.device)
    if tables:
        block, warps = _launch_shape(min(total, widest))
        _frequencies_kernel[(tables,)](
            scales.contiguous(),
            firsts,
            sizes,
            frequencies,
            total,
            widest,
            SUPPORT=float(support),
            BLOCK=block,
            num_warps=warps,
        )
    return firsts, sizes, frequencies


def _gaussian_frequencies_fake(scales, support, total, widest):
    tables = scales.shape[0]
    return tuple(scales.new_empty(shape, dtype=torch.int32) for shape in ((tables,), (tables,), (tables, widest)))


operator(
    "gaussian_frequencies(Tensor scales, float support, int total, SymInt widest) -> (Tensor, Tensor, Tensor)",
    _gaussian_frequencies,
    _gaussian_frequencies_fake,
)


def builds() -> list[Build]:
    """The codec's own scales (770 entries at most), and tables of up to 4094, for scales of 256."""
    pointers = {"scales": "*fp64", "firsts": "*i32", "sizes": "*i32", "frequencies": "*i32"}
    found = []
    for widest in (770, 4094):
        block, warps = _launch_shape(widest)
        signature = pointers | {"total": "i32", "widest": "i32"}
        constants = {"SUPPORT": 6.0, "BLOCK": block}
        found.append(Build(f"gaussian_frequencies_{block}", _frequencies_kernel, signature, constants, warps))
    return found
