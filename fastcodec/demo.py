"""`make demo`: photographs compressed to files, restored, and compared with JPEG at the same size.

    python -m fastcodec.demo [FOLDER] [--out out/demo]

Photographs come from FOLDER, else from the folder $FASTCODEC_KODAK, else from ../shared/data/kodak, else from those in
scikit-image's wheel. Under OUT it leaves the .fic files, the decoded images, and one picture to look at.
"""

from __future__ import annotations

import argparse
import io
import os
import sys
import time
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from .codec import Codec
from .errors import FastcodecError, ImageError
from .files import image_files
from .images import Picture, read_picture, write_picture
from .metrics import psnr

QUALITIES = (15, 45, 80)
USABLE = 29.5  # dB: no one shows a photograph that is worse
MAX_PHOTOGRAPHS = 6
# A cross-section of Kodak: people, buildings, water, leaves.
_KODAK_CHOICE = ("kodim23", "kodim04", "kodim07", "kodim14", "kodim19", "kodim21")
# What scikit-image's wheel holds without a download.
_BUNDLED = ("coffee.png", "astronaut.png", "chelsea.png", "rocket.jpg", "motorcycle_left.png")

_ZOOM = 2
_CROP = 192  # pixels of the image, before zooming
_LARGEST_PANEL, _NARROWEST_PANEL = 768, 420
_MARGIN = 24
_INK, _PAPER, _QUIET, _ACCENT = "#1c1c1e", "#fafaf7", "#6b6b70", "#c2374a"


@dataclass(frozen=True)
class Result:
    """One photograph at one quality, beside the JPEG of its size."""

    name: str
    quality: int
    original: np.ndarray  # uint8 [H, W, 3], or [H, W] for grayscale
    decoded: np.ndarray
    jpeg: np.ndarray
    bytes: int
    jpeg_bytes: int
    encode_seconds: float
    decode_seconds: float

    @property
    def bpp(self) -> float:
        return 8 * self.bytes / (self.original.shape[0] * self.original.shape[1])

    @property
    def jpeg_fits(self) -> bool:
        """Whether JPEG reached this size at all; below its lowest quality it cannot go."""
        return self.jpeg_bytes <= self.bytes


def find_photographs(folder: Path | None = None) -> list[Path]:
    """Up to six photographs: of the folder given, else of Kodak, else those that scikit-image ships."""
    if folder is not None:
        files = image_files(folder)
        if not files:
            raise ImageError(f"{folder}: no image in this folder")
        return files[:MAX_PHOTOGRAPHS]
    beside = Path(__file__).resolve().parents[2] / "shared" / "data" / "kodak"
    kodak = Path(os.environ.get("FASTCODEC_KODAK") or beside)
    files = [kodak / f"{stem}.png" for stem in _KODAK_CHOICE]
    if all(file.is_file() for file in files):
        return files
    try:
        import skimage.data
    except ImportError:
        raise ImageError("no photographs here: name a folder of them, or pip install 'fastcodec[demo]'") from None
    bundled = Path(skimage.data.__file__).parent
    files = [bundled / name for name in _BUNDLED if (bundled / name).is_file()]
    if not files:
        raise ImageError(f"no photographs in {bundled}: name a folder of them")
    return files


def jpeg_of_size(pixels: np.ndarray, limit: int) -> tuple[np.ndarray, int]:
    """The best JPEG of at most `limit` bytes, decoded, and its size; if there is none, the smallest one.

    Optimised and progressive, 4:2:0: the smaller settings at low rates.
    """
    image = Image.fromarray(pixels)

    @cache
    def encoded(quality: int) -> bytes:
        buffer = io.BytesIO()
        image.save(buffer, "JPEG", quality=quality, optimize=True, progressive=True)
        return buffer.getvalue()

    fitting = bisect_right(range(1, 96), limit, key=lambda quality: len(encoded(quality)))
    best = encoded(max(1, fitting))
    with Image.open(io.BytesIO(best)) as decoded:
        return np.asarray(decoded), len(best)


