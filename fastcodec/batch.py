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
from dataclasses import dataclass, field, replace
from pathlib import Path
from queue import SimpleQueue
from typing import Any, Literal, Protocol

from .errors import ImageError

BYTES_PER_PIXEL = 16  # at the peak of one image; measured at 100 megapixels: 11 to compress, 15 to decompress
_STOP_SECONDS = 3.0  # how long an interrupted run waits for what is being coded


@dataclass(frozen=True)
class Task:
    """One file of a batch."""

    source: Path
    target: Path | None = None  # None: nothing is written
    source_bytes: int = 0
    data: bytes | None = None  # the source's, if it is no file


@dataclass(frozen=True)
class Outcome:
    """What became of a task. `record` is what there is to say about its file, ready for JSON."""

    task: Task
    status: Literal["done", "skipped", "failed"]
    record: dict[str, Any] = field(default_factory=dict)
    error: BaseException | None = None


class Steps(Protocol):
    """What a batch does to each file. `code` runs in the coding threads, the others in the reading and writing ones."""

    def existing(self, task: Task) -> dict[str, Any] | None:
        """A record if the task is done already, else None."""

    def pixels(self, task: Task) -> int:
        """About how many pixels the task will hold in memory; reads a header at most."""

    def read(self, task: Task) -> Any:
        """The input of `code`."""

    def code(self, item: Any) -> Any:
        """The work itself."""

    def kind(self, item: Any) -> Hashable | None:
        """What items must have in common for `code_many`; None for one that must be coded alone."""

    def code_many(self, items: Sequence[Any]) -> list[Any]:
        """`code` for items of one kind. If it raises, each is coded alone. Not asked for unless `run` gathers."""

    def write(self, task: Task, item: Any, result: Any, seconds: float) -> dict[str, Any]:
        """Write the result, which took `code` so many seconds, and return the file's record."""


class StoppedError(Exception):
    """A batch ended before its last file. `cause` is why, if it was an error; `running`: some threads still work."""

    def __init__(self, cause: BaseException | None, running: bool):
        super().__init__(str(cause or "stopped"))
        self.cause, self.running = cause, running

    def __reduce__(self) -> tuple:
        return StoppedError, (self.cause, self.running)


def available_cores() -> int:
    """Cores that this process may run on."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


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
    found: list[tuple[Path, Path]] = []  # file, its place relative to `out`
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

    # A file given twice is done once.
    pairs = list({(os.path.realpath(source), place): (source, place) for source, place in found}.values())
    shared = Counter(place.with_suffix("") for _, place in pairs)
    alike: dict[str, set[str]] = {}  # folded stems -> folded names
    for _, place in pairs:
        alike.setdefault(folded(place.with_suffix("")), set()).add(folded(place))
    sources = {os.path.realpath(source) for source, _ in pairs}
    tasks, taken = [], {}
    for source, place in pairs:
        task = Task(source, None, _size(source))
        if out is not None:
            stem = place.with_suffix("")
            name = place.name if shared[stem] > 1 or len(alike[folded(stem)]) > 1 else place.stem
            target = out if out_is_file else out / place.with_name(name + suffix)
            task = replace(task, target=target)
            if os.path.realpath(target) in sources:
                failures.append(_failure(source, ImageError(f"its output {target} would overwrite an input"), target))
                continue
            # Sources whose whole names are alike (a.png, A.png) come from where these are two; so may their outputs.
            kept = taken.get(folded(target), [])
            other = next((other for other, at in kept if at == target), None)
            if kept and (other is not None or not _tells_alike_apart(out)):
                message = f"its output {target} is that of {other or kept[0][0]} too: give them different folders"
                failures.append(_failure(source, ImageError(message), target))
                continue
            if too_long := _too_long(target):
                message = (
                    f"its output's name is too long for the file system: {too_long}: rename it, or name an output file"
                )
                failures.append(_failure(source, ImageError(message), target))
                continue
            taken.setdefault(folded(target), []).append((source, target))
        tasks.append(task)
    return tasks, failures


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


class _Pool:
    """Codes items one by one, in so many threads."""

    def __init__(self, steps: Steps, jobs: int):
        self._steps, threads = steps, max(1, available_cores() // jobs)
        self._executor = ThreadPoolExecutor(jobs, "coder", initializer=_use_threads, initargs=(threads,))

    def submit(self, item: Any) -> Future[tuple[Any, float]]:
        """To the result, and the seconds that it took."""
        return self._executor.submit(self._one, item)

    def _one(self, item: Any) -> tuple[Any, float]:
        start = time.perf_counter()
        return self._steps.code(item), time.perf_counter() - start

    def shutdown(self, wait: bool) -> None:
        self._executor.shutdown(wait=wait, cancel_futures=True)


class _Gatherer:
    """Codes what waits, `most` items of a kind together: for a device that does many at once.

    Two threads take turns, so that one prepares work for the device while it does the other's.
    """

    THREADS = 2

    def __init__(self, steps: Steps, most: int):
        self._steps, self._most = steps, most
        self._waiting: list[tuple[Hashable | None, Any, Future]] = []
        self._changed, self._closed = threading.Condition(), False
        self._threads = [threading.Thread(target=self._serve, daemon=True) for _ in range(self.THREADS)]
        for thread in self._threads:
            thread.start()

    def submit(self, item: Any) -> Future[tuple[Any, float]]:
        """As `_Pool.submit`; a batch's time is shared out evenly."""
        kind, future = self._steps.kind(item), Future()
        with self._changed:
            if self._closed:
                raise RuntimeError("shut down")
            self._waiting.append((kind, item, future))
            self._changed.notify()
        return future

    def _take(self) -> list[tuple[Any, Future]]:
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
            start = time.perf_counter()
            if len(batch) > 1:
                try:
                    results = self._steps.code_many([item for item, _ in batch])
                except Exception:
                    pass  # whose fault it is shows below
                else:
                    seconds = (time.perf_counter() - start) / len(batch)
                    for (_, future), result in zip(batch, results, strict=True):
                        future.set_result((result, seconds))
                    continue
            for item, future in batch:
                start = time.perf_counter()
                try:
                    result = self._steps.code(item)
                except BaseException as error:
                    future.set_exception(error)
                else:
                    future.set_result((result, time.perf_counter() - start))

    def shutdown(self, wait: bool) -> None:
        with self._changed:
            self._closed = True
            for _, _, future in self._waiting:
                future.cancel()
            self._changed.notify_all()
        if wait:
            for thread in self._threads:
                thread.join()


