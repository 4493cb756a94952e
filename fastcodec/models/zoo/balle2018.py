"""bmshj2018-factorized and bmshj2018-hyperprior: Ballé, Minnen, Singh, Hwang, Johnston, "Variational image compression
with a scale hyperprior", ICLR 2018.

    x -- g_a --> y --------- round ---- y^ -- g_s --> x^      figure 4: N and M channels, each layer as in the figure
                 |y| -- h_a --> z, round, z^ -- h_s --> sigma
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ...kernels import rans
from .base import Coded, CompressionModel, channels_last, on_grid, positions
from .entropy_bottleneck import EntropyBottleneck
from .gaussian_conditional import Conditional, GaussianConditional
from .layers import GDN, conv, deconv, rectified


def analysis(n: int, m: int) -> nn.Sequential:
    """g_a: RGB [B, 3, 16h, 16w] to latents [B, M, h, w]."""
    return nn.Sequential(conv(3, n), GDN(n), conv(n, n), GDN(n), conv(n, n), GDN(n), conv(n, m))


def synthesis(n: int, m: int) -> nn.Sequential:
    """g_s: latents [B, M, h, w] to RGB [B, 3, 16h, 16w]."""
    inverse = [GDN(n, inverse=True) for _ in range(3)]
    return nn.Sequential(deconv(m, n), inverse[0], deconv(n, n), inverse[1], deconv(n, n), inverse[2], deconv(n, 3))


class FactorizedPrior(CompressionModel):
    """p(y^) = prod_i p(y^_i), one density a channel (section 2 and appendix 6.1)."""

    stride = 16
    g_a: nn.Sequential
    g_s: nn.Sequential

    def __init__(self, n: int, m: int):
        super().__init__()
        self.g_a, self.g_s = analysis(n, m), synthesis(n, m)
        self.entropy_bottleneck = EntropyBottleneck(m)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        y_hat, bits = self.entropy_bottleneck(self.g_a(x))
        bits = bits.flatten(1).sum(1)
        return {"x_hat": self.g_s(y_hat), "y_bits": bits, "z_bits": torch.zeros_like(bits)}

    def encode_latents(self, y: Tensor) -> Coded:
        passes, y_hat, bits = self.entropy_bottleneck.encode(y)
        return Coded(passes, bits, y_hat)

    def decode_latents(self, decoder: rans.Decoder, height: int, width: int) -> Tensor:
        return self.entropy_bottleneck.decode(decoder, height, width)


class FactorizedPriorReLU(FactorizedPrior):
    """The same with rectifiers for GDN (CompressAI: bmshj2018-factorized-relu)."""

    def __init__(self, n: int, m: int):
        super().__init__(n, m)
        for transform in (self.g_a, self.g_s):
            transform[1], transform[3], transform[5] = (nn.ReLU(inplace=True) for _ in range(3))


class Hyperprior(CompressionModel):
    """Hyper latents z and the parameters psi = h_s(z^) of the latents, which all systems with hyper latents share.

    A system of this kind adds h_a and h_s, and `encode_given` and `decode_given`, which code y once psi is known.
    """

    h_a: nn.Module
    h_s: nn.Module
    gaussian_conditional: Conditional
    hyper_stride = 4  # latents a hyper latent

    def __init__(self, n: int, gaussian_conditional: Conditional | None):
        """n: channels of z. gaussian_conditional: None for a system that has several, and defines `latent_bits`."""
        super().__init__()
        self.entropy_bottleneck = EntropyBottleneck(n)
        if gaussian_conditional is not None:
            self.gaussian_conditional = gaussian_conditional

    def hyper_analysis(self, y: Tensor) -> Tensor:
        """z of y."""
        return self.h_a(y)

    def parameters_while_training(self, psi: Tensor, y_hat: Tensor) -> Tensor:
        """The latents' parameters of h_s's output and of y with noise, both on the grid."""
        return psi

    def latent_bits(self, y_hat: Tensor, psi: Tensor) -> Tensor:
        """The code length of each latent in training, like y_hat [B, M, h, w], which is y with noise."""
        return self.gaussian_conditional.bits(y_hat, self.parameters_while_training(psi, y_hat))

    def encode_given(self, y: Tensor, psi: Tensor) -> Coded:
        """Code y [1, M, h, w] by the output psi [1, C, h, w] of h_s: here in one pass (equation 7)."""
        coded, y_hat, bits = self.gaussian_conditional.encode(positions(y), positions(psi))
        return Coded([coded], bits, on_grid(y_hat, *y.shape[2:]))

    def decode_given(self, decoder: rans.Decoder, psi: Tensor) -> Tensor:
        """The inverse of `encode_given`: y^ [1, M, h, w]."""
        return on_grid(self.gaussian_conditional.decode(decoder, positions(psi)), *psi.shape[2:])

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        y = self.g_a(x)
        z_hat, z_bits = self.entropy_bottleneck(self.hyper_analysis(y))
        noisy = y + torch.rand_like(y) - 0.5
        y_bits = self.latent_bits(noisy, self.h_s(z_hat))
        return {"x_hat": self.g_s(noisy), "y_bits": y_bits.flatten(1).sum(1), "z_bits": z_bits.flatten(1).sum(1)}

    def encode_latents(self, y: Tensor) -> Coded:
        passes, z_hat, bits = self.entropy_bottleneck.encode(self.hyper_analysis(y))
        coded = self.encode_given(y, self._psi(z_hat))
        return Coded([*passes, *coded.passes], bits + coded.bits, coded.y_hat, coded.streams)

    def decode_latents(self, decoder: rans.Decoder, height: int, width: int) -> Tensor:
        z_hat = self.entropy_bottleneck.decode(decoder, height // self.hyper_stride, width // self.hyper_stride)
        return self.decode_given(decoder, self._psi(z_hat))

    def _psi(self, z_hat: Tensor) -> Tensor:
        return self.h_s(channels_last(z_hat))


class ScaleHyperprior(Hyperprior):
    """y_i ~ N(0, sigma_i^2), sigma = h_s(z^) (equation 6; figure 4 on the right)."""

    def __init__(self, n: int, m: int):
        super().__init__(n, GaussianConditional(with_means=False))
        self.g_a, self.g_s = analysis(n, m), synthesis(n, m)
        self.h_a = rectified(conv(m, n, 3, 1), conv(n, n), conv(n, n))
        self.h_s = rectified(deconv(n, n), deconv(n, n), conv(n, m, 3, 1)).append(nn.ReLU(inplace=True))

    def hyper_analysis(self, y: Tensor) -> Tensor:
        return self.h_a(y.abs())
