"""Integer probability tables of zero-mean Gaussians, built where they are used: for codecs that bring their own scales.

The table of a scale sigma holds the symbols -K .. K with K = max(1, ceil(support * sigma)) and a sentinel for all other
values. The probability of symbol k is p_k = Phi((k + 1/2) / sigma) - Phi((k - 1/2) / sigma). Frequencies are integers
f >= 1 with a given total, symmetric, and chosen for a short expected code by the rule of
`fastcodec.entropy.gaussian.build_frequencies`: from 1 everywhere, raise again and again what gains most for each slot,

    gain = p log(1 + 1 / f),

the first of equals in the order centre, pairs from the inside out, sentinel. A pair (-k, k) takes two slots, the centre
and the sentinel one; when a single slot is left, the better of those two gets it.

An entry's gains fall with f, so nearly all of the order is known from a threshold: every gain above it is taken. The
kernel, a program for each table, finds the threshold t by bisection, with f = ceil(1 / (exp(t / p) - 1)), the least f
whose gain is no more than t, for all entries at once. The slots S(t) that this takes satisfy

    1 / t - K - 1 <= S(t) <= 1 / t + 2 K + 2          (the sum of p is 1)

between which the search begins. It ends a little above the least t that fits, at 1 + 1e-9 times it, since rounding,
3e-11 of t at most, may have put a gain on the wrong side. What is left, as a rule one slot or none, is given away
in the rule's order.

A stream decodes only with exactly the tables that it was written with. Tables made in floating point are the same on
both sides as long as no two gains whose order matters are so close that rounding decides. With masses as differences of
erfc in float64, gains are right to 1e-12 for scales up to 256. For the codec's own 63 scales the nearest two gains are
4e-7 apart, and the tables equal the stored ones, which were built in 120-bit arithmetic. For other scales,
`tie_margins` says how far apart they are: below 1e-11, move the scale a little.
"""

from __future__ import annotations

import math

import torch
import triton
import triton.language as tl
from torch import Tensor

from .common import Build, on_gpu, operator
from .gaussian_likelihood import erfcx, interval

#: No scale below it has a table: 1 / sigma must stay finite.
LEAST_SCALE = 1e-300

_LEAST_SCALE = tl.constexpr(LEAST_SCALE)
_ROOT_2 = tl.constexpr(math.sqrt(2))

# A threshold's bounds are at most 1.4 / total apart, unless a table fills most of its total, and 30 halvings settle it
# to 1e-9, as close as the margin above it allows. Any number gives the same tables: what the search leaves is given
# away after it.
STEPS = 30
ABOVE = 1 + 1e-9
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


# ---- reference


