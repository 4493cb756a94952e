"""The commands that run over many files: compress, decompress, verify."""

from __future__ import annotations

import argparse
import contextlib
import errno
import io
import os
import signal
import sys
import threading
import warnings
from collections.abc import Hashable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, TypeVar

from .. import batch, container
from ..alpha import flatten
from ..batch import Outcome, StoppedError, Task
from ..constants import DEFAULT_QUALITY, MAX_QUALITY
from ..container import DEFAULT_LIMITS, MAGIC, FileInfo, Limits, info
from ..errors import (
    CorruptStreamError,
    FastcodecError,
    ImageError,
    ModelMismatchError,
    NotAFicFileError,
    NotPortableWarning,
)
from ..files import IMAGE_SUFFIXES, discard_unfinished, replacing
from ..images import ALPHA_SUFFIXES, Picture, keeps_alpha, output_format, read_picture, read_size, write_picture
from ..machine import available_cores
from .history import History, Made
from .report import Report, Terminated, explain, per_pixel, say
from .streams import STDIN, STDOUT, read_fic, read_stdin, write_stdout

if TYPE_CHECKING:
    from ..codec import Codec
    from ..results import Encoded

_Item = TypeVar("_Item")
_Result = TypeVar("_Result")

FIC_SUFFIXES = frozenset({".fic"})
TOGETHER = 16  # files of equal size that a GPU codes at once, if so many wait
# A floating-point model's memory for a pixel, in `batch.BYTES_PER_PIXEL`: 0.8 to 1.2 kB, measured from mbt2018-mean at
# 192 and 320 channels to cheng2020-checkerboard-attention at 192.
FLOAT_MODEL_PIXELS = 64
FLOAT_MODEL_JOBS = 2  # on a GPU, where such a model codes its files one by one


def compress(arguments: argparse.Namespace) -> int:
    """Run `fastcodec compress`."""
    return _run(arguments, _Compress, ".fic", IMAGE_SUFFIXES, "compressed")


def decompress(arguments: argparse.Namespace) -> int:
    """Run `fastcodec decompress`."""
    suffix = "." + (arguments.format or "png").lower().removeprefix(".")
    try:
        output_format("image" + suffix)
    except ImageError:
        message = f"--format {arguments.format}: not a format that images are written in (png, jpg, webp, tif ...)"
        raise _usage(message) from None
    return _run(arguments, _Decompress, suffix, FIC_SUFFIXES, "decompressed")


def verify(arguments: argparse.Namespace) -> int:
    """Run `fastcodec verify`."""
    return _run(arguments, _Verify, "", FIC_SUFFIXES, "sound")


def _run(
    arguments: argparse.Namespace, steps: type[_Steps[Any, Any]], suffix: str, wanted: frozenset[str], verb: str
) -> int:
    out, out_is_file = _output(arguments)
    if any(path is STDIN for path in arguments.inputs) or out is STDOUT:
        tasks, failures = _stream_task(arguments, out)
    else:
        tasks, failures = batch.plan(
            arguments.inputs, out, suffix, recursive=arguments.recursive, wanted=wanted, out_is_file=out_is_file
        )
    codec = _load_codec(arguments) if tasks else None
    if codec is not None and arguments.command == "compress":
        _settle_quality(arguments, codec)
    total_bytes = sum(task.source_bytes for task in tasks)
    lines = sys.stderr if out is STDOUT else sys.stdout
    report = Report(verb, len(tasks) + len(failures), total_bytes, arguments.json, lines)
    stopped: StoppedError | None = None
    with report, warnings.catch_warnings():
        # Pillow warns of oddities in files that it reads all the same, in lines that do not name the file.
        warnings.filterwarnings("ignore", module="PIL")
        warnings.filterwarnings("ignore", category=NotPortableWarning)  # a notice of the file that it is about
        for failure in failures:
            report(failure)
        if codec is not None:
            on_cpu = codec.device.type == "cpu"
            # A GPU wants files read ahead; what it codes together, and what waits for it, are as many again.
            on_gpu, together = (2 * TOGETHER, TOGETHER) if arguments.model is None else (FLOAT_MODEL_JOBS, 1)
            jobs = arguments.jobs or (available_cores() if on_cpu else on_gpu)
            together = 1 if on_cpu else together
            work = steps(arguments, codec, in_folders=out is not None and not out_is_file)
            try:
                batch.run(tasks, work, jobs=min(jobs, len(tasks)), report=report, together=together)
                if work.for_stdout is not None:
                    write_stdout(work.for_stdout)
            except StoppedError as error:
                stopped = error
    report.summary()
    if stopped is not None:
        return _stop(stopped)
    return int(report.count["failed"] > 0)


