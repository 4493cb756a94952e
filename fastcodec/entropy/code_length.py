"""The ideal code length of a latent, which a perfect coder would spend: for estimates beside real file sizes."""

from __future__ import annotations

from functools import cache

import torch
from torch import Tensor

from ..kernels.rans.tables import PROBABILITY_TOTAL, TableSet
from .gaussian import SCALES

ESCAPE_BITS = 16
_FLOOR = 1e-9  # probabilities below this count as this: 29.9 bits, about what an escape costs


@cache
def code_lengths() -> Tensor:
    """Bits of a symbol by scale index and magnitude: float64 [64, K], the last column standing for all beyond.

    -log2 of max(Phi((s + 1/2) / sigma) - Phi((s - 1/2) / sigma), 1e-9), sigma the table's scale (He et al. 2021,
    equation 3), in float64: not of the integer tables, so that their loss is visible.
    """
    scale = torch.as_tensor(SCALES, dtype=torch.float64, device="cpu")[:, None]
    magnitude = torch.arange(int(7 * float(scale.max())), dtype=torch.float64, device="cpu")[None, :]
    upper = torch.special.ndtr((0.5 - magnitude) / scale)
    lower = torch.special.ndtr((-0.5 - magnitude) / scale)
    return -torch.log2((upper - lower).clamp(min=_FLOOR))


def code_lengths_of(tables: TableSet) -> Tensor:
    """`code_lengths` of integer tables, symmetric about 0: the bits of a symbol's frequency, or of an escape beyond."""
    found = torch.empty(tables.count, code_lengths().shape[1], dtype=torch.float64, device="cpu")
    for index, row in enumerate(found):
        bits = -torch.log2(torch.from_numpy(tables.frequencies(index).astype("float64")) / PROBABILITY_TOTAL)
        row[:] = bits[-1] + ESCAPE_BITS
        positive = bits[-tables.first_symbol(index) : -1]  # from the symbol 0
        row[: len(positive)] = positive[: len(row)]
    if tables.skip:
        found[0, 0] = 0.0
    return found
