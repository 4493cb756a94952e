"""Hyper-synthesis on a GPU: hyper latents to psi, what the parameter network knows of each latent, in integers.

    z -- head 3x3 -- up1 1x1, shuffle -- middle 3x3 -- up2 1x1, shuffle -- tail 3x3 -- psi     (h_s, Ballé et al. 2018)

A convolution is a matrix product over gathered rows (implicit GEMM): for each tap the rows of the neighbours, zero
outside the grid, times that tap's weights; nothing is rearranged in memory. Each 1x1 layer follows a 3x3 layer of few
enough outputs to stay on chip, so it runs behind it in the same program, and its pixel shuffle is an address: three
launches. What passes between them, 4 and 16 rows for each hyper latent, is smaller than psi and stays in the L2 cache.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from .. import checkerboard
from ..integer_layer import IntegerLayer, linear_reference, pixel_shuffle_2, rows_3x3
from . import tiles as layout
from .common import Build, check, check_channels, on_gpu, operator
from .packed_layer import (
    COLUMNS,
    FEW_POSITIONS,
    HEIGHT,
    HYPER,
    PSI,
    WIDTH,
    PackedLayer,
    check_layer,
    check_tiles,
    flatten,
    pack,
    requantise,
    transposed_weights,
    unflatten,
)
from .tiles import TileTable

TAPS = 9
STRIDE = 4  # latents a hyper latent, each way


@dataclass(frozen=True)
class HyperNetwork:
    """The five layers of h_s on a device, for Z hyper latents, N inner channels and F features: powers of two from 32.

    head: [N, 9 * Z]; middle: [N, 9 * N]; tail: [F, 9 * N]; taps are row-major, inputs fastest. up1, up2: [4 * N, N],
    whose output 4 c + 2 r + s is channel c at (r, s) of a position's 2x2 square. Raises ValueError if they do not fit.
    """

    head: PackedLayer
    up1: PackedLayer
    middle: PackedLayer
    up2: PackedLayer
    tail: PackedLayer

    def __post_init__(self) -> None:
        inner = self.head.outputs
        check_channels(hyper_latents=self.hyper_latents, inner_channels=inner, features=self.tail.outputs)
        check_layer("head", self.head, inner, TAPS * self.hyper_latents, -128, 127)
        check_layer("up1", self.up1, 4 * inner, inner, -128, 127)
        check_layer("middle", self.middle, inner, TAPS * inner, -128, 127)
        check_layer("up2", self.up2, 4 * inner, inner, -128, 127)
        check_layer("tail", self.tail, self.tail.outputs, TAPS * inner, -128, 127)

    @property
    def hyper_latents(self) -> int:
        return self.head.inputs // TAPS

    @property
    def layers(self) -> tuple[PackedLayer, ...]:
        return self.head, self.up1, self.middle, self.up2, self.tail

    @classmethod
    def pack(cls, layers: Sequence[IntegerLayer], device: torch.device | str) -> HyperNetwork:
        """layers: head, up1, middle, up2, tail."""
        return cls(*(pack(layer, device) for layer in layers))


def hyper_synthesis(z: Tensor, tiles: TileTable, network: HyperNetwork, psi: Tensor) -> None:
    """psi of every latent of a batch of tiles.

    z: symbols, int16 [sum of ceil(h/4) * ceil(w/4), Z], clamped to +-127 here. Writes psi, int8 [sum h*w, F], a tile's
    anchors before its non-anchors. The table's sizes must be those of the tensors: it is not read back. Raises
    ValueError for tensors of another form.
    """
    check("z", z, torch.int16, None, network.hyper_latents)
    check("psi", psi, torch.int8, None, network.tail.outputs)
    check_tiles(tiles)
    if not z.shape[0] <= psi.shape[0] <= STRIDE**2 * z.shape[0]:
        raise ValueError(f"{z.shape[0]} hyper latents do not belong to {psi.shape[0]} latents")
    torch.ops.fastcodec.hyper_synthesis(z, tiles.rows, tiles.longest, *flatten(network.layers), psi)


def hyper_synthesis_reference(z: Tensor, tiles: TileTable, network: HyperNetwork, psi: Tensor) -> None:
    """The definition of `hyper_synthesis`, in int64."""
    head, up1, middle, up2, tail = (layer.unpacked() for layer in network.layers)
    for row in tiles.rows.tolist():
        height, width, begin, out = (row[k] for k in (layout.HEIGHT, layout.WIDTH, layout.HYPER, layout.PSI))
        rows, columns = -(-height // STRIDE), -(-width // STRIDE)
        x = z[begin : begin + rows * columns].long().clamp(-127, 127).view(1, rows, columns, -1)
        x = linear_reference(rows_3x3(x), head, 0)
        x = pixel_shuffle_2(linear_reference(x, up1, 0))
        x = linear_reference(rows_3x3(x), middle, 0)
        x = pixel_shuffle_2(linear_reference(x, up2, 0))
        x = linear_reference(rows_3x3(x), tail, 0)
        halves = checkerboard.split(x[:, :height, :width].contiguous())
        psi[out : out + height * width] = torch.cat(halves, 1)[0].to(torch.int8)


# ---- the kernels


@triton.jit
def _convolve(
    x,
    row,
    column,
    height,
    width,
    valid,
    weight,
    outputs,
    IN: tl.constexpr,
    TAPS: tl.constexpr,
    CHUNK: tl.constexpr,
    CHUNKS_AHEAD: tl.constexpr,
):
    """The sums of a 3x3 convolution at these positions of a height x width grid: int32 [positions, outputs].

    x: the grid's IN channels, int8, or int16 to be clamped to int8; CHUNK of them, of one tap, are taken at a time.
    """
    total = tl.zeros((row.shape[0], outputs.shape[0]), tl.int32)
    for step in tl.range(0, TAPS * (IN // CHUNK), num_stages=CHUNKS_AHEAD):
        tap = step // (IN // CHUNK)
        channels = step % (IN // CHUNK) * CHUNK + tl.arange(0, CHUNK)
        r = row + tap // 3 - 1
        c = column + tap % 3 - 1
        inside = valid & (r >= 0) & (r < height) & (c >= 0) & (c < width)
        value = tl.load(x + ((r * width + c) * IN)[:, None] + channels[None, :], mask=inside[:, None], other=0)
        if value.dtype != tl.int8:
            value = tl.minimum(tl.maximum(value, -127), 127).to(tl.int8)
        part = transposed_weights(weight, outputs, tap * IN + channels, TAPS * IN)
        total = tl.dot(value, part, total, out_dtype=tl.int32)
    return total


@triton.jit
def _convolve_and_double(
    x,
    tiles,
    weight,
    bias,
    shift,
    up_weight,
    up_bias,
    up_shift,
    out,
    LIMITS: tl.constexpr,
    SCALE: tl.constexpr,
    IN: tl.constexpr,
    N: tl.constexpr,
    TAPS: tl.constexpr,
    BLOCK: tl.constexpr,
    CHUNK: tl.constexpr,
    CHUNKS_AHEAD: tl.constexpr,
):
    """Program (i, t): a 3x3 layer and a 1x1 layer with its pixel shuffle, at the i-th block of tile t's positions.

    The tile's grid here is SCALE times as fine as its hyper latents, and the output's is twice as fine again.
    """
    tile = tiles + tl.program_id(1) * COLUMNS
    height = (tl.load(tile + HEIGHT) + 3) // 4 * SCALE
    width = (tl.load(tile + WIDTH) + 3) // 4 * SCALE
    begin = tl.program_id(0) * BLOCK
    if begin >= height * width:
        return
    p = begin + tl.arange(0, BLOCK)
    valid = p < height * width
    row = p // width
    column = p - row * width
    first = tl.load(tile + HYPER).to(tl.int64) * (SCALE * SCALE)
    channels = tl.arange(0, N)
    hidden = _convolve(
        x + first * IN, row, column, height, width, valid, weight, channels, IN, TAPS, CHUNK, CHUNKS_AHEAD
    )
    hidden = requantise(hidden, bias, shift, channels, LIMITS[0], LIMITS[1]).to(tl.int8)
    # A pass for each place in the 2x2 square that a position becomes: then what is stored is contiguous.
    for place in range(4):
        outputs = 4 * channels + place
        total = tl.dot(hidden, transposed_weights(up_weight, outputs, channels, N), out_dtype=tl.int32)
        total = requantise(total, up_bias, up_shift, outputs, LIMITS[2], LIMITS[3]).to(tl.int8)
        finer = (2 * row + place // 2) * (2 * width) + 2 * column + place % 2
        tl.store(out + first * (4 * N) + finer[:, None] * N + channels[None, :], total, mask=valid[:, None])


@triton.jit
def _convolve_to_psi(
    x,
    tiles,
    weight,
    bias,
    shift,
    psi,
    LIMITS: tl.constexpr,
    IN: tl.constexpr,
    F: tl.constexpr,
    TAPS: tl.constexpr,
    BLOCK: tl.constexpr,
    CHUNK: tl.constexpr,
    CHUNKS_AHEAD: tl.constexpr,
):
    """Program (i, t): the last 3x3 layer at the i-th block of tile t's latents, anchors first, then non-anchors.

    Its input's grid has 4 x 4 positions for each hyper latent; those beyond the tile's latents serve as neighbours.
    """
    tile = tiles + tl.program_id(1) * COLUMNS
    height = tl.load(tile + HEIGHT)
    width = tl.load(tile + WIDTH)
    begin = tl.program_id(0) * BLOCK
    if begin >= height * width:
        return
    p = begin + tl.arange(0, BLOCK)
    valid = p < height * width
    anchors = (height * width + 1) // 2
    second = (p >= anchors).to(tl.int32)
    pair = 2 * (p - second * anchors)
    # The pair's first column has the anchor, but its second one in the odd rows of even width (tiles.py).
    swapped = (pair // width) & 1 & (width + 1)
    flat = pair + (second ^ swapped)
    row = flat // width
    column = flat - row * width
    first = tl.load(tile + HYPER).to(tl.int64) * 16
    rows = (height + 3) // 4 * 4
    columns = (width + 3) // 4 * 4
    features = tl.arange(0, F)
    total = _convolve(
        x + first * IN, row, column, rows, columns, valid, weight, features, IN, TAPS, CHUNK, CHUNKS_AHEAD
    )
    total = requantise(total, bias, shift, features, LIMITS[0], LIMITS[1]).to(tl.int8)
    out = psi + tl.load(tile + PSI).to(tl.int64) * F
    tl.store(out + p[:, None] * F + features[None, :], total, mask=valid[:, None])


# ---- launches

_CHUNKS_AHEAD = 3
_WARPS = 8


def _options(block: int) -> dict[str, int]:
    """Registers of a thread at most: given, because ptxas otherwise aims lower and spills a few."""
    return {"maxnreg": 128 if block == 16 else 255}


def _constants(positions: int, inputs: int, layers: Sequence[PackedLayer]) -> dict[str, Any]:
    few = positions <= FEW_POSITIONS
    return {
        "LIMITS": tuple(limit for layer in layers for limit in (layer.low, layer.high)),
        "IN": inputs,
        "TAPS": TAPS,
        "BLOCK": 16 if few else 64,
        "CHUNK": min(128 if few else 64, inputs),
        "CHUNKS_AHEAD": _CHUNKS_AHEAD,
    }


def _launch(kernel: Any, most: int, count: int, tensors: Sequence[Tensor], constants: dict[str, Any]) -> None:
    """most: positions of the largest tile."""
    grid = (triton.cdiv(most, constants["BLOCK"]), count)
    kernel[grid](*tensors, **constants, num_warps=_WARPS, num_stages=2, **_options(constants["BLOCK"]))


def _hyper_synthesis(
    z: Tensor, tiles: Tensor, longest: int, tensors: list[Tensor], limits: list[int], psi: Tensor
) -> None:
    layers = unflatten(tensors, limits)
    if not on_gpu(z):
        hyper_synthesis_reference(z, TileTable(tiles, longest), HyperNetwork(*layers), psi)
        return
    if psi.shape[0] == 0:
        return
    head, up1, middle, up2, tail = layers
    inner, count, total = head.outputs, tiles.shape[0], z.shape[0]
    # ceil(h/4) * ceil(w/4) <= (h + 3)(w + 3) / 16 <= (h*w + 3) / 4, since h + w <= h*w + 1.
    most = min((longest + 3) // 4, total)
    coarse = torch.empty(4 * total, inner, dtype=torch.int8, device=z.device)
    fine = torch.empty(16 * total, inner, dtype=torch.int8, device=z.device)
    constants = _constants(total, z.shape[1], (head, up1)) | {"SCALE": 1, "N": inner}
    _launch(_convolve_and_double, most, count, (z, tiles, *tensors[:6], coarse), constants)
    constants = _constants(4 * total, inner, (middle, up2)) | {"SCALE": 2, "N": inner}
    _launch(_convolve_and_double, 4 * most, count, (coarse, tiles, *tensors[6:12], fine), constants)
    constants = _constants(psi.shape[0], inner, (tail,)) | {"F": tail.outputs}
    _launch(_convolve_to_psi, longest, count, (fine, tiles, *tensors[12:], psi), constants)


operator(
    "hyper_synthesis(Tensor z, Tensor tiles, SymInt longest, Tensor[] network, int[] limits, Tensor(a!) psi) -> ()",
    _hyper_synthesis,
)


def builds() -> list[Build]:
    """Swift's launches, for few positions and for many: 64 hyper latents, 128 inner channels, 256 features."""
    nothing = torch.empty(0, dtype=torch.float32, device="cpu")
    relu, signed = PackedLayer(*3 * (nothing,), 0, 127), PackedLayer(*3 * (nothing,), -127, 127)
    stages = (
        ("head and up1", _convolve_and_double, "*i16", 64, (relu, relu), {"SCALE": 1, "N": 128}),
        ("middle and up2", _convolve_and_double, "*i8", 128, (relu, relu), {"SCALE": 2, "N": 128}),
        ("tail", _convolve_to_psi, "*i8", 128, (signed,), {"F": 256}),
    )
    types = {"weight": "*i8", "up_weight": "*i8", "out": "*i8", "psi": "*i8"}
    found = []
    for name, kernel, type_of_input, inputs, layers, more in stages:
        for size, positions in (("few", 1), ("many", FEW_POSITIONS + 1)):
            constants = _constants(positions, inputs, layers) | more
            arguments = [argument for argument in kernel.arg_names if argument not in constants]
            found.append(
                Build(
                    name=f"hyper_synthesis, {name}, {size}",
                    kernel=kernel,
                    signature={a: type_of_input if a == "x" else types.get(a, "*i32") for a in arguments},
                    constants=constants,
                    warps=_WARPS,
                    options={"num_stages": 2, **_options(constants["BLOCK"])},
                )
            )
    return found
