"""The encoder's choice of symbols on a GPU: rounding that weighs bits against distortion (RDOQ).

    symbol = n or n - sign(n), n = round(y - mean)      the latter where it saves more bits than its squared error costs

It is what `fastcodec.entropy.rdoq` does on the CPU; here it stands behind the parameter network, in the same kernel
(parameters.py).
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

MEAN_BITS = 4
SYMBOL_MAX = 2**15 - 1
#: What an error word says.
NOT_FINITE, OUT_OF_RANGE = 1, 2


class SymbolChoice(NamedTuple):
    """What an encoder chooses the symbols of a pass by.

    y: latents, float32 [P, M]; weight: bits that a unit of squared error is worth, float32 [rows, M], one row for all
    tiles or one for each quality; lengths: bits by scale index and magnitude, float32 [64, K], the last column for all
    magnitudes beyond.
    """

    y: Tensor
    weight: Tensor
    lengths: Tensor


class CodedSymbols(NamedTuple):
    """Where an encoder's pass is written.

    symbols: int16 [P, M]; indexes: uint8 [P, M]; values: 16 * symbol + mean, int32 [P, M], perhaps columns of a larger
    tensor: those of the first pass are the anchors of the second, and later groups' `before`. error: int32 [1], becomes
    NOT_FINITE or OUT_OF_RANGE where a y is not finite or a residual rounds to more than 16 bits, whose symbol then is
    0; else it stays as it is.
    """

    symbols: Tensor
    indexes: Tensor
    values: Tensor
    error: Tensor


def choose_reference(means: Tensor, choice: SymbolChoice, out: CodedSymbols, rows: slice, quality: int) -> None:
    """Symbols and values of some rows of a pass, all of one quality, whose indexes are written already; in float32.

    A symbol is y - mean, rounded to the nearest integer (ties to even), or to the next one towards zero where that
    saves more bits than its squared error is worth; it is 0 where the index is 0. means: int16 [P, M], in 1/16.
    """
    y, index, lengths = choice.y[rows], out.indexes[rows].long(), choice.lengths
    residual = y - means[rows].float() / 2**MEAN_BITS
    nearest = residual.round()
    fits = nearest.abs() <= SYMBOL_MAX
    if not fits.all():
        out.error.fill_(OUT_OF_RANGE if y.isfinite().all() else NOT_FINITE)
    nearest = torch.where(fits, nearest, 0)
    closer = nearest - nearest.sign()
    magnitude = nearest.abs().long().clamp(max=lengths.shape[1] - 1)
    saved = lengths[index, magnitude] - lengths[index, (magnitude - 1).clamp(min=0)]
    worth = choice.weight[quality if choice.weight.shape[0] > 1 else 0]
    lost = worth * ((residual - closer).square() - (residual - nearest).square())
    out.symbols[rows] = (torch.where(saved > lost, closer, nearest) * (index > 0)).to(torch.int16)
    out.values[rows] = (out.symbols[rows].int() << MEAN_BITS) + means[rows]


# ---- in kernels

_MEAN_BITS = tl.constexpr(MEAN_BITS)
_MEAN_UNIT = tl.constexpr(2.0**-MEAN_BITS)
_SYMBOL_MAX = tl.constexpr(SYMBOL_MAX)
_NOT_FINITE = tl.constexpr(NOT_FINITE)
_OUT_OF_RANGE = tl.constexpr(OUT_OF_RANGE)
_GREATEST = tl.constexpr(torch.finfo(torch.float32).max)
# 1.5 * 2^23: added to a float32 below 2^22 and taken away again it leaves the nearest integer, ties to even.
_ROUNDER = tl.constexpr(12582912.0)


@triton.jit
def choose(mean, index, y, weight, lengths, error, valid, K: tl.constexpr):
    """The symbols of `choose_reference`, int32, for means, indexes and y of [positions, latents]; K magnitudes.

    Compiled without fusing multiplications into additions, so that it is what PyTorch computes.
    """
    residual = y - mean.to(tl.float32) * _MEAN_UNIT
    nearest = (residual + _ROUNDER) - _ROUNDER
    fits = tl.abs(nearest) <= _SYMBOL_MAX
    fault = tl.where(tl.abs(y) <= _GREATEST, _OUT_OF_RANGE, _NOT_FINITE)
    tl.store(error + tl.zeros_like(fault), fault, mask=valid & (fits == 0))
    nearest = tl.where(fits, nearest, 0.0)
    closer = nearest - tl.where(nearest > 0, 1.0, tl.where(nearest < 0, -1.0, 0.0))
    magnitude = tl.minimum(tl.abs(nearest), K - 1).to(tl.int32)
    row = lengths + index * K
    saved = tl.load(row + magnitude) - tl.load(row + tl.maximum(magnitude - 1, 0))
    lost = weight * ((residual - closer) * (residual - closer) - (residual - nearest) * (residual - nearest))
    return tl.where((saved > lost) & (index > 0), closer, tl.where(index > 0, nearest, 0.0)).to(tl.int32)


@triton.jit
def reconstructed(symbol, mean):
    """Decoded latents in 1/16, int32."""
    return (symbol << _MEAN_BITS) + mean
