"""The alpha plane of a file: for each tile a PNG of 8-bit gray, or nothing where it is all opaque. Lossless."""

from __future__ import annotations

import io

import numpy as np
from PIL import Image

from .constants import LATENT_STRIDE
from .container import Container
from .errors import CorruptStreamError
from .geometry import Grid, Rect
from .images import pillow_limit

_OPAQUE = 255


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
