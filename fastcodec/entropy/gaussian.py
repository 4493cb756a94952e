"""The codec's Gaussian tables: 64 zero-mean scales, log-spaced from 0.11 to 64, as integers that ship with the package.

They are built offline in high precision and never at run time, so no machine's `erf` can change a stream. Tables of
other scales are built where they are used, and refused where rounding could change one.

    python -m fastcodec.entropy.gaussian --write     # rebuilds gaussian64.bin (needs mpmath) and prints its SHA-256

Table i holds the symbols -K .. K with K = max(1, ceil(SUPPORT sigma_i)), and the sentinel for everything else. The
probability of symbol k is Phi((k + 1/2) / sigma) - Phi((k - 1/2) / sigma). Index 0 means "not coded, the symbol is 0".
"""

import argparse
import hashlib
import heapq
import math
import sys
from collections.abc import Sequence
from functools import cache
from importlib.resources import files

import numpy as np
import torch
from torch import Tensor

from ..kernels.errors import UnavailableError
from ..kernels.rans.gaussians import gaussian_frequencies_reference, tie_margins
from ..kernels.rans.tables import PROBABILITY_TOTAL, TableSet

COUNT = 64
LEAST_SCALE = 0.11
GREATEST_SCALE = 64.0
# Reach of a table in scales. Latents have heavier tails than their Gaussian: ending the tables at 4 sigma instead costs
# 0.3 % of the rate at 0.2 bits a pixel and 0.9 % at 1.5, in escapes of 30 bits; 7 gains nothing more.
# (docs/architecture.md)
SUPPORT = 6
# The scale (standard deviation) of each index, in quantisation steps. SCALES[0] is nominal: it is not coded.
SCALES = np.geomspace(LEAST_SCALE, GREATEST_SCALE, COUNT)

FILE = "gaussian64.bin"
# Of scales that tables are built for: gains are right to 1e-12 up to the greatest, so that a table with this margin is
# the same everywhere.
GREATEST_BUILT = 256.0
LEAST_MARGIN = 1e-11
SHA256 = "63c0e14c493cb77db9f7c00a67769a7b7dc34883fa00b3821195090d36105e9e"


def gaussian_tables(scales: Tensor | Sequence[float] | np.ndarray | None = None) -> TableSet:
    """Tables of zero-mean Gaussians, by number: those of the package, or of other scales.

    Without scales, the 64 that come with the package, whose index 0 is not coded. With them, table i is that of
    scales[i], every symbol is coded, and `fastcodec.rans.scale_indexes(sigmas, scales)` finds the nearest. Equal scales
    give equal tables on every device: a tensor's tables are built where it is, on a GPU by one kernel.

    Args:
        scales: 1 to 256 standard deviations in quantisation steps, above 0 and at most 256; taken as float64.

    Raises:
        ValueError: the scales are not so, or two choices in a table are so close that rounding would decide.
        UnavailableError: scales on a GPU, and no Triton.
        RuntimeError: the package's file is not the one that streams were written with.
    """
    if scales is None:
        return _packaged_tables()
    if not isinstance(scales, Tensor):
        scales = torch.from_numpy(np.array(scales, dtype=np.float64))
    scales = scales.detach().double()
    if scales.dim() != 1 or not bool(((scales > 0) & (scales <= GREATEST_BUILT)).all()):
        raise ValueError(f"scales must be numbers above 0, of at most {GREATEST_BUILT:.0f}, in one dimension")
    for scale, margin in zip(scales.tolist(), tie_margins(scales, SUPPORT, PROBABILITY_TOTAL).tolist(), strict=True):
        if margin < LEAST_MARGIN:
            raise ValueError(f"rounding would decide the table of the scale {scale}: move it a little")
    build = _frequencies_on_gpu if scales.device.type == "cuda" else gaussian_frequencies_reference
    firsts, sizes, frequencies = (part.cpu().numpy() for part in build(scales, SUPPORT, PROBABILITY_TOTAL))
    return TableSet(
        (first, row[:size]) for first, size, row in zip(firsts.tolist(), sizes.tolist(), frequencies, strict=True)
    )