def compress(codec: Codec, file: Path, qualities: Sequence[int], out: Path) -> list[Result]:
    """One photograph at each quality; writes NAME-qQ.fic and NAME-qQ.png under `out`."""
    picture = read_picture(file)
    original = Picture(picture.pixels)  # colours alone: a JPEG has no alpha to compare
    results = []
    for quality in qualities:
        start = time.perf_counter()
        data = codec.encode(original, quality)
        middle = time.perf_counter()
        decoded = codec.decode(data, out="picture")
        end = time.perf_counter()
        stem = f"{file.stem}-q{quality}"
        (out / f"{stem}.fic").write_bytes(data)
        write_picture(out / f"{stem}.png", decoded)
        jpeg, jpeg_bytes = jpeg_of_size(original.pixels, len(data))
        results.append(
            Result(
                file.stem,
                quality,
                original.pixels,
                decoded.pixels,
                jpeg,
                len(data),
                jpeg_bytes,
                middle - start,
                end - middle,
            )
        )
    return results


# ---- the picture


def choose(results: Sequence[Result]) -> Result:
    """The result to show large: where JPEG of the same size loses most, among those that are good enough to be used."""
    fair = [r for r in results if r.jpeg_fits] or list(results)
    usable = [r for r in fair if psnr(r.original, r.decoded) >= USABLE] or fair
    return max(usable, key=lambda r: psnr(r.original, r.decoded) - psnr(r.original, r.jpeg))


def telling_crop(result: Result, side: int) -> tuple[int, int]:
    """Left and top of the square where JPEG's additional error is most visible.

    Errors are weighed down where the original is busy, since texture hides them.
    """
    original = _gray(result.original)
    ours, theirs = (np.square(_gray(image) - original) for image in (result.decoded, result.jpeg))
    activity = np.maximum(_box(np.square(original), 16) - np.square(_box(original, 16)), 0)
    gain = (_box(theirs, 16) - _box(ours, 16)) / (activity + 60.0)
    # A crop without any structure says little, whatever its error.
    gain = np.where(activity > 15, gain, 0)
    score = _box(gain, side)
    top, left = np.unravel_index(int(np.argmax(score)), score.shape)
    return int(left), int(top)


def _gray(image: np.ndarray) -> np.ndarray:
    return image.astype(np.float64) if image.ndim == 2 else image @ np.array([0.299, 0.587, 0.114])


def _box(values: np.ndarray, side: int) -> np.ndarray:
    """Means over every side x side square inside the array."""
    side = min(side, *values.shape)
    sums = np.pad(values, ((1, 0), (1, 0))).cumsum(0).cumsum(1)
    return (sums[side:, side:] - sums[:-side, side:] - sums[side:, :-side] + sums[:-side, :-side]) / side**2


