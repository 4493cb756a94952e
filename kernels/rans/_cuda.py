"""The CUDA coder's host library through ctypes, on tensors of a GPU. Only this module knows that interface.

Nothing here waits for the GPU unless it must: decoding enqueues, `Decoder.finish` waits once; encoding waits for the
costs that the number of streams follows from, and for the payloads' sizes. All of it runs on PyTorch's current stream.
"""

from __future__ import annotations

import ctypes
import sysconfig
import threading
import weakref
from collections.abc import Callable, Sequence
from contextlib import contextmanager, nullcontext
from ctypes import POINTER, byref, c_char_p, c_int, c_size_t, c_uint16, c_uint32, c_uint64, c_void_p
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from .. import forks, nvrtc
from ..errors import FastcodecError, UnavailableError
from . import _cpu
from ._status import Status, check_error, check_status
from .passes import MixturePass, Pass

if TYPE_CHECKING:
    from .tables import TableSet

LIBRARY = Path(__file__).parent / f"_rans_cuda.{sysconfig.get_platform()}.so"
IMAGE = Path(__file__).parent / "_rans_cuda.fatbin"
SOURCE = Path(__file__).parent / "cuda" / "kernels.cu"
DRIVER = "libcuda.so.1"

# layout.h's enum Fault: bit i for what the CPU coder tells by the i-th of these.
_FAULTS = (Status.INDEX_RANGE, Status.WEIGHTS, Status.SYMBOL_RANGE, Status.SYMBOL_SKIPPED)

AnyPass = Pass | MixturePass

LATENT_TYPES = {torch.float32: 0, torch.float16: 1, torch.bfloat16: 2}  # in the order of layout.h's enum LatentType


# --- structures of cuda/layout.h --


class _TableSet(ctypes.Structure):
    _fields_ = [
        ("blob", c_void_p),
        *[
            (name, c_uint32)
            for name in ("positions", "cumulative", "tables", "costs", "end", "count", "skip", "reserved")
        ],
    ]


class _Divisor(ctypes.Structure):
    _fields_ = [("value", c_uint32), ("multiplier", c_uint32), ("shift_1", c_uint16), ("shift_2", c_uint16)]


class _TilePass(ctypes.Structure):
    _fields_ = [
        *[
            (name, c_void_p)
            for name in ("symbols", "indexes", "weights", "means", "scales", "values", "latents", "gain")
        ],
        ("positions", c_uint32),
        ("streams", c_uint32),
        ("channels", _Divisor),
        ("width", _Divisor),
        *[(name, c_uint32) for name in ("value_stride", "row_stride", "column_stride", "parity", "mean_bits")],
        *[(name, c_uint32) for name in ("latent_type", "symbol_bytes", "components")],
    ]


class _DecodeArguments(ctypes.Structure):
    _fields_ = [
        ("tables", _TableSet),
        *[(name, c_void_p) for name in ("warps", "streams", "states", "payloads", "passes")],
        *[(name, c_uint32) for name in ("warp_count", "warps_per_block", "shared_tables", "components")],
    ]


class _EncodeArguments(ctypes.Structure):
    _fields_ = [
        ("tables", _TableSet),
        *[(name, c_void_p) for name in ("warps", "streams", "states", "scratch", "passes")],
        *[(name, c_uint32) for name in ("warp_count", "warps_per_block", "shared_tables", "components")],
    ]


class _ExamineArguments(ctypes.Structure):
    _fields_ = [
        ("tables", _TableSet),
        ("passes", c_void_p),
        ("results", c_void_p),
        ("exact", c_uint32),
        ("components", c_uint32),
    ]


class _PackArguments(ctypes.Structure):
    _fields_ = [
        *[(name, c_void_p) for name in ("streams", "states", "scratch", "tiles", "places", "out")],
        ("tile_count", c_uint32),
        ("stream_count", c_uint32),
    ]


class _FinishArguments(ctypes.Structure):
    _fields_ = [
        *[(name, c_void_p) for name in ("streams", "states", "lanes")],
        ("stream_count", c_uint32),
        ("reserved", c_uint32),
    ]


