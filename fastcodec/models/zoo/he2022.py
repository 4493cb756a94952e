"""elic2022: He, Yang, Peng, Ma, Qin, Wang, "ELIC: Efficient learned image compression with unevenly grouped
space-channel contextual adaptive coding", CVPR 2022.

    y = (y_1, ..., y_K)                                      groups of 16, 16, 32, 64 and 192 channels
    Phi_ch = g_ch^(k)(y^_1 .. y^_(k-1))                      what the groups before tell
    Phi_sp = g_sp^(k)(anchors of y^_k)                       the checkerboard within the group
    (sigma, mu)_k = aggregation^(k)(Phi_sp, Phi_ch, psi)     psi = h_s(z^)

Each group takes two passes, so there are ten. Two variants are in use and differ in small things: CompressAI's
elic2022-official, and elic2022-chandelier, after the reimplementation by V. Chandelier.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from typing import Any, Self, TypeVar

import torch
from torch import Tensor, nn

from ...kernels import checkerboard, rans
from ..modules import ModuleList
from .balle2018 import Hyperprior
from .base import Coded, channels_last
from .cheng2020 import AttentionBlock
from .context import MaskedConvolution
from .gaussian_conditional import GaussianConditional
from .he2021 import TwoPasses
from .layers import conv, deconv, rectified

_Item = TypeVar("_Item")

_FIRST_GROUPS = (16, 16, 32, 64)  # the last one has the rest
_GROUP = "latent_codec.y.latent_codec.y{}."


class ResidualBottleneck(nn.Module):
    """x + 1x1 to half the channels, 3x3, 1x1 back (figure 3 on the right)."""

    def __init__(self, n: int):
        super().__init__()
        self.conv1, self.conv2, self.conv3 = conv(n, n // 2, 1, 1), conv(n // 2, n // 2, 3, 1), conv(n // 2, n, 1, 1)
        self.relu = nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.conv3(self.relu(self.conv2(self.relu(self.conv1(x)))))


def _three_blocks(n: int) -> list[nn.Module]:
    return [ResidualBottleneck(n) for _ in range(3)]


def analysis(n: int, m: int) -> nn.Sequential:
    """g_a: RGB [B, 3, 16h, 16w] to latents [B, M, h, w]."""
    return nn.Sequential(
        conv(3, n),
        *_three_blocks(n),
        conv(n, n),
        *_three_blocks(n),
        AttentionBlock(n),
        conv(n, n),
        *_three_blocks(n),
        conv(n, m),
        AttentionBlock(m),
    )


def synthesis(n: int, m: int) -> nn.Sequential:
    """g_s: latents [B, M, h, w] to RGB [B, 3, 16h, 16w]."""
    return nn.Sequential(
        AttentionBlock(m),
        deconv(m, n),
        *_three_blocks(n),
        deconv(n, n),
        AttentionBlock(n),
        *_three_blocks(n),
        deconv(n, n),
        *_three_blocks(n),
        deconv(n, 3),
    )


class ScalesFirst(nn.Module):
    """(means, scales) to (scales, means), which is `GaussianConditional`'s order; in dimension 1."""

    def forward(self, parameters: Tensor) -> Tensor:
        means, scales = parameters.chunk(2, 1)
        return torch.cat([scales, means], 1)


class Group(TwoPasses):
    """A group of channels: its context within the group, its aggregation of all contexts, its distribution."""

    context_first = True

    def __init__(self, channels: int, aggregation: nn.Sequential):
        super().__init__()
        self.context_prediction = MaskedConvolution(channels, checkerboard.LIVE_TAPS)
        self.entropy_parameters = aggregation
        self.gaussian_conditional = GaussianConditional()


