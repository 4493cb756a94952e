"""The alpha plane of a file: for each tile a PNG of 8-bit gray, or nothing where it is all opaque. Lossless.

And `flatten`, for formats that have none.
"""

from __future__ import annotations

import io
from dataclasses import replace

import numpy as np
from PIL import Image

from .container import Container
from .geometry import Rect
from .images import STRIP_PIXELS, Picture, decode_part

_OPAQUE = 255
_GRAY_PROFILE = b"GRAY"  # in an ICC profile's header, where it names the space of the pixels


def encode_alpha(alpha: np.ndarray | None, area: Rect) -> bytes:
    """A tile's part of the plane, uint8 [height, width] of the whole image; None: the image has none.

    area: the tile's pixels.
    """
    if alpha is None:
        return b""
    part = alpha[area.slices]
    if (part == _OPAQUE).all():
        return b""
    buffer = io.BytesIO()
    Image.fromarray(part).save(buffer, "PNG", optimize=True)
    return buffer.getvalue()


def read_alpha(file: Container, area: Rect) -> np.ndarray | None:
    """The alpha of a rectangle of pixels, uint8 [height, width], from the tiles that it meets; None: the file has none.

    Raises CorruptStreamError for a tile's plane that is not as `encode_alpha` writes it.
    """
    if not file.header.alpha:
        return None
    alpha = np.empty((area.height, area.width), np.uint8)
    for number, covered in enumerate(file.header.grid.areas()):
        if covered.meets(area):
            kept = covered.common(area)
            part = _decode_tile(file.tile(number).alpha, covered)
            alpha[kept.within(area).slices] = part[kept.within(covered).slices]
    return alpha


def check_alpha(file: Container) -> None:
    """Reads every tile's plane, one at a time. Raises as `read_alpha`."""
    if file.header.alpha:
        for number, covered in enumerate(file.header.grid.areas()):
            _decode_tile(file.tile(number).alpha, covered)


def flatten(picture: Picture, background: tuple[int, int, int]) -> Picture:
    """The picture on a plain colour (red, green, blue; 0..255 each), without alpha.

    Values are (alpha * pixel + (255 - alpha) * background) / 255, rounded to nearest, in the picture's own
    colour space. A gray picture stays gray on gray, and is RGB on a colour, without a profile that describes gray.
    """
    if picture.alpha is None:
        return picture
    pixels, icc, colour = picture.pixels, picture.icc, np.array(background, np.uint32)
    if pixels.ndim == 2 and len(set(background)) > 1:
        pixels = np.broadcast_to(pixels[..., None], (*pixels.shape, 3))
        icc = None if icc is not None and icc[16:20] == _GRAY_PROFILE else icc
    elif pixels.ndim == 2:
        colour = colour[0]
    out = np.empty(pixels.shape, np.uint8)
    rows = max(1, STRIP_PIXELS // picture.width)
    for top in range(0, picture.height, rows):
        part = slice(top, top + rows)
        alpha = picture.alpha[part].astype(np.uint32)
        alpha = alpha[..., None] if pixels.ndim == 3 else alpha
        out[part] = (alpha * pixels[part] + (_OPAQUE - alpha) * colour + _OPAQUE // 2) // _OPAQUE
    return replace(picture, pixels=out, alpha=None, icc=icc)


def _decode_tile(data: bytes | memoryview, area: Rect) -> np.ndarray:
    if not data:
        return np.full((area.height, area.width), _OPAQUE, np.uint8)
    return decode_part(data, "PNG", "L", (area.width, area.height), "alpha values")
