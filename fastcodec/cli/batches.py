"""The commands that run over many files: compress, decompress, verify."""

from __future__ import annotations

import argparse
import errno
import os
import signal
import sys
import warnings
from collections.abc import Hashable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .. import batch, container
from ..batch import StoppedError, Task
from ..constants import MAX_QUALITY
from ..container import DEFAULT_LIMITS, FileInfo, Limits, info
from ..errors import (
    CorruptStreamError,
    FastcodecError,
    ImageError,
    ModelMismatchError,
    NotAFicFileError,
    NotPortableWarning,
)
from ..images import (
    IMAGE_SUFFIXES,
    Picture,
    discard_unfinished,
    output_format,
    read_picture,
    read_size,
    replacing,
    write_picture,
)
from .files import read_fic
from .report import Report, Terminated, explain, per_pixel, say

if TYPE_CHECKING:
    from ..codec import Codec, Encoded
    from ..models import zoo

FIC_SUFFIXES = frozenset({".fic"})
QUALITY = 60
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


def _run(arguments: argparse.Namespace, steps: type[_Steps], suffix: str, wanted: frozenset[str], verb: str) -> int:
    out, out_is_file = _output(arguments)
    tasks, failures = batch.plan(
        arguments.inputs, out, suffix, recursive=arguments.recursive, wanted=wanted, out_is_file=out_is_file
    )
    codec = _load_codec(arguments) if tasks else None
    if codec is not None and arguments.command == "compress":
        _settle_quality(arguments, codec)
    total_bytes = sum(task.source_bytes for task in tasks)
    report = Report(verb, len(tasks) + len(failures), total_bytes, arguments.json)
    stopped: StoppedError | None = None
    with report, warnings.catch_warnings():
        # Pillow warns of oddities in files that it reads all the same, in lines that do not name the file.
        warnings.filterwarnings("ignore", module="PIL")
        warnings.filterwarnings("ignore", category=NotPortableWarning)  # a notice of the file that it is about
        for failure in failures:
            report(failure)
        if tasks:
            on_cpu = codec.device.type == "cpu" and arguments.device != "sim"
            # A GPU wants files read ahead; what it codes together, and what waits for it, are as many again.
            on_gpu, together = (2 * TOGETHER, TOGETHER) if arguments.model is None else (FLOAT_MODEL_JOBS, 1)
            jobs = arguments.jobs or (batch.available_cores() if on_cpu else on_gpu)
            together = 1 if on_cpu else together
            try:
                batch.run(tasks, steps(arguments, codec), jobs=min(jobs, len(tasks)), report=report, together=together)
            except StoppedError as error:
                stopped = error
    report.summary()
    if stopped is not None:
        return _stop(stopped)
    return int(report.count["failed"] > 0)


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


def _load_codec(arguments: argparse.Namespace) -> Codec | zoo.Codec:
    if arguments.model is not None:
        from ..models import zoo

        return zoo.Codec.load(arguments.model, device=arguments.device, limits=_limits(arguments))
    from ..codec import Codec

    return Codec.load("swift", device=arguments.device, limits=_limits(arguments))


def _settle_quality(arguments: argparse.Namespace, codec: Codec | zoo.Codec) -> None:
    """The quality where none was asked for; wrong usage where one was, or a size, and the model has one rate."""
    if arguments.lossless and arguments.model is not None:
        raise _usage(f"--model {arguments.model}: only swift's files have lossless tiles")
    if arguments.model is None:
        arguments.quality = MAX_QUALITY if arguments.lossless else arguments.quality or QUALITY
    elif codec.model.variable_rate:
        arguments.quality = arguments.quality or codec.quality
    elif arguments.quality or arguments.target_bytes or arguments.target_bpp:
        raise _usage(f"--model {arguments.model}: it has one rate, so that no quality or size can be asked of it")
    else:
        arguments.quality = codec.quality


def _limits(arguments: argparse.Namespace) -> Limits:
    return Limits(arguments.max_pixels, DEFAULT_LIMITS.max_metadata)


def _output(arguments: argparse.Namespace) -> tuple[Path | None, bool]:
    """Where the output goes, and whether that is a file."""
    text = getattr(arguments, "out", None)
    if text is None:
        return None, False
    out = Path(text)
    one_file = len(arguments.inputs) == 1 and not arguments.inputs[0].is_dir()
    is_file = one_file and bool(out.suffix) and not out.is_dir() and not text.endswith(os.sep)
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


class _Steps:
    """What the three batches share."""

    def __init__(self, arguments: argparse.Namespace, codec: Codec | zoo.Codec):
        self.arguments, self.codec, self.limits = arguments, codec, _limits(arguments)
        self.room = 1 if arguments.model is None else FLOAT_MODEL_PIXELS

    def existing(self, task: Task) -> dict[str, Any] | None:
        return None

    def pixels(self, task: Task) -> int:
        facts = info(read_fic(task.source), self.limits)
        return facts.width * facts.height * self.room

    def read(self, task: Task) -> bytes:
        return read_fic(task.source)

    def kind(self, item: Any) -> Hashable | None:
        return None

    def check_model(self, item: bytes) -> None:
        """ModelMismatchError, saying what to do, for a file that no released model reads."""
        if self.arguments.model is None and container.read(item, self.limits).header.float_entropy:
            raise ModelMismatchError("written with a model of its own: give its file with --model")

    def notices(self, facts: FileInfo) -> list[str]:
        """What the user should know of a file that did decode."""
        if facts.portable or facts.written_on == self.codec.machine:
            return []
        return [f"written on {facts.written_on}; not every such file decodes here, on {self.codec.machine}"]


