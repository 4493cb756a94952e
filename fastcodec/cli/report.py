"""Output of the command line: one line an error, a line or a JSON object a file, progress, a summary."""

from __future__ import annotations

import json
import os
import re
import sys
import time
import traceback
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

from ..batch import Outcome

if TYPE_CHECKING:
    from rich.progress import Progress


class Terminated(KeyboardInterrupt):
    """SIGTERM came."""


def printable(text: str) -> str:
    """The text with its control characters escaped: a file's name must neither break a line nor steer the terminal."""
    return re.sub(r"[\x00-\x1f\x7f-\x9f]", lambda match: match[0].encode("unicode_escape").decode(), text)


def say(message: str) -> None:
    """One line to the user, on stderr."""
    print(f"fastcodec: {printable(message)}", file=sys.stderr, flush=True)


def say_error(message: str, error: BaseException | None) -> None:
    """An error to the user; with FASTCODEC_DEBUG=1 its traceback too."""
    say(message)
    if error is not None and os.environ.get("FASTCODEC_DEBUG", "0") not in ("", "0"):
        traceback.print_exception(error)


def explain(error: BaseException, path: Path | None = None) -> str:
    """`FILE: cause` in one line; FILE is `path` unless the error is about another."""
    if isinstance(error, OSError) and error.strerror:
        name, message = error.filename, error.strerror.lower()
    else:
        name, message = None, " ".join(str(error).split())
        if not message or isinstance(error, MemoryError | KeyError | AssertionError):
            message = f"{type(error).__name__}: {message}".removesuffix(": ")
    name = path if name is None else name
    prefix = f"{name}: "
    return message if name is None or message.startswith(prefix) else prefix + message


def size_text(count: float) -> str:
    """Bytes in the unit that leaves three digits or so."""
    for unit in ("bytes", "kB", "MB"):
        if count < 999.5:
            return f"{count:.3g} {unit}"
        count /= 1000
    return f"{count:.1f} GB"


def per_pixel(count: int, record: dict[str, Any]) -> float:
    """Bits a pixel of so many bytes."""
    return round(8 * count / (record["width"] * record["height"]), 5)


class Report:
    """The running report of a batch; a context manager around it.

    verb: what happens to a file, in the past tense. total, total_bytes: of the inputs. output: for its lines, standard
    output if None.
    """

    def __init__(self, verb: str, total: int, total_bytes: int, as_json: bool, output: TextIO | None = None):
        self.verb, self.total, self.as_json = verb, total, as_json
        self.output = sys.stdout if output is None else output
        self.count: Counter[str] = Counter()
        self.anew = 0
        self.bytes_in = self.bytes_out = self.pixels = self.fic_bytes = 0
        self.start = time.perf_counter()
        self.lines = not as_json and (total == 1 or not self.output.isatty() or not sys.stderr.isatty())
        self.progress: Progress | None = None
        if not as_json and total > 1 and sys.stderr.isatty():  # a lone file's line would land in the bar's
            self.progress = _progress()
            self.bar = self.progress.add_task(verb, total=max(1, total_bytes), done=f"0/{total}", rate="")

    def __enter__(self) -> Report:
        if self.progress is not None:
            self.progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self.progress is not None:
            self.progress.stop()
            self.progress = None

    def __call__(self, outcome: Outcome) -> None:
        """Take note of one file."""
        task, record = outcome.task, outcome.record
        self.count[outcome.status] += 1
        if outcome.status == "done":
            self.anew += "anew" in record
            self.bytes_in += task.source_bytes
            self.bytes_out += record.get("output_bytes", 0)
            self.fic_bytes += record["bytes"]
            self.pixels += record["width"] * record["height"]
        if self.progress is not None:
            self.progress.update(self.bar, advance=task.source_bytes, done=f"{self.count.total()}/{self.total}")
            self.progress.update(self.bar, rate=self.rate())
        if self.as_json:
            self._print_json(outcome)
        if outcome.error is not None:
            say_error(explain(outcome.error, task.source), outcome.error)
            return
        if not self.as_json:
            for notice in record.get("notices", ()):
                say(f"{task.source}: note: {notice}")
            if self.lines:
                print(printable(self._line(outcome)), file=self.output, flush=True)

    def _print_json(self, outcome: Outcome) -> None:
        task = outcome.task
        names = {"file": str(task.source), "output": None if task.target is None else str(task.target)}
        record: dict[str, Any] = {**names, "status": outcome.status, **outcome.record}
        if outcome.error is not None:
            message = explain(outcome.error, task.source).removeprefix(f"{task.source}: ")
            record |= {"error": type(outcome.error).__name__, "message": message}
        print(json.dumps(record), file=self.output, flush=True)

    def _line(self, outcome: Outcome) -> str:
        task, record = outcome.task, outcome.record
        arrow = "" if task.target is None else f" -> {task.target}"
        if outcome.status == "skipped":
            return f"{task.source}{arrow}: skipped, {record.get('why', 'exists already')}"
        if task.target is None:
            return f"{task.source}: {self.verb}, {_facts(record)}"
        anew = f", made anew: {record['anew']}" if "anew" in record else ""
        return f"{task.source}{arrow}: {_facts(record)}, {record['seconds']:.3g} s{anew}"

    def rate(self) -> str:
        """Throughput since the start."""
        seconds = max(1e-9, time.perf_counter() - self.start)
        return f"{self.count['done'] / seconds:.3g} images/s, {self.pixels / seconds / 1e6:.3g} MP/s"

    def summary(self) -> None:
        """Say how it ended, where more than one file was meant; `--json` has said it all."""
        if self.as_json or self.total < 2:
            return
        anew = f" ({self.anew} anew, whose sources or settings had changed)" if self.anew else ""
        parts = [f"{self.count['done']} {self.verb}{anew}"]
        parts += [f"{self.count[name]} {name}" for name in ("skipped", "failed") if self.count[name]]
        if missing := self.total - self.count.total():
            parts.append(f"{missing} not begun")
        text = f"{self.total} files: {', '.join(parts)}"
        if self.count["done"]:
            sizes = f"{size_text(self.bytes_in)} -> {size_text(self.bytes_out)}, " if self.bytes_out else ""
            seconds = time.perf_counter() - self.start
            text += f"; {sizes}{8 * self.fic_bytes / self.pixels:.3f} bpp; {seconds:.1f} s ({self.rate()})"
        print(text, file=sys.stderr, flush=True)


def _facts(record: dict[str, Any]) -> str:
    size = f"{record['width']}x{record['height']}"
    text = f"{size}, {record['bytes']} bytes, {record['bpp']:.3f} bpp, quality {record['quality']}"
    tiles, lossless = record.get("tiles"), record.get("lossless_tiles")
    if lossless:
        text += ", lossless" if lossless == tiles else f", {lossless} of {tiles} tiles lossless"
    return text


def _progress() -> Progress:
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

    console = Console(stderr=True)
    rate = [TextColumn("{task.fields[rate]}")] if console.width >= 72 else []  # it would leave the others no room
    return Progress(
        TextColumn("{task.description} {task.fields[done]}"),
        BarColumn(),
        *rate,
        TextColumn("ETA"),
        TimeRemainingColumn(),
        console=console,
        transient=True,
        redirect_stdout=False,
    )
