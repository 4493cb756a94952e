"""Lossless tiles: what the networks do badly is coded by WebP's lossless mode (VP8L), through Pillow.

A payload is a VP8L image without the containers and the five bytes of header in front of it, which the tile's size
determines (docs/format.md, section 7.5). So a payload cannot claim another size, and a reader knows what it allocates.

`choose` decides which tiles of an image are coded so: `worth_trying` is the cheap look that names those to try,
`Distortion` and `promise` are what the choice is made by; `extend_latents` gives the synthesis something to see under a
lossless tile.
"""

from __future__ import annotations

import io
import struct
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass, replace
from itertools import groupby, product

import numpy as np
from PIL import Image, features
from torch import Tensor

from . import container
from .constants import MAX_QUALITY, MIN_QUALITY
from .container import Container, Header, Limits, TileData
from .errors import CorruptStreamError, UnavailableError
from .geometry import SYNTHESIS_HALO, Grid, Rect
from .images import as_coded, decode_part

# Method 6 is 15 times slower than 4; of eight screenshots it made one smaller (docs/architecture.md).
_METHOD, _EFFORT = 4, 100
_SIGNATURE = 0x2F
_RIFF = struct.Struct("<4sI4s4sI")  # RIFF, size, WEBP, VP8L, size
_VP8L = struct.Struct("<BI")  # signature; width - 1 and height - 1 in 14 bits each, alpha, version

# A tile is tried losslessly if one of these is so. Kodak's images stay below each of them, most by far; figures in
# docs/architecture.md.
_PREDICTED = 0.5  # share of pixels that equal their left or upper neighbour, or left + upper - upper left
_EDGES = 0.003  # share of steps of _EDGE levels and more that begin or end beside an exactly equal pixel: drawn things
_EDGE = 96
_ROUGH = 25  # mean step between neighbours, in levels: noise and patterns
_FEW_COLOURS = 48  # in a sample
_SMALL_PIXELS = 4096  # trying costs nothing
_DEAR_BITS = 3.0  # a pixel, which the network spends
_SAMPLED_PIXELS = 24576  # about, in whole rows, each fourth at most
# The sample of `is_hopeless`: bands of so many rows, together this share of a tile.
_BAND, _BANDS_SHARE = 16, 8
_SAMPLED_ABOVE = 1 << 16  # pixels; smaller tiles are quickly coded whole
# What of 138 drawn pictures and photographs is coded in bands takes at most 4 times its share, but for those that take
# less than _NEXT_TO_NOTHING in all: what repeats from band to band is paid again.
_SAMPLE_FACTOR, _NEXT_TO_NOTHING = 4, 1 << 14

# What a bit-exact tile is worth in itself. It also keeps a small picture lossless from one quality to the next.
_BONUS_BITS = 128

# Tiles of a row that one image may hold: a screen of 4K is 4 tiles wide, and whoever wants one of them decodes 4.
_JOINED_TILES = 4
_MOST_PIXELS = (1 << 14) - 1  # a side of a WebP image

BLOCK = 16  # side of the blocks of which the worst one counts

# What keeping the promise in every block may cost where it is kept on average: so many times the network's bytes, or so
# many bytes more.
_MOST_TIMES, _MOST_BYTES = 4, 1 << 17
_NO_LIMITS = Limits(1 << 62, 1 << 62)  # for files of our own


def _require() -> None:
    """Raises UnavailableError where this Pillow has no WebP."""
    if not features.check("webp"):
        raise UnavailableError("lossless tiles need a Pillow with WebP, which this one was built without")


def encode(pixels: np.ndarray) -> bytes:
    """A tile's payload. pixels: uint8 [height, width, 3] or [height, width], at most 16,383 a side.

    Raises UnavailableError where this Pillow has no WebP.
    """
    _require()
    height, width = pixels.shape[:2]
    rgb = pixels if pixels.ndim == 3 else np.repeat(pixels[:, :, None], 3, axis=2)
    buffer = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(rgb)).save(buffer, "WEBP", lossless=True, method=_METHOD, quality=_EFFORT)
    data = buffer.getvalue()
    _, _, _, chunk, size = _RIFF.unpack_from(data)
    if chunk != b"VP8L" or data[_RIFF.size : _RIFF.size + _VP8L.size] != _header(height, width):
        raise UnavailableError("this Pillow does not write lossless WebP as one plain VP8L chunk")
    return data[_RIFF.size + _VP8L.size : _RIFF.size + size]


