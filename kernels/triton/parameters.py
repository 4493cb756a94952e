"""The parameter network on a GPU: context and g_ep, from psi and decoded latents to means and scale indexes, fused.

    anchors        means, indexes = g_ep(psi, g_ch(before))             (He et al. 2022, figure 4)
    non-anchors    means, indexes = g_ep(psi, g_cm(anchors, before))    (He et al. 2021, equation 4, figure 6)

    g_ch: B -> C     g_cm: 12 taps x M + B -> C     first: F + C -> H     second: H -> H     means, indexes: H -> M

Latents are coded in groups of channels: M is those of the group, B those of the groups before it, whose latents at the
same position are read too. The first group has none, and its anchors' phi is zero. docs/integer.md has the arithmetic.

One launch serves a batch of tiles: a program takes BLOCK positions of one tile through all layers, and what it reads of
memory is psi, the latents that it refers to and the weights; what it writes lies as the coder reads it. All between
stays on chip. For that, layers take turns: one is summed whole in registers (g_cm, second), the next one is made PIECE
outputs at a time, each piece used at once (first: as a part of second's sums; means and indexes: stored) and forgotten.
A layer's 256 x 256 weights as one operand would not fit into registers.

The encoder runs the same kernel with the choice of symbols behind it (`encode_parameters`): what it sends are residuals
against the means that the decoder computes.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

from .. import checkerboard
from ..integer_layer import IntegerLayer, linear_reference, shift_right_reference
from . import tiles as layout
from .common import Build, on_gpu, operator
from .integer_matrix import (
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
    """A group's context layers, the three layers of g_ep (the last one as two) and the context's shifts, on a device.

    M latents and B before them are multiples of 32; F features of psi, C of phi and H hidden channels are powers of two
    from 32. context (g_cm): [C, 12 * M + B], taps in the order of `checkerboard.LIVE_TAPS`, latents fastest; channels
    (g_ch): [C, B], or None of the first group, where B is 0; first: [H, F + C], with one row of biases or one for each
    quality; second: [H, H]; means, indexes: [M, H]; context_shift: int32 [B + M]. Raises ValueError if they do not fit.
    """

    context: PackedLayer
    channels: PackedLayer | None
    first: PackedLayer
    second: PackedLayer
    means: PackedLayer
    indexes: PackedLayer
    context_shift: Tensor

    def __post_init__(self) -> None:
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

    @property
    def layers(self) -> tuple[PackedLayer, ...]:
        """All but None; `channels`, if there is one, comes last."""
        common = self.context, self.first, self.second, self.means, self.indexes
        return common if self.channels is None else (*common, self.channels)

    @classmethod
    def pack(
        cls,
        layers: Mapping[str, IntegerLayer],
        context_shift: Tensor,
        device: torch.device | str,
    ) -> ParameterNetwork:
        """layers: by their names in a model, g_cm, g_ep.first, g_ep.second, g_ep.means, g_ep.indexes; g_ch, too, of
        any group but the first."""
        packed = {name: pack(layer, device) for name, layer in layers.items()}
        names = ("g_cm", "g_ch", "g_ep.first", "g_ep.second", "g_ep.means", "g_ep.indexes")
        return cls(*(packed.get(name) for name in names), context_shift.to(device).contiguous())

    @classmethod
    def _of(cls, tensors: Sequence[Tensor], limits: Sequence[int]) -> ParameterNetwork:
        context, first, second, means, indexes, *channels = unflatten(tensors[:-1], limits)
        return cls(context, channels[0] if channels else None, first, second, means, indexes, tensors[-1])

    def _flat(self) -> tuple[list[Tensor], list[int]]:
        tensors, limits = flatten(self.layers)
        return [*tensors, self.context_shift], limits


# ---- operations


def anchor_parameters(
    psi: Tensor,
    before: Tensor | None,
    tiles: Tensor,
    longest: int,
    network: ParameterNetwork,
    means: Tensor,
    indexes: Tensor,
) -> None:
    """g_ep(psi, g_ch(before)) at the anchors: a group's first pass.

    psi: int8 [sum h*w, F]; before: decoded latents of earlier groups there, int32 [sum A, B] in 1/16, of magnitude
    below 2^23, or None of the first group; tiles: int32 [T, 8] (tiles.py); longest: h*w of the largest tile. Writes
    means, int16 [sum A, M] in 1/16, and indexes, uint8 [sum A, M]. The table's sizes must be those of the tensors: it
    is not read back. Raises ValueError for tensors of another form.
    """
    _check_half(psi, tiles, longest, network, anchors=means.shape[0])
    _check_outputs(network, means, indexes)
    _check_values("before", before, means.shape[0], network.before)
    torch.ops.fastcodec.anchor_parameters(psi, before, tiles, longest, *network._flat(), means, indexes)


def context_parameters(
    psi: Tensor,
    anchors: Tensor,
    before: Tensor | None,
    tiles: Tensor,
    longest: int,
    network: ParameterNetwork,
    means: Tensor,
    indexes: Tensor,
) -> None:
    """g_ep(psi, g_cm(anchors, before)) at the non-anchors: a group's second pass.

    anchors: the group's own decoded latents, int32 [sum A, M] in 1/16; before: those of earlier groups at the
    non-anchors, int32 [sum N, B], or None. Both may be columns of larger tensors. Writes means, int16 [sum N, M], and
    indexes, uint8 [sum N, M]. All else is as in `anchor_parameters`.
    """
    _check_half(psi, tiles, longest, network, anchors=psi.shape[0] - means.shape[0])
    _check_outputs(network, means, indexes)
    _check_values("anchors", anchors, psi.shape[0] - means.shape[0], network.latents)
    _check_values("before", before, means.shape[0], network.before)
    torch.ops.fastcodec.context_parameters(psi, anchors, before, tiles, longest, *network._flat(), means, indexes)


def encode_parameters(
    psi: Tensor,
    anchors: Tensor | None,
    before: Tensor | None,
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
    symbols, int16, indexes, uint8, and values = 16 * symbol + mean, int32, all [P, M], values perhaps as columns of a
    larger tensor: those of the first pass are the anchors of the second, and later groups' `before`. error: int32 [1],
    becomes NOT_FINITE or OUT_OF_RANGE where a y is not finite or a residual rounds to more than 16 bits, whose symbol
    then is 0; else it stays as it is.
    """
    positions = symbols.shape[0]
    _check_half(psi, tiles, longest, network, anchors=positions if anchors is None else psi.shape[0] - positions)
    if anchors is not None:
        _check_values("anchors", anchors, psi.shape[0] - positions, network.latents)
    _check_values("before", before, positions, network.before)
    check("symbols", symbols, torch.int16, None, network.latents)
    check("indexes", indexes, torch.uint8, *symbols.shape)
    _check_values("values", values, *symbols.shape)
    check("y", y, torch.float32, *symbols.shape)
    check("weight", weight, torch.float32, None, network.latents)
    check("lengths", lengths, torch.float32, network.indexes.high + 1, None)
    check("error", error, torch.int32, 1)
    torch.ops.fastcodec.encode_parameters(
        psi, anchors, before, tiles, longest, *network._flat(), y, weight, lengths, symbols, indexes, values, error
    )


