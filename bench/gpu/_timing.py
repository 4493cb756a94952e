"""The GPU as the benchmarks see it: its clocks, its meters, and how long calls and kernels take.

There are three clocks. _Wall_ is the host's, from a call until the GPU is done. _GPU_ is CUDA events around a call,
after the GPU was kept busy for longer than the host takes to enqueue the call, so that nothing of the host's time is in
it. _Kernels_ are the profiler's: what each ran, without what lies between them.
"""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from typing import Any

import numpy as np
import torch

from fastcodec.rans import cuda_status

from ..common import CannotRunError
from ..stages import profiled

LONGEST_HOLD = 0.1  # seconds that the GPU is kept busy at most
LEAST_RUNS, MOST_SECONDS = 5, 4.0  # of a series that takes longer than expected
BUSY_BYTES = 1 << 28  # that the GPU fills to be busy


class MismatchError(RuntimeError):
    """The GPU's results are not the CPU's."""


class Nvml:
    """What the driver counts, through nvidia-ml-py. Every figure is None where it is not to be had."""

    def __init__(self, uuid: str):
        self._nvml: Any = None
        self._handle: Any = None
        self.missing = ""
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

    def _ask(self, name: str, *arguments: int) -> Any:
        if self._handle is None:
            return None
        try:
            return getattr(self._nvml, name)(self._handle, *arguments)
        except Exception:  # not supported by this GPU, or by this version of the package
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
            raise CannotRunError(f"the coder finds no GPU to run on: {missing}")
        self.device = torch.device("cuda", torch.cuda.current_device())
        properties = torch.cuda.get_device_properties(self.device)
        self.name: str = properties.name
        self.multiprocessors: int = properties.multi_processor_count
        self.capability = properties.major * 10 + properties.minor
        self.nvml = Nvml(f"GPU-{getattr(properties, 'uuid', '')}")
        self._busy = torch.empty(BUSY_BYTES, dtype=torch.uint8, device=self.device)
        self._busy_seconds = float(np.median([self.enclosed(lambda: self._busy.fill_(1)) for _ in range(6)][1:]))

    def most_symbols(self) -> int:
        """Of a batch: about 20 bytes of memory for each are in use at a time."""
        return torch.cuda.mem_get_info(self.device)[0] // 40

    def side_stream(self) -> AbstractContextManager:
        """Within it, a stream of its own is the current one: the default one's handle, 0, means "none" to some."""
        return torch.cuda.stream(torch.cuda.Stream(self.device))

    def synchronize(self) -> None:
        torch.cuda.synchronize(self.device)

    def hold(self, seconds: float) -> None:
        """Keeps the GPU busy for so long while the host prepares what is to be timed."""
        for _ in range(1 + int(min(seconds, LONGEST_HOLD) / self._busy_seconds)):
            self._busy.fill_(1)

    def enclosed(self, call: Callable[[], object]) -> float:
        """Seconds between events before and after what a call enqueues; waits for it."""
        before, after = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        before.record()
        call()
        after.record()
        self.synchronize()
        return before.elapsed_time(after) / 1e3

    def kernels(self, call: Callable[[], object]) -> dict[str, float]:
        """Seconds of the kernels that a call launches, by their names; waits for them."""
        times: dict[str, float] = defaultdict(float)
        for item in profiled(call).work:
            if not item.name.startswith(("Memcpy", "Memset")):
                times[item.name] += item.length / 1e6
        return times

    def copy_bandwidth(self) -> float:
        """Bytes read and written a second by a copy within device memory: a bound that is reached in practice."""
        source = torch.empty(1 << 30, dtype=torch.uint8, device=self.device).fill_(1)
        target = torch.empty_like(source)
        return 2 * source.numel() / gpu_seconds(self, lambda: target.copy_(source), 5)


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
        seconds, before, after = self.seconds, self._before, self._nvml.joules()
        means = {name: float(np.mean(values)) if values else None for name, values in self._samples.items()}
        joules, by = None, None
        if before is not None and after is not None and after > before:
            joules, by = after - before, "energy counter"
        elif (watts := means["watts"]) is not None:
            joules, by = watts * seconds, "power times time"
        return seconds, joules, {"measured_by": by, **means, "nvml": self._nvml.missing or "available"}


def rounds(repeats: int) -> Iterator[int]:
    """So many rounds; fewer, but some, where they take long."""
    start = time.perf_counter()
    for number in range(repeats):
        if number >= LEAST_RUNS and time.perf_counter() - start > MOST_SECONDS:
            return
        yield number


def spread(seconds: Sequence[float]) -> dict[str, float]:
    """Median and 95th percentile, in milliseconds."""
    p50, p95 = np.percentile(seconds, (50, 95))
    return {"median_ms": 1e3 * float(p50), "p95_ms": 1e3 * float(p95), "runs": len(seconds)}


def elapsed(call: Callable[[], object]) -> float:
    """Seconds that a call takes by the host's clock."""
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def wall_times(machine: Machine, call: Callable[[], object], repeats: int) -> list[float]:
    """Seconds of each run of a call until the GPU is done."""

    def whole() -> None:
        call()
        machine.synchronize()

    times = []
    for _ in rounds(repeats):
        machine.synchronize()
        times.append(elapsed(whole))
    return times


def gpu_times(machine: Machine, call: Callable[[], object], host: float, repeats: int) -> list[float]:
    """Seconds that the GPU takes for what `call` enqueues; it must not wait. host: seconds that enqueuing takes."""
    times = []
    for _ in rounds(repeats):
        machine.synchronize()
        machine.hold(2 * host + 1e-4)
        times.append(machine.enclosed(call))
    return times


def gpu_seconds(machine: Machine, call: Callable[[], object], repeats: int) -> float:
    """The median of `gpu_times`, after some runs to warm up."""
    for _ in range(3):
        machine.synchronize()
        host = elapsed(call)
    return float(np.median(gpu_times(machine, call, host, repeats)))
