"""What the benchmarks share: the screen, the photographs, and how figures are written."""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from rich.box import ROUNDED
from rich.console import Console
from rich.table import Table

from fastcodec.codec import Codec
from fastcodec.errors import ImageError
from fastcodec.files import image_files
from fastcodec.geometry import Grid
from fastcodec.images import Picture, read_picture
from fastcodec.metrics import bd_rate
from fastcodec.models.swift.release import Model

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "bench" / "results"

LARGEST = (2048, 3072)  # height and width that large photographs are cut to

console = Console()


class CannotRunError(Exception):
    """What a benchmark needs is not on this machine."""


def argument_parser(module: str, documentation: str | None) -> argparse.ArgumentParser:
    """Of `python -m MODULE`, described by the first line of its documentation."""
    return argparse.ArgumentParser(f"python -m {module}", description=(documentation or "").partition("\n")[0])


def table(title: str, first: str, *columns: str) -> Table:
    """A table of figures: the first column left, the others right."""
    made = Table(title=title, title_justify="left", header_style="bold", box=ROUNDED)
    made.add_column(first, no_wrap=True)
    for name in columns:
        made.add_column(name, justify="right")
    return made


def show_claims(holds: Mapping[str, bool]) -> None:
    """Says of each claim whether it holds."""
    for claim, true in holds.items():
        console.print(f"{'holds' if true else 'FAILS'}: {claim}", style=None if true else "red", markup=False)


def kodak_files() -> list[Path]:
    """The 24 Kodak images, from the folder $FASTCODEC_KODAK, else from ../shared/data/kodak."""
    folder = Path(os.environ.get("FASTCODEC_KODAK") or ROOT.parent / "shared" / "data" / "kodak")
    files = sorted(file for file in folder.glob("kodim*") if file.suffix in (".png", ".webp"))
    if not files:
        raise CannotRunError(f"no Kodak images in {folder}: set FASTCODEC_KODAK to their folder")
    return files


def kodak() -> list[tuple[str, Picture]]:
    """The Kodak images by name."""
    return [(file.stem, read_picture(file)) for file in kodak_files()]


def large_photographs(cut: bool = True) -> Iterator[tuple[str, Picture]]:
    """Photographs of two tiles and more along each side, by name, read one by one.

    Those of the folder $FASTCODEC_LARGE, else the only one in scikit-image's wheel: `retina`, 1411x1411, so three of
    its four tiles are narrow, and a figure of it is a bound rather than fair. cut: to their middle 3072x2048 pixels.
    """
    folder = os.environ.get("FASTCODEC_LARGE")
    if folder:
        files = image_files(Path(folder))
    else:
        import skimage.data

        files = [Path(skimage.data.__file__).parent / "retina.jpg"]
    found = 0
    for file in files:
        try:
            pixels = read_picture(file).pixels
        except ImageError as error:
            console.print(f"left out: {error}", markup=False, soft_wrap=True)
            continue
        if pixels.ndim == 2:
            pixels = np.repeat(pixels[..., None], 3, axis=2)
        if cut:
            top, left = (max(0, side - most) // 2 for side, most in zip(pixels.shape, LARGEST, strict=False))
            pixels = pixels[top : top + LARGEST[0], left : left + LARGEST[1]].copy()
        grid = Grid(*pixels.shape[:2])
        if min(len(grid.rows), len(grid.columns)) > 2:
            found += 1
            yield file.stem, Picture(pixels)
    if not found:
        raise CannotRunError(f"no photograph of four tiles in {folder}")


def mosaic(width: int, height: int) -> np.ndarray:
    """A large image for measuring memory and time: photographs side by side, uint8 [height, width, 3].

    From Kodak, else from scikit-image's astronaut, mirrored. Its edges between photographs make it no fair subject for
    rates.
    """
    try:
        cells = [p.pixels if p.width > p.height else p.pixels.transpose(1, 0, 2) for _, p in kodak()]
    except CannotRunError:
        from skimage import data

        photo = data.astronaut()
        cells = [photo, photo[:, ::-1], photo[::-1], photo[::-1, ::-1]]
    out = np.empty((height, width, 3), np.uint8)
    cell_height, cell_width = cells[0].shape[:2]
    number = 0
    for top in range(0, height, cell_height):
        for left in range(0, width, cell_width):
            part = out[top : top + cell_height, left : left + cell_width]
            part[...] = cells[number % len(cells)][: part.shape[0], : part.shape[1]]
            number += 1
        number += 1  # so that columns do not repeat one photograph
    return out


def bd_percent(*curves: Iterable[float]) -> float:
    """The BD-rate of curves that have a range of quality in common, in percent: bytes and PSNR of two coders."""
    found = bd_rate(*(list(curve) for curve in curves))
    assert found is not None
    return found.percent


def write_json(path: Path, record: Any) -> None:
    """Write a record, in a folder that may not be there yet."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")


def rounded(value: Any, digits: int = 5) -> Any:
    """The same with floats to five significant digits: more would only be noise in a diff."""
    if isinstance(value, float):
        return float(f"{value:.{digits}g}")
    if isinstance(value, dict):
        return {key: rounded(item, digits) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [rounded(item, digits) for item in value]
    return value


def released(codec: Codec) -> Model:
    """The model of a codec, which must be a released one: TypeError for a system of the zoo."""
    if not isinstance(codec.model, Model):
        raise TypeError(f"{type(codec.model).__name__} is no released model")
    return codec.model
