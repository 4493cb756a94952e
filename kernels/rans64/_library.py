"""The coder's C library through ctypes: raw pointers in, raw pointers out. Only this module knows that interface."""

from __future__ import annotations

import ctypes
import sysconfig
from ctypes import POINTER, c_char_p, c_int, c_size_t, c_uint32, c_uint64, c_void_p
from functools import cache
from pathlib import Path

from ..errors import CorruptStreamError, FastcodecError, SymbolRangeError
from ..libraries import load_library

LIBRARY = Path(__file__).parent / f"_rans64.{sysconfig.get_platform()}.so"

# rans64.h's enum Status.
(
    _OK,
    _NO_MEMORY,
    BAD_TABLE,
    _INDEX_RANGE,
    _SYMBOL_RANGE,
    _NO_START,
    _EXHAUSTED,
    _NO_SYMBOL,
    _BAD_ESCAPE,
    _NOT_AT_END,
    _FAILED_BEFORE,
    _INTERNAL,
) = range(12)

_CORRUPT = {
    _NO_START: "it does not begin as a stream does",
    _EXHAUSTED: "it ends too early",
    _NO_SYMBOL: "it leaves its tables",
    _BAD_ESCAPE: "an escape is no symbol",
    _NOT_AT_END: "it is not at its end after the last symbol",
    _FAILED_BEFORE: "it failed in an earlier call",
}


class Stream(ctypes.Structure):
    """rans64.h's struct Stream."""

    _fields_ = [("data", c_void_p), ("words", c_uint64), ("cursor", c_uint64), ("state", c_uint64)]


class Segment(ctypes.Structure):
    """rans64.h's struct Segment."""

    _fields_ = [("symbols", c_void_p), ("indexes", c_void_p), ("count", c_uint64), ("tables", c_void_p)]


@cache
def library() -> ctypes.CDLL:
    """The coder. It lets go of Python's lock during a call."""
    numbers = POINTER(c_uint64)
    return load_library(
        LIBRARY,
        "fastcodec_rans64_",
        {
            "constants": (None, [numbers]),
            "tables_new": (c_int, [c_uint64, c_void_p, c_void_p, c_void_p, c_void_p, numbers, POINTER(c_void_p)]),
            "tables_free": (None, [c_void_p]),
            "tables_are": (c_int, [c_void_p, c_uint64, c_void_p, c_uint64, c_void_p, c_void_p]),
            "check": (c_int, [POINTER(Segment), numbers]),
            "encode": (c_int, [c_uint64, c_void_p, POINTER(Segment), c_uint32, numbers, POINTER(c_void_p)]),
            "encoded_stream": (c_void_p, [c_void_p, c_uint64, numbers]),
            "encoded_free": (None, [c_void_p]),
            "start": (c_int, [POINTER(Stream), c_char_p, c_uint64]),
            "decode": (c_int, [c_uint64, POINTER(Stream), POINTER(Segment), c_uint32, numbers]),
            "finish": (c_int, [POINTER(Stream)]),
            "quantise_pmf": (c_int, [c_uint64, c_void_p, c_int, c_void_p]),
            "quantise": (c_int, [c_size_t, c_void_p, c_void_p, c_void_p, c_uint32, c_void_p, c_void_p]),
            "quantise_rows": (c_int, [c_size_t, c_size_t, c_void_p, c_void_p, c_size_t, c_void_p]),
        },
    )


@cache
def constants() -> dict[str, int]:
    """The format's constants, read from the library (they stand in rans64.h)."""
    values = (c_uint64 * 4)()
    library().fastcodec_rans64_constants(values)
    return dict(zip(("probability_bits", "state_low", "bypass_bits", "max_raw"), values, strict=True))


def check(status: int, stream: int | None = None, symbol: int | None = None) -> None:
    """Raises what a status means."""
    if status == _OK:
        return
    if status == _NO_MEMORY:
        raise MemoryError("the entropy coder ran out of memory")
    origin = "" if stream is None else f"stream {stream}: "
    if status in _CORRUPT:
        raise CorruptStreamError(f"{origin}corrupt: {_CORRUPT[status]}", stream)
    origin += "" if symbol is None else f"symbol {symbol}: "
    if status == _INDEX_RANGE:
        raise ValueError(f"{origin}the index names no table")
    if status == _SYMBOL_RANGE:
        raise SymbolRangeError(f"{origin}it lies 2^30 or more outside its table")
    raise FastcodecError(f"the entropy coder failed (status {status})")