# Records that travel as arrays.
_STREAM = np.dtype(
    [(n, "<u4") for n in ("words", "words_end", "escapes", "escapes_end", "states", "tile", "number", "error")]
)
_EXAMINATION = np.dtype([("cost", "<u8"), ("faults", "<u4"), ("reserved", "<u4")])
_TILE_PLACE = np.dtype(
    [
        ("offset", "<u8"),
        ("size", "<u8"),
        *[(n, "<u4") for n in ("directory", "words", "escapes", "first_stream", "streams", "lanes_log2")],
    ]
)
_STREAM_PLACE_BYTES = 16


@cache
def library() -> ctypes.CDLL:
    """The host library, loaded once. It needs no GPU; it opens the driver when it is told to."""
    if not LIBRARY.exists():
        raise UnavailableError(f"the CUDA coder's library {LIBRARY.name} is not built: run `python kernels/build.py`")
    lib = ctypes.CDLL(str(LIBRARY))
    p32, p64 = POINTER(c_uint32), POINTER(c_uint64)
    signatures = {
        "message": (c_char_p, []),
        "open": (c_int, [c_char_p, POINTER(c_void_p)]),
        "load": (c_int, [c_void_p, c_char_p]),
        "close": (None, [c_void_p]),
        "tables": (
            c_int,
            [c_uint32, c_int, c_void_p, c_void_p, c_void_p, c_size_t, POINTER(_TableSet), c_void_p],
        ),
        "mixture_tables": (None, [POINTER(_TableSet), c_void_p]),
        "plan_decode": (c_int, [c_uint32, c_void_p, c_void_p, c_int, p32, p32, POINTER(c_void_p)]),
        "plan_encode": (c_int, [c_uint32, p32, p64, p64, p32, p32, POINTER(c_void_p)]),
        "plan_numbers": (None, [c_void_p, p64]),
        "plan_write": (None, [c_void_p, c_void_p]),
        "plan_shape": (None, [c_void_p, c_uint32, p32, p32]),
        "plan_error": (c_uint32, [c_void_p, c_void_p, p32]),
        "plan_free": (None, [c_void_p]),
        "shape": (None, [c_uint64, c_uint64, c_uint32, p32, p32]),
        "complete_passes": (c_int, [c_uint32, POINTER(_TilePass)]),
        "decode": (c_int, [c_void_p, c_void_p, POINTER(_DecodeArguments), c_int, c_uint32, c_uint64]),
        "finish": (c_int, [c_void_p, c_void_p, POINTER(_FinishArguments)]),
        "examine": (c_int, [c_void_p, c_void_p, POINTER(_ExamineArguments), c_uint32, c_uint64]),
        "encode": (c_int, [c_void_p, c_void_p, POINTER(_EncodeArguments)]),
        "arrange": (c_int, [c_void_p, c_void_p, POINTER(_PackArguments)]),
        "gather": (c_int, [c_void_p, c_void_p, POINTER(_PackArguments)]),
    }
    for name, (result, arguments) in signatures.items():
        function = getattr(lib, f"fastcodec_rans_cuda_{name}")
        function.restype = result
        function.argtypes = arguments
    return lib


def _check(status: int) -> None:
    if status == Status.DRIVER:
        raise FastcodecError(f"the CUDA driver failed: {library().fastcodec_rans_cuda_message().decode()}")
    check_status(status)


# --- where it runs ----------------------------------------------------------------------------------------------------


