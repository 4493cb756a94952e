"""`swift`, the default model: light transforms, a hyperprior, context in space and channels; one for all qualities.

    x -- g_a --> y * gain -- h_a --> z                  analysis and hyper-analysis: floating point, encoder only
    z^ -- h_s --> psi                                   hyper-synthesis     \
    earlier groups^, anchors^ -- g_ch, g_cm --> phi     context              | integer at inference (docs/integer.md)
    (psi, phi) -- g_ep --> mean, scale index            parameter network   /
    y^ / gain -- g_s --> x^                             synthesis: floating point

Latents are coded in groups of channels, each in two passes, anchors and non-anchors of a checkerboard (He et al. 2022).
With one group this is the checkerboard of He et al. 2021.

This file is the network as it is trained. The entropy side is written with `FixedPointLinear` layers, whose activations
live in fixed-point ranges from the first step and are rounded, weights too, once `quantise` is switched on
(straight-through), so that the exported integer model (`entropy_model.py`) is the trained model, not an approximation
of it. Names follow the field: g_a, g_s, h_a, h_s (Ballé 2018), g_cm, g_ep (He et al. 2021, equation 4),
g_ch (He et al. 2022).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from functools import cache
from importlib.util import find_spec
from itertools import accumulate, pairwise
from typing import TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...constants import MAX_QUALITY, MIN_QUALITY
from ...entropy.fixed_point import (
    ACTIVATION,
    ACTIVATION_BITS,
    ACTIVATION_MAX,
    MEAN,
    SCALE_INDEX,
    SIGNED_ACTIVATION,
    Format,
    weight_exponents,
)
from ...entropy.gaussian import COUNT, GREATEST_SCALE, LEAST_SCALE
from ...kernels import checkerboard
from ..modules import ModuleList

_Number = TypeVar("_Number", Tensor, float)
_LOG_SCALE_STEP = math.log(GREATEST_SCALE / LEAST_SCALE) / (COUNT - 1)


@dataclass(frozen=True)
class SwiftConfig:
    """Channel counts; the entropy side's are powers of two or sums of two, as the fused GPU kernel needs."""

    features: int = 128  # C, at 1/8
    latents: int = 256  # M, at 1/16
    hyper_latents: int = 64  # Z, at 1/64
    hyper_features: int = 256  # channels of psi
    context_features: int = 256  # channels of phi
    hidden: int = 256  # of the parameter network
    blocks: int = 3
    quality_points: int = 8
    lambda_min: float = 0.0007
    lambda_max: float = 0.1
    step_coarse: float = 120.0  # initial quantisation step in pixel levels at quality 1
    step_fine: float = 8.5  # and at quality 100
    # No feature that a layer reads is further from zero (docs/architecture.md, "Bounded features"). None, in releases
    # that are older than the limit: they go on decoding as their files were written.
    limit: float | None = 64.0
    # Channels of each group, in order; None: all in one.
    groups: tuple[int, ...] | None = None

    def lagrangian(self, quality: int) -> float:
        """lambda at a quality, 1..100: the bits a pixel that one squared level of its mean squared error is worth."""
        return self.lambda_min * (self.lambda_max / self.lambda_min) ** quality_position(quality)

    @property
    def group_channels(self) -> list[slice]:
        """Each group's channels."""
        ends = list(accumulate(self.groups or (self.latents,)))
        if ends[-1] != self.latents:
            raise ValueError(f"groups {self.groups} are not a partition of {self.latents} latents")
        return [slice(begin, end) for begin, end in pairwise([0, *ends])]


def quality_position(quality: _Number) -> _Number:
    """Quality 1..100 to t in 0..1."""
    return (quality - MIN_QUALITY) / (MAX_QUALITY - MIN_QUALITY)


