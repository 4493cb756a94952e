"""Pictures that are not photographs, drawn from a seed: text, windows, charts, line art, pixel art, patterns, noise.

A model that has seen photographs alone spends many bits on a screenshot, and shows it. The trainer mixes these pictures
into its crops and its validation split. Each kind is one function, registered in the table of `scene.py`:

    writing.py    pages of text, terminals, code editors
    screens.py    windows, desktops, web pages, spreadsheets
    drawings.py   charts, maps, diagrams, line art, logos, cartoons
    patterns.py   gradients, dithering, pixel art, test patterns, noise, bar codes
    overlays.py   all sorts of these over photographs or beside them
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from . import drawings, overlays, patterns, screens, writing
from .scene import PILLOW_FONTS, SMALLEST, TABLE, Scene, installed_fonts

__all__ = ["KINDS", "PILLOW_FONTS", "draw", "installed_fonts"]

_MODULES = (writing, screens, drawings, patterns, overlays)
KINDS: tuple[str, ...] = tuple(k for m in _MODULES for k, draw_it in TABLE.items() if draw_it.__module__ == m.__name__)


def draw(
    random: np.random.Generator,
    height: int,
    width: int,
    *,
    kind: str | None = None,
    photograph: np.ndarray | None = None,
    fonts: Sequence[str] | None = None,
) -> np.ndarray:
    """A picture of a kind, one of KINDS, or of a random one: uint8 [height, width, 3].

    `photograph`, uint8 [h, w, 3] with h >= height and w >= width, lies under the kinds that draw over photographs; a
    smooth random background takes its place if None. `fonts` are names out of `installed_fonts()`, all of them if None;
    PILLOW_FONTS gives the same picture wherever Pillow, FreeType and NumPy are the same. Equal states of the generator
    give equal pictures. ValueError: an unknown kind, a size below 1, no font, or a photograph too small.
    """
    if height < 1 or width < 1:
        raise ValueError(f"a picture of {height}x{width} pixels")
    if kind is not None and kind not in TABLE:
        raise ValueError(f"{kind!r} is not a kind of picture: {', '.join(KINDS)}")
    if fonts is not None and not fonts:
        raise ValueError("no font")
    h, w = max(height, SMALLEST), max(width, SMALLEST)
    if photograph is not None:
        if photograph.dtype != np.uint8 or photograph.ndim != 3 or photograph.shape[2] != 3:
            raise ValueError(f"a photograph is uint8 [h, w, 3], not {photograph.dtype} {list(photograph.shape)}")
        if photograph.shape[0] < height or photograph.shape[1] < width:
            raise ValueError(f"a photograph of {photograph.shape[:2]} pixels under a picture of {(height, width)}")
        photograph = photograph[:h, :w]
        missing = ((0, h - photograph.shape[0]), (0, w - photograph.shape[1]), (0, 0))
        photograph = np.pad(photograph, missing, mode="edge")
    scene = Scene(random, h, w, photograph, tuple(fonts or installed_fonts()))
    pixels = np.asarray(TABLE[kind or scene.pick(KINDS)](scene))
    top, left = (int(random.integers(n)) for n in (h - height + 1, w - width + 1))
    return np.ascontiguousarray(pixels[top : top + height, left : left + width])