def _check_half(psi: Tensor, tiles: Tensor, longest: int, network: ParameterNetwork, anchors: int) -> None:
    check("psi", psi, torch.int8, None, network.features)
    check_tiles(tiles, longest)
    if not 0 <= 2 * anchors - psi.shape[0] <= tiles.shape[0]:  # a tile of odd size has an anchor more than non-anchors
        raise ValueError(f"{psi.shape[0]} positions in {tiles.shape[0]} tiles do not have {anchors} anchors")


def _check_outputs(network: ParameterNetwork, means: Tensor, indexes: Tensor) -> None:
    check("means", means, torch.int16, None, network.latents)
    check("indexes", indexes, torch.uint8, means.shape[0], network.latents)


def _check_values(name: str, values: Tensor | None, rows: int, channels: int) -> None:
    """ValueError unless decoded latents are int32 [rows, channels], channels fastest; None where there are none."""
    if values is None and channels == 0:
        return
    if values is None or values.dtype != torch.int32 or values.shape != (rows, channels) or values.stride(1) != 1:
        found = None if values is None else f"{values.dtype} {list(values.shape)}"
        raise ValueError(f"{name} must be torch.int32 [{rows}, {channels}], channels fastest, not {found}")


# ---- references


def anchor_parameters_reference(
    psi: Tensor,
    before: Tensor | None,
    tiles: Tensor,
    longest: int,
    network: ParameterNetwork,
    means: Tensor,
    indexes: Tensor,
) -> None:
    """The definition of `anchor_parameters`, in int64."""
    for tile in _tiles(tiles):
        phi = None if before is None else _g_ch(network, before[tile.anchors])
        _write(tile.anchors, _g_ep(network, psi[tile.psi_of_anchors], phi, tile.quality), means, indexes)


