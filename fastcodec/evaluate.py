"""`fastcodec eval DIR`: what the codec gives on a folder of images, and how that compares with other codecs.

Everything is measured on real files: bits per pixel from the bytes written, PSNR and MS-SSIM from the pixels decoded
again. The means over the images form the curve that BD-rates are taken from, as in the published results.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, Any

from .container import MAX_QUALITY, MIN_QUALITY
from .errors import FastcodecError, ImageError

if TYPE_CHECKING:
    from rich.console import Console

    from .codec import Codec

DEFAULT_QUALITIES = (1, 5, *range(10, 101, 10))
REFERENCE_VARIABLE = "FASTCODEC_REFERENCE"
IMAGE_SUFFIXES = frozenset(
    f".{kind}"
    for kind in ("avif", "bmp", "gif", "j2k", "jp2", "jpeg", "jpg", "pgm", "png", "ppm", "tga", "tif", "tiff", "webp")
)
# Which of the reference curves a reader looks for first, and which the plot shows: (beginning of the name, colour).
_FIRST = ("VVC", "BPG", "AV1", "JPEG", "jpeg (Pillow", "WebP", "webp (Pillow")
_PLOTTED = (
    ("VVC", "#1b1b1b"),
    ("AV1", "#00798c"),
    ("mbt2018-mean", "#8d6a9f"),
    ("jxl", "#c28f2c"),
    ("WebP", "#5b8e55"),
    ("JPEG2000", "#9a9a9a"),
    ("JPEG", "#6f6f6f"),
)
_OURS = "#d1495b"


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
        type=_qualities,
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
        "--jobs", type=_positive, default=1, metavar="N", help="images at a time; 1, the default, gives fair times"
    )
    parser.add_argument("--per-image", action="store_true", help="list every image, not the means alone")


def _qualities(text: str) -> tuple[int, ...]:
    try:
        values = sorted({int(part) for part in text.split(",")})
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not a list of integers such as 10,30,50") from None
    if values[0] < MIN_QUALITY or values[-1] > MAX_QUALITY:
        raise argparse.ArgumentTypeError(f"qualities lie between {MIN_QUALITY} and {MAX_QUALITY}")
    return tuple(values)


def _positive(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number from 1")
    return int(text)


# ---- measuring


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


@dataclass(frozen=True)
class Mean:
    """A point of the curve: means over the images at one quality, each image counting alike."""

    quality: int
    images: int
    bytes: int  # in all
    bpp: float
    psnr_rgb: float
    ms_ssim_rgb: float | None
    encode_seconds: float
    decode_seconds: float
    overhead: float  # of all real bits over all estimated bits: 0.004 is 0.4 %


def measure(codec: Codec, path: Path, quality: int, *, precision: str = "exact", preset: str = "size") -> Measurement:
    """Encode and decode one image file. Raises what the codec and the reader raise, and ImageError if sizes differ."""
    from .images import read_picture

    return _measure(codec, path, read_picture(path), quality, precision, preset)


def _measure(codec: Codec, path: Path, picture: Any, quality: int, precision: str, preset: str) -> Measurement:
    from .metrics import ms_ssim, psnr

    start = time.perf_counter()
    encoded = codec.encode(picture, quality, preset)
    middle = time.perf_counter()
    decoded = codec.decode(encoded, out="picture", precision=precision)
    end = time.perf_counter()
    height, width = picture.pixels.shape[:2]
    if decoded.pixels.shape != picture.pixels.shape:
        raise ImageError(f"{path}: {picture.pixels.shape} went in, but {decoded.pixels.shape} came out")
    return Measurement(
        file=path.name,
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


def find_images(folder: Path) -> list[Path]:
    """The images of a folder by suffix, sorted, hidden ones left out; or the one image named."""
    if not folder.is_dir():
        return [folder]
    return sorted(p for p in folder.iterdir() if p.suffix.lower() in IMAGE_SUFFIXES and not p.name.startswith("."))


def evaluate(
    codec: Codec,
    files: Sequence[Path],
    qualities: Sequence[int],
    *,
    precision: str = "exact",
    preset: str = "size",
    jobs: int = 1,
    report: Callable[[Path, Exception | None], None] = lambda file, error: None,
) -> list[Measurement]:
    """Measure every file at every quality. A file that fails is reported and left out, at all qualities.

    report: called for each file as it ends, with its error if it failed, from the threads that work.
    """

    def one(file: Path) -> list[Measurement]:
        from .images import read_picture

        try:
            picture = read_picture(file)
            measured = [_measure(codec, file, picture, q, precision, preset) for q in qualities]
        except Exception as error:  # one bad file must not end a long run
            report(file, error)
            return []
        report(file, None)
        return measured

    if jobs == 1:
        return [item for file in files for item in one(file)]
    with ThreadPoolExecutor(jobs) as pool:
        return [item for measured in pool.map(one, files) for item in measured]


# ---- reference curves and BD-rates


@dataclass(frozen=True)
class Comparison:
    """The BD-rate of our curve against a reference curve."""

    reference: str
    metric: str  # psnr_rgb or ms_ssim_rgb
    percent: float  # below 0: we need fewer bits
    low: float  # the range compared, in dB
    high: float
    coverage: float  # the part of our curve that it speaks for


def find_reference() -> Path | None:
    """The reference curves that this installation finds by itself, or None."""
    named = os.environ.get(REFERENCE_VARIABLE)
    if named:
        return Path(named)
    beside = Path(__file__).resolve().parents[2] / "shared" / "reference" / "rd-kodak.json"
    return beside if beside.is_file() else None


def read_reference(path: Path) -> dict[str, Any]:
    """A file of curves: {"dataset": text, "curves": {name: {"bpp": [...], "psnr_rgb": [...], "ms_ssim_rgb": [...]}}}.

    Raises ValueError, naming the file, if it is anything else.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        for curve in content["curves"].values():
            rates = curve["bpp"]
            if any(len(curve[metric]) != len(rates) for metric in ("psnr_rgb", "ms_ssim_rgb") if metric in curve):
                raise ValueError("a curve has columns of different length")
    except OSError as error:
        raise ValueError(f"{path}: {error.strerror or error}") from error
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{path}: not a file of rate-distortion curves ({type(error).__name__}: {error})") from error
    return content


