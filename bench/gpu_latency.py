"""The codec's figures on a GPU, the most wanted first: `python -m bench.gpu_latency --seconds 85 --out FILE`.

Where gpu_codec.py is a benchmark that is run whole, this one is for a machine that is there for a minute. A figure is
a part by itself; the file is written anew after each, so that whatever ends the run leaves what was found. A part that
fails leaves its traceback. An error that stays with a process's use of the GPU (an illegal memory access) ends that
process: what is left runs in a fresh one, which a part that hangs gets too. Nothing is shared between parts but the
files that they decode.

Besides one file again and again, which is how a latency is measured, it decodes many different ones, round after round:
in the first round shapes are met for the first time, in the second they are captured, and later ones replay. That is
what a program sees that decodes a folder. Clocks and checks are those of gpu_codec.py.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache, cached_property, partial
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
from torch import Tensor

from fastcodec.codec import Codec
from fastcodec.errors import UnavailableError
from fastcodec.images import Picture

from . import _common, gpu_codec
from .gpu import Budget, Machine
from .gpu_codec import PRESETS, Batch, Sizes

SECONDS = 85.0
QUALITY = 60  # of many pictures: about half a bit a pixel, on average over the Kodak set
MANY = 24  # different pictures
ROUNDS = 8
MOST_PART_SECONDS = 40.0  # a part that takes longer hangs, and its process is stopped
MOST_PROCESSES = 8
FINISHED, POISONED, CANNOT_BEGIN = 0, 3, 4  # exit statuses of the process that measures


@dataclass
class Found:
    """What is known so far; `save` writes it, whole at any time."""

    path: Path
    parts: dict[str, Any] = field(default_factory=dict)
    failures: dict[str, str] = field(default_factory=dict)
    skipped: list[str] = field(default_factory=list)
    running: str | None = None

    def save(self) -> None:
        unfinished = self.path.with_suffix(".part")
        text = json.dumps(_common.rounded({name: value for name, value in vars(self).items() if name != "path"}))
        unfinished.write_text(text, encoding="utf-8")
        unfinished.replace(self.path)

    @classmethod
    def load(cls, path: Path) -> Found:
        try:
            return cls(path, **json.loads(path.read_text("utf-8")))
        except OSError:
            return cls(path)

    def settled(self, name: str) -> bool:
        """Whether a part has run, well or badly."""
        return name in self.parts or name in self.failures


class Subject:
    """What is measured: the codec on the GPU, the CPU's to compare with, pictures and their files.

    folder: where files that the CPU wrote are kept for processes that follow.
    """

    def __init__(self, folder: Path, machine: Machine | None = None, codec: Codec | None = None, sizes: Any = None):
        self.folder, self.machine, self.sizes = folder, machine or Machine(), sizes or Sizes()
        self.codec = codec or Codec.load("swift", str(self.machine.device))
        self.cpu = Codec.load("swift", "cpu")

    @cached_property
    def _photographs(self) -> tuple[str, list[np.ndarray]]:
        source, cells = gpu_codec.photographs()
        if source != "Kodak":
            source, cells = "synthetic", [gpu_codec._synthetic(seed) for seed in range(MANY)]
        return source, cells

    @property
    def source(self) -> str:
        return self._photographs[0]

    @property
    def cells(self) -> list[np.ndarray]:
        return self._photographs[1]

    @cached_property
    def many(self) -> list[Picture]:
        """Different pictures, a quarter of them upright as in the Kodak set."""
        width, height = self.sizes.images[0]
        pictures = [gpu_codec.compose(self.cells, width, height, number) for number in range(MANY)]
        upright = [Picture(np.ascontiguousarray(p.pixels.transpose(1, 0, 2))) for p in pictures[::4]]
        return [upright[n // 4] if n % 4 == 0 else picture for n, picture in enumerate(pictures)]

    def written(self, name: str, pictures: Sequence[Picture], preset: str, quality: int = QUALITY) -> list[bytes]:
        """Files of these pictures, by the CPU, once for all processes."""
        files = []
        for number, picture in enumerate(pictures):
            path = self.folder / f"{name}-{number}-{preset}-{quality}.fic"
            if not path.exists():
                unfinished = path.with_suffix(".part")
                unfinished.write_bytes(self.cpu.encode_picture(picture, quality, preset).data)
                unfinished.replace(path)
            files.append(path.read_bytes())
        return files

    @cache  # noqa: B019 (a process has one)
    def picture(self, size: tuple[int, int]) -> Picture:
        return gpu_codec.compose(self.cells, *size)

    @cached_property
    def quality(self) -> int:
        """Of single pictures: what gives the first one the rate that is wanted."""
        path = self.folder / "quality"
        if not path.exists():
            picture = self.picture(self.sizes.images[0])
            path.write_text(str(gpu_codec.quality_near(self.cpu, [picture], self.sizes.bits)), encoding="utf-8")
        return int(path.read_text("utf-8"))

    def file(self, size: tuple[int, int], preset: str) -> bytes:
        return self.written(f"{size[0]}x{size[1]}", [self.picture(size)], preset, self.quality)[0]

    @cache  # noqa: B019
    def batch(self, count: int) -> Batch:
        """So many landscape pictures of the first size, no two alike up to `gpu_codec.WRITTEN`."""
        size = self.sizes.images[0]
        pictures = [gpu_codec.compose(self.cells, *size, n) for n in range(min(count, gpu_codec.WRITTEN))]
        files = {preset: self.written("batch", pictures, preset) for preset in PRESETS}
        return Batch(pictures, QUALITY, files).of(count)


# --- parts ------------------------------------------------------------------------------------------------------------


def card(it: Subject) -> dict[str, Any]:
    """The machine: its name, clocks and software."""
    machine, ask = it.machine, "name,driver_version,clocks.sm,clocks.max.sm,clocks.mem,power.limit,temperature.gpu"
    try:
        command = ["nvidia-smi", f"--query-gpu={ask}", "--format=csv,noheader"]
        told = subprocess.run(command, capture_output=True, text=True, check=True, timeout=10).stdout.strip()
    except (OSError, subprocess.SubprocessError) as error:
        told = f"no nvidia-smi: {error}"
    try:
        import triton
    except ImportError:
        triton = None
    return {
        "card": machine.name,
        "multiprocessors": machine.multiprocessors,
        "nvidia_smi": told,
        "torch": torch.__version__,
        "cuda": torch.version.cuda,
        "triton": getattr(triton, "__version__", None),
        "pictures": it.source,
        "quality": QUALITY,
    }


def decode_graph(it: Subject, size: tuple[int, int], preset: str) -> dict[str, Any]:
    """One file through the graph: by the host's clock, by the GPU's, and the host's share. Pixels are checked."""
    data, out = it.file(size, preset), _out(it, size)
    row = gpu_codec._by_graph(it.machine, it.codec, [data], out, it.sizes)
    gpu_codec._near(out, [it.cpu.decode_picture(data).pixels], "decoded by a graph")
    rate = {"bytes": len(data), "bpp": 8 * len(data) / (size[0] * size[1]), "quality": it.quality}
    return {**rate, **row, "sm_mhz": it.machine.nvml.sm_mhz()}


