"""The whole codec on a GPU: bytes to pixels on the device and back, in all, by stages and by launches, and baselines.

`python -m bench gpu` runs this file in a process of its own and keeps what it writes as "codec" in
bench/results/gpu.json. There are two clocks. _Wall_ is the host's, from a call until the GPU is done. _GPU_ is CUDA
events around a call, after the GPU was kept busy for longer than the host takes to enqueue the call, so that nothing of
the host's time is in it. The engine works on streams of its own, which wait for the current stream and it for them, so
events on the current one enclose all that a call does. Stages and launches have events around each of them, without a
graph; an event costs the GPU a microsecond or two, which is measured and stated beside them.

What is timed is checked in the same run: latents of the CPU's files are equal bit for bit, pixels within one level.
"""

from __future__ import annotations

import copy
import json
import sys
import time
from collections import OrderedDict, defaultdict, deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import Any, NamedTuple
from unittest.mock import patch

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

from fastcodec import container
from fastcodec.codec import Codec, DecodedTensor
from fastcodec.constants import MAX_QUALITY, MIN_QUALITY
from fastcodec.engines import gpu
from fastcodec.engines import gpu_transforms as transforms
from fastcodec.geometry import Grid
from fastcodec.images import Picture
from fastcodec.kernels import checkerboard
from fastcodec.kernels import integer_layer as integer
from fastcodec.kernels.rans.session import Session
from fastcodec.kernels.triton import hyper_synthesis, parameters, pixels, pointwise, residual, upsample
from fastcodec.kernels.triton.tiles import Layout
from fastcodec.models.swift.entropy_model import Arithmetic, EntropyModel, reconstruct
from fastcodec.models.swift.network import quality_position
from fastcodec.rans import Decoder

from . import _common
from .gpu import Budget, Machine, Meter, MismatchError, Parts, percent, print_table

SECONDS = 70.0  # after that, what is left is left out
PRESETS = ("size", "latency")
STAGES = (
    "copy in",
    "rANS z",
    "hyper-synthesis",
    "anchor parameters",
    "rANS anchors",
    "context parameters",
    "rANS non-anchors",
    "finish",
    "synthesis",
)
CLOCK = 2e9  # cycles a second, rather too many
LONGEST_HOLD = 0.1  # seconds that the GPU is kept busy at most
LEAST_RUNS, MOST_SECONDS = 5, 4.0  # of a series that takes longer than expected
IN_FLIGHT = 3  # batches that are enqueued before the first one is waited for
WRITTEN = 16  # images that the CPU writes: larger batches repeat them

# Operations of dense products that a multiprocessor's tensor cores do in a cycle, with float32 and int32 sums, from
# NVIDIA's figures for A100, H100 and B200 (whitepapers): peak / (multiprocessors * boost clock). Left out: generations
# whose rate depends on the product line.
TENSOR_RATES = {
    80: {"fp16": 2048, "int8": 4096},
    90: {"fp16": 4096, "int8": 8192},
    100: {"fp16": 8192, "int8": 16384},
}


@dataclass(frozen=True)
class Sizes:
    """How much is coded and how often."""

    images: tuple[tuple[int, int], ...] = ((768, 512), (1920, 1080), (3840, 2160))  # the first is that of batches
    bits: float = 0.5  # a pixel
    batches: tuple[int, ...] = (16, 64, 4, 1)
    studied: tuple[int, ...] = (1, 16)  # batches whose launches are measured, and baselines for them
    energy_batch: int = 16
    warm_ups: int = 3  # a new shape runs launch by launch, then it is captured, then it is replayed
    repeats: int = 50
    rate_seconds: float = 0.4
    energy_seconds: float = 1.5


# --- what is coded ----------------------------------------------------------------------------------------------------

_CELL = 768, 512  # width and height of the photographs that images consist of
_PHOTOGRAPHS = ("astronaut", "chelsea", "coffee", "rocket")  # that scikit-image has without a download


def photographs() -> tuple[str, list[np.ndarray]]:
    """Where they are from, and photographs of 768x512, uint8 [512, 768, 3].

    From the Kodak set, else from scikit-image, else noise with the spectrum of photographs (power as 1 / f^2) and their
    unequal distribution of detail over the image, which decides how much of it is coded.
    """
    try:
        found = [p.pixels if p.width > p.height else p.pixels.transpose(1, 0, 2) for _, p in _common.kodak()]
        return "Kodak", [np.ascontiguousarray(photo) for photo in found]
    except _common.CannotRunError:
        pass
    try:
        from skimage import data

        found = [Image.fromarray(getattr(data, name)()) for name in _PHOTOGRAPHS]
        return "scikit-image", [np.asarray(ImageOps.fit(photo, _CELL, Image.Resampling.LANCZOS)) for photo in found]
    except Exception:  # not installed, or without its images
        return "synthetic", [_synthetic(seed) for seed in range(4)]


def _synthetic(seed: int) -> np.ndarray:
    random = np.random.default_rng(seed)
    width, height = _CELL
    frequency = np.hypot(np.fft.fftfreq(height)[:, None], np.fft.rfftfreq(width)[None, :])
    frequency[0, 0] = 1

    def field(power: float) -> np.ndarray:
        spectrum = np.fft.rfft2(random.standard_normal((height, width))) / frequency**power
        spectrum[0, 0] = 0
        values = np.fft.irfft2(spectrum, (height, width))
        return values / values.std()

    luma = field(1.0) * np.exp(0.8 * field(1.5)) * 35 + 110
    colours = [luma + 12 * field(1.3) for _ in range(3)]
    return np.stack(colours, 2).round().clip(0, 255).astype(np.uint8)


def compose(cells: Sequence[np.ndarray], width: int, height: int, first: int = 0) -> Picture:
    """An image of any size: photographs at their own scale side by side, from number `first` on; after one round they
    are mirrored. (One photograph, enlarged, would be smoother than any camera's image.)"""
    out = np.empty((height, width, 3), np.uint8)
    number = first
    for top in range(0, height, _CELL[1]):
        for left in range(0, width, _CELL[0]):
            turn = number // len(cells)
            cell = cells[number % len(cells)][:: -1 if turn & 2 else 1, :: -1 if turn & 1 else 1]
            part = out[top : top + _CELL[1], left : left + _CELL[0]]
            part[...] = cell[: part.shape[0], : part.shape[1]]
            number += 1
    return Picture(out)


def quality_near(codec: Codec, pictures: Sequence[Picture], bits: float) -> int:
    """The quality whose mean rate is nearest to so many bits a pixel, by bisection."""

    @cache
    def rate(quality: int) -> float:
        size = sum(len(encoded.data) for encoded in codec.encode_pictures(pictures, quality))
        return 8 * size / sum(p.pixels.shape[0] * p.pixels.shape[1] for p in pictures)

    low, high = MIN_QUALITY, MAX_QUALITY
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if rate(middle) < bits else (low, middle)
    return min(low, high, key=lambda quality: abs(rate(quality) - bits))


def _name(picture: Picture) -> str:
    return f"{picture.pixels.shape[1]}x{picture.pixels.shape[0]}"


# --- checks -----------------------------------------------------------------------------------------------------------


def _same(one: Tensor, other: Tensor, what: str) -> None:
    if not torch.equal(one.cpu(), other.cpu()):
        raise MismatchError(f"{what} are not equal")


