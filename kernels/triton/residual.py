"""The transforms' residual block in one kernel, from the depthwise convolution to the next block's way in.

    e  = SiLU(x W_e^T + b_e)                                        made by the kernel before, zero outside the image
    x1 = x + (depthwise3x3(e) + b_d) W_p^T + b_p
    x' = clamp(x1 + clamp(v * SiLU(g)) W_m^T + b_m)     (v, g) = x1 W_g^T + b_g, clamp to -limit..limit
    e' = SiLU(x' W_e'^T + b_e')                                     for the block that follows

It is the block of `swift` (a depthwise separable convolution and a gated linear unit, each with a skip). Only e must be
seen by a position's neighbours, so that is where the kernels are cut: each reads e and x and writes x' and e'. That is
4 transfers of an activation for a block; with one kernel for each of its eight operations it would be 20.

A program has a small rectangle of positions, so that the taps of one come from the cache as neighbours of another, and
goes through channels in pieces: the taps of some channels straight into the product that follows them, some outputs of
the gate straight into the next one. On chip stay x1 in float32, which the last product adds to, and its copy in fp16.

The product of v and SiLU(g) is quadratic in the features, so it is clamped in float32, before fp16 would make it
infinite. What else is fp16 here is linear in clamped features, and `fastcodec.models.swift.bounds` proves that it fits.
"""

from __future__ import annotations

from typing import Any, NamedTuple, TypeAlias

import torch
import torch.nn.functional as F
import triton
import triton.language as tl
from torch import Tensor

from .common import Build, check, check_channels, operator
from .pointwise import PIECE, Expansion, QualityScale, check_expansion, expand_into, runs_kernel, silu, store_expanded

_WARPS = 8
#: Functions whose parameters are an operator's flat list, as PyTorch's schemas have no structures.
FLAT_SCHEMAS = ("_residual_block",)


class BlockWeights(NamedTuple):
    """What `residual_block` multiplies by, contiguous, C channels. Products' weights are of the type of the activations
    (fp16 or float32) and have their inputs fastest; the rest is float32."""

    depthwise: Tensor  # float32 [9, C], taps row-major
    depthwise_bias: Tensor  # [C]
    project: Tensor  # [C, C]
    project_bias: Tensor  # [C]
    gate: Tensor  # [2 C, C], values first
    gate_bias: Tensor  # [2 C]
    merge: Tensor  # [C, C]
    merge_bias: Tensor  # [C]


