"""The CPU coder's C library through ctypes: structures, functions, constants, and table sets as it holds them.

ctypes lets go of Python's lock during a call, so several Python threads may code at once.
"""

import ctypes
import os
import sysconfig
from ctypes import POINTER, byref, c_char_p, c_int, c_int32, c_size_t, c_uint32, c_uint64, c_void_p
from functools import cache
from pathlib import Path

import numpy as np
import torch

from ..libraries import Signatures, load_library
from ._status import check_status

LIBRARY = Path(__file__).parent / f"_rans_cpu.{sysconfig.get_platform()}.so"
ISAS = ("scalar", "avx2", "avx512")  # in the order of cpu/library.h's enum Isa
PRESETS = ("size", "latency")  # in the order of rans.h's enum Preset


class CpuPass(ctypes.Structure):  # of cpu/encoder.cpp
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
    signatures: Signatures = {
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
        "cost": (c_int, [POINTER(CpuPass), c_int, POINTER(c_uint64)]),
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
    return load_library(LIBRARY, "fastcodec_rans_", signatures)


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


class CpuTables:
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