def decode(payload: bytes | memoryview, height: int, width: int) -> np.ndarray:
    """The pixels of a payload, uint8 [height, width, 3].

    Raises CorruptStreamError for what is not a VP8L image of this size, UnavailableError where this Pillow has no WebP.
    """
    _require()
    image = _header(height, width) + bytes(payload)
    padded = image + bytes(len(image) % 2)
    data = _RIFF.pack(b"RIFF", 12 + len(padded), b"WEBP", b"VP8L", len(image)) + padded
    return decode_part(data, "WEBP", "RGB", (width, height), "lossless pixels")


def _header(height: int, width: int) -> bytes:
    return _VP8L.pack(_SIGNATURE, (width - 1) | (height - 1) << 14)


# ---- which tiles


def choose(
    pixels: np.ndarray,
    header: Header,
    tiles: list[TileData],
    worth: float,
    decode: Callable[[Container, Rect], np.ndarray],
) -> list[TileData]:
    """An image's tiles as the networks coded them, to those that its file will have.

    A tile that looks as if lossless coding might serve it is coded so too, unless a sample says that this is hopeless,
    and what the network's payload decodes to is compared: by bits + worth * squared error, and by what the quality
    promises. A lossless tile changes what the synthesis sees beside it, so the neighbours that were tried are looked at
    again.

    pixels: uint8 [H, W, 3] or [H, W]. worth: bits for a squared error, lambda of training at the header's quality.
    decode: the pixels of a rectangle of such a file, uint8 [height, width, 3], those of lossless tiles undefined.
    """
    if not features.check("webp"):
        return tiles
    grid = header.grid
    rects, areas, tiles = list(grid.tiles()), grid.areas(), list(tiles)
    tried: dict[int, bytes | None] = {  # None: not coded yet
        number: None
        for number, (area, tile) in enumerate(zip(areas, tiles, strict=True))
        if worth_trying(pixels[area.slices], len(tile.payload))
    }
    looked_at = list(tried)
    while looked_at:
        changed = []
        file = container.read(container.write(header, tiles), _NO_LIMITS)
        for number in looked_at:
            area = areas[number]
            part, size = pixels[area.slices], len(tiles[number].payload)
            found = Distortion.between(part, as_coded(decode(file, area), header.grayscale))
            cost = 8 * size + worth * found.mean * area.height * area.width
            promised = promise(header.quality)
            if found.within(promised) and tried[number] is None and is_hopeless(part, cost):
                continue
            payload = tried[number] = tried[number] or encode(part)
            # A photograph must not grow tenfold for the sake of one block of its own.
            dear = len(payload) > max(_MOST_TIMES * size, size + _MOST_BYTES)
            kept = found.within(promised) or (dear and found.mean <= promised.mean)
            if is_better(payload, cost) or not kept:
                tiles[number] = TileData(payload, tiles[number].alpha, lossless=True)
                del tried[number]
                changed.append(rects[number].grown(2 * SYNTHESIS_HALO, grid.latent_height, grid.latent_width))
        looked_at = [number for number in tried if any(rects[number].meets(around) for around in changed)]
    return join(tiles, pixels, grid)


