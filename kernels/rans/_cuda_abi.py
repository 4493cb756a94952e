"""The C interface of the CUDA coder's host library through ctypes: structures of cuda/layout.h, and functions."""

from __future__ import annotations

import ctypes
import sysconfig
from ctypes import POINTER, c_char_p, c_int, c_size_t, c_uint16, c_uint32, c_uint64, c_void_p
from functools import cache
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from ..errors import FastcodecError, UnavailableError
from ..libraries import Signatures, load_library
from ._status import Status, check_status
from .passes import Mixture

LIBRARY = Path(__file__).parent / f"_rans_cuda.{sysconfig.get_platform()}.so"

LATENT_TYPES = {torch.float32: 0, torch.float16: 1, torch.bfloat16: 2}  # in the order of layout.h's enum LatentType


class DeviceTables(ctypes.Structure):
    _fields_ = [
        ("blob", c_void_p),
        *[
            (name, c_uint32)
            for name in ("positions", "cumulative", "tables", "costs", "end", "count", "skip", "reserved")
        ],
    ]


class Divisor(ctypes.Structure):
    _fields_ = [("value", c_uint32), ("multiplier", c_uint32), ("shift_1", c_uint16), ("shift_2", c_uint16)]


class TilePass(ctypes.Structure):
    _fields_ = [
        *[
            (name, c_void_p)
            for name in ("symbols", "indexes", "weights", "means", "scales", "values", "latents", "gain")
        ],
        ("positions", c_uint32),
        ("streams", c_uint32),
        ("channels", Divisor),
        ("width", Divisor),
        *[(name, c_uint32) for name in ("value_stride", "row_stride", "column_stride", "parity", "mean_bits")],
        *[(name, c_uint32) for name in ("latent_type", "symbol_bytes", "components")],
    ]


class DecodeArguments(ctypes.Structure):
    _fields_ = [
        ("tables", DeviceTables),
        *[(name, c_void_p) for name in ("warps", "streams", "states", "payloads", "passes")],
        *[(name, c_uint32) for name in ("warp_count", "warps_per_block", "shared_tables", "components")],
    ]


class EncodeArguments(ctypes.Structure):
    _fields_ = [
        ("tables", DeviceTables),
        *[(name, c_void_p) for name in ("warps", "streams", "states", "scratch", "passes")],
        *[(name, c_uint32) for name in ("warp_count", "warps_per_block", "shared_tables", "components")],
    ]


class ExamineArguments(ctypes.Structure):
    _fields_ = [
        ("tables", DeviceTables),
        ("passes", c_void_p),
        ("results", c_void_p),
        ("exact", c_uint32),
        ("components", c_uint32),
    ]


class PackArguments(ctypes.Structure):
    _fields_ = [
        *[(name, c_void_p) for name in ("streams", "states", "scratch", "tiles", "offsets", "out")],
        ("tile_count", c_uint32),
        ("stream_count", c_uint32),
    ]


class FinishArguments(ctypes.Structure):
    _fields_ = [
        *[(name, c_void_p) for name in ("streams", "states", "lanes")],
        ("stream_count", c_uint32),
        ("reserved", c_uint32),
    ]


# Records that travel as arrays.
EXAMINATION = np.dtype([("cost", "<u8"), ("faults", "<u4"), ("reserved", "<u4")])
TILE_PAYLOAD = np.dtype(
    [
        ("offset", "<u8"),
        ("size", "<u8"),
        *[(n, "<u4") for n in ("directory", "words", "escapes", "first_stream", "streams", "lanes_log2")],
    ]
)
STREAM_BYTES = 32
STREAM_OFFSETS_BYTES = 16


