"""mbt2018-mean and mbt2018: Minnen, Ballé, Toderici, "Joint autoregressive and hierarchical priors for learned image
compression", NeurIPS 2018.

    x -- g_a --> y -- h_a --> z, round, z^ -- h_s --> psi                     table 1: the layers
    y^ of the neighbours above and to the left -- context_prediction --> phi
    (psi, phi) -- entropy_parameters --> (sigma, mu);  y^ = round(y - mu) + mu

In He et al. 2021 context_prediction is g_cm and entropy_parameters is g_ep.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor

from ...kernels import rans
from .balle2018 import Hyperprior, analysis, synthesis
from .base import Coded, on_grid, positions
from .context import RADIUS, RASTER_TAPS, MaskedConvolution, WithContext, on_rows, parameter_network
from .gaussian_conditional import Conditional, GaussianConditional
from .layers import conv, deconv, leaky
from .rounded_gaussian import RoundedGaussianConditional

Rounding = Literal["residuals", "latents"]


class MeanScaleHyperprior(Hyperprior):
    """y_i ~ N(mu_i, sigma_i^2), (sigma, mu) = h_s(z^): the paper's model without context.

    rounding: "residuals", y^ = round(y - mu) + mu, as CompressAI's; "latents", y^ = round(y), as He et al. 2021.
    """

    def __init__(self, n: int, m: int, rounding: Rounding = "residuals"):
        super().__init__(n, self.conditional(rounding))
        self.g_a, self.g_s = analysis(n, m), synthesis(n, m)
        self.h_a = leaky(conv(m, n, 3, 1), conv(n, n), conv(n, n))
        middle = m * 3 // 2
        self.h_s = leaky(deconv(n, m), deconv(m, middle), conv(middle, 2 * m, 3, 1))

    def conditional(self, rounding: Rounding) -> Conditional:
        """The latents' distribution, by which they are coded."""
        return GaussianConditional() if rounding == "residuals" else RoundedGaussianConditional()


class ContextModel(WithContext, MeanScaleHyperprior):
    """(sigma, mu)_i = g_ep(psi_i, phi_i), phi_i = g_cm(y^ of the neighbours) (He et al. 2021, equation 4)."""

    taps: tuple[tuple[int, int], ...]

    def __init__(self, n: int, m: int, rounding: Rounding = "residuals"):
        super().__init__(n, m, rounding)
        self.context_prediction = MaskedConvolution(m, self.taps)
        self.entropy_parameters = parameter_network(m, self.gaussian_conditional.parameters_per_latent)

    def parameters_while_training(self, psi: Tensor, y_hat: Tensor) -> Tensor:
        return self.entropy_parameters(self.merged(psi, self.context_prediction(y_hat)))


class JointAutoregressive(ContextModel):
    """The serial model: a pass for each position in raster order, since it must be known before the next one."""

    taps = RASTER_TAPS

    def encode_given(self, y: Tensor, psi: Tensor) -> Coded:
        rows = positions(y)
        passes: list[rans.Pass | rans.MixturePass] = []
        bits = 0.0

        def code(position: int, parameters: Tensor) -> Tensor:
            nonlocal bits
            coded, y_hat, length = self.gaussian_conditional.encode(rows[position : position + 1], parameters)
            passes.append(coded)
            bits += length
            return y_hat

        y_hat = self._scan(psi, code)
        return Coded(passes, bits, y_hat, streams=1)

    def decode_given(self, decoder: rans.Decoder, psi: Tensor) -> Tensor:
        return self._scan(psi, lambda _, parameters: self.gaussian_conditional.decode(decoder, parameters))

    def _scan(self, psi: Tensor, code: Callable[[int, Tensor], Tensor]) -> Tensor:
        """Visit all positions; code: (position, its parameters [1, 2M]) to its y^ [1, M]. Returns y^ [1, M, h, w].

        As He et al. time it (section 5.2.1), only the visible neighbours of a position are cropped and multiplied.
        """
        height, width = psi.shape[2:]
        latents = self.context_prediction.in_channels
        g_cm = self.context_prediction.on_rows(RASTER_TAPS)
        g_ep, psi_rows = on_rows(self.entropy_parameters), positions(psi)
        y_hat = psi.new_zeros(height + RADIUS, width + 2 * RADIUS, latents)  # no frame below: nothing looks there
        for row in range(height):
            two_above, above, here = y_hat[row : row + RADIUS + 1]
            for column in range(width):
                seen = slice(column, column + 2 * RADIUS + 1)
                left = here[column : column + RADIUS]
                visible = torch.cat([two_above[seen].view(-1), above[seen].view(-1), left.reshape(-1)])
                phi = g_cm(visible[None])
                position = row * width + column
                parameters = g_ep(self.merged(psi_rows[position : position + 1], phi))
                here[column + RADIUS] = code(position, parameters)[0]
        return on_grid(y_hat[RADIUS:, RADIUS:-RADIUS].reshape(-1, latents), height, width)
