"""Many files at once: which file becomes which (`plan`), and the work on them in parallel (`run`).

Threads that read and write surround `jobs` threads that code, so that no core waits for a disk. What is in flight is
bounded twice: by the number of threads and by the pixels that memory has room for.
"""

from __future__ import annotations

import contextlib
import errno
import os
import tempfile
import threading
import time
import unicodedata
from collections import Counter
from collections.abc import Callable, Collection, Hashable, Iterable, Iterator, Sequence
from concurrent.futures import CancelledError, Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from queue import SimpleQueue
from typing import Any, Generic, Literal, TypeVar

from .errors import ImageError
from .machine import available_cores

BYTES_PER_PIXEL = 16  # at the peak of one image; measured at 100 megapixels: 11 to compress, 15 to decompress
_STOP_SECONDS = 3.0  # how long an interrupted run waits for what is being coded
_Item = TypeVar("_Item")  # what is coded
_Result = TypeVar("_Result")  # what it becomes
_Input = TypeVar("_Input")


@dataclass(frozen=True)
class Task:
    """One file of a batch."""

    source: Path
    target: Path | None = None  # None: nothing is written
    source_bytes: int = 0
    data: bytes | None = None  # the source's, if it is no file

    @property
    def output(self) -> Path:
        """The target of a task that has one; ValueError for another."""
        if self.target is None:
            raise ValueError(f"{self.source}: nothing is written")
        return self.target


@dataclass(frozen=True)
class Outcome:
    """The end of a task. `record` describes its file, ready for JSON."""

    task: Task
    status: Literal["done", "skipped", "failed"]
    record: dict[str, Any] = field(default_factory=dict)
    error: BaseException | None = None


class Steps(Generic[_Item, _Result]):
    """The steps of a file in a batch. `code` runs in the coding threads, the others in the reading and writing ones."""

    def existing(self, task: Task) -> dict[str, Any] | None:
        """A record if the task is done already, else None."""
        return None

    def pixels(self, task: Task) -> int:
        """About how many pixels the task will hold in memory; reads a header at most."""
        raise NotImplementedError

    def read(self, task: Task) -> _Item:
        """The input of `code`."""
        raise NotImplementedError

    def code(self, item: _Item) -> _Result:
        """The work itself."""
        raise NotImplementedError

    def kind(self, item: _Item) -> Hashable | None:
        """The kind of an item, of which `code_many` takes one at a time; None for one that must be coded alone."""
        return None

    def code_many(self, items: Sequence[_Item]) -> list[_Result]:
        """`code` for items of one kind. If it raises, each is coded alone. Not asked for unless `run` gathers."""
        return list(map(self.code, items))

    def write(self, task: Task, item: _Item, result: _Result, seconds: float) -> dict[str, Any]:
        """Write the result, which took `code` so many seconds, and return the file's record."""
        raise NotImplementedError


class StoppedError(Exception):
    """A batch ended before its last file. `cause` is why, if it was an error; `running`: some threads still work."""

    def __init__(self, cause: BaseException | None, running: bool):
        super().__init__(str(cause or "stopped"))
        self.cause, self.running = cause, running

    def __reduce__(self) -> tuple:
        return StoppedError, (self.cause, self.running)


# ---- which file becomes which


def plan(
    inputs: Sequence[Path],
    out: Path | None,
    suffix: str,
    *,
    recursive: bool = False,
    wanted: Collection[str],
    out_is_file: bool = False,
) -> tuple[list[Task], list[Outcome]]:
    """The tasks of a batch, and the inputs that failed before it began.

    A file goes to out/stem + suffix. Of a folder, the files whose suffix is in `wanted` go to the same places under
    `out` (nested ones only if `recursive`). Where two files would meet in one name (a.png, a.jpg), each keeps its whole
    name: a.png.fic, a.jpg.fic; names that `folded` gives alike count as one. Whoever would still meet another output,
    or overwrite an input, or whose output's name is too long for its file system, fails.
    """
    found, failures = _find(inputs, out, recursive, wanted)
    # A file given twice is done once.
    pairs = list({(os.path.realpath(source), place): (source, place) for source, place in found}.values())
    if out is None:
        return [Task(source, None, _size(source)) for source, _ in pairs], failures
    shared = Counter(place.with_suffix("") for _, place in pairs)
    alike: dict[str, set[str]] = {}  # folded stems -> folded names
    for _, place in pairs:
        alike.setdefault(folded(place.with_suffix("")), set()).add(folded(place))
    sources = {os.path.realpath(source) for source, _ in pairs}
    tasks: list[Task] = []
    taken: dict[str, list[Task]] = {}  # by the folded target
    for source, place in pairs:
        stem = place.with_suffix("")
        name = place.name if shared[stem] > 1 or len(alike[folded(stem)]) > 1 else place.stem
        target = out if out_is_file else out / place.with_name(name + suffix)
        others = taken.setdefault(folded(target), [])
        if os.path.realpath(target) in sources:
            failures.append(_failure(source, ImageError(f"its output {target} would overwrite an input"), target))
        elif why := _not_writable(target, out, others):
            failures.append(_failure(source, ImageError(why), target))
        else:
            others.append(Task(source, target, _size(source)))
            tasks.append(others[-1])
    return tasks, failures