def decode_stages(it: Subject, size: tuple[int, int], preset: str) -> dict[str, Any]:
    """One file launch by launch: what each stage takes."""
    return gpu_codec._by_stages(it.machine, it.codec, [it.file(size, preset)], _out(it, size), it.sizes)


def equal_latents(it: Subject, size: tuple[int, int]) -> dict[str, Any]:
    """Latents of the CPU's files are equal bit for bit, and the GPU's files' on the CPU. Raises MismatchError."""
    for preset in PRESETS:
        data = it.file(size, preset)
        with it.machine.kernels():
            found = it.codec.latents(data)
            written = it.codec.encode_picture(it.picture(size), it.quality, preset).data
            read = it.codec.latents(written)
        gpu_codec._same(found, it.cpu.latents(data), f"latents of the CPU's file, {preset}")
        gpu_codec._same(read, it.cpu.latents(written), f"latents of the GPU's file, {preset}")
    return {"equal": True}


def decode_many(it: Subject, preset: str, qualities: Sequence[int] = (QUALITY,)) -> dict[str, Any]:
    """Different files one after the other, each waited for, in rounds: from bytes to pixels on the device.

    captures: graphs that were captured in each round, and the milliseconds that this took. shapes: that the pictures
    have.
    """
    pictures = it.many
    files = [
        data
        for number, picture in enumerate(pictures)
        for data in it.written(f"many{number}", [picture], preset, qualities[number % len(qualities)])
    ]
    outs = {p.pixels.shape: _empty(it, p.pixels.shape) for p in pictures}
    rounds: list[list[float]] = []
    captures: list[list[float]] = []
    engine = gpu_codec._engine(it.codec)
    with it.machine.kernels(), _fresh(engine), _timed_captures(engine) as captured:
        for _ in range(ROUNDS):
            times, before = [], len(captured)
            for picture, data in zip(pictures, files, strict=True):
                out = outs[picture.pixels.shape]
                it.machine.synchronize()
                start = time.perf_counter()
                it.codec.decode_tensor([data], out=out).check()
                times.append(time.perf_counter() - start)
            rounds.append(times)
            captures.append(captured[before:])
        shapes = len(engine._remembered)
        home, start = [], time.perf_counter()
        for data in files:
            start = time.perf_counter()
            it.codec.decode_picture(data)
            home.append(time.perf_counter() - start)
        it.machine.synchronize()
    out = outs[pictures[-1].pixels.shape]
    gpu_codec._near(out, [it.cpu.decode_picture(files[-1]).pixels], "the last of many")
    later = [seconds for times in rounds[2:] for seconds in times]
    return {
        "files": len(files),
        "qualities": list(qualities),
        "shapes": shapes,
        "captures": [{"count": len(times), "ms": 1e3 * sum(times)} for times in captures],
        "first_round": _quantiles(rounds[0]),
        "second_round": _quantiles(rounds[1]),
        "later_rounds": _quantiles(later),
        "brought_home": _quantiles(home),
        "slowest_ms": 1e3 * max(later),
    }


