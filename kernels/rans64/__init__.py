"""CompressAI's entropy coder: 64-bit rANS, one state a stream, one 16-bit table a symbol, escapes in nibbles.

The rule and the format stand in rans64.h. fastcodec's own files use `fastcodec.kernels.rans`; this coder reads and
writes those of `compressai.ans`, byte for byte, and checks what it reads. Everything happens on the CPU, whatever
PyTorch's default device is: new tensors say so, since what is written to is their addresses.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from ctypes import byref, c_uint64, c_void_p
from typing import NoReturn

import numpy as np
import torch
from torch import Tensor

from . import _library
from ._library import Segment, Stream

__all__ = ["CdfTables", "StreamDecoder", "decode", "encode", "quantise_pmf"]


class CdfTables:
    """CDFs of 16 bits and the symbols of their first entries. Immutable.

    Table i codes the symbols offsets[i] .. offsets[i] + lengths[i] - 3; its last interval is that of all others.

    Args:
        cdfs: int32, contiguous: all CDFs, each from 0, strictly increasing, to at most 2^16.
        begins: int64 [n], where in `cdfs` each begins.
        lengths: int32 [n], how many integers each has: 2 or more.
        offsets: int32 [n].

    Raises:
        ValueError: a shape, or a CDF that breaks these rules.
    """

    def __init__(self, cdfs: Tensor, begins: Tensor, lengths: Tensor, offsets: Tensor) -> None:
        self._handle = c_void_p()
        _check_tensor(cdfs, torch.int32, "the CDFs")
        count = lengths.numel()
        for tensor, dtype, what in (
            (begins, torch.int64, "begins"),
            (lengths, torch.int32, "lengths"),
            (offsets, torch.int32, "offsets"),
        ):
            _check_tensor(tensor, dtype, what)
            if tensor.shape != (count,):
                raise ValueError(f"one of {what} is needed for each CDF")
        if count and not (int(begins.min()) >= 0 and int((begins + lengths).max()) <= cdfs.numel()):
            raise ValueError("a CDF is longer than its row")
        self.count = count
        self._free = _library.library().fastcodec_rans64_tables_free
        position = c_uint64()
        status = _library.library().fastcodec_rans64_tables_new(
            count,
            cdfs.data_ptr(),
            begins.data_ptr(),
            lengths.data_ptr(),
            offsets.data_ptr(),
            byref(position),
            byref(self._handle),
        )
        if status == _library.BAD_TABLE:
            raise ValueError(
                f"CDF {position.value} does not rise strictly from 0 to at most 2^16, or its symbols leave 32 bits"
            )
        _library.check(status)

    @classmethod
    def from_matrix(cls, cdf: Tensor, lengths: Tensor, offsets: Tensor) -> CdfTables:
        """From CompressAI's buffers: cdf int32 [n, longest], padded; lengths, offsets int32 [n]. On any device.

        Raises:
            ValueError: as for the class.
        """
        if cdf.dim() != 2 or cdf.shape[0] != lengths.numel():
            raise ValueError(f"a CDF for each length is needed: [{lengths.numel()}, longest], not {list(cdf.shape)}")
        begins = torch.arange(cdf.shape[0], device="cpu") * cdf.shape[1]
        if lengths.numel() and int(lengths.max()) > cdf.shape[1]:
            raise ValueError("a CDF is longer than its row")
        return cls(*(tensor.cpu().contiguous() for tensor in (cdf, begins, lengths, offsets)))

    def are_of_matrix(self, cdf: Tensor, lengths: Tensor, offsets: Tensor) -> bool:
        """Whether `from_matrix` would make equal tables of these: int32, contiguous, on the CPU.

        Only the entries that count are compared, a tenth of a Gaussian model's matrix: 10 microseconds.
        """
        if cdf.dim() != 2 or not cdf.shape[0] == lengths.numel() == offsets.numel():
            return False
        for tensor in (cdf, lengths, offsets):
            _check_tensor(tensor, torch.int32, "the buffers")
        return bool(
            _library.library().fastcodec_rans64_tables_are(
                self._handle, len(cdf), cdf.data_ptr(), cdf.shape[1], lengths.data_ptr(), offsets.data_ptr()
            )
        )

    def __reduce__(self) -> NoReturn:  # a copy would free the library's tables a second time
        raise TypeError("CdfTables can be neither pickled nor copied: make others of the CDFs")

    def __del__(self) -> None:
        if self._handle:
            self._free(self._handle)


def _check_tensor(tensor: Tensor, dtype: torch.dtype, what: str) -> None:
    if tensor.dtype != dtype or tensor.device.type != "cpu" or not tensor.is_contiguous():
        raise ValueError(f"{what} must be {dtype}, contiguous, on the CPU")


def _fill(segment: Segment, symbols: Tensor, indexes: Tensor, tables: CdfTables) -> None:
    _check_tensor(symbols, torch.int32, "symbols")
    _check_tensor(indexes, torch.int32, "indexes")
    if symbols.numel() != indexes.numel():
        raise ValueError(f"{symbols.numel()} symbols for {indexes.numel()} indexes")
    segment.symbols, segment.indexes = symbols.data_ptr(), indexes.data_ptr()
    segment.count, segment.tables = indexes.numel(), tables._handle


def _threads(threads: int | None) -> int:
    count = torch.get_num_threads() if threads is None else threads
    if count < 1:
        raise ValueError(f"threads must be at least 1, not {count}")
    return count


def check(symbols: Tensor, indexes: Tensor, tables: CdfTables) -> None:
    """Raises what `encode` would say of one part of a stream."""
    segment, position = Segment(), c_uint64()
    _fill(segment, symbols, indexes, tables)
    _library.check(_library.library().fastcodec_rans64_check(byref(segment), byref(position)), symbol=position.value)


def encode(streams: Sequence[Sequence[tuple[Tensor, Tensor, CdfTables]]], *, threads: int | None = None) -> list[bytes]:
    """Encodes streams, each of one or more parts in decoding order: symbols, their tables' indexes, the tables.

    Symbols and indexes are int32 of one size, contiguous, on the CPU. The bytes do not depend on `threads` (PyTorch's
    setting when None).

    Raises:
        ValueError: a tensor's dtype, size or layout, or an index that names no table.
        SymbolRangeError: a symbol 2^30 or more outside its table: CompressAI's decoder could not read it.
    """
    lib = _library.library()
    parts = [part for stream in streams for part in stream]
    segments = (Segment * len(parts))()
    for segment, part in zip(segments, parts, strict=True):
        _fill(segment, *part)
    begins = np.cumsum([0, *map(len, streams)], dtype=np.uint64)
    position, encoded = (c_uint64 * 2)(), c_void_p()
    status = lib.fastcodec_rans64_encode(
        len(streams), begins.ctypes.data, segments, _threads(threads), position, byref(encoded)
    )
    _library.check(status, *position)
    try:
        size, out = c_uint64(), []
        for i in range(len(streams)):
            data = lib.fastcodec_rans64_encoded_stream(encoded, i, byref(size))
            out.append(ctypes.string_at(data, size.value))
        return out
    finally:
        lib.fastcodec_rans64_encoded_free(encoded)


def decode(
    streams: Sequence[bytes],
    indexes: Sequence[Tensor],
    tables: CdfTables,
    *,
    out: Sequence[Tensor] | None = None,
    threads: int | None = None,
) -> list[Tensor]:
    """Decodes whole streams: symbols int32, of the shapes of the indexes.

    Args:
        streams: as `encode` or CompressAI wrote them.
        indexes: for each stream, int32, contiguous, on the CPU.
        out: where to put the symbols, instead of into new tensors.
        threads: as for `encode`.

    Raises:
        ValueError: a tensor's dtype, size or layout, or an index that names no table.
        CorruptStreamError: a stream that no encoder wrote with these indexes and tables. The format has no checksum:
            what is seen is that it does not end where and as it must. Damage to the nibbles of an escape changes only
            that symbol, and is not seen.
    """
    decoders = (Stream * len(streams))()
    for i, stream in enumerate(streams):
        _library.check(_library.library().fastcodec_rans64_start(byref(decoders[i]), stream, len(stream)), i)
    symbols = _decode(decoders, indexes, tables, out, _threads(threads))
    for i, decoder in enumerate(decoders):
        _library.check(_library.library().fastcodec_rans64_finish(byref(decoder)), i)
    return symbols


def _decode(
    decoders: ctypes.Array, indexes: Sequence[Tensor], tables: CdfTables, out: Sequence[Tensor] | None, threads: int
) -> list[Tensor]:
    if out is None:
        out = [torch.empty(index.shape, dtype=torch.int32, device="cpu") for index in indexes]
    symbols = list(out)
    if not len(indexes) == len(symbols) == len(decoders):
        raise ValueError(f"{len(decoders)} streams for {len(indexes)} tensors of indexes")
    segments = (Segment * len(indexes))()
    for segment, symbol, index in zip(segments, symbols, indexes, strict=True):
        _fill(segment, symbol, index, tables)
    position = (c_uint64 * 2)()
    status = _library.library().fastcodec_rans64_decode(len(decoders), decoders, segments, threads, position)
    _library.check(status, *position)
    return symbols


class StreamDecoder:
    """One stream, decoded part by part.

    Raises:
        CorruptStreamError: it does not begin as a stream does.
    """

    def __init__(self, stream: bytes) -> None:
        self._data = stream  # which the library reads
        self._streams = (Stream * 1)()
        _library.check(_library.library().fastcodec_rans64_start(self._streams, stream, len(stream)))

    def decode(self, indexes: Tensor, tables: CdfTables) -> Tensor:
        """The next symbols, int32, of the shape of indexes (int32, contiguous, on the CPU).

        Raises:
            ValueError: as `decode`; the stream is then where it was.
            CorruptStreamError: as `decode`; the stream gives nothing more.
        """
        return _decode(self._streams, [indexes], tables, None, 1)[0]

    def finish(self) -> None:
        """Raises CorruptStreamError unless all of the stream was decoded."""
        _library.check(_library.library().fastcodec_rans64_finish(self._streams))


def quantise_pmf(pmf: np.ndarray, precision: int = 16) -> Tensor:
    """CompressAI's quantised CDF: int32 [K + 1], from 0, strictly increasing, to 2^precision.

    Args:
        pmf: float32 [K], K from 1 to 2^precision: probabilities; need not sum to 1.
        precision: 0 to 30 bits.

    Raises:
        ValueError: a size or precision out of range, or probabilities that are not finite, negative or all 0, or whose
            sum does not fit.
    """
    pmf = np.ascontiguousarray(pmf, dtype=np.float32)
    if not 0 <= precision <= 30:
        raise ValueError(f"the precision must be 0 to 30 bits, not {precision}")
    cdf = torch.empty(pmf.size + 1, dtype=torch.int32, device="cpu")
    status = _library.library().fastcodec_rans64_quantise_pmf(pmf.size, pmf.ctypes.data, precision, cdf.data_ptr())
    if status == _library.BAD_TABLE:
        raise ValueError(
            f"Invalid `pmf`: 1 to 2^{precision} probabilities are needed, finite, not negative, and not all 0"
        )
    _library.check(status)
    return cdf
