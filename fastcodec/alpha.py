"""The alpha plane of a file: for each tile a PNG of 8-bit gray, or nothing where it is all opaque. Lossless.

And `flatten`, for formats that have none.
"""

from __future__ import annotations

import io
from dataclasses import replace

import numpy as np
from PIL import Image

from .constants import LATENT_STRIDE
from .container import Container
from .errors import CorruptStreamError
from .geometry import Grid, Rect
from .images import STRIP_PIXELS, Picture, pillow_limit

_OPAQUE = 255
_GRAY_PROFILE = b"GRAY"  # in an ICC profile's header, where it names the space of the pixels


def encode_alpha(alpha: np.ndarray | None, tile: Rect, grid: Grid) -> bytes:
    """A tile's part of the plane, uint8 [height, width] of the whole image; None: the image has none."""
    if alpha is None:
        return b""
    part = alpha[tile.scaled(LATENT_STRIDE).clipped(grid.height, grid.width).slices]
    if (part == _OPAQUE).all():
        return b""
    buffer = io.BytesIO()
    Image.fromarray(part).save(buffer, "PNG", optimize=True)
    return buffer.getvalue()


def read_alpha(file: Container, area: Rect) -> np.ndarray | None:
    """The alpha of a rectangle of pixels, uint8 [height, width], from the tiles that it meets; None: the file has none.

    Raises CorruptStreamError for a tile's plane that is not as `encode_alpha` writes it.
    """
    header = file.header
    if not header.alpha:
        return None
    alpha = np.empty((area.height, area.width), np.uint8)
    for number, tile in enumerate(header.grid.tiles()):
        covered = tile.scaled(LATENT_STRIDE).clipped(header.height, header.width)
        if covered.meets(area):
            kept = covered.common(area)
            part = _decode_tile(file.tile(number).alpha, covered)
            alpha[kept.within(area).slices] = part[kept.within(covered).slices]
    return alpha


def check_alpha(file: Container) -> None:
    """Reads every tile's plane, one at a time. Raises as `read_alpha`."""
    header = file.header
    if header.alpha:
        for number, tile in enumerate(header.grid.tiles()):
            covered = tile.scaled(LATENT_STRIDE).clipped(header.height, header.width)
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
    try:
        # The tile's size has passed our limit, so Pillow's must not stand in the way.
        with pillow_limit(area.height * area.width), Image.open(io.BytesIO(data), formats=["PNG"]) as image:
            if image.size != (area.width, area.height) or image.mode != "L":
                raise CorruptStreamError(f"alpha is {image.mode} {image.size}, not L {(area.width, area.height)}")
            return np.asarray(image)
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        if isinstance(error, CorruptStreamError):
            raise
        raise CorruptStreamError(f"alpha does not decode: {error}") from error
