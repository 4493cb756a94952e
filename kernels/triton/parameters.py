"""The parameter network on a GPU: g_cm and g_ep, from psi and decoded anchors to means and scale indexes, fused.

    anchors        means, indexes = g_ep(psi, 0)                        (He et al. 2021, section 4.1)
    non-anchors    means, indexes = g_ep(psi, g_cm(anchors))            (equation 4, figure 6)

    g_cm: 12 taps x M -> C     first: F + C -> H     second: H -> H     means, indexes: H -> M     (docs/integer.md)

One launch serves a batch of tiles: a program takes BLOCK positions of one tile through all layers, and what it reads of
memory is psi, the anchors around its positions and the weights; what it writes lies as the coder reads it. All between
stays on chip. For that, layers take turns: one is summed whole in registers (g_cm, second), the next one is made PIECE
outputs at a time, each piece used at once (first: as a part of second's sums; means and indexes: stored) and forgotten.
A layer's 256 x 256 weights as one operand would not fit into registers.

The encoder runs the same kernel with the choice of symbols behind it (`encode_parameters`): what it sends are residuals
against the means that the decoder computes. Where y^ = round(y) does not depend on means, both halves are computed at
once (`one_pass_parameters`, equation 11).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

from .. import checkerboard
from ..integer import IntegerLayer, linear_reference, shift_right_reference
from . import tiles as layout
from .common import Build, on_gpu, operator
from .layers import (
    ANCHORS,
    COLUMNS,
    HEIGHT,
    NON_ANCHORS,
    PSI,
    QUALITY,
    WIDTH,
    PackedLayer,
    check,
    check_channels,
    check_layer,
    check_tiles,
    flatten,
    pack,
    requantise,
    transposed_weights,
    unflatten,
)

TAPS = len(checkerboard.LIVE_TAPS)
MEAN_BITS = 4
SYMBOL_MAX = 2**15 - 1
#: What an error word says.
NOT_FINITE, OUT_OF_RANGE = 1, 2


@dataclass(frozen=True)
class ParameterNetwork:
    """g_cm, the three layers of g_ep (the last one as two) and the shifts of the context's input, on a device.

    M latents, F features of psi, C of phi and H hidden channels are powers of two from 32. context: [C, 12 * M], taps
    in the order of `checkerboard.LIVE_TAPS`, latents fastest; first: [H, F + C], with one row of biases or one for each
    quality; second: [H, H]; means, indexes: [M, H]; context_shift: int32 [M]. Raises ValueError if they do not fit.
    """

    context: PackedLayer
    first: PackedLayer
    second: PackedLayer
    means: PackedLayer
    indexes: PackedLayer
    context_shift: Tensor

    def __post_init__(self) -> None:
        latents, features, phi, hidden = self.latents, self.features, self.context.outputs, self.first.outputs
        check_channels(latents=latents, features=features, context_features=phi, hidden=hidden)
        check_layer("context", self.context, phi, TAPS * latents, -128, 127)
        check_layer("first", self.first, hidden, features + phi, -128, 127)
        check_layer("second", self.second, hidden, hidden, -128, 127)
        check_layer("means", self.means, latents, hidden, -(2**15), 2**15 - 1)
        check_layer("indexes", self.indexes, latents, hidden, 0, 255)
        check("context_shift", self.context_shift, torch.int32, latents)

    @property
    def latents(self) -> int:
        return self.means.outputs

    @property
    def features(self) -> int:
        return self.first.inputs - self.context.outputs

    @property
    def layers(self) -> tuple[PackedLayer, ...]:
        return self.context, self.first, self.second, self.means, self.indexes

    @classmethod
    def pack(
        cls, layers: Sequence[IntegerLayer], context_shift: Tensor, device: torch.device | str
    ) -> ParameterNetwork:
        """layers: g_cm, g_ep.first, g_ep.second, g_ep.means, g_ep.indexes."""
        return cls(*(pack(layer, device) for layer in layers), context_shift.to(device).contiguous())

    @classmethod
    def _of(cls, tensors: Sequence[Tensor], limits: Sequence[int]) -> ParameterNetwork:
        return cls(*unflatten(tensors[:-1], limits), tensors[-1])

    def _flat(self) -> tuple[list[Tensor], list[int]]:
        tensors, limits = flatten(self.layers)
        return [*tensors, self.context_shift], limits


# ---- operations


def anchor_parameters(
    psi: Tensor, tiles: Tensor, longest: int, network: ParameterNetwork, means: Tensor, indexes: Tensor
) -> None:
    """g_ep(psi, 0) at the anchors: the first pass.

    psi: int8 [sum h*w, F]; tiles: int32 [T, 8] (tiles.py); longest: h*w of the largest tile. Writes means, int16
    [sum A, M] in 1/16, and indexes, uint8 [sum A, M]. The table's sizes must be those of the tensors: it is not read
    back. Raises ValueError for tensors of another form.
    """
    _check_half(psi, tiles, longest, network, anchors=means.shape[0])
    _check_outputs(network, means, indexes)
    torch.ops.fastcodec.anchor_parameters(psi, tiles, longest, *network._flat(), means, indexes)


def context_parameters(
    psi: Tensor,
    anchors: Tensor,
    tiles: Tensor,
    longest: int,
    network: ParameterNetwork,
    means: Tensor,
    indexes: Tensor,
) -> None:
    """g_ep(psi, g_cm(anchors)) at the non-anchors: the second pass.

    anchors: decoded latents, int32 [sum A, M] in 1/16, of magnitude below 2^23. Writes means, int16 [sum N, M], and
    indexes, uint8 [sum N, M]. All else is as in `anchor_parameters`.
    """
    _check_half(psi, tiles, longest, network, anchors=psi.shape[0] - means.shape[0])
    _check_outputs(network, means, indexes)
    check("anchors", anchors, torch.int32, psi.shape[0] - means.shape[0], network.latents)
    torch.ops.fastcodec.context_parameters(psi, anchors, tiles, longest, *network._flat(), means, indexes)


def one_pass_parameters(
    psi: Tensor,
    anchors: Tensor,
    tiles: Tensor,
    longest: int,
    network: ParameterNetwork,
    anchor_means: Tensor,
    anchor_indexes: Tensor,
    means: Tensor,
    indexes: Tensor,
) -> None:
    """`anchor_parameters` and `context_parameters` in one launch, for encoders that know y^ beforehand.

    That is so where y^ = round(y) (He et al. 2021, equation 11). anchors: 16 * round(y) at the anchors, int32
    [sum A, M]. Writes means and indexes of the anchors and of the non-anchors.
    """
    _check_half(psi, tiles, longest, network, anchors=anchor_means.shape[0])
    _check_outputs(network, anchor_means, anchor_indexes)
    _check_outputs(network, means, indexes)
    check("anchors", anchors, torch.int32, psi.shape[0] - means.shape[0], network.latents)
    torch.ops.fastcodec.one_pass_parameters(
        psi, anchors, tiles, longest, *network._flat(), anchor_means, anchor_indexes, means, indexes
    )


def encode_parameters(
    psi: Tensor,
    anchors: Tensor | None,
    tiles: Tensor,
    longest: int,
    network: ParameterNetwork,
    y: Tensor,
    weight: Tensor,
    lengths: Tensor,
    symbols: Tensor,
    indexes: Tensor,
    values: Tensor,
    error: Tensor,
) -> None:
    """`anchor_parameters` (anchors is None) or `context_parameters`, and the symbols that an encoder sends for y.

    A symbol is y - mean, rounded to the nearest integer (ties to even), or to the next one towards zero where that
    saves more bits than its squared error is worth; it is 0 where the index is 0. With P = sum A or sum N: y, float32
    [P, M]; weight: bits that a unit of squared error is worth, float32 [rows, M], one row for all tiles or one for each
    quality; lengths: bits by scale index and magnitude, float32 [64, K], the last column for all beyond. Writes
    symbols, int16, indexes, uint8, and values = 16 * symbol + mean, int32, all [P, M]: the values of the first pass are
    the anchors of the second. error: int32 [1], becomes NOT_FINITE or OUT_OF_RANGE where a y is not finite or a
    residual rounds to more than 16 bits, whose symbol then is 0; else it stays as it is.
    """
    positions = symbols.shape[0]
    _check_half(psi, tiles, longest, network, anchors=positions if anchors is None else psi.shape[0] - positions)
    if anchors is not None:
        check("anchors", anchors, torch.int32, psi.shape[0] - positions, network.latents)
    check("symbols", symbols, torch.int16, None, network.latents)
    check("indexes", indexes, torch.uint8, *symbols.shape)
    check("values", values, torch.int32, *symbols.shape)
    check("y", y, torch.float32, *symbols.shape)
    check("weight", weight, torch.float32, None, network.latents)
    check("lengths", lengths, torch.float32, network.indexes.high + 1, None)
    check("error", error, torch.int32, 1)
    torch.ops.fastcodec.encode_parameters(
        psi, anchors, tiles, longest, *network._flat(), y, weight, lengths, symbols, indexes, values, error
    )


def _check_half(psi: Tensor, tiles: Tensor, longest: int, network: ParameterNetwork, anchors: int) -> None:
    check("psi", psi, torch.int8, None, network.features)
    check_tiles(tiles, longest)
    if not 0 <= 2 * anchors - psi.shape[0] <= tiles.shape[0]:  # a tile of odd size has an anchor more than non-anchors
        raise ValueError(f"{psi.shape[0]} positions in {tiles.shape[0]} tiles do not have {anchors} anchors")


def _check_outputs(network: ParameterNetwork, means: Tensor, indexes: Tensor) -> None:
    check("means", means, torch.int16, None, network.latents)
    check("indexes", indexes, torch.uint8, means.shape[0], network.latents)


# ---- references


def anchor_parameters_reference(
    psi: Tensor, tiles: Tensor, longest: int, network: ParameterNetwork, means: Tensor, indexes: Tensor
) -> None:
    """The definition of `anchor_parameters`, in int64."""
    for tile in _tiles(tiles):
        _write(tile.anchors, _g_ep(network, psi[tile.psi_of_anchors], None, tile.quality), means, indexes)


def context_parameters_reference(
    psi: Tensor,
    anchors: Tensor,
    tiles: Tensor,
    longest: int,
    network: ParameterNetwork,
    means: Tensor,
    indexes: Tensor,
) -> None:
    """The definition of `context_parameters`, in int64."""
    for tile in _tiles(tiles):
        phi = _g_cm(network, anchors[tile.anchors], tile)
        found = _g_ep(network, psi[tile.psi_of_non_anchors], phi, tile.quality)
        _write(tile.non_anchors, found, means, indexes)


def one_pass_parameters_reference(
    psi: Tensor,
    anchors: Tensor,
    tiles: Tensor,
    longest: int,
    network: ParameterNetwork,
    anchor_means: Tensor,
    anchor_indexes: Tensor,
    means: Tensor,
    indexes: Tensor,
) -> None:
    """The definition of `one_pass_parameters`."""
    anchor_parameters_reference(psi, tiles, longest, network, anchor_means, anchor_indexes)
    context_parameters_reference(psi, anchors, tiles, longest, network, means, indexes)


def encode_parameters_reference(
    psi: Tensor,
    anchors: Tensor | None,
    tiles: Tensor,
    longest: int,
    network: ParameterNetwork,
    y: Tensor,
    weight: Tensor,
    lengths: Tensor,
    symbols: Tensor,
    indexes: Tensor,
    values: Tensor,
    error: Tensor,
) -> None:
    """The definition of `encode_parameters`: the network in int64, the choice of symbols in float32."""
    means = torch.empty_like(symbols)
    if anchors is None:
        anchor_parameters_reference(psi, tiles, longest, network, means, indexes)
    else:
        context_parameters_reference(psi, anchors, tiles, longest, network, means, indexes)
    for tile in _tiles(tiles):
        where = tile.anchors if anchors is None else tile.non_anchors
        residual = y[where] - means[where].float() / 2**MEAN_BITS
        nearest = residual.round()
        fits = nearest.abs() <= SYMBOL_MAX
        if not fits.all():
            error.fill_(OUT_OF_RANGE if y[where].isfinite().all() else NOT_FINITE)
        nearest = torch.where(fits, nearest, 0)
        closer = nearest - nearest.sign()
        magnitude = nearest.abs().long().clamp(max=lengths.shape[1] - 1)
        index = indexes[where].long()
        saved = lengths[index, magnitude] - lengths[index, (magnitude - 1).clamp(min=0)]
        worth = weight[tile.quality if weight.shape[0] > 1 else 0]
        lost = worth * ((residual - closer).square() - (residual - nearest).square())
        chosen = torch.where(saved > lost, closer, nearest) * (index > 0)
        symbols[where] = chosen.to(torch.int16)
        values[where] = (symbols[where].int() << MEAN_BITS) + means[where]


@dataclass(frozen=True)
class _Tile:
    """A row of the table of tiles: where the tile lies in each of the flat tensors."""

    height: int
    width: int
    quality: int
    anchors: slice
    non_anchors: slice
    psi_of_anchors: slice
    psi_of_non_anchors: slice


def _tiles(table: Tensor) -> Iterator[_Tile]:
    for row in table.tolist():
        height, width, psi, first, second = (
            row[column] for column in (layout.HEIGHT, layout.WIDTH, layout.PSI, layout.ANCHORS, layout.NON_ANCHORS)
        )
        count = (height * width + 1) // 2
        yield _Tile(
            height,
            width,
            row[layout.QUALITY],
            slice(first, first + count),
            slice(second, second + height * width - count),
            slice(psi, psi + count),
            slice(psi + count, psi + height * width),
        )


def _g_cm(network: ParameterNetwork, anchors: Tensor, tile: _Tile) -> Tensor:
    scaled = shift_right_reference(anchors.long(), network.context_shift, -127, 127)
    rows = checkerboard.gather_context(scaled[None], tile.height, tile.width)[0]
    return linear_reference(rows, network.context.unpacked(), 0)


def _g_ep(network: ParameterNetwork, psi: Tensor, phi: Tensor | None, quality: int) -> tuple[Tensor, Tensor]:
    if phi is None:
        phi = torch.zeros(psi.shape[0], network.context.outputs, dtype=torch.int64)
    row = quality if network.first.bias_stride else 0
    hidden = linear_reference(torch.cat([psi.long(), phi], 1), network.first.unpacked(), row)
    hidden = linear_reference(hidden, network.second.unpacked(), 0)
    means, indexes = (linear_reference(hidden, layer.unpacked(), 0) for layer in (network.means, network.indexes))
    return means, indexes


def _write(where: slice, found: tuple[Tensor, Tensor], means: Tensor, indexes: Tensor) -> None:
    means[where], indexes[where] = found[0].to(torch.int16), found[1].to(torch.uint8)


# ---- the kernel

_MEAN_BITS = tl.constexpr(MEAN_BITS)
_MEAN_UNIT = tl.constexpr(2.0**-MEAN_BITS)
_SYMBOL_MAX = tl.constexpr(SYMBOL_MAX)
_NOT_FINITE = tl.constexpr(NOT_FINITE)
_OUT_OF_RANGE = tl.constexpr(OUT_OF_RANGE)
_GREATEST = tl.constexpr(torch.finfo(torch.float32).max)
# 1.5 * 2^23: added to a float32 below 2^22 and taken away again it leaves the nearest integer, ties to even.
_ROUNDER = tl.constexpr(12582912.0)


@triton.jit
def _context_features(
    anchors,
    p,
    valid,
    height,
    width,
    input_shift,
    weight,
    bias,
    shift,
    LOW: tl.constexpr,
    HIGH: tl.constexpr,
    M: tl.constexpr,
    C: tl.constexpr,
    TAPS: tl.constexpr,
    BLOCK: tl.constexpr,
    CHUNK: tl.constexpr,
    CHUNKS_AHEAD: tl.constexpr,
):
    """phi of the p-th non-anchors of a tile, int8 [positions, C]: g_cm of its anchors, by CHUNK latents of a tap.

    input_shift: of each latent, the context_shift of `ParameterNetwork`.
    """
    # A pair of columns has one non-anchor, its second column in even rows and its first in odd ones; where the width is
    # odd, the pairs go on from row to row, and it is always the second (tiles.py).
    flat = 2 * p + 1 - ((2 * p // width) & 1 & (width + 1))
    row = flat // width
    column = flat - row * width
    outputs = tl.arange(0, C)
    total = tl.zeros((BLOCK, C), tl.int32)
    for step in tl.range(0, TAPS * (M // CHUNK), num_stages=CHUNKS_AHEAD):
        tap = step // (M // CHUNK)
        latents = step % (M // CHUNK) * CHUNK + tl.arange(0, CHUNK)
        # The live taps are the odd ones of a row-major 5x5 kernel.
        r = row + (2 * tap + 1) // 5 - 2
        c = column + (2 * tap + 1) % 5 - 2
        inside = valid & (r >= 0) & (r < height) & (c >= 0) & (c < width)
        place = ((r * width + c) // 2 * M)[:, None] + latents[None, :]
        value = tl.load(anchors + place, mask=inside[:, None], other=0)
        down = tl.load(input_shift + latents)
        value = (value + (1 << (down - 1))[None, :]) >> down[None, :]
        value = tl.minimum(tl.maximum(value, -127), 127).to(tl.int8)
        part = transposed_weights(weight, outputs, tap * M + latents, TAPS * M)
        total = tl.dot(value, part, total, out_dtype=tl.int32)
    return requantise(total, bias, shift, outputs, LOW, HIGH).to(tl.int8)


@triton.jit
def _choose(mean, index, y, weight, lengths, error, valid, K: tl.constexpr):
    """The symbols of `encode_parameters`, int32, for means, indexes and y of [positions, latents]; K magnitudes.

    Compiled without fusing multiplications into additions, so that it is what PyTorch computes.
    """
    residual = y - mean.to(tl.float32) * _MEAN_UNIT
    nearest = (residual + _ROUNDER) - _ROUNDER
    fits = tl.abs(nearest) <= _SYMBOL_MAX
    fault = tl.where(tl.abs(y) <= _GREATEST, _OUT_OF_RANGE, _NOT_FINITE)
    tl.store(error + tl.zeros_like(fault), fault, mask=valid & (fits == 0))
    nearest = tl.where(fits, nearest, 0.0)
    closer = nearest - tl.where(nearest > 0, 1.0, tl.where(nearest < 0, -1.0, 0.0))
    magnitude = tl.minimum(tl.abs(nearest), K - 1).to(tl.int32)
    row = lengths + index * K
    saved = tl.load(row + magnitude) - tl.load(row + tl.maximum(magnitude - 1, 0))
    lost = weight * ((residual - closer) * (residual - closer) - (residual - nearest) * (residual - nearest))
    return tl.where((saved > lost) & (index > 0), closer, tl.where(index > 0, nearest, 0.0)).to(tl.int32)


@triton.jit(do_not_specialize=["anchor_blocks"])
def _parameters(
    psi,
    anchors,
    tiles,
    anchor_blocks,
    context_weight,
    context_bias,
    context_shift,
    first_weight,
    first_bias,
    first_shift,
    second_weight,
    second_bias,
    second_shift,
    means_weight,
    means_bias,
    means_shift,
    indexes_weight,
    indexes_bias,
    indexes_shift,
    input_shift,
    anchor_means,
    anchor_indexes,
    means,
    indexes,
    y,
    weight,
    lengths,
    symbols,
    values,
    error,
    LIMITS: tl.constexpr,
    M: tl.constexpr,
    F: tl.constexpr,
    C: tl.constexpr,
    H: tl.constexpr,
    K: tl.constexpr,
    TAPS: tl.constexpr,
    BIAS_STRIDE: tl.constexpr,
    WEIGHT_STRIDE: tl.constexpr,
    BLOCK: tl.constexpr,
    CHUNK: tl.constexpr,
    CHUNKS_AHEAD: tl.constexpr,
    PIECE: tl.constexpr,
):
    """Program (i, t): BLOCK positions of tile t.

    Without anchors, the i-th block of the tile's anchors; with them, of its non-anchors; with anchor_blocks, so many
    blocks of anchors and then the non-anchors. With lengths (K magnitudes), it chooses symbols, else it writes means.
    Layers are those of `ParameterNetwork`, input_shift is its context_shift.
    """
    tile = tiles + tl.program_id(1) * COLUMNS
    height = tl.load(tile + HEIGHT)
    width = tl.load(tile + WIDTH)
    anchor_count = (height * width + 1) // 2
    block = tl.program_id(0)
    second = anchors is not None
    if anchor_blocks is not None:
        second = block >= anchor_blocks
        block -= tl.where(second, anchor_blocks, 0)
    count = tl.where(second, height * width // 2, anchor_count)
    if block * BLOCK >= count:
        return
    p = block * BLOCK + tl.arange(0, BLOCK)
    valid = p < count

    if anchors is not None:
        phi = tl.zeros((BLOCK, C), tl.int8)
        if second:
            phi = _context_features(
                anchors + tl.load(tile + ANCHORS).to(tl.int64) * M,
                p,
                valid,
                height,
                width,
                input_shift,
                context_weight,
                context_bias,
                context_shift,
                LIMITS[0],
                LIMITS[1],
                M,
                C,
                TAPS,
                BLOCK,
                CHUNK,
                CHUNKS_AHEAD,
            )

    features = tl.arange(0, F)
    row_of_psi = tl.load(tile + PSI).to(tl.int64) + tl.where(second, anchor_count, 0)
    x = tl.load(psi + row_of_psi * F + p[:, None] * F + features[None, :], mask=valid[:, None], other=0)
    quality = tl.load(tile + QUALITY)
    bias = first_bias + quality * BIAS_STRIDE
    hidden = tl.arange(0, H)
    total = tl.zeros((BLOCK, H), tl.int32)
    for begin in range(0, H, PIECE):
        piece = begin + tl.arange(0, PIECE)
        part = tl.dot(x, transposed_weights(first_weight, piece, features, F + C), out_dtype=tl.int32)
        if anchors is not None:
            behind = F + tl.arange(0, C)
            part = tl.dot(phi, transposed_weights(first_weight, piece, behind, F + C), part, out_dtype=tl.int32)
        part = requantise(part, bias, first_shift, piece, LIMITS[2], LIMITS[3]).to(tl.int8)
        total = tl.dot(part, transposed_weights(second_weight, hidden, piece, H), total, out_dtype=tl.int32)
    x = requantise(total, second_bias, second_shift, hidden, LIMITS[4], LIMITS[5]).to(tl.int8)

    base = tl.load(tile + tl.where(second, NON_ANCHORS, ANCHORS)).to(tl.int64) * M
    if anchor_blocks is not None:
        means = tl.where(second, means, anchor_means)
        indexes = tl.where(second, indexes, anchor_indexes)
    for begin in range(0, M, PIECE):
        piece = begin + tl.arange(0, PIECE)
        place = p[:, None] * M + piece[None, :]
        mean = tl.dot(x, transposed_weights(means_weight, piece, hidden, H), out_dtype=tl.int32)
        mean = requantise(mean, means_bias, means_shift, piece, LIMITS[6], LIMITS[7])
        index = tl.dot(x, transposed_weights(indexes_weight, piece, hidden, H), out_dtype=tl.int32)
        index = requantise(index, indexes_bias, indexes_shift, piece, LIMITS[8], LIMITS[9])
        tl.store(indexes + base + place, index.to(tl.uint8), mask=valid[:, None])
        if lengths is None:
            tl.store(means + base + place, mean.to(tl.int16), mask=valid[:, None])
        else:
            aim = tl.load(y + base + place, mask=valid[:, None], other=0.0)
            worth = tl.load(weight + quality * WEIGHT_STRIDE + piece)[None, :]
            symbol = _choose(mean, index, aim, worth, lengths, error, valid[:, None], K)
            tl.store(symbols + base + place, symbol.to(tl.int16), mask=valid[:, None])
            tl.store(values + base + place, (symbol << _MEAN_BITS) + mean, mask=valid[:, None])


# ---- launches

# A program per multiprocessor of an H100: up to here programs take 16 positions, since then the time of a single one is
# what counts. Beyond, each multiprocessor runs several, and what counts is how often they read the weights (1 MB).
_FEW_POSITIONS = 16 * 132


@dataclass(frozen=True)
class _Shape:
    """How a launch divides its work.

    block: positions a program; chunk: latents of a tap at a time, fetched by a pipeline of chunks_ahead stages; piece:
    outputs of a layer at a time; registers: of a thread at most, given because ptxas otherwise aims lower and spills.
    """

    block: int
    chunk: int
    registers: int
    chunks_ahead: int = 3
    piece: int = 64
    warps: int = 8

    @property
    def options(self) -> dict[str, object]:
        """Of the compiler. A multiplication fused into an addition would round differently from PyTorch's two."""
        return {"maxnreg": self.registers, "enable_fp_fusion": False}


