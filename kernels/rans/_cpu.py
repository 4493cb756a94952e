"""The CPU coder's C library through ctypes: raw pointers in, raw pointers out. Only this module knows that interface.

ctypes lets go of Python's lock during a call, so several Python threads may code at once.
"""

import ctypes
import os
import sysconfig
from collections.abc import Callable, Sequence
from ctypes import POINTER, byref, c_char_p, c_int, c_int32, c_size_t, c_uint32, c_uint64, c_void_p
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from ._status import check_error, check_status
from .passes import MixturePass, Pass

if TYPE_CHECKING:
    from .tables import TableSet

LIBRARY = Path(__file__).parent / f"_rans_cpu.{sysconfig.get_platform()}.so"
ISAS = ("scalar", "avx2", "avx512")  # in the order of cpu/library.h's enum Isa
PRESETS = ("size", "latency")  # in the order of rans.h's enum Preset


class _Pass(ctypes.Structure):  # of cpu/encoder.cpp
    _fields_ = [
        ("symbols", c_void_p),
        ("positions", c_uint64),
        ("channels", c_uint64),
        ("symbol_bytes", c_uint32),
        ("components", c_uint32),
        *[(name, c_void_p) for name in ("indexes", "tables", "weights", "means", "scales")],
    ]


@cache
def library() -> ctypes.CDLL:
    """The shared library, loaded once."""
    if not LIBRARY.exists():
        raise ImportError(f"the coder's library {LIBRARY.name} is not built: run `python kernels/build.py`")
    lib = ctypes.CDLL(str(LIBRARY))
    signatures = {
        "constants": (None, [POINTER(c_uint32)]),
        "mixture_constants": (None, [POINTER(c_uint32)]),
        "mixture_frequencies": (
            None,
            [c_void_p, c_void_p, c_void_p, c_uint32, POINTER(c_int32), POINTER(c_uint32), c_void_p, c_uint32],
        ),
        "isas": (c_uint32, []),
        "error_text": (c_char_p, [c_uint32]),
        "tables_new": (c_int, [c_uint32, c_int, c_void_p, c_void_p, c_void_p, c_size_t, POINTER(c_void_p)]),
        "tables_free": (None, [c_void_p]),
        "cost": (c_int, [POINTER(_Pass), c_int, POINTER(c_uint64)]),
        "encode": (
            c_int,
            [c_uint32, c_void_p, c_void_p, c_uint32, c_uint32, c_uint32, c_uint32, c_int, c_void_p, POINTER(c_void_p)],
        ),
        "encoded_payload": (c_void_p, [c_void_p, c_uint32, POINTER(c_size_t)]),
        "encoded_free": (None, [c_void_p]),
        "decoder_new": (
            c_int,
            [c_uint32, c_void_p, c_void_p, c_int, POINTER(c_uint32), POINTER(c_uint32), POINTER(c_void_p)],
        ),
        "decoder_free": (None, [c_void_p]),
        "decoder_shape": (None, [c_void_p, c_uint32, POINTER(c_uint32), POINTER(c_uint32)]),
        "decoder_decode": (
            c_int,
            [c_void_p] * 6 + [c_uint32, POINTER(c_uint32), POINTER(c_uint32)],
        ),
        "decoder_decode_mixtures": (
            c_int,
            [c_void_p] * 8 + [c_uint32, POINTER(c_uint32), POINTER(c_uint32)],
        ),
        "decoder_finish": (c_int, [c_void_p, POINTER(c_uint32), POINTER(c_uint32)]),
    }
    for name, (result, arguments) in signatures.items():
        function = getattr(lib, f"fastcodec_rans_{name}")
        function.restype = result
        function.argtypes = arguments
    return lib


@cache
def constants() -> dict[str, int]:
    """The format's constants, read from the library (they stand in rans.h)."""
    values = (c_uint32 * 6)()
    library().fastcodec_rans_constants(values)
    names = ("probability_bits", "state_low", "max_lanes", "max_streams", "max_tables", "escape_bits")
    return dict(zip(names, values, strict=True))


@cache
def mixture_constants() -> dict[str, int]:
    """Those of mixtures (they stand in mixture.h)."""
    values = (c_uint32 * 5)()
    library().fastcodec_rans_mixture_constants(values)
    names = ("max_components", "weight_bits", "mean_bits", "scale_steps", "scale_origin")
    return dict(zip(names, values, strict=True))


