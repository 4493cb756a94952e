"""Compiles all that the codec launches on this machine's GPU, side by side: `python -m bench.gpu.compile`.

What is compiled lands in the caches that every later process reads: the coder's machine code beside its sources
(kernels/build.py) and in the user's cache (kernels/nvrtc.py), Triton's kernels in $TRITON_CACHE_DIR or ~/.triton/cache.
Triton's are those of `builds()`, compiled in the way in which a launch is (not ahead of time, whose cache entries would
be others) and loaded. At last a fresh process encodes and decodes with both presets and counts what had to be compiled
even so: that should be nothing.

A line for each task says how long it took; one that fails prints its traceback, and the exit status is 1. Without a
GPU, --target 90 compiles Triton's kernels for that generation, which tests whether they compile as they are launched.
"""

from __future__ import annotations

import importlib
import multiprocessing
import os
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any
from unittest.mock import patch

import torch

from ..common import ROOT, argument_parser

if TYPE_CHECKING:
    from fastcodec.kernels.triton.common import Build

SECONDS = 240.0  # after that, tasks that have not ended are stopped and count as failed
MODULES = ("parameters", "residual", "hyper_synthesis", "pixels", "pointwise", "upsample")  # the slowest first
_TYPES = {"i8": torch.int8, "u8": torch.uint8, "i16": torch.int16, "i32": torch.int32, "fp16": torch.float16} | {
    "fp32": torch.float32
}

Task = tuple[str, Callable[[], str]]


@dataclass(frozen=True)
class Outcome:
    """What is compiled by one process, and how long that took; `failed` is a traceback, or empty."""

    name: str
    seconds: float
    said: str = ""
    failed: str = ""
    compiled: int = 0

    def show(self) -> None:
        print(f"{self.seconds:6.1f} s  {self.name}: {'FAILED' if self.failed else self.said}", flush=True)
        if self.failed:
            print(self.failed.rstrip(), flush=True)


# --- tasks, each of which runs in a process of its own ----------------------------------------------------------------


def outcome(name: str, body: Callable[[], str]) -> Outcome:
    """Runs a task. What it raises is kept as text: not every exception can travel between processes."""
    start = time.perf_counter()
    compiled: list[int] = []
    said = failed = ""
    try:
        with _counting(compiled):
            said = body()
    except BaseException:
        failed = traceback.format_exc()
    return Outcome(name, time.perf_counter() - start, said, failed, len(compiled))


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


def builds(module: str) -> list[Build]:
    """What a module of kernels/triton launches."""
    return importlib.import_module(f"fastcodec.kernels.triton.{module}").builds()


def compile_build(module: str, number: int, target: int | None) -> str:
    """Compiles one of a module's builds as a launch would, and loads it. target: for this generation, without a GPU."""
    import triton

    build = builds(module)[number]
    if target is not None:
        _pretend(target)
    options = {**build.options, "num_warps": build.warps}
    given = {**build.constants, **{name: _stands(kind) for name, kind in build.signature.items()}}
    made = build.kernel.warmup(*(given[name] for name in build.kernel.arg_names), grid=(1,), **options)
    if target is None:
        torch.cuda.current_stream()  # PyTorch makes the context
        assert made.run  # it is loaded
        return f"{made.n_regs} registers, {made.n_spills} spilt, {made.metadata.shared} bytes of shared memory"
    return f"{made.metadata.shared} bytes of shared memory, Triton {triton.__version__}"


def _stands(kind: str) -> torch.dtype | float | int:
    """A type for a tensor, aligned as PyTorch's allocations are; a number, for which kernels are not specialised."""
    return _TYPES[kind[1:]] if kind.startswith("*") else 0.5 if kind.startswith("fp") else 3


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
    run = subprocess.run([sys.executable, str(ROOT / "kernels" / "build.py")], capture_output=True, text=True)
    if run.returncode:
        raise RuntimeError(f"kernels/build.py ended with {run.returncode}:\n{run.stdout}{run.stderr}")
    images = [f"{file.name} of {file.stat().st_size} bytes" for file in (ROOT / "kernels").rglob("*.fatbin")]
    return "; ".join([*(images or ["no machine code: no nvcc was found"]), *run.stderr.split("\n")]).strip("; ")