class Target:
    """Memory and kernels of one GPU."""

    def __init__(self, device: torch.device):
        self.device = device
        self.module = _load(device)

    def stream(self) -> int:
        return torch.cuda.current_stream(self.device).cuda_stream

    def use(self):
        """A context in which the device is the current one."""
        return torch.cuda.device(self.device)

    def capturing(self) -> bool:
        """Whether the stream is being captured into a CUDA graph."""
        return torch.cuda.is_current_stream_capturing()

    def staging(self, *shape: int) -> Tensor:
        """Bytes on the host that the device can copy from; not to be asked for during capture."""
        return torch.empty(shape, dtype=torch.uint8, device="cpu", pin_memory=True)

    def upload(self, size: int, write: Callable[[int], None], staging: Tensor | None = None) -> Tensor:
        """`size` bytes on the device, written at an address on the host (in `staging`); the copy is not waited for."""
        staging = self.staging(size) if staging is None else staging
        write(staging.data_ptr())
        # PyTorch does not give pinned memory away again before the copies from it have ended.
        return staging.to(self.device, non_blocking=True)

    def fetch(self, *data: Tensor) -> Fetch:
        """Enqueues the copies of tensors to the host."""
        homes = [torch.empty(tensor.shape, dtype=tensor.dtype, device="cpu", pin_memory=True) for tensor in data]
        for home, tensor in zip(homes, data, strict=True):
            home.copy_(tensor, non_blocking=True)
        event = torch.cuda.Event()
        event.record(torch.cuda.current_stream(self.device))
        return Fetch(homes, event.synchronize)

    def download(self, data: Tensor) -> np.ndarray:
        """A tensor's values; waits for everything before it on the stream."""
        return self.fetch(data).wait()[0]

    def settle(self) -> None:
        """Waits for what the current stream was given, and for no other."""
        torch.cuda.current_stream(self.device).synchronize()

    def mark(self) -> Any:
        """This place in the current stream, for `follow`."""
        event = torch.cuda.Event()
        event.record(torch.cuda.current_stream(self.device))
        return event

    def follow(self, mark: Any) -> None:
        """What the current stream is given from here on starts when the mark has been reached. Does not wait."""
        torch.cuda.current_stream(self.device).wait_event(mark)

    def keep(self, tensor: Tensor) -> None:
        """A tensor of another stream is used by the current one: its memory is not given away before that."""
        tensor.record_stream(torch.cuda.current_stream(self.device))

    def new_stream(self) -> Any:
        """A stream beside the others, for `on`."""
        return torch.cuda.Stream(self.device)

    def on(self, stream: Any):
        """A context in which a stream is the current one."""
        return torch.cuda.stream(stream)

    def graph(self, launch: Callable[[], None]) -> Callable[[], None]:
        """What `launch` enqueues as a CUDA graph: a function that enqueues all of it at once.

        `launch` has been called before, so that nothing is left to prepare, and a stream of `new_stream` is the current
        one. Waits for the GPU.
        """
        graph, stream = torch.cuda.CUDAGraph(), torch.cuda.current_stream(self.device)
        with torch.cuda.graph(graph, stream=stream, capture_error_mode="thread_local"):
            launch()
        return graph.replay


class Fetch:
    """Tensors on their way to the host. Nothing but `wait` waits for the GPU."""

    def __init__(self, homes: list[Tensor], arrived: Callable[[], None]):
        self._homes, self._arrived = homes, arrived

    def wait(self) -> list[np.ndarray]:
        """What has arrived, in the order in which it was asked for."""
        self._arrived()
        return [home.numpy() for home in self._homes]


class SimulatedTarget(Target):
    """The same kernels on the CPU, run by another driver: the tests' host shim. Device memory is the CPU's."""

    def __init__(self, driver: Path):
        self.device = torch.device("cpu")
        self.module = _module(str(driver), b"the shim has its kernels")

    def stream(self) -> int:
        return 0

    def use(self):
        return nullcontext()

    def capturing(self) -> bool:
        return False

    def staging(self, *shape: int) -> Tensor:
        return torch.empty(shape, dtype=torch.uint8, device="cpu")

    def upload(self, size: int, write: Callable[[int], None], staging: Tensor | None = None) -> Tensor:
        staging = self.staging(size) if staging is None else staging
        write(staging.data_ptr())
        return staging.clone()

    def fetch(self, *data: Tensor) -> Fetch:
        return Fetch([tensor.clone() for tensor in data], lambda: None)

    def settle(self) -> None:
        pass

    def mark(self) -> None:
        return None

    def follow(self, mark: None) -> None:
        pass

    def keep(self, tensor: Tensor) -> None:
        pass

    def new_stream(self) -> None:
        return None

    def on(self, stream: None):
        return nullcontext()

    def graph(self, launch: Callable[[], None]) -> Callable[[], None]:
        return launch


_simulator: SimulatedTarget | None = None


@contextmanager
def simulated(driver: Path):
    """Within it, tensors of the CPU go to the kernels in the host shim instead of the CPU coder."""
    global _simulator
    before, _simulator = _simulator, SimulatedTarget(driver)
    try:
        yield
    finally:
        _simulator = before