class QualityTable(nn.Module):
    """A vector for each quality: `points` anchor vectors, linearly interpolated in t (log-linearly for log-gains)."""

    def __init__(self, points: int, channels: int):
        super().__init__()
        self.points = nn.Parameter(torch.zeros(points, channels))

    def forward(self, t: Tensor) -> Tensor:
        """t: float [B] in 0..1; returns [B, channels]."""
        last = self.points.shape[0] - 1
        position = t.clamp(0, 1) * last
        low = position.floor().clamp(max=last - 1).long()
        weight = (position - low).unsqueeze(1)
        lower, upper = (self.points.index_select(0, rows) for rows in (low, low + 1))
        return lower * (1 - weight) + upper * weight


class Convolution(nn.Conv2d):
    """A convolution that has a bias."""

    bias: nn.Parameter


def _pointwise(inputs: int, outputs: int) -> Convolution:
    return Convolution(inputs, outputs, 1)


def bounded(x: Tensor, limit: float | None) -> Tensor:
    """x, clamped to -limit..limit; in place where no gradient needs what it was."""
    if limit is None:
        return x
    return x.clamp(-limit, limit) if torch.is_grad_enabled() else x.clamp_(-limit, limit)


def _silu(x: Tensor) -> Tensor:
    return F.silu(x, inplace=not torch.is_grad_enabled())


class Block(nn.Module):
    """Residual block: 1x1, SiLU, depthwise 3x3, 1x1; then a gated 1x1 pair. The last layers start near zero.

    The gated product is quadratic in the features, and the block after it reads what it adds: without a limit, features
    out of the range of photographs grow doubly exponentially from block to block.
    """

    def __init__(self, channels: int, limit: float | None):
        super().__init__()
        self.limit = limit
        self.expand = _pointwise(channels, channels)
        self.depthwise = Convolution(channels, channels, 3, padding=1, groups=channels)
        self.project = _pointwise(channels, channels)
        self.gate = _pointwise(channels, 2 * channels)
        self.merge = _pointwise(channels, channels)
        for last in (self.project, self.merge):
            nn.init.normal_(last.weight, std=1e-3)
            nn.init.zeros_(last.bias)

    def forward(self, x: Tensor) -> Tensor:
        """x: [B, C, H, W], within the limit; so is what is returned."""
        x = x + self.project(self.depthwise(_silu(self.expand(x))))
        value, gate = self.gate(x).chunk(2, 1)
        x = x + self.merge(bounded(value * _silu(gate), self.limit))
        return bounded(x, self.limit)


class Analysis(nn.Module):
    """g_a: RGB [B, 3, 16h, 16w] in 0..1 to latents [B, M, h, w], before the gain."""

    def __init__(self, config: SwiftConfig):
        super().__init__()
        c, m = config.features, config.latents
        self.head = _pointwise(192, c)
        self.modulation = QualityTable(config.quality_points, c)
        self.blocks = ModuleList(Block(c, config.limit) for _ in range(config.blocks))
        self.down = Convolution(c, m, 5, stride=2, padding=2)
        self.tail = Block(m, config.limit)

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        features = self.head(F.pixel_unshuffle(x - 0.5, 8))
        features = features * (1 + self.modulation(t))[:, :, None, None]
        for block in self.blocks:
            features = block(features)
        return self.tail(bounded(self.down(features), self.tail.limit))


class Synthesis(nn.Module):
    """g_s: latents [B, M, h, w], after the inverse gain, to RGB [B, 3, 16h, 16w], not clamped."""

    def __init__(self, config: SwiftConfig):
        super().__init__()
        c, m = config.features, config.latents
        self.limit = config.limit
        self.head = Block(m, config.limit)
        self.up = _pointwise(m, 4 * c)
        self.modulation = QualityTable(config.quality_points, c)
        self.blocks = ModuleList(Block(c, config.limit) for _ in range(config.blocks))
        self.tail = Convolution(c, 192, 3, padding=1)

    def forward(self, y: Tensor, t: Tensor, fast: bool = False) -> Tensor:
        """fast: the residual blocks' branches in bfloat16. The layers that carry the image itself stay in float32: a
        mean rounded to eight bits would show as a quarter of a level."""
        if self.limit is not None:
            y = y.clamp(-self.limit, self.limit)  # not in place: the latents are the caller's
        features = F.pixel_shuffle(self.up(self.head(y)), 2)
        features = bounded(features * (1 + self.modulation(t))[:, :, None, None], self.limit)
        with torch.autocast(y.device.type, torch.bfloat16) if fast else nullcontext():
            for block in self.blocks:
                features = block(features)
        return F.pixel_shuffle(self.tail(features), 8) + 0.5