def depthwise_3x3_reference(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """A 3x3 convolution of each channel alone, zero outside, in float32: x [B, H, W, C], weight [9, C], bias [C]."""
    height, width = x.shape[1:3]
    padded = F.pad(x.float(), (0, 0, 1, 1, 1, 1))
    out = bias.expand(x.shape)
    for tap in range(9):
        row, column = divmod(tap, 3)
        out = out + padded[:, row : row + height, column : column + width] * weight[tap]
    return out


Ending: TypeAlias = "Expansion | QualityScale | None"


def residual_block(
    expanded: Tensor, trunk: Tensor, weights: BlockWeights, limit: float, out: Tensor, ending: Ending = None
) -> None:
    """The rest of a residual block, behind its first layer, and the first layer of the next one.

    expanded: [B, H, W, C], what the block's first layer gave, behind its SiLU; trunk: the block's input, of the same
    shape; weights: of expanded's type; limit: of the gated product and of x', infinity for none. out gets x', in any
    floating type. ending: the first layer of the block that follows, or factors that x' is multiplied by, or neither.
    All are contiguous, and outputs apart from inputs; C is a power of two from 32.
    """
    expansion = ending if isinstance(ending, Expansion) else (None, None, None)
    scale = ending if isinstance(ending, QualityScale) else (None, None)
    torch.ops.fastcodec.residual_block(expanded, trunk, list(weights), limit, out, *expansion, *scale)


def residual_block_reference(
    expanded: Tensor, trunk: Tensor, weights: BlockWeights, limit: float, out: Tensor, ending: Ending = None
) -> None:
    """The definition of `residual_block`: sums in float32, factors of products in the activations' type."""
    w, dtype = weights, expanded.dtype
    convolved = depthwise_3x3_reference(expanded, w.depthwise, w.depthwise_bias).to(dtype)
    x = trunk.float() + F.linear(convolved.float(), w.project.float(), w.project_bias)
    value, gate = F.linear(x.to(dtype).float(), w.gate.float(), w.gate_bias).chunk(2, -1)
    gated = (value * F.silu(gate)).clamp(-limit, limit).to(dtype)
    x = (x + F.linear(gated.float(), w.merge.float(), w.merge_bias)).clamp(-limit, limit)
    if isinstance(ending, Expansion):
        expand_into(ending, x.to(dtype))
    out.copy_(x * ending.of_images() if isinstance(ending, QualityScale) else x)


@triton.jit(do_not_specialize=["limit", "quality", "height", "width", "across", "tiles"])
def _residual_kernel(
    expanded, trunk,
    depthwise_weight, depthwise_bias, project_weight, project_bias, gate_weight, gate_bias, merge_weight, merge_bias,
    limit, out, expand_weight, expand_bias, expanded_out, scale, quality,
    height, width,
    across, tiles,  # rectangles from the left edge to the right, and in an image
    C: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr, PIECE: tl.constexpr,
):  # fmt: skip
    dtype: tl.constexpr = expanded.dtype.element_ty
    image = tl.program_id(0) // tiles
    tile = tl.program_id(0) % tiles
    place = tl.arange(0, ROWS * COLUMNS)
    row = tile // across * ROWS + place // COLUMNS
    column = tile % across * COLUMNS + place % COLUMNS
    inside = (row < height) & (column < width)
    position = row * width + column
    start = image.to(tl.int64) * height * width * C
    channels = tl.arange(0, C)
    here = position[:, None] * C + channels[None, :]

    x = tl.load(trunk + start + here, mask=inside[:, None], other=0).to(tl.float32)
    x += tl.load(project_bias + channels)[None, :]
    for first in range(0, C, PIECE):
        piece = first + tl.arange(0, PIECE)
        convolved = tl.zeros([ROWS * COLUMNS, PIECE], tl.float32) + tl.load(depthwise_bias + piece)[None, :]
        for tap in tl.static_range(9):
            dy = tap // 3 - 1
            dx = tap % 3 - 1
            seen = (row + dy >= 0) & (row + dy < height) & (column + dx >= 0) & (column + dx < width)
            there = expanded + start + (position + dy * width + dx)[:, None] * C + piece[None, :]
            e = tl.load(there, mask=seen[:, None], other=0).to(tl.float32)
            convolved += e * tl.load(depthwise_weight + tap * C + piece)[None, :]
        w = tl.load(project_weight + channels[None, :] * C + piece[:, None])
        x = tl.dot(convolved.to(dtype), w, x)

    rounded = x.to(dtype)
    x += tl.load(merge_bias + channels)[None, :]
    for first in range(0, C, PIECE):
        piece = first + tl.arange(0, PIECE)
        w = tl.load(gate_weight + piece[None, :] * C + channels[:, None])
        value = tl.dot(rounded, w) + tl.load(gate_bias + piece)[None, :]
        w = tl.load(gate_weight + (C + piece)[None, :] * C + channels[:, None])
        gate = tl.dot(rounded, w) + tl.load(gate_bias + C + piece)[None, :]
        w = tl.load(merge_weight + channels[None, :] * C + piece[:, None])
        gated = tl.clamp(value * silu(gate), -limit, limit, tl.PropagateNan.ALL)
        x = tl.dot(gated.to(dtype), w, x)
    x = tl.clamp(x, -limit, limit, tl.PropagateNan.ALL)

    if expanded_out is not None:
        store_expanded(x.to(dtype), expand_weight, expand_bias, expanded_out + start, position, inside, C, C, PIECE)
    if scale is not None:
        x *= tl.load(scale + tl.load(quality + image) * C + channels)[None, :]
    tl.store(out + start + here, x.to(out.dtype.element_ty), mask=inside[:, None])


def _rectangle(channels: int) -> tuple[int, int]:
    """Rows and columns of a program's positions: what fits in registers with that many channels."""
    return max(1, min(8, 1024 // channels)), 8


def _check(expanded: Tensor, trunk: Tensor, weights: BlockWeights, out: Tensor, ending: Ending) -> None:
    batch, channels = expanded.shape[0], expanded.shape[-1]
    check_channels(channels=channels)
    for name, tensor in weights._asdict().items():
        wide = 2 if name.startswith("gate") else 1
        if name.endswith("bias"):
            check(name, tensor, torch.float32, wide * channels)
        elif name == "depthwise":
            check(name, tensor, torch.float32, 9, channels)
        else:
            check(name, tensor, expanded.dtype, wide * channels, channels)
    check("expanded", expanded, expanded.dtype, *expanded.shape)
    check("trunk", trunk, trunk.dtype, *expanded.shape)
    check("out", out, out.dtype, *expanded.shape)
    if isinstance(ending, Expansion):
        check_expansion(ending, expanded.dtype, *expanded.shape)
    elif ending is not None:
        ending.check(batch, channels)


def _residual_block(
    expanded: Tensor, trunk: Tensor, weights: list[Tensor], limit: float, out: Tensor,
    expand_weight: Tensor | None, expand_bias: Tensor | None, expanded_out: Tensor | None,
    scale: Tensor | None, quality: Tensor | None,
) -> None:  # fmt: skip
    ending: Ending = None
    if expand_weight is not None and expand_bias is not None and expanded_out is not None:
        ending = Expansion(expand_weight, expand_bias, expanded_out)
    elif scale is not None and quality is not None:
        ending = QualityScale(scale, quality)
    _check(expanded, trunk, BlockWeights(*weights), out, ending)
    if not runs_kernel(expanded):
        return residual_block_reference(expanded, trunk, BlockWeights(*weights), limit, out, ending)
    batch, height, width, channels = expanded.shape
    rows, columns = _rectangle(channels)
    across = triton.cdiv(width, columns)
    tiles = across * triton.cdiv(height, rows)
    tensors = expanded, trunk, *weights, limit, out, expand_weight, expand_bias, expanded_out, scale, quality
    _residual_kernel[(batch * tiles,)](
        *tensors,
        height,
        width,
        across,
        tiles,
        C=channels,
        ROWS=rows,
        COLUMNS=columns,
        PIECE=PIECE,
        num_warps=_WARPS,
        num_stages=2,
    )


operator(
    "residual_block(Tensor expanded, Tensor trunk, Tensor[] weights, float limit, Tensor(a!) out, "
    "Tensor? expand_weight, Tensor? expand_bias, Tensor(b!)? expanded_out, Tensor? scale, Tensor? quality) -> ()",
    _residual_block,
)


def builds() -> list[Build]:
    """The released model's blocks in fp16: at 1/8 with a block behind them and without, at 1/16 in the synthesis and,
    with the gain and latents in float32, in the analysis."""
    types = {"depthwise_weight": "*fp32", "limit": "fp32", "scale": "*fp32", "quality": "*i32"}
    types |= dict.fromkeys(("height", "width", "across", "tiles"), "i32")
    following = {"expand_weight", "expand_bias", "expanded_out"}
    scaling = {"scale", "quality"}
    found = []
    for name, channels, absent, out in (
        ("residual_block 128, expanding", 128, scaling, "*fp16"),
        ("residual_block 128", 128, scaling | following, "*fp16"),
        ("residual_block 256", 256, scaling | following, "*fp16"),
        ("residual_block 256, scaling", 256, following, "*fp32"),
    ):
        rows, columns = _rectangle(channels)
        constants: dict[str, Any] = {"C": channels, "ROWS": rows, "COLUMNS": columns, "PIECE": PIECE}
        signature = {
            argument: (types | {"out": out}).get(argument, "*fp32" if "bias" in argument else "*fp16")
            for argument in _residual_kernel.arg_names
            if argument not in {*constants, *absent}
        }
        constants |= dict.fromkeys(sorted(absent))
        found.append(
            Build(name, _residual_kernel, signature, constants, _WARPS, frozenset({"quality"}), {"num_stages": 2})
        )
    return found