def _stream_task(arguments: argparse.Namespace, out: Path | None) -> tuple[list[Task], list[Outcome]]:
    """`batch.plan` where standard input or output is meant: the one task, or its failure. Reads the input."""
    source = arguments.inputs[0]
    if source is not STDIN:
        return [Task(source, out, source.stat().st_size if source.is_file() else 0)], []
    try:
        data = read_stdin(b"" if arguments.command == "compress" else MAGIC)
    except (FastcodecError, OSError) as error:
        return [], [Outcome(Task(source, out), "failed", error=error)]
    return [Task(source, out, len(data), data)], []


def _stop(stopped: StoppedError) -> int:
    """Say why a batch ended early; returns the exit code, or ends the process if some of it cannot be called off."""
    cause, kept = stopped.cause, "Finished files are kept; the same command goes on with the rest."
    if isinstance(cause, KeyboardInterrupt):
        code = 128 + (signal.SIGTERM if isinstance(cause, Terminated) else signal.SIGINT)
        say(f"interrupted. {kept}")
    elif isinstance(cause, OSError) and not isinstance(cause, BrokenPipeError):
        code = 1
        say(f"stopped: {explain(cause)}. {kept}")
    elif isinstance(cause, BrokenPipeError):
        code = 128 + signal.SIGPIPE
    else:
        raise cause or stopped
    if stopped.running:
        # Python would wait for the image that is being coded, however large.
        discard_unfinished()
        try:
            sys.stdout.flush()
            sys.stderr.flush()
        finally:
            os._exit(code)
    if isinstance(cause, BrokenPipeError):
        raise cause
    return code


def _load_codec(arguments: argparse.Namespace) -> Codec:
    from ..codec import Codec

    return Codec.load(arguments.model or "swift", arguments.device, _limits(arguments))


def _settle_quality(arguments: argparse.Namespace, codec: Codec) -> None:
    """The quality where none was asked for; wrong usage where one was, or a size, and the model has one rate."""
    if arguments.lossless and arguments.model is not None:
        raise _usage(f"--model {arguments.model}: only swift's files have lossless tiles")
    if arguments.model is None:
        arguments.quality = MAX_QUALITY if arguments.lossless else arguments.quality or DEFAULT_QUALITY
    elif codec.model.variable_rate:
        arguments.quality = arguments.quality or codec.quality
    elif arguments.quality or arguments.target_bytes or arguments.target_bpp:
        raise _usage(f"--model {arguments.model}: it has one rate, so that no quality or size can be asked of it")
    else:
        arguments.quality = codec.quality


def _limits(arguments: argparse.Namespace) -> Limits:
    return Limits(arguments.max_pixels, DEFAULT_LIMITS.max_metadata)


def _output(arguments: argparse.Namespace) -> tuple[Path | None, bool]:
    """The place of the output, and whether that is a file."""
    text = getattr(arguments, "out", None)
    from_stdin = any(path is STDIN for path in arguments.inputs)
    if from_stdin and len(arguments.inputs) > 1:
        raise _usage("-: standard input is one file, and several inputs are given")
    if text is None:
        return None, False
    one_file = len(arguments.inputs) == 1 and (from_stdin or not arguments.inputs[0].is_dir())
    if text == "-":
        if not one_file:
            raise _usage("-o -: standard output holds one file, and several are given")
        if sys.stdout.isatty():
            raise _usage("-o -: standard output is a terminal: redirect it")
        return STDOUT, True
    out = Path(text)
    is_file = one_file and bool(out.suffix) and not out.is_dir() and not text.endswith(os.sep)
    if from_stdin and not is_file:
        raise _usage(f"-o {text}: it is a folder, in which standard input has no name: give a file's, with a suffix")
    if not is_file and out.exists() and not out.is_dir():
        why = "a name without a suffix" if one_file else "several files"
        raise _usage(f"-o {text}: it is a file, and a folder is needed for {why}")
    if is_file and arguments.command == "compress" and out.suffix.lower() in IMAGE_SUFFIXES:
        raise _usage(f"-o {text}: compress writes .fic files, and {out.suffix} is the suffix of images")
    if is_file and arguments.command == "decompress":
        if arguments.format is not None and output_format(out) != output_format(f"image.{arguments.format}"):
            raise _usage(f"-o {text}: its suffix contradicts --format {arguments.format}")
        try:
            output_format(out)
        except ImageError as error:
            raise _usage(f"-o {error}") from None
    return out, is_file