def simulator() -> SimulatedTarget | None:
    """The target that `simulated` has put in the CPU coder's place, if any."""
    return _simulator


_lock = threading.Lock()
forks.hold(_lock)
_targets: dict[torch.device, Target] = {}


def target(device: torch.device) -> Target:
    """The target of a CUDA device.

    Raises:
        UnavailableError: no such GPU, no driver, or no kernels for it.
    """
    if device.type != "cuda":
        raise UnavailableError(f"the coder does not run on {device.type!r} tensors: move them to the CPU or to a GPU")
    forks.check_gpu()
    if not torch.cuda.is_available():
        raise UnavailableError("PyTorch finds no CUDA device")
    device = torch.device("cuda", torch.cuda.current_device() if device.index is None else device.index)
    with _lock:
        if device not in _targets:
            with torch.cuda.device(device):
                torch.cuda.current_stream(device)  # PyTorch makes the device's context
                _targets[device] = Target(device)
        return _targets[device]


@cache
def _module(driver: str, image: bytes) -> c_void_p:
    lib, module = library(), c_void_p()
    if lib.fastcodec_rans_cuda_open(driver.encode(), byref(module)):
        raise UnavailableError(f"no CUDA driver: {lib.fastcodec_rans_cuda_message().decode()}")
    if lib.fastcodec_rans_cuda_load(module, image):
        message = lib.fastcodec_rans_cuda_message().decode()
        lib.fastcodec_rans_cuda_close(module)
        raise UnavailableError(f"the CUDA kernels cannot be loaded: {message}")
    return module


def _load(device: torch.device) -> c_void_p:
    """The kernels for a device: nvcc's, or else compiled here and now by NVRTC, which is cached."""
    if IMAGE.exists():
        try:
            return _module(DRIVER, IMAGE.read_bytes())
        except UnavailableError as error:  # made by a toolkit that is newer than this driver, say
            unusable = str(error)
    else:
        unusable = f"{IMAGE.name} is not built"
    major, minor = torch.cuda.get_device_capability(device)
    try:
        image = nvrtc.compile_image(SOURCE, nvrtc.quoted_headers(SOURCE), f"sm_{major}{minor}")
    except nvrtc.NvrtcError as error:
        raise UnavailableError(f"no CUDA kernels: {unusable}, and {error}") from error
    return _module(DRIVER, image)


# --- tables -----------------------------------------------------------------------------------------------------------

_Uploads = dict[tuple[int, torch.device], tuple[_TableSet, Tensor]]
_uploaded: weakref.WeakKeyDictionary[TableSet, _Uploads] = weakref.WeakKeyDictionary()
_uploaded_for_mixtures: _Uploads = {}


def _tables(tables: TableSet | None, where: Target) -> _TableSet:
    """A set's layout on the device, or that of mixture.h's tables for None; its blob is uploaded once."""
    with _lock:
        known = _uploaded_for_mixtures if tables is None else _uploaded.setdefault(tables, {})
        key = (where.module.value or 0, where.device)
        if key not in known:
            if where.capturing():  # a graph's copies happen when it is replayed; others use the tables before that
                what = "a pass of mixtures" if tables is None else "with these tables"
                raise FastcodecError(f"decode {what} once before a CUDA graph with it is captured")
            layout = _TableSet()
            write = _table_writer(tables, layout)
            write(None)
            blob = where.upload(layout.end, write)
            where.settle()  # any stream may read the tables from here on
            layout.blob = blob.data_ptr()
            known[key] = (layout, blob)
        return known[key][0]


def _table_writer(tables: TableSet | None, layout: _TableSet) -> Callable[[int | None], None]:
    """A function that completes the layout and writes the blob to an address on the host, unless it is None."""
    if tables is None:
        return lambda address: library().fastcodec_rans_cuda_mixture_tables(byref(layout), address)
    firsts, sizes, frequencies = tables._arrays()

    def write(address: int | None) -> None:
        status = library().fastcodec_rans_cuda_tables(
            len(sizes),
            tables.skip,
            firsts.ctypes.data,
            sizes.ctypes.data,
            frequencies.ctypes.data,
            len(frequencies),
            byref(layout),
            address,
        )
        _check(status)

    return write


