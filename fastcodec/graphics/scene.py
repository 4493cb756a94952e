"""Material of every kind of picture: random choices, colours that go together, fonts, words, a background."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cache, lru_cache
from importlib.util import find_spec
from pathlib import Path
from typing import TypeVar

import numpy as np
from PIL import Image, ImageFont

from .words import IDENTIFIERS, WORDS

PILLOW_FONTS = ("pillow", "pillow bitmap")  # Aileron, at any size, and a bitmap font 11 pixels high
BLACK, WHITE = (0, 0, 0), (255, 255, 255)
SMALLEST = 64  # smaller pictures are cut out of one of this size

Colour = tuple[int, ...]  # red, green, blue
Box = tuple[int, ...]  # left, top, right, bottom
Font = ImageFont.FreeTypeFont | ImageFont.ImageFont
Kind = Callable[["Scene"], Image.Image | np.ndarray]
_K = TypeVar("_K", bound=Kind)
_T = TypeVar("_T")


@cache
def installed_fonts() -> tuple[str, ...]:
    """Names of the fonts that packages carry: Pillow's own, then paths of matplotlib's. The system's are not used."""
    spec = find_spec("matplotlib")
    if spec is None or spec.origin is None:
        return PILLOW_FONTS
    folder = Path(spec.origin).parent / "mpl-data" / "fonts" / "ttf"
    names = ("DejaVuSans", "DejaVuSerif", "STIXGeneral", "cmr10", "cmss10", "cmtt10", "cmb10", "cmti10")
    files = sorted(p for p in folder.glob("*.ttf") if p.stem.startswith(names) and "Display" not in p.stem)
    return PILLOW_FONTS + tuple(map(str, files))


TABLE: dict[str, Kind] = {}


def register(function: _K) -> _K:
    """Register a kind under its function's name."""
    TABLE[function.__name__.removeprefix("draw_")] = function
    return function


@dataclass(frozen=True)
class Theme:
    """Colours that go together: paper, a panel a little off it, a rule between them, ink, and accents for emphasis."""

    paper: Colour
    panel: Colour
    rule: Colour
    ink: Colour
    accents: tuple[Colour, ...]

    @property
    def faint(self) -> Colour:
        return mix(self.ink, self.paper, 0.4)


