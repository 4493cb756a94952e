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

The decoder's operation is `decode_parameters`. The encoder runs the same kernel with the choice of symbols behind it,
`encode_parameters`: what it sends are residuals against the means that the decoder computes.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from .. import checkerboard
from ..integer_layer import linear_reference, shift_right_reference
from .common import POINTERS, Build, check, on_gpu, operator
from .packed_layer import (
    ANCHORS,
    COLUMNS,
    FEW_POSITIONS,
    HEIGHT,
    NON_ANCHORS,
    PSI,
    QUALITY,
    WIDTH,
    PackedLayer,
    check_tiles,
    flatten,
    requantise,
    transposed_weights,
)
from .parameter_network import TAPS, ParameterNetwork
from .symbol_choice import CodedSymbols, SymbolChoice, choose, choose_reference, reconstructed
from .tiles import TileTable

#: Functions whose parameters are an operator's flat list, as PyTorch's schemas have no structures.
FLAT_SCHEMAS = ("_decode_parameters", "_encode_parameters")


class Context(NamedTuple):
    """Decoded latents that a pass refers to, int32 in 1/16, of magnitude below 2^23. Either may be columns of a larger
    tensor.

    anchors: of the group itself at the anchors, [sum A, M], for its second pass, that of the non-anchors; None for the
    first. before: of earlier groups at the positions of the pass, [P, B]; None of the first group.
    """

    anchors: Tensor | None = None
    before: Tensor | None = None


# ---- operations


def decode_parameters(
    psi: Tensor, context: Context, tiles: TileTable, network: ParameterNetwork, means: Tensor, indexes: Tensor
) -> None:
    """Means and scale indexes of a group's pass: of its anchors, or, given anchors in the context, its non-anchors.

    psi: int8 [sum h*w, F]. With P = sum A at the anchors or sum N at the non-anchors, writes means, int16 [P, M] in
    1/16, and indexes, uint8 [P, M]. The table's sizes must be those of the tensors: it is not read back. Raises
    ValueError for tensors of another form.
    """
    _check_inputs(psi, context, tiles, network, positions=means.shape[0])
    check("means", means, torch.int16, None, network.latents)
    check("indexes", indexes, torch.uint8, *means.shape)
    torch.ops.fastcodec.decode_parameters(psi, *context, tiles.rows, tiles.longest, *network.flatten(), means, indexes)


def encode_parameters(
    psi: Tensor,
    context: Context,
    tiles: TileTable,
    network: ParameterNetwork,
    choice: SymbolChoice,
    out: CodedSymbols,
) -> None:
    """`decode_parameters`, and the symbols that an encoder sends for y.

    A symbol is y - mean, rounded to the nearest integer (ties to even), or to the next one towards zero where that
    saves more bits than its squared error is worth; it is 0 where the index is 0.
    """
    shape = out.symbols.shape
    _check_inputs(psi, context, tiles, network, positions=shape[0])
    check("symbols", out.symbols, torch.int16, None, network.latents)
    check("indexes", out.indexes, torch.uint8, *shape)
    _check_values("values", out.values, *shape)
    check("error", out.error, torch.int32, 1)
    check("y", choice.y, torch.float32, *shape)
    check("weight", choice.weight, torch.float32, None, network.latents)
    check("lengths", choice.lengths, torch.float32, network.indexes.high + 1, None)
    torch.ops.fastcodec.encode_parameters(psi, *context, tiles.rows, tiles.longest, *network.flatten(), *choice, *out)


def _check_inputs(psi: Tensor, context: Context, tiles: TileTable, network: ParameterNetwork, positions: int) -> None:
    check("psi", psi, torch.int8, None, network.features)
    check_tiles(tiles)
    total, count = psi.shape[0], tiles.rows.shape[0]
    anchors = positions if context.anchors is None else total - positions
    if not 0 <= 2 * anchors - total <= count:  # a tile of odd size has an anchor more than non-anchors
        raise ValueError(f"{total} positions in {count} tiles do not have {anchors} anchors")
    if context.anchors is not None:
        _check_values("anchors", context.anchors, anchors, network.latents)
    if context.before is not None or network.before:
        _check_values("before", context.before, positions, network.before)