def _find(
    inputs: Sequence[Path], out: Path | None, recursive: bool, wanted: Collection[str]
) -> tuple[list[tuple[Path, Path]], list[Outcome]]:
    """The files of a batch, each with its place relative to `out`, and the inputs that are none."""
    found: list[tuple[Path, Path]] = []
    failures: list[Outcome] = []
    for given in inputs:
        try:
            is_folder, exists = given.is_dir(), given.exists() or given.is_symlink()
        except OSError as error:  # a folder above it that may not be searched, a name that is too long
            failures.append(_failure(given, error))
            continue
        if is_folder:
            before = len(found) + len(failures)
            for item in _walk(given, recursive, wanted, out):
                if isinstance(item, OSError):
                    failures.append(_failure(Path(item.filename or given), item))
                else:
                    found.append((item, item.relative_to(given)))
            if len(found) + len(failures) == before:
                kinds = "no .fic file" if tuple(wanted) == (".fic",) else "no image"
                hint = "" if recursive else " (--recursive looks into nested folders)"
                failures.append(_failure(given, ImageError(f"{kinds} in this folder{hint}")))
        elif exists:
            found.append((given, Path(given.name)))
        else:
            failures.append(_failure(given, ImageError("no such file or folder")))
    return found, failures


def _not_writable(target: Path, out: Path, others: Sequence[Task]) -> str | None:
    """The reason why nothing can be written to `target` below `out`, if there is one. others: the tasks before it whose
    targets are folded alike."""
    # Sources whose whole names are alike (a.png, A.png) come from where these are two; so may their outputs.
    other = next((other for other in others if other.target == target), None)
    if others and (other is not None or not _tells_alike_apart(out)):
        return f"its output {target} is that of {(other or others[0]).source} too: give them different folders"
    if too_long := _too_long(target):
        return f"its output's name is too long for the file system: {too_long}: rename it, or name an output file"
    return None


def folded(path: str | os.PathLike) -> str:
    """The name as file systems see it that tell neither capitals from small letters nor a letter and its accent from
    the accented letter: those of Windows and macOS."""
    return unicodedata.normalize("NFC", unicodedata.normalize("NFD", os.fspath(path)).casefold())


def _tells_alike_apart(folder: Path) -> bool:
    """Whether the file system of a folder, which need not be there yet, tells names apart that are `folded` alike."""
    folder = _existing(folder)
    try:
        with tempfile.NamedTemporaryFile(prefix="fastcodec", dir=folder) as file:
            return not os.path.exists(folder / Path(file.name).name.swapcase())
    except OSError:
        return False


def _too_long(target: Path) -> str | None:
    """The name of a file, or of a folder on the way to it that has yet to be made, that its file system cannot hold."""
    folder = _existing(target.parent)
    for name in target.parts[len(folder.parts) :]:
        try:
            os.lstat(folder / name)
        except OSError as error:
            if error.errno == errno.ENAMETOOLONG:
                return name
    return None


def _existing(folder: Path) -> Path:
    """The folder, or the nearest above it that is there."""
    with contextlib.suppress(OSError):
        if folder.is_dir():
            return folder
    return folder if folder.parent == folder else _existing(folder.parent)


def _walk(folder: Path, recursive: bool, wanted: Collection[str], out: Path | None) -> Iterator[Path | OSError]:
    """Files below a folder, sorted; hidden ones and the output folder are left out. Errors are yielded."""
    errors: list[OSError] = []
    out_path = os.path.realpath(out) if out is not None else None
    for name, folders, files in os.walk(folder, onerror=errors.append):
        here = Path(name)
        folders[:] = sorted(f for f in folders if f[0] != "." and os.path.realpath(here / f) != out_path)
        yield from (here / f for f in sorted(files) if f[0] != "." and os.path.splitext(f)[1].lower() in wanted)
        if not recursive:
            break
    yield from errors


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:
        return 0


