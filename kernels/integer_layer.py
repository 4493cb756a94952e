"""Integer layers: matrix products of int8 by int8 with a shift-and-clamp epilogue, exact on every device.

    out = clamp((x . w + bias + (1 << (s - 1))) >> s, low, high)        per output channel, all integers, s >= 1

Three implementations of one signature. `linear_reference` is the definition, in int64. `linear_int8` is for CPUs that
multiply int8 vectors into int32 sums (VNNI): PyTorch's int8 matrix product, and the rest in int32. `linear` is for all
others: the same integers held in float32, a float32 matrix product (exact in any order of summation where every partial
sum is below 2^24, which whoever builds a layer proves first), and the arithmetic shift as a multiplication by 2^-s and
a floor, both exact. The GPU's are in `triton/`. docs/integer.md has the argument in full.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache, cached_property

import torch
import torch.nn.functional as F
from torch import Tensor


@dataclass(frozen=True)
class IntegerLayer:
    """One layer's integers: a matrix. A 3x3 convolution is the product of one with `rows_3x3`, 9 taps a position.

    weight: int8 [outputs, taps * inputs], taps row-major, inputs fastest; bias: int32 [outputs], or [rows, outputs] of
    which the caller picks one (the first parameter layer has one row for each quality); shift: int32 [outputs].
    """

    weight: Tensor
    bias: Tensor
    shift: Tensor
    low: int
    high: int

    @cached_property
    def _float_weight(self) -> Tensor:
        return self.weight.float().T.contiguous()

    @cached_property
    def _float_bias(self) -> Tensor:
        return (self.bias + (1 << (self.shift - 1))).float()

    @cached_property
    def _float_scale(self) -> Tensor:
        return torch.exp2(-self.shift.float())

    @cached_property
    def _int8_weight(self) -> Tensor:
        return self.weight.T.contiguous()

    @cached_property
    def _int32_bias(self) -> Tensor:
        return self.bias + (1 << (self.shift - 1))


def linear_reference(x: Tensor, layer: IntegerLayer, row: int | None = None) -> Tensor:
    """x: int64 [..., inputs] holding int8 values; returns int64 [..., outputs]. The definition."""
    bias = layer.bias if row is None else layer.bias[row]
    shift = layer.shift.long()
    accumulator = x @ layer.weight.long().T + bias.long() + torch.bitwise_left_shift(torch.ones_like(shift), shift - 1)
    return torch.bitwise_right_shift(accumulator, shift).clamp(layer.low, layer.high)


def linear(x: Tensor, layer: IntegerLayer, row: int | None = None) -> Tensor:
    """x: float32 [..., inputs] holding int8 values; returns float32 [..., outputs] holding the same integers as
    `linear_reference`. Must run inside `exact_float32`."""
    bias = layer._float_bias if row is None else layer._float_bias[row]
    flat = x.reshape(-1, x.shape[-1])
    out = torch.addmm(bias, flat, layer._float_weight)
    out.mul_(layer._float_scale).floor_().clamp_(layer.low, layer.high)
    return out.view(*x.shape[:-1], out.shape[-1])  # not -1: a tile of one latent has no non-anchors


def linear_int8(x: Tensor, layer: IntegerLayer, row: int | None = None) -> Tensor:
    """x: int8 [..., inputs]; returns the integers of `linear_reference`: int8 [..., outputs], or int32 where its range
    is wider. Only where `int8_is_exact`."""
    bias = layer._int32_bias if row is None else layer._int32_bias[row]
    out = torch._int_mm(x.reshape(-1, x.shape[-1]), layer._int8_weight)
    out.add_(bias).bitwise_right_shift_(layer.shift).clamp_(layer.low, layer.high)
    if -128 <= layer.low <= layer.high <= 127:
        out = out.to(torch.int8)
    return out.view(*x.shape[:-1], out.shape[-1])


def rows_3x3(x: Tensor) -> Tensor:
    """The im2col of a 3x3 convolution with zero padding: [B, H, W, C] to [B, H, W, 9 * C], any dtype."""
    height, width = x.shape[1:3]
    padded = F.pad(x, (0, 0, 1, 1, 1, 1))
    return torch.cat([padded[:, r : r + height, c : c + width] for r in range(3) for c in range(3)], dim=3)


def pixel_shuffle_2(x: Tensor) -> Tensor:
    """[B, H, W, 4 * C], channel c at offset (row, column) being c * 4 + 2 * row + column, to [B, 2H, 2W, C]."""
    batch, height, width, channels = x.shape
    x = x.view(batch, height, width, channels // 4, 2, 2).permute(0, 1, 4, 2, 5, 3)
    return x.reshape(batch, 2 * height, 2 * width, channels // 4)


def shift_right_reference(x: Tensor, shift: Tensor, low: int, high: int) -> Tensor:
    """clamp((x + (1 << (s - 1))) >> s, low, high) in int64; x: [..., C], shift: int32 [C]."""
    shift = shift.long()
    half = torch.bitwise_left_shift(torch.ones_like(shift), shift - 1)
    return torch.bitwise_right_shift(x + half, shift).clamp(low, high)


def shift_right(x: Tensor, shift: Tensor, low: int, high: int) -> Tensor:
    """`shift_right_reference` on float32 tensors that hold integers below 2^23."""
    scale = torch.exp2(-shift.float())
    return (x * scale + 0.5).floor_().clamp_(low, high)


def shift_right_int8(x: Tensor, shift: Tensor, low: int, high: int) -> Tensor:
    """`shift_right_reference` of int32 tensors, to int8: low and high lie within its range."""
    half = torch.bitwise_left_shift(torch.ones_like(shift), shift - 1)
    return (x + half).bitwise_right_shift_(shift).clamp_(low, high).to(torch.int8)


@contextmanager
def exact_float32() -> Iterator[None]:
    """Keep results in float32, whatever the caller allows elsewhere.

    Autocast would round them. A lower float32 matmul precision ("medium", TF32) is harmless: it rounds the factors to
    bfloat16 or TF32, which hold integers up to 255 exactly, and sums in float32 all the same.
    """
    with torch.inference_mode(), torch.autocast("cpu", enabled=False):
        yield


@torch.inference_mode()
def float32_is_exact() -> bool:
    """Whether this PyTorch's float32 matrix product sums int8 products exactly, up to just below 2^24."""
    generator = torch.Generator("cpu").manual_seed(0)
    x = torch.randint(-127, 128, (64, 1040), generator=generator, dtype=torch.int64, device="cpu")
    w = torch.randint(-127, 128, (1040, 64), generator=generator, dtype=torch.int64, device="cpu")
    x[0], w[:, 0] = 127, 127  # 1040 * 127^2 = 16,774,160, and 2^24 = 16,777,216
    bias = torch.arange(64, dtype=torch.int64, device="cpu") * 47 + 1
    with exact_float32():
        return torch.equal(torch.addmm(bias.float(), x.float(), w.float()).long(), x @ w + bias)


@cache
def int8_is_exact() -> bool:
    """Whether this processor has int8 products with int32 sums, and this PyTorch's matrix product uses them exactly.

    Without them (VNNI) libraries add pairs of products in 16 bits, which saturates, or halve the weights first. Both
    would show here; such processors are not even asked, for `linear` is faster there.
    """
    supported = getattr(torch.cpu, "_is_vnni_supported", None)
    if not hasattr(torch, "_int_mm") or supported is None or not supported():
        return False
    generator = torch.Generator("cpu").manual_seed(0)
    for positions, inputs, outputs in ((1, 256, 256), (33, 576, 128), (300, 3072, 256)):
        x = torch.randint(-127, 128, (positions, inputs), generator=generator, dtype=torch.int8, device="cpu")
        w = torch.randint(-127, 128, (inputs, outputs), generator=generator, dtype=torch.int8, device="cpu")
        x[0], w[:, 0], w[:, 1] = 127, 127, -127
        if not torch.equal(torch._int_mm(x, w).double(), x.double() @ w.double()):
            return False
    return True