# --- plans ------------------------------------------------------------------------------------------------------------


class Plan:
    """A batch's descriptors on the host: what is to be written to one piece of the device's memory, and what lies where
    in it."""

    _handle: c_void_p | None = None

    def __init__(self, handle: c_void_p):
        self._handle = handle
        numbers = (c_uint64 * 9)()
        library().fastcodec_rans_cuda_plan_numbers(handle, numbers)
        self.size, self.warps_at, self.lanes_at, self.states_at, self.rest_at = numbers[:5]
        self.stream_count, self.warp_count, self.full, self.scratch_units = numbers[5:]

    def __del__(self) -> None:
        if self._handle is not None:
            library().fastcodec_rans_cuda_plan_free(self._handle)

    def write(self, address: int) -> None:
        """Writes `size` bytes to an address on the host."""
        library().fastcodec_rans_cuda_plan_write(self._handle, address)

    def shape(self, tile: int) -> tuple[int, int]:
        """Lanes and streams of a tile."""
        lanes, streams = c_uint32(), c_uint32()
        library().fastcodec_rans_cuda_plan_shape(self._handle, tile, byref(lanes), byref(streams))
        return lanes.value, streams.value

    def check(self, streams: np.ndarray) -> None:
        """Raises what the first failing tile deserves, from the streams' records as `finish` left them: uint8."""
        tile = c_uint32()
        error = library().fastcodec_rans_cuda_plan_error(self._handle, streams.ctypes.data, byref(tile))
        _raise(error, tile.value)

    @property
    def records_bytes(self) -> int:
        """How much of the memory's beginning `check` needs."""
        return self.stream_count * _STREAM.itemsize


class DecodePlan(Plan):
    """The plan to decode payloads, which it keeps. padded: rounded up to one of few sizes.

    Raises:
        CorruptStreamError: a payload that no encoder wrote.
    """

    def __init__(self, payloads: Sequence[bytes | memoryview], padded: bool = False):
        self._views = [np.frombuffer(payload, dtype=np.uint8) for payload in payloads]
        count = len(self._views)
        error, tile, handle = c_uint32(), c_uint32(), c_void_p()
        status = library().fastcodec_rans_cuda_plan_decode(
            count,
            (c_void_p * count)(*[view.ctypes.data for view in self._views]),
            (c_size_t * count)(*[view.size for view in self._views]),
            padded,
            byref(error),
            byref(tile),
            byref(handle),
        )
        _check(status)
        _raise(error.value, tile.value)
        super().__init__(handle)
        self.tiles = count

    def decode(
        self,
        where: Target,
        base: int,
        passes: int,
        tables: TableSet | None,
        *,
        reconstruct: int = 0,
        components: int = 0,
    ) -> None:
        """Enqueues a pass. base, passes: addresses on the device of what `write` wrote, and of the descriptors.

        reconstruct: elements of the longest tile, if symbols are to become values and latents. A pass of mixtures has
        no tables, but `components`: the most that a tile's have.
        """
        arguments = _DecodeArguments(
            tables=_tables(tables, where),
            warps=base + self.warps_at,
            streams=base,
            states=base + self.states_at,
            payloads=base + self.rest_at,
            passes=passes,
            warp_count=self.warp_count,
            components=components,
        )
        _check(
            library().fastcodec_rans_cuda_decode(
                where.module, where.stream(), byref(arguments), self.full, self.tiles, reconstruct
            )
        )

    def finish(self, where: Target, base: int) -> None:
        """Enqueues the check of every stream's end, which leaves its outcome in the streams' records."""
        arguments = _FinishArguments(
            streams=base, states=base + self.states_at, lanes=base + self.lanes_at, stream_count=self.stream_count
        )
        _check(library().fastcodec_rans_cuda_finish(where.module, where.stream(), byref(arguments)))


def _describe(passes: ctypes.Array, where: Target, staging: Tensor | None = None) -> Tensor:
    """Descriptors on the device."""
    _check(library().fastcodec_rans_cuda_complete_passes(len(passes), passes))
    size = ctypes.sizeof(passes)
    return where.upload(size, lambda address: ctypes.memmove(address, passes, size), staging)


