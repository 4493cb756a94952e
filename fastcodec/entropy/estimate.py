"""The ideal code length of a latent: what a perfect coder would spend, for estimates beside real file sizes."""

from __future__ import annotations

from functools import cache

import torch
from torch import Tensor

from .gaussian import SCALES

_FLOOR = 1e-9  # probabilities below this count as this: 29.9 bits, about what an escape costs


@cache
def code_lengths() -> Tensor:
    """Bits of a symbol by scale index and magnitude: float64 [64, K], the last column standing for all beyond.

    -log2 of max(Phi((s + 1/2) / sigma) - Phi((s - 1/2) / sigma), 1e-9), sigma the table's scale (He et al. 2021,
    equation 3), in float64: not of the integer tables, so that their loss is visible.
    """
    scale = torch.as_tensor(SCALES, dtype=torch.float64)[:, None]
    magnitude = torch.arange(int(7 * float(scale.max())), dtype=torch.float64)[None, :]
    upper = torch.special.ndtr((0.5 - magnitude) / scale)
    lower = torch.special.ndtr((-0.5 - magnitude) / scale)
    return -torch.log2((upper - lower).clamp(min=_FLOOR))
