"""Twice as many rows and columns by a 1x1 layer, scaled by the quality, and the way into the block that follows.

    x[2i + r, 2j + c] = clamp((y[i, j] W_rc^T + b_rc) * scale[quality])     r, c in 0, 1: a pixel shuffle
    e = SiLU(x W_e^T + b_e)

A pixel shuffle of a 1x1 layer is four layers, each with a place of its own in the 2 x 2 positions that one becomes. So
a program computes one of the four and writes whole rows of channels; nothing is shuffled in memory.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
import triton
import triton.language as tl
from torch import Tensor

from .common import Build, check, check_channels, operator
from .pointwise import PIECE, Expansion, Layer, QualityScale, check_expansion, expand_into, runs_kernel, store_expanded

_POSITIONS = 64
_WARPS = 8
#: Inputs of the layer that are multiplied at a time.
_INPUTS = 32
#: Functions whose parameters are an operator's flat list, as PyTorch's schemas have no structures.
FLAT_SCHEMAS = ("_upsample_2",)


def upsample_2(y: Tensor, layer: Layer, scale: QualityScale, limit: float, out: Tensor, expansion: Expansion) -> None:
    """A 1x1 layer, a pixel shuffle by 2, a factor for each channel, a clamp; and the expansion of what that gives.

    y: [B, H, W, K], fp16 or float32; layer: [4, C, K] and [4, C], those of the upper left, upper right, lower left and
    lower right position; limit: x is clamped to -limit..limit, before it is rounded to y's type, infinity for no clamp.
    out and the expansion's get x and e, both [B, 2H, 2W, C] of y's type. All are contiguous; K and C are powers of two
    from 32.
    """
    torch.ops.fastcodec.upsample_2(y, *layer, *scale, limit, out, *expansion)


def upsample_2_reference(
    y: Tensor, layer: Layer, scale: QualityScale, limit: float, out: Tensor, expansion: Expansion
) -> None:
    """The definition of `upsample_2`, in float32."""
    batch, height, width, _ = y.shape
    x = F.linear(y.float(), layer.weight.flatten(0, 1).float(), layer.bias.flatten())
    x = x.view(batch, height, width, 2, 2, -1).transpose(2, 3).reshape(out.shape)
    out.copy_((x * scale.of_images()).clamp(-limit, limit))
    expand_into(expansion, out)


@triton.jit(do_not_specialize=["limit", "quality", "height", "width", "tiles"])
def _upsample_2_kernel(
    y, weight, bias, scale, quality, limit, expand_weight, expand_bias, out, expanded,
    height, width, tiles,  # groups of positions in an image
    K: tl.constexpr, C: tl.constexpr, POSITIONS: tl.constexpr, INPUTS: tl.constexpr, PIECE: tl.constexpr,
):  # fmt: skip
    image = tl.program_id(0) // tiles
    quarter = tl.program_id(1)
    place = tl.program_id(0) % tiles * POSITIONS + tl.arange(0, POSITIONS)
    inside = place < height * width
    channels = tl.arange(0, C)
    start = image.to(tl.int64) * height * width

    x = tl.zeros([POSITIONS, C], tl.float32)
    for first in range(0, K, INPUTS):
        piece = first + tl.arange(0, INPUTS)
        rows = tl.load(y + start * K + place[:, None] * K + piece[None, :], mask=inside[:, None], other=0)
        w = tl.load(weight + (quarter * C + channels)[None, :] * K + piece[:, None])
        x = tl.dot(rows, w, x)
    x += tl.load(bias + quarter * C + channels)[None, :]
    x *= tl.load(scale + tl.load(quality + image) * C + channels)[None, :]
    x = tl.clamp(x, -limit, limit, tl.PropagateNan.ALL)

    row = place // width * 2 + quarter // 2
    column = place % width * 2 + quarter % 2
    position = row * (2 * width) + column
    start *= 4 * C
    rounded = x.to(out.dtype.element_ty)
    tl.store(out + start + position[:, None] * C + channels[None, :], rounded, mask=inside[:, None])
    store_expanded(rounded, expand_weight, expand_bias, expanded + start, position, inside, C, C, PIECE)


def _upsample_2(
    y: Tensor, weight: Tensor, bias: Tensor, scale: Tensor, quality: Tensor, limit: float,
    out: Tensor, expand_weight: Tensor, expand_bias: Tensor, expanded: Tensor,
) -> None:  # fmt: skip
    batch, height, width, inputs = y.shape
    channels = weight.shape[1]
    factors, expansion = QualityScale(scale, quality), Expansion(expand_weight, expand_bias, expanded)
    check_channels(inputs=inputs, channels=channels)
    check("y", y, y.dtype, *y.shape)
    check("weight", weight, y.dtype, 4, channels, inputs)
    check("bias", bias, torch.float32, 4, channels)
    factors.check(batch, channels)
    check("out", out, y.dtype, batch, 2 * height, 2 * width, channels)
    check_expansion(expansion, y.dtype, *out.shape)
    if not runs_kernel(y):
        return upsample_2_reference(y, Layer(weight, bias), factors, limit, out, expansion)
    tiles = triton.cdiv(height * width, _POSITIONS)
    tensors = y, weight, bias, scale, quality, limit, expand_weight, expand_bias, out, expanded
    _upsample_2_kernel[(batch * tiles, 4)](
        *tensors,
        height,
        width,
        tiles,
        K=inputs,
        C=channels,
        POSITIONS=_POSITIONS,
        INPUTS=_INPUTS,
        PIECE=PIECE,
        num_warps=_WARPS,
    )


operator(
    "upsample_2(Tensor y, Tensor weight, Tensor bias, Tensor scale, Tensor quality, float limit, Tensor(a!) out, "
    "Tensor expand_weight, Tensor expand_bias, Tensor(b!) expanded) -> ()",
    _upsample_2,
)


def builds() -> list[Build]:
    """256 latents to 128 channels, as the released model has them, in fp16."""
    signature = dict.fromkeys(("y", "weight", "expand_weight", "out", "expanded"), "*fp16")
    signature |= dict.fromkeys(("bias", "scale", "expand_bias"), "*fp32") | {"quality": "*i32", "limit": "fp32"}
    signature |= dict.fromkeys(("height", "width", "tiles"), "i32")
    constants = {"K": 256, "C": 128, "POSITIONS": _POSITIONS, "INPUTS": _INPUTS, "PIECE": PIECE}
    unaligned = frozenset({"quality"})
    return [Build("upsample_2", _upsample_2_kernel, signature, constants, _WARPS, unaligned=unaligned)]