@dataclass(frozen=True)
class Scene:
    """Material of a picture: the generator, the size, the photograph if there is one, and the fonts."""

    random: np.random.Generator
    height: int
    width: int
    photograph: np.ndarray | None
    fonts: tuple[str, ...]

    @property
    def size(self) -> tuple[int, int]:
        return self.width, self.height

    def pick(self, items: Sequence[_T]) -> _T:
        """One of the items."""
        return items[int(self.random.integers(len(items)))]

    def chance(self, probability: float) -> bool:
        """True with a probability."""
        return bool(self.random.random() < probability)

    def between(self, low: float, high: float) -> int:
        """An integer from low to high inclusive; low if high is less."""
        return int(self.random.integers(int(low), max(int(low), int(high)) + 1))

    def sized(self, low: int, high: int) -> int:
        """An integer from low to high, small ones as likely as large by octave."""
        return round(math.exp(self.random.uniform(math.log(low), math.log(high))))

    def colour(self) -> Colour:
        """A colour: a corner of the colour cube, a gray, a web-safe one, or any."""
        way = self.random.random()
        if way < 0.25:
            values = self.random.integers(0, 2, 3) * 255
        elif way < 0.4:
            values = np.full(3, self.random.integers(256))
        elif way < 0.55:
            values = self.random.integers(0, 6, 3) * 51
        else:
            values = self.random.integers(0, 256, 3)
        return tuple(map(int, values))

    def colours(self, count: int) -> tuple[Colour, ...]:
        """Colours of a palette: hues around the circle at one saturation and brightness, or independent ones."""
        if self.chance(0.3):
            return tuple(self.colour() for _ in range(count))
        start, spread = self.random.random(2)
        saturation, value = self.pick(((1, 1), (0.75, 0.85), (0.5, 0.9), (0.9, 0.6), (0.3, 0.95)))
        return tuple(_hsv(start + i * (0.3 + 0.7 * spread) / count, saturation, value) for i in range(count))

    def theme(self, style: str | None = None) -> Theme:
        """Light, dark, gray or saturated colours, readable."""
        style = style or self.pick(("light", "light", "light", "dark", "dark", "gray", "saturated", "tinted"))
        paper: Colour
        if style == "dark":
            paper = self.pick(((0, 0, 0), (30, 30, 30), (0, 43, 54), (40, 42, 54), (13, 17, 23), (39, 40, 34)))
        elif style == "light":
            paper = self.pick(((255, 255, 255), (255, 255, 255), (250, 250, 250), (253, 246, 227), (246, 248, 250)))
        elif style == "gray":
            paper = (self.between(60, 230),) * 3
        elif style == "saturated":
            paper = tuple(int(v) * self.pick((255, 128)) for v in self.random.integers(0, 2, 3))
        else:
            paper = _hsv(self.random.random(), self.random.uniform(0.05, 0.5), self.random.uniform(0.3, 1))
        dark = luma(paper) < 120
        far = (255, 255, 255) if dark else (0, 0, 0)
        ink = mix(far, paper, self.pick((0, 0, 0.1, 0.2, 0.3)))
        shift = self.random.random()
        accents = (_hsv(shift + i * 0.17, 0.6 if dark else 0.95, 1 if dark else 0.65) for i in range(6))
        return Theme(paper, mix(paper, far, 0.07), mix(paper, far, 0.25), ink, tuple(accents))

    def font(self, size: int) -> Font:
        """A random font at a size in pixels; the bitmap font has only one."""
        names = [n for n in self.fonts if n != "pillow bitmap" or 8 <= size <= 13]
        return load_font(self.pick(names or ["pillow"]), size)

    def outline_font(self, size: int) -> ImageFont.FreeTypeFont:
        """A random font other than the bitmap font, at a size in pixels."""
        font = load_font(self.pick([n for n in self.fonts if n != "pillow bitmap"] or ["pillow"]), size)
        assert isinstance(font, ImageFont.FreeTypeFont)
        return font

    def words(self, count: int, font: Font | None = None) -> str:
        """Words with spaces between; only those that a font can draw if one is given."""
        vocabulary = _vocabulary(font) if font else WORDS
        return " ".join(vocabulary[i] for i in self.random.integers(len(vocabulary), size=count))

    def title(self, count: int, font: Font | None = None) -> str:
        """Words, the first with a capital letter."""
        return self.words(count, font).capitalize()

    def number(self) -> str:
        """A number in one of the forms that tables have."""
        value = self.random.lognormal(4, 3)
        return self.pick(("{:.0f}", "{:.1f}", "{:,.2f}", "{:.0f}%", "${:,.0f}", "{:06.0f}", "-{:.3f}")).format(value)

    def fill(self, template: str) -> str:
        """A template with w, f, n, h and p in braces replaced by a word, a file, a number, hexadecimals, a path."""
        return re.sub(r"\{([wfnhp])\}", lambda m: self._slot(m[1]), template)

    def _slot(self, letter: str) -> str:
        word = self.pick(IDENTIFIERS)
        match letter:
            case "f":
                return word + self.pick((".py", ".c", ".json", ".txt", ".tar.gz", ".png", ".o", ""))
            case "n":
                return str(self.sized(1, 99999))
            case "h":
                return f"{self.random.integers(1 << 32):08x}"
            case "p":
                return f"{self.pick(('~', '/usr', 'src', '/home'))}/{word}/{self.pick(IDENTIFIERS)}"
        return word

    def smooth(self, height: int, width: int, cells: int) -> np.ndarray:
        """Smooth noise over 0..255: uint8 [height, width]."""
        coarse = self.random.integers(0, 256, (cells + 1, cells + 1), np.uint8)
        return np.asarray(Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC))

    def background(self) -> Image.Image:
        """The photograph, or gradients and smooth noise in its place."""
        if self.photograph is not None:
            return Image.fromarray(self.photograph)
        coarse = self.random.integers(0, 256, (self.between(2, 9), self.between(2, 9), 3), np.uint8)
        image = Image.fromarray(coarse).resize(self.size, Image.Resampling.BICUBIC)
        fine = self.random.integers(0, 256, (self.height // 4, self.width // 4, 3), np.uint8)
        return Image.blend(image, Image.fromarray(fine).resize(self.size, Image.Resampling.BILINEAR), 0.12)

    def box(self, least: float = 0.2, most: float = 0.8) -> Box:
        """A random box inside the picture, its sides fractions of the picture's."""
        w, h = (max(8, int(n * self.random.uniform(least, most))) for n in self.size)
        x, y = self.between(0, self.width - w), self.between(0, self.height - h)
        return x, y, x + w, y + h

    def part(self, height: int, width: int) -> Scene:
        """A scene of another size, no larger, over a part of the same photograph."""
        top, left = self.between(0, self.height - height), self.between(0, self.width - width)
        cut = None if self.photograph is None else self.photograph[top : top + height, left : left + width]
        return replace(self, height=height, width=width, photograph=cut)


def around(x: float, y: float, radius: float) -> tuple[float, float, float, float]:
    """The box of a circle."""
    return x - radius, y - radius, x + radius, y + radius


def path(x: np.ndarray, y: np.ndarray) -> list[float]:
    """Points as Pillow draws lines through them: x, y, x, y ..."""
    return np.stack([x, y], 1).ravel().tolist()


def mix(a: Colour, b: Colour, share: float) -> Colour:
    """Colour a with a share of b."""
    return tuple(round(x + (y - x) * share) for x, y in zip(a, b, strict=True))


def luma(colour: Colour) -> float:
    """The brightness of a colour, 0..255."""
    return 0.299 * colour[0] + 0.587 * colour[1] + 0.114 * colour[2]


def _hsv(hue: float, saturation: float, value: float) -> Colour:
    sectors = (hue * 6 + np.array([5, 3, 1])) % 6
    return tuple(map(int, 255 * (value - value * saturation * np.clip(np.minimum(sectors, 4 - sectors), 0, 1))))


@lru_cache(256)
def load_font(name: str, size: int) -> Font:
    """The font of a name out of `installed_fonts()`, at a size in pixels."""
    if name == "pillow bitmap":
        return ImageFont.load_default_imagefont()
    if name == "pillow":
        return ImageFont.load_default(size)
    return ImageFont.truetype(name, size, layout_engine=ImageFont.Layout.BASIC)


def font_height(font: Font) -> int:
    """The size of a font in pixels."""
    return int(font.size) if isinstance(font, ImageFont.FreeTypeFont) else 11


@lru_cache(256)
def _vocabulary(font: Font) -> tuple[str, ...]:
    """The words of which a font has every character: a missing one would be drawn as an empty box."""
    if not isinstance(font, ImageFont.FreeTypeFont):
        return tuple(word for word in WORDS if word.isascii())
    missing = bytes(font.getmask("\uffff"))
    strange = {c for word in WORDS for c in word if not c.isascii() and bytes(font.getmask(c)) == missing}
    return tuple(word for word in WORDS if not strange.intersection(word))