def mixture_frequencies(weights: np.ndarray, means: np.ndarray, scales: np.ndarray) -> tuple[int, np.ndarray]:
    """See `mixture.frequencies`; arguments are checked already: uint16, int16 and uint8 [K]."""
    out = np.empty(1 << constants()["probability_bits"], np.uint16)
    first, entries = c_int32(), c_uint32()
    library().fastcodec_rans_mixture_frequencies(
        weights.ctypes.data,
        means.ctypes.data,
        scales.ctypes.data,
        len(weights),
        byref(first),
        byref(entries),
        out.ctypes.data,
        out.size,
    )
    return first.value, out[: entries.value].copy()


@cache
def available_isas() -> tuple[str, ...]:
    """The instruction sets that this machine runs, slowest first."""
    mask = library().fastcodec_rans_isas()
    return tuple(name for i, name in enumerate(ISAS) if mask >> i & 1)


def isa_number(isa: str | None) -> int:
    """The library's number for an instruction set; None: $FASTCODEC_ISA, else the best one here."""
    isa = isa or os.environ.get("FASTCODEC_ISA") or available_isas()[-1]
    if isa not in available_isas():
        raise ValueError(f"instruction set {isa!r} is not available here; there are: {', '.join(available_isas())}")
    return ISAS.index(isa)


def thread_count(threads: int | None) -> int:
    """How many threads may run: the argument, else PyTorch's setting."""
    count = torch.get_num_threads() if threads is None else threads
    if count < 1:
        raise ValueError(f"threads must be at least 1, not {count}")
    return count


def error_text(error: int) -> str:
    """What rans.h's Error means, in a few words."""
    return library().fastcodec_rans_error_text(error).decode()


class TablesHandle:
    """A table set as the library holds it."""

    def __init__(self, skip: bool, firsts: np.ndarray, sizes: np.ndarray, frequencies: np.ndarray) -> None:
        self.handle = c_void_p()
        self._free = library().fastcodec_rans_tables_free
        status = library().fastcodec_rans_tables_new(
            len(sizes),
            skip,
            firsts.ctypes.data,
            sizes.ctypes.data,
            frequencies.ctypes.data,
            len(frequencies),
            byref(self.handle),
        )
        check_status(status)

    def __del__(self) -> None:
        if self.handle:
            self._free(self.handle)


def _passes(passes: Sequence[Pass | MixturePass]) -> ctypes.Array:
    array = (_Pass * len(passes))()
    for target, item in zip(array, passes, strict=True):
        target.symbols = item.symbols.data_ptr()
        target.positions, target.channels = item.symbols.shape
        target.symbol_bytes = item.symbols.element_size()
        if isinstance(item, MixturePass):
            target.components = item.weights.shape[0]
            target.weights, target.means, target.scales = (tensor.data_ptr() for tensor in item[1:])
        else:
            target.indexes, target.tables = item.indexes.data_ptr(), item.tables._cpu_handle.handle
    return array


def cost(item: Pass | MixturePass) -> int:
    """The cost of one pass in 1/256 bit."""
    result = c_uint64()
    status = library().fastcodec_rans_cost(_passes([item]), isa_number(None), byref(result))
    check_status(status)
    return result.value


def encode(
    tiles: Sequence[Sequence[Pass | MixturePass]],
    preset: str,
    lanes: int,
    streams: int,
    threads: int | None,
    isa: str | None,
) -> list[bytes]:
    """The payload of each tile. The passes are checked already; lanes and streams of 0 leave them to the preset."""
    lib = library()
    begins = [0]
    for tile in tiles:
        begins.append(begins[-1] + len(tile))
    where = (c_uint32 * 2)()
    encoded = c_void_p()
    status = lib.fastcodec_rans_encode(
        len(tiles),
        (c_uint32 * len(begins))(*begins),
        _passes([item for tile in tiles for item in tile]),
        PRESETS.index(preset),
        lanes,
        streams,
        thread_count(threads),
        isa_number(isa),
        where,
        byref(encoded),
    )
    check_status(status, f"tile {where[0]}, pass {where[1]}: ")
    try:
        size = c_size_t()
        payloads = []
        for tile in range(len(tiles)):
            data = lib.fastcodec_rans_encoded_payload(encoded, tile, byref(size))
            payloads.append(ctypes.string_at(data, size.value))
        return payloads
    finally:
        lib.fastcodec_rans_encoded_free(encoded)


