"""Sizes: pixels, latents, hyper latents, tiles and the windows that the transforms run over (docs/format.md)."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise, product

from .constants import HYPER_STRIDE, LATENT_STRIDE, MIN_TILE_LATENTS, TILE_LATENTS

# How far, in latents, a transform's output sees (docs/architecture.md counts it): windows carry that much halo.
ANALYSIS_HALO = 4
SYNTHESIS_HALO = 3


@dataclass(frozen=True)
class Rect:
    """A half-open rectangle: rows top..bottom-1, columns left..right-1."""

    top: int
    left: int
    bottom: int
    right: int

    @property
    def height(self) -> int:
        return self.bottom - self.top

    @property
    def width(self) -> int:
        return self.right - self.left

    def grown(self, halo: int, height: int, width: int) -> Rect:
        """This rectangle with `halo` more on every side, cut at the borders of a height x width grid."""
        around = Rect(self.top - halo, self.left - halo, self.bottom + halo, self.right + halo)
        return around.common(Rect(0, 0, height, width))

    def scaled(self, factor: int) -> Rect:
        """The same rectangle on a grid `factor` times as fine."""
        return Rect(self.top * factor, self.left * factor, self.bottom * factor, self.right * factor)

    def within(self, outer: Rect) -> Rect:
        """This rectangle in coordinates that start at the corner of `outer`."""
        return Rect(self.top - outer.top, self.left - outer.left, self.bottom - outer.top, self.right - outer.left)

    def clipped(self, height: int, width: int) -> Rect:
        """The part of this rectangle inside a height x width grid."""
        return Rect(self.top, self.left, min(self.bottom, height), min(self.right, width))

    def common(self, other: Rect) -> Rect:
        """The part that two rectangles share; they must meet."""
        top, left = max(self.top, other.top), max(self.left, other.left)
        return Rect(top, left, min(self.bottom, other.bottom), min(self.right, other.right))

    def meets(self, other: Rect) -> bool:
        """Whether the two rectangles share a position."""
        return (
            self.top < other.bottom and other.top < self.bottom and self.left < other.right and other.left < self.right
        )

    @property
    def slices(self) -> tuple[slice, slice]:
        """Rows and columns for indexing an array."""
        return slice(self.top, self.bottom), slice(self.left, self.right)


def ceil_div(value: int, divisor: int) -> int:
    return -(-value // divisor)


def tile_edges(length: int, side: int = TILE_LATENTS) -> list[int]:
    """Beginnings of the tiles along one axis of `length` latents, and its end: [0, 64, ..., length].

    A remainder under `MIN_TILE_LATENTS` joins its neighbour, so the last tile has 16 to 79 latents (or all of a short
    axis)."""
    return [*range(0, _tiles_along(length, side) * side, side), length]


def _tiles_along(length: int, side: int) -> int:
    return max(1, length // side + (length % side >= MIN_TILE_LATENTS))


@dataclass(frozen=True)
class Grid:
    """An image's latents and tiles. Tiles are numbered row-major."""

    height: int  # pixels
    width: int
    tile_latents: int = TILE_LATENTS

    @property
    def latent_height(self) -> int:
        return ceil_div(self.height, LATENT_STRIDE)

    @property
    def latent_width(self) -> int:
        return ceil_div(self.width, LATENT_STRIDE)

    @property
    def rows(self) -> list[int]:
        return tile_edges(self.latent_height, self.tile_latents)

    @property
    def columns(self) -> list[int]:
        return tile_edges(self.latent_width, self.tile_latents)

    @property
    def tile_count(self) -> int:
        # Counted, not listed: a reader asks this of sizes that no file has proved yet.
        return _tiles_along(self.latent_height, self.tile_latents) * _tiles_along(self.latent_width, self.tile_latents)

    def tiles(self) -> Iterator[Rect]:
        """The tiles in latents, in the order of the file."""
        for (top, bottom), (left, right) in product(pairwise(self.rows), pairwise(self.columns)):
            yield Rect(top, left, bottom, right)

    def areas(self) -> list[Rect]:
        """The pixels of each tile."""
        return [tile.scaled(LATENT_STRIDE).clipped(self.height, self.width) for tile in self.tiles()]

    def latents_under(self, pixels: Rect) -> Rect:
        """The smallest rectangle of latents that covers a rectangle of pixels."""
        bottom, right = ceil_div(pixels.bottom, LATENT_STRIDE), ceil_div(pixels.right, LATENT_STRIDE)
        return Rect(pixels.top // LATENT_STRIDE, pixels.left // LATENT_STRIDE, bottom, right)


def hyper_size(latents: int) -> int:
    """Hyper latents along an axis of a tile with so many latents."""
    return ceil_div(latents, HYPER_STRIDE)


def windows(area: Rect, max_positions: int) -> Iterator[Rect]:
    """Cut `area` into windows of at most about `max_positions` positions, near square, so that the halo costs least."""
    side = max(8, int(max_positions**0.5))
    columns = max(1, ceil_div(area.width, side))
    width = ceil_div(area.width, columns)
    height = max(8, max_positions // max(1, width))
    for top in range(area.top, area.bottom, height):
        for left in range(area.left, area.right, width):
            yield Rect(top, left, min(top + height, area.bottom), min(left + width, area.right))
