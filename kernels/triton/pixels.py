"""Between pixels and the transforms' features, which have 192 channels for 8 x 8 pixels of three colours.

    to_pixels      pixel[8i + r, 8j + c, k] = clamp(round(255 (x[i, j, 64k + 8r + c] + b[64k + 8r + c])), 0, 255)
    from_pixels    x[i, j] = (sum over r, c, k of W[k, :, 8r + c] (pixel[8i + r, 8j + c, k] - 127.5) / 255 + b) * scale
                   e = SiLU(x W_e^T + b_e)

to_pixels is the pixel shuffle, the rounding (half to even) and the cut of a synthesis. from_pixels is the pixel
unshuffle, the 1x1 layer and the scaling of an analysis, and the first layer of the block that follows. It reads the
pixels as bytes: pixel - 127.5 is exact in fp16, so the layer loses nothing at its input, and the 192 features never lie
in memory.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
import triton
import triton.language as tl
from torch import Tensor

from .common import Build, check, check_channels, on_gpu, operator
from .pointwise import PIECE, Expansion, Layer, QualityScale, check_expansion, expand_into, runs_kernel, store_expanded

_SIDE = 8  # of the square of pixels that a position stands for
_COLOURS = 3
_FEATURES = _COLOURS * _SIDE * _SIDE
_BYTES = 256  # of each of its rows of pixels that a program of to_pixels writes
_POSITIONS = 64  # that a program of from_pixels computes
_TO_WARPS, _FROM_WARPS = 4, 8
#: Arguments of both kernels. They change from image to image, so Triton must not compile a kernel for each value.
_SIZES = ("height", "width", "rows", "columns", "image_stride", "row_stride")
#: Functions whose parameters are an operator's flat list, as PyTorch's schemas have no structures.
FLAT_SCHEMAS = ("_from_pixels",)


def _check_pixels(pixels: Tensor) -> None:
    """ValueError unless these can be pixels: images and rows may lie apart, a row's bytes may not."""
    if pixels.dtype != torch.uint8 or pixels.dim() != 4 or pixels.shape[3] not in (1, _COLOURS):
        raise ValueError(f"pixels must be uint8 [B, H, W, 3 or 1], not {pixels.dtype} {list(pixels.shape)}")
    if pixels.stride(3) != 1 or pixels.stride(2) != pixels.shape[3]:
        raise ValueError(f"the bytes of a row of pixels must follow each other; strides are {pixels.stride()}")


# ---- to pixels


def to_pixels_reference(x: Tensor, bias: Tensor, pixels: Tensor, top: int = 0, left: int = 0) -> None:
    """Features to pixels: a pixel shuffle by 8, a factor of 255, rounding, a clamp; NaN becomes 0.

    x: [B, h, w, 192], contiguous, of any floating type, colours slowest, then rows; bias: float32 [192], added first;
    pixels: uint8 [B, H, W, 3], gets the rectangle whose upper left corner is row `top` and column `left` of the
    8h x 8w pixels. It may be a part of a larger image: only its rows must each lie in one piece.
    """
    image = F.pixel_shuffle((x.float() + bias).permute(0, 3, 1, 2), _SIDE).permute(0, 2, 3, 1)
    image = image[:, top : top + pixels.shape[1], left : left + pixels.shape[2]]
    pixels.copy_((image * 255).nan_to_num(0).round().clamp(0, 255))


@triton.jit(do_not_specialize=["pixels", *_SIZES, "top", "left"])
def _to_pixels_kernel(
    x, bias, pixels, height, width,
    rows, columns, image_stride, row_stride,  # of pixels
    top, left,
    SIDE: tl.constexpr, COLOURS: tl.constexpr, BYTES: tl.constexpr,
):  # fmt: skip
    # A row of features with its SIDE rows of pixels: they share the sectors of memory that they are read from.
    image = tl.program_id(2).to(tl.int64)
    line = top // SIDE + tl.program_id(1)
    down = tl.arange(0, SIDE)[:, None]
    row = line * SIDE + down - top
    byte = tl.program_id(0) * BYTES + tl.arange(0, BYTES)[None, :]
    inside = (row >= 0) & (row < rows) & (byte < columns * COLOURS)
    column = byte // COLOURS + left
    feature = byte % COLOURS * (SIDE * SIDE) + column % SIDE
    start = (image * height + line) * width * (COLOURS * SIDE * SIDE)
    there = column // SIDE * (COLOURS * SIDE * SIDE) + feature + down * SIDE
    value = tl.load(x + start + there, mask=inside, other=0).to(tl.float32)
    value += tl.load(bias + feature + down * SIDE, mask=inside, other=0)
    value = tl.minimum(tl.maximum(value * 255, 0), 255)  # the maximum of a NaN and 0 is 0
    # A float32 of 2^23 or more is an integer: adding that rounds, half to even, and leaves the integer in the low bits.
    value = (value + 8388608.0).to(tl.int32, bitcast=True)
    there = row.to(tl.int64) * row_stride + byte
    tl.store(pixels + image * image_stride + there, value.to(tl.uint8), mask=inside)


