"""The layers of the parameter network, packed for the kernel of parameters.py."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from .. import checkerboard
from ..integer_layer import IntegerLayer
from .common import check, check_channels
from .packed_layer import PackedLayer, check_layer, flatten, pack, unflatten

TAPS = len(checkerboard.LIVE_TAPS)


@dataclass(frozen=True)
class ParameterNetwork:
    """A group's context layers, the three layers of g_ep (the last one as two) and the context's shifts, on a device.

    M latents and B before them are multiples of 32; F features of psi, C of phi and H hidden channels are powers of two
    from 32. context (g_cm): [C, 12 * M + B], taps in the order of `checkerboard.LIVE_TAPS`, latents fastest; channels
    (g_ch): [C, B], or None of the first group, where B is 0; first: [H, F + C], with one row of biases or one for each
    quality; second: [H, H]; means, indexes: [M, H]; context_shift: int32 [B + M].
    """

    context: PackedLayer
    first: PackedLayer
    second: PackedLayer
    means: PackedLayer
    indexes: PackedLayer
    channels: PackedLayer | None
    context_shift: Tensor

    @property
    def latents(self) -> int:
        return self.means.outputs

    @property
    def before(self) -> int:
        """Latents of earlier groups."""
        return 0 if self.channels is None else self.channels.inputs

    @property
    def features(self) -> int:
        return self.first.inputs - self.context.outputs

    @classmethod
    def pack(
        cls, layers: Mapping[str, IntegerLayer], context_shift: Tensor, device: torch.device | str
    ) -> ParameterNetwork:
        """layers: by their names in a model, g_cm, g_ep.first, g_ep.second, g_ep.means, g_ep.indexes; g_ch, too, of
        any group but the first. Raises ValueError if they do not fit."""
        packed = {name: pack(layer, device) for name, layer in layers.items()}
        network = cls(
            context=packed["g_cm"],
            first=packed["g_ep.first"],
            second=packed["g_ep.second"],
            means=packed["g_ep.means"],
            indexes=packed["g_ep.indexes"],
            channels=packed.get("g_ch"),
            context_shift=context_shift.to(device).contiguous(),
        )
        network._check()
        return network

    def _check(self) -> None:
        latents, features, phi, hidden = self.latents, self.features, self.context.outputs, self.first.outputs
        check_channels(features=features, context_features=phi, hidden=hidden)
        for name, count in (("latents", latents), ("latents before them", self.before)):
            if count % 32:
                raise ValueError(f"{count} {name}: the kernels take multiples of 32")
        check_layer("context", self.context, phi, TAPS * latents + self.before, -128, 127)
        if self.channels is not None:
            check_layer("channels", self.channels, phi, self.before, -128, 127)
        check_layer("first", self.first, hidden, features + phi, -128, 127)
        check_layer("second", self.second, hidden, hidden, -128, 127)
        check_layer("means", self.means, latents, hidden, -(2**15), 2**15 - 1)
        check_layer("indexes", self.indexes, latents, hidden, 0, 255)
        check("context_shift", self.context_shift, torch.int32, self.before + latents)

    def flatten(self) -> tuple[list[Tensor], list[int]]:
        """The network as operators take it; `channels`, if there is one, comes last of the layers."""
        layers = [self.context, self.first, self.second, self.means, self.indexes]
        tensors, limits = flatten(layers if self.channels is None else [*layers, self.channels])
        return [*tensors, self.context_shift], limits

    @classmethod
    def unflatten(cls, tensors: Sequence[Tensor], limits: Sequence[int]) -> ParameterNetwork:
        context, first, second, means, indexes, *channels = unflatten(tensors[:-1], limits)
        return cls(context, first, second, means, indexes, channels[0] if channels else None, tensors[-1])