def _check_values(name: str, values: Tensor | None, rows: int, channels: int) -> None:
    """ValueError unless decoded latents are int32 [rows, channels], channels fastest."""
    if values is None or values.dtype != torch.int32 or values.shape != (rows, channels) or values.stride(1) != 1:
        found = None if values is None else f"{values.dtype} {list(values.shape)}"
        raise ValueError(f"{name} must be torch.int32 [{rows}, {channels}], channels fastest, not {found}")


# ---- references


def decode_parameters_reference(
    psi: Tensor, context: Context, tiles: TileTable, network: ParameterNetwork, means: Tensor, indexes: Tensor
) -> None:
    """The definition of `decode_parameters`, in int64."""
    for tile in _passes(tiles, context):
        x = torch.cat([psi[tile.psi].long(), _phi(network, context, tile)], 1)
        x = linear_reference(x, network.first.unpacked(), tile.quality if network.first.bias_stride else 0)
        x = linear_reference(x, network.second.unpacked(), 0)
        means[tile.rows] = linear_reference(x, network.means.unpacked(), 0).to(torch.int16)
        indexes[tile.rows] = linear_reference(x, network.indexes.unpacked(), 0).to(torch.uint8)


def encode_parameters_reference(
    psi: Tensor,
    context: Context,
    tiles: TileTable,
    network: ParameterNetwork,
    choice: SymbolChoice,
    out: CodedSymbols,
) -> None:
    """The definition of `encode_parameters`."""
    means = torch.empty_like(out.symbols)
    decode_parameters_reference(psi, context, tiles, network, means, out.indexes)
    for tile in _passes(tiles, context):
        choose_reference(means, choice, out, tile.rows, tile.quality)


class _TilePass(NamedTuple):
    """Where a tile's pass lies in each of the flat tensors."""

    height: int
    width: int
    quality: int
    anchors: slice
    rows: slice  # of the pass
    psi: slice


def _passes(tiles: TileTable, context: Context) -> Iterator[_TilePass]:
    for height, width, quality, _, psi, anchors, non_anchors, _ in tiles.rows.tolist():
        count, total = (height * width + 1) // 2, height * width
        first = slice(anchors, anchors + count)
        if context.anchors is None:
            yield _TilePass(height, width, quality, first, first, slice(psi, psi + count))
        else:
            second = slice(non_anchors, non_anchors + total - count)
            yield _TilePass(height, width, quality, first, second, slice(psi + count, psi + total))


def _phi(network: ParameterNetwork, context: Context, tile: _TilePass) -> Tensor:
    """g_cm or g_ch, or zero where there is nothing to refer to."""
    layer = network.channels if context.anchors is None else network.context
    if layer is None:
        shape = tile.rows.stop - tile.rows.start, network.context.outputs
        return torch.zeros(shape, dtype=torch.int64, device=network.context_shift.device)
    parts, shift = [], network.context_shift
    if context.anchors is not None:
        own = shift_right_reference(context.anchors[tile.anchors].long(), shift[network.before :], -127, 127)
        parts.append(checkerboard.gather_context(own[None], tile.height, tile.width)[0])
    if context.before is not None:
        parts.append(shift_right_reference(context.before[tile.rows].long(), shift[: network.before], -127, 127))
    return linear_reference(torch.cat(parts, 1), layer.unpacked(), 0)


# ---- the kernel, whose many arguments stand in groups, not in a line each


@triton.jit
def _context_input(place, inside, input_shift, latents):
    """Decoded latents as the context reads them: int8. input_shift: of each latent of the tile."""
    value = tl.load(place, mask=inside[:, None], other=0)
    down = tl.load(input_shift + latents)
    value = (value + (1 << (down - 1))[None, :]) >> down[None, :]
    return tl.minimum(tl.maximum(value, -127), 127).to(tl.int8)