def _to_pixels(x: Tensor, bias: Tensor, pixels: Tensor, top: int = 0, left: int = 0) -> None:
    _check_pixels(pixels)
    batch, rows, columns, colours = pixels.shape
    check("x", x, x.dtype, batch, None, None, _FEATURES)
    check("bias", bias, torch.float32, _FEATURES)
    height, width = x.shape[1:3]
    if colours != _COLOURS or min(top, left) < 0 or top + rows > _SIDE * height or left + columns > _SIDE * width:
        raise ValueError(
            f"pixels {list(pixels.shape)} from ({top}, {left}) on are no part of {_SIDE * height} x {_SIDE * width}"
        )
    if not on_gpu(x):
        return to_pixels_reference(x, bias, pixels, top, left)
    lines = triton.cdiv(top + rows, _SIDE) - top // _SIDE
    _to_pixels_kernel[(triton.cdiv(columns * colours, _BYTES), lines, batch)](
        x,
        bias,
        pixels,
        height,
        width,
        rows,
        columns,
        pixels.stride(0),
        pixels.stride(1),
        top,
        left,
        SIDE=_SIDE,
        COLOURS=colours,
        BYTES=_BYTES,
        num_warps=_TO_WARPS,
    )


operator("to_pixels(Tensor x, Tensor bias, Tensor(a!) pixels, int top=0, int left=0) -> ()", _to_pixels)


to_pixels = torch.ops.fastcodec.to_pixels.default


# ---- from pixels


def from_pixels(pixels: Tensor, layer: Layer, scale: QualityScale, out: Tensor, expansion: Expansion) -> None:
    """Pixels to features: a pixel unshuffle by 8, a 1x1 layer, a factor for each channel; and the expansion of that.

    pixels: uint8 [B, H, W, 3], or [B, H, W, 1] for gray ones, which count three times; past the right and the lower
    edge the last pixel goes on. They may be a part of larger images: only their rows must each lie in one piece.
    layer: [3, C, 64], fp16 or float32, for inputs in -0.5..0.5, and [C]. out and the expansion's get x and e, both
    [B, h, w, C] of the layer's type with h >= H / 8 and w >= W / 8. All but the pixels are contiguous; C is a power of
    two from 32.
    """
    torch.ops.fastcodec.from_pixels(pixels, *layer, *scale, out, *expansion)


def from_pixels_reference(pixels: Tensor, layer: Layer, scale: QualityScale, out: Tensor, expansion: Expansion) -> None:
    """The definition of `from_pixels`, in float32."""
    height, width = out.shape[1:3]
    colours, channels, taps = layer.weight.shape
    image = pixels.permute(0, 3, 1, 2).expand(-1, colours, -1, -1).float() - 127.5
    image = F.pad(image, (0, _SIDE * width - image.shape[3], 0, _SIDE * height - image.shape[2]), mode="replicate")
    x = F.pixel_unshuffle(image, _SIDE).permute(0, 2, 3, 1)
    x = F.linear(x, layer.weight.transpose(0, 1).reshape(channels, colours * taps).float()) / 255 + layer.bias
    out.copy_(x * scale.of_images())
    expand_into(expansion, out)


