"""Compiles all that the codec launches on this machine's GPU, side by side: `python -m bench.gpu_compile`.

What is compiled lands in the caches that every later process reads: the coder's machine code beside its sources
(kernels/build.py) and in the user's cache (kernels/nvrtc.py), Triton's kernels in $TRITON_CACHE_DIR or ~/.triton/cache.
Triton's are those of the released model: its operations run once with their kernels replaced by recorders, and each
launch that was recorded is compiled in the way in which a launch is (not ahead of time, whose cache entries would be
others) and loaded. At last a fresh process encodes and decodes with both presets and counts what had to be compiled
even so: that should be nothing.

A line for each part says how long it took; a part that fails prints its traceback, and the exit status is 1. Without a
GPU, --target 90 compiles Triton's kernels for that generation, which tests whether they compile as they are launched.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any
from unittest.mock import patch

ROOT = Path(__file__).resolve().parents[1]
SECONDS = 240.0  # after that, parts that have not ended are stopped and count as failed
#: Kernels that take longest to compile, which must begin first.
_LONGEST = ("_parameters", "_residual_kernel", "_convolve_and_double", "_convolve_to_psi", "_from_pixels_kernel")


@dataclass(frozen=True)
class Launch:
    """A launch of a Triton kernel, but for its grid and its data: a tensor is given by the name of its type."""

    module: str
    kernel: str
    arguments: tuple[Any, ...]
    options: tuple[tuple[str, Any], ...] = ()

    @property
    def name(self) -> str:
        sizes = {"BLOCK", "BYTES", "C", "SCALE", "K", "BIAS_STRIDE"}
        constants = ", ".join(f"{name} {value}" for name, value in self.options if name in sizes)
        absent = [i for i, argument in enumerate(self.arguments) if argument is None]
        return f"{self.module}.{self.kernel} ({constants}{f'; without {len(absent)}' if absent else ''})"


@dataclass(frozen=True)
class _Type:
    """Stands for a tensor of this type, aligned as PyTorch's allocations are."""

    dtype: str


@dataclass(frozen=True)
class Part:
    """What is compiled by one process, and how long that took; `failed` is a traceback, or empty."""

    name: str
    seconds: float
    said: str = ""
    failed: str = ""
    compiled: int = 0


# --- what is launched -------------------------------------------------------------------------------------------------


@dataclass
class _Recorder:
    """Stands in a kernel's place: launches are written down, and nothing is run."""

    module: str
    kernel: str
    found: dict[Launch, None] = field(default_factory=dict)

    def __getitem__(self, grid: Any) -> Callable[..., None]:
        return self._record

    def _record(self, *arguments: Any, **options: Any) -> None:
        import torch

        def stands(value: Any) -> Any:
            return _Type(str(value.dtype).removeprefix("torch.")) if isinstance(value, torch.Tensor) else value

        launch = Launch(self.module, self.kernel, tuple(map(stands, arguments)), tuple(options.items()))
        # Sizes are no part of what is compiled, but for whether they fit into 32 bits.
        self.found.setdefault(launch)


@contextmanager
def _recording(modules: Sequence[ModuleType]) -> Iterator[dict[Launch, None]]:
    """Within it, operations of these modules run on the CPU's tensors as they would on a GPU's, up to the launches."""
    found: dict[Launch, None] = {}
    with ExitStack() as stack:
        for module in modules:
            kernels = {id(build.kernel) for build in module.builds()}
            for name, value in list(vars(module).items()):
                if id(value) in kernels:
                    recorder = _Recorder(module.__name__, name, found)
                    stack.enter_context(patch.object(module, name, recorder))
            if hasattr(module, "on_gpu"):
                stack.enter_context(patch.object(module, "on_gpu", lambda tensor: True))
        yield found