def _set_mixtures(item: _TilePass, weights: Tensor, means: Tensor, scales: Tensor) -> None:
    item.weights, item.means, item.scales = weights.data_ptr(), means.data_ptr(), scales.data_ptr()
    item.components = weights.shape[0]


# --- decoding ---------------------------------------------------------------------------------------------------------


# PyTorch's allocator of pinned memory asks events for their state, which is forbidden during capture; and what a
# captured copy reads must stay as it is for every replay. So a decoder has memory for the descriptors of this many
# captured passes from the beginning.
CAPTURED_PASSES = 8


class Decoder:
    """A batch of tiles. See `fastcodec.kernels.rans.Decoder`; arguments are checked already.

    Passes can be captured into CUDA graphs, `CAPTURED_PASSES` in all, with tables that were used before. A graph reads
    the decoder's memory, so the decoder must live as long; and before each replay, `state` must be what it was at the
    capture.
    """

    def __init__(self, payloads: Sequence[bytes | memoryview], where: Target) -> None:
        self._where, self._plan = where, DecodePlan(payloads)
        with where.use():
            self._memory = where.upload(self._plan.size, self._plan.write)
            self._descriptors = where.staging(CAPTURED_PASSES, len(payloads) * ctypes.sizeof(_TilePass))
        self._captured = 0
        self._shapes = [self._plan.shape(t) for t in range(len(payloads))]

    @property
    def state(self) -> Tensor:
        """All that decoding changes: streams and coder states, on the device."""
        return self._memory

    def shape(self, tile: int) -> tuple[int, int]:
        return self._shapes[tile]

    def _passes(self, symbols: Sequence[Tensor]) -> ctypes.Array:
        """The descriptors of a pass, but for what its kind has."""
        passes = (_TilePass * len(symbols))()
        for item, symbol, (_, streams) in zip(passes, symbols, self._shapes, strict=True):
            item.symbols = symbol.data_ptr()
            item.positions, item.channels.value = symbol.shape
            item.streams = streams
            item.symbol_bytes = 2
        return passes

    def _indexed(self, indexes: Sequence[Tensor], symbols: Sequence[Tensor]) -> ctypes.Array:
        passes = self._passes(symbols)
        for item, index in zip(passes, indexes, strict=True):
            item.indexes = index.data_ptr()
        return passes

    def _launch(self, passes: ctypes.Array, tables: TableSet | None, **kind: int) -> None:
        descriptors = _describe(passes, self._where, self._captured_staging())
        self._plan.decode(self._where, self._memory.data_ptr(), descriptors.data_ptr(), tables, **kind)

    def _captured_staging(self) -> Tensor | None:
        """Memory for the descriptors of a pass that is being captured; None if it is not."""
        if not self._where.capturing():
            return None
        if self._captured == CAPTURED_PASSES:
            raise FastcodecError(f"no more than {CAPTURED_PASSES} passes of a Decoder can be captured into CUDA graphs")
        self._captured += 1
        return self._descriptors[self._captured - 1]

    def decode(self, indexes: Sequence[Tensor], tables: TableSet, symbols: Sequence[Tensor]) -> None:
        with self._where.use():
            self._launch(self._indexed(indexes, symbols), tables)

    def decode_mixtures(
        self,
        weights: Sequence[Tensor],
        means: Sequence[Tensor],
        scales: Sequence[Tensor],
        symbols: Sequence[Tensor],
    ) -> None:
        with self._where.use():
            passes = self._passes(symbols)
            for item, *parameters in zip(passes, weights, means, scales, strict=True):
                _set_mixtures(item, *parameters)
            self._launch(passes, None, components=max((tensor.shape[0] for tensor in weights), default=1))

    def reconstruct(
        self,
        indexes: Sequence[Tensor],
        tables: TableSet,
        means: Sequence[Tensor],
        mean_bits: int,
        gain: Tensor | None,
        values: Sequence[Tensor],
        latents: Sequence[Tensor],
        anchors: bool,
    ) -> None:
        with self._where.use():
            symbols = [torch.empty_like(value, dtype=torch.int16) for value in values]
            passes = self._indexed(indexes, symbols)
            for item, value, mean in zip(passes, values, means, strict=True):
                item.values, item.means = value.data_ptr(), mean.data_ptr()
                item.mean_bits, item.value_stride = mean_bits, value.stride(0)
            for item, latent in zip(passes, latents, strict=False):
                item.latents, item.gain = latent.data_ptr(), gain.data_ptr()
                item.width.value = latent.shape[1]
                item.row_stride, item.column_stride = latent.stride()[:2]
                item.parity = 0 if anchors else 1
                item.latent_type = LATENT_TYPES[latent.dtype]
            self._launch(passes, tables, reconstruct=max((value.numel() for value in values), default=0))

    def finish(self) -> None:
        with self._where.use():
            self._plan.finish(self._where, self._memory.data_ptr())
            streams = self._where.download(self._memory[: self._plan.records_bytes])
        self._plan.check(streams)


