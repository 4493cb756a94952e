"""Integer probability tables of zero-mean Gaussians of any scale: the rule, and its plain PyTorch twin.

The table of a scale sigma holds the symbols -K .. K with K = max(1, ceil(support * sigma)) and a sentinel for all other
values. The probability of symbol k is p_k = Phi((k + 1/2) / sigma) - Phi((k - 1/2) / sigma). Frequencies are integers
f >= 1 with a given total, symmetric, and chosen for a short expected code by the rule of
`fastcodec.entropy.gaussian.build_frequencies`: from 1 everywhere, raise again and again what gains most for each slot,

    gain = p log(1 + 1 / f),

the first of equals in the order centre, pairs from the inside out, sentinel. A pair (-k, k) takes two slots, the centre
and the sentinel one; when a single slot is left, the better of those two gets it.

A stream decodes only with exactly the tables that it was written with. Tables made in floating point are the same on
both sides as long as no two gains whose order matters are so close that rounding decides. With masses as differences of
erfc in float64, gains are right to 1e-12 for scales up to 256. For the codec's own 63 scales the nearest two gains are
4e-7 apart, and the tables equal the stored ones, which were built in 120-bit arithmetic. For other scales,
`tie_margins` says how far apart they are.
"""

import math

import torch
from torch import Tensor

#: No scale below it has a table: 1 / sigma must stay finite.
LEAST_SCALE = 1e-300

# A threshold's bounds are at most 1.4 / total apart, unless a table fills most of its total, and 30 halvings settle it
# to 1e-9, as close as the margin above it allows. Any number gives the same tables: what the search leaves is given
# away after it.
STEPS = 30
ABOVE = 1 + 1e-9


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
    widest = table_width(scales, support, total, widest)
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
    widest = table_width(scales, support, total, None)
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


def table_width(scales: Tensor, support: float, total: int, widest: int | None) -> int:
    """The width of the result of `gaussian_frequencies`, after a look at its arguments."""
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
