"""Gaussian mixtures in the coder's integers: how a network's outputs become a `MixturePass`, and one distribution.

The rule, its bounds and its proofs stand in mixture.h.
"""

import itertools
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from . import _cpu
from .passes import MAX_COMPONENTS

# The format's constants; mixture.h is their home, and a test compares.
WEIGHT_BITS = 12
MEAN_BITS = 6
SCALE_STEPS = 24  # an octave
SCALE_ORIGIN = 80  # the scale that stands for sigma = 1


def quantise_mixtures(weights: Tensor, means: Tensor, sigmas: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """A mixture's integers from a network's outputs: weights, means and scales of a MixturePass,
    contiguous and on their device.

    Encoder and decoder must get the same integers: they must call this with equal tensors on the same kind of device.

    Weights are rounded so that their sums up to each component are nearest; one below about 2^-13 becomes 0, and its
    component is left out. Means are rounded to 1/64 and clamped to -512 .. 511.98: where latents are larger, subtract
    the same integer from an element's means and symbol. Standard deviations are rounded to 24 steps an octave, 0.0992
    to 156.7.

    Args:
        weights: float [K, ...], at least 0, not all 0; need not be normalised over K.
        means: float [K, ...], in units of symbols.
        sigmas: float [K, ...], above 0, likewise. All are finite.
    """
    # One after the other: a GPU's cumsum may add in any order.
    shares = torch.stack(list(itertools.accumulate(weights.double())))
    edges = (shares / shares[-1:] * (1 << WEIGHT_BITS)).round()
    counts = torch.diff(edges, dim=0, prepend=torch.zeros_like(edges[:1]))
    limits = torch.iinfo(torch.int16)
    fixed = (means.double() * (1 << MEAN_BITS)).round().clamp(limits.min, limits.max)
    steps = (sigmas.double().log2() * SCALE_STEPS + SCALE_ORIGIN).round().clamp(0, 255)
    return (
        counts.to(torch.int16).contiguous(),
        fixed.to(torch.int16).contiguous(),
        steps.to(torch.uint8).contiguous(),
    )


def frequencies(weights: Sequence[int], means: Sequence[int], scales: Sequence[int]) -> tuple[int, np.ndarray]:
    """One element's distribution: its first symbol, and uint16 [n + 1] frequencies, the escape sentinel's last.

    They sum to 2^14. The parameters are K integers each, as in a MixturePass.

    Raises:
        ValueError: the numbers are out of range, or the weights do not sum to 4096.
    """
    lengths = {len(weights), len(means), len(scales)}
    if len(lengths) != 1 or not 1 <= len(weights) <= MAX_COMPONENTS:
        raise ValueError(f"a mixture has 1 to {MAX_COMPONENTS} components, with a weight, a mean and a scale each")
    if min(weights) < 0 or sum(weights) != 1 << WEIGHT_BITS:
        raise ValueError(f"the weights must be at least 0 and sum to {1 << WEIGHT_BITS}: {list(weights)}")
    if min(means) < -32768 or max(means) > 32767 or min(scales) < 0 or max(scales) > 255:
        raise ValueError("means must fit int16 and scales uint8")
    return _cpu.mixture_frequencies(np.array(weights, np.uint16), np.array(means, np.int16), np.array(scales, np.uint8))