def _near(out: Tensor, expected: Sequence[np.ndarray], what: str) -> None:
    """The first of these pixels, uint8 [files, 3, height, width], are those of the CPU within one level."""
    for found, wanted in zip(out.permute(0, 2, 3, 1).cpu().numpy(), expected, strict=False):
        furthest = int(np.abs(found.astype(np.int16) - wanted).max())
        if furthest > 1:
            raise MismatchError(f"{what}: {furthest} levels from the CPU's pixels")


# --- the clocks -------------------------------------------------------------------------------------------------------


def rounds(repeats: int) -> Iterator[int]:
    """So many rounds; fewer, but some, where they take long."""
    start = time.perf_counter()
    for number in range(repeats):
        if number >= LEAST_RUNS and time.perf_counter() - start > MOST_SECONDS:
            return
        yield number


def spread(seconds: Sequence[float]) -> dict[str, float]:
    """Median and 95th percentile, in milliseconds."""
    return {
        "median_ms": 1e3 * float(np.median(seconds)),
        "p95_ms": 1e3 * float(np.percentile(seconds, 95)),
        "runs": len(seconds),
    }


def wall_times(
    machine: Machine, start: Callable[[], Any], finish: Callable[[Any], object], repeats: int
) -> tuple[list[float], list[float]]:
    """Of each run the seconds until `start` returns, which are the host's share, and until `finish`, which waits for
    the GPU, has taken what `start` gave."""
    hosts, totals = [], []
    for _ in rounds(repeats):
        machine.synchronize()
        begin = time.perf_counter()
        started = start()
        hosts.append(time.perf_counter() - begin)
        finish(started)
        totals.append(time.perf_counter() - begin)
    return hosts, totals


def gpu_times(machine: Machine, call: Callable[[], object], host: float, repeats: int) -> list[float]:
    """Seconds that the GPU takes for what `call` enqueues; it must not wait. host: seconds that enqueuing takes."""
    times = []
    for _ in rounds(repeats):
        machine.synchronize()
        machine.hold(int(CLOCK * min(2 * host + 1e-4, LONGEST_HOLD)))
        before = machine.mark()
        call()
        after = machine.mark()
        machine.synchronize()
        times.append(machine.between(before, after))
    return times


def gpu_seconds(machine: Machine, call: Callable[[], object], sizes: Sizes) -> float:
    """The median of `gpu_times`."""
    for _ in range(sizes.warm_ups):
        machine.synchronize()
        start = time.perf_counter()
        call()
        host = time.perf_counter() - start
    return float(np.median(gpu_times(machine, call, host, sizes.repeats)))


class Marks:
    """Begin and end, by the GPU's clock, of what functions enqueue."""

    def __init__(self, machine: Machine):
        self._machine = machine
        self._found: list[tuple[Any, Any, Any]] = []

    def around(self, function: Callable, note: Any) -> Callable:
        """The function with marks. note: what its calls are, or a function of its arguments that says so."""

        def marked(*arguments: Any, **options: Any) -> Any:
            what = note(*arguments, **options) if callable(note) else note
            begin = self._machine.mark()
            result = function(*arguments, **options)
            self._found.append((what, begin, self._machine.mark()))
            return result

        return marked

    def take(self, runs: int) -> list[list[tuple[Any, float]]]:
        """Of so many equal runs what was called in each, and its seconds, in order. The GPU must be done."""
        each = len(self._found) // runs
        found = [(what, self._machine.between(begin, end)) for what, begin, end in self._found]
        return [found[number * each : (number + 1) * each] for number in range(runs)]


@contextmanager
def by_launches(machine: Machine, codec: Codec) -> Iterator[None]:
    """Within it, batches are decoded launch by launch, and not by a graph."""
    engine = _engine(codec)
    with (
        patch.object(engine, "_remembered", OrderedDict()),
        patch.object(engine, "capture", lambda launch: launch),
    ):
        yield
        machine.synchronize()  # the memory of what was remembered is given away now


def _engine(codec: Codec) -> gpu.Engine:
    return codec._engine(codec.model)


def _pass_name(number: int) -> str:
    """Of a tile's passes: hyper latents, then each group's anchors and non-anchors."""
    return "rANS z" if number == 0 else "rANS anchors" if number % 2 else "rANS non-anchors"


# --- one image --------------------------------------------------------------------------------------------------------


@contextmanager
def watched_stages(machine: Machine) -> Iterator[Marks]:
    """Within it, the stages of decoding are marked by name."""
    marks = Marks(machine)
    places: list[tuple[Any, str, Any]] = [
        (gpu._Entropy, "send", "copy in"),
        (Session, "run", lambda _, number: _pass_name(number)),
        (gpu, "hyper_synthesis", "hyper-synthesis"),
        (parameters, "anchor_parameters", "anchor parameters"),
        (parameters, "context_parameters", "context parameters"),
        (Session, "finish", "finish"),
        (transforms.Transforms, "synthesis", "synthesis"),
    ]
    with ExitStack() as stack:
        for owner, name, note in places:
            stack.enter_context(patch.object(owner, name, marks.around(getattr(owner, name), note)))
        yield marks


def _by_graph(machine: Machine, codec: Codec, files: list[bytes], out: Tensor, sizes: Sizes) -> dict[str, Any]:
    """As a program decodes that does it often: both clocks, and the host's share."""
    decode = partial(codec.decode_tensor, files, out=out)
    with machine.kernels():
        for _ in range(sizes.warm_ups):
            decode().check()
        hosts, totals = wall_times(machine, decode, DecodedTensor.check, sizes.repeats)
        on_gpu = gpu_times(machine, decode, float(np.median(hosts)), sizes.repeats)
    return {"wall": spread(totals), "gpu": spread(on_gpu), "host": spread(hosts)}


def _by_stages(machine: Machine, codec: Codec, files: list[bytes], out: Tensor, sizes: Sizes) -> dict[str, Any]:
    """Launch by launch: both clocks, and the median of each stage; "other" is the gains, and the copy into `out`."""
    decode = partial(codec.decode_tensor, files, out=out)
    with machine.kernels(), by_launches(machine, codec):
        for _ in range(sizes.warm_ups):
            decode().check()
        hosts, totals = wall_times(machine, decode, DecodedTensor.check, sizes.repeats)
        with watched_stages(machine) as marks:
            on_gpu = gpu_times(machine, decode, float(np.median(hosts)), sizes.repeats)
            runs = [_by_name(run) for run in marks.take(len(on_gpu))]
    stages = {stage: 1e6 * float(np.median([run[stage] for run in runs])) for stage in STAGES}
    others = [total - sum(run.values()) for total, run in zip(on_gpu, runs, strict=True)]
    stages["other"] = 1e6 * float(np.median(others))
    return {"wall": spread(totals), "gpu": spread(on_gpu), "host": spread(hosts), "stages_us": stages}


def _by_name(run: list[tuple[str, float]]) -> dict[str, float]:
    """The seconds of each stage, those of all groups of channels together."""
    total: dict[str, float] = defaultdict(float)
    for name, seconds in run:
        total[name] += seconds
    return total


