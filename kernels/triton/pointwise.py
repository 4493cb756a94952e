"""A 1x1 layer and its SiLU: the way into a residual block, alone or at the end of the kernel that makes its input.

    out = SiLU(x W^T + b)            SiLU(v) = v / (1 + exp(-v))

The transforms' kernels (this file, residual.py, upsample.py, pixels.py) hold fp16 in memory and in the factors of
products, and float32 in sums, biases and activation functions. Products go out a piece of the outputs at a time, so
that no program holds a whole layer in registers. All of them take float32 for fp16 too, to be compared with.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
import triton
import triton.language as tl
from torch import Tensor

from .common import INTERPRETED, Build, check, check_channels, on_gpu, operator

#: Outputs of a layer that a program has in registers at a time.
PIECE = 32
_POSITIONS = 32
_WARPS = 4


class Layer(NamedTuple):
    """A layer: its weight, of the type of the activations and with inputs fastest, and its float32 bias."""

    weight: Tensor
    bias: Tensor


class Expansion(NamedTuple):
    """The first layer of the block that follows, [C, C] and [C], and where SiLU(x W^T + b) goes, of the shape of x."""

    weight: Tensor
    bias: Tensor
    out: Tensor


class QualityScale(NamedTuple):
    """A factor for each channel: float32 [rows, C], and the images' rows of it, int32 [B]."""

    table: Tensor
    quality: Tensor

    def of_images(self) -> Tensor:
        """float32 [B, 1, 1, C]."""
        return self.table[self.quality.long(), None, None]

    def check(self, images: int, channels: int) -> None:
        """ValueError unless it is for so many images and channels."""
        check("scale", self.table, torch.float32, None, channels)
        check("quality", self.quality, torch.int32, images)


def expand_into(expansion: Expansion, x: Tensor) -> None:
    """The definition of what kernels do with an `Expansion`; x: [..., C]."""
    expansion.out.copy_(F.silu(F.linear(x.float(), expansion.weight.float(), expansion.bias)))


def check_expansion(expansion: Expansion, dtype: torch.dtype, *shape: int) -> None:
    """ValueError unless it is of activations of this type and shape."""
    check("expand_weight", expansion.weight, dtype, shape[-1], shape[-1])
    check("expand_bias", expansion.bias, torch.float32, shape[-1])
    check("expanded", expansion.out, dtype, *shape)


def runs_kernel(activations: Tensor) -> bool:
    """Whether an operation on these activations runs its kernel. On a GPU only fp16 does: tiles of float32 are too
    large for it, and what fp16 is compared with had better not be the same kernel."""
    return on_gpu(activations) and (INTERPRETED or activations.dtype != torch.float32)


def expand_reference(x: Tensor, weight: Tensor, bias: Tensor, out: Tensor) -> None:
    """SiLU(x W^T + b) at each position.

    x: [..., K], fp16 or float32; weight: [C, K] and out: [..., C], of the same type; bias: float32 [C]. All contiguous;
    K and C are powers of two from 32.
    """
    out.copy_(F.silu(F.linear(x.float(), weight.float(), bias)))


@triton.jit
def silu(x):
    return x / (1 + tl.exp(-x))


@triton.jit
def store_expanded(x, weight, bias, out, position, inside, K: tl.constexpr, C: tl.constexpr, PIECE: tl.constexpr):
    """SiLU(x W^T + b) of x [positions, K] into the rows `position` of out [rows, C], where `inside`."""
    inputs = tl.arange(0, K)
    for first in range(0, C, PIECE):
        outputs = first + tl.arange(0, PIECE)
        w = tl.load(weight + outputs[None, :] * K + inputs[:, None])
        y = tl.dot(x, w) + tl.load(bias + outputs)[None, :]
        there = out + position[:, None] * C + outputs[None, :]
        tl.store(there, silu(y).to(out.dtype.element_ty), mask=inside[:, None])


@triton.jit(do_not_specialize=["positions"])
def _expand_kernel(
    x, weight, bias, out, positions, K: tl.constexpr, C: tl.constexpr, POSITIONS: tl.constexpr, PIECE: tl.constexpr
):
    first = tl.program_id(0).to(tl.int64) * POSITIONS
    place = tl.arange(0, POSITIONS)
    inside = first + place < positions
    rows = x + first * K + place[:, None] * K + tl.arange(0, K)[None, :]
    rows = tl.load(rows, mask=inside[:, None], other=0)
    store_expanded(rows, weight, bias, out + first * C, place, inside, K, C, PIECE)


def _expand(x: Tensor, weight: Tensor, bias: Tensor, out: Tensor) -> None:
    outputs, inputs = weight.shape
    check_channels(inputs=inputs, outputs=outputs)
    check("x", x, weight.dtype, *x.shape[:-1], inputs)
    check("bias", bias, torch.float32, outputs)
    check("out", out, weight.dtype, *x.shape[:-1], outputs)
    if not runs_kernel(x):
        return expand_reference(x, weight, bias, out)
    positions = out.numel() // outputs
    _expand_kernel[(triton.cdiv(positions, _POSITIONS),)](
        x, weight, bias, out, positions, K=inputs, C=outputs, POSITIONS=_POSITIONS, PIECE=PIECE, num_warps=_WARPS
    )


operator(
    "expand(Tensor x, Tensor weight, Tensor bias, Tensor(a!) out) -> ()",
    _expand,
)


expand = torch.ops.fastcodec.expand.default


def builds() -> list[Build]:
    """256 latents of the released model, in fp16."""
    signature = {"x": "*fp16", "weight": "*fp16", "bias": "*fp32", "out": "*fp16", "positions": "i32"}
    constants = {"K": 256, "C": 256, "POSITIONS": _POSITIONS, "PIECE": PIECE}
    return [Build("expand", _expand_kernel, signature, constants, _WARPS)]