def _entries(scales: Tensor, support: float, limit: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """What tables are built from: whether each exists (bool [T]), its K (int64 [T]), and mass (float64) and slots
    (int64) of its centre, K pairs and sentinel, [T, limit + 2]; 0 beyond."""
    exists = (scales >= LEAST_SCALE) & (scales * support <= limit)
    scales = torch.where(exists, scales, 1.0)
    reach = torch.where(exists, (scales * support).ceil().clamp(min=1), 0.0).long()
    lane = torch.arange(limit + 2, device=scales.device)
    inverse = 1 / (scales[:, None] * math.sqrt(2))
    above = torch.erfc((lane - 0.5) * inverse)
    mass = 0.5 * (above - torch.erfc((lane + 0.5) * inverse))
    sentinel = lane == reach[:, None] + 1
    inside = lane <= reach[:, None] + 1
    mass = torch.where(sentinel, above, mass) * inside
    slots = torch.where(sentinel | (lane == 0), 1, 2) * inside
    return exists, reach, mass, slots


def _gains(mass: Tensor, frequency: Tensor) -> Tensor:
    """p log(1 + 1 / f), float64 whatever PyTorch's default; infinite where there is no f."""
    return torch.where(frequency >= 1, mass * torch.log1p(1 / frequency.clamp(min=1).double()), math.inf)


def _settled(exists: Tensor, reach: Tensor, mass: Tensor, slots: Tensor, total: int) -> Tensor:
    """Frequencies int64 [T, lanes] by the rule above; 0 beyond a table's entries."""

    def raised(threshold: Tensor) -> Tensor:
        exponent = (threshold[:, None] / mass.clamp(min=LEAST_SCALE)).clamp(max=1.0)
        return (1 / torch.expm1(exponent)).ceil().long() * (slots > 0)

    low, high = 1 / (total + reach + 1).double(), 1 / (total - 2 * reach - 2).clamp(min=1).double()
    for _ in range(STEPS):
        middle = (low + high) / 2
        fits = (raised(middle) * slots).sum(1) <= total
        low, high = torch.where(fits, low, middle), torch.where(fits, middle, high)
    frequency = raised(high * ABOVE)
    left = torch.where(exists, total - (frequency * slots).sum(1), 0)
    while bool((left > 0).any()):
        gain = _gains(mass, frequency).masked_fill((slots == 0) | (slots > left[:, None]), -1)
        best = gain.argmax(1, keepdim=True)
        best = (torch.arange(mass.shape[1], device=mass.device) == best) & (left > 0)[:, None]
        frequency = frequency + best
        left = left - (best * slots).sum(1)
    return frequency


def gaussian_frequencies_reference(
    scales: Tensor, support: float, total: int, widest: int | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    """The definition of `gaussian_frequencies`."""
    widest = _check(scales, support, total, widest)
    exists, reach, mass, slots = _entries(scales, support, min(total, widest) // 2 - 1)
    frequency = _settled(exists, reach, mass, slots, total)
    symbol = torch.arange(widest, device=scales.device) - reach[:, None]
    lane = torch.where(symbol == reach[:, None] + 1, symbol, symbol.abs()).clamp(max=mass.shape[1] - 1)
    inside = exists[:, None] & (symbol <= reach[:, None] + 1)
    frequencies = torch.where(inside, frequency.gather(1, lane), 0)
    sizes = torch.where(exists, 2 * reach + 2, 0)
    return -reach.int(), sizes.int(), frequencies.int()


def tie_margins(scales: Tensor, support: float, total: int) -> Tensor:
    """How far apart the gains are whose order decides a table: the relative distance of the nearest two.

    Arguments as for `gaussian_frequencies`. Returns float64 [T]. A table with a margin m is the same wherever gains are
    computed with relative errors below m / 2; those of this file are below 1e-12 for scales up to 256.
    """
    widest = _check(scales, support, total, None)
    exists, reach, mass, slots = _entries(scales, support, min(total, widest) // 2 - 1)
    frequency = _settled(exists, reach, mass, slots, total)

    offered = torch.where(slots > 0, _gains(mass, frequency), 0.0)
    taken = torch.where(slots > 0, _gains(mass, frequency - 1), math.inf)
    best_offer = offered.amax(1)
    last, lane = taken.min(1, keepdim=True)
    # A pair still offers more than the last gain taken: then a single slot was left, which a pair could not take, and
    # this gain was chosen from those of the two singles alone. Without it, what its lane took before comes to light.
    single = last.squeeze(1) < best_offer
    before = _gains(mass.gather(1, lane), frequency.gather(1, lane) - 2)
    last_in_order = torch.where(single, taken.scatter(1, lane, before).amin(1), last.squeeze(1))
    other = torch.where(slots == 1, offered, 0.0).scatter(1, lane, 0.0).amax(1)
    margin = last_in_order / best_offer - 1
    return torch.where(single, torch.minimum(margin, last.squeeze(1) / other - 1), margin)


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
    widest = _check(scales, support, total, widest)
    return torch.ops.fastcodec.gaussian_frequencies(scales, support, total, widest)


def _check(scales: Tensor, support: float, total: int, widest: int | None) -> int:
    """The width of the result, after a look at the arguments."""
    if scales.dim() != 1 or scales.dtype != torch.float64:
        raise ValueError(f"scales must be float64 [T], not {scales.dtype} {list(scales.shape)}")
    if not 0 < support < math.inf or not 4 <= total <= 2**16:
        raise ValueError(f"support must be positive and total from 4 to 2^16, not {support} and {total}")
    if widest is not None:
        if widest < 4:
            raise ValueError(f"a table has 4 entries or more: widest must not be {widest}")
        return widest
    listed = scales.tolist()
    for scale in listed:
        if not (scale >= LEAST_SCALE and scale * support <= total // 2 - 1):
            raise ValueError(f"no table of total {total} and support {support} has the scale {scale}")
    return 2 * max(1, math.ceil(max(listed, default=0) * support)) + 2


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
