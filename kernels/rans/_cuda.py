"""The CUDA coder on tensors of a GPU: its kernels and tables on the device, decoding and encoding.

Nothing here waits for the GPU unless it must: decoding enqueues, `CudaDecoder.finish` waits once; encoding waits for
the costs that the number of streams follows from, and for the payloads' sizes. All of it runs on PyTorch's current
stream.
"""

from __future__ import annotations

import ctypes
import threading
import weakref
from collections.abc import Callable, Sequence
from ctypes import byref, c_size_t, c_uint32, c_uint64, c_void_p
from functools import cache
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from .. import device as gpu
from .. import forks, nvrtc
from ..device import Target
from ..errors import FastcodecError, UnavailableError
from ._cpu_abi import PRESETS, error_text
from ._cuda_abi import (
    EXAMINATION,
    STREAM_BYTES,
    STREAM_OFFSETS_BYTES,
    TILE_PAYLOAD,
    DecodeArguments,
    DeviceTables,
    EncodeArguments,
    ExamineArguments,
    FinishArguments,
    PackArguments,
    PassTensors,
    TilePass,
    check_call,
    complete_passes,
    describe_pass,
    library,
)
from ._status import Status, check_error, check_status
from .passes import AnyPass, EncodeOptions, Mixture, MixturePass, Reconstruction
from .tables import TableSet, table_arrays

DRIVER = "libcuda.so.1"
IMAGE = Path(__file__).parent / "_rans_cuda.fatbin"
SOURCE = Path(__file__).parent / "cuda" / "kernels.cu"

# layout.h's enum Fault: bit i for what the CPU coder tells by the i-th of these.
_FAULTS = (Status.INDEX_RANGE, Status.WEIGHTS, Status.SYMBOL_RANGE, Status.SYMBOL_SKIPPED)

# --- kernels ----------------------------------------------------------------------------------------------------------

_lock = threading.Lock()
forks.hold(_lock)
_modules: dict[Target, c_void_p] = {}


def load_kernels(target: Target) -> c_void_p:
    """The coder's kernels on a GPU, which the first call loads.

    Raises:
        UnavailableError: no driver, or no kernels for this GPU.
    """
    with _lock:
        if target not in _modules:
            with target.use():
                _modules[target] = _load(target.device)
        return _modules[target]


def coder_target(device: torch.device) -> Target | None:
    """The GPU that codes tensors of a device, with the kernels loaded; None when the CPU does.

    Raises:
        UnavailableError: no such GPU, no driver, or no kernels for it.
    """
    target = gpu.target_of(device)
    if target is not None and target not in _modules:
        load_kernels(target)
    return target


@cache
def open_module(driver: str, image: bytes) -> c_void_p:
    """The kernels of an image, loaded by a driver."""
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
            return open_module(DRIVER, IMAGE.read_bytes())
        except UnavailableError as error:  # made by a toolkit that is newer than this driver, say
            unusable = str(error)
    else:
        unusable = f"{IMAGE.name} is not built"
    major, minor = torch.cuda.get_device_capability(device)
    try:
        image = nvrtc.compile_image(SOURCE, nvrtc.quoted_headers(SOURCE), f"sm_{major}{minor}")
    except nvrtc.NvrtcError as error:
        raise UnavailableError(f"no CUDA kernels: {unusable}, and {error}") from error
    return open_module(DRIVER, image)


# --- tables -----------------------------------------------------------------------------------------------------------

_Uploads = dict[Target, tuple[DeviceTables, Tensor]]
_uploaded: weakref.WeakKeyDictionary[TableSet, _Uploads] = weakref.WeakKeyDictionary()
_uploaded_for_mixtures: _Uploads = {}


