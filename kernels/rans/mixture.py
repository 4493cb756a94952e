"""Mixture coding: symbols whose distributions are Gaussian mixtures, evaluated at coding time in integers.

The rule, its bounds and its proofs stand in mixture.h. A mixture pass has parameters for every element where an
indexed pass has the number of a table; both kinds may follow each other in a tile, on one set of states and with one
end check:

    weights, means, scales = quantise_mixtures(...)  # of what a network gave, for encoder and decoder alike
    payloads = encode([[Pass(hyper, indexes, tables), MixturePass(latents, weights, means, scales)]])
    decoder = MixtureDecoder(payloads)
    [hyper] = decoder.decode([indexes], tables)
    [latents] = decoder.decode_mixtures([weights], [means], [scales])
    decoder.finish()

It runs on the CPU.
"""

import ctypes
from collections.abc import Sequence
from ctypes import POINTER, byref, c_int, c_int32, c_uint32, c_uint64, c_void_p
from functools import cache
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from ..errors import UnavailableError
from . import Decoder, Pass, _cpu
from . import encode as _encode_indexed
from .passes import check_pass

__all__ = ["MixtureDecoder", "MixturePass", "cost_bits", "encode", "frequencies", "quantise_mixtures"]

# The format's constants; mixture.h is their home, and a test compares.
MAX_COMPONENTS = 4
WEIGHT_BITS = 12
MEAN_BITS = 6
SCALE_STEPS = 24
SCALE_ORIGIN = 80

_WEIGHTS = 7  # cpu_mixture.cpp's own Status


class MixturePass(NamedTuple):
    """What is coded together by mixtures of K components, 1 to 4; all tensors contiguous and on the CPU."""

    symbols: Tensor  # int16 or int32 [P, C]; values must fit int16
    weights: Tensor  # int16 [K, P, C], in units of 2^-12, at least 0; the K of an element sum to 4096
    means: Tensor  # int16 [K, P, C], with 6 fraction bits
    scales: Tensor  # uint8 [K, P, C]; sigma = 2^((scale - 80) / 24)


