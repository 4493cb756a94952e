"""Facts of a PNG that Pillow does not tell: its cICP chunk, and a transparent colour of other than 8 bits.

Pillow reduces 16-bit colours to 8 bits, and widens gray levels of 2 and 4 bits to 8, but leaves the transparent colour
(tRNS) as the file has it, so that another one turns transparent. The pixels of 16 bits are gone once they are loaded:
`read_ahead` looks at them first.
"""

from __future__ import annotations

import io
import math
import struct
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image

_GAMMA, _GAMMA_MARGIN = 1 / 2.2, 0.05  # of sRGB, and what libpng takes for the same
_CHROMATICITIES = (0.3127, 0.329, 0.64, 0.33, 0.3, 0.6, 0.15, 0.06)  # of sRGB: white, red, green, blue
_CHROMATICITY_MARGIN = 0.01
_SRGB_CICP = bytes((1, 13, 0, 1))  # primaries of BT.709, transfer of sRGB, RGB, full range
_WIDENED = {"L;2": (3, 85), "L;4": (15, 17), "L": (255, 1)}  # Pillow's name: mask of its levels, factor to 8 bits


@dataclass(frozen=True)
class Ahead:
    """Facts of a PNG from before its pixels are loaded."""

    cicp: bytes | None = None
    level: int | None = None  # the transparent gray level, of 8 bits
    # The transparent colour, of 8 bits, and of 16-bit pixels whether the lower half of each of their samples is that of
    # the transparent colour's: bool [H, W].
    colour: tuple[int, ...] | None = None
    low_halves: np.ndarray | None = None


def read_ahead(image: Image.Image, rows: int) -> Ahead:
    """Look at a PNG that is open and not loaded; of any other image, nothing. rows: as many as are looked at at once.

    Leaves the file where it was. May raise what Pillow raises on damaged data.
    """
    stream, tiles = getattr(image, "fp", None), getattr(image, "tile", None)
    if image.format != "PNG" or stream is None or not tiles:
        return Ahead()
    coded, transparent = tiles[0][3], transparent_colour(image)
    level = colour = low_halves = None
    if coded in _WIDENED and len(transparent) == 1:
        mask, factor = _WIDENED[coded]
        level = (transparent[0] & mask) * factor
    position = stream.tell()
    try:
        if coded == "RGB;16B" and len(transparent) == 3:
            colour = tuple(value >> 8 for value in transparent)
            low_halves = _low_halves(stream, [value & 255 for value in transparent], rows)
        return Ahead(_cicp(stream), level, colour, low_halves)
    finally:
        stream.seek(position)


def transparent_colour(image: Image.Image) -> tuple[int, ...]:
    """The one transparent colour of a gray or RGB image, as its file has it; empty if there is none."""
    value = image.info.get("transparency")
    value = (value,) if isinstance(value, int) else value
    return value if isinstance(value, tuple) and all(isinstance(part, int) for part in value) else ()


def _low_halves(stream: Any, transparent: list[int], rows: int) -> np.ndarray:
    stream.seek(0)
    again = Image.open(stream, formats=["PNG"])  # not closed: its stream is the caller's
    # PNG's samples are big-endian. Taken for little-endian ones, their "upper" halves are the lower ones.
    again.tile = [again.tile[0]._replace(args="RGB;16L")]
    again.load()
    width, height = again.size
    equal = np.empty((height, width), bool)
    for top in range(0, height, rows):
        strip = again.crop((0, top, width, min(top + rows, height)))
        equal[top : top + rows] = (np.asarray(strip) == transparent).all(2)
    return equal


def _cicp(stream: Any) -> bytes | None:
    """The four bytes of the cICP chunk, which stands before the pixels."""
    stream.seek(8)
    while len(head := stream.read(8)) == 8:
        length, kind = struct.unpack(">I4s", head)
        if kind == b"IDAT":
            return None
        if kind == b"cICP" and length == 4:
            return stream.read(4)
        stream.seek(length + 4, io.SEEK_CUR)
    return None


def note_colours(image: Image.Image, ahead: Ahead, gray: bool, notices: list[str]) -> None:
    """Adds a notice where a PNG's colours have another meaning without the chunks that are left out.

    gray: whether gray pixels are coded, which have no chromaticities.
    """
    if image.format != "PNG":
        return
    info, chunks = image.info, []
    if ahead.cicp is not None:  # it counts before all others
        chunks = ["cICP"] if ahead.cicp != _SRGB_CICP else []
    elif not info.get("icc_profile") and "srgb" not in info:
        if "gamma" in info and not math.isclose(info["gamma"], _GAMMA, rel_tol=_GAMMA_MARGIN):
            chunks.append("gAMA")
        pairs = zip(info.get("chromaticity", ()), _CHROMATICITIES, strict=False)
        if not gray and any(abs(a - b) > _CHROMATICITY_MARGIN for a, b in pairs):
            chunks.append("cHRM")
    if chunks:
        notices.append(
            f"its colours are not sRGB by its {' and '.join(chunks)}, which is left out: they will be shown as sRGB; "
            "give it an ICC profile first to keep their meaning"
        )
