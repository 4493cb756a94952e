"""Start the transforms of `swift` as an orthonormal linear transform: DCT, then Haar, and their transposes.

g_a's first 1x1 becomes the 8x8 DCT of an orthonormal luma-chroma rotation, its stride-2 convolution a 2x2 Haar split;
of both only the coefficients of largest variance on the training images are kept, and g_s transposes them. The residual
branches start near zero, so the network begins as a plain transform codec, and two hours of training on a CPU go into
what a linear transform cannot do. Measured: the same network from a random start needs several times the steps.
"""

from __future__ import annotations

import math
from dataclasses import replace
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from ...kernels import checkerboard
from .network import Block, Group, Swift, SwiftConfig

_tensor = partial(torch.tensor, dtype=torch.float32, device="cpu")  # whatever the defaults when this is imported
_LUMA_CHROMA = _tensor([[1, 1, 1], [1, 0, -1], [1, -2, 1]]) / _tensor([3, 2, 6]).sqrt()[:, None]
_HAAR = _tensor([[[1, 1], [1, 1]], [[1, -1], [1, -1]], [[1, 1], [-1, -1]], [[1, -1], [-1, 1]]]) / 2


def _dct_basis() -> Tensor:
    """All 192 basis functions, [192, 3, 8, 8], orthonormal."""
    n = torch.arange(8, dtype=torch.float32, device="cpu")
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
    """The same transforms with latents in other groups of channels; the entropy side is carried over as far as it fits.

    images: uint8 [B, 3, H, W], a sample of the training images. The channels of a model of one group are put in an
    order, those of most energy on the images first; those of several groups stay in theirs. A group inside an old one
    begins as the old one's part for its channels, reading nothing yet of the groups that are new before it; a group
    that old ones share begins at random.
    """
    config, old = model.config, list(zip(model.groups, model.config.group_channels, strict=True))
    new = Swift(replace(config, groups=groups), model.groups[-1].context_shift)
    new.load_state_dict({k: v for k, v in model.state_dict().items() if not k.startswith("groups.")}, strict=False)
    order = torch.arange(config.latents)
    if len(old) == 1:
        order = _by_energy(model, images)
        _reorder_latents(new, order)
    for group, channels in zip(new.groups, new.config.group_channels, strict=True):
        group.context_shift.copy_(model.groups[-1].context_shift[order[: channels.stop]])
        for of, its in old:
            if its.start <= channels.start and channels.stop <= its.stop:
                _carry_over(group, of, order[channels] - its.start, its.start)
    return new


def _by_energy(model: Swift, images: Tensor) -> Tensor:
    """The channels of the latents, those of most energy first: int64 [M]."""
    t = torch.full((len(images),), 0.5)
    latents = model.g_a(images.float() / 255, t) * torch.exp(model.log_gain(t))[:, :, None, None]
    return latents.square().mean((0, 2, 3)).argsort(descending=True, stable=True)


def _reorder_latents(model: Swift, order: Tensor) -> None:
    """The same model outside its groups with the channels of its latents in another order."""
    model.g_a.down.weight.copy_(model.g_a.down.weight[order])
    model.g_a.down.bias.copy_(model.g_a.down.bias[order])
    for layer in (model.g_s.up, model.h_a.head):
        layer.weight.copy_(layer.weight[:, order])
    for block in (model.g_a.tail, model.g_s.head):
        _reorder_block(block, order)
    for table in (model.log_gain, model.log_inverse_gain):
        table.points.copy_(table.points[:, order])


def _reorder_block(block: Block, order: Tensor) -> None:
    """The block on channels in another order; what is inside stays as it is."""
    for reader in (block.expand, block.gate):
        reader.weight.copy_(reader.weight[:, order])
    for writer in (block.project, block.merge):
        writer.weight.copy_(writer.weight[order])
        writer.bias.copy_(writer.bias[order])


def _carry_over(group: Group, old: Group, own: Tensor, before: int) -> None:
    """Begin a group with another model's weights for some of its channels. own: int64, which of them;
    before: the channels before that group, which both read at the same place."""
    taps = old.context.weight[:, : old.context.weight.shape[1] - before]
    taps = taps.unflatten(1, (len(checkerboard.LIVE_TAPS), -1))[:, :, own].flatten(1)
    group.context.weight.zero_()
    group.context.weight[:, : taps.shape[1]] = taps
    group.context.weight[:, taps.shape[1] : taps.shape[1] + before] = old.context.weight[
        :, old.context.weight.shape[1] - before :
    ]
    group.context.bias.copy_(old.context.bias)
    if group.channel_context is not None:
        group.channel_context.weight.zero_()
        if old.channel_context is not None:
            group.channel_context.weight[:, :before] = old.channel_context.weight
            group.channel_context.bias.copy_(old.channel_context.bias)
    for name in ("first", "second", "quality_bias"):
        getattr(group, name).load_state_dict(getattr(old, name).state_dict())
    for head, whole in ((group.means, old.means), (group.indexes, old.indexes)):
        head.weight.copy_(whole.weight[own])
        head.bias.copy_(whole.bias[own])
        head.gain.copy_(whole.gain[own])