def _usage(message: str) -> SystemExit:
    say(message)
    return SystemExit(2)


class _Steps(batch.Steps[_Item, _Result]):
    """The steps of a batch that writes nothing: the base of all three. for_stdout: bytes for it, in the end."""

    for_stdout: bytes | None = None

    def __init__(self, arguments: argparse.Namespace, codec: Codec, in_folders: bool):
        self.arguments, self.codec, self.limits = arguments, codec, _limits(arguments)
        self.room = 1 if arguments.model is None else FLOAT_MODEL_PIXELS

    def pixels(self, task: Task) -> int:
        facts = info(self.fic(task), self.limits)
        return facts.width * facts.height * self.room

    # --- .fic files

    def fic(self, task: Task) -> bytes:
        """The bytes of a .fic file that is a source."""
        return read_fic(task.source) if task.data is None else task.data

    def check_model(self, item: bytes) -> None:
        """ModelMismatchError, saying what to do, for a file that no released model reads."""
        if self.arguments.model is None and container.read(item, self.limits).header.float_entropy:
            raise ModelMismatchError("written with a model of its own: give its file with --model")

    def notices(self, facts: FileInfo) -> list[str]:
        """Notices of a file that did decode."""
        if facts.portable or facts.written_on == self.codec.machine:
            return []
        return [f"written on {facts.written_on}; not every such file decodes here, on {self.codec.machine}"]


class _WritingSteps(_Steps[_Item, _Result]):
    """The steps of a batch that writes. in_folders: outputs lie in folders that keep a history of their sources."""

    def __init__(self, arguments: argparse.Namespace, codec: Codec, in_folders: bool):
        super().__init__(arguments, codec, in_folders)
        self._histories: dict[Path, History] | None = {} if in_folders else None
        self._lock = threading.Lock()
        # By target: what it is being made of; why one that is there is made anew.
        self._made: dict[Path, Made] = {}
        self._anew: dict[Path, str] = {}

    def settings(self) -> dict[str, Any]:
        """The settings that decide the output, besides the source, in JSON's types."""
        return {}

    def unknown(self, task: Task) -> None:
        """Looks at an output of unknown making, before the task is done again to be compared with it. May set `_anew`;
        raises ImageError where it is surely not what would be written."""

    def done(self, task: Task) -> dict[str, Any] | None:
        """The record of an output that is right; None if it turns out to be damaged."""
        return {}

    def existing(self, task: Task) -> dict[str, Any] | None:
        target = task.output
        if target is STDOUT or self.arguments.overwrite:
            return None
        history = self._history(task)
        if not target.exists():
            if history is not None and (other := history.alike(target, task.source)) is not None:
                raise ImageError(
                    f"its output {target} would be one file with {other} where capitals do not count: "
                    "give it another folder or name; --overwrite writes it all the same"
                )
            return None
        if target.is_dir():
            raise IsADirectoryError(errno.EISDIR, "is a directory", str(target))
        made = history.find(target) if history is not None else None
        if made is None:
            self.unknown(task)
            return None
        folder = target.parent
        now = made
        if not made.looks_like(task.source, folder):
            now = Made.of(task.source, folder, made.settings)
            if now.sha256 != made.sha256:
                if not made.is_named(task.source, folder):
                    raise ImageError(
                        f"{target} exists already, made from {os.path.join(folder, made.source)}: "
                        "give another folder or name; --overwrite replaces it"
                    )
                self._anew[target] = "its source has changed"
                return None
        if made.settings != (wanted := self.settings()):
            self._anew[target] = _difference(made.settings, wanted)
            return None
        if (record := self.done(task)) is None:
            return None
        if now is not made:  # so that the next run need not read the source
            self._note(task, now)
        return {**record, "why": "exists already"}

    def _history(self, task: Task) -> History | None:
        if self._histories is None:
            return None
        folder = task.output.parent
        with self._lock:
            if folder not in self._histories:
                self._histories[folder] = History(folder)
            return self._histories[folder]

    def begin(self, task: Task) -> None:
        """Look at the source before it is read: what changes it from now on will be noticed by the next run."""
        if self._histories is not None:
            self._made[task.output] = Made.of(task.source, task.output.parent, self.settings())

    def _note(self, task: Task, made: Made | None = None) -> list[str]:
        """Remember the making of an output; returns notices."""
        made, history = made or self._made.pop(task.output, None), self._history(task)
        if made is None or history is None:
            return []
        try:
            history.add(task.output, made)
        except OSError as error:
            return [f"{explain(error)}: the same command will have to make it again, to compare"]
        return []

    @contextlib.contextmanager
    def output(self, task: Task) -> Iterator[IO[bytes]]:
        """A stream for the result. An output that is there stays unless it may be replaced: ImageError."""
        target = task.output
        if target is STDOUT:
            buffer = io.BytesIO()
            yield buffer
            self.for_stdout = buffer.getvalue()
            return
        _make_folder(target.parent)
        try:
            with replacing(target, overwrite=self.arguments.overwrite or target in self._anew) as stream:
                yield stream
        except FileExistsError as error:
            raise ImageError(
                f"{target} exists already, and is not what would be written: "
                "give another folder or name; --overwrite replaces it"
            ) from error

    def written(self, task: Task, notices: Iterable[str]) -> dict[str, Any]:
        """The end of a written file's record. Takes note of its making."""
        record: dict[str, Any] = {"notices": [*notices, *self._note(task)]}
        if (why := self._anew.get(task.output)) is not None:
            record["anew"] = why
        return record