@cache
def _packaged_tables() -> TableSet:
    """The 64 tables (with skip), loaded once."""
    data = files(__package__).joinpath(FILE).read_bytes()
    if hashlib.sha256(data).hexdigest() != SHA256:
        raise RuntimeError(f"{FILE} is damaged: its SHA-256 is not {SHA256}. Install fastcodec again.")
    return TableSet.from_bytes(data)


def _frequencies_on_gpu(scales: Tensor, support: float, total: int) -> tuple[Tensor, Tensor, Tensor]:
    try:
        from ..kernels.triton.gaussian_cdf import gaussian_frequencies
    except ImportError as error:
        raise UnavailableError(f"tables are built on a GPU by a Triton kernel: {error}") from error
    return gaussian_frequencies(scales, support, total)


def support(scale: float) -> int:
    """K, the largest symbol of a table."""
    return max(1, math.ceil(SUPPORT * scale))


def build_frequencies(index: int) -> list[int]:
    """The frequencies of the symbols -K .. K and the sentinel of one scale, in 120-bit arithmetic.

    Symmetric tables of sum 2^14 whose entries are at least 1, for a short expected code: start from 1 everywhere and
    raise, again and again, what gains most per slot. A pair (-k, k) takes two slots, the centre and the sentinel one;
    when a single slot is left, the better of those two gets it. That last slot keeps 8 of the 63 tables from the very
    best: up to 2e-7 nats a symbol. The rule is part of the format all the same (`SHA256`).
    """
    from mpmath import erfc, exp, log, mp, mpf, sqrt

    with mp.workprec(120):
        step = (log(mpf(64)) - log(mpf(11) / 100)) / (COUNT - 1)
        sigma = exp(log(mpf(11) / 100) + index * step)
        largest = support(float(sigma))
        # The mass above k - 1/2, for k = 0 .. K + 1.
        above = [erfc((mpf(k) - mpf(1) / 2) / (sigma * sqrt(2))) / 2 for k in range(largest + 2)]
        half = [above[k] - above[k + 1] for k in range(largest + 1)]
        mass = [*half, 2 * above[largest + 1]]  # the centre, the pairs (one side's), the sentinel
        slots = [1, *[2] * largest, 1]

        def gain(i: int, frequency: int) -> mpf:
            return mass[i] * log(1 + mpf(1) / frequency)

        # Nearly all at once: raise every entry while its gain stays above a threshold that the final one cannot reach.
        # Along the optimum f is about 2^14 p, so a gain is about 2^-14; those above 1.03 times that are taken for sure.
        threshold = float(mpf("1.03") / PROBABILITY_TOTAL)
        frequencies = [
            max(1, math.ceil(1 / math.expm1(threshold / float(p))) if p * 64 > threshold else 1) for p in mass
        ]
        left = PROBABILITY_TOTAL - sum(f * n for f, n in zip(frequencies, slots, strict=True))
        assert left >= 0
        heap = [(-gain(i, f), i) for i, f in enumerate(frequencies)]
        heapq.heapify(heap)
        while left > 0:
            _, i = heapq.heappop(heap)
            if slots[i] > left:
                continue  # a pair, and one slot left
            frequencies[i] += 1
            left -= slots[i]
            heapq.heappush(heap, (-gain(i, frequencies[i]), i))
    centre, *sides, sentinel = frequencies
    return [*reversed(sides), centre, *sides, sentinel]


def build_tables() -> TableSet:
    """The whole set, from nothing but the formula. Takes some seconds."""
    tables: list[tuple[int, list[int]]] = [(0, [PROBABILITY_TOTAL])]
    for index in range(1, COUNT):
        frequencies = build_frequencies(index)
        tables.append((-(len(frequencies) - 2) // 2, frequencies))
    return TableSet(tables, skip=True)


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m fastcodec.entropy.gaussian", description="Build the Gaussian tables."
    )
    parser.add_argument("--write", action="store_true", help=f"write {FILE} into the package")
    arguments = parser.parse_args()
    data = build_tables().to_bytes()
    digest = hashlib.sha256(data).hexdigest()
    print(f"{FILE}: {len(data)} bytes, SHA-256 {digest}, {'as' if digest == SHA256 else 'not as'} expected")
    if arguments.write:
        with open(str(files(__package__).joinpath(FILE)), "wb") as file:
            file.write(data)
    return 0 if arguments.write or digest == SHA256 else 1


if __name__ == "__main__":
    sys.exit(main())
