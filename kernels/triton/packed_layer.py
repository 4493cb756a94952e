"""Integer layers as kernels read them, and the parts that the kernels of the entropy side share.

    out = clamp((x . w + bias + (1 << (s - 1))) >> s, low, high)        (kernels/integer_layer.py, docs/integer.md)

Products are int8 by int8 with int32 accumulators: what tensor cores do, and exact because the exporter has proved that
every sum stays below 2^24.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..integer_layer import IntegerLayer
from . import tiles as layout
from .common import check

#: Grids are (blocks, tiles), and a grid's second side has 16 bits.
MOST_TILES = 2**16 - 1
#: A program for each multiprocessor of an H100: up to here programs take 16 positions, since then the time of a single
#: one is what counts. Beyond, each multiprocessor runs several, and what counts is how often they read the weights.
FEW_POSITIONS = 16 * 132


@dataclass(frozen=True)
class PackedLayer:
    """An `IntegerLayer` on a device.

    weight: int8 [outputs, inputs], inputs fastest. A tensor core takes its second operand as groups of four bytes that
    follow each other along the sum, so in this order they go from memory to registers as they are; and as kernels read
    at least 64 inputs of an output at a time, they use each sector of memory that they touch. Another order saves
    nothing. bias: int32 [rows, outputs] with the rounding half 1 << (shift - 1) added, an addition less for each
    output; the proof of exactness counts it already. rows is 1, or one for each quality. shift: int32 [outputs].
    """

    weight: Tensor
    bias: Tensor
    shift: Tensor
    low: int
    high: int

    @property
    def outputs(self) -> int:
        return self.weight.shape[0]

    @property
    def inputs(self) -> int:
        return self.weight.shape[1]

    @property
    def bias_stride(self) -> int:
        """From one quality's biases to the next one's, in elements: 0 if all qualities share them."""
        return self.outputs if self.bias.shape[0] > 1 else 0

    def unpacked(self) -> IntegerLayer:
        """The layer that was packed, its bias always [rows, outputs]."""
        return IntegerLayer(self.weight, self.bias - (1 << (self.shift - 1)), self.shift, self.low, self.high)


def pack(layer: IntegerLayer, device: torch.device | str) -> PackedLayer:
    """Put a layer on a device in the form that kernels read."""
    bias = (layer.bias + (1 << (layer.shift - 1))).reshape(-1, layer.shift.shape[0])
    weight, bias, shift = (tensor.to(device).contiguous() for tensor in (layer.weight, bias, layer.shift))
    return PackedLayer(weight, bias, shift, layer.low, layer.high)


def flatten(layers: Sequence[PackedLayer]) -> tuple[list[Tensor], list[int]]:
    """Layers as an operator takes them: weight, bias and shift of each; low and high of each."""
    return (
        [tensor for layer in layers for tensor in (layer.weight, layer.bias, layer.shift)],
        [limit for layer in layers for limit in (layer.low, layer.high)],
    )


def unflatten(tensors: Sequence[Tensor], limits: Sequence[int]) -> list[PackedLayer]:
    """The inverse of `flatten`."""
    return [
        PackedLayer(tensors[3 * i], tensors[3 * i + 1], tensors[3 * i + 2], limits[2 * i], limits[2 * i + 1])
        for i in range(len(limits) // 2)
    ]


def check_tiles(tiles: layout.TileTable) -> None:
    """ValueError unless this can be a table of tiles. What it says is not read: that would wait for the GPU."""
    check("tiles", tiles.rows, torch.int32, None, layout.COLUMNS)
    count, longest = tiles.rows.shape[0], tiles.longest
    if count > MOST_TILES or longest < 0:
        raise ValueError(f"{count} tiles of at most {longest} positions: {MOST_TILES} tiles are the most")


def check_layer(name: str, layer: PackedLayer, outputs: int, inputs: int, low: int, high: int) -> None:
    """ValueError unless the layer is of this size and gives values in low..high, as who reads them expects."""
    check(f"{name}.weight", layer.weight, torch.int8, outputs, inputs)
    check(f"{name}.bias", layer.bias, torch.int32, None, outputs)
    check(f"{name}.shift", layer.shift, torch.int32, outputs)
    if not low <= layer.low <= layer.high <= high:
        raise ValueError(f"{name} gives {layer.low}..{layer.high}, not within {low}..{high}")


# ---- in kernels

HEIGHT = tl.constexpr(layout.HEIGHT)
WIDTH = tl.constexpr(layout.WIDTH)
QUALITY = tl.constexpr(layout.QUALITY)
HYPER = tl.constexpr(layout.HYPER)
PSI = tl.constexpr(layout.PSI)
ANCHORS = tl.constexpr(layout.ANCHORS)
NON_ANCHORS = tl.constexpr(layout.NON_ANCHORS)
COLUMNS = tl.constexpr(layout.COLUMNS)


@triton.jit
def transposed_weights(weight, outputs, inputs, INPUTS: tl.constexpr):
    """A part of a layer's weights as the second operand of a product: int8 [inputs, outputs]."""
    return tl.load(weight + outputs[None, :] * INPUTS + inputs[:, None])


@triton.jit
def requantise(accumulator, bias, shift, outputs, LOW: tl.constexpr, HIGH: tl.constexpr):
    """A layer's epilogue: the sums of these outputs, int32 [positions, outputs], to what the layer gives, int32."""
    total = accumulator + tl.load(bias + outputs)[None, :]
    return tl.minimum(tl.maximum(total >> tl.load(shift + outputs)[None, :], LOW), HIGH)