class _Compress(_WritingSteps["Picture", "Encoded"]):
    def settings(self) -> dict[str, Any]:
        arguments = self.arguments
        wanted: dict[str, Any] = {"model": self.codec.identity.hex(), "format": container.VERSION}
        if arguments.lossless:
            return wanted | {"lossless": True}
        wanted["preset"] = arguments.preset
        for name in ("target_bytes", "target_bpp"):
            if getattr(arguments, name) is not None:
                return wanted | {name: getattr(arguments, name)}
        return wanted | {"quality": arguments.quality}

    def unknown(self, task: Task) -> None:
        target = task.output
        try:
            facts = info(read_fic(target), self.limits)
        except FastcodecError as error:
            empty = target.is_file() and target.stat().st_size == 0
            if empty or (isinstance(error, CorruptStreamError) and not isinstance(error, NotAFicFileError)):
                self._anew[target] = "it was damaged"  # half a file of an earlier disaster
                return
            raise ImageError(f"{target} exists and is not ours to replace ({error}); see --overwrite") from error
        size = read_size(task.source, max_pixels=self.arguments.max_pixels, stream=_stream(task))
        if sorted(size) != sorted((facts.width, facts.height)):  # sorted: the image may have been turned
            raise ImageError(
                f"{target} exists and holds another image, of {facts.width} x {facts.height}; see --overwrite"
            )
        sized = self.arguments.target_bytes or self.arguments.target_bpp
        if self.arguments.lossless:
            differs = facts.lossless_tiles < facts.tiles
        else:
            differs = not sized and facts.quality != self.arguments.quality
        if differs or facts.model != self.codec.identity.hex():
            what = f"at quality {facts.quality}" if differs else f"of model {facts.model}"
            raise ImageError(f"{target} exists already, {what}; see --overwrite")

    def done(self, task: Task) -> dict[str, Any] | None:
        try:
            return _facts(info(read_fic(task.output), self.limits))
        except CorruptStreamError:
            self._anew[task.output] = "it was damaged"
            return None

    def pixels(self, task: Task) -> int:
        width, height = read_size(task.source, max_pixels=self.arguments.max_pixels, stream=_stream(task))
        return width * height * self.room

    def read(self, task: Task) -> Picture:
        self.begin(task)
        return read_picture(task.source, max_pixels=self.arguments.max_pixels, stream=_stream(task))

    def code(self, item: Picture) -> Encoded:
        arguments, target = self.arguments, self.arguments.target_bytes
        if arguments.target_bpp is not None:
            target = int(arguments.target_bpp * item.width * item.height / 8)
        if target is not None:
            return self.codec.encode(item, preset=arguments.preset, target_bytes=target)
        if arguments.lossless:
            return self.codec.encode(item, lossless=True)
        return self.codec.encode(item, arguments.quality, arguments.preset)

    def kind(self, item: Picture) -> Hashable | None:
        alone = self.arguments.target_bytes or self.arguments.target_bpp or self.arguments.lossless
        return None if alone else item.pixels.shape

    def code_many(self, items: Sequence[Picture]) -> list[Encoded]:
        return self.codec.encode_batch(items, self.arguments.quality, self.arguments.preset)

    def write(self, task: Task, item: Picture, result: Encoded, seconds: float) -> dict[str, Any]:
        with self.output(task) as stream:
            stream.write(result)
        record = {"width": item.width, "height": item.height, "mode": item.mode, "bytes": len(result)}
        return record | {
            "bpp": per_pixel(len(result), record),
            "estimated_bits": round(result.estimated_bits, 1),
            "quality": result.quality,
            **_tiles(info(result, self.limits)),
            "seconds": round(seconds, 4),
            "input_bytes": task.source_bytes,
            "output_bytes": len(result),
            **self.written(task, item.notices),
        }


