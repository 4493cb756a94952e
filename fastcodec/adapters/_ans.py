"""The interface of `compressai.ans` and `compressai._CXX`, lists in and out, over `fastcodec.kernels.rans64`.

Equal arguments give equal results. Where CompressAI crashes or loops without end (an index that names no table, a CDF
that does not rise, a stream that ends too early, no symbols at all), these raise, or do what was meant.
"""

from __future__ import annotations

import operator
import threading
from array import array
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from ..kernels import forks, rans64

_Ints = Sequence[int]


class RansEncoder:
    """One stream a call."""

    def encode_with_indexes(
        self, symbols: _Ints, indexes: _Ints, cdfs: Sequence[_Ints], cdfs_sizes: _Ints, offsets: _Ints, /
    ) -> bytes:
        """The stream of these symbols; symbol i by the table indexes[i].

        Table t is the first cdfs_sizes[t] integers of cdfs[t]; its first symbol is offsets[t].

        Raises:
            TypeError: an argument that is no list of integers.
            ValueError: lists whose sizes do not fit, an index that names no table, or a CDF that does not rise strictly
                from 0 to at most 2^16.
            SymbolRangeError: a symbol 2^30 or more outside its table.
        """
        return rans64.encode([[_part(symbols, indexes, cdfs, cdfs_sizes, offsets)]], threads=1)[0]


class BufferedRansEncoder:
    """One stream of several calls."""

    def __init__(self) -> None:
        self._parts: list[tuple[Tensor, Tensor, rans64.CdfTables]] = []

    def encode_with_indexes(
        self, symbols: _Ints, indexes: _Ints, cdfs: Sequence[_Ints], cdfs_sizes: _Ints, offsets: _Ints, /
    ) -> None:
        """Keeps more symbols for `flush`. Arguments and errors as `RansEncoder.encode_with_indexes`; after an error the
        symbols of the calls before it are still there."""
        part = _part(symbols, indexes, cdfs, cdfs_sizes, offsets)
        rans64.check(*part)
        self._parts.append(part)

    def flush(self) -> bytes:
        """The stream of all symbols since the last `flush`, to be decoded in the order of the calls."""
        parts, self._parts = self._parts, []
        return rans64.encode([parts], threads=1)[0]


class RansDecoder:
    """Whole streams by `decode_with_indexes`, or one stream part by part: `set_stream`, then `decode_stream`."""

    def __init__(self) -> None:
        self._decoder: rans64.StreamDecoder | None = None

    def decode_with_indexes(
        self, encoded: bytes, indexes: _Ints, cdfs: Sequence[_Ints], cdfs_sizes: _Ints, offsets: _Ints, /
    ) -> list[int]:
        """All symbols of a stream. Tables as in `RansEncoder.encode_with_indexes`.

        Raises:
            TypeError, ValueError: as there.
            CorruptStreamError: the stream is none, or not one of so many symbols with these tables.
        """
        decoder = rans64.StreamDecoder(_bytes(encoded))
        symbols = decoder.decode(_integers(indexes), _tables(cdfs, cdfs_sizes, offsets))
        decoder.finish()
        return symbols.numpy().tolist()

    def set_stream(self, encoded: bytes, /) -> None:
        """Begins a stream. Raises CorruptStreamError if it is none."""
        self._decoder = None
        self._decoder = rans64.StreamDecoder(_bytes(encoded))

    def decode_stream(self, indexes: _Ints, cdfs: Sequence[_Ints], cdfs_sizes: _Ints, offsets: _Ints, /) -> list[int]:
        """The next symbols. Arguments and errors as `decode_with_indexes`, but that the stream may go on."""
        if self._decoder is None:
            raise ValueError("there is no stream: call set_stream first")
        return self._decoder.decode(_integers(indexes), _tables(cdfs, cdfs_sizes, offsets)).numpy().tolist()


def pmf_to_quantized_cdf(pmf: Sequence[float], precision: int, /) -> list[int]:
    """The CDF of probabilities, in integers: K + 1 of them, from 0, strictly increasing, to 2^precision.

    Raises:
        ValueError: no probabilities or more than 2^precision, or some that are not finite, negative or all 0.
    """
    return rans64.quantise_pmf(np.array(pmf, dtype=np.float32), operator.index(precision)).tolist()


def _integers(values: _Ints) -> Tensor:
    """A sequence of integers as a tensor int32 [n] on the CPU.

    Raises:
        TypeError: not a sequence, or an element is no integer.
        ValueError: an element is outside int32.
    """
    if isinstance(values, str | bytes) or not hasattr(values, "__len__"):
        raise TypeError(f"a list of integers is needed, not {type(values).__name__}")
    try:
        return torch.from_numpy(np.array(array("i", values), dtype=np.int32))
    except OverflowError as error:
        raise ValueError("an integer does not fit 32 bits") from error


def _bytes(encoded: bytes) -> bytes:
    if not isinstance(encoded, bytes | bytearray):
        raise TypeError(f"a stream is bytes, not {type(encoded).__name__}")
    return bytes(encoded)


def _part(
    symbols: _Ints, indexes: _Ints, cdfs: Sequence[_Ints], cdfs_sizes: _Ints, offsets: _Ints
) -> tuple[Tensor, Tensor, rans64.CdfTables]:
    return _integers(symbols), _integers(indexes), _tables(cdfs, cdfs_sizes, offsets)


# An autoregressive model passes its tables, some 200,000 integers, with every call: one for each position. So the last
# few are kept, with copies of the lists: a list may change in place, so only its elements tell whether it is the same.
# That takes 0.1 ms where the elements are the same objects.
_KEPT = 4
_KEPT_INTEGERS = 1 << 20
_kept: list[tuple[list[list[int]], list[int], list[int], rans64.CdfTables]] = []
_kept_lock = threading.Lock()
forks.hold(_kept_lock)


def _tables(cdfs: Sequence[_Ints], sizes: _Ints, offsets: _Ints) -> rans64.CdfTables:
    plain = all(type(item) is list for item in (cdfs, sizes, offsets, *cdfs))
    if plain:
        for entry in _kept:
            if entry[1] == sizes and entry[2] == offsets and entry[0] == cdfs:
                return entry[3]
    begins = np.cumsum([0, *map(len, cdfs)])
    lengths, firsts = _integers(sizes), _integers(offsets)
    if not len(lengths) == len(firsts) == len(cdfs):
        raise ValueError(f"{len(cdfs)} CDFs, {len(lengths)} sizes and {len(firsts)} offsets: they must be as many")
    rows = [_integers(row) for row in cdfs]
    for i, row in enumerate(rows):
        if not 2 <= lengths[i] <= len(row):
            raise ValueError(f"CDF {i} has {len(row)} integers, not {int(lengths[i])}")
    flat = torch.cat(rows) if rows else torch.empty(0, dtype=torch.int32, device="cpu")
    made = rans64.CdfTables(flat, torch.from_numpy(begins[:-1]), lengths, firsts)
    if plain and flat.numel() <= _KEPT_INTEGERS:
        entry = ([list(row) for row in cdfs], list(sizes), list(offsets), made)
        with _kept_lock:
            _kept[:] = [entry, *_kept[: _KEPT - 1]]
    return made


def forget_tables() -> None:
    """Lets go of the tables that were kept."""
    _kept.clear()