def _failure(source: Path, error: BaseException, target: Path | None = None) -> Outcome:
    return Outcome(Task(source, target), "failed", error=error)


# ---- the work


class _Room:
    """A count of pixels that may be in flight together; one task alone may always go."""

    def __init__(self, pixels: int):
        self.pixels, self.used = pixels, 0
        self.changed = threading.Condition()

    def take(self, pixels: int, stopped: threading.Event) -> None:
        with self.changed:
            while self.used and self.used + pixels > self.pixels and not stopped.is_set():
                self.changed.wait(0.2)
            self.used += pixels

    def give(self, pixels: int) -> None:
        with self.changed:
            self.used -= pixels
            self.changed.notify_all()


def _timed(function: Callable[[_Input], _Result], argument: _Input) -> tuple[_Result, float]:
    """The function's result, and the seconds that it took."""
    start = time.perf_counter()
    return function(argument), time.perf_counter() - start


class _Gatherer(Generic[_Item, _Result]):
    """Codes waiting items, `most` of a kind together: for a device that does many at once.

    Two threads take turns, so that one prepares work for the device while it does the other's.
    """

    THREADS = 2

    def __init__(self, steps: Steps[_Item, _Result], most: int):
        self._steps, self._most = steps, most
        self._waiting: list[tuple[Hashable | None, _Item, Future[tuple[_Result, float]]]] = []
        self._changed, self._closed = threading.Condition(), False
        self._threads = [threading.Thread(target=self._serve, daemon=True) for _ in range(self.THREADS)]
        for thread in self._threads:
            thread.start()

    def submit(self, item: _Item) -> Future[tuple[_Result, float]]:
        """To the result, and the seconds that it took; a batch's time is shared out evenly."""
        kind = self._steps.kind(item)
        future: Future[tuple[_Result, float]] = Future()
        with self._changed:
            if self._closed:
                raise RuntimeError("shut down")
            self._waiting.append((kind, item, future))
            self._changed.notify()
        return future

    def _take(self) -> list[tuple[_Item, Future[tuple[_Result, float]]]]:
        """The item that has waited longest, and others of its kind; none when it is over."""
        with self._changed:
            while not self._waiting and not self._closed:
                self._changed.wait()
            if not self._waiting:
                return []
            kind = self._waiting[0][0]
            alike = [entry for entry in self._waiting if kind is not None and entry[0] == kind][: self._most]
            taken = alike or self._waiting[:1]
            self._waiting = [entry for entry in self._waiting if not any(entry is other for other in taken)]
            return [(item, future) for _, item, future in taken if future.set_running_or_notify_cancel()]

    def _serve(self) -> None:
        while not self._closed or self._waiting:
            batch = self._take()
            if len(batch) > 1:
                try:
                    results, seconds = _timed(self._steps.code_many, [item for item, _ in batch])
                except Exception:
                    pass  # whose fault it is shows below
                else:
                    for (_, future), result in zip(batch, results, strict=True):
                        future.set_result((result, seconds / len(batch)))
                    continue
            for item, future in batch:
                try:
                    future.set_result(_timed(self._steps.code, item))
                except BaseException as error:
                    future.set_exception(error)

    def shutdown(self, wait: bool) -> None:
        with self._changed:
            self._closed = True
            for _, _, future in self._waiting:
                future.cancel()
            self._changed.notify_all()
        if wait:
            for thread in self._threads:
                thread.join()


