"""`fastcodec eval DIR`: the codec on a folder of images, and BD-rates against other codecs (rate_distortion.py).

Everything is measured on real files: bits per pixel from the bytes written, PSNR and MS-SSIM from the pixels decoded
again. The means over the images form the curve that BD-rates are taken from, as in the published results.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, Any, NamedTuple

from .arguments import integer, integers
from .constants import MAX_QUALITY, MIN_QUALITY
from .errors import FastcodecError, ImageError
from .files import image_files
from .rate_distortion import (
    FIRST,
    REFERENCE_VARIABLE,
    Comparison,
    Mean,
    Reference,
    compare,
    find_reference,
    importance,
    is_kodak,
    plot,
    read_reference,
)

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Column, Table

    from .codec import Codec, Precision, Preset
    from .images import Picture

DEFAULT_QUALITIES = (1, 5, *range(10, 101, 10))


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of `fastcodec eval`."""
    parser.description = (
        "Encode and decode every image of a folder at several qualities, and report the bits per pixel of the real "
        "files, PSNR, MS-SSIM, times and, where reference curves are at hand, BD-rates."
    )
    parser.add_argument("folder", type=Path, metavar="DIR", help="a folder of images, or one image")
    parser.add_argument(
        "-q",
        "--quality",
        type=integers(MIN_QUALITY, MAX_QUALITY),
        default=DEFAULT_QUALITIES,
        metavar="Q,Q,...",
        help=f"qualities {MIN_QUALITY} to {MAX_QUALITY} (default: {','.join(map(str, DEFAULT_QUALITIES))})",
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write everything measured as JSON")
    parser.add_argument("--plot", type=Path, metavar="FILE", help="draw the curves (.png, .svg or .pdf; matplotlib)")
    parser.add_argument(
        "--reference",
        type=Path,
        metavar="FILE",
        help="JSON with the curves to compare with: reference curves, or what --json wrote for another version "
        f"(default: ${REFERENCE_VARIABLE}, else ../shared/reference/rd-kodak.json, if DIR holds the Kodak images)",
    )
    parser.add_argument("--precision", choices=("exact", "fast"), default="exact", help="of decoding (default: exact)")
    parser.add_argument("--preset", choices=("size", "latency"), default="size", help="of encoding (default: size)")
    parser.add_argument("--model", default="swift", metavar="NAME", help="(default: swift)")
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto", help="where (default: auto)")
    parser.add_argument(
        "--jobs", type=integer(1), default=1, metavar="N", help="images at a time; 1, the default, gives fair times"
    )
    parser.add_argument("--per-image", action="store_true", help="list every image, not the means alone")


# ---- measuring


class Coding(NamedTuple):
    """Settings of a measurement: the encoder's preset, the decoder's precision."""

    preset: Preset = "size"
    precision: Precision = "exact"


@dataclass(frozen=True)
class Measurement:
    """One image at one quality."""

    file: str
    width: int
    height: int
    quality: int
    bytes: int
    bpp: float
    estimated_bits: float
    psnr_rgb: float  # dB, over all colour samples; alpha is lossless and left out
    ms_ssim_rgb: float | None  # None under 161 pixels
    encode_seconds: float
    decode_seconds: float


def measure(codec: Codec, file: Path, picture: Picture, quality: int, coding: Coding) -> Measurement:
    """Encode and decode the picture of a file. Raises what the codec raises, and ImageError if sizes differ."""
    from .metrics import ms_ssim, psnr

    start = time.perf_counter()
    encoded = codec.encode(picture, quality, coding.preset)
    middle = time.perf_counter()
    decoded = codec.decode(encoded, out="picture", precision=coding.precision)
    end = time.perf_counter()
    height, width = picture.pixels.shape[:2]
    if decoded.pixels.shape != picture.pixels.shape:
        raise ImageError(f"{file}: {picture.pixels.shape} went in, but {decoded.pixels.shape} came out")
    return Measurement(
        file=file.name,
        width=width,
        height=height,
        quality=quality,
        bytes=len(encoded),
        bpp=8 * len(encoded) / (width * height),
        estimated_bits=encoded.estimated_bits,
        psnr_rgb=psnr(picture.pixels, decoded.pixels),
        ms_ssim_rgb=ms_ssim(picture.pixels, decoded.pixels),
        encode_seconds=middle - start,
        decode_seconds=end - middle,
    )


def means(measurements: Iterable[Measurement]) -> list[Mean]:
    """The curve: one point for each quality, lowest first."""
    by_quality: dict[int, list[Measurement]] = {}
    for item in measurements:
        by_quality.setdefault(item.quality, []).append(item)
    points = []
    for quality, items in sorted(by_quality.items()):
        similarities = [item.ms_ssim_rgb for item in items if item.ms_ssim_rgb is not None]
        points.append(
            Mean(
                quality=quality,
                images=len(items),
                bytes=sum(item.bytes for item in items),
                bpp=fmean(item.bpp for item in items),
                psnr_rgb=fmean(item.psnr_rgb for item in items),
                ms_ssim_rgb=fmean(similarities) if similarities else None,
                encode_seconds=fmean(item.encode_seconds for item in items),
                decode_seconds=fmean(item.decode_seconds for item in items),
                overhead=8 * sum(item.bytes for item in items) / sum(item.estimated_bits for item in items) - 1,
            )
        )
    return points


def evaluate(
    codec: Codec,
    files: Sequence[Path],
    qualities: Sequence[int],
    coding: Coding,
    jobs: int,
    report: Callable[[Path, Exception | None], None],
) -> list[Measurement]:
    """Measure every file at every quality. A file that fails is reported and left out, at all qualities.

    report: called for each file as it ends, with its error if it failed, from the threads that work.
    """

    def one(file: Path) -> list[Measurement]:
        from .images import read_picture

        try:
            picture = read_picture(file)
            measured = [measure(codec, file, picture, quality, coding) for quality in qualities]
        except Exception as error:  # one bad file must not end a long run
            report(file, error)
            return []
        report(file, None)
        return measured

    if jobs == 1:
        return [item for file in files for item in one(file)]
    with ThreadPoolExecutor(jobs) as pool:
        return [item for measured in pool.map(one, files) for item in measured]


# ---- showing


def _table(title: str, *columns: str | Column) -> Table:
    """A table of columns of numbers, which stand at the right, and others."""
    from rich import box, table

    headers = [table.Column(c, justify="right", no_wrap=True) if isinstance(c, str) else c for c in columns]
    return table.Table(*headers, title=title, title_justify="left", header_style="bold", box=box.ROUNDED)


def _show(console: Console, points: Sequence[Mean], measurements: Sequence[Measurement], per_image: bool) -> None:
    from rich.table import Column

    def row(item: Mean | Measurement) -> list[str]:
        return [
            str(item.quality),
            f"{item.bytes:,}",
            f"{item.bpp:.4f}",
            f"{item.psnr_rgb:.2f}",
            "–" if item.ms_ssim_rgb is None else f"{item.ms_ssim_rgb:.4f}",
            f"{1000 * item.encode_seconds:.0f}",
            f"{1000 * item.decode_seconds:.0f}",
        ]

    names = ("q", "bytes", "bpp", "PSNR", "MS-SSIM", "enc. ms", "dec. ms")
    if per_image:
        table = _table("Every image", Column("image", min_width=12, overflow="fold"), *names)
        for item in sorted(measurements, key=lambda m: (m.file, m.quality)):
            table.add_row(item.file, *row(item))
        console.print(table)
    images = max(p.images for p in points)
    title = f"{images} images: bytes in all, else means" if images > 1 else "One image"
    table = _table(title, *names, "overhead")
    for point in points:
        table.add_row(*row(point), f"{100 * point.overhead:.2f} %")
    console.print(table)
    console.print("overhead: of the real files over the entropy model's estimate", style="dim", soft_wrap=True)


def _show_comparisons(console: Console, comparisons: Sequence[Comparison]) -> None:
    from rich.table import Column

    by_name: dict[str, dict[str, Comparison]] = {}
    for item in comparisons:
        by_name.setdefault(item.reference, {})[item.metric] = item
    title = "BD-rate (below 0: fewer bits than the reference at equal quality)"
    table = _table(title, Column("against", no_wrap=True), "PSNR", "over dB", "coverage", "MS-SSIM")
    for name, metrics in by_name.items():
        by_psnr, by_similarity = metrics.get("psnr_rgb"), metrics.get("ms_ssim_rgb")
        table.add_row(
            name,
            _percent(by_psnr),
            f"{by_psnr.low:.1f}–{by_psnr.high:.1f}" if by_psnr else "–",
            f"{100 * by_psnr.coverage:.0f} %" if by_psnr else "–",
            _percent(by_similarity),
            end_section=importance(name) == len(FIRST) - 1,
        )
    console.print(table)


def _percent(item: Comparison | None) -> str:
    if item is None:
        return "–"
    return f"[{'green' if item.percent < 0 else 'red'}]{item.percent:+.1f} %[/]"


# ---- the command


def main(args: argparse.Namespace) -> int:
    """Run `fastcodec eval`. Returns 0, 1 if an image failed or none was there, 2 if the request makes no sense."""
    from rich.console import Console

    errors = Console(stderr=True)
    try:
        path = args.reference or find_reference()
        reference = read_reference(path) if path else None
        if args.plot:
            _check_plot(args.plot)
    except ValueError as error:
        _complain(errors, str(error))
        return 2
    try:
        files = image_files(args.folder)
        if not files:
            raise ImageError(f"{args.folder}: no image in this folder")
        return _run(args, files, reference, Console(), errors)
    except (FastcodecError, OSError) as error:
        _complain(errors, str(error))
        return 1


def _complain(errors: Console, message: str) -> None:
    errors.print(f"fastcodec eval: {message}", style="red", markup=False, highlight=False, soft_wrap=True)


def _check_plot(path: Path) -> None:
    if path.suffix.lower() not in (".png", ".svg", ".pdf"):
        raise ValueError(f"{path}: plots are written as .png, .svg or .pdf")
    try:
        import matplotlib  # noqa: F401
    except ImportError:
        raise ValueError("--plot needs matplotlib: pip install 'fastcodec[plots]'") from None


def _run(
    args: argparse.Namespace, files: list[Path], reference: Reference | None, console: Console, errors: Console
) -> int:
    from .codec import Codec

    codec = Codec.load(args.model, device=args.device)
    measurements, failures = _measured(args, codec, files, errors)
    points = means(measurements)
    curves = reference.curves if reference else {}
    if points and reference and reference.dataset.startswith("Kodak") and not is_kodak({m.file for m in measurements}):
        if args.reference is None:
            curves = {}
        else:
            warning = "These are not the 24 Kodak images of the reference: the BD-rates compare unlike things."
            console.print(warning, style="yellow", soft_wrap=True)
    comparisons = compare(points, curves)
    if points:
        _show(console, points, measurements, args.per_image)
    if comparisons:
        _show_comparisons(console, comparisons)
    name, dataset = f"fastcodec {args.model}", _dataset(args.folder, measurements)
    if args.json:
        result = {
            "dataset": dataset,
            **_circumstances(args, codec),
            "curves": {name: _curve(points)},
            "means": [asdict(p) for p in points],
            "bd_rates": [asdict(c) for c in comparisons],
            "reference": reference.path.name if reference and comparisons else None,
            "images": [asdict(m) for m in measurements],
            "failures": failures,
        }
        args.json.parent.mkdir(parents=True, exist_ok=True)
        args.json.write_text(json.dumps(_finite(result), indent=1) + "\n", encoding="utf-8")
        console.print(f"wrote {args.json}", highlight=False, soft_wrap=True)
    if args.plot and points:
        plot(args.plot, name, points, curves, dataset)
        console.print(f"wrote {args.plot}", highlight=False, soft_wrap=True)
    if failures:
        _complain(errors, f"{len(failures)} of {len(files)} images failed: {', '.join(failures)}")
    return 1 if failures else 0


def _measured(
    args: argparse.Namespace, codec: Codec, files: list[Path], errors: Console
) -> tuple[list[Measurement], dict[str, str]]:
    """The measurements, and the failures by the files' names: under a progress bar, with the cores shared by jobs."""
    import torch
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    failures: dict[str, str] = {}
    coding = Coding(args.preset, args.precision)
    threads = torch.get_num_threads()
    torch.set_num_threads(max(1, threads // args.jobs))
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    try:
        _warm_up(codec, files, coding.precision)
        with Progress(*columns, console=errors, transient=True) as progress:
            task = progress.add_task("evaluating", total=len(files))

            def report(file: Path, error: Exception | None) -> None:
                if error is not None:
                    text = str(error) if isinstance(error, FastcodecError) else f"{type(error).__name__}: {error}"
                    failures[file.name] = text if str(file) in text else f"{file}: {text}"
                    _complain(errors, failures[file.name])
                progress.advance(task)

            return evaluate(codec, files, sorted(set(args.quality)), coding, args.jobs, report), failures
    finally:
        torch.set_num_threads(threads)


def _circumstances(args: argparse.Namespace, codec: Codec) -> dict[str, Any]:
    """The version, the model, the settings and the machine, for JSON."""
    from . import __version__, machine

    about: dict[str, str] = getattr(codec.model, "about", {})  # which a released model has
    steps = {key: value for key, value in about.items() if key != "config"}
    return {
        "version": __version__,
        "model": {"name": args.model, "identity": codec.identity.hex(), **steps},
        "precision": args.precision,
        "preset": args.preset,
        "jobs": args.jobs,
        "machine": machine.describe(),
    }


def _curve(points: Sequence[Mean]) -> dict[str, Any]:
    curve: dict[str, Any] = {name: [getattr(p, name) for p in points] for name in ("quality", "bpp", "psnr_rgb")}
    similarities = [p.ms_ssim_rgb for p in points]
    return curve | ({"ms_ssim_rgb": similarities} if points and None not in similarities else {})


def _warm_up(codec: Codec, files: Sequence[Path], precision: Precision) -> None:
    """Run the codec once, untimed, so that the first image does not pay for loading and for tables."""
    from .images import Picture, read_picture

    for file in files:
        try:
            picture = read_picture(file)
            small = Picture(picture.pixels[:256, :256].copy())
            codec.decode(codec.encode(small), precision=precision)
            return
        except Exception:  # reported when the file's turn comes
            continue


def _dataset(folder: Path, measurements: Sequence[Measurement]) -> str:
    files = {m.file for m in measurements}
    if is_kodak(files):
        return "Kodak, 24 images"
    return f"{folder.name}, {len(files)} image{'s' if len(files) != 1 else ''}"


def _finite(value: Any) -> Any:
    """The same for JSON, which has no infinity: the PSNR of an image that came back unchanged becomes null."""
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return value