def _raise(error: int, tile: int) -> None:
    check_error(error, tile, _cpu.error_text(error))


# --- encoding ---------------------------------------------------------------------------------------------------------


class _Column:
    """The passes of equal number of all tiles that one launch codes: those of one table set, or (None) of mixtures."""

    def __init__(self, tiles: Sequence[Sequence[AnyPass]], number: int, tables: TableSet | None):
        self.tables = tables
        self.passes = (_TilePass * len(tiles))()
        self.elements = self.components = 0
        for item, tile in zip(self.passes, tiles, strict=True):
            item.channels.value = item.streams = 1
            if number < len(tile) and _tables_of(tile[number]) is tables:
                coded = tile[number]
                item.symbols, item.symbol_bytes = coded.symbols.data_ptr(), coded.symbols.element_size()
                item.positions, item.channels.value = coded.symbols.shape
                if isinstance(coded, MixturePass):
                    _set_mixtures(item, *coded[1:])
                    self.components = max(self.components, item.components)
                else:
                    item.indexes = coded.indexes.data_ptr()
                self.elements = max(self.elements, coded.symbols.numel())

    def examine(self, where: Target, exact: bool) -> Tensor:
        """Costs and faults, a record for each tile, on the device."""
        results = torch.zeros(len(self.passes) * _EXAMINATION.itemsize, dtype=torch.uint8, device=where.device)
        descriptors = _describe(self.passes, where)
        arguments = _ExamineArguments(
            tables=_tables(self.tables, where),
            passes=descriptors.data_ptr(),
            results=results.data_ptr(),
            exact=exact,
            components=self.components,
        )
        _check(
            library().fastcodec_rans_cuda_examine(
                where.module, where.stream(), byref(arguments), len(self.passes), self.elements
            )
        )
        return results

    def encode(self, where: Target, plan: Plan, memory: Tensor, scratch: Tensor) -> None:
        descriptors = _describe(self.passes, where)
        base = memory.data_ptr()
        arguments = _EncodeArguments(
            tables=_tables(self.tables, where),
            warps=base + plan.warps_at,
            streams=base,
            states=base + plan.states_at,
            scratch=scratch.data_ptr(),
            passes=descriptors.data_ptr(),
            warp_count=plan.warp_count,
            components=self.components,
        )
        _check(library().fastcodec_rans_cuda_encode(where.module, where.stream(), byref(arguments)))


def _tables_of(item: AnyPass) -> TableSet | None:
    return None if isinstance(item, MixturePass) else item.tables


def _columns(tiles: Sequence[Sequence[AnyPass]]) -> list[list[_Column]]:
    """For each number of a pass its columns: one, unless tiles differ in their tables or in the kind of pass."""
    columns = []
    for number in range(max(map(len, tiles), default=0)):
        sets = [_tables_of(tile[number]) for tile in tiles if number < len(tile)]
        columns.append([_Column(tiles, number, tables) for tables in {id(found): found for found in sets}.values()])
    return columns


