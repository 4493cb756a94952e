"""The entropy coder on a GPU: what its kernels reach when the GPU is full, one image's latency, energy, and peers.

`run()` returns the figures that bench/results/gpu.json holds; those of the whole codec, "codec", are gpu_codec.py's.
Times of kernels are CUDA events right before and after a launch, medians over launches; a wait on the GPU before the
first event keeps the host's own time out of them. Decoding changes a decoder's state: its pristine copy is put back
before each launch, outside of the events.

What is timed is checked in the same run: payloads against the CPU coder's bytes, symbols and values against the input.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fastcodec.entropy.fixed_point import MEAN_BITS
from fastcodec.entropy.gaussian import COUNT, SCALES, gaussian_tables
from fastcodec.errors import UnavailableError
from fastcodec.kernels import nvrtc
from fastcodec.kernels.rans import _cuda, cuda_status
from fastcodec.rans import Decoder, MixturePass, Pass, TableSet, available_isas, encode, quantise_mixtures

from . import _common, coder

SECONDS = 65.0  # after that, what is left of the grids is left out
CODEC = ("-m", "bench.gpu_codec")  # what Python runs to measure the codec
CODEC_SECONDS = 88.0  # after that it is stopped: it ends by itself before, unless the GPU hangs
WAVES = 2  # full loads of all multiprocessors that a launch consists of
WARP = 32
SCHEDULERS = 4  # of a multiprocessor, each issuing an instruction of a warp a cycle: since Volta
WIDTH = 64  # of a tile, in latents

# How often the swift model uses each table index at quality 60, anchors and non-anchors of eight Kodak images, of
# 10,000. It is 0.51 bits a pixel there.
# fmt: off
SWIFT = (
    3568, 272, 281, 291, 302, 314, 320, 326, 324, 319, 310, 301, 289, 274, 259, 243, 225, 207, 190, 171, 152, 137, 122,
    107, 94, 83, 73, 62, 54, 46, 39, 34, 29, 25, 22, 19, 17, 15, 13, 11, 10, 8, 7, 5, 4, 4, 3, 3, 3, 3, 4, 3, 2, 1, 1,
)
# fmt: on
SWIFT_NAME = "swift at quality 60"
MIXES: dict[str, tuple[int, int] | tuple[int, ...]] = {**coder.MIXES, SWIFT_NAME: SWIFT}
# Of mixtures: the range of the sigmas, and how far from 0 the means are, for what a trained network gives and for any.
MIXTURES = {"sigmas 0.11..2": (0.11, 2.0, 2.0), "sigmas 0.11..64": (0.11, 64.0, 20.0)}
COMPONENTS = 3
REFERENCE = "1..48"  # the mix whose energy is measured, and that peers get


@dataclass(frozen=True)
class Sizes:
    """How much is coded and how often."""

    symbols: int = 1 << 28
    checked_symbols: int = 1 << 24  # also coded by the CPU, and compared
    peer_symbols: int = 1 << 26
    repeats: int = 7
    energy_seconds: float = 1.5
    lanes: tuple[int, ...] = (1, 2, 4, 8, 16, 32)
    streams: tuple[int, ...] = (1, 2, 4, 8, 16)
    image: tuple[int, int] = (32, 48)  # latents of a Kodak image


class MismatchError(RuntimeError):
    """The GPU's results are not the CPU's."""


# --- the machine ------------------------------------------------------------------------------------------------------


class Nvml:
    """What the driver counts, through nvidia-ml-py. Every figure is None where it is not to be had."""

    def __init__(self, uuid: str):
        self._nvml = self._handle = None
        try:
            import pynvml

            pynvml.nvmlInit()
            self._nvml = pynvml
            try:
                self._handle = pynvml.nvmlDeviceGetHandleByUUID(uuid)
            except pynvml.NVMLError:
                self._handle = pynvml.nvmlDeviceGetHandleByIndex(torch.cuda.current_device())
        except Exception as error:  # the package, the library or the permission is missing
            self.missing = f"no NVML: {error}"
        else:
            self.missing = ""

    def _ask(self, name: str, *arguments: Any) -> Any:
        if self._handle is None:
            return None
        try:
            return getattr(self._nvml, name)(self._handle, *arguments)
        except Exception:  # not supported by this GPU, or by this version of the package
            return None

    def driver(self) -> str | None:
        try:
            return self._nvml.nvmlSystemGetDriverVersion()
        except Exception:
            return None

    def joules(self) -> float | None:
        """Counted since the driver was loaded."""
        millijoules = self._ask("nvmlDeviceGetTotalEnergyConsumption")
        return None if millijoules is None else millijoules / 1e3

    def watts(self) -> float | None:
        milliwatts = self._ask("nvmlDeviceGetPowerUsage")
        return None if milliwatts is None else milliwatts / 1e3

    def sm_mhz(self) -> int | None:
        return self._ask("nvmlDeviceGetClockInfo", 1)  # NVML_CLOCK_SM

    def memory_mhz(self) -> int | None:
        return self._ask("nvmlDeviceGetClockInfo", 2)  # NVML_CLOCK_MEM

    def peak_bandwidth(self) -> float | None:
        """Bytes a second of the device memory: two transfers a cycle of its fastest clock."""
        mhz, bits = self._ask("nvmlDeviceGetMaxClockInfo", 2), self._ask("nvmlDeviceGetMemoryBusWidth")
        return 2 * mhz * 1e6 * bits / 8 if mhz and bits else None


class Machine:
    """The GPU with its clocks. Tests put one in its place that has none of this."""

    def __init__(self) -> None:
        if missing := cuda_status():
            raise _common.CannotRunError(f"the coder finds no GPU to run on: {missing}")
        self.device = torch.device("cuda", torch.cuda.current_device())
        properties = torch.cuda.get_device_properties(self.device)
        self.name: str = properties.name
        self.multiprocessors: int = properties.multi_processor_count
        self.capability = properties.major * 10 + properties.minor
        self.nvml = Nvml(f"GPU-{getattr(properties, 'uuid', '')}")

    def kernels(self) -> AbstractContextManager:
        """Within it, tensors on the device are coded by the CUDA kernels."""
        return nullcontext()

    def most_symbols(self) -> int:
        """Of a batch: about 20 bytes of memory for each are in use at a time."""
        return torch.cuda.mem_get_info(self.device)[0] // 40

    def side_stream(self) -> AbstractContextManager:
        """Within it, a stream of its own is the current one: the default one's handle, 0, means "none" to some."""
        return torch.cuda.stream(torch.cuda.Stream(self.device))

    def synchronize(self) -> None:
        torch.cuda.synchronize(self.device)

    def hold(self, cycles: int = 200_000) -> None:
        """Keeps the GPU busy while the host prepares what is to be timed: a tenth of a millisecond."""
        torch.cuda._sleep(cycles)

    def mark(self) -> Any:
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event

    def between(self, begin: Any, end: Any) -> float:
        """Seconds; both marks must have been reached."""
        return begin.elapsed_time(end) / 1e3

    def image(self) -> tuple[str, Path | None]:
        """Who compiled the kernels that run, and their machine code."""
        if _cuda.IMAGE.exists():
            try:
                if _cuda._module(_cuda.DRIVER, _cuda.IMAGE.read_bytes()) is _cuda.target(self.device).module:
                    return "nvcc", _cuda.IMAGE
            except UnavailableError:
                pass
        code = nvrtc.compile_image(_cuda.SOURCE, nvrtc.quoted_headers(_cuda.SOURCE), f"sm_{self.capability}")
        path = Path(tempfile.mkdtemp()) / "rans.cubin"
        path.write_bytes(code)
        return "NVRTC", path

    def copy_bandwidth(self) -> float:
        """Bytes read and written a second by a copy within device memory: a bound that is reached in practice."""
        source = torch.empty(1 << 30, dtype=torch.uint8, device=self.device).fill_(1)
        target = torch.empty_like(source)
        times = []
        for _ in range(6):
            self.hold()
            begin = self.mark()
            target.copy_(source)
            times.append((begin, self.mark()))
        self.synchronize()
        return 2 * source.numel() / float(np.median([self.between(*pair) for pair in times[1:]]))