def _shape(positions: int, encoding: bool) -> _Shape:
    """The sums of 64 positions take most registers. Choosing symbols needs many too, so it has half as many."""
    if positions <= _FEW_POSITIONS:
        return _Shape(block=16, chunk=128, registers=128)
    return _Shape(block=32 if encoding else 64, chunk=64, registers=255)


def _constants(
    shape: _Shape, layers: Sequence[PackedLayer], magnitudes: int = 0, weight_rows: int = 1
) -> dict[str, object]:
    context, first, _, means, _ = layers
    return {
        "LIMITS": tuple(limit for layer in layers for limit in (layer.low, layer.high)),
        "M": means.outputs,
        "F": first.inputs - context.outputs,
        "C": context.outputs,
        "H": first.outputs,
        "K": magnitudes,
        "TAPS": TAPS,
        "BIAS_STRIDE": first.bias_stride,
        "WEIGHT_STRIDE": means.outputs if weight_rows > 1 else 0,
        "BLOCK": shape.block,
        "CHUNK": min(shape.chunk, means.outputs),
        "CHUNKS_AHEAD": shape.chunks_ahead,
        "PIECE": min(shape.piece, means.outputs, first.outputs),
    }


def _launch(
    psi: Tensor,
    anchors: Tensor | None,
    tiles: Tensor,
    longest: int,
    tensors: Sequence[Tensor],
    limits: Sequence[int],
    *,
    indexes: Tensor,
    means: Tensor | None = None,
    anchor_means: Tensor | None = None,
    anchor_indexes: Tensor | None = None,
    y: Tensor | None = None,
    weight: Tensor | None = None,
    lengths: Tensor | None = None,
    symbols: Tensor | None = None,
    values: Tensor | None = None,
    error: Tensor | None = None,
) -> None:
    *tensors, input_shift = tensors
    positions, halves = indexes.shape[0], [longest // 2 if anchors is not None else (longest + 1) // 2]
    if anchor_indexes is not None:
        positions, halves = psi.shape[0], [(longest + 1) // 2, longest // 2]
    shape = _shape(positions, encoding=lengths is not None)
    blocks = [triton.cdiv(half, shape.block) for half in halves]
    if positions == 0 or sum(blocks) == 0:
        return
    constants = _constants(
        shape,
        unflatten(tensors, limits),
        *((lengths.shape[1], weight.shape[0]) if lengths is not None else ()),
    )
    if anchors is None:
        tensors[:3], input_shift = [None, None, None], None
    with torch.cuda.device_of(psi):
        _parameters[sum(blocks), tiles.shape[0]](
            psi,
            anchors,
            tiles,
            blocks[0] if anchor_indexes is not None else None,
            *tensors,
            input_shift,
            anchor_means,
            anchor_indexes,
            means,
            indexes,
            y,
            weight,
            lengths,
            symbols,
            values,
            error,
            **constants,
            num_warps=shape.warps,
            num_stages=2,
            **shape.options,
        )


def _anchor_parameters(psi, tiles, longest, tensors, limits, means, indexes):
    if on_gpu(psi):
        _launch(psi, None, tiles, longest, tensors, limits, means=means, indexes=indexes)
    else:
        network = ParameterNetwork._of(tensors, limits)
        anchor_parameters_reference(psi, tiles, longest, network, means, indexes)


def _context_parameters(psi, anchors, tiles, longest, tensors, limits, means, indexes):
    if on_gpu(psi):
        _launch(psi, anchors, tiles, longest, tensors, limits, means=means, indexes=indexes)
    else:
        network = ParameterNetwork._of(tensors, limits)
        context_parameters_reference(psi, anchors, tiles, longest, network, means, indexes)


def _one_pass_parameters(psi, anchors, tiles, longest, tensors, limits, anchor_means, anchor_indexes, means, indexes):
    outputs = {"anchor_means": anchor_means, "anchor_indexes": anchor_indexes, "means": means, "indexes": indexes}
    if on_gpu(psi):
        _launch(psi, anchors, tiles, longest, tensors, limits, **outputs)
    else:
        network = ParameterNetwork._of(tensors, limits)
        one_pass_parameters_reference(psi, anchors, tiles, longest, network, **outputs)


def _encode_parameters(
    psi, anchors, tiles, longest, tensors, limits, y, weight, lengths, symbols, indexes, values, error
):
    coding = {"y": y, "weight": weight, "lengths": lengths}
    outputs = {"symbols": symbols, "indexes": indexes, "values": values, "error": error}
    if on_gpu(psi):
        _launch(psi, anchors, tiles, longest, tensors, limits, **coding, **outputs)
    else:
        network = ParameterNetwork._of(tensors, limits)
        encode_parameters_reference(psi, anchors, tiles, longest, network, **coding, **outputs)


_NETWORK = "Tensor tiles, SymInt longest, Tensor[] network, int[] limits"
for _name, _arguments, _operator in (
    ("anchor_parameters", f"Tensor psi, {_NETWORK}, Tensor(a!) means, Tensor(b!) indexes", _anchor_parameters),
    (
        "context_parameters",
        f"Tensor psi, Tensor anchors, {_NETWORK}, Tensor(a!) means, Tensor(b!) indexes",
        _context_parameters,
    ),
    (
        "one_pass_parameters",
        f"Tensor psi, Tensor anchors, {_NETWORK}, Tensor(a!) anchor_means, Tensor(b!) anchor_indexes, "
        "Tensor(c!) means, Tensor(d!) indexes",
        _one_pass_parameters,
    ),
    (
        "encode_parameters",
        f"Tensor psi, Tensor? anchors, {_NETWORK}, Tensor y, Tensor weight, Tensor lengths, Tensor(a!) symbols, "
        "Tensor(b!) indexes, Tensor(c!) values, Tensor(d!) error",
        _encode_parameters,
    ),
):
    operator(f"{_name}({_arguments}) -> ()", _operator)


def builds() -> list[Build]:
    """Swift's launches, for few positions and for many: 256 channels everywhere, 100 qualities, 64 scales up to 64."""
    types = {"psi": "*i8", "anchor_blocks": "i32", "anchor_means": "*i16", "anchor_indexes": "*u8", "means": "*i16"}
    types |= {"indexes": "*u8", "y": "*fp32", "weight": "*fp32", "lengths": "*fp32", "symbols": "*i16"}
    types |= {f"{layer}_weight": "*i8" for layer in ("context", "first", "second", "means", "indexes")}
    context = {"anchors", "context_weight", "context_bias", "context_shift", "input_shift"}
    both = {"anchor_blocks", "anchor_means", "anchor_indexes"}
    coding = {"y", "weight", "lengths", "symbols", "values", "error"}
    layers = [
        PackedLayer(*(torch.empty(shape, device="meta") for shape in ((256, inputs), (rows, 256), (256,))), low, high)
        for inputs, rows, low, high in (
            (TAPS * 256, 1, -127, 127),
            (2 * 256, 100, 0, 127),
            (256, 1, 0, 127),
            (256, 1, -(2**15), 2**15 - 1),
            (256, 1, 0, 63),
        )
    ]
    found = []
    for name, absent in (
        ("anchor_parameters", context | both | coding),
        ("context_parameters", both | coding),
        ("one_pass_parameters", coding),
        ("encode_parameters, anchors", context | both | {"means"}),
        ("encode_parameters, non-anchors", both | {"means"}),
    ):
        encoding = "lengths" not in absent
        for size, positions in (("few", 1), ("many", _FEW_POSITIONS + 1)):
            shape = _shape(positions, encoding)
            constants = _constants(shape, layers, *((448, 100) if encoding else ()))
            arguments = [argument for argument in _parameters.arg_names if argument not in {*absent, *constants}]
            found.append(
                Build(
                    name=f"{name}, {size}",
                    kernel=_parameters,
                    signature={argument: types.get(argument, "*i32") for argument in arguments},
                    constants=constants | dict.fromkeys(sorted(absent)),
                    warps=shape.warps,
                    options=shape.options,
                )
            )
    return found
