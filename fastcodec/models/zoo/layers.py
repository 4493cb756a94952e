"""Layers that the papers' systems share: GDN, strided and transposed convolutions, and bounds that still learn.

Parameter and buffer names are CompressAI's, so that its checkpoints load as they are.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def conv(inputs: int, outputs: int, kernel: int = 5, stride: int = 2) -> nn.Conv2d:
    """A convolution with zero padding that gives ceil(size / stride) positions an axis."""
    kind = _StridedPointwise if kernel == 1 and stride > 1 else nn.Conv2d
    return kind(inputs, outputs, kernel, stride, kernel // 2)


class _StridedPointwise(nn.Conv2d):
    """A 1x1 convolution of every stride-th position.

    While learning the positions are picked first: oneDNN's gradient of the weights writes past its memory where a
    strided 1x1 convolution has under 16 input channels, channels-last (oneDNN issue 6035, in PyTorch 2.11 to 2.14).
    """

    def forward(self, x: Tensor) -> Tensor:
        if not torch.is_grad_enabled():
            return super().forward(x)
        rows, columns = self.stride
        return F.conv2d(x[:, :, ::rows, ::columns], self.weight, self.bias)


class _DeconvToPixels(nn.ConvTranspose2d):
    """A 5x5 transposed convolution of stride 2 to few channels.

    For coding on a CPU it runs as a 3x3 convolution to four times the channels and a pixel shuffle, which is twice as
    fast as PyTorch's own with 3 channels.
    """

    bias: nn.Parameter

    def forward(self, x: Tensor, output_size: list[int] | None = None) -> Tensor:
        if torch.is_grad_enabled() or x.device.type != "cpu" or output_size is not None:
            return super().forward(x, output_size)
        # Output 2i + a takes input i + d times weight a + 2 - 2d, d from -1 to 1. For a = 1 there is no weight at
        # d = -1: the sixth row and column are zeros.
        flipped = F.pad(self.weight.transpose(0, 1).flip(2, 3), (1, 0, 1, 0))
        phases = flipped.unfold(2, 2, 2).unfold(3, 2, 2)  # [outputs, inputs, d, d, 1 - a, 1 - a]
        kernel = phases.flip(4, 5).permute(0, 4, 5, 1, 2, 3).reshape(-1, self.in_channels, 3, 3)
        kernel = kernel.contiguous(memory_format=torch.channels_last)
        return F.pixel_shuffle(F.conv2d(x, kernel, self.bias.repeat_interleave(4), padding=1), 2)


def deconv(inputs: int, outputs: int, kernel: int = 5, stride: int = 2) -> nn.ConvTranspose2d:
    """The transposed convolution that gives size * stride positions an axis."""
    kind = _DeconvToPixels if (kernel, stride) == (5, 2) and outputs < 16 else nn.ConvTranspose2d
    return kind(inputs, outputs, kernel, stride, kernel // 2, output_padding=stride - 1)


def rectified(*layers: nn.Module) -> nn.Sequential:
    """The layers with a ReLU after each but the last."""
    return _between(layers, nn.ReLU)


def leaky(*layers: nn.Module) -> nn.Sequential:
    """The layers with a leaky ReLU after each but the last."""
    return _between(layers, nn.LeakyReLU)


def _between(layers: Sequence[nn.Module], activation: type[nn.ReLU | nn.LeakyReLU]) -> nn.Sequential:
    parts = (part for layer in layers for part in (layer, activation(inplace=True)))
    return nn.Sequential(*itertools.islice(parts, 2 * len(layers) - 1))


class _BoundedBelow(torch.autograd.Function):
    """max(x, bound), whose gradient also passes below the bound where a descent step would raise x."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, bound: Tensor) -> Tensor:
        ctx.save_for_backward(x, bound)
        return torch.maximum(x, bound)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        x, bound = ctx.saved_tensors
        return gradient * ((x >= bound) | (gradient < 0)), None


class LowerBound(nn.Module):
    """max(x, bound) for training: a plain clamp would leave what fell below the bound there for good."""

    bound: Tensor

    def __init__(self, bound: float):
        super().__init__()
        self.register_buffer("bound", torch.tensor([float(bound)], dtype=torch.float32))

    def forward(self, x: Tensor) -> Tensor:
        return _BoundedBelow.apply(x, self.bound)


class NonNegative(nn.Module):
    """The reparametrisation of GDN's parameters (Ballé 2018, "Efficient nonlinear transforms", section 2).

    A value v >= minimum is stored as sqrt(v + pedestal): learning is slow near 0, where GDN is touchy, and never stuck.
    """

    pedestal: Tensor

    def __init__(self, minimum: float = 0.0):
        super().__init__()
        pedestal = 2.0**-36
        self.register_buffer("pedestal", torch.tensor([pedestal], dtype=torch.float32))
        self.lower_bound = LowerBound((minimum + pedestal) ** 0.5)

    def store(self, value: Tensor) -> Tensor:
        """The stored form of a value."""
        return torch.sqrt(value.clamp(min=0) + self.pedestal)

    def forward(self, stored: Tensor) -> Tensor:
        return self.lower_bound(stored) ** 2 - self.pedestal


class GDN(nn.Module):
    """Generalised divisive normalisation and its inverse (Ballé et al. 2016; Ballé et al. 2017, equations 3 and 6).

        GDN:   y_i = x_i / sqrt(beta_i + sum_j gamma_ij x_j^2)
        IGDN:  y_i = x_i * sqrt(beta_i + sum_j gamma_ij x_j^2)

    x: float [B, C, H, W]. The sum is a 1x1 convolution; in channels-last memory it is one matrix product.
    """

    def __init__(self, channels: int, inverse: bool = False):
        super().__init__()
        self.inverse = inverse
        self.beta_reparam = NonNegative(minimum=1e-6)
        self.beta = nn.Parameter(self.beta_reparam.store(torch.ones(channels)))
        self.gamma_reparam = NonNegative()
        self.gamma = nn.Parameter(self.gamma_reparam.store(0.1 * torch.eye(channels)))

    def forward(self, x: Tensor) -> Tensor:
        beta, gamma = self.beta_reparam(self.beta), self.gamma_reparam(self.gamma)
        energy = F.conv2d(x * x, gamma[:, :, None, None], beta)
        return x * (torch.sqrt(energy) if self.inverse else torch.rsqrt(energy))