def _examine(
    tiles: Sequence[Sequence[AnyPass]], columns: list[list[_Column]], where: Target, exact: bool
) -> np.ndarray:
    """The cost of each tile, in 1/256 bit. Raises what the first faulty pass deserves."""
    results = [column.examine(where, exact) for group in columns for column in group]
    costs = np.zeros(len(tiles), dtype=np.uint64)
    if not results:
        return costs
    records = where.download(torch.stack(results)).view(_EXAMINATION)
    row = 0
    faults = np.zeros((len(columns), len(tiles)), dtype=np.uint32)
    for number, group in enumerate(columns):
        for _ in group:
            costs += records[row]["cost"]
            faults[number] |= records[row]["faults"]
            row += 1
    for tile in np.flatnonzero(faults.any(axis=0)).tolist():
        number = int(np.flatnonzero(faults[:, tile])[0])
        status = next(status for bit, status in enumerate(_FAULTS) if faults[number, tile] >> bit & 1)
        check_status(status, f"tile {tile}, pass {number}: ")
    return costs


def cost(item: AnyPass, where: Target) -> int:
    """The cost of one pass in 1/256 bit."""
    with where.use():
        return int(_examine([[item]], _columns([[item]]), where, exact=True)[0])


def encode(
    tiles: Sequence[Sequence[AnyPass]], preset: str, lanes: int, streams: int, where: Target
) -> tuple[Tensor, Tensor]:
    """All payloads in one tensor uint8 on the device, and begin and end of each, int64 [tiles, 2] on the host."""
    with where.use():
        return _encode(tiles, preset, lanes, streams, where)


def _encode(
    tiles: Sequence[Sequence[AnyPass]], preset: str, lanes: int, streams: int, where: Target
) -> tuple[Tensor, Tensor]:
    lib, count = library(), len(tiles)
    if count == 0:
        none = torch.empty(0, dtype=torch.uint8, device=where.device)
        return none, torch.empty(0, 2, dtype=torch.int64, device="cpu")
    columns = _columns(tiles)
    costs = _examine(tiles, columns, where, exact=False)
    shapes = [(c_uint32(lanes), c_uint32(streams)) for _ in tiles]
    for tile, cost_256, (n, s) in zip(tiles, costs.tolist(), shapes, strict=True):
        positions = max((item.symbols.shape[0] for item in tile), default=0)
        lib.fastcodec_rans_cuda_shape(cost_256, positions, _cpu.PRESETS.index(preset), byref(n), byref(s))
    begins = np.cumsum([0, *map(len, tiles)]).tolist()
    sizes = [item.symbols.shape for tile in tiles for item in tile]
    handle = c_void_p()
    status = lib.fastcodec_rans_cuda_plan_encode(
        count,
        (c_uint32 * len(begins))(*begins),
        (c_uint64 * len(sizes))(*[size[0] for size in sizes]),
        (c_uint64 * len(sizes))(*[size[1] for size in sizes]),
        (c_uint32 * count)(*[n.value for n, _ in shapes]),
        (c_uint32 * count)(*[s.value for _, s in shapes]),
        byref(handle),
    )
    _check(status)
    plan = Plan(handle)
    memory = where.upload(plan.size, plan.write)
    scratch = torch.empty(plan.scratch_units, dtype=torch.int16, device=where.device)
    for group in reversed(columns):
        for column in group:
            for item, (_, s) in zip(column.passes, shapes, strict=True):
                item.streams = s.value
            column.encode(where, plan, memory, scratch)
    base = memory.data_ptr()
    places = torch.empty(plan.stream_count * _STREAM_PLACE_BYTES, dtype=torch.uint8, device=where.device)
    pack = _PackArguments(
        streams=base,
        states=base + plan.states_at,
        scratch=scratch.data_ptr(),
        tiles=base + plan.rest_at,
        places=places.data_ptr(),
        tile_count=count,
        stream_count=plan.stream_count,
    )
    _check(lib.fastcodec_rans_cuda_arrange(where.module, where.stream(), byref(pack)))
    end = plan.rest_at + count * _TILE_PLACE.itemsize
    records = where.download(memory[plan.rest_at : end]).view(_TILE_PLACE)
    bounds = np.stack([records["offset"], records["offset"] + records["size"]], axis=1).astype(np.int64)
    out = torch.empty(int(bounds[-1, 1]), dtype=torch.uint8, device=where.device)
    pack.out = out.data_ptr()
    _check(lib.fastcodec_rans_cuda_gather(where.module, where.stream(), byref(pack)))
    return out, torch.from_numpy(bounds)