def decode_latency(machine: Machine, codec: Codec, cpu: Codec, sizes: Sizes, picture: Picture) -> dict[str, Any]:
    """One image, with both presets: from bytes to uint8 pixels on the device, and what the preset costs in bytes."""
    height, width, _ = picture.pixels.shape
    quality = quality_near(cpu, [picture], sizes.bits)
    files = {preset: cpu.encode_picture(picture, quality, preset).data for preset in PRESETS}
    latents, expected = cpu.latents(files["size"]), cpu.decode_picture(files["size"]).pixels
    grid = Grid(height, width)
    row: dict[str, Any] = {
        "image": _name(picture),
        "quality": quality,
        "captured": grid.latent_height * grid.latent_width <= gpu.GRAPH_POSITIONS,  # else "graph" is none
        "latency_preset_bytes_more": len(files["latency"]) / len(files["size"]) - 1,
    }
    out = torch.zeros(1, 3, height, width, dtype=torch.uint8, device=machine.device)
    for preset, data in files.items():
        with machine.kernels():
            _same(codec.latents(data), latents, f"latents of the CPU's file, {preset}")
        graph = _by_graph(machine, codec, [data], out, sizes)
        _near(out, [expected], f"decoded by a graph, {preset}")
        launched = _by_stages(machine, codec, [data], out.zero_(), sizes)
        _near(out, [expected], f"decoded by launches, {preset}")
        rate = {"bytes": len(data), "bpp": 8 * len(data) / (width * height)}
        row[preset] = {**rate, "graph": graph, "launches": launched}
    return row


def encode_latency(
    machine: Machine, codec: Codec, cpu: Codec, sizes: Sizes, picture: Picture, quality: int
) -> dict[str, Any]:
    """One image, with both presets: from pixels on the host to bytes, by the host's clock."""
    row: dict[str, Any] = {"image": _name(picture), "quality": quality}
    for preset in PRESETS:
        encode = partial(codec.encode_pictures, [picture], quality, preset)
        with machine.kernels():
            for _ in range(sizes.warm_ups):
                [written] = encode()
            _, totals = wall_times(machine, encode, lambda _: None, sizes.repeats)
            latents = codec.latents(written.data)
        _same(latents, cpu.latents(written.data), f"latents of the GPU's file, {preset}")
        row[preset] = {"bytes": len(written.data), "wall": spread(totals)}
    return row


# --- batches ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Batch:
    """Images of one size and quality, and their files by preset, written by the CPU."""

    pictures: list[Picture]
    quality: int
    files: dict[str, list[bytes]]

    def __len__(self) -> int:
        return len(self.pictures)

    @property
    def megapixels(self) -> float:
        height, width, _ = self.pictures[0].pixels.shape
        return len(self) * height * width / 1e6

    def of(self, count: int) -> Batch:
        """So many images: the first ones, or all of them again and again."""
        numbers = [number % len(self) for number in range(count)]
        files = {preset: [files[number] for number in numbers] for preset, files in self.files.items()}
        return Batch([self.pictures[number] for number in numbers], self.quality, files)

    def out(self, device: torch.device) -> Tensor:
        """For its pixels: uint8 [images, 3, height, width]."""
        pixels = torch.zeros(len(self), *self.pictures[0].pixels.shape, dtype=torch.uint8, device=device)
        return pixels.permute(0, 3, 1, 2)


def written_batch(cpu: Codec, sizes: Sizes, cells: Sequence[np.ndarray], count: int) -> Batch:
    """So many images of the first size, at the quality that gives them the wanted rate on average."""
    pictures = [compose(cells, *sizes.images[0], number) for number in range(count)]
    quality = quality_near(cpu, pictures[:4], sizes.bits)
    files = {preset: [e.data for e in cpu.encode_pictures(pictures, quality, preset)] for preset in PRESETS}
    return Batch(pictures, quality, files)


def _stream(codec: Codec, files: list[bytes], out: Tensor, going_on: Callable[[int], bool]) -> int:
    """Decodes a batch again and again, some ahead of the one that is waited for, as long as it is told to. Returns how
    often."""
    waiting: deque[DecodedTensor] = deque()
    number = 0
    while number == 0 or going_on(number):
        waiting.append(codec.decode_tensor(files, out=out))
        number += 1
        if len(waiting) > IN_FLIGHT:
            waiting.popleft().check()
    for decoded in waiting:
        decoded.check()
    return number


def _rate(machine: Machine, call: Callable[[], object], sizes: Sizes) -> float:
    """Calls a second, one after the other."""
    for _ in range(sizes.warm_ups):
        call()
    machine.synchronize()
    number, start = 0, time.perf_counter()
    while number == 0 or time.perf_counter() - start < sizes.rate_seconds:
        call()
        number += 1
    machine.synchronize()
    return number / (time.perf_counter() - start)


def _read(codec: Codec, files: list[bytes]) -> None:
    """What decoding begins with on the host: headers are parsed, CRCs checked."""
    for data in files:
        parsed = container.read(data, codec.limits)
        for number in range(parsed.header.grid.tile_count):
            parsed.tile(number)


def _images_and_megapixels(batch: Batch, batches_a_second: float) -> dict[str, float]:
    return {"images_s": batches_a_second * len(batch), "mp_s": batches_a_second * batch.megapixels}


def decode_rates(machine: Machine, codec: Codec, cpu: Codec, sizes: Sizes, batch: Batch) -> dict[str, Any]:
    """Batches of this size from bytes on: with pixels that stay on the device, batches behind each other; and with
    pixels brought home, a batch at a time. And the host's share of the former."""
    row: dict[str, Any] = {"batch": len(batch), "image": _name(batch.pictures[0]), "quality": batch.quality}
    for preset, files in batch.files.items():
        out = batch.out(machine.device)
        decode = partial(codec.decode_tensor, files, out=out)
        with machine.kernels():
            for _ in range(sizes.warm_ups):
                decode().check()
            hosts, _ = wall_times(machine, decode, DecodedTensor.check, min(LEAST_RUNS, sizes.repeats))
            out.zero_()
            machine.synchronize()
            start = time.perf_counter()
            end = start + sizes.rate_seconds
            number = _stream(codec, files, out, lambda _, end=end: time.perf_counter() < end)
            staying = number / (time.perf_counter() - start)
            home = _rate(machine, partial(codec.decode_pictures, files), sizes)
            latents = codec.latents(files[-1])
        expected = [cpu.decode_picture(data).pixels for data in files[:2]]  # of all would take long
        _near(out, expected, f"batch of {len(batch)}, {preset}")
        _same(latents, cpu.latents(files[-1]), f"latents of a batch of {len(batch)}, {preset}")
        start = time.perf_counter()
        _read(codec, files)
        reading = time.perf_counter() - start
        row[preset] = {
            "bytes_an_image": sum(map(len, files)) / len(batch),
            "on_device": _images_and_megapixels(batch, staying),
            "brought_home": _images_and_megapixels(batch, home),
            "host_us_an_image": 1e6 * float(np.median(hosts)) / len(batch),
            "parsing_and_crc_us_an_image": 1e6 * reading / len(batch),
        }
    return row


def encode_rates(machine: Machine, codec: Codec, sizes: Sizes, batch: Batch) -> dict[str, Any]:
    """Batches of this size to files (from pixels on the host), and to payloads (from pixels on the device)."""
    engine, grid = _engine(codec), Grid(*batch.pictures[0].pixels.shape[:2])
    row: dict[str, Any] = {"batch": len(batch), "image": _name(batch.pictures[0]), "quality": batch.quality}
    with machine.kernels():
        sent = engine.send([picture.pixels for picture in batch.pictures])
        for name, call in (
            ("from_host", partial(codec.encode_pictures, batch.pictures, batch.quality)),
            ("from_device", partial(engine.encode, sent, grid, batch.quality, "size")),
        ):
            row[name] = _images_and_megapixels(batch, _rate(machine, call, sizes))
    return row