def describe(machine: Machine) -> dict[str, Any]:
    """The GPU, its driver, and the compiler of the kernels."""
    kind, path = machine.image()
    compiler = None
    if path is not None:
        found = re.search(rb"Cuda compilation tools, release [\d.]+, V([\d.]+)", path.read_bytes())
        compiler = found[1].decode() if found else None
    return {
        "name": machine.name,
        "multiprocessors": machine.multiprocessors,
        "capability": machine.capability / 10,
        "driver": machine.nvml.driver(),
        "cuda": torch.version.cuda,
        "kernels_by": kind,
        "compiler": compiler,
        "copy_gb_s": machine.copy_bandwidth() / 1e9,
        "peak_gb_s": None if (peak := machine.nvml.peak_bandwidth()) is None else peak / 1e9,
        "nvml": machine.nvml.missing or "available",
    }


def instructions(machine: Machine) -> dict[str, int]:
    """Instructions of a step of each coding kernel, counted in the machine code that runs: tests/kernel_table.py."""
    _, path = machine.image()
    if path is None:
        return {}
    sys.path.append(str(_common.ROOT / "tests"))
    try:
        import kernel_table

        counts = {}
        for (kernel, _), versions in kernel_table.loops_by_kernel(path).items():
            # What the driver takes: the newest of the same generation.
            fitting = [t for t in versions if t // 10 == machine.capability // 10 and t <= machine.capability]
            if fitting:
                counts[kernel] = len(versions[max(fitting)].instructions)
        return counts
    finally:
        sys.path.remove(str(_common.ROOT / "tests"))


# --- the clock --------------------------------------------------------------------------------------------------------


class _Recorder:
    """The coder's host library, with marks before and after everything that it launches."""

    LAUNCHES = ("decode", "finish", "examine", "encode", "arrange", "gather")

    def __init__(self, machine: Machine, library: Any):
        self._machine, self._library = machine, library
        self.marks: list[tuple[str, Any, Any]] = []

    def __getattr__(self, name: str) -> Any:
        function = getattr(self._library, name)
        launch = name.removeprefix("fastcodec_rans_cuda_")
        if launch not in self.LAUNCHES:
            return function

        def timed(*arguments: Any) -> int:
            self._machine.hold()
            begin = self._machine.mark()
            status = function(*arguments)
            self.marks.append((launch, begin, self._machine.mark()))
            return status

        return timed


@contextmanager
def _recording(machine: Machine) -> Iterator[_Recorder]:
    library, recorder = _cuda.library, _Recorder(machine, _cuda.library())
    _cuda.library = lambda: recorder
    try:
        yield recorder
    finally:
        _cuda.library = library


@dataclass
class Launches:
    """Seconds of each launch by what was launched, and the clock of the multiprocessors while they ran."""

    seconds: dict[str, list[float]]
    sm_mhz: int | None

    def median(self, *names: str) -> float:
        """Of all that one call launched under these names, together."""
        return float(np.median(np.sum([self.seconds[name] for name in names], axis=0)))


def launches(machine: Machine, call: Callable[[], object], repeats: int, before: Callable[[], object] | None = None):
    """Times what `call` launches, after one to warm up. What it launches twice counts together."""
    rounds: list[dict[str, list[tuple[Any, Any]]]] = []
    with machine.kernels(), _recording(machine) as recorder:
        for _ in range(repeats + 1):
            if before:
                before()
            recorder.marks.clear()
            call()
            found: dict[str, list[tuple[Any, Any]]] = {}
            for name, begin, end in recorder.marks:
                found.setdefault(name, []).append((begin, end))
            rounds.append(found)
        sm_mhz = machine.nvml.sm_mhz()  # some of them are still running
        machine.synchronize()
    return Launches(
        {
            name: [sum(machine.between(*pair) for pair in found[name]) for found in rounds[1:]]
            for name in rounds[0]  # each call launches the same
        },
        sm_mhz,
    )


def wall_seconds(machine: Machine, call: Callable[[], object], repeats: int) -> float:
    """Median time of a call until the GPU is done, by the host's clock, after one to warm up."""
    times = []
    with machine.kernels():
        for _ in range(repeats + 1):
            machine.synchronize()
            start = time.perf_counter()
            call()
            machine.synchronize()
            times.append(time.perf_counter() - start)
    return float(np.median(times[1:]))


class Budget:
    """The time that is left. `allows` remembers how long things of a kind took, and says whether another one fits."""

    def __init__(self, seconds: float):
        self._end = time.perf_counter() + seconds
        self._longest: dict[str, float] = {}
        self._last: tuple[str, float] | None = None
        self.skipped: list[str] = []

    def allows(self, kind: str, what: str, first: float = 10.0) -> bool:
        """`first`: seconds that the first of its kind may take."""
        now = time.perf_counter()
        if self._last is not None:
            last, start = self._last
            self._longest[last] = max(self._longest.get(last, 0.0), now - start)
        fits = now + self._longest.get(kind, first) < self._end
        self._last = (kind, now) if fits else None
        if not fits:
            self.skipped.append(what)
        return fits


class Parts:
    """The parts of a benchmark: one that fails leaves the failure's text in its place, and the others run."""

    def __init__(self) -> None:
        self.failures: list[str] = []

    def attempt(self, name: str, body: Callable[[], Any], **labels: Any) -> Any:
        """What `body` returns; else the labels, and the failure as "failed"."""
        try:
            return body()
        except Exception as error:
            self.failures.append(name)
            _common.console.print(f"{name} failed: {error}", markup=False, highlight=False, soft_wrap=True)
            return {**labels, "failed": traceback.format_exc()}


class Meter:
    """Energy and clocks from its making to `stop`: the energy counter's, else power times time."""

    def __init__(self, nvml: Nvml):
        self._nvml = nvml
        self._samples: dict[str, list[float]] = {"watts": [], "sm_mhz": [], "memory_mhz": []}
        self._before, self._start = nvml.joules(), time.perf_counter()

    @property
    def seconds(self) -> float:
        """Since it was made."""
        return time.perf_counter() - self._start

    def sample(self) -> None:
        """To be called while the GPU is busy."""
        for name, values in self._samples.items():
            if (value := getattr(self._nvml, name)()) is not None:
                values.append(value)

    def stop(self) -> tuple[float, float | None, dict[str, Any]]:
        """Seconds, joules, and the means of what was sampled. The GPU must be done."""
        seconds, after = self.seconds, self._nvml.joules()
        means = {name: float(np.mean(values)) if values else None for name, values in self._samples.items()}
        counted = self._before is not None and after is not None and after > self._before
        joules = after - self._before if counted else means["watts"] * seconds if means["watts"] else None
        by = "energy counter" if counted else "power times time" if joules else None
        return seconds, joules, {"measured_by": by, **means, "nvml": self._nvml.missing or "available"}


# --- what is coded ----------------------------------------------------------------------------------------------------


@cache
def dense_tables() -> TableSet:
    """The Gaussian tables without the one that is not coded, so that each index is one less."""
    tables = gaussian_tables()
    return TableSet([(tables.first_symbol(i), tables.frequencies(i)) for i in range(1, COUNT)])


@dataclass
class Batch:
    """Symbols and indexes, [tiles, positions, channels] on the machine's device, and their tables."""

    symbols: Tensor
    indexes: Tensor
    tables: TableSet

    @property
    def coded(self) -> int:
        """Symbols that take part in a step."""
        return int(torch.count_nonzero(self.indexes)) if self.tables.skip else self.indexes.numel()

    def tiles(self, most: int | None = None) -> list[list[Pass]]:
        return [[Pass(s, i, self.tables)] for s, i in zip(self.symbols[:most], self.indexes[:most], strict=True)]

    def on_cpu(self, tiles: int) -> list[list[Pass]]:
        """Its first tiles, for the CPU coder."""
        return [
            [Pass(s, i, self.tables)]
            for s, i in zip(self.symbols[:tiles].cpu(), self.indexes[:tiles].cpu(), strict=True)
        ]


def draw(
    machine: Machine, shape: tuple[int, int, int], mix: str | tuple[int, ...], *, dense: bool = False, seed: int = 0
) -> Batch:
    """Indexes of a mix, each symbol from the Gaussian of its index, tile by tile: so less memory is needed."""
    counts = MIXES[mix] if isinstance(mix, str) else mix
    generator = torch.Generator(machine.device).manual_seed(seed)
    scales = torch.tensor(SCALES, dtype=torch.float32, device=machine.device)
    edges = torch.tensor(np.cumsum(counts)[:-1] / np.sum(counts), dtype=torch.float32, device=machine.device)
    symbols = torch.empty(shape, dtype=torch.int16, device=machine.device)
    indexes = torch.empty(shape, dtype=torch.uint8, device=machine.device)
    for tile in range(shape[0]):
        if len(counts) == 2:  # all indexes of a range alike; else counts of each
            drawn = torch.randint(*counts, shape[1:], generator=generator, device=machine.device)
        else:
            drawn = torch.bucketize(torch.rand(shape[1:], generator=generator, device=machine.device), edges)
        noise = torch.randn(shape[1:], generator=generator, device=machine.device)
        symbols[tile] = (noise * scales[drawn]).round() * (drawn != 0)
        indexes[tile] = drawn - int(dense)
    return Batch(symbols, indexes, dense_tables() if dense else gaussian_tables())


def _threads(name: str) -> int:
    """A kernel's threads, from where they stand."""
    return int(re.search(rf"{name} = (\d+);", Path(_cuda.SOURCE).with_name("layout.h").read_text("utf-8"))[1])


def _match(one: Any, other: Any, what: str) -> None:
    equal = torch.equal(one, other) if isinstance(one, Tensor) else one == other
    if not equal:
        raise MismatchError(f"{what}: not what the CPU coder and the input say")


def _pristine(decoder: Decoder) -> Callable[[], None]:
    """Puts a decoder back to where it is now: streams and states, not the payload behind them, which stays."""
    state = decoder._impl.state[: decoder._impl._plan.rest_at]
    copy = state.clone()
    return lambda: state.copy_(copy)


# --- a full GPU -------------------------------------------------------------------------------------------------------


@dataclass
class Bounds:
    """What a kernel's speed is set against."""

    copy: float | None  # bytes a second
    peak: float | None
    instructions: dict[str, int]


def _figures(
    machine: Machine, bounds: Bounds, kernel: str, batch: Batch, timed: Launches, seconds: float, byte_count: float
) -> dict[str, Any]:
    """Speed of a kernel, and its place under the roofline: of memory, and of instructions issued."""
    count = batch.symbols.numel()
    rate = byte_count / seconds
    figures: dict[str, Any] = {
        "gsymbols": count / seconds / 1e9,
        "seconds": seconds,
        "bytes_per_symbol": byte_count / count,
        "gb_s": rate / 1e9,
        "of_copy_bandwidth": rate / bounds.copy if bounds.copy else None,
        "of_peak_bandwidth": rate / bounds.peak if bounds.peak else None,
        "sm_mhz": timed.sm_mhz,
        "instructions_per_step": bounds.instructions.get(kernel),
        "of_issue_rate": None,  # of the steps alone: what looks for coded elements, or refills, comes on top
    }
    if figures["instructions_per_step"] and timed.sm_mhz:
        issued = figures["instructions_per_step"] * batch.coded / WARP
        figures["of_issue_rate"] = issued / (seconds * timed.sm_mhz * 1e6 * machine.multiprocessors * SCHEDULERS)
    return figures


def full_gpu(machine: Machine, sizes: Sizes, bounds: Bounds, mix: str, dense: bool) -> dict[str, Any]:
    """One row: every kernel and the calls through Python, on tiles and streams that load all multiprocessors evenly."""
    tiles = machine.multiprocessors
    limit = min(sizes.symbols, machine.most_symbols())
    positions = max(1, limit // (tiles * coder.CHANNELS * WARP)) * WARP
    batch = draw(machine, (tiles, positions, coder.CHANNELS), mix, dense=dense)
    count, passes, indexes = batch.symbols.numel(), batch.tiles(), list(batch.indexes)
    streams = _threads("kCoderThreads") // WARP * WAVES
    options = {"lanes": WARP, "streams": streams}
    suffix = "dense" if dense else "skip"

    with machine.kernels():
        payloads = encode(passes, **options)
    size = sum(map(len, payloads))
    few = max(1, min(tiles, sizes.checked_symbols // (positions * coder.CHANNELS)))
    compared = batch.on_cpu(few)
    _match(payloads[:few], encode(compared, **options), "payloads")
    row: dict[str, Any] = {
        "indexes": mix,
        "tables": suffix,
        "bits_per_symbol": 8 * size / count,
        "coded": batch.coded / count,
        "symbols": count,
        "tiles": tiles,
        "streams": streams,
    }

    timed = launches(machine, lambda: encode(passes, **options), max(1, sizes.repeats // 2))
    seconds = timed.median("encode")
    row["encode"] = _figures(machine, bounds, f"encode_{suffix}", batch, timed, seconds, 3 * count + size)
    whole = timed.median("examine", "encode", "arrange", "gather")
    row["encode"]["gsymbols_of_all_kernels"] = count / whole / 1e9

    row["decode"] = _decode(machine, sizes, bounds, batch, payloads, suffix)
    row["reconstruct"] = _reconstruct(machine, sizes, bounds, batch, suffix)

    def decoded() -> None:
        decoder = Decoder(payloads, device=machine.device)
        decoder.decode(indexes, batch.tables)
        decoder.finish()

    encoding = wall_seconds(machine, lambda: encode(passes, **options), max(1, sizes.repeats // 3))
    decoding = wall_seconds(machine, decoded, max(1, sizes.repeats // 2))
    row["calls"] = {
        "encode_gsymbols": count / encoding / 1e9,
        "encode_payload_gb_s": size / encoding / 1e9,
        "decode_gsymbols": count / decoding / 1e9,
        "decode_payload_gb_s": size / decoding / 1e9,
    }
    row["cpu"] = _cpu(compared, payloads[:few], options)
    best = max(isa["decode"] for isa in row["cpu"]["one_thread"])
    row["decode"]["times_a_cpu_core"] = row["decode"]["gsymbols"] * 1e3 / best
    return row


def _decode(
    machine: Machine, sizes: Sizes, bounds: Bounds, batch: Batch, payloads: list[bytes], suffix: str
) -> dict[str, Any]:
    """Decoding to int16 symbols."""
    with machine.kernels():
        decoder = Decoder(payloads, device=machine.device)
    outputs = list(torch.full_like(batch.symbols, -99))
    call = partial(decoder.decode, list(batch.indexes), batch.tables, out=outputs)
    timed = launches(machine, call, sizes.repeats, _pristine(decoder))
    with machine.kernels():
        decoder.finish()
    _match(torch.stack(outputs), batch.symbols, "decoded symbols")
    byte_count = (1 + 2) * batch.symbols.numel() + sum(map(len, payloads))  # an index is read, a symbol written
    return _figures(machine, bounds, f"decode_full_{suffix}", batch, timed, timed.median("decode"), byte_count)


def _reconstruct(machine: Machine, sizes: Sizes, bounds: Bounds, batch: Batch, suffix: str) -> dict[str, Any]:
    """Decoding with everything that `reconstruct` writes: int32 values, and bfloat16 latents at their places."""
    tiles, positions, channels = batch.symbols.shape
    count, indexes = batch.symbols.numel(), list(batch.indexes)
    with machine.kernels():
        streams = _threads("kCoderThreads") // WARP * WAVES
        payloads = encode(batch.tiles(), lanes=WARP, streams=streams)
        decoder = Decoder(payloads, device=machine.device)
    size = sum(map(len, payloads))
    means = torch.randint(-3000, 3000, batch.symbols.shape, dtype=torch.int16, device=machine.device)
    gain = torch.rand(channels, device=machine.device)
    values = list(torch.full(batch.symbols.shape, -99, dtype=torch.int32, device=machine.device))
    rows = 2 * positions // WIDTH
    latents = torch.zeros(tiles, rows, WIDTH, channels, dtype=torch.bfloat16, device=machine.device)
    arguments = {"mean_bits": MEAN_BITS, "gain": gain, "latents": list(latents), "out": values}
    call = partial(decoder.reconstruct, indexes, batch.tables, list(means), **arguments)
    timed = launches(machine, call, sizes.repeats, _pristine(decoder))
    with machine.kernels():
        decoder.finish()
    for tile in range(tiles):
        _match(values[tile], (batch.symbols[tile].int() << MEAN_BITS) + means[tile], "values")
    odd = (torch.arange(rows)[:, None] + torch.arange(WIDTH)) % 2 == 1
    _match(latents[0][~odd.to(machine.device)], (values[0].float() * gain).bfloat16(), "latents")
    _match(latents[0][odd.to(machine.device)].count_nonzero().cpu(), torch.tensor(0), "latents between")
    seconds = timed.median("decode")
    # An index and a mean are read, a value and a latent are written; between the two kernels, a symbol both ways.
    return _figures(
        machine, bounds, f"decode_full_{suffix}", batch, timed, seconds, (1 + 2 + 4 + 2 + 2 * 2) * count + size
    )


def _cpu(tiles: list[list[Pass]], payloads: list[bytes], options: dict[str, int]) -> dict[str, Any]:
    """The CPU coder on the same data, Msymbol/s: each instruction set on one thread and one tile, and all threads."""
    [item], payload = tiles[0], payloads[0]
    rows = []
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        for isa in available_isas():
            call = partial(encode, [[item]], threads=1, isa=isa, **options)
            encoding = coder.seconds(call, 3)
            decoding = coder.decode_seconds(payload, item, isa, 3)
            count = item.symbols.numel()
            rows.append({"isa": isa, "encode": count / encoding / 1e6, "decode": count / decoding / 1e6})
    finally:
        torch.set_num_threads(threads)
    count = sum(item.symbols.numel() for [item] in tiles)

    def decoded() -> None:
        decoder = Decoder(payloads)
        decoder.decode([item.indexes for [item] in tiles], tiles[0][0].tables)
        decoder.finish()

    def seconds(call: Callable[[], object]) -> float:
        times = []
        for _ in range(3):
            start = time.perf_counter()
            call()
            times.append(time.perf_counter() - start)
        return min(times)

    return {
        "one_thread": rows,
        "threads": threads,
        "all_threads": {
            "encode": count / seconds(lambda: encode(tiles, **options)) / 1e6,
            "decode": count / seconds(decoded) / 1e6,
        },
    }


# --- mixtures ---------------------------------------------------------------------------------------------------------


def draw_mixtures(machine: Machine, shape: tuple[int, int, int], name: str, seed: int = 0) -> list[MixturePass]:
    """A pass for each tile, symbols drawn from their mixtures."""
    least, greatest, far = MIXTURES[name]
    generator = torch.Generator(machine.device).manual_seed(seed)
    planes = (COMPONENTS, *shape[1:])

    def uniform() -> Tensor:
        return torch.rand(planes, generator=generator, device=machine.device)

    passes = []
    for _ in range(shape[0]):
        weights = uniform().neg().log1p().neg()  # normalised, they are Dirichlet(1)
        means, sigmas = (2 * uniform() - 1) * far, least * (greatest / least) ** uniform()
        shares = weights / weights.sum(0)
        pick = (torch.rand(shape[1:], generator=generator, device=machine.device) > shares.cumsum(0)[:-1]).sum(0)[None]
        noise = torch.randn(shape[1:], generator=generator, device=machine.device)
        symbols = (means.gather(0, pick)[0] + noise * sigmas.gather(0, pick)[0]).round()
        passes.append(MixturePass(symbols.to(torch.int16), *quantise_mixtures(shares, means, sigmas)))
    return passes


def mixtures(machine: Machine, sizes: Sizes, name: str) -> dict[str, Any]:
    """One row: mixtures of three on a full GPU, kernels alone; and a core of the CPU on one of the tiles."""
    tiles, streams = machine.multiprocessors, _threads("kMixtureThreads") // WARP * WAVES
    positions = max(1, min(sizes.peer_symbols, machine.most_symbols()) // (tiles * coder.CHANNELS * WARP)) * WARP
    passes = draw_mixtures(machine, (tiles, positions, coder.CHANNELS), name)
    options = {"lanes": WARP, "streams": streams}
    batch = [[item] for item in passes]
    with machine.kernels():
        payloads = encode(batch, **options)
        decoder = Decoder(payloads, device=machine.device)
    first = MixturePass(*(part.cpu() for part in passes[0]))
    _match(payloads[:1], encode([[first]], **options), "payloads of mixtures")
    encoding = launches(machine, lambda: encode(batch, **options), sizes.repeats)
    outputs = [torch.full_like(item.symbols, -99) for item in passes]
    call = partial(decoder.decode_mixtures, [item[1:] for item in passes], out=outputs)
    decoding = launches(machine, call, sizes.repeats, _pristine(decoder))
    with machine.kernels():
        decoder.finish()
    for item, found in zip(passes, outputs, strict=True):
        _match(found, item.symbols, "symbols of mixtures")

    def by_cpu() -> None:
        reader = Decoder(payloads[:1], threads=1)
        reader.decode_mixtures([first[1:]])
        reader.finish()

    count = tiles * first.symbols.numel()
    return {
        "mixtures": name,
        "components": COMPONENTS,
        "symbols": count,
        "bits_per_symbol": 8 * sum(map(len, payloads)) / count,
        "encode_msymbols": count / encoding.median("encode") / 1e6,
        "encode_msymbols_of_all_kernels": count / encoding.median("examine", "encode", "arrange", "gather") / 1e6,
        "decode_msymbols": count / decoding.median("decode") / 1e6,
        "cpu_decode_msymbols": first.symbols.numel() / coder.seconds(by_cpu, 3) / 1e6,
    }


# --- one image --------------------------------------------------------------------------------------------------------


def image(machine: Machine, sizes: Sizes, name: str) -> list[Batch]:
    """A Kodak image's passes: all 294,912 symbols of 192 channels coded, or the swift model's 256 channels."""
    positions = sizes.image[0] * sizes.image[1]
    if name == SWIFT_NAME:
        return [draw(machine, (1, positions // 2, 256), name, seed=seed) for seed in (1, 2)]
    return [draw(machine, (1, positions, 192), REFERENCE, seed=1)]


def latency(machine: Machine, sizes: Sizes, budget: Budget, name: str) -> dict[str, Any]:
    """Time to decode one image against N and S, each with its cost in bytes; and what the presets choose."""
    batches = image(machine, sizes, name)
    on_cpu = [[batch.on_cpu(1)[0][0] for batch in batches]]
    shapes: dict[tuple[int, int], str | None] = {}
    for preset in ("size", "latency"):
        shape = Decoder(encode(on_cpu, preset=preset)).shape(0)
        shapes[shape] = "size and latency" if shapes.get(shape) else preset
    for lanes in sizes.lanes:
        for streams in sizes.streams:
            shapes.setdefault((lanes, streams), None)
    smallest = len(encode(on_cpu, preset="size")[0])
    rows = []
    for (lanes, streams), preset in shapes.items():
        if not budget.allows("latency", f"{name}: {lanes} lanes, {streams} streams", 2.0):
            continue
        [payload] = encode(on_cpu, lanes=lanes, streams=streams)
        outputs = [torch.empty_like(batch.symbols[0]) for batch in batches]

        def decode(decoder: Decoder, outputs: list[Tensor] = outputs) -> None:
            for batch, out in zip(batches, outputs, strict=True):
                decoder.decode([batch.indexes[0]], batch.tables, out=[out])

        def whole(payload: bytes = payload, decode: Callable[[Decoder], None] = decode) -> None:
            decoder = Decoder([payload], device=machine.device)
            decode(decoder)
            decoder.finish()

        with machine.kernels():
            decoder = Decoder([payload], device=machine.device)
        timed = launches(machine, partial(decode, decoder), sizes.repeats, _pristine(decoder))
        with machine.kernels():
            decoder.finish()
        for batch, out in zip(batches, outputs, strict=True):
            _match(out, batch.symbols[0], "decoded symbols")
        rows.append(
            {
                "lanes": lanes,
                "streams": streams,
                "preset": preset,
                "bytes": len(payload),
                "bytes_beside_size_preset": len(payload) - smallest,
                "kernel_microseconds": timed.median("decode") * 1e6,
                "call_microseconds": wall_seconds(machine, whole, sizes.repeats) * 1e6,
            }
        )
    count = sum(batch.symbols.numel() for batch in batches)
    coded = sum(batch.coded for batch in batches)
    rows.sort(key=lambda row: (row["lanes"], row["streams"]))
    return {"image": name, "symbols": count, "coded": coded / count, "size_preset_bytes": smallest, "shapes": rows}


# --- energy -----------------------------------------------------------------------------------------------------------


def energy(machine: Machine, sizes: Sizes) -> dict[str, Any]:
    """Joules a Gsymbol of decoding and the clocks meanwhile: the energy counter's, else power times time.

    The launches follow each other as fast as the host can make them; what puts the states back between them (about one
    part in a hundred of the bytes) is in the energy.
    """
    tiles, streams = machine.multiprocessors, _threads("kCoderThreads") // WARP * WAVES
    positions = max(1, min(sizes.symbols, machine.most_symbols()) // (tiles * coder.CHANNELS * WARP)) * WARP
    batch = draw(machine, (tiles, positions, coder.CHANNELS), REFERENCE)
    indexes = list(batch.indexes)
    outputs = list(torch.empty_like(batch.symbols))
    with machine.kernels():
        decoder = Decoder(encode(batch.tiles(), lanes=WARP, streams=streams), device=machine.device)
        restore = _pristine(decoder)

        def decode() -> None:
            restore()
            decoder.decode(indexes, batch.tables, out=outputs)

        decode()
        machine.synchronize()
        rounds, meter = 0, Meter(machine.nvml)
        while meter.seconds < sizes.energy_seconds:
            for _ in range(8):
                decode()
            rounds += 8
            meter.sample()
            machine.synchronize()
        seconds, joules, measured = meter.stop()
        decoder.finish()
    _match(torch.stack(outputs), batch.symbols, "decoded symbols")
    symbols = rounds * batch.symbols.numel()
    return {
        "indexes": REFERENCE,
        "tables": "skip",
        "seconds": seconds,
        "gsymbols": symbols / seconds / 1e9,
        "joules_per_gsymbol": joules / symbols * 1e9 if joules else None,
        **measured,
    }


# --- peers ------------------------------------------------------------------------------------------------------------


class _AbsentError(Exception):
    """A peer is not installed, or not for GPUs."""


def _torch_ans(machine: Machine, batch: Batch) -> tuple[Callable[[], object], Callable[[], object], int, str]:
    """torch_ans's fastest coder: 32 interleaved states a stream, a stream a warp, inverse tables."""
    try:
        from torch_ans import utils
    except ImportError as error:
        raise _AbsentError("not installed") from error
    if machine.device.type == "cuda" and not utils.module_has_cuda(utils._native_C):
        raise _AbsentError("installed without its CUDA kernels, which would take minutes to build")
    # Its inverse tables need alphabets of one size: that of the widest table in use, at the centre of each.
    tables, used = batch.tables, int(batch.indexes.max()) + 1
    reach = max(-tables.first_symbol(i) for i in range(used))
    frequencies = torch.zeros(used, 2 * reach + 1)
    for i in range(used):
        values = torch.from_numpy(tables.frequencies(i)[:-1].astype(np.float32))
        begin = reach + tables.first_symbol(i)
        frequencies[i, begin : begin + len(values)] = values
    sizes = torch.full((used,), 2 * reach + 1, dtype=torch.int32)
    firsts = torch.full((used,), -reach, dtype=torch.int32)
    rows = max(1, min(machine.multiprocessors * 64, batch.symbols.numel() // 64))  # a warp each: all a GPU holds
    symbols, indexes = (t.reshape(-1).int() for t in (batch.symbols, batch.indexes))
    symbols, indexes = (t[: t.numel() // rows * rows].view(rows, -1) for t in (symbols, indexes))
    peer = utils.TorchANSInterface(
        impl="rans32_16",
        freq_precision=14,
        num_parallel_states=rows,
        num_interleaves=32,
        inverse_cdf_precision="auto",
        device=str(machine.device),
    )
    peer.init_params(frequencies.to(machine.device), sizes.to(machine.device), firsts.to(machine.device))
    stream = peer.encode(symbols, dist_indexes=indexes)
    _match(peer.decode(stream.clone(), dist_indexes=indexes).to(symbols.dtype), symbols, "torch_ans's symbols")
    copies = [stream.clone() for _ in range(32)]  # decoding changes the stream
    size = int(stream[:, 0].sum())
    return (
        lambda: peer.encode(symbols, dist_indexes=indexes),
        lambda: peer.decode(copies.pop(), dist_indexes=indexes),
        size,
        "the same symbols and indexes, tables widened to one alphabet",
    )


def _nvcomp(machine: Machine, batch: Batch) -> tuple[Callable[[], object], Callable[[], object], int, str]:
    """nvCOMP's ANS: bytes, one distribution for each chunk of 64 KiB. It gets the symbols' low bytes."""
    try:
        from nvidia import nvcomp
    except ImportError as error:
        raise _AbsentError("not installed") from error
    data = batch.symbols.reshape(-1).to(torch.uint8)
    stream = torch.cuda.current_stream(machine.device).cuda_stream
    peer = nvcomp.Codec(algorithm="ANS", device_id=machine.device.index, cuda_stream=stream)
    array = nvcomp.as_array(data)
    compressed = peer.encode(array)
    machine.synchronize()
    decoded = torch.as_tensor(peer.decode(compressed), device=machine.device).view(torch.uint8).reshape(-1)
    _match(decoded, data, "nvCOMP's bytes")
    return (
        lambda: peer.encode(array),
        lambda: peer.decode(compressed),
        int(compressed.buffer_size),
        "the symbols' low bytes, one distribution a chunk: no indexes, so more bits",
    )


PEERS: dict[str, Callable[..., Any]] = {"torch_ans": _torch_ans, "nvCOMP ANS": _nvcomp}


def _call_seconds(machine: Machine, call: Callable[[], object], repeats: int) -> float:
    """Median time of a peer's call on the GPU."""
    times = []
    for _ in range(repeats + 1):
        machine.hold(4_000_000)  # their Python takes longer than a launch
        begin = machine.mark()
        call()
        times.append((begin, machine.mark()))
        machine.synchronize()
    return float(np.median([machine.between(*pair) for pair in times[1:]]))


def peers(machine: Machine, sizes: Sizes) -> list[dict[str, Any]]:
    """Other entropy coders for GPUs on as many symbols, tensors on the GPU to tensors on the GPU, beside ours."""
    with machine.side_stream():
        rows = _peers(machine, sizes)
        machine.synchronize()
    return rows


def _peers(machine: Machine, sizes: Sizes) -> list[dict[str, Any]]:
    tiles, streams = machine.multiprocessors, _threads("kCoderThreads") // WARP * WAVES
    positions = max(1, min(sizes.peer_symbols, machine.most_symbols()) // (tiles * coder.CHANNELS * WARP)) * WARP
    batch = draw(machine, (tiles, positions, coder.CHANNELS), REFERENCE, dense=True)
    count, passes, indexes = batch.symbols.numel(), batch.tiles(), list(batch.indexes)
    options = {"lanes": WARP, "streams": streams}
    with machine.kernels():
        payloads = encode(passes, **options)
        decoder = Decoder(payloads, device=machine.device)
    outputs = list(torch.empty_like(batch.symbols))
    ours = {
        "encode": launches(machine, lambda: encode(passes, **options), sizes.repeats).median(
            "examine", "encode", "arrange", "gather"
        ),
        "decode": launches(
            machine, lambda: decoder.decode(indexes, batch.tables, out=outputs), sizes.repeats, _pristine(decoder)
        ).median("decode"),
    }
    rows: list[dict[str, Any]] = [
        {
            "coder": "fastcodec",
            "bits_per_symbol": 8 * sum(map(len, payloads)) / count,
            **{f"{way}_gsymbols": count / seconds / 1e9 for way, seconds in ours.items()},
        }
    ]
    for name, make in PEERS.items():
        row: dict[str, Any] = {"coder": name}
        rows.append(row)
        try:
            encoding, decoding, size, what = make(machine, batch)
            row["coded"], row["bits_per_symbol"] = what, 8 * size / count
            for way, call in (("encode", encoding), ("decode", decoding)):
                seconds = _call_seconds(machine, call, sizes.repeats)
                row[f"{way}_gsymbols"] = count / seconds / 1e9
                row[f"{way}_ours_over_it"] = seconds / ours[way]
        except _AbsentError as absent:
            row["absent"] = str(absent)
        except Exception:
            row["failed"] = traceback.format_exc()
    return rows


# --- tables and the whole ---------------------------------------------------------------------------------------------


def print_table(table: Any) -> None:
    """In one piece: without a terminal, as under make, rich would fold it to 80 columns."""
    width = _common.console.width
    _common.console.width = width if _common.console.is_terminal else max(width, 136)
    try:
        _common.console.print(table)
    finally:
        _common.console.width = width


def percent(value: float | None) -> str:
    return "-" if value is None else f"{100 * value:.0f} %"


def _print_full(rows: list[dict[str, Any]]) -> None:
    table = _common.table(
        "A full GPU, Gsymbol/s; of copy bandwidth / of issue rate",
        "indexes, kernels",
        "bits",
        "encode",
        "decode",
        "reconstruct",
        "calls: encode",
        "decode",
        "× CPU core",
    )
    for row in rows:
        label = f"{row['indexes']}, {row['tables']}"
        if "failed" in row:
            table.add_row(label, "failed")
            continue
        cells = [
            f"{row[way]['gsymbols']:.1f}  {percent(row[way]['of_copy_bandwidth'])} / "
            f"{percent(row[way]['of_issue_rate'])}"
            for way in ("encode", "decode", "reconstruct")
        ]
        calls = [f"{row['calls'][f'{way}_gsymbols']:.2f}" for way in ("encode", "decode")]
        ratio = f"{row['decode']['times_a_cpu_core']:.0f}"
        table.add_row(label, f"{row['bits_per_symbol']:.2f}", *cells, *calls, ratio)
    print_table(table)


def _print_latency(found: dict[str, Any], sizes: Sizes) -> None:
    if "failed" in found:
        return
    shapes = {(row["lanes"], row["streams"]): row for row in found["shapes"]}
    table = _common.table(
        f"One image, {found['image']}: {found['symbols']} symbols, {found['size_preset_bytes']} bytes; µs, more bytes",
        "lanes",
        *(f"{streams} streams" for streams in sizes.streams),
    )

    def cell(row: dict[str, Any] | None) -> str:
        if row is None:
            return "-"
        return f"{row['kernel_microseconds']:.0f}  {row['bytes_beside_size_preset']:+d}"

    for lanes in sizes.lanes:
        table.add_row(str(lanes), *(cell(shapes.get((lanes, streams))) for streams in sizes.streams))
    print_table(table)
    for row in found["shapes"]:
        if row["preset"]:
            _common.console.print(
                f"preset {row['preset']}: {row['lanes']} lanes × {row['streams']} streams, {row['bytes']} bytes, "
                f"{row['kernel_microseconds']:.0f} µs, through Python {row['call_microseconds']:.0f} µs",
                highlight=False,
                soft_wrap=True,
            )


def _print_rest(found: dict[str, Any]) -> None:
    console, spent = _common.console, found["energy"]
    for row in found["mixtures"]:
        if "decode_msymbols" in row:
            console.print(
                f"mixtures of {row['components']}, {row['mixtures']}: {row['bits_per_symbol']:.2f} bits a symbol, "
                f"encode {row['encode_msymbols']:.0f}, decode {row['decode_msymbols']:.0f} Msymbol/s; "
                f"a CPU core decodes {row['cpu_decode_msymbols']:.0f}",
                highlight=False,
                soft_wrap=True,
            )
    if (joules := spent.get("joules_per_gsymbol")) is not None:
        clock = f", {spent['sm_mhz']:.0f} MHz" if spent["sm_mhz"] else ""
        console.print(f"decoding: {joules:.2f} J a Gsymbol ({spent['measured_by']}){clock}", highlight=False)
    for row in found["peers"] if isinstance(found["peers"], list) else ():
        if "absent" in row:
            text = row["absent"]
        elif "failed" in row:
            text = row["failed"].strip().splitlines()[-1]
        else:
            text = f"encode {row['encode_gsymbols']:.2f}, decode {row['decode_gsymbols']:.2f} Gsymbol/s"
            if "decode_ours_over_it" in row:
                text += f"; ours {row['encode_ours_over_it']:.1f} and {row['decode_ours_over_it']:.1f} times that"
        console.print(f"{row['coder']}: {text}", highlight=False, markup=False)


def codec() -> dict[str, Any]:
    """The codec's figures. A process of its own measures them: after a fault on the GPU a process measures no more, and
    this way the coder's does not cost the codec's figures. What was written before a fault or a hang is kept."""
    sys.stdout.flush()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "codec.json"
        try:
            ended = subprocess.run([sys.executable, *CODEC, str(path)], cwd=_common.ROOT, timeout=CODEC_SECONDS)
            fault = f"it ended with status {ended.returncode}" if ended.returncode else None
        except subprocess.TimeoutExpired:
            fault = f"it was stopped after {CODEC_SECONDS:.0f} s"
        found = json.loads(path.read_text("utf-8")) if path.exists() else {}
    found.setdefault("failures", [])
    if fault:
        found["failures"].append(fault)
    return found


def run(machine: Machine | None = None, sizes: Sizes | None = None, seconds: float = SECONDS) -> dict[str, Any]:
    """Every part is tried; one that fails leaves the failure's text in its place, and its name in `failures`.

    machine, sizes: for the tests, which measure the coder alone.
    """
    whole = machine is None
    machine, sizes, budget = machine or Machine(), sizes or Sizes(), Budget(seconds)
    parts = Parts()
    attempt = parts.attempt

    found: dict[str, Any] = {"gpu": attempt("the machine", lambda: describe(machine))}
    try:
        counts, why = instructions(machine), None
    except Exception as error:  # no nvdisasm, or a compiler whose loops are not recognised: no failure of the coder
        counts, why = {}, f"{type(error).__name__}: {error}"
    found["instructions_missing"] = why
    rates = {name: (found["gpu"].get(f"{name}_gb_s") or 0) * 1e9 or None for name in ("copy", "peak")}
    bounds = Bounds(rates["copy"], rates["peak"], counts)

    found["full_gpu"] = []
    # What matters most comes first: time may end.
    mixes = [REFERENCE, SWIFT_NAME, *(name for name in MIXES if name not in (REFERENCE, SWIFT_NAME))]
    for mix in mixes:
        skips = len(MIXES[mix]) != 2 or MIXES[mix][0] == 0
        for dense in (False,) if skips else (False, True):
            labels = {"indexes": mix, "tables": "dense" if dense else "skip"}
            name = f"full GPU, {mix}, {labels['tables']}"
            if budget.allows("full GPU", name, 20.0):
                body = partial(full_gpu, machine, sizes, bounds, mix, dense)
                found["full_gpu"].append(attempt(name, body, **labels))
        if mix == SWIFT_NAME:
            found["latency"] = [
                attempt(f"latency, {name}", partial(latency, machine, sizes, budget, name), image=name)
                for name in ("all coded", SWIFT_NAME)
            ]
            skipped = {"skipped": "no time was left"}
            found["energy"] = (
                attempt("energy", lambda: energy(machine, sizes)) if budget.allows("energy", "energy") else skipped
            )
            found["mixtures"] = [
                attempt(f"mixtures, {row}", partial(mixtures, machine, sizes, row), mixtures=row)
                for row in MIXTURES
                if budget.allows("mixtures", f"mixtures, {row}", 5.0)
            ]
            found["peers"] = (
                attempt("peers", lambda: peers(machine, sizes)) if budget.allows("peers", "peers") else skipped
            )
    found["skipped"], found["failures"] = budget.skipped, parts.failures
    _print_full(found["full_gpu"])
    for image_found in found["latency"]:
        _print_latency(image_found, sizes)
    _print_rest(found)
    if budget.skipped:
        _common.console.print(f"left out after {seconds:.0f} s: {'; '.join(budget.skipped)}", markup=False)
    if whole:
        found["codec"] = attempt("codec", codec)
        found["failures"] += [f"codec: {name}" for name in found["codec"].get("failures", [])]
    return found
