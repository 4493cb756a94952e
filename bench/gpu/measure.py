"""Measures a suite of figures, the most wanted first: `python -m bench.gpu.measure latency --seconds 85 --out FILE`.

A figure is a part by itself; the file is written anew after each, so that whatever ends the run leaves what was found.
A part that fails leaves its traceback. An error that stays with a process's use of the GPU (an illegal memory access)
ends that process: what is left runs in a fresh one, which a part that hangs gets too. Nothing is shared between parts
but the files that they decode.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from fastcodec.errors import UnavailableError

from .. import common
from ..common import argument_parser

SUITES = ("latency", "codec", "rans")  # modules beside this one, each with `parts(folder)`
SECONDS = 85.0
MOST_PART_SECONDS = 40.0  # a part that takes longer hangs, and its process is stopped
MOST_PROCESSES = 8
FINISHED, POISONED, CANNOT_BEGIN = 0, 3, 4  # exit statuses of the process that measures
THE_PROCESS = "the process that measures"


@dataclass(frozen=True)
class Part:
    """A figure to be had. kind: parts of one kind take about as long; first: seconds that the first of them may."""

    name: str
    body: Callable[[], dict[str, Any]]
    kind: str
    first: float = 3.0


class Suite(list[Part]):
    """Parts in order."""

    def add(self, name: str, body: Callable[..., dict[str, Any]], *arguments: Any, first: float = 3.0) -> None:
        """A part more; those whose names are alike but for what stands behind the last comma are of one kind."""
        self.append(Part(name, lambda: body(*arguments), name.rpartition(", ")[0] or name, first))


@dataclass
class Found:
    """What is known so far; `save` writes it, whole at any time."""

    path: Path
    parts: dict[str, Any] = field(default_factory=dict)
    failures: dict[str, str] = field(default_factory=dict)
    skipped: list[str] = field(default_factory=list)
    running: str | None = None

    def contents(self) -> dict[str, Any]:
        return {name: value for name, value in vars(self).items() if name != "path"}

    def save(self) -> None:
        unfinished = self.path.with_suffix(".part")
        unfinished.write_text(json.dumps(common.rounded(self.contents())), encoding="utf-8")
        unfinished.replace(self.path)

    @classmethod
    def load(cls, path: Path) -> Found:
        try:
            return cls(path, **json.loads(path.read_text("utf-8")))
        except OSError:
            return cls(path)

    def settled(self) -> set[str]:
        """The parts that have run, well or badly."""
        return {*self.parts, *self.failures}


# --- the process that measures ----------------------------------------------------------------------------------------


def poisoned(error: BaseException) -> bool:
    """Whether an error stays with this process's use of the GPU."""
    if isinstance(error, UnavailableError | torch.AcceleratorError):
        return True
    try:
        if torch.cuda.is_available():
            torch.cuda.synchronize()
    except Exception:
        return True
    return False


def begin(found: Found, suite: str, folder: Path, end: float) -> int:
    """`measure` until `end` by the clock; CANNOT_BEGIN where there is nothing to measure on."""
    try:
        parts = importlib.import_module(f"{__package__}.{suite}").parts(folder)
    except Exception:
        found.failures[THE_PROCESS] = traceback.format_exc()
        found.save()
        traceback.print_exc()
        return CANNOT_BEGIN
    return measure(found, parts, end - time.time())


def measure(found: Found, parts: Sequence[Part], seconds: float) -> int:
    """Runs what has not run and fits, by what others of its kind took; returns FINISHED, or POISONED when this process
    cannot go on."""
    end, longest = time.perf_counter() + seconds, dict[str, float]()
    found.skipped = []
    for part in parts:
        if part.name in found.settled():
            continue
        start = time.perf_counter()
        if start + longest.get(part.kind, part.first) >= end:
            found.skipped.append(part.name)
            continue
        found.running = part.name
        found.save()
        fatal = False
        try:
            row = part.body()
        except Exception as error:
            found.failures[part.name] = traceback.format_exc()
            say(f"{part.name} FAILED: {error}\n{found.failures[part.name]}")
            fatal = poisoned(error)
        else:
            found.parts[part.name] = {**row, "part_seconds": time.perf_counter() - start}
            say(f"{part.name}: {brief(row)}")
        longest[part.kind] = max(longest.get(part.kind, 0.0), time.perf_counter() - start)
        found.running = None
        found.save()
        if fatal:
            return POISONED
    found.save()
    return FINISHED


def brief(row: Any, deep: int = 0) -> str:
    """A row's figures on a line."""
    if not isinstance(row, dict):
        return f"{row:.4g}" if isinstance(row, float) else f"{len(row)} items" if isinstance(row, list) else str(row)
    inner = ", ".join(f"{name} {brief(value, deep + 1)}" for name, value in row.items())
    return f"({inner})" if deep else inner


def say(text: str) -> None:
    print(text, flush=True)


# --- the process that watches it --------------------------------------------------------------------------------------


def command(suite: str) -> list[str]:
    """What Python runs to measure a suite; `watch` adds the path of the figures, a folder, and when to end."""
    return [sys.executable, "-m", f"{__package__}.measure", suite, "--measure"]


def watch(path: Path, seconds: float, command: Sequence[str]) -> int:
    """Has a process measure, and a fresh one what is left when it ends badly or hangs; until time ends. Returns 1 if a
    part failed."""
    end = time.time() + seconds
    Found(path).save()
    with tempfile.TemporaryDirectory() as folder:
        for _ in range(MOST_PROCESSES):
            before = Found.load(path).settled()
            status = _run(path, [*command, str(path), folder, str(end)], end)
            found = Found.load(path)
            if status in (FINISHED, CANNOT_BEGIN):
                break
            if found.running is not None:
                what = "it took too long" if status is None else f"its process ended with status {status}"
                found.failures[found.running], found.running = what, None
                found.save()
            elif found.settled() == before:
                found.failures[THE_PROCESS] = f"it ended with status {status} before its first part"
                found.save()
                break
            if time.time() > end - 8:
                break
    for name in (found := Found.load(path)).failures:
        say(f"failed: {name}")
    if found.skipped:
        say(f"left out for want of time: {'; '.join(found.skipped)}")
    return 1 if found.failures or not found.parts else 0


def _run(path: Path, command: Sequence[str], end: float) -> int | None:
    """The command's exit status; None if a part of it hung, or time was over, and it was stopped."""
    child = subprocess.Popen(command, cwd=common.ROOT)
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
    """Returns 1 if a part failed."""
    parser = argument_parser("bench.gpu.measure", __doc__)
    parser.add_argument("suite", choices=SUITES)
    parser.add_argument("--seconds", type=float, default=SECONDS)
    parser.add_argument("--out", type=Path, help="file of the figures (default: bench/results/gpu-SUITE.json)")
    parser.add_argument("--measure", nargs=3, metavar=("FILE", "FOLDER", "END"), help=argparse.SUPPRESS)
    options = parser.parse_args(argv)
    if options.measure:
        path, folder, end = options.measure
        return begin(Found.load(Path(path)), options.suite, Path(folder), float(end))
    out = (options.out or common.RESULTS / f"gpu-{options.suite}.json").resolve()
    out.parent.mkdir(parents=True, exist_ok=True)
    return watch(out, options.seconds, command(options.suite))


if __name__ == "__main__":
    status = main()
    sys.stdout.flush()
    # A process whose GPU has failed may hang or crash while it takes down what it had there.
    os._exit(status)