def worth_trying(pixels: np.ndarray, payload_bytes: int) -> bool:
    """Whether lossless coding might serve a tile better than the network, which takes so many bytes.

    pixels: uint8 [height, width, 3] or [height, width].
    """
    count = pixels.shape[0] * pixels.shape[1]
    if count <= _SMALL_PIXELS or min(pixels.shape[:2]) < 4 or 8 * payload_bytes > _DEAR_BITS * count:
        return True
    levels = pixels if pixels.ndim == 3 else pixels[:, :, None]
    every = max(4, count // _SAMPLED_PIXELS)
    rows = levels[1::every]
    left, here = rows[:, :-1], rows[:, 1:]
    step = (np.maximum(left, here) - np.minimum(left, here)).max(2)
    flat, edge = step == 0, step[:, 1:-1] >= _EDGE
    if step.mean() > _ROUGH or (edge & (flat[:, :-2] | flat[:, 2:])).mean() > _EDGES:
        return True
    above = levels[: len(levels) - 1 : every]
    ramp = here - above[:, 1:] == left - above[:, :-1]  # modulo 256
    predicted = flat | (here == above[:, 1:]).all(2) | ramp.all(2)
    if predicted.mean() > _PREDICTED:
        return True
    sample = rows.reshape(-1, levels.shape[2])
    sample = sample[:: max(1, len(sample) // 2048)].astype(np.uint32)
    keys = sample @ (256 ** np.arange(sample.shape[1], dtype=np.uint32))
    return len(np.unique(keys)) <= _FEW_COLOURS


def is_hopeless(pixels: np.ndarray, other_bits: float) -> bool:
    """Whether a lossless payload of a tile can't cost as little as so many bits: so says a sample of its rows.

    pixels: as of `encode`. A smooth photograph looks like a drawing to `worth_trying`, and to code it losslessly takes
    many times as long as all else.
    """
    height, width = pixels.shape[:2]
    if height * width <= _SAMPLED_ABOVE or height < 2 * _BAND:
        return False
    count = max(1, height // (_BAND * _BANDS_SHARE))
    tops = [(2 * i + 1) * (height - _BAND) // (2 * count) for i in range(count)]
    sample = np.concatenate([pixels[top : top + _BAND] for top in tops])
    bits = 8 * len(encode(sample)) * height / len(sample)
    return bits > _SAMPLE_FACTOR * other_bits + _NEXT_TO_NOTHING


def is_better(payload: bytes, other_bits: float) -> bool:
    """Whether a lossless payload is better than something that costs so many bits, distortion included."""
    return 8 * len(payload) < other_bits + _BONUS_BITS


@dataclass(frozen=True)
class Distortion:
    """Squared errors in levels: the mean over all values, and that of the worst block of 16 x 16 pixels."""

    mean: float
    worst: float

    @classmethod
    def between(cls, pixels: np.ndarray, decoded: np.ndarray) -> Distortion:
        """Both uint8 [height, width, 3] or [height, width]. A block may be cut off by the lower and right edge."""
        error = np.square(pixels.astype(np.int32) - decoded)
        error = error if error.ndim == 2 else error.sum(2) / error.shape[2]
        starts = [np.arange(0, side, BLOCK) for side in error.shape]
        sums = np.add.reduceat(np.add.reduceat(error, starts[0], axis=0), starts[1], axis=1)
        sizes = [np.diff([*edges, side]) for edges, side in zip(starts, error.shape, strict=True)]
        return cls(float(error.mean()), float((sums / np.outer(*sizes)).max()))

    def within(self, other: Distortion) -> bool:
        """Whether neither error is larger."""
        return self.mean <= other.mean and self.worst <= other.worst


def promise(quality: int) -> Distortion:
    """The largest errors that a tile coded by the network may have: PSNR of 18 dB at quality 10, 24 at 60, 32 at 90,
    linear between and beyond; 6 dB less for the worst block. It binds where `worth_trying` has a tile looked at."""
    psnr = float(np.interp(quality, (MIN_QUALITY, 10, 60, 90, MAX_QUALITY), (17, 18, 24, 32, 34)))
    return Distortion(255**2 * 10 ** (-psnr / 10), 255**2 * 10 ** (-(psnr - 6) / 10))


# ---- beside network tiles


def images_within(file: Container, area: Rect) -> list[tuple[int, Rect]]:
    """The lossless images of a file that meet a rectangle of pixels: the number of the tile that holds each, and the
    pixels that it covers, those of the tiles that continue it included.

    Raises CorruptStreamError for a tile that continues none.
    """
    found: list[tuple[int, Rect]] = []
    for number, pixels in enumerate(file.header.grid.areas()):
        if not file.lossless[number]:
            continue
        if file.lengths[number][0]:
            found.append((number, pixels))
            continue
        first, before = found[-1] if found else (number, pixels)
        if before.top != pixels.top or before.right != pixels.left or pixels.right - before.left > _MOST_PIXELS:
            raise CorruptStreamError(f"tile {number} is damaged: it continues no lossless tile", number)
        found[-1] = first, Rect(before.top, before.left, before.bottom, pixels.right)
    return [(number, pixels) for number, pixels in found if pixels.meets(area)]


def needs_network(file: Container, area: Rect) -> bool:
    """Whether a tile that meets a rectangle of pixels was coded by the networks."""
    areas = file.header.grid.areas()
    return any(areas[number].meets(area) for number in file.network_tiles)


def parts_within(file: Container, area: Rect) -> Iterator[tuple[tuple[slice, slice], np.ndarray]]:
    """The lossless tiles' part of a rectangle of pixels: rows and columns within it, and uint8 [height, width, 3].

    Raises CorruptStreamError naming the tile.
    """
    for number, covered in images_within(file, area):
        kept = covered.common(area)
        yield kept.within(area).slices, read_image(file, number, covered)[kept.within(covered).slices]


def join(tiles: list[TileData], pixels: np.ndarray, grid: Grid) -> list[TileData]:
    """The tiles of an image, with lossless neighbours of a row in one image where that takes fewer bytes: the first one
    holds it, and the others are empty. pixels: the whole image."""
    tiles, areas, columns = list(tiles), grid.areas(), len(grid.columns) - 1
    for row in range(0, len(tiles), columns):
        for lossless, group in groupby(range(row, row + columns), key=lambda number: tiles[number].lossless):
            run = list(group)
            for start in range(0, len(run) if lossless else 0, _JOINED_TILES):
                first, *others = part = run[start : start + _JOINED_TILES]
                area = Rect(areas[first].top, areas[first].left, areas[first].bottom, areas[part[-1]].right)
                together = encode(pixels[area.slices]) if others else None
                if together and len(together) < sum(len(tiles[number].payload) for number in part):
                    tiles[first] = replace(tiles[first], payload=together)
                    for number in others:
                        tiles[number] = replace(tiles[number], payload=b"")
    return tiles


def read_image(file: Container, number: int, pixels: Rect) -> np.ndarray:
    """The pixels that `images_within` found, uint8 [height, width, 3]. Raises CorruptStreamError naming the tile."""
    payload = file.tile(number).payload
    try:
        return decode(payload, pixels.height, pixels.width)
    except CorruptStreamError as error:
        raise CorruptStreamError(f"tile {number} is damaged: {error}", number) from error


def extend_latents(latents: Tensor, box: Rect, grid: Grid, lossless: Collection[int]) -> None:
    """Continue the latents of network tiles into the lossless tiles beside them, as far as the synthesis sees.

    latents: [files, height, width, M], covering `box` of the grid, zero in lossless tiles. A lossless tile's 3 x 3
    corners take the nearest latent of the tile diagonally across, its first and last 3 rows that of the tile above and
    below, then its first and last 3 columns that of the tile to the left and right, where these are network tiles. With
    zeros there instead, the last 8 pixels before the border lose 10 dB at quality 90, and with this 3.
    """
    tiles, columns = list(grid.tiles()), len(grid.columns) - 1
    beside = sorted(product((-1, 0, 1), repeat=2), key=lambda step: (not all(step), step[0] == 0))
    for number in lossless:
        tile = tiles[number]
        if not tile.meets(box):
            continue
        row, column = divmod(number, columns)
        for down, right in beside:
            there = (row + down) * columns + column + right
            inside = 0 <= row + down < len(grid.rows) - 1 and 0 <= column + right < columns
            if not inside or there in lossless or there == number:
                continue
            rows, source_rows = _strip(down, tile.top, tile.bottom)
            across, source_across = _strip(right, tile.left, tile.right)
            target = Rect(rows[0], across[0], rows[1], across[1])
            source = Rect(source_rows[0], source_across[0], source_rows[1], source_across[1])
            if target.meets(box) and source.meets(box):
                target, source = target.common(box), source.common(box)
                latents[:, *target.within(box).slices] = latents[:, *source.within(box).slices]


def _strip(step: int, first: int, end: int) -> tuple[tuple[int, int], tuple[int, int]]:
    """Along one axis of a tile: what is filled, and from where, if the neighbour is `step` tiles away."""
    if step == 0:
        return (first, end), (first, end)
    if step < 0:
        return (first, first + SYNTHESIS_HALO), (first - 1, first)
    return (end - SYNTHESIS_HALO, end), (end, end + 1)