def encode_one(it: Subject, size: tuple[int, int], preset: str) -> dict[str, Any]:
    """One picture from pixels on the host to bytes, by the host's clock."""
    encode = partial(it.codec.encode_pictures, [it.picture(size)], it.quality, preset)
    with it.machine.kernels():
        for _ in range(it.sizes.warm_ups):
            [written] = encode()
        _, totals = gpu_codec.wall_times(it.machine, encode, lambda _: None, it.sizes.repeats)
    return {"bytes": len(written.data), "wall": gpu_codec.spread(totals)}


def encode_many(it: Subject, preset: str) -> dict[str, Any]:
    """Different pictures one after the other, from pixels on the host to bytes."""
    rounds: list[list[float]] = []
    with it.machine.kernels():
        for _ in range(3):
            times = []
            for picture in it.many:
                start = time.perf_counter()
                it.codec.encode_picture(picture, QUALITY, preset)
                times.append(time.perf_counter() - start)
            rounds.append(times)
    later = [seconds for times in rounds[1:] for seconds in times]
    return {"first_round": _quantiles(rounds[0]), "later_rounds": _quantiles(later)}


def decode_cpu(it: Subject, size: tuple[int, int]) -> dict[str, Any]:
    """The same on this machine's CPU, all its cores."""
    data = it.file(size, "size")
    times = []
    for _ in gpu_codec.rounds(5):
        start = time.perf_counter()
        it.cpu.decode_picture(data)
        times.append(time.perf_counter() - start)
    return {"threads": torch.get_num_threads(), "decode": _quantiles(times)}


def _host_coder(it: Subject, batch: Batch) -> gpu_codec.HostCoder:
    host = gpu_codec.HostCoder(it.machine, it.codec, batch.files["latency"])
    host.decode()
    return host


def beside_host_coder(it: Subject, count: int) -> dict[str, Any]:
    batch = it.batch(count)
    return gpu_codec.beside_host_coder(it.machine, it.codec, it.sizes, batch, _host_coder(it, batch))


def beside_unfused_network(it: Subject, count: int) -> dict[str, Any]:
    host = _host_coder(it, it.batch(count))
    return gpu_codec.beside_unfused_network(it.machine, it.codec, it.sizes, host)


def beside_unfused_synthesis(it: Subject, count: int) -> dict[str, Any]:
    host = _host_coder(it, it.batch(count))
    return gpu_codec.beside_unfused_synthesis(it.machine, it.codec, it.sizes, host)


def launches(it: Subject, count: int) -> dict[str, Any]:
    copy = it.machine.copy_bandwidth()
    row = gpu_codec.launches(it.machine, it.codec, it.sizes, it.batch(count), copy)
    return {"copy_gb_s": copy / 1e9, **row}


def _out(it: Subject, size: tuple[int, int]) -> Tensor:
    return _empty(it, (size[1], size[0], 3))


def _empty(it: Subject, shape: Sequence[int]) -> Tensor:
    return torch.zeros(1, *shape, dtype=torch.uint8, device=it.machine.device).permute(0, 3, 1, 2)


