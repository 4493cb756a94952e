"""Latents as Gaussian mixtures (Cheng et al. 2020, equation 8; He et al. 2021, section 3.1).

p(y^ | z^) = prod_i [(sum_k w_ik N(mu_ik, sigma_ik^2)) * U(-1/2, 1/2)](y^_i),  y^ = round(y)

The coder evaluates the mixtures in integers (kernels/rans/mixture.h), so no table belongs to the model.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ...kernels import rans
from .entropy_bottleneck import LEAST_LIKELIHOOD
from .gaussian_conditional import LEAST_SCALE, gaussian_likelihood
from .layers import LowerBound


class MixtureConditional(nn.Module):
    """Codes y as symbols round(y) by mixtures of K Gaussians.

    Parameters are [.., 3 K M], in dimension 1: the logits of the weights, the means, the scales, each K times M.
    """

    def __init__(self, components: int = 3):
        super().__init__()
        self.components = components
        self.parameters_per_latent = 3 * components
        self.lower_bound_scale = LowerBound(LEAST_SCALE)
        self.likelihood_lower_bound = LowerBound(LEAST_LIKELIHOOD)

    def split(self, parameters: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """(weights, means, scales), each [K, B, M, ...], of a parameter network's output."""
        logits, means, scales = (torch.stack(part.chunk(self.components, 1)) for part in parameters.chunk(3, 1))
        return logits.softmax(0), means, self.lower_bound_scale(scales)

    def bits(self, y_hat: Tensor, parameters: Tensor) -> Tensor:
        weights, means, scales = self.split(parameters)
        likelihood = (weights * gaussian_likelihood(y_hat - means, scales)).sum(0)
        return -torch.log2(self.likelihood_lower_bound(likelihood))

    def encode(self, y: Tensor, parameters: Tensor) -> tuple[rans.MixturePass, Tensor, float]:
        symbols = torch.round(y)
        weights, means, scales = (part.double() for part in self.split(parameters))
        likelihood = (weights * gaussian_likelihood(symbols.double() - means, scales)).sum(0)
        bits = -torch.log2(likelihood.clamp(min=LEAST_LIKELIHOOD)).sum()
        coded = rans.MixturePass(symbols.to(torch.int32).contiguous(), *self._integers(parameters))
        return coded, symbols, float(bits)

    def decode(self, decoder: rans.Decoder, parameters: Tensor) -> Tensor:
        (symbols,) = decoder.decode_mixtures([self._integers(parameters)])
        return symbols.float()

    def _integers(self, parameters: Tensor) -> rans.Mixture:
        """The coder's mixtures: encoder and decoder get the same from equal parameters."""
        return rans.quantise_mixtures(*self.split(parameters))
