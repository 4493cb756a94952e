"""The number formats of the integer entropy side, and the choice of weight exponents that proves them exact.

An activation is int8 standing for value * 2^4; a mean is int16 standing for value * 2^4; a scale index is 0..63. A
layer computes clamp((acc + bias + (1 << (s - 1))) >> s, low, high) with acc the sum of int8 products. A float32 matrix
product of integers is exact in any order of summation while every partial sum stays below 2^24 (docs/integer.md), so
the exponent of each output channel's weights is lowered until the bound holds.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from .gaussian import COUNT

ACTIVATION_BITS = 4
ACTIVATION_MAX = 127
WEIGHT_MAX = 127
MEAN_BITS = ACTIVATION_BITS  # the context takes y^ in units of the means and shifts it into activations
EXACT_LIMIT = 2**24
MAX_SHIFT = 20


class Format(NamedTuple):
    """Outputs of a layer: integers low..high that stand for value * 2^bits."""

    bits: int
    low: int
    high: int


ACTIVATION = Format(ACTIVATION_BITS, 0, ACTIVATION_MAX)
SIGNED_ACTIVATION = Format(ACTIVATION_BITS, -ACTIVATION_MAX, ACTIVATION_MAX)
MEAN = Format(MEAN_BITS, -(2**15), 2**15 - 1)
SCALE_INDEX = Format(0, 0, COUNT - 1)


def accumulator_bound(weight: Tensor, bias: Tensor, shift: Tensor) -> Tensor:
    """The largest magnitude that any partial sum of each output channel can reach, rounding term included.

    weight: integers [outputs, ...]; bias: integers [outputs]; shift: [outputs]. Returns int64 [outputs].
    """
    total = weight.to(torch.int64).abs().flatten(1).sum(1)
    half = torch.bitwise_left_shift(torch.ones_like(total), shift.to(torch.int64) - 1)
    return total * ACTIVATION_MAX + bias.to(torch.int64).abs() + half


def weight_exponents(weight: Tensor, bias: Tensor, input_bits: int, output_bits: int) -> Tensor:
    """For each output channel the largest exponent k such that round(weight * 2^k) is int8, the shift
    k + input_bits - output_bits lies in 1..MAX_SHIFT, and the exactness bound holds.

    weight: float [outputs, ...]; bias: float [outputs]; returns int32 [outputs].
    """
    flat = weight.flatten(1)
    peak = flat.abs().amax(1).clamp(min=1e-30)
    exponent = torch.floor(torch.log2((WEIGHT_MAX + 0.49) / peak))
    # |sum| in float with a margin for the weights' rounding (1/2 each) and the bias's: the exporter proves it exactly.
    fan_in = flat.shape[1]
    total = flat.abs().sum(1) * ACTIVATION_MAX + bias.abs() * 2.0**input_bits
    room = EXACT_LIMIT * 0.99 - 0.5 * fan_in * ACTIVATION_MAX
    exponent = torch.minimum(exponent, torch.floor(torch.log2(room / total.clamp(min=1e-30))))
    offset = input_bits - output_bits
    return exponent.clamp(1 - offset, MAX_SHIFT - offset).to(torch.int32)
