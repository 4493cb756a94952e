"""The CPU coder on tensors: raw pointers to the C library."""

import ctypes
import itertools
from collections.abc import Callable, Sequence
from ctypes import byref, c_size_t, c_uint32, c_uint64, c_void_p
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ._cpu_abi import PRESETS, CpuPass, error_text, isa_number, library, thread_count
from ._status import check_error, check_status
from .passes import AnyPass, EncodeOptions, Mixture, MixturePass, Reconstruction
from .tables import TableSet, cpu_tables


def _passes(passes: Sequence[AnyPass]) -> ctypes.Array:
    array = (CpuPass * len(passes))()
    for target, item in zip(array, passes, strict=True):
        target.symbols = item.symbols.data_ptr()
        target.positions, target.channels = item.symbols.shape
        target.symbol_bytes = item.symbols.element_size()
        if isinstance(item, MixturePass):
            target.components = item.weights.shape[0]
            target.weights, target.means, target.scales = (tensor.data_ptr() for tensor in item[1:])
        else:
            target.indexes, target.tables = item.indexes.data_ptr(), cpu_tables(item.tables).handle
    return array


def cost(item: AnyPass) -> int:
    """The cost of one pass in 1/256 bit."""
    result = c_uint64()
    status = library().fastcodec_rans_cost(_passes([item]), isa_number(None), byref(result))
    check_status(status)
    return result.value


def encode(tiles: Sequence[Sequence[AnyPass]], options: EncodeOptions) -> list[bytes]:
    """The payload of each tile. The passes are checked already."""
    lib = library()
    begins = [0, *itertools.accumulate(map(len, tiles))]
    position = (c_uint32 * 2)()
    encoded = c_void_p()
    status = lib.fastcodec_rans_encode(
        len(tiles),
        (c_uint32 * len(begins))(*begins),
        _passes([item for tile in tiles for item in tile]),
        PRESETS.index(options.preset),
        options.lanes,
        options.streams,
        options.threads,
        isa_number(options.isa),
        position,
        byref(encoded),
    )
    check_status(status, f"tile {position[0]}, pass {position[1]}: ")
    try:
        size = c_size_t()
        payloads = []
        for number in range(len(tiles)):
            data = lib.fastcodec_rans_encoded_payload(encoded, number, byref(size))
            payloads.append(ctypes.string_at(data, size.value))
        return payloads
    finally:
        lib.fastcodec_rans_encoded_free(encoded)


def _addresses(tensors: Sequence[Tensor]) -> ctypes.Array:
    return (c_void_p * len(tensors))(*[tensor.data_ptr() for tensor in tensors])


class CpuDecoder:
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

    def decode(self, indexes: Sequence[Tensor], tables: TableSet, symbols: Sequence[Tensor]) -> None:
        self._decode(self._lib.fastcodec_rans_decoder_decode, [cpu_tables(tables).handle, _addresses(indexes)], symbols)

    def decode_mixtures(self, mixtures: Sequence[Mixture], symbols: Sequence[Tensor]) -> None:
        components = (c_uint32 * len(mixtures))(*[len(mixture.weights) for mixture in mixtures])
        parameters = [components, *(_addresses([mixture[part] for mixture in mixtures]) for part in range(3))]
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

    def reconstruct(self, indexes: Sequence[Tensor], tables: TableSet, wanted: Reconstruction) -> None:
        symbols = [torch.empty_like(index, dtype=torch.int16) for index in indexes]
        self.decode(indexes, tables, symbols)
        for symbol, mean, value in zip(symbols, wanted.means, wanted.values, strict=True):
            torch.add(symbol.to(torch.int32) << wanted.mean_bits, mean, out=value)
        if (gain := wanted.gain) is None:
            return
        for value, latents in zip(wanted.values, wanted.latents, strict=True):
            sides = (torch.arange(side, dtype=torch.int64, device=value.device) for side in latents.shape[:2])
            rows, columns = torch.meshgrid(*sides, indexing="ij")
            coded = (rows + columns) % 2 == (0 if wanted.anchors else 1)
            latents[coded] = (value.float() * gain).to(latents.dtype)

    def finish(self) -> None:
        error, tile = c_uint32(), c_uint32()
        check_status(self._lib.fastcodec_rans_decoder_finish(self._handle, byref(error), byref(tile)))
        self._raise(error, tile)
