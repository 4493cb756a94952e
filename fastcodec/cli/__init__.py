"""The command line: `fastcodec compress | decompress | info | verify | integerize | eval | train`.

Each command is a function of its parsed arguments that returns the exit code: 0; 1 if any file failed; 2 for wrong
usage; 130 after Ctrl-C, 143 after SIGTERM, 141 if the reader of its output has gone. Errors are one line each;
FASTCODEC_DEBUG=1 adds the traceback. PyTorch is imported by the commands that need it, when they run.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib
import os
import re
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import TypeAlias

from .. import __version__
from ..arguments import integer, positive
from ..constants import DEFAULT_QUALITY, MAX_QUALITY, MIN_QUALITY
from ..container import DEFAULT_LIMITS
from ..errors import FastcodecError
from ..threads import wait_briefly
from .report import Terminated, explain, say, say_error
from .streams import STDIN

_Command: TypeAlias = Callable[[argparse.Namespace], int]


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code. Wrong usage raises SystemExit(2), as argparse does."""
    wait_briefly()
    argv = sys.argv[1:] if argv is None else list(argv)
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:  # whoever started us has closed it
            setattr(sys, name, open(os.devnull, "w"))  # noqa: SIM115 (open as long as the process)
    if hasattr(sys.stdout, "reconfigure"):
        sys.stdout.reconfigure(errors="surrogateescape")  # file names come out as the bytes that they are
    try:
        parser = build_parser(argv)
        arguments = parser.parse_args(argv)
        if arguments.command is None:
            parser.print_help(sys.stderr)
            say("no command given")
            return 2
        with _terminable():
            code = arguments.execute(arguments)
            sys.stdout.flush()
            return code
    except Terminated:
        return 128 + signal.SIGTERM
    except KeyboardInterrupt:
        say("interrupted")
        return 130
    except BrokenPipeError:
        # The reader of our output has gone (`| head`); leave nothing for Python to flush into the pipe at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 128 + signal.SIGPIPE
    except (FastcodecError, OSError, ModuleNotFoundError, MemoryError) as error:
        say_error(explain(error), error)
        return 1


def build_parser(argv: Sequence[str]) -> argparse.ArgumentParser:
    """The parser. `argv` tells which command's options are wanted where finding them out would import PyTorch."""
    parser = argparse.ArgumentParser(
        prog="fastcodec",
        description="A learned image codec: images to .fic files and back.",
        epilog="fastcodec COMMAND --help describes a command. Exit status: 0; 1 if a file failed; 2 for wrong usage; "
        "130 after Ctrl-C. FASTCODEC_DEBUG=1 shows where an error came from.",
    )
    parser.add_argument(
        "-V", "--version", action="version", version=f"fastcodec {__version__}", help="print it and exit"
    )
    parser.set_defaults(command=None)
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=False)

    batches = partial(_call, "cli.batches")

    def command(name: str, summary: str, execute: _Command, details: str = "") -> argparse.ArgumentParser:
        sub = commands.add_parser(
            name, help=summary, description=f"{summary[0].upper()}{summary[1:]}. {details}", allow_abbrev=False
        )
        sub.set_defaults(execute=execute, command=name)
        return sub

    _add_compress(command("compress", "compress images to .fic files", batches("compress"), _COMPRESS_DETAILS))
    _add_decompress(
        command("decompress", "decompress .fic files to images", batches("decompress"), _DECOMPRESS_DETAILS)
    )

    sub = command("info", "tell what .fic files hold", _call("cli.info"), "Reads the header only.")
    sub.add_argument("files", nargs="+", type=_input, metavar="FILE", help=".fic files, or - for standard input")
    sub.add_argument("--json", action="store_true", help="one JSON object a file")
    _add_limit(sub)

    details = "Decodes every tile's symbols and checks every coder state and checksum; writes nothing."
    sub = command("verify", "check that .fic files are sound", batches("verify"), details)
    _add_batch_arguments(sub, ".fic files, or folders of them", output=False)

    summary = "make a model whose files decode on every device"
    _add_integerize(command("integerize", summary, _call("cli.portable"), _INTEGERIZE_DETAILS))

    chosen = next((word for word in argv if not word.startswith("-")), None)
    for name, module, summary in (
        ("eval", "evaluate", "measure the codec on a folder of images"),
        ("train", "train", "train a model"),
    ):
        sub = command(name, summary, _call(module))
        if chosen == name:
            importlib.import_module(f"fastcodec.{module}").add_arguments(sub)
    return parser


def _add_compress(sub: argparse.ArgumentParser) -> None:
    _add_batch_arguments(sub, "image files, or folders of them")
    sizing = sub.add_mutually_exclusive_group()
    sizing.add_argument(
        "-q",
        "--quality",
        type=integer(MIN_QUALITY, MAX_QUALITY),
        metavar="Q",
        help=f"from {MIN_QUALITY} (smallest) to {MAX_QUALITY} (best); {DEFAULT_QUALITY} if not given",
    )
    sizing.add_argument("--lossless", action="store_true", help="bit-exact pixels, larger files")
    sizing.add_argument("--target-bytes", type=integer(1), metavar="N", help="best quality of at most N bytes a file")
    sizing.add_argument("--target-bpp", type=positive, metavar="X", help="best quality of at most X bits a pixel")
    sub.add_argument(
        "--preset",
        choices=("size", "latency"),
        default="size",
        help="smallest files, or up to 3 %% larger ones that decode with more parallel lanes (%(default)s)",
    )


