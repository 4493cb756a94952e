"""Latents as Gaussians whose parameters the decoder knows (Ballé et al. 2018, equation 6; Minnen et al. 2018, eq. 2).

p(y^ | z^) = prod_i [N(mu_i, sigma_i^2) * U(-1/2, 1/2)](y^_i), also He et al. 2021, equation 3. Another
distribution (a mixture) has the methods of `Conditional`, and takes a model's parameter network's output as it is.
"""

from __future__ import annotations

import math
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from ...kernels import rans
from .cdf import quantised_cdf, stack_cdfs
from .entropy_bottleneck import LEAST_LIKELIHOOD, CodedEntropyModel
from .layers import LowerBound

LEAST_SCALE, GREATEST_SCALE, LEVELS = 0.11, 256.0, 64
_TAIL_MASS = 1e-9
_TAIL_SCALES = 6.109410204869  # P(|N(0, 1)| > this) = 1e-9


def scale_table() -> Tensor:
    """The scales of the tables, log-spaced: float32 [64]."""
    return torch.exp(
        torch.linspace(math.log(LEAST_SCALE), math.log(GREATEST_SCALE), LEVELS, dtype=torch.float32, device="cpu")
    )


def gaussian_likelihood(residual: Tensor, scales: Tensor) -> Tensor:
    """The mass of residual +- 1/2 under N(0, scales^2). Taken in the lower tail, where nothing cancels."""
    magnitude, inverse = residual.abs(), math.sqrt(0.5) / scales
    return 0.5 * (torch.erfc((magnitude - 0.5) * inverse) - torch.erfc((magnitude + 0.5) * inverse))


class Conditional(Protocol):
    """The distribution of the latents, given parameters [.., parameters_per_latent * M], channels in dimension 1."""

    parameters_per_latent: int

    def bits(self, y_hat: Tensor, parameters: Tensor) -> Tensor:
        """The code length of each element, like y_hat [B, M, h, w], which may be y with noise for rounding."""

    def encode(self, y: Tensor, parameters: Tensor) -> tuple[rans.Pass | rans.MixturePass, Tensor, float]:
        """y [P, M] and its parameters to a pass, the decoded y^ [P, M], and its code length in bits."""

    def decode(self, decoder: rans.Decoder, parameters: Tensor) -> Tensor:
        """The inverse of `encode`: y^ [P, M]."""


class GaussianConditional(CodedEntropyModel):
    """Codes y as symbols round(y - mu) by zero-mean tables, y^ = symbol + mu.

    with_means: parameters are [.., 2M], (scales, means) in this order; without, [.., M], scales, and mu = 0.
    """

    SIZED = (*CodedEntropyModel.SIZED, "scale_table")
    scale_table: Tensor
    scale_bound: Tensor

    def __init__(self, with_means: bool = True):
        super().__init__()
        self.with_means = with_means
        self.parameters_per_latent = 2 if with_means else 1
        self.lower_bound_scale = LowerBound(LEAST_SCALE)
        self.register_buffer("scale_table", torch.empty(0, dtype=torch.float32))
        self.register_buffer("scale_bound", torch.tensor([LEAST_SCALE], dtype=torch.float32))

    def update(self) -> None:
        """Make the CDFs: for each scale, the symbols within 6.1 scales."""
        self.scale_table = scale_table().to(self.scale_bound.device)
        cdfs, reaches = [], []
        for scale in self.scale_table.tolist():
            reach = math.ceil(scale * _TAIL_SCALES)
            symbols = torch.arange(-reach, reach + 1, dtype=torch.float64, device="cpu")
            pmf = gaussian_likelihood(symbols, torch.tensor(scale, dtype=torch.float64, device="cpu")).numpy()
            cdfs.append(quantised_cdf(pmf, max(1 - float(np.sum(pmf)), _TAIL_MASS)))
            reaches.append(reach)
        self._store(-torch.tensor(reaches, dtype=torch.int32, device="cpu"), *stack_cdfs(cdfs))

    def split(self, parameters: Tensor) -> tuple[Tensor, Tensor | None]:
        """(scales, means) of a parameter network's output; means is None without them."""
        if not self.with_means:
            return parameters, None
        scales, means = parameters.chunk(2, 1)
        return scales, means

    def bits(self, y_hat: Tensor, parameters: Tensor) -> Tensor:
        scales, means = self.split(parameters)
        residual = y_hat if means is None else y_hat - means
        likelihood = gaussian_likelihood(residual, self.lower_bound_scale(scales))
        return -torch.log2(self.likelihood_lower_bound(likelihood))

    def indexes(self, scales: Tensor) -> Tensor:
        """The table nearest in log-scale, uint8. (CompressAI's next larger one costs 0.1 to 0.4 % more.)"""
        table = self.scale_table
        return torch.bucketize(scales.contiguous(), torch.sqrt(table[:-1] * table[1:])).to(torch.uint8)

    def encode(self, y: Tensor, parameters: Tensor) -> tuple[rans.Pass, Tensor, float]:
        scales, means = self.split(parameters)
        symbols = torch.round(y if means is None else y - means)
        likelihood = gaussian_likelihood(symbols.double(), scales.double().clamp(min=LEAST_SCALE))
        bits = -torch.log2(likelihood.clamp(min=LEAST_LIKELIHOOD)).sum()
        (tables,) = self.table_sets()
        coded = rans.Pass(symbols.to(torch.int32).contiguous(), self.indexes(scales), tables)
        return coded, symbols if means is None else symbols + means, float(bits)

    def decode(self, decoder: rans.Decoder, parameters: Tensor) -> Tensor:
        scales, means = self.split(parameters)
        (tables,) = self.table_sets()
        (symbols,) = decoder.decode([self.indexes(scales)], tables)
        return symbols.float() if means is None else symbols + means