@triton.jit
def _context_sums(
    anchors, before, tile, row, p, valid, height, width, input_shift, weight,
    M: tl.constexpr, B: tl.constexpr, C: tl.constexpr, TAPS: tl.constexpr,
    ANCHOR_STRIDE: tl.constexpr, BEFORE_STRIDE: tl.constexpr,
    BLOCK: tl.constexpr, CHUNK: tl.constexpr, CHUNK_BEFORE: tl.constexpr, CHUNKS_AHEAD: tl.constexpr,
):  # fmt: skip
    """The context layer's sums at a tile's p-th positions, int32 [positions, C]: over its anchors around them, unless
    None, and the earlier groups' latents there, unless None, by CHUNK latents.

    row: of the first position in flat tensors; input_shift: the context_shift of `ParameterNetwork`.
    """
    outputs = tl.arange(0, C)
    total = tl.zeros((BLOCK, C), tl.int32)
    if anchors is not None:
        anchors += tl.load(tile + ANCHORS).to(tl.int64) * ANCHOR_STRIDE
        # A pair of columns has one non-anchor, its second column in even rows and its first in odd ones; where the
        # width is odd, the pairs go on from row to row, and it is always the second (tiles.py).
        flat = 2 * p + 1 - ((2 * p // width) & 1 & (width + 1))
        down = flat // width
        right = flat - down * width
        for step in tl.range(0, TAPS * (M // CHUNK), num_stages=CHUNKS_AHEAD):
            tap = step // (M // CHUNK)
            latents = step % (M // CHUNK) * CHUNK + tl.arange(0, CHUNK)
            # The live taps are the odd ones of a row-major 5x5 kernel.
            r = down + (2 * tap + 1) // 5 - 2
            c = right + (2 * tap + 1) % 5 - 2
            inside = valid & (r >= 0) & (r < height) & (c >= 0) & (c < width)
            place = anchors + ((r * width + c) // 2 * ANCHOR_STRIDE)[:, None] + latents[None, :]
            value = _context_input(place, inside, input_shift + B, latents)
            part = transposed_weights(weight, outputs, tap * M + latents, TAPS * M + B)
            total = tl.dot(value, part, total, out_dtype=tl.int32)
    if before is not None:
        before += row * BEFORE_STRIDE
        for begin in range(0, B, CHUNK_BEFORE):
            latents = begin + tl.arange(0, CHUNK_BEFORE)
            place = before + (p * BEFORE_STRIDE)[:, None] + latents[None, :]
            value = _context_input(place, valid, input_shift, latents)
            part = transposed_weights(weight, outputs, TAPS * M + latents, TAPS * M + B)
            total = tl.dot(value, part, total, out_dtype=tl.int32)
    return total


@triton.jit
def _hidden(
    x, phi, first_weight, first_bias, first_shift, second_weight, second_bias, second_shift,
    LIMITS: tl.constexpr, F: tl.constexpr, C: tl.constexpr, H: tl.constexpr, BLOCK: tl.constexpr, PIECE: tl.constexpr,
):  # fmt: skip
    """The first two layers of g_ep, of psi's rows x and of phi, unless None: int8 [positions, H]."""
    features = tl.arange(0, F)
    hidden = tl.arange(0, H)
    total = tl.zeros((BLOCK, H), tl.int32)
    for begin in range(0, H, PIECE):
        piece = begin + tl.arange(0, PIECE)
        part = tl.dot(x, transposed_weights(first_weight, piece, features, F + C), out_dtype=tl.int32)
        if phi is not None:
            behind = F + tl.arange(0, C)
            part = tl.dot(phi, transposed_weights(first_weight, piece, behind, F + C), part, out_dtype=tl.int32)
        part = requantise(part, first_bias, first_shift, piece, LIMITS[2], LIMITS[3]).to(tl.int8)
        total = tl.dot(part, transposed_weights(second_weight, hidden, piece, H), total, out_dtype=tl.int32)
    return requantise(total, second_bias, second_shift, hidden, LIMITS[4], LIMITS[5]).to(tl.int8)


@triton.jit
def _store_outputs(
    x, row, p, valid, quality, means_weight, means_bias, means_shift, indexes_weight, indexes_bias, indexes_shift,
    means, indexes, y, weight, lengths, symbols, values, error,
    LIMITS: tl.constexpr, M: tl.constexpr, H: tl.constexpr, K: tl.constexpr,
    WEIGHT_STRIDE: tl.constexpr, VALUE_STRIDE: tl.constexpr, PIECE: tl.constexpr,
):  # fmt: skip
    """The last layers of g_ep, of x [positions, H], and what becomes of them in the rows from `row` of the outputs."""
    hidden = tl.arange(0, H)
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
            symbol = choose(mean, index, aim, worth, lengths, error, valid[:, None], K)
            tl.store(symbols + base + place, symbol.to(tl.int16), mask=valid[:, None])
            place = p[:, None] * VALUE_STRIDE + piece[None, :]
            tl.store(values + row * VALUE_STRIDE + place, reconstructed(symbol, mean), mask=valid[:, None])


@triton.jit
def _parameters(
    psi, anchors, before, tiles,
    context_weight, context_bias, context_shift,
    first_weight, first_bias, first_shift,
    second_weight, second_bias, second_shift,
    means_weight, means_bias, means_shift,
    indexes_weight, indexes_bias, indexes_shift,
    input_shift,
    means, indexes, y, weight, lengths, symbols, values, error,
    LIMITS: tl.constexpr, M: tl.constexpr, B: tl.constexpr, F: tl.constexpr, C: tl.constexpr, H: tl.constexpr,
    K: tl.constexpr, TAPS: tl.constexpr, BIAS_STRIDE: tl.constexpr, WEIGHT_STRIDE: tl.constexpr,
    ANCHOR_STRIDE: tl.constexpr, BEFORE_STRIDE: tl.constexpr, VALUE_STRIDE: tl.constexpr,
    BLOCK: tl.constexpr, CHUNK: tl.constexpr, CHUNK_BEFORE: tl.constexpr, CHUNKS_AHEAD: tl.constexpr,
    PIECE: tl.constexpr,
):  # fmt: skip
    """Program (i, t): the i-th BLOCK positions of tile t, of its anchors, or, given anchors, of its non-anchors.

    With lengths (K magnitudes), it chooses symbols, else it writes means. Layers are those of `ParameterNetwork`, the
    context's being g_cm given anchors and g_ch without (TAPS is 0 then); input_shift is the network's context_shift.
    """
    tile = tiles + tl.program_id(1) * COLUMNS
    height = tl.load(tile + HEIGHT)
    width = tl.load(tile + WIDTH)
    anchor_count = (height * width + 1) // 2
    count = anchor_count
    row = tl.load(tile + ANCHORS).to(tl.int64)  # where the positions are in flat tensors
    if anchors is not None:
        count = height * width - anchor_count
        row = tl.load(tile + NON_ANCHORS).to(tl.int64)
    block = tl.program_id(0)
    if block * BLOCK >= count:
        return
    p = block * BLOCK + tl.arange(0, BLOCK)
    valid = p < count

    phi = None
    if context_weight is not None:
        phi = _context_sums(
            anchors, before, tile, row, p, valid, height, width, input_shift, context_weight,
            M, B, C, TAPS, ANCHOR_STRIDE, BEFORE_STRIDE, BLOCK, CHUNK, CHUNK_BEFORE, CHUNKS_AHEAD,
        )  # fmt: skip
        phi = requantise(phi, context_bias, context_shift, tl.arange(0, C), LIMITS[0], LIMITS[1]).to(tl.int8)
    row_of_psi = tl.load(tile + PSI).to(tl.int64)
    if anchors is not None:
        row_of_psi += anchor_count
    x = psi + row_of_psi * F + p[:, None] * F + tl.arange(0, F)[None, :]
    x = tl.load(x, mask=valid[:, None], other=0)
    quality = tl.load(tile + QUALITY)
    x = _hidden(
        x, phi, first_weight, first_bias + quality * BIAS_STRIDE, first_shift, second_weight, second_bias, second_shift,
        LIMITS, F, C, H, BLOCK, PIECE,
    )  # fmt: skip
    _store_outputs(
        x, row, p, valid, quality, means_weight, means_bias, means_shift, indexes_weight, indexes_bias, indexes_shift,
        means, indexes, y, weight, lengths, symbols, values, error,
        LIMITS, M, H, K, WEIGHT_STRIDE, VALUE_STRIDE, PIECE,
    )  # fmt: skip


# ---- launches


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
    def options(self) -> dict[str, Any]:
        """Of the compiler. A multiplication fused into an addition would round differently from PyTorch's two."""
        return {"maxnreg": self.registers, "enable_fp_fusion": False}


def _shape(positions: int, encoding: bool) -> _Shape:
    """The sums of 64 positions take most registers. Choosing symbols needs many too, so it has half as many."""
    if positions <= FEW_POSITIONS:
        return _Shape(block=16, chunk=128, registers=160)
    return _Shape(block=32 if encoding else 64, chunk=64, registers=255)


class _Data(NamedTuple):
    """What the kernel reads and writes beside psi, context and network, in its order; None what it does without."""

    means: Tensor | None
    indexes: Tensor
    y: Tensor | None = None
    weight: Tensor | None = None
    lengths: Tensor | None = None
    symbols: Tensor | None = None
    values: Tensor | None = None
    error: Tensor | None = None


def _arguments(
    psi: Tensor, context: Context, tiles: TileTable, network: ParameterNetwork, data: _Data
) -> tuple[list[Tensor | None], dict[str, Any], _Shape]:
    """The kernel's tensors, its constants, and how the launch divides its work."""
    shape = _shape(data.indexes.shape[0], encoding=data.lengths is not None)
    layer = network.channels if context.anchors is None else network.context
    layers = [layer or network.context, network.first, network.second, network.means, network.indexes]
    weights: list[Tensor | None] = [*flatten(layers)[0], network.context_shift]
    if layer is None:
        weights[:3], weights[-1] = [None] * 3, None
    latents, before, hidden = network.latents, network.before, network.first.outputs
    constants = {
        "LIMITS": tuple(flatten(layers)[1]),
        "M": latents,
        "B": before,
        "F": network.features,
        "C": network.context.outputs,
        "H": hidden,
        "K": 0 if data.lengths is None else data.lengths.shape[1],
        "TAPS": 0 if context.anchors is None else TAPS,
        "BIAS_STRIDE": network.first.bias_stride,
        "WEIGHT_STRIDE": latents if data.weight is not None and data.weight.shape[0] > 1 else 0,
        "ANCHOR_STRIDE": 0 if context.anchors is None else context.anchors.stride(0),
        "BEFORE_STRIDE": 0 if context.before is None else context.before.stride(0),
        "VALUE_STRIDE": 0 if data.values is None else data.values.stride(0),
        "BLOCK": shape.block,
        "CHUNK": min(shape.chunk, _power_of_two_in(latents)),
        "CHUNK_BEFORE": min(64, _in_rounds(before)),  # with 128 at a time, registers do not suffice
        "CHUNKS_AHEAD": shape.chunks_ahead,
        "PIECE": min(shape.piece, _in_rounds(latents), hidden),
    }
    return [psi, *context, tiles.rows, *weights, *data], constants, shape


def _in_rounds(number: int) -> int:
    """How much of `number` to take in a round of a loop, so that there are two and more: the body of a single round is
    mixed with what lies around it, and registers do not suffice. No less than 32, the least that int8 products take.
    """
    return max(32, _power_of_two_in(number) // 2) if number else 0


def _power_of_two_in(number: int) -> int:
    """The largest power of two that divides it; 0 for 0."""
    return number & -number


def _launch(psi: Tensor, context: Context, tiles: TileTable, network: ParameterNetwork, data: _Data) -> None:
    arguments, constants, shape = _arguments(psi, context, tiles, network, data)
    most = tiles.longest // 2 if context.anchors is not None else (tiles.longest + 1) // 2
    if data.indexes.shape[0] and most:
        grid = triton.cdiv(most, shape.block), tiles.rows.shape[0]
        _parameters[grid](*arguments, **constants, num_warps=shape.warps, num_stages=2, **shape.options)


def _decode_parameters(
    psi: Tensor, anchors: Tensor | None, before: Tensor | None, tiles: Tensor, longest: int,
    tensors: list[Tensor], limits: list[int], means: Tensor, indexes: Tensor,
) -> None:  # fmt: skip
    inputs = psi, Context(anchors, before), TileTable(tiles, longest), ParameterNetwork.unflatten(tensors, limits)
    if on_gpu(psi):
        _launch(*inputs, _Data(means, indexes))
    else:
        decode_parameters_reference(*inputs, means, indexes)


def _encode_parameters(
    psi: Tensor, anchors: Tensor | None, before: Tensor | None, tiles: Tensor, longest: int,
    tensors: list[Tensor], limits: list[int], y: Tensor, weight: Tensor, lengths: Tensor,
    symbols: Tensor, indexes: Tensor, values: Tensor, error: Tensor,
) -> None:  # fmt: skip
    inputs = psi, Context(anchors, before), TileTable(tiles, longest), ParameterNetwork.unflatten(tensors, limits)
    if on_gpu(psi):
        _launch(*inputs, _Data(None, indexes, y, weight, lengths, symbols, values, error))
    else:
        choice, out = SymbolChoice(y, weight, lengths), CodedSymbols(symbols, indexes, values, error)
        encode_parameters_reference(*inputs, choice, out)


_INPUTS = "Tensor psi, Tensor? anchors, Tensor? before, Tensor tiles, SymInt longest, Tensor[] network, int[] limits"
operator(f"decode_parameters({_INPUTS}, Tensor(a!) means, Tensor(b!) indexes) -> ()", _decode_parameters)
operator(
    f"encode_parameters({_INPUTS}, Tensor y, Tensor weight, Tensor lengths, Tensor(a!) symbols, Tensor(b!) indexes, "
    "Tensor(c!) values, Tensor(d!) error) -> ()",
    _encode_parameters,
)


#: The groups of the shipped models, each one once: (latents, latents before them), in 256 channels.
SHIPPED_GROUPS = ((64, 0), (64, 64), (128, 128))


def builds(groups: Sequence[tuple[int, int]] = SHIPPED_GROUPS) -> list[Build]:
    """A model's launches, for few positions and for many: 256 channels, 100 qualities, 64 scales up to 64.

    groups: (latents, latents before them) of each.
    """
    return [
        _build(latents, before, second, encoding, positions)
        for latents, before in groups
        for second in (False, True)
        for encoding in (False, True)
        for positions in (1, FEW_POSITIONS + 1)
    ]


def _build(latents: int, before: int, second: bool, encoding: bool, positions: int) -> Build:
    def tensor(dtype: torch.dtype, *shape: int) -> Tensor:
        return torch.empty(shape, dtype=dtype, device="meta")

    def layer(outputs: int, inputs: int, low: int, high: int, rows: int = 1) -> PackedLayer:
        bias, shift = tensor(torch.int32, rows, outputs), tensor(torch.int32, outputs)
        return PackedLayer(tensor(torch.int8, outputs, inputs), bias, shift, low, high)

    network = ParameterNetwork(
        context=layer(256, TAPS * latents + before, -127, 127),
        first=layer(256, 512, 0, 127, rows=100),
        second=layer(256, 256, 0, 127),
        means=layer(latents, 256, -(2**15), 2**15 - 1),
        indexes=layer(latents, 256, 0, 63),
        channels=layer(256, before, -127, 127) if before else None,
        context_shift=tensor(torch.int32, before + latents),
    )
    values = tensor(torch.int32, positions, 256)  # of all groups
    context = Context(values[:, :latents] if second else None, values[:, :before] if before else None)
    tiles, indexes = TileTable(tensor(torch.int32, 1, 8), 2 * positions), tensor(torch.uint8, positions, latents)
    data = _Data(tensor(torch.int16, positions, latents), indexes)
    if encoding:
        y, weight, lengths = (tensor(torch.float32, *shape) for shape in (indexes.shape, (1, latents), (64, 448)))
        data = _Data(None, indexes, y, weight, lengths, data.means, values[:, :latents], tensor(torch.int32, 1))
    arguments, constants, shape = _arguments(tensor(torch.int8, 2 * positions, 256), context, tiles, network, data)
    given = dict(zip(_parameters.arg_names, arguments, strict=False))
    half, size = "non-anchors" if second else "anchors", "few" if positions <= FEW_POSITIONS else "many"
    after = f" after {before}" if before else ""
    return Build(
        name=f"{'encode' if encoding else 'decode'}_parameters, {half}, {latents} latents{after}, {size}",
        kernel=_parameters,
        signature={name: POINTERS[value.dtype] for name, value in given.items() if value is not None},
        constants=constants | {name: None for name, value in given.items() if value is None},
        warps=shape.warps,
        options={"num_stages": 2, **shape.options},
    )