def _tables(tables: TableSet | None, target: Target) -> DeviceTables:
    """A set's layout on the device, or that of mixture.h's tables for None; its blob is uploaded once."""
    with _lock:
        known = _uploaded_for_mixtures if tables is None else _uploaded.setdefault(tables, {})
        if target not in known:
            if target.is_capturing():  # a graph's copies happen when it is replayed; others use the tables before that
                what = "a pass of mixtures" if tables is None else "with these tables"
                raise FastcodecError(f"decode {what} once before a CUDA graph with it is captured")
            layout = DeviceTables()
            write = _table_writer(tables, layout)
            write(None)
            blob = target.upload(layout.end, write)
            target.synchronize()  # any stream may read the tables from here on
            layout.blob = blob.data_ptr()
            known[target] = (layout, blob)
        return known[target][0]


def _table_writer(tables: TableSet | None, layout: DeviceTables) -> Callable[[int | None], None]:
    """A function that completes the layout and writes the blob to an address on the host, unless it is None."""
    if tables is None:
        return lambda address: library().fastcodec_rans_cuda_mixture_tables(byref(layout), address)
    firsts, sizes, frequencies = table_arrays(tables)

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
        check_call(status)

    return write


# --- plans ------------------------------------------------------------------------------------------------------------


class Plan:
    """A batch's descriptors on the host: what one piece of the device's memory is to hold, and at which offsets."""

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
        return self.stream_count * STREAM_BYTES


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
        check_call(status)
        _raise(error.value, tile.value)
        super().__init__(handle)
        self.tiles = count

    def decode(
        self,
        target: Target,
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
        arguments = DecodeArguments(
            tables=_tables(tables, target),
            warps=base + self.warps_at,
            streams=base,
            states=base + self.states_at,
            payloads=base + self.rest_at,
            passes=passes,
            warp_count=self.warp_count,
            components=components,
        )
        check_call(
            library().fastcodec_rans_cuda_decode(
                _modules[target], target.stream_handle(), byref(arguments), self.full, self.tiles, reconstruct
            )
        )

    def finish(self, target: Target, base: int) -> None:
        """Enqueues the check of every stream's end, which leaves its outcome in the streams' records."""
        arguments = FinishArguments(
            streams=base, states=base + self.states_at, lanes=base + self.lanes_at, stream_count=self.stream_count
        )
        check_call(library().fastcodec_rans_cuda_finish(_modules[target], target.stream_handle(), byref(arguments)))


def _upload_passes(records: ctypes.Array[TilePass], target: Target, staging: Tensor | None = None) -> Tensor:
    """Descriptors on the device."""
    complete_passes(records)
    size = ctypes.sizeof(records)
    return target.upload(size, lambda address: ctypes.memmove(address, records, size), staging)


# --- decoding ---------------------------------------------------------------------------------------------------------


# PyTorch's allocator of pinned memory asks events for their state, which is forbidden during capture; and what a
# captured copy reads must stay as it is for every replay. So a decoder has memory for the descriptors of this many
# captured passes from the beginning.
CAPTURED_PASSES = 8


class CudaDecoder:
    """A batch of tiles. See `fastcodec.kernels.rans.Decoder`; arguments are checked already.

    Passes can be captured into CUDA graphs, `CAPTURED_PASSES` in all, with tables that were used before. A graph reads
    the decoder's memory, so the decoder must live as long; and before each replay, `state` must be what it was at the
    capture.
    """

    def __init__(self, payloads: Sequence[bytes | memoryview], target: Target) -> None:
        self._target, self._plan = target, DecodePlan(payloads)
        with target.use():
            self._memory = target.upload(self._plan.size, self._plan.write)
            self._descriptors = target.staging(CAPTURED_PASSES, len(payloads) * ctypes.sizeof(TilePass))
        self._captured = 0
        self._shapes = [self._plan.shape(t) for t in range(len(payloads))]

    @property
    def state(self) -> Tensor:
        """All that decoding changes: streams and coder states, on the device."""
        return self._memory

    def shape(self, tile: int) -> tuple[int, int]:
        return self._shapes[tile]

    def _launch(self, passes: Sequence[PassTensors], tables: TableSet | None, **kind: int) -> None:
        records = (TilePass * len(passes))()
        for record, tensors, (_, streams) in zip(records, passes, self._shapes, strict=True):
            describe_pass(record, tensors, streams)
        descriptors = _upload_passes(records, self._target, self._captured_staging())
        self._plan.decode(self._target, self._memory.data_ptr(), descriptors.data_ptr(), tables, **kind)

    def _captured_staging(self) -> Tensor | None:
        """Memory for the descriptors of a pass that is being captured; None if it is not."""
        if not self._target.is_capturing():
            return None
        if self._captured == CAPTURED_PASSES:
            raise FastcodecError(f"no more than {CAPTURED_PASSES} passes of a Decoder can be captured into CUDA graphs")
        self._captured += 1
        return self._descriptors[self._captured - 1]

    def decode(self, indexes: Sequence[Tensor], tables: TableSet, symbols: Sequence[Tensor]) -> None:
        with self._target.use():
            self._launch([PassTensors(*tensors) for tensors in zip(symbols, indexes, strict=True)], tables)

    def decode_mixtures(self, mixtures: Sequence[Mixture], symbols: Sequence[Tensor]) -> None:
        with self._target.use():
            passes = [PassTensors(s, mixture=mixture) for s, mixture in zip(symbols, mixtures, strict=True)]
            self._launch(passes, None, components=max((len(mixture.weights) for mixture in mixtures), default=1))

    def reconstruct(self, indexes: Sequence[Tensor], tables: TableSet, wanted: Reconstruction) -> None:
        with self._target.use():
            passes = [
                PassTensors(torch.empty_like(index, dtype=torch.int16), index, None, mean, wanted.mean_bits, value)
                for index, mean, value in zip(indexes, wanted.means, wanted.values, strict=True)
            ]
            if wanted.latents:
                passes = [
                    tensors._replace(latents=latents, gain=wanted.gain, anchors=wanted.anchors)
                    for tensors, latents in zip(passes, wanted.latents, strict=True)
                ]
            self._launch(passes, tables, reconstruct=max((value.numel() for value in wanted.values), default=0))

    def finish(self) -> None:
        with self._target.use():
            self._plan.finish(self._target, self._memory.data_ptr())
            streams = self._target.download(self._memory[: self._plan.records_bytes])
        self._plan.check(streams)


def _raise(error: int, tile: int) -> None:
    check_error(error, tile, error_text(error))


# --- encoding ---------------------------------------------------------------------------------------------------------


class _Column:
    """The passes of equal number of all tiles that one launch codes: those of one table set, or (None) of mixtures."""

    def __init__(self, tiles: Sequence[Sequence[AnyPass]], number: int, tables: TableSet | None) -> None:
        self.tables = tables
        self.records = (TilePass * len(tiles))()
        self.elements = self.components = 0
        for record, tile in zip(self.records, tiles, strict=True):
            if not (number < len(tile) and _tables_of(tile[number]) is tables):
                describe_pass(record, PassTensors())
                continue
            item = tile[number]
            if isinstance(item, MixturePass):
                describe_pass(record, PassTensors(item.symbols, mixture=Mixture(*item[1:])))
            else:
                describe_pass(record, PassTensors(item.symbols, item.indexes))
            self.components = max(self.components, record.components)
            self.elements = max(self.elements, item.symbols.numel())

    def examine(self, target: Target, exact: bool) -> Tensor:
        """Costs and faults, a record for each tile, on the device."""
        results = torch.zeros(len(self.records) * EXAMINATION.itemsize, dtype=torch.uint8, device=target.device)
        descriptors = _upload_passes(self.records, target)
        arguments = ExamineArguments(
            tables=_tables(self.tables, target),
            passes=descriptors.data_ptr(),
            results=results.data_ptr(),
            exact=exact,
            components=self.components,
        )
        check_call(
            library().fastcodec_rans_cuda_examine(
                _modules[target], target.stream_handle(), byref(arguments), len(self.records), self.elements
            )
        )
        return results

    def encode(self, target: Target, plan: Plan, memory: Tensor, scratch: Tensor) -> None:
        descriptors = _upload_passes(self.records, target)
        base = memory.data_ptr()
        arguments = EncodeArguments(
            tables=_tables(self.tables, target),
            warps=base + plan.warps_at,
            streams=base,
            states=base + plan.states_at,
            scratch=scratch.data_ptr(),
            passes=descriptors.data_ptr(),
            warp_count=plan.warp_count,
            components=self.components,
        )
        check_call(library().fastcodec_rans_cuda_encode(_modules[target], target.stream_handle(), byref(arguments)))


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
    tiles: Sequence[Sequence[AnyPass]], columns: list[list[_Column]], target: Target, exact: bool
) -> np.ndarray:
    """The cost of each tile, in 1/256 bit. Raises what the first faulty pass deserves."""
    results = [column.examine(target, exact) for group in columns for column in group]
    costs = np.zeros(len(tiles), dtype=np.uint64)
    if not results:
        return costs
    records = target.download(torch.stack(results)).view(EXAMINATION)
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