def use(device: str = "cuda") -> str:
    """Encodes and decodes on the GPU in a fresh process: what every later process does first."""
    import numpy as np

    from fastcodec.codec import Codec

    from ._subject import PRESETS, compose, synthetic

    codec, times = Codec.load("swift", device), []
    for width, height in ((48, 64), (768, 512), (1920, 1080)):
        image = compose([synthetic(0)], width, height).pixels
        for preset in PRESETS:
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


def caches() -> list[Path]:
    """The folders where compiled kernels are kept."""
    from triton import knobs

    return [Path(knobs.cache.dir), Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "fastcodec"]


def unwritable(folder: Path) -> str:
    """What is wrong with a cache's folder; empty if nothing is."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe = folder / f".probe-{os.getpid()}"
        probe.touch()
        probe.unlink()
    except OSError as error:
        return f" NOT WRITABLE: {error}"
    return ""


def run_tasks(tasks: Sequence[Task], processes: int, seconds: float) -> list[Outcome]:
    """Runs tasks in processes of their own, and shows each when it is done.

    A process that dies takes its pool with it; what had not ended then runs again, each task in a pool of its own, so
    that one culprit is found and the rest gets done.
    """
    end = time.monotonic() + seconds
    done = _in_pool(tasks, processes, end)
    ended = {item.name for item in done}
    for name, body in tasks:
        if name not in ended:
            again = _in_pool([(name, body)], 1, end)
            if not again:
                again = [Outcome(name, 0.0, failed="its process died, or there was no time left for it")]
                again[0].show()
            done += again
    return done


def _in_pool(tasks: Sequence[Task], processes: int, end: float) -> list[Outcome]:
    done: list[Outcome] = []
    if time.monotonic() >= end or not tasks:
        return done
    others = multiprocessing.active_children()
    pool = ProcessPoolExecutor(min(processes, len(tasks)), multiprocessing.get_context("spawn"))
    try:
        waiting: set[Future[Outcome]] = {pool.submit(outcome, name, body) for name, body in tasks}
        while waiting and (left := end - time.monotonic()) > 0:
            ready, waiting = wait(waiting, timeout=min(left, 1.0))
            for future in ready:
                try:
                    done.append(future.result())
                except BrokenProcessPool:
                    return done
                done[-1].show()
        return done
    finally:
        pool.shutdown(wait=False, cancel_futures=True)
        if time.monotonic() >= end:
            for worker in set(multiprocessing.active_children()).difference(others):
                worker.terminate()


def main(argv: Sequence[str] | None = None) -> int:
    """Returns 0, or 1 if a task failed."""
    parser = argument_parser("bench.gpu.compile", __doc__)
    parser.add_argument("--target", type=int, help="only Triton's kernels, for this generation, such as 90: no GPU")
    parser.add_argument("--only", default="", help="only tasks whose name contains this")
    parser.add_argument("--processes", type=int, default=os.cpu_count() or 2)
    parser.add_argument("--seconds", type=float, default=SECONDS)
    options = parser.parse_args(argv)
    start = time.perf_counter()
    failed = False
    for folder in caches():
        wrong = unwritable(folder)
        failed |= bool(wrong)
        print(f"cache: {folder}{wrong}", flush=True)
    if options.target is None and not torch.cuda.is_available():
        print("there is no GPU that PyTorch finds; --target 90 compiles without one")
        return 1
    tasks: list[Task] = [("coder", compile_coder)] if options.target is None else []
    tasks += [
        (f"{module}: {build.name}", partial(compile_build, module, number, options.target))
        for module in MODULES
        for number, build in enumerate(builds(module))
    ]
    done = run_tasks([task for task in tasks if options.only in task[0]], options.processes, options.seconds)
    if options.target is None and options.only in "first use":
        done += run_tasks([("first use", use)], 1, max(60.0, options.seconds - (time.perf_counter() - start)))
        print(f"first use compiled {done[-1].compiled} of Triton's kernels anew", flush=True)
    bad = [item.name for item in done if item.failed]
    seconds = time.perf_counter() - start
    print(f"{seconds:6.1f} s  in all, {len(done) - len(bad)} tasks done, {len(bad)} failed", flush=True)
    return 1 if bad or failed else 0


if __name__ == "__main__":
    # Tasks must find this module under its own name in the processes that run them.
    from . import compile as this

    sys.exit(this.main())
