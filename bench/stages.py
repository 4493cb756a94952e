"""Times by stage, from the ranges that the engines mark for a profiler: own times of the host, or of a GPU's work."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import NamedTuple

import torch
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile, record_function

STAGES = ("analysis", "hyper", "parameters", "rans", "synthesis")
TOTAL = "total"


class Interval(NamedTuple):
    """Something with a name from start to end, in microseconds, in a lane: a thread, or a stream of a GPU."""

    name: str
    start: float
    end: float
    lane: int

    @property
    def length(self) -> float:
        return self.end - self.start


class Profile(NamedTuple):
    """Ranges by this thread's clock and by the GPU's, and the GPU's kernels and copies in the order of their starts."""

    on_host: list[Interval]
    on_gpu: list[Interval]
    work: list[Interval]

    def located(self) -> Iterator[tuple[str, Interval]]:
        """The GPU's work, each with the innermost range of its stream that it lies in, or TOTAL."""
        for item in self.work:
            middle = (item.start + item.end) / 2
            around = [r for r in self.on_gpu if r.lane == item.lane and r.start <= middle <= r.end]
            yield max(around, key=lambda r: r.start).name if around else TOTAL, item


def profiled(function: Callable[[], object], names: Sequence[str] = STAGES) -> Profile:
    """A call of the function, in TOTAL, under PyTorch's profiler; waits for the GPU. names: ranges that are wanted."""
    on_gpu = torch.cuda.is_available()
    with profile(activities=[ProfilerActivity.CPU, *[ProfilerActivity.CUDA] * on_gpu]) as seen:
        with record_function(TOTAL):
            function()
        if on_gpu:
            torch.cuda.synchronize()
    found = Profile([], [], [])
    for event in seen.events() or ():
        begin, end = event.time_range.start, event.time_range.end
        if event.device_type == DeviceType.CPU:
            if event.is_user_annotation and event.name in (TOTAL, *names):
                found.on_host.append(Interval(event.name, begin, end, event.thread))
        elif not event.is_user_annotation:
            found.work.append(Interval(event.name, begin, end, event.device_resource_id))
        elif event.name in names:
            found.on_gpu.append(Interval(event.name, begin, end, event.device_resource_id))
    found.work.sort(key=lambda item: item.start)
    return found


def own_times(ranges: Iterable[Interval]) -> dict[str, float]:
    """Microseconds by name in which a range is the innermost of its lane: each lane's instants count once."""
    times: dict[str, float] = defaultdict(float)
    open_ranges: dict[int, list[Interval]] = defaultdict(list)
    for item in sorted(ranges, key=lambda item: (item.start, -item.end)):
        around = open_ranges[item.lane]
        while around and around[-1].end <= item.start:
            around.pop()
        if around:
            times[around[-1].name] -= item.length
        times[item.name] += item.length
        around.append(item)
    return dict(times)


def by_stage(seen: Profile, names: Sequence[str] = STAGES) -> dict[str, float]:
    """Milliseconds of each stage, of what is in none ("other"), and of all: of a GPU's kernels and copies where there
    are any, else of the host, with what the profiler itself costs, a microsecond or two an operation."""
    times: dict[str, float] = defaultdict(float)
    for name, item in seen.located():
        times[name] += item.length
    times = times or defaultdict(float, own_times(seen.on_host))
    found = {**{name: times[name] / 1e3 for name in names}, "other": times[TOTAL] / 1e3}
    return {**found, TOTAL: sum(found.values())}


def milliseconds(function: Callable[[], object], names: Sequence[str] = STAGES) -> dict[str, float]:
    """What a call of the function takes: `by_stage` of a profile."""
    return by_stage(profiled(function, names), names)
