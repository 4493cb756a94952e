"""Pictures that are hard for an image codec, made from fixed seeds; `screenshots` are the benchmark's.

Text is drawn in Pillow's own fonts only, and photographs come with scikit-image: no file or network is needed.
"""

from __future__ import annotations

import sys
from functools import cache
from itertools import product

import numpy as np
import skimage.data
from conftest import ROOT

from fastcodec import graphics

sys.path.append(str(ROOT))  # the benchmarks are in the checkout, and not installed
try:
    from bench.screens import screenshots
finally:
    sys.path.remove(str(ROOT))

__all__ = ["CORNERS", "photograph", "screenshots", "suite"]

BLACK, WHITE = (0, 0, 0), (255, 255, 255)
CORNERS = {
    "black": BLACK,
    "blue": (0, 0, 255),
    "green": (0, 255, 0),
    "cyan": (0, 255, 255),
    "red": (255, 0, 0),
    "magenta": (255, 0, 255),
    "yellow": (255, 255, 0),
    "white": WHITE,
}


@cache
def suite() -> dict[str, np.ndarray]:
    """Small pictures of everything that is not a photograph, by name: read-only uint8 [H, W, 3] or [H, W]."""
    pictures = {**_kinds(), **_colours(), **_patterns(), **_small(), **_mixed(), **_packaged(), **_large()}
    return _frozen(pictures)


def photograph(height: int, width: int) -> np.ndarray:
    """The middle of a photograph that scikit-image carries: uint8 [height, width, 3], at most 512x512."""
    pixels = skimage.data.astronaut()
    top, left = (512 - height) // 2, (512 - width) // 2
    return pixels[top : top + height, left : left + width]