class _Servers(Generic[_Item, _Result]):
    """Threads that take one task after the other, read it, have it coded and write it.

    outcomes: those of the tasks; an error that is not of a file but ends the batch; None as a thread ends. `stopped` is
    set where no task is to begin any more, `ending` where what is refused or cancelled by `submit` is no failure.
    """

    def __init__(
        self,
        tasks: Iterable[Task],
        steps: Steps[_Item, _Result],
        submit: Callable[[_Item], Future[tuple[_Result, float]]],
        count: int,
    ):
        self._queue, self._lock = iter(tasks), threading.Lock()
        self._steps, self._submit = steps, submit
        self._room = _Room(_memory() // 2 // BYTES_PER_PIXEL)
        self.stopped, self.ending = threading.Event(), threading.Event()
        self.outcomes: SimpleQueue[Outcome | BaseException | None] = SimpleQueue()
        self.threads = [threading.Thread(target=self._serve, daemon=True) for _ in range(count)]

    def _serve(self) -> None:
        try:
            while not self.stopped.is_set():
                with self._lock:
                    task = next(self._queue, None)
                if task is None:
                    break
                if (outcome := self._one(task)) is not None:
                    self.outcomes.put(outcome)
        except BaseException as error:  # not of a file: of the batch
            self.stopped.set()
            self.outcomes.put(error)
        finally:
            self.outcomes.put(None)

    def _one(self, task: Task) -> Outcome | None:
        steps, taken = self._steps, 0
        try:
            if (record := steps.existing(task)) is not None:
                return Outcome(task, "skipped", record)
            pixels = steps.pixels(task)
            self._room.take(pixels, self.stopped)
            taken = pixels
            if self.stopped.is_set():
                return None
            item = steps.read(task)
            if self.stopped.is_set():
                return None
            result, seconds = self._submit(item).result()
            if self.stopped.is_set():
                return None
            return Outcome(task, "done", steps.write(task, item, result, seconds))
        except Exception as error:
            if self.ending.is_set() and isinstance(error, RuntimeError | CancelledError):
                return None
            if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
                self.stopped.set()
            return Outcome(task, "failed", error=error)
        finally:
            self._room.give(taken)


def run(
    tasks: Iterable[Task],
    steps: Steps[_Item, _Result],
    *,
    jobs: int,
    report: Callable[[Outcome], None],
    together: int = 1,
) -> None:
    """Do all tasks, `jobs` of them coding at a time; `report` is called for each, in this thread, as they end.

    together: more than 1 for a device that codes so many files of a kind at once; then `jobs` are read ahead for it.

    A task that raises fails alone. Raises StoppedError when a full disk ends the batch, or this thread is interrupted:
    then what was being written is finished or removed, and what has been written stays.
    """
    submit, shutdown = _coders(steps, jobs, together)
    # One reads ahead and one writes behind, and one more of each for every four that code.
    servers = _Servers(tasks, steps, submit, jobs + 2 + jobs // 2)
    outcomes, stopped = servers.outcomes, servers.stopped
    cause: BaseException | None = None
    try:
        for thread in servers.threads:
            thread.start()
        running = len(servers.threads)
        while running:
            outcome = outcomes.get()
            if outcome is None:
                running -= 1
            elif isinstance(outcome, BaseException):
                cause = cause or outcome
            else:
                if stopped.is_set() and outcome.error is not None:
                    cause = cause or outcome.error
                report(outcome)
    except BaseException as error:  # KeyboardInterrupt, and whatever `report` raises
        cause = error
    finally:
        if cause is not None:
            stopped.set()
            servers.ending.set()
        shutdown(cause is None)
    if cause is None and not stopped.is_set():
        return
    # A second interrupt, or a reader of the report who has gone, ends the waiting.
    with contextlib.suppress(KeyboardInterrupt, OSError):
        end = time.monotonic() + _STOP_SECONDS
        for thread in servers.threads:
            if thread.ident is not None:
                thread.join(max(0.0, end - time.monotonic()))
        while not outcomes.empty():  # what ended in the meantime
            outcome = outcomes.get()
            if isinstance(outcome, Outcome):
                report(outcome)
    raise StoppedError(cause, any(thread.is_alive() for thread in servers.threads)) from cause


def _coders(
    steps: Steps[_Item, _Result], jobs: int, together: int
) -> tuple[Callable[[_Item], Future[tuple[_Result, float]]], Callable[[bool], None]]:
    """What has an item coded, and what ends the threads that code, with or without waiting."""
    if together > 1:
        gatherer = _Gatherer(steps, together)
        return gatherer.submit, gatherer.shutdown
    threads = max(1, available_cores() // jobs)
    executor = ThreadPoolExecutor(jobs, "coder", initializer=_use_threads, initargs=(threads,))
    shutdown = partial(executor.shutdown, cancel_futures=True)
    return partial(executor.submit, partial(_timed, steps.code)), shutdown


def _use_threads(count: int) -> None:
    """So many threads for PyTorch's operations in this thread: jobs x threads = cores."""
    import torch

    # The setting is the thread's own, but a thread's first use of PyTorch overwrites it with the process's last one.
    torch.get_num_threads()
    torch.set_num_threads(count)


def _memory() -> int:
    """Bytes of memory that are free to use, for the whole machine or for this container."""
    free = 1 << 62
    try:
        with open("/proc/meminfo") as lines:
            values = dict(line.split(":") for line in lines)
        free = int(values["MemAvailable"].split()[0]) << 10
        limit = Path("/sys/fs/cgroup/memory.max").read_text().strip()
        used = int(Path("/sys/fs/cgroup/memory.current").read_text())
        if limit != "max":
            free = min(free, int(limit) - used)
    except (OSError, KeyError, ValueError):
        pass
    return max(free, 1 << 30)