def recorded() -> list[Launch]:
    """Every launch of decoding and encoding with the released model, for few latents and for many."""
    import torch

    from fastcodec.constants import MIN_QUALITY
    from fastcodec.engines import gpu_transforms as transforms
    from fastcodec.entropy.code_length import code_lengths
    from fastcodec.kernels.triton import hyper_synthesis, parameters, pixels, pointwise, residual, upsample
    from fastcodec.kernels.triton.tiles import Layout
    from fastcodec.models.swift import release as released

    model = released.load("swift")
    config, entropy = model.config, model.entropy
    hyper_network = hyper_synthesis.HyperNetwork.pack(
        [entropy.layers[f"h_s.{name}"] for name in ("head", "up1", "middle", "up2", "tail")], "cpu"
    )
    networks = [parameters.ParameterNetwork.pack(*entropy.group(k), "cpu") for k in range(len(entropy.groups))]
    ours = transforms.Transforms(model, "cpu", torch.float16)
    modules = (hyper_synthesis, parameters, pixels, pointwise, residual, upsample)

    def convolved(x: torch.Tensor, weight: torch.Tensor, stride: int = 1) -> torch.Tensor:
        return x.new_empty(x.shape[0], *(-(-side // stride) for side in x.shape[1:3]), weight.shape[0])

    with (
        torch.inference_mode(),
        patch.object(transforms, "_convolution", convolved),  # PyTorch's own, which has nothing to compile
        _recording(modules) as found,
    ):
        quality = torch.zeros(1, dtype=torch.int32)
        for colours in (3, 1):
            ours.analysis(torch.zeros(1, 32, 32, colours, dtype=torch.uint8), quality)
        latents = torch.zeros(1, 2, 2, config.latents, dtype=torch.float16)
        ours.synthesis(latents, quality, torch.empty(1, 32, 32, 3, dtype=torch.uint8))
        # One small tile, a large one, and so many that each stage has many positions.
        for shapes in (((8, 8),), ((64, 64),), ((64, 64),) * 3, ((64, 64),) * 9):
            layout = Layout(shapes)
            table = layout.table([60 - MIN_QUALITY] * len(shapes))
            z = torch.empty(sum(layout.hyper_positions), config.hyper_latents, dtype=torch.int16)
            psi = torch.empty(sum(layout.positions), config.hyper_features, dtype=torch.int8)
            hyper_synthesis.hyper_synthesis(z, table, layout.longest, hyper_network, psi)
            halves = [
                torch.empty(sum(counts), config.latents, dtype=torch.int32)
                for counts in (layout.anchors, layout.non_anchors)
            ]
            for own, network in zip(entropy.groups, networks, strict=True):
                for second, values in enumerate(halves):
                    shape, weight = (len(values), network.latents), torch.empty(1, network.latents)
                    symbols, means = (torch.empty(shape, dtype=torch.int16) for _ in range(2))
                    indexes, error = torch.empty(shape, dtype=torch.uint8), torch.zeros(1, dtype=torch.int32)
                    anchors = halves[0][:, own] if second else None
                    before = values[:, : own.start] if own.start else None
                    where = (before, table, layout.longest, network)
                    if second:
                        parameters.context_parameters(psi, anchors, *where, means, indexes)
                    else:
                        parameters.anchor_parameters(psi, *where, means, indexes)
                    parameters.encode_parameters(
                        *(psi, anchors, *where, torch.empty(shape), weight),
                        *(code_lengths().float(), symbols, indexes, values[:, own], error),
                    )
    return _distinct(found)


def _distinct(launches: Sequence[Launch]) -> list[Launch]:
    """Those that are compiled apart: sizes are arguments that kernels are not specialised for."""
    kinds: dict[tuple, Launch] = {}
    for launch in launches:
        arguments = tuple(type(value) if isinstance(value, int | float) else value for value in launch.arguments)
        kinds.setdefault((launch.module, launch.kernel, arguments, launch.options), launch)
    return sorted(kinds.values(), key=lambda launch: _LONGEST.index(launch.kernel) if launch.kernel in _LONGEST else 9)


# --- parts, each of which runs in a process of its own ----------------------------------------------------------------


def part(name: str, body: Callable[[], str]) -> Part:
    """Runs a part. What it raises is kept as text: not every exception can travel between processes."""
    start = time.perf_counter()
    compiled: list[int] = []
    try:
        with _counting(compiled):
            said = body()
    except BaseException:
        return Part(name, time.perf_counter() - start, failed=traceback.format_exc(), compiled=len(compiled))
    return Part(name, time.perf_counter() - start, said, compiled=len(compiled))


@contextmanager
def _counting(compiled: list[int]) -> Iterator[None]:
    """Within it, kernels that Triton does not find in its cache are counted."""
    try:
        import triton
    except ImportError:
        yield
        return

    def listener(*arguments: Any, cache_hit: bool = False, **more: Any) -> None:
        if not cache_hit:
            compiled.append(1)

    with patch.object(triton.knobs.compilation, "listener", listener, create=True):
        yield


def compile_launch(launch: Launch, target: int | None) -> str:
    """Compiles a launch's kernel as a launch would, and loads it. target: for this generation, without a GPU."""
    import importlib

    import torch
    import triton

    kernel = getattr(importlib.import_module(launch.module), launch.kernel)
    if target is not None:
        _pretend(target)
    arguments = [getattr(torch, a.dtype) if isinstance(a, _Type) else a for a in launch.arguments]
    made = kernel.warmup(*arguments, grid=(1,), **dict(launch.options))
    if target is None:
        torch.cuda.current_stream()  # PyTorch makes the context
        made._init_handles()
        return f"{made.n_regs} registers, {made.n_spills} spilt, {made.metadata.shared} bytes of shared memory"
    return f"{made.metadata.shared} bytes of shared memory, Triton {triton.__version__}"


def _pretend(capability: int) -> None:
    """Triton compiles for this generation from here on; it can launch nothing."""
    from triton.backends.compiler import GPUTarget
    from triton.runtime import driver

    class Driver:
        def get_current_target(self) -> GPUTarget:
            return GPUTarget("cuda", capability, 32)

        def get_current_device(self) -> int:
            return 0

        def get_current_stream(self, device: int) -> int:
            return 0

    driver.set_active(Driver())


def compile_coder() -> str:
    """The coder's libraries and, with nvcc, its machine code."""
    run = subprocess.run(
        [sys.executable, str(ROOT / "kernels" / "build.py")], capture_output=True, text=True, check=False
    )
    if run.returncode:
        raise RuntimeError(f"kernels/build.py ended with {run.returncode}:\n{run.stdout}{run.stderr}")
    image = ROOT / "kernels" / "rans" / "_rans_cuda.fatbin"
    made = f"{image.name} of {image.stat().st_size} bytes" if image.exists() else "no machine code: no nvcc was found"
    return f"{made}{run.stderr.strip() and '; it said: ' + run.stderr.strip()}"


def compile_coder_by_nvrtc(architecture: str) -> str:
    """The coder's machine code as a machine without nvcc makes it."""
    from fastcodec.kernels import nvrtc
    from fastcodec.kernels.rans import _cuda

    image = nvrtc.compile_image(_cuda.SOURCE, nvrtc.quoted_headers(_cuda.SOURCE), architecture)
    return f"{len(image)} bytes for {architecture}"


def use(device: str = "cuda") -> str:
    """Encodes and decodes on the GPU in a fresh process: what every later process does first."""
    import numpy as np
    import torch

    from fastcodec.codec import Codec

    from . import gpu_codec

    codec, times = Codec.load("swift", device), []
    cells = [gpu_codec._synthetic(0)]
    for width, height in ((48, 64), (768, 512), (1920, 1080)):
        image = gpu_codec.compose(cells, width, height).pixels
        for preset in ("size", "latency"):
            start = time.perf_counter()
            data = codec.encode(image, quality=60, preset=preset)
            encoded = time.perf_counter()
            for _ in range(3):  # by launches, captured, replayed
                codec.decode_tensor([data]).check()
            seconds = time.perf_counter() - encoded
            times.append(f"{width}x{height} {preset} {encoded - start:.2f} + {seconds:.2f} s")
    codec.encode(np.ascontiguousarray(image[..., 1]), quality=60)  # gray ones have a kernel of their own
    if device == "cuda":
        torch.cuda.synchronize()
    return f"encode + 3 decodes: {', '.join(times)}"


# --- the whole --------------------------------------------------------------------------------------------------------


def _show(done: Part) -> bool:
    """Prints a part; whether it failed."""
    state = "FAILED" if done.failed else done.said
    print(f"{done.seconds:6.1f} s  {done.name}: {state}", flush=True)
    if done.failed:
        print(done.failed.rstrip(), flush=True)
    return bool(done.failed)


def _caches() -> list[Path]:
    from triton import knobs

    return [Path(knobs.cache.dir), Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "fastcodec"]


def _writable(folder: Path) -> str:
    """What is wrong with a cache's folder; empty if nothing is."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe = folder / f".probe-{os.getpid()}"
        probe.touch()
        probe.unlink()
    except OSError as error:
        return f" NOT WRITABLE: {error}"
    return ""


def run_parts(parts: Sequence[tuple[str, Callable[[], str]]], processes: int, seconds: float) -> list[Part]:
    """Runs parts in processes of their own, and shows each when it is done.

    A process that dies takes its pool with it; what had not ended then runs again, each part in a pool of its own, so
    that one culprit is found and the rest gets done.
    """
    end = time.monotonic() + seconds
    done = _in_pool(parts, processes, end)
    ended = {item.name for item in done}
    for name, body in parts:
        if name not in ended:
            again = _in_pool([(name, body)], 1, end)
            done += again or [Part(name, 0.0, failed="its process died, or there was no time left for it")]
            if not again:
                _show(done[-1])
    return done


def _in_pool(parts: Sequence[tuple[str, Callable[[], str]]], processes: int, end: float) -> list[Part]:
    done: list[Part] = []
    if time.monotonic() >= end or not parts:
        return done
    pool = ProcessPoolExecutor(min(processes, len(parts)), multiprocessing.get_context("spawn"))
    workers: list[Any] = []
    try:
        waiting: set[Future] = {pool.submit(part, name, body) for name, body in parts}
        workers = list((pool._processes or {}).values())
        while waiting and (left := end - time.monotonic()) > 0:
            ready, waiting = wait(waiting, timeout=min(left, 1.0))
            for future in ready:
                try:
                    done.append(future.result())
                except BrokenProcessPool:
                    return done
                _show(done[-1])
        return done
    finally:
        pool.shutdown(wait=False, cancel_futures=True)
        for worker in workers:
            if time.monotonic() >= end and worker.is_alive():
                worker.terminate()


def main(argv: Sequence[str] | None = None) -> int:
    """Returns 0, or 1 if a part failed."""
    parser = argparse.ArgumentParser(prog="python -m bench.gpu_compile", description=__doc__.partition("\n")[0])
    parser.add_argument("--target", type=int, help="only Triton's kernels, for this generation, such as 90: no GPU")
    parser.add_argument("--only", default="", help="only parts whose name contains this")
    parser.add_argument("--processes", type=int, default=os.cpu_count() or 2)
    parser.add_argument("--seconds", type=float, default=SECONDS)
    options = parser.parse_args(argv)
    start = time.perf_counter()
    failed = False
    for folder in _caches():
        wrong = _writable(folder)
        failed |= bool(wrong)
        print(f"cache: {folder}{wrong}", flush=True)
    parts: list[tuple[str, Callable[[], str]]] = []
    if options.target is None:
        import torch

        if not torch.cuda.is_available():
            print("there is no GPU that PyTorch finds; --target 90 compiles without one")
            return 1
        major, minor = torch.cuda.get_device_capability()
        parts.append(("coder, nvcc", compile_coder))
        parts.append(("coder, NVRTC", partial(compile_coder_by_nvrtc, f"sm_{major}{minor}")))
    launches = recorded()
    print(f"{len(launches)} kernels of Triton's were recorded in {time.perf_counter() - start:.1f} s", flush=True)
    parts += [(launch.name, partial(compile_launch, launch, options.target)) for launch in launches]
    done = run_parts([item for item in parts if options.only in item[0]], options.processes, options.seconds)
    if options.target is None and options.only in "first use":
        done += run_parts([("first use", use)], 1, max(60.0, options.seconds - (time.perf_counter() - start)))
        if done[-1].compiled:
            print(
                f"first use compiled {done[-1].compiled} kernels of Triton's anew: they were not recorded", flush=True
            )
    bad = [item.name for item in done if item.failed]
    print(
        f"{time.perf_counter() - start:6.1f} s  in all, {len(done) - len(bad)} parts done, {len(bad)} failed",
        flush=True,
    )
    return 1 if bad or failed else 0


if __name__ == "__main__":
    # Parts must find this module under its own name in the processes that run them.
    from . import gpu_compile

    sys.exit(gpu_compile.main())
