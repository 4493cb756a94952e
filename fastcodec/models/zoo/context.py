"""Masked convolutions, which context models are made of: on the grid for training, on gathered rows for coding.

Coding never runs a convolution over the grid for the context. The encoder, who has all latents, and the decoder, who
has some, would give it different work, and floating-point sums come out differently; both gather the same neighbours
of the same positions into rows and multiply the same matrices of the same shapes.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .gaussian_conditional import Conditional
from .layers import leaky

KERNEL = 5
RADIUS = KERNEL // 2

#: (dy, dx) of all positions within 5x5 but the centre.
NEIGHBOURS = tuple(
    (dy, dx) for dy in range(-RADIUS, RADIUS + 1) for dx in range(-RADIUS, RADIUS + 1) if (dy, dx) != (0, 0)
)
#: Those that come before a position in raster order: the mask of PixelCNN's type A.
RASTER_TAPS = tuple(tap for tap in NEIGHBOURS if tap < (0, 0))


def mask_of(taps: Sequence[tuple[int, int]], device: str | None = None) -> Tensor:
    """The 5x5 mask that is 1 at (dy, dx) from its centre, float32."""
    mask = torch.zeros(KERNEL, KERNEL, dtype=torch.float32, device=device)
    for dy, dx in taps:
        mask[dy + RADIUS, dx + RADIUS] = 1
    return mask


class MaskedConvolution(nn.Conv2d):
    """g_cm: (M . W) * y + b (He et al. 2021, equation 5), M channels to 2M, 5x5."""

    mask: Tensor
    bias: nn.Parameter

    def __init__(self, latents: int, taps: Sequence[tuple[int, int]]):
        super().__init__(latents, 2 * latents, KERNEL, padding=RADIUS)
        self.register_buffer("mask", mask_of(taps).expand_as(self.weight).clone())
        self.taps = tuple(taps)
        self.any_mask = False  # whether a state dict may bring another one

    def forward(self, y: Tensor, mask: Tensor | None = None) -> Tensor:
        """y: [B, M, h, w]; returns [B, 2M, h, w]. mask: another one than the layer's own, 5x5."""
        weight = self.weight * (self.mask if mask is None else mask)
        return F.conv2d(y, weight, self.bias, padding=RADIUS)

    def on_rows(self, taps: Sequence[tuple[int, int]]) -> Callable[[Tensor], Tensor]:
        """The layer on gathered neighbours: rows [P, taps * M], the channels of a tap together, to [P, 2M]."""
        weight = self.weight * self.mask
        matrix = torch.cat([weight[:, :, dy + RADIUS, dx + RADIUS] for dy, dx in taps], 1)
        return lambda seen: F.linear(seen, matrix, self.bias)

    def _load_from_state_dict(self, state_dict: dict[str, Tensor], prefix: str, *arguments: Any) -> None:
        errors = arguments[-1]
        mask = state_dict.get(prefix + "mask")
        own = mask_of(self.taps, "cpu")  # not the buffer, which has no values on the meta device
        if not self.any_mask and mask is not None and not torch.equal(mask.to(own), own.expand_as(mask)):
            errors.append(f"{prefix}mask is that of another context model: what it was trained to see is not seen here")
        super()._load_from_state_dict(state_dict, prefix, *arguments)


def parameter_network(latents: int, parameters: int) -> nn.Sequential:
    """g_ep: 1x1 layers from 4M features, the hyper-synthesis's and the context's, to `parameters` a latent."""
    first, second = latents * 10 // 3, latents * 8 // 3
    return leaky(
        nn.Conv2d(4 * latents, first, 1), nn.Conv2d(first, second, 1), nn.Conv2d(second, parameters * latents, 1)
    )


class WithContext(nn.Module):
    """Context g_cm, parameter network g_ep, and the distribution of the latents, which every order of coding runs."""

    context_prediction: MaskedConvolution
    entropy_parameters: nn.Sequential
    gaussian_conditional: Conditional
    context_first = False  # whether g_ep's input is (phi, psi) instead of (psi, phi)

    def merged(self, psi: Tensor, phi: Tensor) -> Tensor:
        """g_ep's input, channels in dimension 1."""
        return torch.cat([phi, psi] if self.context_first else [psi, phi], 1)


def on_rows(network: nn.Sequential) -> Callable[[Tensor], Tensor]:
    """A network of 1x1 convolutions as matrix products: rows [P, inputs] to [P, outputs]."""
    layers = [_on_rows(layer) for layer in network]
    return lambda rows: functools.reduce(lambda x, layer: layer(x), layers, rows)


def _on_rows(layer: nn.Module) -> Callable[[Tensor], Tensor]:
    if isinstance(layer, nn.Conv2d):
        weight, bias = layer.weight.flatten(1), layer.bias
        return lambda rows: F.linear(rows, weight, bias)
    return getattr(layer, "rows", layer)  # an integer convolution has its own; activations take any shape