def energy(machine: Machine, codec: Codec, sizes: Sizes, batch: Batch) -> dict[str, Any]:
    """Joules a megapixel of decoding batches behind each other, pixels staying on the device; and the clocks."""
    out, files = batch.out(machine.device), batch.files["size"]
    with machine.kernels():
        for _ in range(sizes.warm_ups):
            codec.decode_tensor(files, out=out).check()
        meter = Meter(machine.nvml)

        def going_on(number: int) -> bool:
            if number % 8 == 0:
                meter.sample()
            return meter.seconds < sizes.energy_seconds

        number = _stream(codec, files, out, going_on)
        seconds, joules, measured = meter.stop()
    megapixels = number * batch.megapixels
    return {
        "batch": len(batch),
        "preset": "size",
        "seconds": seconds,
        "mp_s": megapixels / seconds,
        "joules_per_megapixel": joules / megapixels if joules else None,
        **measured,
    }


# --- launches ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Work:
    """What a launch has to do at least: every tensor's bytes once, and a dense product's multiplications.

    A table of one row a quality counts as one row. Activation functions and the depthwise convolutions are left out of
    the products, which are what tensor cores do; the payload is left out of the coder's bytes (under one in a hundred).
    """

    name: str
    byte_count: int
    products: int = 0
    kind: str | None = None  # of the products
    symbols: int = 0


_KINDS = {torch.int8: "int8", torch.float16: "fp16", torch.float32: "fp32"}
_ONE_ROW = ("scale", "first_bias")


def _size(tensor: Tensor) -> int:
    return tensor.numel() * tensor.element_size()