def _why_skipped(task: Task, other: str = "") -> str:
    """other: in what the output differs from what was asked for."""
    if task.source.stat().st_mtime > task.target.stat().st_mtime:
        other += ", but its source is newer"
    return f"exists already{other}; see --overwrite" if other else "exists already"


class _Compress(_Steps):
    def existing(self, task: Task) -> dict[str, Any] | None:
        if self.arguments.overwrite or not task.target.exists():
            return None
        try:
            facts = info(read_fic(task.target), self.limits)
        except FastcodecError as error:
            if isinstance(error, CorruptStreamError) and not isinstance(error, NotAFicFileError):
                return None  # half a file of an earlier disaster
            if task.target.is_file() and task.target.stat().st_size == 0:
                return None
            raise ImageError(f"{task.target} exists and is not ours to replace ({error}); see --overwrite") from error
        size = read_size(task.source, max_pixels=self.arguments.max_pixels)
        if sorted(size) != sorted((facts.width, facts.height)):  # sorted: the image may have been turned
            raise ImageError(
                f"{task.target} exists and holds another image, of {facts.width} x {facts.height}; see --overwrite"
            )
        sized = self.arguments.target_bytes or self.arguments.target_bpp
        if self.arguments.lossless:
            differs = facts.lossless_tiles < facts.tiles
        else:
            differs = sized or facts.quality != self.arguments.quality
        other = f" at quality {facts.quality}" if differs else ""
        return {**_facts(facts), "why": _why_skipped(task, other)}

    def pixels(self, task: Task) -> int:
        width, height = read_size(task.source, max_pixels=self.arguments.max_pixels)
        return width * height * self.room

    def read(self, task: Task) -> Picture:
        return read_picture(task.source, max_pixels=self.arguments.max_pixels)

    def code(self, item: Picture) -> Encoded:
        arguments, target = self.arguments, self.arguments.target_bytes
        if arguments.target_bpp is not None:
            target = int(arguments.target_bpp * item.width * item.height / 8)
        if target is not None:
            return self.codec.encode_to_size(item, target, preset=arguments.preset)
        if arguments.lossless:
            return self.codec.encode_picture(item, lossless=True)
        return self.codec.encode_picture(item, quality=arguments.quality, preset=arguments.preset)

    def kind(self, item: Picture) -> Hashable | None:
        alone = self.arguments.target_bytes or self.arguments.target_bpp or self.arguments.lossless
        return None if alone else item.pixels.shape

    def code_many(self, items: Sequence[Picture]) -> list[Encoded]:
        return self.codec.encode_pictures(items, self.arguments.quality, self.arguments.preset)

    def write(self, task: Task, item: Picture, result: Encoded, seconds: float) -> dict[str, Any]:
        _make_folder(task.target.parent)
        with replacing(task.target) as stream:
            stream.write(result.data)
        record = {"width": item.width, "height": item.height, "mode": item.mode, "bytes": len(result.data)}
        return record | {
            "bpp": per_pixel(len(result.data), record),
            "estimated_bits": round(result.estimated_bits, 1),
            "quality": result.quality,
            **_tiles(info(result.data, self.limits)),
            "seconds": round(seconds, 4),
            "input_bytes": task.source_bytes,
            "output_bytes": len(result.data),
            "notices": list(item.notices),
        }


class _Decompress(_Steps):
    def existing(self, task: Task) -> dict[str, Any] | None:
        if self.arguments.overwrite or not task.target.exists():
            return None
        if task.target.is_dir():
            raise IsADirectoryError(errno.EISDIR, "is a directory", str(task.target))
        return {"why": _why_skipped(task)}

    def code(self, item: bytes) -> Picture:
        self.check_model(item)
        region, precision = self.arguments.region, self.arguments.precision
        return self.codec.decode_picture(item, region=region, precision=precision)

    def kind(self, item: bytes) -> Hashable | None:
        facts = info(item, self.limits)
        return None if self.arguments.region else (facts.width, facts.height, facts.model)

    def code_many(self, items: Sequence[bytes]) -> list[Picture]:
        return self.codec.decode_pictures(items, precision=self.arguments.precision)

    def write(self, task: Task, item: bytes, result: Picture, seconds: float) -> dict[str, Any]:
        _make_folder(task.target.parent)
        lost = write_picture(task.target, result)
        facts = info(item, self.limits)
        record = _facts(facts) | {"width": result.width, "height": result.height, "seconds": round(seconds, 4)}
        return record | {"output_bytes": task.target.stat().st_size, "notices": [*self.notices(facts), *lost]}


class _Verify(_Steps):
    def code(self, item: bytes) -> None:
        self.check_model(item)
        self.codec.verify(item)

    def write(self, task: Task, item: bytes, result: None, seconds: float) -> dict[str, Any]:
        facts = info(item, self.limits)
        return _facts(facts) | {"seconds": round(seconds, 4), "notices": self.notices(facts)}


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