def context_parameters_reference(
    psi: Tensor,
    anchors: Tensor,
    before: Tensor | None,
    tiles: Tensor,
    longest: int,
    network: ParameterNetwork,
    means: Tensor,
    indexes: Tensor,
) -> None:
    """The definition of `context_parameters`, in int64."""
    for tile in _tiles(tiles):
        phi = _g_cm(network, anchors[tile.anchors], None if before is None else before[tile.non_anchors], tile)
        found = _g_ep(network, psi[tile.psi_of_non_anchors], phi, tile.quality)
        _write(tile.non_anchors, found, means, indexes)


def encode_parameters_reference(
    psi: Tensor,
    anchors: Tensor | None,
    before: Tensor | None,
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
        anchor_parameters_reference(psi, before, tiles, longest, network, means, indexes)
    else:
        context_parameters_reference(psi, anchors, before, tiles, longest, network, means, indexes)
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


def _scaled(network: ParameterNetwork, values: Tensor, channels: slice) -> Tensor:
    return shift_right_reference(values.long(), network.context_shift[channels], -127, 127)


def _g_ch(network: ParameterNetwork, before: Tensor) -> Tensor:
    return linear_reference(_scaled(network, before, slice(0, network.before)), network.channels.unpacked(), 0)


def _g_cm(network: ParameterNetwork, anchors: Tensor, before: Tensor | None, tile: _Tile) -> Tensor:
    own = _scaled(network, anchors, slice(network.before, None))
    rows = checkerboard.gather_context(own[None], tile.height, tile.width)[0]
    if before is not None:
        rows = torch.cat([rows, _scaled(network, before, slice(0, network.before))], 1)
    return linear_reference(rows, network.context.unpacked(), 0)


def _g_ep(network: ParameterNetwork, psi: Tensor, phi: Tensor | None, quality: int) -> tuple[Tensor, Tensor]:
    if phi is None:
        phi = torch.zeros(psi.shape[0], network.context.outputs, dtype=torch.int64, device=psi.device)
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
def _context_input(place, inside, input_shift, latents):
    """Decoded latents as the context reads them: int8. input_shift: of each latent of the tile."""
    value = tl.load(place, mask=inside[:, None], other=0)
    down = tl.load(input_shift + latents)
    value = (value + (1 << (down - 1))[None, :]) >> down[None, :]
    return tl.minimum(tl.maximum(value, -127), 127).to(tl.int8)


@triton.jit
def _context_features(
    anchors,
    before,
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
    B: tl.constexpr,
    C: tl.constexpr,
    TAPS: tl.constexpr,
    ANCHOR_STRIDE: tl.constexpr,
    BEFORE_STRIDE: tl.constexpr,
    BLOCK: tl.constexpr,
    CHUNK: tl.constexpr,
    CHUNK_BEFORE: tl.constexpr,
    CHUNKS_AHEAD: tl.constexpr,
):
    """phi of a tile's p-th positions, int8 [positions, C]: of its anchors around them, unless None, and of the earlier
    groups' latents there, unless None, by CHUNK latents.

    anchors, before: the tile's own; input_shift: the context_shift of `ParameterNetwork`.
    """
    outputs = tl.arange(0, C)
    total = tl.zeros((BLOCK, C), tl.int32)
    if anchors is not None:
        # A pair of columns has one non-anchor, its second column in even rows and its first in odd ones; where the
        # width is odd, the pairs go on from row to row, and it is always the second (tiles.py).
        flat = 2 * p + 1 - ((2 * p // width) & 1 & (width + 1))
        row = flat // width
        column = flat - row * width
        for step in tl.range(0, TAPS * (M // CHUNK), num_stages=CHUNKS_AHEAD):
            tap = step // (M // CHUNK)
            latents = step % (M // CHUNK) * CHUNK + tl.arange(0, CHUNK)
            # The live taps are the odd ones of a row-major 5x5 kernel.
            r = row + (2 * tap + 1) // 5 - 2
            c = column + (2 * tap + 1) % 5 - 2
            inside = valid & (r >= 0) & (r < height) & (c >= 0) & (c < width)
            place = anchors + ((r * width + c) // 2 * ANCHOR_STRIDE)[:, None] + latents[None, :]
            value = _context_input(place, inside, input_shift + B, latents)
            part = transposed_weights(weight, outputs, tap * M + latents, TAPS * M + B)
            total = tl.dot(value, part, total, out_dtype=tl.int32)
    if before is not None:
        for begin in range(0, B, CHUNK_BEFORE):
            latents = begin + tl.arange(0, CHUNK_BEFORE)
            value = _context_input(
                before + (p * BEFORE_STRIDE)[:, None] + latents[None, :], valid, input_shift, latents
            )
            part = transposed_weights(weight, outputs, TAPS * M + latents, TAPS * M + B)
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


@triton.jit
def _parameters(
    psi,
    anchors,
    before,
    tiles,
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
    B: tl.constexpr,
    F: tl.constexpr,
    C: tl.constexpr,
    H: tl.constexpr,
    K: tl.constexpr,
    TAPS: tl.constexpr,
    BIAS_STRIDE: tl.constexpr,
    WEIGHT_STRIDE: tl.constexpr,
    ANCHOR_STRIDE: tl.constexpr,
    BEFORE_STRIDE: tl.constexpr,
    VALUE_STRIDE: tl.constexpr,
    BLOCK: tl.constexpr,
    CHUNK: tl.constexpr,
    CHUNK_BEFORE: tl.constexpr,
    CHUNKS_AHEAD: tl.constexpr,
    PIECE: tl.constexpr,
):
    """Program (i, t): the i-th BLOCK positions of tile t, of its anchors, or, given anchors, of its non-anchors.

    With lengths (K magnitudes), it chooses symbols, else it writes means. Layers are those of `ParameterNetwork`, the
    context's being g_cm given anchors and g_ch without (TAPS is 0 then); input_shift is the network's context_shift.
    """
    tile = tiles + tl.program_id(1) * COLUMNS
    height = tl.load(tile + HEIGHT)
    width = tl.load(tile + WIDTH)
    anchor_count = (height * width + 1) // 2
    block = tl.program_id(0)
    count = anchor_count
    row = tl.load(tile + ANCHORS).to(tl.int64)  # where the positions are in flat tensors
    if anchors is not None:
        count = height * width - anchor_count
        row = tl.load(tile + NON_ANCHORS).to(tl.int64)
    if block * BLOCK >= count:
        return
    p = block * BLOCK + tl.arange(0, BLOCK)
    valid = p < count

    if context_weight is not None:
        around = anchors
        if anchors is not None:
            around = anchors + tl.load(tile + ANCHORS).to(tl.int64) * ANCHOR_STRIDE
        here = before
        if before is not None:
            here = before + row * BEFORE_STRIDE
        phi = _context_features(
            around,
            here,
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
            B,
            C,
            TAPS,
            ANCHOR_STRIDE,
            BEFORE_STRIDE,
            BLOCK,
            CHUNK,
            CHUNK_BEFORE,
            CHUNKS_AHEAD,
        )

    features = tl.arange(0, F)
    row_of_psi = tl.load(tile + PSI).to(tl.int64)
    if anchors is not None:
        row_of_psi += anchor_count
    x = tl.load(psi + row_of_psi * F + p[:, None] * F + features[None, :], mask=valid[:, None], other=0)
    quality = tl.load(tile + QUALITY)
    bias = first_bias + quality * BIAS_STRIDE
    hidden = tl.arange(0, H)
    total = tl.zeros((BLOCK, H), tl.int32)
    for begin in range(0, H, PIECE):
        piece = begin + tl.arange(0, PIECE)
        part = tl.dot(x, transposed_weights(first_weight, piece, features, F + C), out_dtype=tl.int32)
        if context_weight is not None:
            behind = F + tl.arange(0, C)
            part = tl.dot(phi, transposed_weights(first_weight, piece, behind, F + C), part, out_dtype=tl.int32)
        part = requantise(part, bias, first_shift, piece, LIMITS[2], LIMITS[3]).to(tl.int8)
        total = tl.dot(part, transposed_weights(second_weight, hidden, piece, H), total, out_dtype=tl.int32)
    x = requantise(total, second_bias, second_shift, hidden, LIMITS[4], LIMITS[5]).to(tl.int8)

    base = row * M
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
            place = p[:, None] * VALUE_STRIDE + piece[None, :]
            tl.store(values + row * VALUE_STRIDE + place, (symbol << _MEAN_BITS) + mean, mask=valid[:, None])


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
        return _Shape(block=16, chunk=128, registers=160)
    return _Shape(block=32 if encoding else 64, chunk=64, registers=255)


def _constants(
    shape: _Shape,
    layers: Sequence[PackedLayer],
    taps: int,
    strides: tuple[int, int, int],
    magnitudes: int = 0,
    weight_rows: int = 1,
) -> dict[str, object]:
    """layers: that of the context, then those of g_ep; taps: of the context; strides: of anchors, before, values."""
    context, first, _, means, _ = layers
    before = context.inputs - taps * means.outputs if taps or strides[1] else 0
    return {
        "LIMITS": tuple(limit for layer in layers for limit in (layer.low, layer.high)),
        "M": means.outputs,
        "B": before,
        "F": first.inputs - context.outputs,
        "C": context.outputs,
        "H": first.outputs,
        "K": magnitudes,
        "TAPS": taps,
        "BIAS_STRIDE": first.bias_stride,
        "WEIGHT_STRIDE": means.outputs if weight_rows > 1 else 0,
        "ANCHOR_STRIDE": strides[0],
        "BEFORE_STRIDE": strides[1],
        "VALUE_STRIDE": strides[2],
        "BLOCK": shape.block,
        "CHUNK": min(shape.chunk, _power_of_two_in(means.outputs)),
        "CHUNK_BEFORE": min(64, _in_rounds(before)),  # with 128 at a time, registers do not suffice
        "CHUNKS_AHEAD": shape.chunks_ahead,
        "PIECE": min(shape.piece, _in_rounds(means.outputs), first.outputs),
    }


def _in_rounds(number: int) -> int:
    """How much of `number` to take in a round of a loop, so that there are two and more: the body of a single round is
    mixed with what lies around it, and registers do not suffice. No less than 32, the least that int8 products take.
    """
    return max(32, _power_of_two_in(number) // 2) if number else 0


def _power_of_two_in(number: int) -> int:
    """The largest power of two that divides it; 0 for 0."""
    return number & -number


def _launch(
    psi: Tensor,
    anchors: Tensor | None,
    before: Tensor | None,
    tiles: Tensor,
    longest: int,
    tensors: Sequence[Tensor],
    limits: Sequence[int],
    *,
    indexes: Tensor,
    means: Tensor | None = None,
    y: Tensor | None = None,
    weight: Tensor | None = None,
    lengths: Tensor | None = None,
    symbols: Tensor | None = None,
    values: Tensor | None = None,
    error: Tensor | None = None,
) -> None:
    context, *others = unflatten(tensors[:-1], limits)
    if anchors is None and before is not None:
        context = others[-1]
    layers, input_shift = (context, *others[:4]), tensors[-1]
    shape = _shape(indexes.shape[0], encoding=lengths is not None)
    blocks = triton.cdiv(longest // 2 if anchors is not None else (longest + 1) // 2, shape.block)
    if indexes.shape[0] == 0 or blocks == 0:
        return
    constants = _constants(
        shape,
        layers,
        0 if anchors is None else TAPS,
        tuple(0 if tensor is None else tensor.stride(0) for tensor in (anchors, before, values)),
        *((lengths.shape[1], weight.shape[0]) if lengths is not None else ()),
    )
    arguments, _ = flatten(layers)
    if anchors is None and before is None:
        arguments[:3], input_shift = [None, None, None], None
    with torch.cuda.device_of(psi):
        _parameters[blocks, tiles.shape[0]](
            psi,
            anchors,
            before,
            tiles,
            *arguments,
            input_shift,
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


def _anchor_parameters(psi, before, tiles, longest, tensors, limits, means, indexes):
    if on_gpu(psi):
        _launch(psi, None, before, tiles, longest, tensors, limits, means=means, indexes=indexes)
    else:
        network = ParameterNetwork._of(tensors, limits)
        anchor_parameters_reference(psi, before, tiles, longest, network, means, indexes)


def _context_parameters(psi, anchors, before, tiles, longest, tensors, limits, means, indexes):
    if on_gpu(psi):
        _launch(psi, anchors, before, tiles, longest, tensors, limits, means=means, indexes=indexes)
    else:
        network = ParameterNetwork._of(tensors, limits)
        context_parameters_reference(psi, anchors, before, tiles, longest, network, means, indexes)


def _encode_parameters(
    psi, anchors, before, tiles, longest, tensors, limits, y, weight, lengths, symbols, indexes, values, error
):
    coding = {"y": y, "weight": weight, "lengths": lengths}
    outputs = {"symbols": symbols, "indexes": indexes, "values": values, "error": error}
    if on_gpu(psi):
        _launch(psi, anchors, before, tiles, longest, tensors, limits, **coding, **outputs)
    else:
        network = ParameterNetwork._of(tensors, limits)
        encode_parameters_reference(psi, anchors, before, tiles, longest, network, **coding, **outputs)


_NETWORK = "Tensor tiles, SymInt longest, Tensor[] network, int[] limits"
for _name, _arguments, _operator in (
    (
        "anchor_parameters",
        f"Tensor psi, Tensor? before, {_NETWORK}, Tensor(a!) means, Tensor(b!) indexes",
        _anchor_parameters,
    ),
    (
        "context_parameters",
        f"Tensor psi, Tensor anchors, Tensor? before, {_NETWORK}, Tensor(a!) means, Tensor(b!) indexes",
        _context_parameters,
    ),
    (
        "encode_parameters",
        f"Tensor psi, Tensor? anchors, Tensor? before, {_NETWORK}, Tensor y, Tensor weight, Tensor lengths, "
        "Tensor(a!) symbols, Tensor(b!) indexes, Tensor(c!) values, Tensor(d!) error",
        _encode_parameters,
    ),
):
    operator(f"{_name}({_arguments}) -> ()", _operator)


#: The groups of the shipped models, each one once: (latents, latents before them), in 256 channels.
SHIPPED_GROUPS = ((64, 0), (64, 64), (128, 128))


def builds(groups: Sequence[tuple[int, int]] = SHIPPED_GROUPS) -> list[Build]:
    """A model's launches, for few positions and for many: 256 channels, 100 qualities, 64 scales up to 64.

    groups: (latents, latents before them) of each.
    """
    return [build for latents, before in groups for build in _builds_of_group(latents, before)]


def _builds_of_group(latents: int, before: int) -> list[Build]:
    types = {"psi": "*i8", "means": "*i16", "indexes": "*u8", "y": "*fp32", "weight": "*fp32", "lengths": "*fp32"}
    types |= {"symbols": "*i16"}
    types |= {f"{layer}_weight": "*i8" for layer in ("context", "first", "second", "means", "indexes")}
    context = {"context_weight", "context_bias", "context_shift", "input_shift"}
    coding = {"y", "weight", "lengths", "symbols", "values", "error"}

    def layer(outputs: int, inputs: int, rows: int, low: int, high: int) -> PackedLayer:
        shapes = ((outputs, inputs), (rows, outputs), (outputs,))
        return PackedLayer(*(torch.empty(shape, dtype=torch.float32, device="meta") for shape in shapes), low, high)

    behind = (
        layer(256, 2 * 256, 100, 0, 127),
        layer(256, 256, 1, 0, 127),
        layer(latents, 256, 1, -(2**15), 2**15 - 1),
        layer(latents, 256, 1, 0, 63),
    )
    found = []
    for half, of_anchors in (("anchors", True), ("non-anchors", False)):
        taps = 0 if of_anchors else TAPS
        # What the first group's anchors do not have still tells the constants.
        inputs = taps * latents + before if taps or before else TAPS * latents
        layers = (layer(256, inputs, 1, -127, 127), *behind)
        never = set() if before else {"before"}
        never |= {"anchors"} if of_anchors else set()
        never |= context if of_anchors and not before else set()
        for encoding in (False, True):
            absent = never | ({"means"} if encoding else coding)
            strides = (0 if of_anchors else 256, 256 if before else 0, 256 if encoding else 0)
            name = f"encode_parameters, {half}" if encoding else f"{'anchor' if of_anchors else 'context'}_parameters"
            if before or latents != 256:
                name += f", {latents} latents" + (f" after {before}" if before else "")
            for size, positions in (("few", 1), ("many", _FEW_POSITIONS + 1)):
                shape = _shape(positions, encoding)
                constants = _constants(shape, layers, taps, strides, *((448, 100) if encoding else ()))
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
