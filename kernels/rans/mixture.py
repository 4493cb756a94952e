"""Gaussian mixtures in the coder's integers: how a network's outputs become a `MixturePass`, and one distribution.

The rule, its bounds and its proofs stand in mixture.h.
"""

import itertools
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from ._cpu_abi import mixture_frequencies
from .passes import MAX_COMPONENTS, Mixture

# The format's constants; mixture.h is their home, and a test compares.
WEIGHT_BITS = 12
MEAN_BITS = 6
SCALE_STEPS = 24  # an octave
SCALE_ORIGIN = 80  # the scale that stands for sigma = 1


def quantise_mixtures(weights: Tensor, means: Tensor, sigmas: Tensor) -> Mixture:
    """A mixture's integers from a network's outputs: of their shape, contiguous, and on their device.

    Encoder and decoder must get the same integers: they must call this with equal tensors on the same kind of device.

    Weights are rounded so that their sums up to each component are nearest; one below about 2^-13 becomes 0, and its
    component is left out. Means are rounded to 1/64 and clamped to -512 .. 511.98: where latents are larger, subtract
    the same integer from an element's means and symbol. Standard deviations are rounded to 24 steps an octave, and
    clamped to 0.0992 .. 156.7; 0 counts as the least.

    What is no mixture is marked and not guessed at: an element with a NaN, a weight or a sigma below 0, an infinite
    weight, or none above 0 gets weights of 0. `encode` and the decoder refuse those, with a ValueError. So values are
    not looked at here, and nothing waits for a GPU.

    Args:
        weights: float [K, ...] of K components, 1 to 4; at least 0, not all 0; need not be normalised over K. For
            `encode`, [K, P, C].
        means: float [K, ...], in units of symbols.
        sigmas: float [K, ...], above 0, likewise.

    Raises:
        ValueError: shapes that differ, or K is not 1 to 4.
    """
    if not weights.shape == means.shape == sigmas.shape:
        shapes = ", ".join(str(list(tensor.shape)) for tensor in (weights, means, sigmas))
        raise ValueError(f"weights, means and sigmas must be of one shape [components, ...], not {shapes}")
    if weights.dim() == 0 or not 1 <= weights.shape[0] <= MAX_COMPONENTS:
        raise ValueError(f"a mixture has 1 to {MAX_COMPONENTS} components, not those of {list(weights.shape)}")
    # One after the other: a GPU's cumsum may add in any order.
    shares = torch.stack(list(itertools.accumulate(weights.double())))
    edges = (shares / shares[-1:] * (1 << WEIGHT_BITS)).round()
    counts = torch.diff(edges, dim=0, prepend=torch.zeros_like(edges[:1]))
    fixed = (means.double() * (1 << MEAN_BITS)).round()
    steps = (sigmas.double().log2() * SCALE_STEPS + SCALE_ORIGIN).round()
    # A comparison with NaN is false.
    legal = ((weights >= 0) & (counts >= 0) & (fixed == fixed) & (steps == steps)).all(0)
    limits = torch.iinfo(torch.int16)
    return Mixture(
        counts.where(legal, 0).to(torch.int16).contiguous(),
        fixed.nan_to_num(0).clamp(limits.min, limits.max).to(torch.int16).contiguous(),
        steps.nan_to_num(0).clamp(0, 255).to(torch.uint8).contiguous(),
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
    return mixture_frequencies(np.array(weights, np.uint16), np.array(means, np.int16), np.array(scales, np.uint8))