def cost(item: AnyPass, target: Target) -> int:
    """The cost of one pass in 1/256 bit."""
    with target.use():
        return int(_examine([[item]], _columns([[item]]), target, exact=True)[0])


def encode(tiles: Sequence[Sequence[AnyPass]], options: EncodeOptions, target: Target) -> tuple[Tensor, Tensor]:
    """All payloads in one tensor uint8 on the device, and begin and end of each, int64 [tiles, 2] on the host."""
    with target.use():
        return _encode(tiles, options, target)


def _encode(tiles: Sequence[Sequence[AnyPass]], options: EncodeOptions, target: Target) -> tuple[Tensor, Tensor]:
    lib, count = library(), len(tiles)
    if count == 0:
        none = torch.empty(0, dtype=torch.uint8, device=target.device)
        return none, torch.empty(0, 2, dtype=torch.int64, device="cpu")
    columns = _columns(tiles)
    costs = _examine(tiles, columns, target, exact=False)
    shapes = [(c_uint32(options.lanes), c_uint32(options.streams)) for _ in tiles]
    for tile, cost_256, (n, s) in zip(tiles, costs.tolist(), shapes, strict=True):
        positions = max((item.symbols.shape[0] for item in tile), default=0)
        lib.fastcodec_rans_cuda_shape(cost_256, positions, PRESETS.index(options.preset), byref(n), byref(s))
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
    check_call(status)
    plan = Plan(handle)
    memory = target.upload(plan.size, plan.write)
    scratch = torch.empty(plan.scratch_units, dtype=torch.int16, device=target.device)
    for group in reversed(columns):
        for column in group:
            for item, (_, s) in zip(column.records, shapes, strict=True):
                item.streams = s.value
            column.encode(target, plan, memory, scratch)
    base = memory.data_ptr()
    offsets = torch.empty(plan.stream_count * STREAM_OFFSETS_BYTES, dtype=torch.uint8, device=target.device)
    pack = PackArguments(
        streams=base,
        states=base + plan.states_at,
        scratch=scratch.data_ptr(),
        tiles=base + plan.rest_at,
        offsets=offsets.data_ptr(),
        tile_count=count,
        stream_count=plan.stream_count,
    )
    check_call(lib.fastcodec_rans_cuda_arrange(_modules[target], target.stream_handle(), byref(pack)))
    end = plan.rest_at + count * TILE_PAYLOAD.itemsize
    records = target.download(memory[plan.rest_at : end]).view(TILE_PAYLOAD)
    bounds = np.stack([records["offset"], records["offset"] + records["size"]], axis=1).astype(np.int64)
    out = torch.empty(int(bounds[-1, 1]), dtype=torch.uint8, device=target.device)
    pack.out = out.data_ptr()
    check_call(lib.fastcodec_rans_cuda_gather(_modules[target], target.stream_handle(), byref(pack)))
    return out, torch.from_numpy(bounds)
