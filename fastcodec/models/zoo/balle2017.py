"""bls2017: Ballé, Laparra, Simoncelli, "End-to-end optimized image compression", ICLR 2017.

    x -- conv 9x9 / 4 -- GDN -- conv 5x5 / 2 -- GDN -- conv 5x5 / 2 -- GDN --> y, round, y^     equations 1 to 3
    y^ -- IGDN -- deconv 5x5 * 2 -- IGDN -- deconv 5x5 * 2 -- IGDN -- deconv 9x9 * 4 --> x^     equations 4 to 6

The fully factorised prior is that of Ballé et al. 2018, as in the authors' later implementations: the paper's own was
piecewise linear.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Self

from torch import Tensor, nn

from .balle2018 import FactorizedPrior
from .layers import GDN, conv, deconv


class Balle2017(FactorizedPrior):
    """N channels in every stage, the latents too."""

    def __init__(self, n: int):
        super().__init__(n, n)
        self.g_a = nn.Sequential(conv(3, n, 9, 4), GDN(n), conv(n, n), GDN(n), conv(n, n), GDN(n))
        self.g_s = nn.Sequential(
            GDN(n, inverse=True),
            deconv(n, n),
            GDN(n, inverse=True),
            deconv(n, n),
            GDN(n, inverse=True),
            deconv(n, 3, 9, 4),
        )

    @classmethod
    def from_shapes(cls, state: Mapping[str, Tensor], **options: Any) -> Self:
        return cls(state["g_a.0.weight"].shape[0], **options)