@contextmanager
def _fresh(engine: Any) -> Iterator[None]:
    """Within it, no shape of a batch is known."""
    with patch.object(engine, "_remembered", type(engine._remembered)()):
        yield


@contextmanager
def _timed_captures(engine: Any) -> Iterator[list[float]]:
    """Seconds that each capture within it takes."""
    times: list[float] = []
    capture = engine.capture

    def timed(launch: Callable[[], None]) -> Callable[[], None]:
        start = time.perf_counter()
        result = capture(launch)
        times.append(time.perf_counter() - start)
        return result

    with patch.object(engine, "capture", timed):
        yield times


def _quantiles(seconds: Sequence[float]) -> dict[str, float]:
    p50, p95 = np.percentile(seconds, (50, 95))
    return {"p50_ms": 1e3 * float(p50), "p95_ms": 1e3 * float(p95), "runs": len(seconds)}


@dataclass(frozen=True)
class Part:
    """A figure to be had. kind: parts of one kind take about as long; first: seconds that the first of them may."""

    name: str
    body: Callable[[Subject], dict[str, Any]]
    kind: str
    first: float = 3.0


def parts(sizes: Sizes) -> list[Part]:
    """All of them, what matters most first: time may end."""
    named = [(f"{width}x{height}", (width, height)) for width, height in sizes.images]
    found = [Part("card", card, "card")]

    def add(name: str, body: Callable[..., dict[str, Any]], *arguments: Any, first: float = 3.0) -> None:
        found.append(Part(name, lambda it: body(it, *arguments), name.rpartition(", ")[0] or name, first))

    def both(name: str, body: Callable[..., dict[str, Any]], *arguments: Any, first: float = 3.0) -> None:
        for preset in reversed(PRESETS):
            add(f"{name}, {preset}", body, *arguments, preset, first=first)

    (first_name, first_size), *larger = named
    both(f"decode {first_name}, graph", decode_graph, first_size)
    both(f"decode {MANY} files", decode_many, first=8.0)
    both(f"decode {first_name}, stages", decode_stages, first_size)
    add(f"latents {first_name}", equal_latents, first_size)
    for name, size in larger[:1]:
        both(f"decode {name}, graph", decode_graph, size)
    both(f"encode {first_name}", encode_one, first_size)
    for count in sizes.batches:
        add(f"decode rate, batch {count}", decode_rate, count)
    for name, size in larger[:1]:
        both(f"decode {name}, stages", decode_stages, size)
    add(f"decode {MANY} files of many qualities, latency", decode_many, "latency", (20, 40, 60, 80, 95))
    for name, size in larger[1:]:
        both(f"decode {name}, graph", decode_graph, size, first=10.0)
        both(f"decode {name}, stages", decode_stages, size)
    for name, size in larger:
        both(f"encode {name}", encode_one, size, first=8.0)
    add(f"encode {MANY} files, latency", encode_many, "latency")
    for count in sizes.batches[:1]:
        add(f"encode rate, batch {count}", encode_rate, count)
    for count in sizes.studied:
        add(f"launches, batch {count}", launches, count)
    for count in sizes.studied:
        add(f"beside the host coder, batch {count}", beside_host_coder, count)
        add(f"beside the unfused network, batch {count}", beside_unfused_network, count)
        add(f"beside the unfused synthesis, batch {count}", beside_unfused_synthesis, count)
    add(f"decode {first_name} on the CPU", decode_cpu, first_size)
    for name, size in larger[:1]:
        add(f"latents {name}", equal_latents, size, first=10.0)
    return found


def decode_rate(it: Subject, count: int) -> dict[str, Any]:
    return gpu_codec.decode_rates(it.machine, it.codec, it.cpu, it.sizes, it.batch(count))


def encode_rate(it: Subject, count: int) -> dict[str, Any]:
    return gpu_codec.encode_rates(it.machine, it.codec, it.sizes, it.batch(count))


# --- the process that measures ----------------------------------------------------------------------------------------


def poisoned(machine: Machine, error: BaseException) -> bool:
    """Whether an error stays with this process's use of the GPU."""
    if isinstance(error, UnavailableError | torch.AcceleratorError):
        return True
    try:
        machine.synchronize()
    except Exception:
        return True
    return False