def run(
    tasks: Iterable[Task], steps: Steps, *, jobs: int, report: Callable[[Outcome], None], together: int = 1
) -> None:
    """Do all tasks, `jobs` of them coding at a time; `report` is called for each, in this thread, as they end.

    together: more than 1 for a device that codes so many files of a kind at once; then `jobs` are read ahead for it.

    A task that raises fails alone. Raises StoppedError when a full disk ends the batch, or this thread is interrupted:
    then what was being written is finished or removed, and what has been written stays.
    """
    queue = iter(tasks)
    lock, stopped, ending = threading.Lock(), threading.Event(), threading.Event()
    outcomes: SimpleQueue[Outcome | BaseException | None] = SimpleQueue()
    room = _Room(_memory() // 2 // BYTES_PER_PIXEL)

    def one(task: Task) -> Outcome | None:
        taken = 0
        try:
            if (record := steps.existing(task)) is not None:
                return Outcome(task, "skipped", record)
            pixels = steps.pixels(task)
            room.take(pixels, stopped)
            taken = pixels
            item = None if stopped.is_set() else steps.read(task)
            if stopped.is_set():
                return None
            result, seconds = coders.submit(item).result()
            if stopped.is_set():
                return None
            return Outcome(task, "done", steps.write(task, item, result, seconds))
        except Exception as error:
            if ending.is_set() and isinstance(error, RuntimeError | CancelledError):
                return None  # refused or cancelled by `coders` as the run ends
            if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
                stopped.set()
            return Outcome(task, "failed", error=error)
        finally:
            room.give(taken)

    def serve() -> None:
        try:
            while not stopped.is_set():
                with lock:
                    task = next(queue, None)
                if task is None:
                    break
                if (outcome := one(task)) is not None:
                    outcomes.put(outcome)
        except BaseException as error:  # not of a file: of the batch
            stopped.set()
            outcomes.put(error)
        finally:
            outcomes.put(None)

    # One reads ahead and one writes behind, and one more of each for every four that code.
    servers = [threading.Thread(target=serve, daemon=True) for _ in range(jobs + 2 + jobs // 2)]
    coders = _Pool(steps, jobs) if together == 1 else _Gatherer(steps, together)
    cause: BaseException | None = None
    try:
        for server in servers:
            server.start()
        running = len(servers)
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
            ending.set()
        coders.shutdown(wait=cause is None)
    if cause is None and not stopped.is_set():
        return
    # A second interrupt, or a reader of the report who has gone, ends the waiting.
    with contextlib.suppress(KeyboardInterrupt, OSError):
        end = time.monotonic() + _STOP_SECONDS
        for server in servers:
            if server.ident is not None:
                server.join(max(0.0, end - time.monotonic()))
        while not outcomes.empty():  # what ended in the meantime
            outcome = outcomes.get()
            if isinstance(outcome, Outcome):
                report(outcome)
    raise StoppedError(cause, any(server.is_alive() for server in servers)) from cause


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