def quantise_mixtures(weights: Tensor, means: Tensor, sigmas: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """A mixture's integers from a network's outputs: weights, means and scales of a MixturePass.

    Encoder and decoder must get the same integers, so they must call this with equal tensors.

    Weights are rounded so that their sums up to each component are nearest; one below about 2^-13 becomes 0, and its
    component is left out. Means are rounded to 1/64 and clamped to -512 .. 511.98: where latents are larger, subtract
    the same integer from an element's means and symbol. Standard deviations are rounded to 24 steps an octave, 0.0992
    to 156.7.

    Args:
        weights: float [K, ...], at least 0, not all 0; need not be normalised over K.
        means: float [K, ...], in units of symbols.
        sigmas: float [K, ...], above 0, likewise. All are finite.
    """
    shares = weights.double().cumsum(0)
    edges = (shares / shares[-1:] * (1 << WEIGHT_BITS)).round()
    counts = torch.diff(edges, dim=0, prepend=torch.zeros_like(edges[:1]))
    limits = torch.iinfo(torch.int16)
    fixed = (means.double() * (1 << MEAN_BITS)).round().clamp(limits.min, limits.max)
    steps = (sigmas.double().log2() * SCALE_STEPS + SCALE_ORIGIN).round().clamp(0, 255)
    return counts.to(torch.int16), fixed.to(torch.int16), steps.to(torch.uint8)


def _check_parameters(weights: Tensor, means: Tensor, scales: Tensor, what: str) -> None:
    """Raises ValueError, naming `what`, unless the tensors can be a pass's parameters. Values are not looked at."""
    for name, tensor, dtype in (
        ("weights", weights, torch.int16),
        ("means", means, torch.int16),
        ("scales", scales, torch.uint8),
    ):
        if tensor.dtype != dtype or tensor.dim() != 3 or tensor.shape != weights.shape or not tensor.is_contiguous():
            raise ValueError(
                f"{what}: {name} must be contiguous, {dtype}, [components, positions, channels], not {tensor.dtype} "
                f"{list(tensor.shape)}{'' if tensor.is_contiguous() else ', not contiguous'}"
            )
        if tensor.device.type != "cpu":
            raise UnavailableError(f"{what}: mixtures are coded on the CPU, {name} are on {tensor.device}")
    if not 1 <= weights.shape[0] <= MAX_COMPONENTS:
        raise ValueError(f"{what}: a mixture has 1 to {MAX_COMPONENTS} components, not {weights.shape[0]}")


def _check_pass(item: Pass | MixturePass, what: str) -> None:
    if not isinstance(item, MixturePass):
        check_pass(item, what)
        if item.indexes.device.type != "cpu":
            raise UnavailableError(f"{what}: tiles with mixtures are coded on the CPU, not on {item.indexes.device}")
        return
    symbols, weights, means, scales = item
    _check_parameters(weights, means, scales, what)
    if symbols.dtype not in (torch.int16, torch.int32) or symbols.shape != weights.shape[1:]:
        raise ValueError(
            f"{what}: symbols must be int16 or int32 and of the parameters' shape {list(weights.shape[1:])}, not "
            f"{symbols.dtype} {list(symbols.shape)}"
        )
    if not symbols.is_contiguous() or symbols.device.type != "cpu":
        raise ValueError(f"{what}: symbols must be contiguous and on the CPU")


# ----------------------------------------------------------------------------------------------------------------------
# The C interface (cpu_mixture.cpp)


class _AnyPass(ctypes.Structure):
    _fields_ = [
        ("indexed", _cpu._Pass),
        ("weights", c_void_p),
        ("means", c_void_p),
        ("scales", c_void_p),
        ("components", c_uint64),
    ]


@cache
def _library() -> ctypes.CDLL:
    lib = _cpu.library()
    signatures = {
        "mixture_constants": (None, [POINTER(c_uint32)]),
        "mixture_cost": (c_int, [POINTER(_AnyPass), c_int, POINTER(c_uint64)]),
        "mixture_frequencies": (
            None,
            [c_void_p, c_void_p, c_void_p, c_uint32, POINTER(c_int32), POINTER(c_uint32), c_void_p, c_uint32],
        ),
        "mixture_encode": (
            c_int,
            [c_uint32, c_void_p, c_void_p, c_uint32, c_uint32, c_uint32, c_uint32, c_int, c_void_p, POINTER(c_void_p)],
        ),
        "decoder_decode_mixtures": (
            c_int,
            [c_void_p, c_uint32] + [c_void_p] * 6 + [c_uint32, POINTER(c_uint32), POINTER(c_uint32)],
        ),
    }
    for name, (result, arguments) in signatures.items():
        function = getattr(lib, f"fastcodec_rans_{name}")
        function.restype = result
        function.argtypes = arguments
    return lib


@cache
def constants() -> tuple[int, ...]:
    """The constants above, read from the library (they stand in mixture.h)."""
    values = (c_uint32 * 5)()
    _library().fastcodec_rans_mixture_constants(values)
    return tuple(values)


def _check(status: int, where: str) -> None:
    if status == _WEIGHTS:
        raise ValueError(f"{where}the weights of an element do not sum to {1 << WEIGHT_BITS}")
    _cpu._check(status, where)


def _passes(passes: Sequence[Pass | MixturePass]) -> ctypes.Array:
    array = (_AnyPass * len(passes))()
    for target, item in zip(array, passes, strict=True):
        target.indexed.symbols = item.symbols.data_ptr()
        target.indexed.positions, target.indexed.channels = item.symbols.shape
        target.indexed.symbol_bytes = item.symbols.element_size()
        if isinstance(item, MixturePass):
            target.weights = item.weights.data_ptr()
            target.means = item.means.data_ptr()
            target.scales = item.scales.data_ptr()
            target.components = item.weights.shape[0]
        else:
            target.indexed.indexes = item.indexes.data_ptr()
            target.indexed.tables = item.tables._cpu_handle.handle
    return array


def cost_bits(item: MixturePass) -> float:
    """The cost of a mixture pass in bits, escapes included: in 1/256 bit, as for `rans.cost_bits`.

    Raises:
        ValueError, SymbolRangeError, UnavailableError: as `encode`.
    """
    _check_pass(item, "pass")
    result = c_uint64()
    _check(_library().fastcodec_rans_mixture_cost(_passes([item]), _cpu.isa_number(None), byref(result)), "")
    return result.value / 256


def frequencies(weights: Sequence[int], means: Sequence[int], scales: Sequence[int]) -> tuple[int, np.ndarray]:
    """One element's distribution: its first symbol, and uint16 [n + 1] frequencies, the escape sentinel's last.

    They sum to 2^14. The parameters are K integers each, as in a MixturePass.

    Raises:
        ValueError: the numbers are out of range, or the weights do not sum to 4096.
    """
    lengths = {len(weights), len(means), len(scales)}
    if len(lengths) != 1 or not 1 <= len(weights) <= MAX_COMPONENTS:
        raise ValueError(f"a mixture has 1 to {MAX_COMPONENTS} components, with a weight, a mean and a scale each")
    if min(weights) < 0 or sum(weights) != 1 << WEIGHT_BITS:
        raise ValueError(f"the weights must be at least 0 and sum to {1 << WEIGHT_BITS}: {list(weights)}")
    if min(means) < -32768 or max(means) > 32767 or min(scales) < 0 or max(scales) > 255:
        raise ValueError("means must fit int16 and scales uint8")
    w, m, s = np.array(weights, np.uint16), np.array(means, np.int16), np.array(scales, np.uint8)
    out = np.empty(1 << 14, np.uint16)
    first, entries = c_int32(), c_uint32()
    _library().fastcodec_rans_mixture_frequencies(
        w.ctypes.data, m.ctypes.data, s.ctypes.data, len(w), byref(first), byref(entries), out.ctypes.data, out.size
    )
    return first.value, out[: entries.value].copy()


def encode(
    tiles: Sequence[Sequence[Pass | MixturePass]],
    *,
    preset: str = "size",
    lanes: int | None = None,
    streams: int | None = None,
    threads: int | None = None,
    isa: str | None = None,
) -> list[bytes]:
    """Encodes tiles, each a sequence of indexed and mixture passes, to one payload each.

    As `rans.encode`, whose bytes tiles without mixtures have.

    Raises:
        ValueError: a tensor's dtype, shape or layout, an index that names no table, weights that do not sum to 4096, or
            an option out of range.
        SymbolRangeError: a symbol outside int16, or not 0 where nothing is coded.
        UnavailableError: tensors that are not on the CPU.
    """
    _encode_indexed([], preset=preset, lanes=lanes, streams=streams)  # checks these options, and encodes nothing
    for t, tile in enumerate(tiles):
        for p, item in enumerate(tile):
            _check_pass(item, f"tile {t}, pass {p}")
    lib = _library()
    begins = [0]
    for tile in tiles:
        begins.append(begins[-1] + len(tile))
    where = (c_uint32 * 2)()
    encoded = c_void_p()
    status = lib.fastcodec_rans_mixture_encode(
        len(tiles),
        (c_uint32 * len(begins))(*begins),
        _passes([item for tile in tiles for item in tile]),
        _cpu.PRESETS.index(preset),
        lanes or 0,
        streams or 0,
        _cpu.thread_count(threads),
        _cpu.isa_number(isa),
        where,
        byref(encoded),
    )
    _check(status, f"tile {where[0]}, pass {where[1]}: ")
    try:
        size = ctypes.c_size_t()
        payloads = []
        for tile in range(len(tiles)):
            data = lib.fastcodec_rans_encoded_payload(encoded, tile, byref(size))
            payloads.append(ctypes.string_at(data, size.value))
        return payloads
    finally:
        lib.fastcodec_rans_encoded_free(encoded)


class MixtureDecoder(Decoder):
    """A decoder of tiles whose passes may be mixtures: `decode` for indexed passes, `decode_mixtures` for the others.

    Arguments as `rans.Decoder`, without a device: it is the CPU.
    """

    def __init__(
        self, payloads: Sequence[bytes | memoryview], *, threads: int | None = None, isa: str | None = None
    ) -> None:
        super().__init__(payloads, threads=threads, isa=isa)
        if not isinstance(self._impl, _cpu.Decoder):
            raise UnavailableError("mixtures are coded on the CPU: the simulated GPU has no kernel for them")

    def decode_mixtures(
        self,
        weights: Sequence[Tensor],
        means: Sequence[Tensor],
        scales: Sequence[Tensor],
        *,
        out: Sequence[Tensor] | None = None,
    ) -> list[Tensor]:
        """The symbols of the next pass of every tile, one of mixtures: int16 [P, C].

        Args:
            weights, means, scales: one for each tile, as in a MixturePass. P and C may differ, P may be 0; the number
                of components is that of all tiles.
            out: where to put the symbols, instead of into new tensors.

        Raises:
            CorruptStreamError: the bytes ended early; the message names the tile.
            ValueError: a tensor's dtype, shape or layout, or weights that do not sum to 4096; nothing is decoded then.
            UnavailableError: tensors that are not on the CPU.
        """
        count = self._tiles
        if {len(weights), len(means), len(scales)} != {count}:
            raise ValueError(f"weights, means and scales are needed for each of the {count} tiles")
        for t in range(count):
            _check_parameters(weights[t], means[t], scales[t], f"tile {t}")
        components = {tensor.shape[0] for tensor in weights}
        if len(components) > 1:
            raise ValueError(f"the tiles of a pass have one number of components, not {sorted(components)}")
        symbols = self._outputs([tensor[0] for tensor in scales], out, torch.int16)
        error, tile = c_uint32(), c_uint32()
        status = _library().fastcodec_rans_decoder_decode_mixtures(
            self._impl._handle,
            max(components, default=1),
            *((c_void_p * count)(*[tensor.data_ptr() for tensor in tensors]) for tensors in (weights, means, scales)),
            (c_uint64 * count)(*[tensor.shape[1] for tensor in scales]),
            (c_uint64 * count)(*[tensor.shape[2] for tensor in scales]),
            (c_void_p * count)(*[tensor.data_ptr() for tensor in symbols]),
            self._impl._threads,
            byref(error),
            byref(tile),
        )
        _check(status, f"tile {tile.value}: ")
        self._impl._raise(error, tile)
        return symbols