def compose(result: Result) -> Image.Image:
    """Original, fastcodec and JPEG side by side, and below each the same detail at twice the size."""
    height, width = result.original.shape[:2]
    scale = max(min(_LARGEST_PANEL / max(width, height), 1), _NARROWEST_PANEL / width)
    panel, panel_height = round(width * scale), round(height * scale)
    crop_width = min(panel // _ZOOM, width)
    crop_height = min(_CROP, height)
    square = min(crop_width, crop_height)
    left, top = telling_crop(result, square)
    left = max(0, min(left - (crop_width - square) // 2, width - crop_width))
    top = max(0, min(top - (crop_height - square) // 2, height - crop_height))
    detail = (panel, round(crop_height * panel / crop_width))

    big, text, small = (ImageFont.load_default(size=size) for size in (34, 24, 19))
    head, caption = 96, 84
    size = (3 * panel + 4 * _MARGIN, head + caption + panel_height + _MARGIN + detail[1] + _MARGIN)
    canvas = Image.new("RGB", size, _PAPER)
    draw = ImageDraw.Draw(canvas)
    draw.text((_MARGIN, 28), f"{result.name}, {width} x {height}", font=big, fill=_INK)
    note = f"each detail is the framed part, enlarged {detail[0] / crop_width:.3g} times"
    draw.text((size[0] - _MARGIN, 42), note, font=small, fill=_QUIET, anchor="ra")

    raw = result.original.size
    claim = "at the same size" if result.jpeg_fits else "at its smallest"
    columns = (
        ("original", f"{raw:,} bytes uncompressed", result.original, _INK),
        (
            f"fastcodec, quality {result.quality}",
            f"{result.bytes:,} bytes · {result.bpp:.2f} bpp · {_decibels(result.original, result.decoded)}",
            result.decoded,
            _ACCENT,
        ),
        (
            f"JPEG {claim}",
            f"{result.jpeg_bytes:,} bytes · {8 * result.jpeg_bytes / (width * height):.2f} bpp · "
            f"{_decibels(result.original, result.jpeg)}",
            result.jpeg,
            _INK,
        ),
    )
    for i, (title, facts, pixels, colour) in enumerate(columns):
        x, y = _MARGIN + i * (panel + _MARGIN), head
        draw.text((x, y), title, font=text, fill=colour)
        draw.text((x, y + 36), facts, font=small, fill=_QUIET)
        y += caption
        image = Image.fromarray(pixels).convert("RGB")
        whole = image if scale == 1 else image.resize((panel, panel_height), Image.Resampling.LANCZOS)
        canvas.paste(whole, (x, y))
        frame = [x + left * scale, y + top * scale, x + (left + crop_width) * scale, y + (top + crop_height) * scale]
        draw.rectangle(frame, outline="white", width=3)
        draw.rectangle([frame[0] + 3, frame[1] + 3, frame[2] - 3, frame[3] - 3], outline=_INK, width=1)
        part = image.crop((left, top, left + crop_width, top + crop_height))
        # Nearest neighbour: the pixels as they are, not smoothed for show.
        canvas.paste(part.resize(detail, Image.Resampling.NEAREST), (x, y + panel_height + _MARGIN))
    return canvas


def _decibels(original: np.ndarray, image: np.ndarray) -> str:
    return f"{psnr(original, image):.2f} dB"


# ---- the command


def main(argv: Sequence[str] | None = None) -> int:
    """Run the demo; returns 0, or 1 if no photograph could be read."""
    from rich.box import ROUNDED
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    parser = argparse.ArgumentParser(prog="python -m fastcodec.demo", description=__doc__.split("\n")[0])
    parser.add_argument("folder", nargs="?", type=Path, metavar="FOLDER", help="photographs of your own")
    parser.add_argument("--out", type=Path, default=Path("out/demo"), metavar="DIR", help="(default: out/demo)")
    args = parser.parse_args(argv)
    console = Console()
    results: list[Result] = []
    try:
        files = find_photographs(args.folder)
        args.out.mkdir(parents=True, exist_ok=True)
        with console.status("loading the model"):
            codec = Codec.load("swift")
        table = Table(title="Photographs compressed and restored", title_justify="left", box=ROUNDED)
        table.add_column("image")
        for name in ("quality", "bytes", "bpp", "PSNR", "JPEG*", "enc. ms", "dec. ms"):
            table.add_column(name, justify="right", no_wrap=True)
        for file in files:
            with console.status(f"compressing {escape(file.name)}"):
                try:
                    if not results:
                        codec.decode(codec.encode(read_picture(file)))  # the first run is slow
                    new = compress(codec, file, QUALITIES, args.out)
                except ImageError as error:
                    console.print(f"left out: {error}", style="red", markup=False, soft_wrap=True)
                    continue
            for i, result in enumerate(new):
                height, width = result.original.shape[:2]
                theirs = f"{psnr(result.original, result.jpeg):.2f}"
                table.add_row(
                    (escape(file.stem), f"[dim]{width}×{height}[/]", "")[min(i, 2)],
                    str(result.quality),
                    f"{result.bytes:,}",
                    f"{result.bpp:.3f}",
                    f"{psnr(result.original, result.decoded):.2f}",
                    theirs if result.jpeg_fits else f"({theirs})",
                    f"{1000 * result.encode_seconds:.0f}",
                    f"{1000 * result.decode_seconds:.0f}",
                    end_section=i == len(new) - 1,
                )
            results += new
        if not results:
            raise ImageError("no photograph could be read")
        console.print(table)
        console.print("* PSNR of the best JPEG of no more bytes; in (…) if even the worst JPEG has more")
        picture = args.out / "side-by-side.png"
        compose(choose(results)).save(picture)
    except (FastcodecError, OSError) as error:
        Console(stderr=True).print(f"demo: {error}", style="red", markup=False, soft_wrap=True)
        return 1
    console.print(
        f"files:   {len(results)} × .fic and .png in {escape(str(args.out))}/", highlight=False, soft_wrap=True
    )
    console.print(f"picture: [bold]{escape(str(picture))}[/bold]", highlight=False, soft_wrap=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