def is_kodak(files: Iterable[str]) -> bool:
    """Whether the files are the 24 Kodak images, no more and no fewer."""
    return sorted(Path(name).stem for name in files) == [f"kodim{i:02d}" for i in range(1, 25)]


def compare(points: Sequence[Mean], curves: dict[str, dict[str, list[float]]]) -> list[Comparison]:
    """BD-rates against every curve that overlaps ours, by PSNR and by MS-SSIM; those that matter most come first."""
    from .metrics import bd_rate, ms_ssim_db

    def in_db(metric: str, values: Iterable[float | None]) -> list[float]:
        known = [math.nan if v is None else v for v in values]
        return [ms_ssim_db(v) for v in known] if metric == "ms_ssim_rgb" else known

    comparisons = []
    for metric in ("psnr_rgb", "ms_ssim_rgb"):
        ours = [(p.bpp, getattr(p, metric)) for p in points if getattr(p, metric) is not None]
        for name in sorted(curves, key=_importance):
            theirs = curves[name]
            if metric not in theirs or not ours:
                continue
            result = bd_rate(
                theirs["bpp"], in_db(metric, theirs[metric]), [r for r, _ in ours], in_db(metric, [v for _, v in ours])
            )
            if result is not None:
                comparisons.append(Comparison(name, metric, **asdict(result)))
    return comparisons


def _importance(name: str) -> int:
    """Sorts the curves of `_FIRST` first; the others keep their order."""
    return next((i for i, start in enumerate(_FIRST) if _is(name, start)), len(_FIRST))


def _is(name: str, start: str) -> bool:
    """Whether a curve is the one called `start`: JPEG is not JPEG2000."""
    return name.startswith(start) and not name[len(start) :][:1].isdigit()


# ---- showing


def _show(console: Console, points: Sequence[Mean], measurements: Sequence[Measurement], per_image: bool) -> None:
    from rich.box import ROUNDED
    from rich.table import Table

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

    def add_columns(table: Table, *names: str) -> None:
        for name in ("q", "bytes", "bpp", "PSNR", "MS-SSIM", "enc. ms", "dec. ms", *names):
            table.add_column(name, justify="right", no_wrap=True)

    if per_image:
        table = Table(title="Every image", title_justify="left", header_style="bold", box=ROUNDED)
        table.add_column("image", min_width=12, overflow="fold")
        add_columns(table)
        for item in sorted(measurements, key=lambda m: (m.file, m.quality)):
            table.add_row(item.file, *row(item))
        console.print(table)
    images = max(p.images for p in points)
    title = f"{images} images: bytes in all, else means" if images > 1 else "One image"
    table = Table(title=title, title_justify="left", header_style="bold", box=ROUNDED)
    add_columns(table, "overhead")
    for point in points:
        table.add_row(*row(point), f"{100 * point.overhead:.2f} %")
    console.print(table)
    console.print("overhead: of the real files over the entropy model's estimate", style="dim", soft_wrap=True)