def begin(found: Found, folder: Path, end: float) -> int:
    """`measure` until `end` by the clock; CANNOT_BEGIN where there is nothing to measure on."""
    try:
        it = Subject(folder)
    except Exception:
        found.failures["the process that measures"] = traceback.format_exc()
        found.save()
        traceback.print_exc()
        return CANNOT_BEGIN
    return measure(found, it, end - time.time())


def measure(found: Found, it: Subject, seconds: float) -> int:
    """Runs what has not run, and returns FINISHED, or POISONED when this process cannot go on."""
    budget = Budget(seconds)
    found.skipped = []
    for item in parts(it.sizes):
        if found.settled(item.name):
            continue
        if not budget.allows(item.kind, item.name, item.first):
            found.skipped.append(item.name)
            continue
        found.running = item.name
        found.save()
        start = time.perf_counter()
        try:
            row = item.body(it)
        except Exception as error:
            found.failures[item.name] = traceback.format_exc()
            _say(f"{item.name} FAILED: {error}\n{found.failures[item.name]}")
            if poisoned(it.machine, error):
                found.running = None
                found.save()
                return POISONED
        else:
            found.parts[item.name] = {**row, "part_seconds": time.perf_counter() - start}
            _say(f"{item.name}: {_brief(row)}")
        found.running = None
        found.save()
    found.save()
    return FINISHED


def _brief(row: Any, deep: int = 0) -> str:
    """A row's figures on a line."""
    if not isinstance(row, dict):
        return f"{row:.4g}" if isinstance(row, float) else f"{len(row)} items" if isinstance(row, list) else str(row)
    inner = ", ".join(f"{name} {_brief(value, deep + 1)}" for name, value in row.items())
    return f"({inner})" if deep else inner


def _say(text: str) -> None:
    print(text, flush=True)


# --- the process that watches it --------------------------------------------------------------------------------------


def watch(path: Path, seconds: float, command: Sequence[str]) -> int:
    """Has a process measure, and a fresh one what is left when it ends badly or hangs; until time ends.

    command: gets the path of the figures, a folder, and when to end by the clock. Returns 1 if a part failed.
    """
    end = time.time() + seconds
    Found(path).save()
    with tempfile.TemporaryDirectory() as folder:
        for _ in range(MOST_PROCESSES):
            before = Found.load(path)
            status = _run(path, [*command, str(path), folder, str(end)], end)
            found = Found.load(path)
            if status in (FINISHED, CANNOT_BEGIN):
                break
            if found.running is not None:
                what = "it took too long" if status is None else f"its process ended with status {status}"
                found.failures[found.running], found.running = what, None
                found.save()
            elif len(found.parts) + len(found.failures) == len(before.parts) + len(before.failures):
                found.failures["the process that measures"] = f"it ended with status {status} before its first part"
                found.save()
                break
            if time.time() > end - 8:
                break
    for name in (found := Found.load(path)).failures:
        _say(f"failed: {name}")
    if found.skipped:
        _say(f"left out for want of time: {'; '.join(found.skipped)}")
    return 1 if found.failures or not found.parts else 0


def _run(path: Path, command: Sequence[str], end: float) -> int | None:
    """The command's exit status; None if a part of it hung, or time was over, and it was stopped."""
    child = subprocess.Popen(command, cwd=_common.ROOT)
    seen, since = None, time.time()
    while True:
        try:
            return child.wait(timeout=0.5)
        except subprocess.TimeoutExpired:
            pass
        now = time.time()
        running = Found.load(path).running
        if running != seen:
            seen, since = running, now
        if now - since > MOST_PART_SECONDS or now > end + 5:
            child.kill()
            child.wait()
            return None


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.gpu_latency", description=__doc__.partition("\n")[0])
    parser.add_argument("--seconds", type=float, default=SECONDS)
    parser.add_argument("--out", type=Path, default=_common.RESULTS / "gpu_latency.json")
    parser.add_argument("--measure", nargs=3, metavar=("FILE", "FOLDER", "END"), help=argparse.SUPPRESS)
    options = parser.parse_args(argv)
    if options.measure:
        path, folder, end = options.measure
        return begin(Found.load(Path(path)), Path(folder), float(end))
    options.out.parent.mkdir(parents=True, exist_ok=True)
    return watch(options.out.resolve(), options.seconds, [sys.executable, "-m", "bench.gpu_latency", "--measure"])


if __name__ == "__main__":
    status = main()
    sys.stdout.flush()
    # A process whose GPU has failed may hang or crash while it takes down what it had there.
    os._exit(status)
