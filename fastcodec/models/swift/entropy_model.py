"""The entropy side of `swift` in integers: hyper-synthesis, checkerboard context and parameter network.

This is what decides every probability, so encoder and decoder on any device must run it to the same bits: everything
from the hyper-latent symbols to a scale index and a fixed-point mean is integer arithmetic (docs/integer.md). The
layers come from `fastcodec.kernels.integer_layer`: `EntropyModel(..., backend="reference")` runs the int64 definition,
"float32" and "int8" its twins for CPUs, of which `fastest_backend` names one.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from itertools import accumulate, pairwise
from typing import Literal

import torch
from torch import Tensor

from ...constants import MAX_QUALITY, MIN_QUALITY
from ...entropy.fixed_point import (
    ACTIVATION,
    ACTIVATION_MAX,
    EXACT_LIMIT,
    MEAN,
    MEAN_BITS,
    SCALE_INDEX,
    SIGNED_ACTIVATION,
    WEIGHT_MAX,
    accumulator_bound,
    weight_exponents,
)
from ...errors import ExactnessError
from ...kernels import checkerboard
from ...kernels import integer_layer as integer
from ...kernels.integer_layer import IntegerLayer
from .network import FixedPointLinear, Swift, quality_position

Backend = Literal["int8", "float32", "reference"]

# Beyond this the rounding term alone breaks the bound, and far beyond its power of two would wrap around.
_MAX_SHIFT = 24

#: Layer name -> its outputs. The names are those of the stored tensors; the layers of a later group of
#: channels have its number behind them, as in "g_cm.1".
_OUTPUTS = {
    "h_s.head": ACTIVATION,
    "h_s.up1": ACTIVATION,
    "h_s.middle": ACTIVATION,
    "h_s.up2": ACTIVATION,
    "h_s.tail": SIGNED_ACTIVATION,
    "g_ch": SIGNED_ACTIVATION,
    "g_cm": SIGNED_ACTIVATION,
    "g_ep.first": ACTIVATION,
    "g_ep.second": ACTIVATION,
    "g_ep.means": MEAN,
    "g_ep.indexes": SCALE_INDEX,
}
HYPER_SYNTHESIS = ("h_s.head", "h_s.up1", "h_s.middle", "h_s.up2", "h_s.tail")


def group_layers(group: int) -> dict[str, str]:
    """The names of the stored tensors of a group's layers, by the layers' kinds."""
    kinds = ("g_cm", "g_ep.first", "g_ep.second", "g_ep.means", "g_ep.indexes")
    if group == 0:
        return {kind: kind for kind in kinds}
    return {kind: f"{kind}.{group}" for kind in ("g_ch", *kinds)}


def integer_layer(name: str, weight: Tensor, bias: Tensor, shift: Tensor) -> IntegerLayer:
    """Build a layer after proving that its float32 evaluation is exact; `ExactnessError` otherwise.

    weight: int8 [outputs, inputs]; bias: int32 [outputs] or [rows, outputs]; shift: int32 [outputs]. The proof: for
    each output channel, sum|w| * 127 + |bias| + 2^(s-1) < 2^24, so that every partial sum, in any order, is an integer
    that float32 holds exactly.
    """
    heaviest = int(weight.to(torch.int16).abs().max())
    if not 1 <= int(shift.min()) <= int(shift.max()) <= _MAX_SHIFT or heaviest > WEIGHT_MAX:
        raise ExactnessError(f"layer {name}: shifts must lie in 1..{_MAX_SHIFT} and weights within +-{WEIGHT_MAX}")
    largest = bias.long().abs().reshape(-1, weight.shape[0]).amax(0)
    bound = accumulator_bound(weight, largest, shift)
    worst = int(bound.argmax())
    if int(bound[worst]) >= EXACT_LIMIT:
        raise ExactnessError(
            f"layer {name}: output channel {worst} can reach {int(bound[worst])}, float32 is exact below {EXACT_LIMIT}"
        )
    output = _OUTPUTS[re.sub(r"\.\d+$", "", name)]
    return IntegerLayer(weight, bias, shift, output.low, output.high)


def _quantise(layer: FixedPointLinear, extra_bias: Tensor | None = None) -> dict[str, Tensor]:
    """The integers that the layer trained with: weights [outputs, taps * inputs], bias, shift."""
    with torch.no_grad():
        weight, bias = layer.scaled(extra_bias)
        largest = bias.abs().reshape(-1, weight.shape[0]).amax(0)
        exponents = weight_exponents(weight, largest, layer.input_bits, layer.output.bits)
        scale = torch.exp2(exponents.double())
        shaped = scale.view(-1, *[1] * (weight.dim() - 1))
        whole = torch.floor(weight.double() * shaped + 0.5).clamp(-WEIGHT_MAX, WEIGHT_MAX)
        if whole.dim() == 4:  # [outputs, inputs, 3, 3] -> taps row-major, inputs fastest
            whole = whole.permute(0, 2, 3, 1)
        bias = torch.floor(bias.double() * scale * 2.0**layer.input_bits + 0.5)
        shift = exponents + layer.input_bits - layer.output.bits
    return {
        "weight": whole.flatten(1).to(torch.int8).contiguous(),
        "bias": bias.to(torch.int32).contiguous(),
        "shift": shift.to(torch.int32).contiguous(),
    }


def entropy_layers(model: Swift) -> dict[str, FixedPointLinear]:
    """The trainable layers of the entropy side by the names of their stored tensors."""
    synthesis = model.h_s
    found = {
        "h_s.head": synthesis.head,
        "h_s.up1": synthesis.up1,
        "h_s.middle": synthesis.middle,
        "h_s.up2": synthesis.up2,
        "h_s.tail": synthesis.tail,
    }
    for number, group in enumerate(model.groups):
        of_kind = {
            "g_ch": group.channel_context,
            "g_cm": group.context,
            "g_ep.first": group.first,
            "g_ep.second": group.second,
            "g_ep.means": group.means,
            "g_ep.indexes": group.indexes,
        }
        names = group_layers(number)
        found |= {names[kind]: layer for kind, layer in of_kind.items() if layer is not None}
    return found


def export_entropy_side(model: Swift) -> dict[str, Tensor]:
    """The integer tensors of a trained model, named `layer.weight`, `layer.bias`, `layer.shift`, and `context_shift`.

    Raises ExactnessError, naming layer and channel, where a layer could leave the range in which float32 is exact.
    """
    for name, parameter in model.named_parameters():
        if name.startswith(("h_s.", "groups.")) and not torch.isfinite(parameter).all():
            raise ExactnessError(f"{name} is not finite")
    t = quality_position(torch.arange(MIN_QUALITY, MAX_QUALITY + 1, dtype=torch.float64, device="cpu")).float()
    with torch.no_grad():
        quality_bias = {id(g.first): g.quality_bias(t.to(g.first.bias.device)) for g in model.groups}
    layers = {name: _quantise(layer, quality_bias.get(id(layer))) for name, layer in entropy_layers(model).items()}
    for name, tensors in layers.items():
        integer_layer(name, **tensors)
    flat = {f"{name}.{part}": tensor for name, tensors in layers.items() for part, tensor in tensors.items()}
    return flat | {"context_shift": model.groups[-1].context_shift.to(torch.int32).contiguous()}


@dataclass(frozen=True)
class Parameters:
    """Means in 1/16 (int32) and scale indexes (uint8) of the elements of a pass, both [B, positions, M]."""

    means: Tensor
    indexes: Tensor


def fastest_backend() -> Backend:
    """The fastest back end that is exact on this machine. Raises ExactnessError where only "reference" is."""
    if integer.int8_is_exact():
        return "int8"
    if not integer.float32_is_exact():
        raise ExactnessError("this PyTorch's float32 matrix product is not exact; use the reference backend")
    return "float32"


@dataclass(frozen=True)
class Arithmetic:
    """A back end: how it holds integers, and its two operations."""

    dtype: torch.dtype
    linear: Callable[[Tensor, IntegerLayer, int | None], Tensor]
    shift_right: Callable[[Tensor, Tensor, int, int], Tensor]


_ARITHMETIC: dict[Backend, Arithmetic] = {
    "int8": Arithmetic(torch.int8, integer.linear_int8, integer.shift_right_int8),
    "float32": Arithmetic(torch.float32, integer.linear, integer.shift_right),
    "reference": Arithmetic(torch.int64, integer.linear_reference, integer.shift_right_reference),
}


class EntropyModel:
    """Runs the integer networks. Batched over tiles of equal shape; immutable after construction, so thread-safe.

    All methods take and return integers: hyper latents int16 [B, h, w, Z], latents int32 in 1/16. backend: None for the
    fastest. Raises ExactnessError where layers, or the back end on this machine, are not exact.
    """

    def __init__(self, tensors: dict[str, Tensor], backend: Backend | None = None):
        groups = 1
        while f"{group_layers(groups)['g_ch']}.weight" in tensors:
            groups += 1
        self._names = [group_layers(group) for group in range(groups)]
        self.layers = {
            name: integer_layer(name, *(tensors[f"{name}.{part}"] for part in ("weight", "bias", "shift")))
            for name in (*HYPER_SYNTHESIS, *(name for names in self._names for name in names.values()))
        }
        self.context_shift = tensors["context_shift"]
        sizes = [len(self.layers[names["g_ep.means"]].weight) for names in self._names]
        #: Each group's channels.
        self.groups = [slice(begin, end) for begin, end in pairwise([0, *accumulate(sizes)])]
        if not 1 <= int(self.context_shift.min()) <= int(self.context_shift.max()) <= _MAX_SHIFT:
            raise ExactnessError(f"context_shift: shifts must lie in 1..{_MAX_SHIFT}")
        self.backend = backend or fastest_backend()
        if (self.backend == "int8" and not integer.int8_is_exact()) or (
            self.backend == "float32" and not integer.float32_is_exact()
        ):
            raise ExactnessError(f"this PyTorch's {self.backend} matrix product is not exact on this machine")
        self.arithmetic = _ARITHMETIC[self.backend]

    def group(self, number: int) -> tuple[dict[str, IntegerLayer], Tensor]:
        """A group's layers, by kind (g_cm, g_ep.first ...; g_ch, too, of a later one), and the context shifts
        of its channels and of those before it, for a GPU's kernels."""
        layers = {kind: self.layers[name] for kind, name in self._names[number].items()}
        return layers, self.context_shift[: self.groups[number].stop]

    def _run(self, name: str, x: Tensor, row: int | None = None) -> Tensor:
        return self.arithmetic.linear(x, self.layers[name], row)

    def hyper_synthesis(self, z: Tensor, height: int, width: int) -> tuple[Tensor, Tensor]:
        """h_s: hyper latents int16 [B, ceil(height/4), ceil(width/4), Z] to psi at anchors and at non-anchors."""
        x = z.clamp(-ACTIVATION_MAX, ACTIVATION_MAX).to(self.arithmetic.dtype)
        x = self._run("h_s.head", integer.rows_3x3(x))
        x = integer.pixel_shuffle_2(self._run("h_s.up1", x))
        x = self._run("h_s.middle", integer.rows_3x3(x))
        x = integer.pixel_shuffle_2(self._run("h_s.up2", x))
        psi = self._run("h_s.tail", integer.rows_3x3(x))
        return checkerboard.split(psi[:, :height, :width].contiguous())

    def anchor_parameters(self, psi: Tensor, quality: int, group: int = 0, before: Tensor | None = None) -> Parameters:
        """g_ep(psi, g_ch(before)): a group's first pass (He et al. 2022; He et al. 2021, equation 8, in the first one).

        psi: [B, anchors, features]; before: the earlier groups' decoded latents there, int32 [B, anchors, channels] in
        1/16, or None of the first group, whose phi is zero.
        """
        names = self._names[group]
        if before is None:
            context = psi.new_zeros(*psi.shape[:2], self.layers[names["g_cm"]].weight.shape[0])
        else:
            context = self._run(names["g_ch"], self._context_input(before, slice(0, before.shape[2])))
        return self._parameters(names, psi, context, quality)

    def non_anchor_parameters(
        self,
        psi: Tensor,
        anchors: Tensor,
        shape: tuple[int, int],
        quality: int,
        group: int = 0,
        before: Tensor | None = None,
    ) -> Parameters:
        """g_ep(psi, g_cm(anchors, before)): a group's second pass.

        anchors: its decoded latents int32 [B, anchors, m] in 1/16; shape: the rows and columns of the grid; before: the
        earlier groups' at the non-anchors, or None of the first group.
        """
        names, channels = self._names[group], self.groups[group]
        rows = checkerboard.gather_context(self._context_input(anchors, channels), *shape)
        if before is not None:
            rows = torch.cat([rows, self._context_input(before, slice(0, channels.start))], 2)
        return self._parameters(names, psi, self._run(names["g_cm"], rows), quality)

    def _context_input(self, latents: Tensor, channels: slice) -> Tensor:
        if self.backend != "int8":
            latents = latents.to(self.arithmetic.dtype)
        return self.arithmetic.shift_right(latents, self.context_shift[channels], -ACTIVATION_MAX, ACTIVATION_MAX)

    def _parameters(self, names: dict[str, str], psi: Tensor, context: Tensor, quality: int) -> Parameters:
        hidden = self._run(names["g_ep.first"], torch.cat([psi, context], 2), quality - MIN_QUALITY)
        hidden = self._run(names["g_ep.second"], hidden)
        means, indexes = self._run(names["g_ep.means"], hidden), self._run(names["g_ep.indexes"], hidden)
        return Parameters(means.to(torch.int32), indexes.to(torch.uint8))


def reconstruct(symbols: Tensor, means: Tensor) -> Tensor:
    """y^ = symbol + mean, in 1/16: int16 symbols and int32 means to int32, any shape."""
    return (symbols.to(torch.int32) << MEAN_BITS) + means