def _show_comparisons(console: Console, comparisons: Sequence[Comparison]) -> None:
    from rich.box import ROUNDED
    from rich.table import Table

    by_name: dict[str, dict[str, Comparison]] = {}
    for item in comparisons:
        by_name.setdefault(item.reference, {})[item.metric] = item
    title = "BD-rate (below 0: fewer bits than the reference at equal quality)"
    table = Table(title=title, title_justify="left", header_style="bold", box=ROUNDED)
    table.add_column("against", no_wrap=True)
    for name in ("PSNR", "over dB", "coverage", "MS-SSIM"):
        table.add_column(name, justify="right", no_wrap=True)
    for name, metrics in by_name.items():
        by_psnr, by_similarity = metrics.get("psnr_rgb"), metrics.get("ms_ssim_rgb")
        table.add_row(
            name,
            _percent(by_psnr),
            f"{by_psnr.low:.1f}–{by_psnr.high:.1f}" if by_psnr else "–",
            f"{100 * by_psnr.coverage:.0f} %" if by_psnr else "–",
            _percent(by_similarity),
            end_section=_importance(name) == len(_FIRST) - 1,
        )
    console.print(table)


def _percent(item: Comparison | None) -> str:
    if item is None:
        return "–"
    return f"[{'green' if item.percent < 0 else 'red'}]{item.percent:+.1f} %[/]"


def plot(path: Path, name: str, points: Sequence[Mean], curves: dict[str, dict[str, list[float]]], title: str) -> None:
    """Draw our rate-distortion curves among a readable few of the references'. Needs matplotlib."""
    import matplotlib as mpl
    from matplotlib.figure import Figure

    from .metrics import ms_ssim_db

    panels: list[tuple[str, str, Callable[[float], float]]] = [("psnr_rgb", "PSNR (dB, RGB)", float)]
    if any(p.ms_ssim_rgb is not None for p in points):
        panels.append(("ms_ssim_rgb", "MS-SSIM (dB, RGB)", ms_ssim_db))
    chosen = []
    for start, colour in _PLOTTED:
        known = [n for n in curves if _is(n, start)]
        if known:
            chosen.append((known[0], colour))
    if not chosen:  # the curves of another run, say
        palette = [colour for _, colour in _PLOTTED]
        chosen = list(zip(curves, palette, strict=False))
    style = {
        "font.family": "sans-serif",
        "font.size": 10,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.edgecolor": "#888888",
        "svg.fonttype": "none",
    }
    with mpl.rc_context(style):
        figure = Figure(figsize=(6.4 * len(panels), 5.2), layout="constrained")
        for i, (metric, label, scale) in enumerate(panels):
            axes = figure.add_subplot(1, len(panels), i + 1)
            ours = [(p.bpp, scale(getattr(p, metric))) for p in points if getattr(p, metric) is not None]
            ours = [(x, y) for x, y in ours if math.isfinite(y)]
            if not ours:
                continue
            right = 1.08 * max(x for x, _ in ours)
            lowest, highest = min(y for _, y in ours), max(y for _, y in ours)
            for reference, colour in chosen:
                if metric in curves[reference]:
                    pairs = sorted(zip(curves[reference]["bpp"], map(scale, curves[reference][metric]), strict=True))
                    x, y = zip(*pairs, strict=True)
                    axes.plot(x, y, color=colour, linewidth=1.3, marker="o", markersize=2.6, label=reference)
                    highest = max([highest, *(v for u, v in pairs if u <= right)])
                    lowest = min([lowest, *(v for u, v in pairs if u <= right)])
            x, y = zip(*ours, strict=True)
            axes.plot(x, y, color=_OURS, linewidth=2.6, marker="o", markersize=5, label=name, zorder=10)
            margin = 0.03 * (highest - lowest) or 1
            axes.set(xlim=(0, right), ylim=(lowest - margin, highest + margin), xlabel="bits per pixel", ylabel=label)
            axes.grid(color="#dddddd", linewidth=0.6)
            axes.set_axisbelow(True)
        handles, labels = figure.axes[0].get_legend_handles_labels()
        # Ours was drawn last, to lie on top; it is named first.
        order = [len(labels) - 1, *range(len(labels) - 1)]
        figure.axes[0].legend([handles[i] for i in order], [labels[i] for i in order], loc="lower right", frameon=False)
        figure.suptitle(f"{name} on {title}", fontweight="bold")
        path.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(path, dpi=160)


# ---- the command