@triton.jit(do_not_specialize=["pixels", "quality", *_SIZES, "tiles"])
def _from_pixels_kernel(
    pixels, weight, bias, scale, quality, expand_weight, expand_bias, out, expanded,
    height, width, tiles,  # groups of positions in an image
    rows, columns, image_stride, row_stride,  # of pixels
    SIDE: tl.constexpr, COLOURS: tl.constexpr,  # of the features
    BYTES: tl.constexpr,  # of a pixel
    C: tl.constexpr, POSITIONS: tl.constexpr, PIECE: tl.constexpr,
):  # fmt: skip
    TAPS: tl.constexpr = SIDE * SIDE
    dtype: tl.constexpr = out.dtype.element_ty
    image = tl.program_id(0) // tiles
    position = tl.program_id(0) % tiles * POSITIONS + tl.arange(0, POSITIONS)
    inside = position < height * width
    channels = tl.arange(0, C)
    tap = tl.arange(0, TAPS)
    row = tl.minimum((position // width * SIDE)[:, None] + (tap // SIDE)[None, :], rows - 1)
    column = tl.minimum((position % width * SIDE)[:, None] + (tap % SIDE)[None, :], columns - 1)
    there = pixels + image.to(tl.int64) * image_stride + row.to(tl.int64) * row_stride + column * BYTES

    x = tl.zeros([POSITIONS, C], tl.float32)
    for colour in tl.static_range(COLOURS):
        value = tl.load(there + colour % BYTES, mask=inside[:, None], other=0).to(tl.float32) - 127.5
        w = tl.load(weight + (colour * C + channels)[None, :] * TAPS + tap[:, None])
        x = tl.dot(value.to(dtype), w, x)
    x = x * (1 / 255) + tl.load(bias + channels)[None, :]
    x *= tl.load(scale + tl.load(quality + image) * C + channels)[None, :]

    start = image.to(tl.int64) * height * width * C
    rounded = x.to(dtype)
    tl.store(out + start + position[:, None] * C + channels[None, :], rounded, mask=inside[:, None])
    store_expanded(rounded, expand_weight, expand_bias, expanded + start, position, inside, C, C, PIECE)


def _from_pixels(
    pixels: Tensor, weight: Tensor, bias: Tensor, scale: Tensor, quality: Tensor,
    out: Tensor, expand_weight: Tensor, expand_bias: Tensor, expanded: Tensor,
) -> None:  # fmt: skip
    _check_pixels(pixels)
    batch, rows, columns, colours = pixels.shape
    height, width, channels = out.shape[1:]
    factors, expansion = QualityScale(scale, quality), Expansion(expand_weight, expand_bias, expanded)
    check_channels(channels=channels)
    check("weight", weight, weight.dtype, _COLOURS, channels, _SIDE * _SIDE)
    check("bias", bias, torch.float32, channels)
    factors.check(batch, channels)
    check("out", out, weight.dtype, batch, height, width, channels)
    check_expansion(expansion, weight.dtype, *out.shape)
    if min(rows, columns) < 1 or _SIDE * height < rows or _SIDE * width < columns:
        raise ValueError(f"{height} x {width} features do not hold {rows} x {columns} pixels")
    if not runs_kernel(weight):
        return from_pixels_reference(pixels, Layer(weight, bias), factors, out, expansion)
    tiles = triton.cdiv(height * width, _POSITIONS)
    tensors = pixels, weight, bias, scale, quality, expand_weight, expand_bias, out, expanded
    _from_pixels_kernel[(batch * tiles,)](
        *tensors,
        height,
        width,
        tiles,
        rows,
        columns,
        *pixels.stride()[:2],
        SIDE=_SIDE,
        COLOURS=_COLOURS,
        BYTES=colours,
        C=channels,
        POSITIONS=_POSITIONS,
        PIECE=PIECE,
        num_warps=_FROM_WARPS,
    )


operator(
    "from_pixels(Tensor pixels, Tensor weight, Tensor bias, Tensor scale, Tensor quality, Tensor(a!) out, "
    "Tensor expand_weight, Tensor expand_bias, Tensor(b!) expanded) -> ()",
    _from_pixels,
)


def builds() -> list[Build]:
    """The released model's features, in fp16, of coloured and of gray images."""
    sizes = dict.fromkeys(_SIZES, "i32")
    shown = {"x": "*fp16", "bias": "*fp32", "pixels": "*u8", "top": "i32", "left": "i32"} | sizes
    read = dict.fromkeys(("weight", "expand_weight", "out", "expanded"), "*fp16") | {"tiles": "i32"} | sizes
    read |= dict.fromkeys(("bias", "scale", "expand_bias"), "*fp32") | {"pixels": "*u8", "quality": "*i32"}
    both = {"SIDE": _SIDE, "COLOURS": _COLOURS}
    to = both | {"BYTES": _BYTES}
    of = both | {"C": 128, "POSITIONS": _POSITIONS, "PIECE": PIECE}
    free = frozenset({"pixels", "quality"})
    return [
        Build("to_pixels", _to_pixels_kernel, shown, to, _TO_WARPS, unaligned=free),
        Build("from_pixels", _from_pixels_kernel, read, of | {"BYTES": 3}, _FROM_WARPS, unaligned=free),
        Build("from_pixels, gray", _from_pixels_kernel, read, of | {"BYTES": 1}, _FROM_WARPS, unaligned=free),
    ]