def work_of_kernel(kernel: str, a: dict[str, Any]) -> Work:
    """Of a launch of a Triton kernel. a: its arguments by name. A kernel that is not known has its tensors' bytes."""
    tensors = {name: value for name, value in a.items() if isinstance(value, Tensor)}
    byte_count = sum(_size(tensor) // (tensor.shape[0] if name in _ONE_ROW else 1) for name, tensor in tensors.items())
    if kernel == "_convolve_and_double":
        layers = "middle and up2" if a["SCALE"] > 1 else "head and up1"
        products = a["x"].shape[0] * (a["TAPS"] * a["IN"] * a["N"] + 4 * a["N"] ** 2)
        return Work(f"hyper-synthesis: {layers}", byte_count, products, "int8")
    if kernel == "_convolve_to_psi":
        return Work("hyper-synthesis: tail", byte_count, a["psi"].numel() * a["TAPS"] * a["IN"], "int8")
    if kernel == "_parameters":
        positions, context = a["indexes"].shape[0], a["context_weight"] is not None
        unread = (a["psi"].shape[0] - positions) * a["F"]  # psi is that of both halves
        unread += 0 if context else a["H"] * a["C"]  # of the first layer's weights
        layers = a["F"] * a["H"] + a["H"] ** 2 + 2 * a["H"] * a["M"]
        layers += ((a["TAPS"] * a["M"] + a["B"]) * a["C"] + a["C"] * a["H"]) if context else 0
        name = "anchor parameters" if a["anchors"] is None else "context parameters"
        return Work(name, byte_count - unread, positions * layers, "int8")
    if kernel == "_expand_kernel":
        return Work("first layer of a block", byte_count, a["out"].numel() * a["K"], _KINDS[a["weight"].dtype])
    if kernel == "_residual_kernel":
        following = a["expanded_out"] is not None
        products = a["expanded"].numel() * a["C"] * (5 if following else 4)
        name = f"residual block, {a['C']} channels" + (", and into the next" if following else "")
        return Work(name, byte_count, products, _KINDS[a["project_weight"].dtype])
    if kernel == "_upsample_2_kernel":
        return Work("upsample", byte_count, a["out"].numel() * (a["K"] + a["C"]), _KINDS[a["weight"].dtype])
    if kernel == "_to_pixels_kernel":
        return Work("to pixels", byte_count)
    return Work(kernel, byte_count)


def work_of_convolution(x: Tensor, weight: Tensor, stride: int = 1) -> Work:
    """Of PyTorch's dense convolution: x [B, H, W, C], weight [outputs, C, k, k], padded by k // 2."""
    outputs, taps = weight.shape[0], weight[0].numel()
    positions = x.shape[0] * -(-x.shape[1] // stride) * -(-x.shape[2] // stride)
    byte_count = _size(x) + _size(weight) + positions * outputs * x.element_size()
    name = f"convolution {weight.shape[2]}x{weight.shape[3]} (PyTorch)"
    return Work(name, byte_count, positions * outputs * taps, _KINDS[x.dtype])


def work_of_pass(session: Session, number: int) -> Work:
    """Of the coder: an index is read for each symbol, and a mean; a symbol is written, a value, a latent."""
    item = session._passes[number]
    written = [tensor.element_size() for tensor in (item.symbols, item.values, *item.latents[:1]) if tensor is not None]
    read = 1 + (item.means.element_size() if item.means is not None else 0)
    count = item.indexes.numel()
    return Work(_pass_name(number), count * (read + sum(written)), symbols=count)


class _Watched:
    """A kernel whose launches are marked."""

    def __init__(self, kernel: Any, marks: Marks):
        self._kernel, self._marks = kernel, marks

    def __getitem__(self, grid: Any) -> Callable:
        def note(*arguments: Any, **constants: Any) -> Work:
            named = dict(zip(self._kernel.arg_names, arguments, strict=False))
            return work_of_kernel(self._kernel.__name__, named | constants)

        return self._marks.around(self._kernel[grid], note)


@contextmanager
def watched_launches(machine: Machine) -> Iterator[Marks]:
    """Within it, the launches of decoding are marked by their `Work`."""
    marks = Marks(machine)
    with ExitStack() as stack:
        for module in (hyper_synthesis, parameters, pixels, pointwise, residual, upsample):
            launched = {id(build.kernel) for build in module.builds()}
            for name, kernel in list(vars(module).items()):
                if id(kernel) in launched:
                    stack.enter_context(patch.object(module, name, _Watched(kernel, marks)))
        for owner, name, note in (
            (Session, "run", work_of_pass),
            (Session, "finish", Work("finish", 0)),
            (transforms, "_convolution", work_of_convolution),
        ):
            stack.enter_context(patch.object(owner, name, marks.around(getattr(owner, name), note)))
        yield marks


def tensor_peak(machine: Machine, kind: str | None, mhz: float | None) -> float | None:
    """Operations a second of all tensor cores at this clock; None where that is not known."""
    rate = TENSOR_RATES.get(machine.capability, {}).get(kind or "")
    return rate * machine.multiprocessors * mhz * 1e6 if rate and mhz else None


def launches(machine: Machine, codec: Codec, sizes: Sizes, batch: Batch, copy: float | None) -> dict[str, Any]:
    """Every launch of a batch's decode: its time, and its place under the roofs of memory and of tensor cores.

    copy: bytes a second, read and written, that a copy within the device's memory reaches. What the launch before has
    just written comes from the L2 cache, so a small batch may go beyond that.
    """
    out, files = batch.out(machine.device), batch.files["latency"]
    decode = partial(codec.decode_tensor, files, out=out)
    with machine.kernels(), by_launches(machine, codec):
        for _ in range(sizes.warm_ups):
            start = time.perf_counter()
            waiting = decode()
            host = time.perf_counter() - start
            waiting.check()
        empty = gpu_times(machine, lambda: None, 0, sizes.repeats)
        with watched_launches(machine) as marks:
            totals = gpu_times(machine, decode, host, sizes.repeats)
            mhz = machine.nvml.sm_mhz()  # right behind the work
            runs = marks.take(len(totals))
    rows = [
        _figures(machine, run[0][0], float(np.median([seconds for _, seconds in run])), copy, mhz)
        for run in zip(*runs, strict=True)
    ]
    return {
        "batch": len(batch),
        "preset": "latency",
        "sm_mhz": mhz,
        "events_us": 1e6 * float(np.median(empty)),
        "gpu": spread(totals),
        "launches_us": sum(row["us"] for row in rows),
        "launches": rows,
    }


def _figures(machine: Machine, work: Work, seconds: float, copy: float | None, mhz: float | None) -> dict[str, Any]:
    peak = tensor_peak(machine, work.kind, mhz)
    operations = 2 * work.products
    floors = {"memory": work.byte_count / copy if copy else 0.0, "tensor cores": operations / peak if peak else 0.0}
    bound = max(floors, key=lambda name: floors[name])
    row: dict[str, Any] = {"launch": work.name, "us": 1e6 * seconds, "bytes": work.byte_count}
    if work.byte_count:
        row |= {"gb_s": work.byte_count / seconds / 1e9, "of_copy": work.byte_count / seconds / copy if copy else None}
    if operations:
        row |= {"operations": operations, "kind": work.kind, "tops": operations / seconds / 1e12}
        row |= {"of_tensor_peak": operations / seconds / peak if peak else None}
    if work.symbols:
        row |= {"symbols": work.symbols, "gsymbols": work.symbols / seconds / 1e9}
    if floors[bound]:
        row |= {"floor_us": 1e6 * floors[bound], "bound_by": bound, "of_floor": floors[bound] / seconds}
    return row


# --- baselines --------------------------------------------------------------------------------------------------------


class HostCoder:
    """The same decode with the entropy coder on the host, as other codecs have it: symbols go to the GPU once a pass,
    and the host waits for the indexes of all but the first. The networks are the same kernels; memory is kept, and what
    crosses is pinned.

    files: of one size and quality. After `decode` its attributes hold what passed between the stages.
    """

    def __init__(self, machine: Machine, codec: Codec, files: list[bytes]):
        self._machine, self._engine = machine, _engine(codec)
        engine, parsed = self._engine, [container.read(data, codec.limits) for data in files]
        header, config, device = parsed[0].header, engine.model.config, engine.device
        grid = header.grid
        tiles = list(grid.tiles())
        self._payloads = [file.tile(number).payload for number in range(len(tiles)) for file in parsed]
        layout = Layout(tuple((tile.height, tile.width) for tile in tiles for _ in files))
        self.layout, self.quality = layout, header.quality
        row = header.quality - MIN_QUALITY
        self.table = layout.table([row] * len(layout.shapes)).to(device)
        self._gain = engine.inverse_gain[row]
        self.rows = torch.full((len(files),), row, dtype=torch.int32, device=device)

        self.z = engine.empty(sum(layout.hyper_positions), config.hyper_latents, torch.int16)
        self.psi = engine.empty(sum(layout.positions), config.hyper_features, torch.int8)
        rows, columns, dtype = grid.latent_height, grid.latent_width, engine.transforms.dtype
        self.latents = torch.empty(len(files), rows, columns, config.latents, dtype=dtype, device=device)
        self.pixels = torch.empty(len(files), grid.height, grid.width, 3, dtype=torch.uint8, device=device)
        self._hyper_indexes = list(engine.hyper_indexes(len(self.z)).cpu().split(layout.hyper_positions))
        self._z_home = self._pinned(self.z)
        self.halves = []
        for counts, positions in (
            (layout.anchors, checkerboard.anchor_positions),
            (layout.non_anchors, checkerboard.non_anchor_positions),
        ):
            places = []
            for tile in tiles:
                flat = positions(tile.height, tile.width)
                inside = (tile.top + flat // tile.width) * columns + tile.left + flat % tile.width
                places += [inside + file * rows * columns for file in range(len(files))]
            self.halves.append(_Half(self, counts, torch.cat(places).to(device), config.latents))

    def _pinned(self, like: Tensor) -> Tensor:
        return self._engine.where.staging(_size(like)).view(like.dtype).view(like.shape)

    @property
    def coded(self) -> float:
        """The share of latents that were coded, which the last `decode` saw."""
        seen = [home for half in self.halves for home in half.indexes_home]
        return sum(int(torch.count_nonzero(t)) for t in seen) / max(1, sum(t.numel() for t in seen))

    @torch.inference_mode()
    def decode(self) -> None:
        """Payloads to `pixels`. Waits for the GPU for each pass's indexes, and at the end."""
        engine, longest = self._engine, self.layout.longest
        decoder = Decoder(self._payloads)
        tables = engine.model.hyper_tables
        decoder.decode(self._hyper_indexes, tables, out=list(self._z_home.split(self.layout.hyper_positions)))
        self.z.copy_(self._z_home, non_blocking=True)
        hyper_synthesis.hyper_synthesis(self.z, self.table, longest, engine.hyper_network, self.psi)
        for number in range(len(engine.networks)):
            for half, compute in zip(self.halves, self.parameters_of(number), strict=True):
                compute()
                half.decode(decoder, number)
        decoder.finish()
        engine.transforms.synthesis(self.latents, self.rows, self.pixels)
        self._machine.synchronize()

    def parameters_of(self, number: int) -> tuple[Callable[[], None], Callable[[], None]]:
        """What enqueues the parameters of a group's anchors, and of its non-anchors."""
        own, network = self._engine.model.entropy.groups[number], self._engine.networks[number]
        (anchors, before), (_, before_others) = (half.known(own) for half in self.halves)
        where = (self.table, self.layout.longest, network)
        first, second = (half.outputs[number] for half in self.halves)
        return (
            partial(parameters.anchor_parameters, self.psi, before, *where, *first),
            partial(parameters.context_parameters, self.psi, anchors, before_others, *where, *second),
        )


class _Half:
    """The anchors of a `HostCoder`'s tiles, or the non-anchors."""

    def __init__(self, owner: HostCoder, counts: list[int], places: Tensor, channels: int):
        self._owner, self._counts, self._places = owner, counts, places
        empty = partial(owner._engine.empty, sum(counts))
        self.values = empty(channels, torch.int32)
        self._groups = owner._engine.model.entropy.groups
        widths = [own.stop - own.start for own in self._groups]
        self.outputs = [(empty(width, torch.int16), empty(width, torch.uint8)) for width in widths]
        self._symbols = [empty(width, torch.int16) for width in widths]
        self.indexes_home = [owner._pinned(indexes) for _, indexes in self.outputs]
        self._symbols_home = [owner._pinned(symbols) for symbols in self._symbols]

    def known(self, own: slice) -> tuple[Tensor, Tensor | None]:
        """A group's values, and those of the groups before it."""
        return self.values[:, own], self.values[:, : own.start] if own.start else None

    def decode(self, decoder: Decoder, number: int) -> None:
        """A group's indexes home, to symbols, and back: values, and latents in their places."""
        owner, own, (means, indexes) = self._owner, self._groups[number], self.outputs[number]
        self.indexes_home[number].copy_(indexes, non_blocking=True)
        owner._machine.synchronize()
        symbols = list(self._symbols_home[number].split(self._counts))
        decoder.decode(list(self.indexes_home[number].split(self._counts)), owner._engine.model.tables, out=symbols)
        self._symbols[number].copy_(self._symbols_home[number], non_blocking=True)
        values = reconstruct(self._symbols[number], means)
        self.values[:, own] = values
        latents = (values * owner._gain[own]).to(owner.latents.dtype)
        owner.latents.flatten(0, 2)[:, own].index_copy_(0, self._places, latents)


def beside_host_coder(machine: Machine, codec: Codec, sizes: Sizes, batch: Batch, host: HostCoder) -> dict[str, Any]:
    """Both from bytes to pixels on the device, by the host's clock; the host coder's files are parsed already."""
    out, files = batch.out(machine.device), batch.files["latency"]
    ours = _by_graph(machine, codec, files, out, sizes)["wall"]
    for _ in range(sizes.warm_ups):
        host.decode()
    _, totals = wall_times(machine, host.decode, lambda _: None, sizes.repeats)
    _near(out, host.pixels.cpu().numpy(), "host coder")
    theirs = spread(totals)
    return {"wall": theirs, "ours": ours, "times_ours": theirs["median_ms"] / ours["median_ms"], "coded": host.coded}


class _HalfLayer(NamedTuple):
    """An integer layer as half precision has it: sums are scaled by 2^-shift beforehand, and not rounded."""

    weight: Tensor  # fp16 [outputs, inputs]
    bias: Tensor
    low: int
    high: int

    @classmethod
    def of(cls, layer: integer.IntegerLayer) -> _HalfLayer:
        scale = torch.exp2(-layer.shift.float())
        return cls((layer.weight * scale[:, None]).half(), (layer.bias * scale).half(), layer.low, layer.high)

    @staticmethod
    def run(x: Tensor, layer: _HalfLayer, row: int | None = None) -> Tensor:
        bias = layer.bias if row is None else layer.bias[row]
        out = torch.addmm(bias, x.reshape(-1, x.shape[-1]), layer.weight.T).clamp_(layer.low, layer.high)
        return out.view(*x.shape[:-1], out.shape[-1])


def _half_shift(x: Tensor, shift: Tensor, low: int, high: int) -> Tensor:
    return (x * torch.exp2(-shift.float()).half()).clamp_(low, high)


def unfused_network(codec: Codec, half: bool) -> EntropyModel:
    """h_s, g_cm and g_ep in plain PyTorch on the GPU, a gather and a matrix product a layer.

    In float32 it is the CPU's own, and exact. In half precision it is what a network would be that need not be exact.
    """
    entropy = codec.model.entropy
    tensors = {"context_shift": entropy.context_shift.to(codec.device)}
    for name, layer in entropy.layers.items():
        for part in ("weight", "bias", "shift"):
            tensors[f"{name}.{part}"] = getattr(layer, part).to(codec.device)
    network = EntropyModel(tensors, "float32")
    if half:
        network.layers = {name: _HalfLayer.of(layer) for name, layer in network.layers.items()}
        network.arithmetic = Arithmetic(torch.float16, _HalfLayer.run, _half_shift)
    return network


@contextmanager
def _positions_on(device: torch.device, height: int, width: int) -> Iterator[None]:
    """Within it, the checkerboard's positions of a tile lie on the device: from the host they would be copied, and
    waited for."""
    with ExitStack() as stack:
        names = ("anchor_positions", "non_anchor_positions", "context_rows")
        there = [getattr(checkerboard, name)(height, width).to(device) for name in names]
        for name, positions in zip(names, there, strict=True):
            stack.enter_context(patch.object(checkerboard, name, lambda *_, positions=positions: positions))
        yield


def _all(calls: Sequence[Callable[[], Any]]) -> list[Any]:
    return [call() for call in calls]


def beside_unfused_network(machine: Machine, codec: Codec, sizes: Sizes, host: HostCoder) -> dict[str, Any]:
    """The network's stages by the GPU's clock: fused, and in plain PyTorch with float32, TF32 and half precision.

    On what `host` decoded, whose images must be of one tile. "equal": whether PyTorch's results are the kernels'.
    """
    engine, layout, (anchors, rest) = _engine(codec), host.layout, host.halves
    (height, width), count, groups = layout.shapes[0], len(layout.shapes), engine.model.entropy.groups
    fused = {
        "hyper-synthesis": partial(
            hyper_synthesis.hyper_synthesis, host.z, host.table, layout.longest, engine.hyper_network, host.psi
        ),
        "anchor parameters": partial(_all, [host.parameters_of(number)[0] for number in range(len(groups))]),
        "context parameters": partial(_all, [host.parameters_of(number)[1] for number in range(len(groups))]),
    }
    row: dict[str, Any] = {}
    precision = torch.get_float32_matmul_precision()
    with torch.inference_mode():
        row["fused_us"] = {name: 1e6 * gpu_seconds(machine, call, sizes) for name, call in fused.items()}
        halves = layout.anchors[0], layout.non_anchors[0]
        psi = host.psi.view(count, height * width, -1).split(halves, 1)
        z = host.z.view(count, *layout.hyper_shapes[0], -1)
        own = [anchors.values[:, group].reshape(count, halves[0], -1) for group in groups]
        before = [
            [half.values[:, : group.start].reshape(count, positions, -1) if group.start else None for group in groups]
            for half, positions in zip(host.halves, halves, strict=True)
        ]
        wanted = (
            psi,
            [tensor.view(count, halves[0], -1) for output in anchors.outputs for tensor in output],
            [tensor.view(count, halves[1], -1) for output in rest.outputs for tensor in output],
        )
        for name, half, setting in (
            ("float32", False, "highest"),
            ("tf32", False, "high"),
            ("float16", True, "highest"),
        ):
            network = unfused_network(codec, half)
            first, second = (part.to(network.arithmetic.dtype) for part in psi)
            size, quality, numbers = (height, width), host.quality, range(len(groups))
            calls = (
                partial(network.hyper_synthesis, z, *size),
                partial(_all, [partial(network.anchor_parameters, first, quality, k, before[0][k]) for k in numbers]),
                partial(
                    _all,
                    [
                        partial(network.non_anchor_parameters, second, own[k], size, quality, k, before[1][k])
                        for k in numbers
                    ],
                ),
            )
            torch.set_float32_matmul_precision(setting)
            try:
                with _positions_on(codec.device, height, width):
                    microseconds = [1e6 * gpu_seconds(machine, call, sizes) for call in calls]
                    results = [call() for call in calls]
            finally:
                torch.set_float32_matmul_precision(precision)
            found = [
                x if isinstance(x, tuple) else [tensor for each in x for tensor in (each.means, each.indexes)]
                for x in results
            ]
            pairs = [pair for xs, ys in zip(found, wanted, strict=True) for pair in zip(xs, ys, strict=True)]
            row[name] = {
                "us": dict(zip(fused, microseconds, strict=True)),
                "times_fused": {
                    stage: us / row["fused_us"][stage] for stage, us in zip(fused, microseconds, strict=True)
                },
                "equal": all(torch.equal(x.to(y.dtype), y) for x, y in pairs),
            }
    return row


def beside_unfused_synthesis(machine: Machine, codec: Codec, sizes: Sizes, host: HostCoder) -> dict[str, Any]:
    """g_s by the GPU's clock, latents to uint8 pixels: the engine's, and the model's own layers in half precision and
    channels last. "furthest": in levels, between the two."""
    engine = _engine(codec)
    ours = engine.transforms
    count, height, width, _ = host.pixels.shape
    g_s = copy.deepcopy(codec.model.g_s).to(codec.device, ours.dtype).to(memory_format=torch.channels_last)
    t = torch.full((count,), quality_position(host.quality), dtype=ours.dtype, device=codec.device)

    def unfused() -> Tensor:
        x = g_s(host.latents.permute(0, 3, 1, 2), t)[:, :, :height, :width].permute(0, 2, 3, 1)
        return (x * 255).round_().clamp_(0, 255).to(torch.uint8)

    with torch.inference_mode():
        ours_us = 1e6 * gpu_seconds(machine, partial(ours.synthesis, host.latents, host.rows, host.pixels), sizes)
        theirs_us = 1e6 * gpu_seconds(machine, unfused, sizes)
        furthest = int((unfused().int() - host.pixels.int()).abs().max())
    return {"fused_us": ours_us, "unfused_us": theirs_us, "times_fused": theirs_us / ours_us, "furthest": furthest}


def baselines(machine: Machine, codec: Codec, sizes: Sizes, parts: Parts, batch: Batch) -> dict[str, Any]:
    """What the fused and the resident parts replace, on the same files in the same run."""
    host = HostCoder(machine, codec, batch.files["latency"])
    host.decode()
    row: dict[str, Any] = {"batch": len(batch), "preset": "latency"}
    for name, measure in (
        ("host_coder", partial(beside_host_coder, machine, codec, sizes, batch, host)),
        ("network", partial(beside_unfused_network, machine, codec, sizes, host)),
        ("synthesis", partial(beside_unfused_synthesis, machine, codec, sizes, host)),
    ):
        row[name] = parts.attempt(f"{name} beside batch {len(batch)}", measure)
    return row


# --- goals ------------------------------------------------------------------------------------------------------------


def goals(found: dict[str, Any]) -> list[dict[str, Any]]:
    """What was wanted, and what was measured of it: None where that part failed or was left out."""

    def measured(read: Callable[[], float]) -> float | None:
        try:
            return read()
        except (KeyError, IndexError, ValueError, StopIteration):
            return None

    def decode(image: str) -> Callable[[], float]:
        rows = [row for row in found.get("decode", ()) if row["image"] == image]
        return lambda: rows[0]["latency"]["graph"]["wall"]["median_ms"]

    def context() -> float:
        network = next(row["network"] for row in found["baselines"] if row["batch"] == 1)
        exact = [network[name] for name in ("float32", "tf32") if network[name]["equal"]]
        return min(row["times_fused"]["context parameters"] for row in exact)

    def images() -> float:
        rows = [row for row in found["decode_rates"] if "failed" not in row]
        return max(row[preset]["on_device"]["images_s"] for row in rows for preset in PRESETS)

    return [
        _goal("768x512, latency preset, bytes to pixels on the device, ms", measured(decode("768x512")), most=1.0),
        _goal("1920x1080, the same, ms", measured(decode("1920x1080")), most=3.0),
        _goal("context parameters, times as fast as unfused and exact, batch 1", measured(context), least=3.0),
        _goal("768x512, decoding of batches, images/s", measured(images), least=1500.0),
    ]


def _goal(
    what: str, measured: float | None, *, least: float | None = None, most: float | None = None
) -> dict[str, Any]:
    reached = None if measured is None else measured >= least if most is None else measured <= most
    limit = {"at_least": least} if most is None else {"at_most": most}
    return {"goal": what, **limit, "measured": measured, "reached": reached}


# --- tables -----------------------------------------------------------------------------------------------------------


def _print_decode(row: dict[str, Any]) -> None:
    if "failed" in row:
        return
    table = _common.table(
        f"Decode {row['image']}, quality {row['quality']}: bytes to pixels on the device, ms (95 %)",
        "preset",
        *("bytes", "bpp", "graph: wall", "GPU", "host", "launches: wall", "GPU"),
    )
    for preset in PRESETS:
        item = row[preset]
        cells = [
            f"{item[way][clock]['median_ms']:.2f} ({item[way][clock]['p95_ms']:.2f})"
            for way, clock in (
                *(("graph", clock) for clock in ("wall", "gpu", "host")),
                *(("launches", clock) for clock in ("wall", "gpu")),
            )
        ]
        table.add_row(preset, str(item["bytes"]), f"{item['bpp']:.3f}", *cells)
    print_table(table)
    names = (*STAGES, "other")
    table = _common.table(f"Stages of {row['image']}, µs", "stage", *PRESETS)
    for stage in names:
        table.add_row(stage, *(f"{row[preset]['launches']['stages_us'][stage]:.0f}" for preset in PRESETS))
    print_table(table)


def _print_encode(row: dict[str, Any]) -> None:
    if "failed" in row:
        return
    times = [
        f"{preset} {row[preset]['wall']['median_ms']:.2f} ms ({row[preset]['wall']['p95_ms']:.2f})"
        for preset in PRESETS
    ]
    _common.console.print(f"encode {row['image']}, pixels to bytes: {', '.join(times)}", highlight=False)


def _print_rates(decode: list[dict[str, Any]], encode: list[dict[str, Any]]) -> None:
    decoded, encoded = ({row["batch"]: row for row in rows if "failed" not in row} for rows in (decode, encode))
    if not decoded:
        return
    table = _common.table(
        f"Batches of {next(iter(decoded.values()))['image']}, images/s (MP/s)",
        "batch",
        *("decode, size preset", "latency preset", "brought home", "host, µs", "encode", "from the device"),
    )

    def cell(rates: dict[str, float]) -> str:
        return f"{rates['images_s']:.0f} ({rates['mp_s']:.0f})"

    for count, row in sorted(decoded.items()):
        cells = [cell(row[preset]["on_device"]) for preset in PRESETS]
        cells += [cell(row["size"]["brought_home"]), f"{row['size']['host_us_an_image']:.0f}"]
        cells += [cell(encoded[count][way]) if count in encoded else "-" for way in ("from_host", "from_device")]
        table.add_row(str(count), *cells)
    print_table(table)


def _print_launches(row: dict[str, Any]) -> None:
    if "failed" in row:
        return
    table = _common.table(
        f"Launches of decoding, batch {row['batch']}; events take {row['events_us']:.1f} µs of each",
        "launch",
        *("µs", "GB/s", "of copy", "TOPS", "of peak", "Gsym/s", "floor, µs", "of floor"),
    )

    def number(item: dict[str, Any], key: str) -> str:
        return f"{item[key]:.3g}" if item.get(key) is not None else "-"

    for item in row["launches"]:
        table.add_row(
            item["launch"],
            *(number(item, "us"), number(item, "gb_s"), percent(item.get("of_copy")), number(item, "tops")),
            *(percent(item.get("of_tensor_peak")), number(item, "gsymbols"), number(item, "floor_us")),
            percent(item.get("of_floor")),
        )
    print_table(table)


def _print_baselines(row: dict[str, Any]) -> None:
    if "failed" in row:
        return
    show = partial(_common.console.print, highlight=False, soft_wrap=True)
    if "failed" not in (host := row["host_coder"]):
        show(
            f"batch {row['batch']}: coder on the host {host['wall']['median_ms']:.2f} ms, "
            f"{host['times_ours']:.1f} times ours ({100 * host['coded']:.0f} % of the latents coded)"
        )
    if "failed" not in (network := row["network"]):
        for stage, ours in network["fused_us"].items():
            others = [
                f"{name} {network[name]['times_fused'][stage]:.1f}{'' if network[name]['equal'] else ' (not exact)'}"
                for name in ("float32", "tf32", "float16")
            ]
            show(f"batch {row['batch']}: {stage} {ours:.1f} µs; unfused, times that: {', '.join(others)}")
    if "failed" not in (synthesis := row["synthesis"]):
        show(
            f"batch {row['batch']}: synthesis {synthesis['fused_us']:.0f} µs; unfused, "
            f"times that: {synthesis['times_fused']:.1f}"
        )


def _print_rest(found: dict[str, Any]) -> None:
    show = partial(_common.console.print, highlight=False, markup=False, soft_wrap=True)
    if (joules := found["energy"].get("joules_per_megapixel")) is not None:
        clock = f", {found['energy']['sm_mhz']:.0f} MHz" if found["energy"]["sm_mhz"] else ""
        show(f"decoding: {joules:.4f} J a megapixel ({found['energy']['measured_by']}){clock}")
    for goal in found["goals"]:
        limit = f"at most {goal['at_most']:g}" if "at_most" in goal else f"at least {goal['at_least']:g}"
        figure = "not measured" if goal["measured"] is None else f"{goal['measured']:.3g}"
        mark = {True: "reached", False: "MISSED", None: ""}[goal["reached"]]
        show(f"goal: {goal['goal']}: {limit}; {figure} {mark}".rstrip())
    if found["skipped"]:
        show(f"left out for want of time: {'; '.join(found['skipped'])}")


# --- the whole --------------------------------------------------------------------------------------------------------


def _first_calls(machine: Machine, codec: Codec, sizes: Sizes, batch: Batch) -> dict[str, float]:
    """Seconds of the first decodes and encodes, of one image and of a batch: Triton compiles what it has not cached."""
    times = {}
    with machine.kernels():
        for count in sorted({1, len(batch)}):
            part = batch.of(count)
            for name, call in (
                ("decode", lambda part=part: codec.decode_tensor(part.files["size"]).check()),
                ("encode", partial(codec.encode_pictures, part.pictures, part.quality)),
            ):
                start = time.perf_counter()
                call()
                times[f"{name}, batch {count}"] = time.perf_counter() - start
    return times


def run(
    machine: Machine | None = None,
    codec: Codec | None = None,
    sizes: Sizes | None = None,
    seconds: float = SECONDS,
    save: Callable[[dict[str, Any]], None] = lambda found: None,
) -> dict[str, Any]:
    """Every part is tried; one that fails leaves the failure's text in its place, and its name in `failures`.

    machine, codec, sizes: for the tests. save: is given what is found after each part.
    """
    machine, sizes, budget, parts = machine or Machine(), sizes or Sizes(), Budget(seconds), Parts()
    codec, cpu = codec or Codec.load("swift", str(machine.device)), Codec.load("swift", "cpu")
    source, cells = photographs()
    lists = ("decode", "decode_rates", "baselines", "launches", "encode", "encode_rates")
    found: dict[str, Any] = {
        "images": source,
        "bits_per_pixel": sizes.bits,
        "goals": [],
        **{name: [] for name in lists},
        "energy": {"skipped": "no time was left"},
        "skipped": budget.skipped,
        "failures": parts.failures,
    }
    written = written_batch(cpu, sizes, cells, min(WRITTEN, max(sizes.batches)))
    found["first_calls_s"] = parts.attempt("first calls", partial(_first_calls, machine, codec, sizes, written))
    copy_rate = parts.attempt("copy bandwidth", machine.copy_bandwidth)
    copy_rate = copy_rate if isinstance(copy_rate, float) else None
    found["copy_gb_s"] = copy_rate and copy_rate / 1e9
    save(found)

    def add(
        section: str,
        label: dict[str, Any],
        kind: str,
        body: Callable[[], Any],
        print_row: Callable[[dict[str, Any]], None] = lambda row: None,
        first: float = 10.0,
    ) -> None:
        name = f"{section}, {', '.join(map(str, label.values()))}"
        if budget.allows(kind, name, first):
            found[section].append(parts.attempt(name, body, **label))
            print_row(found[section][-1])
            save(found)

    def decode_one(size: tuple[int, int]) -> None:
        picture = compose(cells, *size)
        body = partial(decode_latency, machine, codec, cpu, sizes, picture)
        first = 10.0 + picture.pixels.size / 3e6  # the CPU codes it some ten times
        add("decode", {"image": _name(picture)}, f"decode {_name(picture)}", body, _print_decode, first)

    def encode_one(size: tuple[int, int]) -> None:
        picture = compose(cells, *size)
        known = [row["quality"] for row in found["decode"] if row["image"] == _name(picture) and "quality" in row]
        body = partial(encode_latency, machine, codec, cpu, sizes, picture, *(known or [written.quality]))
        add("encode", {"image": _name(picture)}, f"encode {_name(picture)}", body, _print_encode)

    # What matters most comes first: time may end.
    for size in sizes.images[:2]:
        decode_one(size)
    for count in sizes.batches:
        body = partial(decode_rates, machine, codec, cpu, sizes, written.of(count))
        add("decode_rates", {"batch": count}, "batch", body)
    for count in sizes.studied:
        body = partial(baselines, machine, codec, sizes, parts, written.of(count))
        add("baselines", {"batch": count}, "baselines", body, _print_baselines)
    for count in sizes.studied:
        body = partial(launches, machine, codec, sizes, written.of(count), copy_rate)
        add("launches", {"batch": count}, "launches", body, _print_launches)
    for size in sizes.images[:2]:
        encode_one(size)
    for count in sizes.batches:
        body = partial(encode_rates, machine, codec, sizes, written.of(count))
        add("encode_rates", {"batch": count}, "batch", body)
    if budget.allows("energy", "energy"):
        body = partial(energy, machine, codec, sizes, written.of(sizes.energy_batch))
        found["energy"] = parts.attempt("energy", body)
    for size in sizes.images[2:]:
        decode_one(size)
        encode_one(size)
    found["goals"] = goals(found)
    _print_rates(found["decode_rates"], found["encode_rates"])
    _print_rest(found)
    save(found)
    return found


def main(arguments: Sequence[str]) -> int:
    """Measures, and writes what is found to the file that is named. Returns 1 if there is nothing to measure on."""
    path = Path(*arguments)

    def save(found: dict[str, Any]) -> None:
        unfinished = path.with_suffix(".part")
        unfinished.write_text(json.dumps(_common.rounded(found)), encoding="utf-8")
        unfinished.replace(path)  # so that it is whole, whenever this process is stopped

    try:
        run(save=save)
    except _common.CannotRunError as error:
        _common.console.print(f"skipped: {error}", markup=False, soft_wrap=True)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