class Elic2022(Hyperprior):
    """N channels in the transforms, M latents in groups (CompressAI: elic2022-official).

    groups: the channels of each, the paper's if None.
    """

    def __init__(self, n: int, m: int, groups: Sequence[int] | None = None):
        sizes = (*_FIRST_GROUPS, m - sum(_FIRST_GROUPS)) if groups is None else tuple(groups)
        if sum(sizes) != m or min(sizes) < 1:
            raise ValueError(f"groups {sizes} are not a partition of {m} channels")
        self.layout = _layout(len(sizes))  # an instance's own: read when the base class is initialised
        super().__init__(n, None)
        self.sizes = sizes
        self.g_a, self.g_s = analysis(n, m), synthesis(n, m)
        self.h_a = rectified(conv(m, n, 3, 1), conv(n, n), conv(n, n))
        self.h_s = self.hyper_synthesis(n, m)
        self.channel_context = ModuleList(
            rectified(conv(sum(self.seen(sizes[:k])), 224, 5, 1), conv(224, 128, 5, 1), conv(128, 2 * size, 5, 1))
            for k, size in enumerate(sizes)
            if k > 0
        )
        self.groups = ModuleList(
            Group(size, self.aggregation(n, m, 2 * size, 1 if k == 0 else 2)) for k, size in enumerate(sizes)
        )

    @classmethod
    def from_shapes(cls, state: Mapping[str, Tensor], **options: Any) -> Self:
        name = (_GROUP + "context_prediction.weight").format
        sizes = [state[name(0)].shape[1]]
        while name(len(sizes)) in state:
            sizes.append(state[name(len(sizes))].shape[1])
        return cls(state["g_a.0.weight"].shape[0], sum(sizes), groups=sizes, **options)

    @staticmethod
    def hyper_synthesis(n: int, m: int) -> nn.Sequential:
        """h_s: hyper latents to psi."""
        return rectified(deconv(n, n), deconv(n, n * 3 // 2), deconv(n * 3 // 2, 2 * n, 3, 1))

    @staticmethod
    def aggregation(n: int, m: int, outputs: int, contexts: int) -> nn.Sequential:
        """1x1 layers of evenly falling width, but no less than psi's; each context is as wide as the output."""
        inputs, psi = contexts * outputs + 2 * n, 2 * n
        between = [max(psi, (inputs * (3 - i) + outputs * i) // 3) for i in (1, 2)]
        return rectified(*[conv(*ends, 1, 1) for ends in itertools.pairwise((inputs, *between, outputs))])

    @staticmethod
    def seen(before: Sequence[_Item]) -> list[_Item]:
        """Of the groups before one, those that its channel context sees."""
        return list(before)

    def parameters_while_training(self, psi: Tensor, y_hat: Tensor) -> Tensor:
        """Those of each group, one after the other."""
        parts = y_hat.split(self.sizes, 1)
        parameters = [
            group.parameters_while_training(self._side(psi, parts[:k]), part)
            for k, (group, part) in enumerate(zip(self.groups, parts, strict=True))
        ]
        return torch.cat(parameters, 1)

    def latent_bits(self, y_hat: Tensor, psi: Tensor) -> Tensor:
        parts = y_hat.split(self.sizes, 1)
        parameters = self.parameters_while_training(psi, y_hat).split([2 * size for size in self.sizes], 1)
        bits = [g.gaussian_conditional.bits(y, p) for g, y, p in zip(self.groups, parts, parameters, strict=True)]
        return torch.cat(bits, 1)

    def encode_given(self, y: Tensor, psi: Tensor) -> Coded:
        passes: list[rans.Pass | rans.MixturePass] = []
        decoded: list[Tensor] = []
        bits = 0.0
        for group, part in zip(self.groups, y.split(self.sizes, 1), strict=True):
            coded = group.encode_given(part, self._side(psi, decoded))
            passes += coded.passes
            bits += coded.bits
            decoded.append(coded.y_hat)
        return Coded(passes, bits, torch.cat(decoded, 1))

    def decode_given(self, decoder: rans.Decoder, psi: Tensor) -> Tensor:
        decoded: list[Tensor] = []
        for group in self.groups:
            decoded.append(group.decode_given(decoder, self._side(psi, decoded)))
        return torch.cat(decoded, 1)

    def _side(self, psi: Tensor, before: Sequence[Tensor]) -> Tensor:
        """(Phi_ch, psi) of the next group. Both sides of the coder have all groups before it, so that one dense
        convolution gives both the same floats."""
        if not before:
            return psi
        phi = self.channel_context[len(before) - 1](channels_last(torch.cat(self.seen(before), 1)))
        return torch.cat([phi, psi], 1)


class Elic2022Chandelier(Elic2022):
    """Channel contexts of the first group and the last one before, wider aggregations, (means, scales)."""

    @staticmethod
    def hyper_synthesis(n: int, m: int) -> nn.Sequential:
        return rectified(deconv(n, n), deconv(n, n * 3 // 2), conv(n * 3 // 2, 2 * m, 3, 1))

    @staticmethod
    def aggregation(n: int, m: int, outputs: int, contexts: int) -> nn.Sequential:
        widths = (contexts * outputs + 2 * m, 2 * m, 512, outputs)
        return rectified(*[conv(*ends, 1, 1) for ends in itertools.pairwise(widths)]).append(ScalesFirst())

    @staticmethod
    def seen(before: Sequence[_Item]) -> list[_Item]:
        return [*before[:1], *before[1:][-1:]]


def _layout(groups: int) -> tuple[tuple[str, str], ...]:
    """Our prefixes of names and CompressAI's."""
    names = [(f"{part}.", f"latent_codec.hyper.{part}.") for part in ("h_a", "h_s", "entropy_bottleneck")]
    for k in range(groups):
        group = _GROUP.format(k)
        names += [(f"groups.{k}.gaussian_conditional.", f"{group}y.gaussian_conditional."), (f"groups.{k}.", group)]
        if k > 0:
            names.append((f"channel_context.{k - 1}.", f"latent_codec.y.channel_context.y{k}."))
    return tuple(names)
