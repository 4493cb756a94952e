"""Start the transforms of `swift` as an orthonormal linear transform: DCT, then Haar, and their transposes.

g_a's first 1x1 becomes the 8x8 DCT of an orthonormal luma-chroma rotation, its stride-2 convolution a 2x2 Haar split;
of both only the coefficients of largest variance on the training images are kept, and g_s transposes them. The residual
branches start near zero, so the network begins as a plain transform codec, and two hours of training on a CPU go into
what a linear transform cannot do. Measured: the same network from a random start needs several times the steps.
"""

from __future__ import annotations

import math
from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor

from .swift import Block, Group, Swift, SwiftConfig

_LUMA_CHROMA = torch.tensor([[1.0, 1, 1], [1, 0, -1], [1, -2, 1]]) / torch.tensor([3.0, 2, 6]).sqrt()[:, None]
_HAAR = torch.tensor([[[1.0, 1], [1, 1]], [[1, -1], [1, -1]], [[1, 1], [-1, -1]], [[1, -1], [-1, 1]]]) / 2


def _dct_basis() -> Tensor:
    """All 192 basis functions, [192, 3, 8, 8], orthonormal."""
    n = torch.arange(8.0)
    dct = torch.cos(math.pi * (n[None, :] + 0.5) * n[:, None] / 8) / 2
    dct[0] /= math.sqrt(2.0)
    return torch.einsum("kc,uy,vx->kuvcyx", _LUMA_CHROMA, dct, dct).reshape(192, 3, 8, 8)


def _largest(variance: Tensor, count: int) -> Tensor:
    return variance.argsort(descending=True, stable=True)[:count]


@torch.no_grad()
def warm_start(config: SwiftConfig, images: Tensor) -> Swift:
    """A new `Swift`, its transforms linear and orthonormal, its context shifts fitted.

    images: uint8 [B, 3, H, W], a sample of the training images, H and W multiples of 16.
    """
    c, m = config.features, config.latents
    x = images.float() / 255 - 0.5
    basis = _dct_basis()
    coefficients = F.conv2d(x, basis, stride=8)
    kept = _largest(coefficients.pow(2).mean((0, 2, 3)), c)
    basis = basis[kept]
    bands = F.conv2d(coefficients[:, kept].flatten(0, 1).unsqueeze(1), _HAAR.unsqueeze(1), stride=2)
    bands = bands.view(len(images), c * 4, *bands.shape[2:])
    chosen = _largest(bands.pow(2).mean((0, 2, 3)), m)
    channel, band = chosen // 4, chosen % 4

    finest = bands[:, chosen].abs() * 255.0 / config.step_fine
    peak = finest.movedim(1, 0).flatten(1).quantile(0.999, dim=1)
    context_shift = torch.ceil(torch.log2(peak * 16 / 127)).clamp(1, 8).to(torch.int32)

    model = Swift(config, context_shift)
    pixels = basis.reshape(c, 192, 1, 1)  # pixel_unshuffle orders channels as colour, row, column: so does the basis
    model.g_a.head.weight.copy_(pixels)
    model.g_a.head.bias.zero_()
    model.g_a.down.weight.mul_(0.02)
    model.g_a.down.weight[torch.arange(m), channel, 2:4, 2:4] += _HAAR[band]
    model.g_a.down.bias.zero_()
    model.g_s.up.weight.mul_(0.02)
    for row in range(2):
        for column in range(2):
            model.g_s.up.weight[channel * 4 + row * 2 + column, torch.arange(m), 0, 0] += _HAAR[band][:, row, column]
    model.g_s.up.bias.zero_()
    model.g_s.tail.weight.mul_(0.02)
    model.g_s.tail.weight[:, :, 1, 1] += pixels[:, :, 0, 0].T
    model.g_s.tail.bias.zero_()
    return model


@torch.no_grad()
def regroup(model: Swift, groups: tuple[int, ...] | None, images: Tensor) -> Swift:
    """The same transforms with latents in other groups of channels, those of most energy first, and what can be carried
    over of the entropy side.

    model: of one group; images: uint8 [B, 3, H, W], a sample of the training images, on which energy is measured. A
    group's context begins as the old one's part for its channels, and reads nothing of the groups before it yet.
    """
    new = Swift(replace(model.config, groups=groups), model.groups[0].context_shift)
    if len(model.groups) > 1:
        raise ValueError("only a model of one group can be regrouped")
    t = torch.full((len(images),), 0.5)
    latents = model.g_a(images.float() / 255, t) * torch.exp(model.log_gain(t))[:, :, None, None]
    order = latents.square().mean((0, 2, 3)).argsort(descending=True, stable=True)

    new.load_state_dict({k: v for k, v in model.state_dict().items() if not k.startswith("groups.")}, strict=False)
    for layer in (new.g_a.down, new.g_s.up, new.h_a.head):
        if layer is new.g_a.down:
            layer.weight.copy_(layer.weight[order])
            layer.bias.copy_(layer.bias[order])
        else:
            layer.weight.copy_(layer.weight[:, order])
    for block in (new.g_a.tail, new.g_s.head):
        _reorder_block(block, order)
    for table in (new.log_gain, new.log_inverse_gain):
        table.points.copy_(table.points[:, order])
    old = model.groups[0]
    for group, channels in zip(new.groups, new.config.group_channels, strict=True):
        _carry_over(group, old, order[channels], old.context_shift[order[: channels.stop]])
    return new


def _reorder_block(block: Block, order: Tensor) -> None:
    """The block on channels in another order; what is inside stays as it is."""
    for reader in (block.expand, block.gate):
        reader.weight.copy_(reader.weight[:, order])
    for writer in (block.project, block.merge):
        writer.weight.copy_(writer.weight[order])
        writer.bias.copy_(writer.bias[order])


def _carry_over(group: Group, old: Group, channels: Tensor, shifts: Tensor) -> None:
    """Begin a group with what the only group of a model has for its channels."""
    group.context_shift.copy_(shifts)
    taps = old.context.weight.unflatten(1, (-1, len(old.context_shift)))[:, :, channels].flatten(1)
    group.context.weight.zero_()
    group.context.weight[:, : taps.shape[1]] = taps
    group.context.bias.copy_(old.context.bias)
    if group.channel_context is not None:
        group.channel_context.weight.zero_()
    for name in ("first", "second", "quality_bias"):
        getattr(group, name).load_state_dict(getattr(old, name).state_dict())
    for head, whole in ((group.means, old.means), (group.indexes, old.indexes)):
        head.weight.copy_(whole.weight[channels])
        head.bias.copy_(whole.bias[channels])
        head.gain.copy_(whole.gain[channels])