class HyperAnalysis(nn.Module):
    """h_a: scaled latents [B, M, 4h, 4w] to hyper latents [B, Z, h, w]. Sees the quality, so that z need not adapt."""

    def __init__(self, config: SwiftConfig):
        super().__init__()
        self.limit = config.limit
        self.head = Convolution(config.latents, 128, 3, padding=1)
        self.modulation = QualityTable(config.quality_points, 128)
        self.down1 = Convolution(128, 128, 5, stride=2, padding=2)
        self.down2 = Convolution(128, config.hyper_latents, 5, stride=2, padding=2)

    def forward(self, y: Tensor, t: Tensor) -> Tensor:
        features = _silu(self.head(torch.asinh(y)) + self.modulation(t)[:, :, None, None])
        features = _silu(self.down1(bounded(features, self.limit)))
        return self.down2(bounded(features, self.limit)) * 4


def _round_ste(x: Tensor) -> Tensor:
    """floor(x + 1/2) with the identity's gradient: the rounding of an arithmetic shift."""
    return x + (torch.floor(x + 0.5) - x).detach()


class FixedPointLinear(nn.Module):
    """A linear or convolution layer of the entropy side, trained in the arithmetic that the decoder runs.

    Inputs and outputs are reals that stand for integers: value = integer * 2^-bits. `gain` (powers of two per output
    channel) keeps the stored weights of order one where outputs are not. With `quantise` on, weights are rounded to
    int8 with an exponent for each output channel and outputs are rounded and clamped as the integer layer does.
    """

    gain: Tensor

    def __init__(
        self,
        inputs: int,
        outputs: int,
        kernel: int = 1,
        *,
        input_bits: int = ACTIVATION_BITS,
        output: Format = ACTIVATION,
        gain: Tensor | None = None,
    ):
        super().__init__()
        self.kernel, self.input_bits, self.output = kernel, input_bits, output
        shape = (outputs, inputs, kernel, kernel) if kernel > 1 else (outputs, inputs)
        fan_in = inputs * kernel * kernel
        self.weight = nn.Parameter(torch.randn(shape) * math.sqrt(1.0 / fan_in))
        self.bias = nn.Parameter(torch.zeros(outputs))
        self.register_buffer("gain", torch.ones_like(self.bias) if gain is None else gain)
        self.quantise = False

    def scaled(self, extra_bias: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Weight and bias with the gain applied (bias [outputs], or [B, outputs] where extra_bias is [B, outputs])."""
        bias = self.bias if extra_bias is None else self.bias + extra_bias
        return self.weight * self.gain.view(-1, *[1] * (self.weight.dim() - 1)), bias * self.gain

    def forward(self, x: Tensor, extra_bias: Tensor | None = None) -> Tensor:
        """x: [B, C, H, W] for a convolution, [B, P, C] for a linear layer; returns the like."""
        weight, bias = self.scaled(extra_bias)
        if self.quantise:
            largest_bias = bias.detach().abs().reshape(-1, weight.shape[0]).amax(0)
            exponents = weight_exponents(weight.detach(), largest_bias, self.input_bits, self.output.bits)
            scale = torch.exp2(exponents.float())
            shaped = scale.view(-1, *[1] * (weight.dim() - 1))
            weight = _round_ste(weight * shaped).clamp(-127, 127) / shaped
            accumulator = scale * 2.0**self.input_bits
            bias = _round_ste(bias * accumulator) / accumulator
        if self.kernel > 1:
            out = F.conv2d(x, weight, bias, padding=self.kernel // 2)
        elif bias.dim() > 1:
            out = F.linear(x, weight) + bias[:, None, :]
        else:
            out = F.linear(x, weight, bias)
        unit = 2.0**self.output.bits
        if self.quantise:
            out = _round_ste(out * unit) / unit
        return out.clamp(self.output.low / unit, self.output.high / unit)


class HyperSynthesis(nn.Module):
    """h_s: hyper latents [B, Z, h, w] (integers) to psi [B, hyper_features, 4h, 4w]."""

    def __init__(self, config: SwiftConfig):
        super().__init__()
        z, n = config.hyper_latents, 128
        self.head = FixedPointLinear(z, n, 3, input_bits=2)
        self.up1 = FixedPointLinear(n, 4 * n)
        self.middle = FixedPointLinear(n, n, 3)
        self.up2 = FixedPointLinear(n, 4 * n)
        self.tail = FixedPointLinear(n, config.hyper_features, 3, output=SIGNED_ACTIVATION)

    @staticmethod
    def _up(layer: FixedPointLinear, x: Tensor) -> Tensor:
        return F.pixel_shuffle(layer(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2), 2)

    def forward(self, z: Tensor) -> Tensor:
        x = self.head(z / 4)
        x = self.middle(self._up(self.up1, x))
        return self.tail(self._up(self.up2, x))


class Group(nn.Module):
    """Context and parameter network of a group of channels: g_cm, g_ch and the three 1x1 layers of g_ep.

    phi at anchors is g_ch of the latents of earlier groups at this position (none, and phi is zero, in the first
    group), at non-anchors g_cm of these and of the group's own anchors around it.
    """

    context_shift: Tensor

    def __init__(self, config: SwiftConfig, context_shift: Tensor, channels: slice):
        """context_shift: int32 [M], of all channels."""
        super().__init__()
        before, m = channels.start, channels.stop - channels.start
        self.register_buffer("context_shift", context_shift[: channels.stop].clone())
        taps = len(checkerboard.LIVE_TAPS)
        self.context = FixedPointLinear(taps * m + before, config.context_features, output=SIGNED_ACTIVATION)
        self.channel_context = None
        if before:
            self.channel_context = FixedPointLinear(before, config.context_features, output=SIGNED_ACTIVATION)
        self.first = FixedPointLinear(config.hyper_features + config.context_features, config.hidden)
        self.quality_bias = QualityTable(config.quality_points, config.hidden)
        self.second = FixedPointLinear(config.hidden, config.hidden)
        # Means first, in units of y^ (2^context_shift keeps them of the context input's order), then scale indexes.
        mean_gain = torch.exp2(context_shift[channels].float())
        self.means = FixedPointLinear(config.hidden, m, output=MEAN, gain=mean_gain)
        self.indexes = FixedPointLinear(config.hidden, m, output=SCALE_INDEX, gain=torch.full((m,), 8.0))
        nn.init.constant_(self.indexes.bias, 1.5)

    def _scaled(self, y_hat: Tensor, channels: slice) -> Tensor:
        """Decoded latents as the context reads them."""
        scaled = y_hat * torch.exp2(-self.context_shift[channels].float())
        unit = 2.0**ACTIVATION_BITS
        if self.context.quantise:
            scaled = _round_ste(scaled * unit) / unit
        return scaled.clamp(-ACTIVATION_MAX / unit, ACTIVATION_MAX / unit)

    def context_at_anchors(self, before: Tensor) -> Tensor | None:
        """Earlier groups' y^ at the anchors, [B, anchors, channels], to phi [B, anchors, context_features]."""
        if self.channel_context is None:
            return None
        return self.channel_context(self._scaled(before, slice(0, before.shape[2])))

    def context_at_non_anchors(self, anchors: Tensor, before: Tensor, height: int, width: int) -> Tensor:
        """The group's anchors y^ [B, anchors, m] and earlier groups' y^ at the non-anchors to phi there."""
        own = self._scaled(anchors, slice(before.shape[2], None))
        gathered = checkerboard.gather_context(own, height, width)
        return self.context(torch.cat([gathered, self._scaled(before, slice(0, before.shape[2]))], 2))

    def forward(self, psi: Tensor, phi: Tensor | None, t: Tensor) -> tuple[Tensor, Tensor]:
        """psi [B, P, hyper_features], phi [B, P, context_features] or None for exactly zero: means, scale indexes."""
        if phi is None:
            phi = psi.new_zeros(*psi.shape[:2], self.context.bias.shape[0])
        hidden = self.first(torch.cat([psi, phi], 2), self.quality_bias(t))
        hidden = self.second(hidden)
        return self.means(hidden), self.indexes(hidden)


class HyperPrior(nn.Module):
    """Factorised prior of the hyper latents: a mixture of three logistics for each channel."""

    def __init__(self, channels: int, components: int = 3):
        super().__init__()
        self.location = nn.Parameter(torch.linspace(-4, 4, components).repeat(channels, 1))
        self.log_scale = nn.Parameter(torch.full((channels, components), 1.0))
        self.logit = nn.Parameter(torch.zeros(channels, components))

    def cdf(self, x: Tensor) -> Tensor:
        """x: [..., channels]; the mixture's cumulative distribution at x."""
        weight = self.logit.softmax(1)
        return (weight * torch.sigmoid((x.unsqueeze(-1) - self.location) * torch.exp(-self.log_scale))).sum(-1)

    def bits(self, z: Tensor) -> Tensor:
        """z: [B, Z, h, w]; code length in bits of the interval z +- 1/2."""
        z = z.movedim(1, -1)
        return -_log2_bounded(self.cdf(z + 0.5) - self.cdf(z - 0.5))


def _log2_bounded(probability: Tensor) -> Tensor:
    """log2(max(p, 1e-9)); below the bound the gradient of p passes as if p were the bound, so outliers still learn."""
    bounded = probability + (probability.clamp(min=1e-9) - probability).detach()
    return torch.log2(bounded)


@cache
def _gaussian_operator(device: str) -> Callable[[Tensor, Tensor, float, float], Tensor] | None:
    """The fused kernel of `gaussian_bits` for this type of device, or None: Triton is not on every platform."""
    if device != "cuda" or find_spec("triton") is None:
        return None
    from ...kernels.triton import gaussian_likelihood

    return gaussian_likelihood.gaussian_bits


def gaussian_bits(residual: Tensor, index: Tensor) -> Tensor:
    """Code length in bits of N(0, sigma^2) * U(-1/2, 1/2) at residual (He et al. 2021, equation 3).

    residual: latent minus mean, in quantisation steps; index: scale index, between the table's scales too. Same shape.
    """
    # A compiler fuses what follows, and cannot look into the operator.
    if not torch.compiler.is_compiling() and (operator := _gaussian_operator(residual.device.type)):
        return operator(residual, index, LEAST_SCALE, _LOG_SCALE_STEP)
    inverse = torch.exp(-(math.log(LEAST_SCALE) + index * _LOG_SCALE_STEP)) * math.sqrt(0.5)
    magnitude = residual.abs()
    upper, lower = torch.erfc((magnitude - 0.5) * inverse), torch.erfc((magnitude + 0.5) * inverse)
    return -_log2_bounded(0.5 * (upper - lower))


class Swift(nn.Module):
    """The trainable model."""

    def __init__(self, config: SwiftConfig | None = None, context_shift: Tensor | None = None):
        super().__init__()
        self.config = config = config or SwiftConfig()
        if context_shift is None:
            context_shift = torch.ones(config.latents, dtype=torch.int32)
        self.g_a, self.g_s = Analysis(config), Synthesis(config)
        self.h_a, self.h_s = HyperAnalysis(config), HyperSynthesis(config)
        self.groups = ModuleList(Group(config, context_shift, channels) for channels in config.group_channels)
        self.prior = HyperPrior(config.hyper_latents)
        self.log_gain = QualityTable(config.quality_points, config.latents)
        self.log_inverse_gain = QualityTable(config.quality_points, config.latents)
        steps = torch.linspace(
            math.log(config.step_coarse), math.log(config.step_fine), config.quality_points, dtype=torch.float32
        )
        with torch.no_grad():
            self.log_gain.points.copy_((math.log(255.0) - steps)[:, None].expand(-1, config.latents))
            self.log_inverse_gain.points.copy_(-self.log_gain.points)

    def set_quantise(self, on: bool) -> None:
        """Switch the entropy side between float (clamped) and quantisation-aware arithmetic."""
        for module in self.modules():
            if isinstance(module, FixedPointLinear):
                module.quantise = on

    def lagrangian(self, t: Tensor) -> Tensor:
        """lambda of the loss R + lambda * 255^2 * MSE, log-linear in t."""
        low, high = math.log(self.config.lambda_min), math.log(self.config.lambda_max)
        return torch.exp(low + t * (high - low))

    def forward(self, x: Tensor, t: Tensor) -> dict[str, Tensor]:
        """One training pass. x: RGB [B, 3, H, W] in 0..1, H and W multiples of 64; t: [B].

        Rates come from noisy residuals (a differentiable stand-in for rounding); the context and the synthesis see
        rounded values with a straight-through gradient. Returns x^ and the bits of y and z for each image.
        """
        y, z = self._analyse(x, t)
        y_hat, rates = self._rates(y, z, t)
        x_hat = self.g_s(y_hat * torch.exp(self.log_inverse_gain(t))[:, :, None, None], t).float()
        return {"x_hat": x_hat, **rates}

    def rates(self, x: Tensor, t: Tensor) -> dict[str, Tensor]:
        """The rates of `forward`, with gradients for prior, hyper-synthesis, contexts and parameter networks alone."""
        with torch.no_grad():
            y, z = self._analyse(x, t)
        return self._rates(y, z, t)[1]

    def _analyse(self, x: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        y = self.g_a(x, t).float() * torch.exp(self.log_gain(t))[:, :, None, None]
        return y, self.h_a(y, t).float()

    def _rates(self, y: Tensor, z: Tensor, t: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        with torch.autocast(y.device.type, enabled=False):
            z_bits = self.prior.bits(z + torch.rand_like(z) - 0.5).flatten(1).sum(1)
            y_hat, y_bits = self._code(y, _round_ste(z).clamp(-127, 127), t)
        return y_hat, {"y_bits": y_bits, "z_bits": z_bits}

    def _code(self, y: Tensor, z_hat: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        height, width = y.shape[2:]
        psi_anchors, psi_non_anchors = checkerboard.split(self.h_s(z_hat).permute(0, 2, 3, 1))
        y_anchors, y_non_anchors = checkerboard.split(y.permute(0, 2, 3, 1))
        anchors, non_anchors = y_anchors[..., :0], y_non_anchors[..., :0]  # what is decoded
        bits = y.new_zeros(len(y))
        for group, channels in zip(self.groups, self.config.group_channels, strict=True):
            means, indexes = group(psi_anchors, group.context_at_anchors(anchors), t)
            of_anchors, bits_of_anchors = _quantise(y_anchors[..., channels], means, indexes, group.indexes.quantise)
            phi = group.context_at_non_anchors(of_anchors, non_anchors, height, width)
            means, indexes = group(psi_non_anchors, phi, t)
            of_others, bits_of_others = _quantise(y_non_anchors[..., channels], means, indexes, group.indexes.quantise)
            anchors, non_anchors = torch.cat([anchors, of_anchors], 2), torch.cat([non_anchors, of_others], 2)
            bits = bits + bits_of_anchors + bits_of_others
        return checkerboard.merge(anchors, non_anchors, height, width).permute(0, 3, 1, 2), bits


def _quantise(y: Tensor, means: Tensor, indexes: Tensor, skip: bool) -> tuple[Tensor, Tensor]:
    """y^ and the bits of each image. skip: index 0 is not coded, and the decoder sees the mean."""
    residual = y - means
    bits = gaussian_bits(residual + torch.rand_like(y) - 0.5, indexes).flatten(1).sum(1)
    rounded = y + (torch.round(residual) - residual).detach()
    return torch.where(indexes > 0, rounded, means) if skip else rounded, bits
