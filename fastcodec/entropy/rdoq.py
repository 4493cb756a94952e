"""Rate-distortion optimised quantisation (RDOQ) of the latents, in the encoder alone.

A symbol is y - mean rounded to the nearest integer, or to the next one towards zero where that saves more bits than its
squared error is worth: RDOQ as video encoders have it (Karczewicz, Ye, Chong, VCEG-AH21, 2008), each symbol by itself.
docs/architecture.md has what it gains. kernels/triton/parameters.py does the same on a GPU.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..errors import SymbolRangeError
from .fixed_point import MEAN_BITS

# How dear a squared error in a latent is to the rounding, against the loss that the model was trained with: the
# synthesis amplifies errors, of which all are towards the mean here, by more than the inverse gain alone says. Measured
# for the weights that ship (`python -m bench.rounding`, docs/architecture.md): the best value moves with training.
WEIGHT = 40.0
_SYMBOL_LIMIT = 2**15 - 1


def distortion_weight(lagrangian: float, inverse_gain: Tensor) -> Tensor:
    """Bits that a unit of squared error in each latent is worth: float32 [M].

    lagrangian: lambda of the loss that the model was trained with; inverse_gain: [M]; both at the quality.
    """
    return WEIGHT * lagrangian * 255**2 / 3 * inverse_gain.square()


def symbols(y: Tensor, means: Tensor, indexes: Tensor, weight: Tensor, lengths: Tensor) -> Tensor:
    """The symbols of latents y, float32 [..., M], as int16; zero where the element is not coded.

    means: int32, like y, in 1/16; indexes: uint8, like y; weight: `distortion_weight`; lengths: bits by index and
    magnitude, float32 (entropy/code_length.py). Raises SymbolRangeError where 16 bits do not reach.
    """
    columns = lengths.shape[1]
    residual = y - means.float() / 2**MEAN_BITS
    nearest = residual.round()
    if nearest.numel() and float(nearest.abs().max()) > _SYMBOL_LIMIT:
        raise SymbolRangeError("a latent is further from its mean than the 16 bits of a symbol reach")
    closer = nearest - nearest.sign()
    row = indexes.long() * columns
    magnitude = nearest.abs().long().clamp_(max=columns - 1)
    saved = lengths.flatten()[row + magnitude] - lengths.flatten()[row + (magnitude - 1).clamp_(min=0)]
    lost = weight * ((residual - closer).square() - (residual - nearest).square())
    chosen = torch.where(saved > lost, closer, nearest)
    return chosen.mul_(indexes > 0).to(torch.int16)