class _Decompress(_WritingSteps[bytes, "Picture"]):
    def settings(self) -> dict[str, Any]:
        wanted: dict[str, Any] = {"precision": self.arguments.precision}
        if self.arguments.region is not None:
            wanted["region"] = list(self.arguments.region)
        if self.arguments.background is not None:
            wanted["background"] = "#" + bytes(self.arguments.background).hex()
        return wanted

    def read(self, task: Task) -> bytes:
        self.begin(task)
        data = self.fic(task)
        form = self._format(task)
        if self.arguments.background is None and info(data, self.limits).mode.endswith("A") and not keeps_alpha(form):
            keep = ", ".join(suffix.removeprefix(".") for suffix in ALPHA_SUFFIXES)
            raise ImageError(
                f"it has alpha, which {output_format(form)} cannot hold: --background COLOR puts it on a colour; "
                f"{keep} keep it (--format)"
            )
        return data

    def code(self, item: bytes) -> Picture:
        self.check_model(item)
        region, precision = self.arguments.region, self.arguments.precision
        return self._flat(self.codec.decode(item, out="picture", region=region, precision=precision))

    def kind(self, item: bytes) -> Hashable | None:
        facts = info(item, self.limits)
        return None if self.arguments.region else (facts.width, facts.height, facts.model)

    def code_many(self, items: Sequence[bytes]) -> list[Picture]:
        return list(map(self._flat, self.codec.decode_batch(items, out="picture", precision=self.arguments.precision)))

    def _flat(self, picture: Picture) -> Picture:
        background = self.arguments.background
        return picture if background is None else flatten(picture, background)

    def write(self, task: Task, item: bytes, result: Picture, seconds: float) -> dict[str, Any]:
        with self.output(task) as stream:
            lost = write_picture(self._format(task), result, stream=stream)
            size = stream.seek(0, io.SEEK_END)
        facts = info(item, self.limits)
        record = _facts(facts) | {"width": result.width, "height": result.height, "seconds": round(seconds, 4)}
        return record | {"output_bytes": size, **self.written(task, [*self.notices(facts), *lost])}

    def _format(self, task: Task) -> Path:
        """A name that tells the format, the target's own if it has one."""
        target = task.output
        return target.with_suffix(f".{self.arguments.format or 'png'}") if target is STDOUT else target


class _Verify(_Steps[bytes, None]):
    def read(self, task: Task) -> bytes:
        return self.fic(task)

    def code(self, item: bytes) -> None:
        self.check_model(item)
        self.codec.verify(item)

    def write(self, task: Task, item: bytes, result: None, seconds: float) -> dict[str, Any]:
        facts = info(item, self.limits)
        return _facts(facts) | {"seconds": round(seconds, 4), "notices": self.notices(facts)}


def _difference(before: dict[str, Any], now: dict[str, Any]) -> str:
    """The settings that were others before, in words."""
    changed = [name for name in before if before[name] != now.get(name)]
    if not changed:
        return f"it was made without {', '.join(name for name in now if name not in before)}"
    return "it was made with " + ", ".join(n if before[n] is True else f"{n} {before[n]}" for n in changed)


def _stream(task: Task) -> io.BytesIO | None:
    """A stream to read an image from; None if that is its file."""
    return None if task.data is None else io.BytesIO(task.data)


def _make_folder(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except FileExistsError as error:
        raise NotADirectoryError(errno.ENOTDIR, "is a file, and a folder is needed", str(error.filename)) from error


def _facts(facts: FileInfo) -> dict[str, Any]:
    record = {"width": facts.width, "height": facts.height, "mode": facts.mode, "bytes": facts.bytes}
    return record | {"bpp": per_pixel(facts.bytes, record), "quality": facts.quality, **_tiles(facts)}


def _tiles(facts: FileInfo) -> dict[str, int]:
    return {"tiles": facts.tiles, "lossless_tiles": facts.lossless_tiles}
