"""cheng2020-serial and cheng2020-checkerboard, each with and without attention: Cheng, Sun, Takeuchi, Katto, "Learned
image compression with discretized Gaussian mixture likelihoods and attention modules", CVPR 2020; the checkerboard is
that of He et al. 2021 on it.

One Gaussian a latent (K = 1), as in CompressAI, or a mixture of three, as in both papers. Transforms are of 3x3
residual blocks; entropy models as in Minnen 2018 with M = N.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Self

import torch
from torch import Tensor, nn

from .he2021 import Checkerboard
from .layers import GDN, conv, leaky, rectified
from .minnen2018 import ContextModel, JointAutoregressive, Rounding
from .mixture_conditional import MixtureConditional


def subpixel(inputs: int, outputs: int) -> nn.Sequential:
    """A 3x3 sub-pixel convolution: twice the positions an axis."""
    return nn.Sequential(conv(inputs, outputs * 4, 3, 1), nn.PixelShuffle(2))


class ResidualBlock(nn.Module):
    """x + two 3x3 convolutions, n channels (figure 4)."""

    def __init__(self, n: int):
        super().__init__()
        self.conv1, self.conv2 = conv(n, n, 3, 1), conv(n, n, 3, 1)
        self.leaky_relu = nn.LeakyReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.leaky_relu(self.conv2(self.leaky_relu(self.conv1(x))))


class ResidualBlockWithStride(nn.Module):
    """Halves the positions an axis; GDN behind the second convolution."""

    def __init__(self, inputs: int, outputs: int):
        super().__init__()
        self.conv1, self.conv2 = conv(inputs, outputs, 3, 2), conv(outputs, outputs, 3, 1)
        self.leaky_relu, self.gdn = nn.LeakyReLU(inplace=True), GDN(outputs)
        self.skip = conv(inputs, outputs, 1, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.skip(x) + self.gdn(self.conv2(self.leaky_relu(self.conv1(x))))


class ResidualBlockUpsample(nn.Module):
    """Doubles the positions an axis by sub-pixel convolutions; inverse GDN behind the second convolution."""

    def __init__(self, n: int):
        super().__init__()
        self.subpel_conv, self.conv = subpixel(n, n), conv(n, n, 3, 1)
        self.leaky_relu, self.igdn = nn.LeakyReLU(inplace=True), GDN(n, inverse=True)
        self.upsample = subpixel(n, n)

    def forward(self, x: Tensor) -> Tensor:
        return self.upsample(x) + self.igdn(self.conv(self.leaky_relu(self.subpel_conv(x))))


class ResidualUnit(nn.Module):
    """The attention's block: 1x1 to half the channels, 3x3, 1x1 back, and x."""

    def __init__(self, n: int):
        super().__init__()
        self.conv = rectified(conv(n, n // 2, 1, 1), conv(n // 2, n // 2, 3, 1), conv(n // 2, n, 1, 1))
        self.relu = nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        return self.relu(x + self.conv(x))


class AttentionBlock(nn.Module):
    """Simplified attention: x + a * sigmoid(b), without the non-local part (figure 6)."""

    def __init__(self, n: int):
        super().__init__()
        self.conv_a = nn.Sequential(*[ResidualUnit(n) for _ in range(3)])
        self.conv_b = nn.Sequential(*[ResidualUnit(n) for _ in range(3)], conv(n, n, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        return x + self.conv_a(x) * torch.sigmoid(self.conv_b(x))


def analysis(n: int, attention: bool) -> nn.Sequential:
    """g_a: RGB [B, 3, 16h, 16w] to latents [B, N, h, w]; attention behind the second and the last stage."""
    return nn.Sequential(
        ResidualBlockWithStride(3, n),
        ResidualBlock(n),
        ResidualBlockWithStride(n, n),
        *[AttentionBlock(n) for _ in range(attention)],
        ResidualBlock(n),
        ResidualBlockWithStride(n, n),
        ResidualBlock(n),
        conv(n, n, 3),
        *[AttentionBlock(n) for _ in range(attention)],
    )


def synthesis(n: int, attention: bool) -> nn.Sequential:
    """g_s: latents [B, N, h, w] to RGB [B, 3, 16h, 16w]."""
    return nn.Sequential(
        *[AttentionBlock(n) for _ in range(attention)],
        ResidualBlock(n),
        ResidualBlockUpsample(n),
        ResidualBlock(n),
        ResidualBlockUpsample(n),
        *[AttentionBlock(n) for _ in range(attention)],
        ResidualBlock(n),
        ResidualBlockUpsample(n),
        ResidualBlock(n),
        subpixel(n, 3),
    )


class _Transforms(ContextModel):
    """The paper's networks in the place of Minnen 2018's."""

    attention = False

    def __init__(self, n: int, rounding: Rounding = "residuals"):
        super().__init__(n, n, rounding)
        self.g_a, self.g_s = analysis(n, self.attention), synthesis(n, self.attention)
        self.h_a = leaky(conv(n, n, 3, 1), conv(n, n, 3, 1), conv(n, n, 3), conv(n, n, 3, 1), conv(n, n, 3))
        middle = n * 3 // 2
        self.h_s = leaky(
            conv(n, n, 3, 1), subpixel(n, n), conv(n, middle, 3, 1), subpixel(middle, middle), conv(middle, 2 * n, 3, 1)
        )

    @classmethod
    def from_shapes(cls, state: Mapping[str, Tensor], **options: Any) -> Self:
        return cls(state["g_a.0.conv1.weight"].shape[0], **options)


class Cheng2020(_Transforms, JointAutoregressive):
    """The serial model (CompressAI: cheng2020-anchor)."""


class Cheng2020Attention(Cheng2020):
    """The serial model with attention (CompressAI: cheng2020-attn)."""

    attention = True


class Cheng2020Checkerboard(_Transforms, Checkerboard):
    """He et al. 2021 on Cheng 2020 (CompressAI: cheng2020-anchor-checkerboard, whose g_ep has the context first)."""

    context_first = True
    layout = (
        ("h_a.", "latent_codec.hyper.h_a."),
        ("h_s.", "latent_codec.hyper.h_s."),
        ("entropy_bottleneck.", "latent_codec.hyper.entropy_bottleneck."),
        ("gaussian_conditional.", "latent_codec.y.y.gaussian_conditional."),
        ("entropy_parameters.", "latent_codec.y.entropy_parameters."),
        ("context_prediction.", "latent_codec.y.context_prediction."),
    )


class Cheng2020CheckerboardAttention(Cheng2020Checkerboard):
    """The same with attention."""

    attention = True


class _Mixture(_Transforms):
    """The paper's own entropy model: a mixture of K = 3 Gaussians a latent, y^ = round(y), and a wider g_ep."""

    components = 3

    def __init__(self, n: int):
        super().__init__(n, "latents")
        outputs = self.gaussian_conditional.parameters_per_latent * n
        self.entropy_parameters = leaky(
            nn.Conv2d(4 * n, 5 * n, 1), nn.Conv2d(5 * n, 5 * n, 1), nn.Conv2d(5 * n, outputs, 1)
        )

    def conditional(self, rounding: Rounding) -> MixtureConditional:
        return MixtureConditional(self.components)


class Cheng2020Mixture(_Mixture, Cheng2020):
    """The serial model with mixtures."""


class Cheng2020MixtureAttention(_Mixture, Cheng2020Attention):
    """The serial model with mixtures and attention: the paper's best."""


class Cheng2020CheckerboardMixture(_Mixture, Checkerboard):
    """He et al. 2021 on Cheng 2020, with mixtures as there."""


class Cheng2020CheckerboardMixtureAttention(Cheng2020CheckerboardMixture):
    """The same with attention."""

    attention = True