@cache
def library() -> ctypes.CDLL:
    """The host library, loaded once. It needs no GPU; it opens the driver when it is told to."""
    if not LIBRARY.exists():
        raise UnavailableError(f"the CUDA coder's library {LIBRARY.name} is not built: run `python kernels/build.py`")
    p32, p64 = POINTER(c_uint32), POINTER(c_uint64)
    signatures: Signatures = {
        "message": (c_char_p, []),
        "open": (c_int, [c_char_p, POINTER(c_void_p)]),
        "load": (c_int, [c_void_p, c_char_p]),
        "close": (None, [c_void_p]),
        "tables": (
            c_int,
            [c_uint32, c_int, c_void_p, c_void_p, c_void_p, c_size_t, POINTER(DeviceTables), c_void_p],
        ),
        "mixture_tables": (None, [POINTER(DeviceTables), c_void_p]),
        "plan_decode": (c_int, [c_uint32, c_void_p, c_void_p, c_int, p32, p32, POINTER(c_void_p)]),
        "plan_encode": (c_int, [c_uint32, p32, p64, p64, p32, p32, POINTER(c_void_p)]),
        "plan_numbers": (None, [c_void_p, p64]),
        "plan_write": (None, [c_void_p, c_void_p]),
        "plan_shape": (None, [c_void_p, c_uint32, p32, p32]),
        "plan_error": (c_uint32, [c_void_p, c_void_p, p32]),
        "plan_free": (None, [c_void_p]),
        "shape": (None, [c_uint64, c_uint64, c_uint32, p32, p32]),
        "complete_passes": (c_int, [c_uint32, POINTER(TilePass)]),
        "decode": (c_int, [c_void_p, c_void_p, POINTER(DecodeArguments), c_int, c_uint32, c_uint64]),
        "finish": (c_int, [c_void_p, c_void_p, POINTER(FinishArguments)]),
        "examine": (c_int, [c_void_p, c_void_p, POINTER(ExamineArguments), c_uint32, c_uint64]),
        "encode": (c_int, [c_void_p, c_void_p, POINTER(EncodeArguments)]),
        "arrange": (c_int, [c_void_p, c_void_p, POINTER(PackArguments)]),
        "gather": (c_int, [c_void_p, c_void_p, POINTER(PackArguments)]),
    }
    return load_library(LIBRARY, "fastcodec_rans_cuda_", signatures)


def check_call(status: int) -> None:
    """Raises what a function's status deserves."""
    if status == Status.DRIVER:
        raise FastcodecError(f"the CUDA driver failed: {library().fastcodec_rans_cuda_message().decode()}")
    check_status(status)


class PassTensors(NamedTuple):
    """What a pass of one tile reads and writes on a GPU; what is None it does not.

    Attributes:
        symbols: int16, or (to encode) int32 [P, C], contiguous.
        indexes: uint8 [P, C], contiguous.
        mixture: of [K, P, C], for a pass of mixtures.
        means: int16 [P, C], contiguous, with `mean_bits` fraction bits: what values need.
        values: int32 [P, C], any number of elements from a position to the next.
        latents: float [rows, columns, C], where values times `gain` (float32 [C]) go at its anchors or non-anchors.
    """

    symbols: Tensor | None = None
    indexes: Tensor | None = None
    mixture: Mixture | None = None
    means: Tensor | None = None
    mean_bits: int = 0
    values: Tensor | None = None
    latents: Tensor | None = None
    gain: Tensor | None = None
    anchors: bool = True


def describe_pass(record: TilePass, tensors: PassTensors, streams: int = 1) -> None:
    """Fills in a descriptor that is all zeros; `complete_passes` must follow. streams: of the tile."""
    record.streams, record.channels.value = streams, 1
    if (symbols := tensors.symbols) is not None:
        record.symbols, record.symbol_bytes = symbols.data_ptr(), symbols.element_size()
        record.positions, record.channels.value = symbols.shape
    if tensors.indexes is not None:
        record.indexes = tensors.indexes.data_ptr()
    if tensors.mixture is not None:
        record.weights, record.means, record.scales = (part.data_ptr() for part in tensors.mixture)
        record.components = len(tensors.mixture.weights)
    if tensors.means is not None:
        record.means, record.mean_bits = tensors.means.data_ptr(), tensors.mean_bits
    if tensors.values is not None:
        record.values, record.value_stride = tensors.values.data_ptr(), tensors.values.stride(0)
    if (latents := tensors.latents) is not None and tensors.gain is not None:
        record.latents, record.gain = latents.data_ptr(), tensors.gain.data_ptr()
        record.width.value = latents.shape[1]
        record.row_stride, record.column_stride = latents.stride()[:2]
        record.parity = 0 if tensors.anchors else 1
        record.latent_type = LATENT_TYPES[latents.dtype]


def complete_passes(records: ctypes.Array[TilePass]) -> None:
    """Completes descriptors with what follows from the rest.

    Raises:
        ValueError: a pass of 2^32 elements or more.
    """
    check_call(library().fastcodec_rans_cuda_complete_passes(len(records), records))
