"""mbt2018-checkerboard and random-mask: He, Zheng, Sun, Wang, Qin, "Checkerboard context model for efficient learned
image compression", CVPR 2021, both on Minnen 2018.

    anchors:      Phi_i = g_ep(psi_i, 0)                      (row + column) even
    non-anchors:  Phi_i = g_ep(psi_i, g_cm(anchors' y^)_i)    equation 8
"""

from __future__ import annotations

import torch
from torch import Tensor

from ...kernels import checkerboard, rans
from .base import Coded
from .context import KERNEL, NEIGHBOURS, RADIUS, RASTER_TAPS, WithContext, mask_of, on_rows
from .minnen2018 import ContextModel, JointAutoregressive, Rounding


def anchor_mask(height: int, width: int, like: Tensor) -> Tensor:
    """1 at anchors, 0 elsewhere: [height, width], of the dtype and on the device of `like`."""
    rows, columns = torch.arange(height, device=like.device), torch.arange(width, device=like.device)
    return ((rows[:, None] + columns) % 2 == 0).to(like.dtype)


class TwoPasses(WithContext):
    """All anchors by the hyperprior alone, then all non-anchors, which see the anchors around them."""

    def parameters_while_training(self, psi: Tensor, y_hat: Tensor) -> Tensor:
        """All parameters in one pass: g_ep(psi, g_cm(y_half) - b_half) (equation 11).

        y_half is y^ with all non-anchors 0. At anchors g_cm sees nothing but those and gives its bias b, so that the
        difference is exactly 0 there. Coding has the same parameters by `encode_given`, but for the order of sums.
        """
        anchors = anchor_mask(y_hat.shape[2], y_hat.shape[3], like=y_hat)
        b_half = self.context_prediction.bias[:, None, None] * anchors
        phi = self.context_prediction(y_hat * anchors) - b_half
        return self.entropy_parameters(self.merged(psi, phi))

    def encode_given(self, y: Tensor, psi: Tensor) -> Coded:
        """With y^ = round(y) this is one-pass encoding: nothing in the second half waits for the first one's means."""
        height, width = y.shape[2:]
        (y_anchors, y_others), (psi_anchors, psi_others) = _halves(y), _halves(psi)
        first, anchors, bits = self.gaussian_conditional.encode(y_anchors, self._anchor_parameters(psi_anchors))
        parameters = self._non_anchor_parameters(psi_others, anchors, height, width)
        second, others, more_bits = self.gaussian_conditional.encode(y_others, parameters)
        return Coded([first, second], bits + more_bits, _whole(anchors, others, height, width))

    def decode_given(self, decoder: rans.Decoder, psi: Tensor) -> Tensor:
        height, width = psi.shape[2:]
        psi_anchors, psi_others = _halves(psi)
        anchors = self.gaussian_conditional.decode(decoder, self._anchor_parameters(psi_anchors))
        parameters = self._non_anchor_parameters(psi_others, anchors, height, width)
        others = self.gaussian_conditional.decode(decoder, parameters)
        return _whole(anchors, others, height, width)

    def _anchor_parameters(self, psi: Tensor) -> Tensor:
        phi = psi.new_zeros(psi.shape[0], self.context_prediction.out_channels)
        return on_rows(self.entropy_parameters)(self.merged(psi, phi))

    def _non_anchor_parameters(self, psi: Tensor, anchors: Tensor, height: int, width: int) -> Tensor:
        seen = checkerboard.gather_context(anchors[None], height, width)[0]
        phi = self.context_prediction.on_rows(checkerboard.LIVE_TAPS)(seen)
        return on_rows(self.entropy_parameters)(self.merged(psi, phi))


def _halves(grid: Tensor) -> tuple[Tensor, Tensor]:
    """Anchors and non-anchors of [1, C, h, w], each [positions, C]."""
    anchors, others = checkerboard.split(grid.permute(0, 2, 3, 1))
    return anchors[0], others[0]


def _whole(anchors: Tensor, others: Tensor, height: int, width: int) -> Tensor:
    """The inverse of `_halves`."""
    return checkerboard.merge(anchors[None], others[None], height, width).permute(0, 3, 1, 2)


class Checkerboard(TwoPasses, ContextModel):
    """Minnen 2018 in two passes."""

    taps = checkerboard.LIVE_TAPS


class RandomMask(Checkerboard, JointAutoregressive):
    """The supernet of section 4.1: one context convolution, trained under a new random mask at every step, so that the
    rate under any mask can be measured on the same latents.

    `set_mask` fixes the mask of coding and evaluation; at first it is the checkerboard's.
    """

    taps = NEIGHBOURS

    def __init__(self, n: int, m: int, rounding: Rounding = "residuals"):
        super().__init__(n, m, rounding)
        self.context_prediction.any_mask = True
        self.set_mask(mask_of(checkerboard.LIVE_TAPS))

    def set_mask(self, mask: Tensor) -> None:
        """mask: 5x5, 1 at the neighbours referred to. ValueError for another size, or a mask with its centre."""
        if mask.shape != (KERNEL, KERNEL) or mask[RADIUS, RADIUS]:
            raise ValueError("a mask is 5x5, and no latent refers to itself")
        self.context_prediction.mask.copy_(mask.expand_as(self.context_prediction.mask))

    @property
    def mask(self) -> Tensor:
        """float32 [5, 5]."""
        return self.context_prediction.mask[0, 0]

    def parameters_while_training(self, psi: Tensor, y_hat: Tensor) -> Tensor:
        """Parameters under the mask at every position, whatever could be decoded: under a new random one in training,
        each neighbour in or out with equal odds (section 5.1)."""
        mask = self.mask
        if self.training:
            mask = torch.randint(0, 2, mask.shape, device=mask.device).to(mask.dtype)
            mask[RADIUS, RADIUS] = 0
        return self.entropy_parameters(self.merged(psi, self.context_prediction(y_hat, mask)))

    @torch.inference_mode()
    def measure(self, x: Tensor, mask: Tensor) -> tuple[float, float]:
        """The bits of all latents under a mask and those of the hyper latents, for x as `compress` takes it.

        y^ = round(y) does not depend on the mask, so masks are compared on the same latents, also such as no order of
        decoding allows (equation 7).
        """
        y = self.g_a(x)
        _, z_hat, z_bits = self.entropy_bottleneck.encode(self.hyper_analysis(y))
        phi = self.context_prediction(torch.round(y), mask)
        parameters = self.entropy_parameters(self.merged(self.h_s(z_hat), phi))
        return float(self.gaussian_conditional.bits(torch.round(y), parameters).sum()), z_bits

    def encode_given(self, y: Tensor, psi: Tensor) -> Coded:
        """By the order that the mask allows: raster order, else two passes. ValueError where it allows neither."""
        return self._order().encode_given(self, y, psi)

    def decode_given(self, decoder: rans.Decoder, psi: Tensor) -> Tensor:
        return self._order().decode_given(self, decoder, psi)

    def _order(self) -> type[ContextModel]:
        taps = {(int(dy) - RADIUS, int(dx) - RADIUS) for dy, dx in self.mask.nonzero()}
        if taps <= set(RASTER_TAPS):
            return JointAutoregressive
        if taps <= set(checkerboard.LIVE_TAPS):
            return Checkerboard
        raise ValueError("no order of decoding has all the neighbours of this mask: it can be measured, not coded")