def main(args: argparse.Namespace) -> int:
    """Run `fastcodec eval`. Returns 0, 1 if an image failed or none was there, 2 if the request makes no sense."""
    from rich.console import Console

    console, errors = Console(), Console(stderr=True)

    def complain(message: str) -> None:
        errors.print(f"fastcodec eval: {message}", style="red", markup=False, highlight=False, soft_wrap=True)

    try:
        reference_path = args.reference or find_reference()
        reference = read_reference(reference_path) if reference_path else None
        if args.plot:
            _check_plot(args.plot)
    except ValueError as error:
        complain(str(error))
        return 2
    try:
        files = find_images(args.folder)
        if not files:
            raise ImageError(f"{args.folder}: no image in this folder")
        return _run(args, files, reference, reference_path, console, errors, complain)
    except (FastcodecError, OSError) as error:
        complain(str(error))
        return 1


def _check_plot(path: Path) -> None:
    if path.suffix.lower() not in (".png", ".svg", ".pdf"):
        raise ValueError(f"{path}: plots are written as .png, .svg or .pdf")
    try:
        import matplotlib  # noqa: F401
    except ImportError:
        raise ValueError("--plot needs matplotlib: pip install 'fastcodec[plots]'") from None


def _run(
    args: argparse.Namespace,
    files: list[Path],
    reference: dict[str, Any] | None,
    reference_path: Path | None,
    console: Console,
    errors: Console,
    complain: Callable[[str], None],
) -> int:
    import torch
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    from . import __version__
    from . import machine as _machine
    from .codec import Codec

    codec = Codec.load(args.model, device=args.device)
    failures: dict[str, str] = {}
    threads = torch.get_num_threads()
    torch.set_num_threads(max(1, threads // args.jobs))
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    try:
        _warm_up(codec, files, args.precision)
        with Progress(*columns, console=errors, transient=True) as progress:
            task = progress.add_task("evaluating", total=len(files))

            def report(file: Path, error: Exception | None) -> None:
                if error is not None:
                    text = str(error) if isinstance(error, FastcodecError) else f"{type(error).__name__}: {error}"
                    failures[file.name] = text if str(file) in text else f"{file}: {text}"
                    complain(failures[file.name])
                progress.advance(task)

            measurements = evaluate(
                codec,
                files,
                args.quality,
                precision=args.precision,
                preset=args.preset,
                jobs=args.jobs,
                report=report,
            )
    finally:
        torch.set_num_threads(threads)
    points = means(measurements)
    name = f"fastcodec {args.model}"
    curves: dict[str, Any] = reference["curves"] if reference else {}
    of_kodak = reference is not None and str(reference.get("dataset", "")).startswith("Kodak")
    if points and of_kodak and not is_kodak({m.file for m in measurements}):
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
    if args.json:
        about = getattr(getattr(codec, "model", None), "about", {})
        steps = {key: value for key, value in about.items() if key != "config"}
        result = {
            "dataset": _dataset(args.folder, measurements),
            "version": __version__,
            "model": {"name": args.model, "identity": _identity(codec), **steps},
            "precision": args.precision,
            "preset": args.preset,
            "jobs": args.jobs,
            "machine": _machine.describe(),
            "curves": {
                name: {
                    "quality": [p.quality for p in points],
                    "bpp": [p.bpp for p in points],
                    "psnr_rgb": [p.psnr_rgb for p in points],
                    **(
                        {"ms_ssim_rgb": [p.ms_ssim_rgb for p in points]}
                        if points and all(p.ms_ssim_rgb is not None for p in points)
                        else {}
                    ),
                }
            },
            "means": [asdict(p) for p in points],
            "bd_rates": [asdict(c) for c in comparisons],
            "reference": reference_path.name if reference_path and comparisons else None,
            "images": [asdict(m) for m in measurements],
            "failures": failures,
        }
        args.json.parent.mkdir(parents=True, exist_ok=True)
        args.json.write_text(json.dumps(_finite(result), indent=1) + "\n", encoding="utf-8")
        console.print(f"wrote {args.json}", highlight=False, soft_wrap=True)
    if args.plot and points:
        plot(args.plot, name, points, curves, _dataset(args.folder, measurements))
        console.print(f"wrote {args.plot}", highlight=False, soft_wrap=True)
    if failures:
        complain(f"{len(failures)} of {len(files)} images failed: {', '.join(failures)}")
    return 1 if failures else 0


def _warm_up(codec: Codec, files: Sequence[Path], precision: str) -> None:
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


def _identity(codec: Codec) -> str | None:
    identity = getattr(getattr(codec, "model", None), "identity", None)
    return identity.hex() if isinstance(identity, bytes) else None


def _finite(value: Any) -> Any:
    """The same for JSON, which has no infinity: the PSNR of an image that came back unchanged becomes null."""
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return value


if __name__ == "__main__":
    _parser = argparse.ArgumentParser(prog="fastcodec eval")
    add_arguments(_parser)
    sys.exit(main(_parser.parse_args()))
