"""Milliseconds by stage: own times of the ranges that the engines mark for a profiler, on the CPU or on a GPU."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
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


def work_within(work: Iterable[Interval], ranges: Sequence[Interval]) -> dict[str, float]:
    """Microseconds of a GPU's kernels and copies by the innermost range of their stream that they lie in; TOTAL: of
    those that lie in none."""
    times: dict[str, float] = defaultdict(float)
    for item in work:
        middle = (item.start + item.end) / 2
        around = [r for r in ranges if r.lane == item.lane and r.start <= middle <= r.end]
        times[max(around, key=lambda r: r.start).name if around else TOTAL] += item.length
    return dict(times)


def milliseconds(function: Callable[[], object], stages: Sequence[str] = STAGES) -> dict[str, float]:
    """What a call of the function takes in this thread's ranges of these names, in "other", and in all ("total").

    Where the call uses a GPU these are times of its kernels and copies; else the host's, what the profiler itself costs
    (a microsecond or two an operation) included.
    """
    on_gpu = torch.cuda.is_available()
    with profile(activities=[ProfilerActivity.CPU, *[ProfilerActivity.CUDA] * on_gpu]) as seen:
        with record_function(TOTAL):
            function()
        if on_gpu:
            torch.cuda.synchronize()
    names = {TOTAL, *stages}
    marked: dict[bool, list[Interval]] = {True: [], False: []}
    work = []
    for event in seen.events() or ():
        host, lane = event.device_type == DeviceType.CPU, event.device_resource_id
        item = Interval(event.name, event.time_range.start, event.time_range.end, lane)
        if event.is_user_annotation and event.name in names:
            marked[host].append(item if not host else item._replace(lane=event.thread))
        elif not host and not event.is_user_annotation:
            work.append(item)
    times = work_within(work, marked[False]) if work else own_times(marked[True])
    found = {stage: times.get(stage, 0.0) / 1e3 for stage in stages}
    found["other"] = times.get(TOTAL, 0.0) / 1e3
    return {**found, "total": sum(found.values())}