def _addresses(tensors: Sequence[Tensor]) -> ctypes.Array:
    return (c_void_p * len(tensors))(*[tensor.data_ptr() for tensor in tensors])


class Decoder:
    """A batch of tiles. See `fastcodec.kernels.rans.Decoder`; arguments are checked already."""

    def __init__(self, payloads: Sequence[bytes | memoryview], threads: int | None, isa: str | None) -> None:
        self._handle = c_void_p()
        self._lib = library()
        self._threads = thread_count(threads)
        self._state = torch.zeros(1, dtype=torch.uint8, device="cpu")  # whatever the default device
        views = [np.frombuffer(payload, dtype=np.uint8) for payload in payloads]
        error, tile = c_uint32(), c_uint32()
        status = self._lib.fastcodec_rans_decoder_new(
            len(views),
            (c_void_p * len(views))(*[view.ctypes.data for view in views]),
            (c_size_t * len(views))(*[view.size for view in views]),
            isa_number(isa),
            byref(error),
            byref(tile),
            byref(self._handle),
        )
        check_status(status)
        self._raise(error, tile)

    def __del__(self) -> None:
        if self._handle:
            self._lib.fastcodec_rans_decoder_free(self._handle)

    def _raise(self, error: c_uint32, tile: c_uint32) -> None:
        check_error(error.value, tile.value, error_text(error.value))

    def shape(self, tile: int) -> tuple[int, int]:
        lanes, streams = c_uint32(), c_uint32()
        self._lib.fastcodec_rans_decoder_shape(self._handle, tile, byref(lanes), byref(streams))
        return lanes.value, streams.value

    @property
    def state(self) -> Tensor:
        """Stands for the coder states, which the library holds: operators name it as what they change."""
        return self._state

    def decode(self, indexes: Sequence[Tensor], tables: "TableSet", symbols: Sequence[Tensor]) -> None:
        self._decode(self._lib.fastcodec_rans_decoder_decode, [tables._cpu_handle.handle, _addresses(indexes)], symbols)

    def decode_mixtures(
        self,
        weights: Sequence[Tensor],
        means: Sequence[Tensor],
        scales: Sequence[Tensor],
        symbols: Sequence[Tensor],
    ) -> None:
        components = (c_uint32 * len(weights))(*[tensor.shape[0] for tensor in weights])
        parameters = [components, *map(_addresses, (weights, means, scales))]
        self._decode(self._lib.fastcodec_rans_decoder_decode_mixtures, parameters, symbols)

    def _decode(self, function: Callable[..., int], parameters: list[Any], symbols: Sequence[Tensor]) -> None:
        """Calls one of the library's functions that decode a pass, all of which end alike."""
        count = len(symbols)
        error, tile = c_uint32(), c_uint32()
        status = function(
            self._handle,
            *parameters,
            (c_uint64 * count)(*[tensor.shape[0] for tensor in symbols]),
            (c_uint64 * count)(*[tensor.shape[1] for tensor in symbols]),
            _addresses(symbols),
            self._threads,
            byref(error),
            byref(tile),
        )
        check_status(status, f"tile {tile.value}: ")
        self._raise(error, tile)

    def reconstruct(
        self,
        indexes: Sequence[Tensor],
        tables: "TableSet",
        means: Sequence[Tensor],
        mean_bits: int,
        gain: Tensor | None,
        values: Sequence[Tensor],
        latents: Sequence[Tensor],
        anchors: bool,
    ) -> None:
        symbols = [torch.empty_like(index, dtype=torch.int16) for index in indexes]
        self.decode(indexes, tables, symbols)
        for i, value in enumerate(values):
            torch.add(symbols[i].to(torch.int32) << mean_bits, means[i], out=value)
            if latents:
                places = (torch.arange(side, dtype=torch.int64, device=value.device) for side in latents[i].shape[:2])
                rows, columns = torch.meshgrid(*places, indexing="ij")
                here = (rows + columns) % 2 == (0 if anchors else 1)
                latents[i][here] = (value.float() * gain).to(latents[i].dtype)

    def finish(self) -> None:
        error, tile = c_uint32(), c_uint32()
        check_status(self._lib.fastcodec_rans_decoder_finish(self._handle, byref(error), byref(tile)))
        self._raise(error, tile)