def _add_decompress(sub: argparse.ArgumentParser) -> None:
    _add_batch_arguments(sub, ".fic files, or folders of them")
    sub.add_argument("--format", metavar="F", help="png, jpg, webp, tif, ppm ...; png if OUT's name does not say")
    sub.add_argument(
        "--precision",
        choices=("exact", "fast"),
        default="exact",
        help="exact: within one level everywhere; fast: bfloat16 where the processor has it, a little less faithful "
        "(%(default)s)",
    )
    sub.add_argument(
        "--background",
        type=_colour,
        metavar="COLOR",
        help="put pictures with alpha on this colour (a name, #rrggbb, rgb(r,g,b) ...), as jpg, bmp and ppm need it",
    )
    sub.add_argument("--region", type=_region, metavar="X,Y,W,H", help="only this rectangle of pixels")


def _add_integerize(sub: argparse.ArgumentParser) -> None:
    sub.add_argument("model", type=_path, metavar="MODEL", help="a checkpoint of CompressAI's, or of the trainer")
    sub.add_argument(
        "-o", "--out", type=_path, required=True, metavar="FILE", help="the model file to write, for --model"
    )
    sub.add_argument(
        "--images", type=_path, required=True, metavar="DIR", help="photographs to calibrate on, a handful"
    )
    sub.add_argument("--system", metavar="NAME", help="which system it is, where the checkpoint does not tell")
    _add_device(sub)


_COMPRESS_DETAILS = (
    "An image photo.jpg becomes OUT/photo.fic; where two would meet in one name (photo.jpg, photo.png), they become "
    "OUT/photo.jpg.fic and OUT/photo.png.fic. Folders are mirrored under OUT. A file .fastcodec.jsonl in each of them "
    "tells what its files were made from, so that an interrupted batch goes on when its command is repeated: what was "
    "made from this source with these settings is skipped, what was made from it before it or the settings changed is "
    "made anew, and any other file stays and is an error."
)
_DECOMPRESS_DETAILS = (
    "A file photo.fic becomes OUT/photo.png. Folders are mirrored under OUT. What is there already is dealt with as "
    "compress does."
)


_INTEGERIZE_DETAILS = (
    "Converts the entropy side of a floating-point model to integers, after training, and prints what that costs in "
    "bits on the photographs (docs/portable.md)."
)


def _add_batch_arguments(parser: argparse.ArgumentParser, what: str, output: bool = True) -> None:
    parser.add_argument("inputs", nargs="+", type=_input, metavar="INPUT", help=f"{what}; - is standard input")
    if output:
        parser.add_argument(
            "-o",
            "--out",
            type=_not_empty,
            required=True,
            metavar="OUT",
            help="a folder; for one input file, a file if the name has a suffix and no / at its end, or - for standard "
            "output, with all lines on standard error",
        )
        parser.add_argument("--overwrite", action="store_true", help="replace outputs, whatever they were made from")
    parser.add_argument("--recursive", action="store_true", help="look into nested folders too")
    parser.add_argument(
        "--jobs", type=integer(1), metavar="N", help="files at a time (default: one a core; 32 on a GPU)"
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object a file, and no progress")
    parser.add_argument(
        "--model",
        type=_path,
        metavar="FILE",
        help="another model: a checkpoint of CompressAI's, or what integerize or Codec.save wrote (default: swift)",
    )
    _add_device(parser)
    _add_limit(parser)


def _add_device(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--device",
        type=_device,
        default="auto",
        metavar="D",
        help="where to run: cpu, cuda, cuda:N, or auto, which is a GPU if there is one (%(default)s)",
    )


def _add_limit(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--max-pixels",
        type=integer(1),
        default=DEFAULT_LIMITS.max_pixels,
        metavar="N",
        help="refuse larger images before decoding them (%(default)s)",
    )


def _call(module: str, function: str = "main") -> _Command:
    """A command whose module is imported when it runs."""
    return lambda arguments: getattr(importlib.import_module(f"fastcodec.{module}"), function)(arguments)


# ---- types of arguments


def _not_empty(text: str) -> str:
    if not text:  # as an unset variable of the shell gives it; Path takes it for the current folder
        raise argparse.ArgumentTypeError("the name is empty")
    return text


def _path(text: str) -> Path:
    if text == "-":
        raise argparse.ArgumentTypeError("'-': files only, no standard input or output (./- is a file of that name)")
    return Path(_not_empty(text))


def _input(text: str) -> Path:
    return STDIN if text == "-" else Path(_not_empty(text))


def _device(text: str) -> str:
    if not re.fullmatch(r"auto|cpu|cuda(:\d+)?", text):
        raise argparse.ArgumentTypeError(f"{text!r} is not cpu, cuda, cuda:N or auto")
    return text


def _colour(text: str) -> tuple[int, int, int]:
    from PIL import ImageColor

    try:
        red, green, blue, *alpha = ImageColor.getrgb(text)
    except ValueError:
        raise argparse.ArgumentTypeError(
            f"{text!r} is not a colour: give a name (white), #rrggbb or rgb(r,g,b)"
        ) from None
    if alpha not in ([], [255]):
        raise argparse.ArgumentTypeError(f"{text!r} is not opaque, and a background is")
    return red, green, blue


def _region(text: str) -> tuple[int, int, int, int]:
    try:
        x, y, width, height = (int(part) for part in text.split(","))
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not X,Y,WIDTH,HEIGHT in pixels") from None
    if min(x, y) < 0 or min(width, height) < 1:
        raise argparse.ArgumentTypeError(f"{text!r}: the corner is at 0,0 or beyond, and the sides are 1 or more")
    return x, y, width, height


@contextlib.contextmanager
def _terminable() -> Iterator[None]:
    """SIGTERM ends a command as Ctrl-C does: with its files in order."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def terminate(*_: object) -> None:
        raise Terminated

    before = signal.signal(signal.SIGTERM, terminate)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