def _frozen(pictures: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    out = {}
    for name, picture in pictures.items():
        out[name] = np.array(picture, np.uint8, order="C")
        out[name].flags.writeable = False
    return out


def _drawn(kind: str, height: int, width: int, seed: int, over: np.ndarray | None = None) -> np.ndarray:
    random = np.random.default_rng((seed, *kind.encode()))
    return graphics.draw(random, height, width, kind=kind, photograph=over, fonts=graphics.PILLOW_FONTS)


def _flat(height: int, width: int, colour: tuple[int, ...]) -> np.ndarray:
    return np.full((height, width, 3), colour, np.uint8)


def _two(where: np.ndarray, a: tuple[int, ...], b: tuple[int, ...]) -> np.ndarray:
    """Colour b where an array is true, else a."""
    return np.array((a, b), np.uint8)[where.astype(np.intp)]


def _kinds() -> dict[str, np.ndarray]:
    """Every kind of graphics: half of them square, those over photographs over one."""
    over = skimage.data.coffee()[:256, 100:420]
    out = {}
    for i, kind in enumerate(graphics.KINDS):
        height, width = (256, 256) if i % 2 else (200, 320)
        out[kind] = _drawn(kind, height, width, 11, over[:height, :width])
    return out


def _colours() -> dict[str, np.ndarray]:
    """Flat pictures in the corners of the colour cube, and the eight side by side."""
    out = {f"flat_{name}": _flat(48, 48, colour) for name, colour in CORNERS.items()}
    out["eight_blocks"] = np.array(list(CORNERS.values()), np.uint8).reshape(2, 4, 3).repeat(48, 0).repeat(48, 1)
    out["bars_with_text"] = _drawn("colour_bars", 64, 127, 5)
    out["saturated_ramp"] = np.stack(np.broadcast_arrays(np.arange(256)[None], np.arange(0, 256, 4)[:, None], 255), -1)
    return out


def _patterns() -> dict[str, np.ndarray]:
    """Noise, zone plates, impulses, and stripes and checkers one pixel wide."""
    random = np.random.default_rng(21)
    y, x = np.mgrid[:192, :192]
    phase = np.pi / 192 * ((x - 96.0) ** 2 + (y - 96.0) ** 2)
    out = {
        "one_bit_noise": random.integers(0, 2, (100, 100)) * 255,
        "uniform_noise": random.integers(0, 256, (160, 160, 3)),
        "gray_noise": random.integers(0, 256, (128, 128)),
        "corner_noise": random.integers(0, 2, (96, 96, 3)) * 255,
        "zone_plate_gray": 127.5 + 127.5 * np.cos(phase),
        "zone_plate_colours": 127.5 + 127.5 * np.cos(phase[..., None] + np.array([0, 2.1, 4.2])),
    }
    y, x = np.mgrid[:96, :96]
    single, grid = (y == 41) & (x == 50), (y % 8 == 3) & (x % 8 == 5)
    for name, a, b in (("white_on_black", BLACK, WHITE), ("black_on_white", WHITE, BLACK)):
        out[f"impulse_{name}"], out[f"impulses_{name}"] = _two(single, a, b), _two(grid, a, b)
    forms = {"horizontal": y % 2, "vertical": x % 2, "diagonal": (x + y) % 3 == 0, "checker": (x + y) % 2}
    pairs = {"black_white": (BLACK, WHITE), "red_cyan": (CORNERS["red"], CORNERS["cyan"])}
    for (form, where), (name, pair) in product(forms.items(), pairs.items()):
        out[f"{form}_{name}"] = _two(where, *pair)
    return out


def _small() -> dict[str, np.ndarray]:
    """Icons and other pictures of few pixels."""
    random = np.random.default_rng(31)
    colours = np.array(list(CORNERS.values()), np.uint8)
    out = {f"1x1_{name}": _flat(1, 1, CORNERS[name]) for name in ("black", "white", "red", "blue")}
    out["1x1_gray"] = np.full((1, 1), 128)
    half = random.integers(0, 8, (6, 3))
    out["6x6_icon"] = colours[np.concatenate([half, half[:, ::-1]], 1)]
    out["6x6_noise"] = random.integers(0, 256, (6, 6, 3))
    out["16x16_gradient"] = np.stack(np.broadcast_arrays(np.arange(0, 256, 17)[:, None], np.arange(0, 256, 17), 99), -1)
    out["16x16_photograph"] = photograph(16, 16)
    for kind in ("text", "pixel_art", "logo", "terminal"):
        out[f"33x65_{kind}"] = _drawn(kind, 33, 65, 32)
    out["1x200_noise"] = random.integers(0, 256, (1, 200, 3))
    out["200x1_steps"] = np.arange(200)[:, None] // 25 * 36
    return out


def _mixed() -> dict[str, np.ndarray]:
    """Photographs with text and noise on them, or beside them."""
    cat, face = skimage.data.chelsea()[20:276, 60:316], photograph(256, 256)
    out = {
        "text_over_photograph": _drawn("captioned_photograph", 256, 256, 41, cat),
        "noise_over_photograph": _drawn("noisy_photograph", 256, 256, 44, face),
    }
    page = _drawn("text", 256, 256, 42)
    out["half_photograph_half_text"] = np.concatenate([face[:, :128], page[:, :128]], 1)
    dots = np.random.default_rng(43).random((256, 256)) < 0.05
    out["dead_pixels_over_photograph"] = np.where(dots[..., None], np.uint8(255), cat)
    return out


def _packaged() -> dict[str, np.ndarray]:
    """Graphics that scikit-image carries in its wheel, cut to 512x512."""
    data = skimage.data
    out = {name: getattr(data, name)() for name in ("page", "text", "colorwheel", "clock", "checkerboard")}
    out["scanned_text"] = out.pop("text")
    out["logo_with_shadow"] = data.logo()[..., :3]
    out["horse"] = data.horse() * np.uint8(255)
    out["blobs"] = data.binary_blobs(length=256, volume_fraction=0.4, rng=51) * np.uint8(255)
    out["brick"], out["grass"] = data.brick()[:256, :256], data.grass()[:256, :256]
    return {name: picture[:512, :512] for name, picture in out.items()}


def _large() -> dict[str, np.ndarray]:
    """Screens, larger than the others."""
    return {
        "screen_nineties": _drawn("nineties", 480, 640, 0),
        "screen_windows": _drawn("desktop", 1024, 1024, 1),
        "screen_terminal": _drawn("terminal", 1024, 1024, 2),
    }
