"""Gradients, dithering, pixel art, test patterns, noise and bar codes: made of arrays."""

from __future__ import annotations

import math
from itertools import product

import numpy as np
from PIL import Image, ImageDraw

from .scene import BLACK, WHITE, Scene, load_font, mix, register


def tiled(scene: Scene, tile: np.ndarray) -> np.ndarray:
    """A tile repeated over the picture: [height, width, ...]."""
    repeats = (-(-scene.height // tile.shape[0]), -(-scene.width // tile.shape[1]), *(1,) * (tile.ndim - 2))
    return np.tile(tile, repeats)[: scene.height, : scene.width]


@register
def draw_pixel_art(scene: Scene) -> np.ndarray:
    """A game's screen: a map of tiles and mirrored figures in few colours, each pixel a square."""
    scale = scene.pick((1, 2, 2, 3, 4, 6, 8))
    h, w = -(-scene.height // scale), -(-scene.width // scale)
    palette = np.array(scene.colours(scene.pick((4, 8, 16))), np.uint8)
    size = scene.pick((8, 8, 16))
    tiles = np.zeros((6, size, size), np.uint8)
    for tile in tiles:
        a, b = scene.random.integers(0, len(palette), 2)
        texture = scene.random.random((size, size)) < scene.random.choice((0, 0.1, 0.3))
        tile[:] = np.where(texture, b, a)
        if scene.chance(0.4):  # bricks
            tile[:: size // 2], tile[: size // 2, 0], tile[size // 2 :, size // 2] = b, b, b
    rows, columns = -(-h // size), -(-w // size)
    level = scene.smooth(rows, columns, scene.between(1, 4)) // 43
    indices = tiles[level].transpose(0, 2, 1, 3).reshape(rows * size, columns * size)[:h, :w]
    for _ in range(scene.between(0, 1 + h * w // 1500)):
        side = scene.pick((8, 12, 16))
        half = scene.random.integers(0, 4, (side, side // 2)) * (scene.random.random((side, side // 2)) < 0.65)
        figure = np.concatenate([half, half[:, ::-1]], 1)
        inks = scene.random.integers(0, len(palette), 4)
        y, x = scene.between(0, h - 1), scene.between(0, w - 1)
        target = indices[y : y + side, x : x + side]
        figure = figure[: target.shape[0], : target.shape[1]]
        target[figure > 0] = inks[figure][figure > 0]
    return palette[indices].repeat(scale, 0).repeat(scale, 1)[: scene.height, : scene.width]


_BAYER = np.array([[0, 8, 2, 10], [12, 4, 14, 6], [3, 11, 1, 9], [15, 7, 13, 5]])


@register
def draw_dither(scene: Scene) -> np.ndarray | Image.Image:
    """A photograph or a gradient in few colours: ordered dither, error diffusion, or none; or in one bit."""
    scale = scene.pick((1, 1, 1, 2, 3))
    small = scene.part(-(-scene.height // scale), -(-scene.width // scale))
    image = small.background() if scene.chance(0.7) else Image.fromarray(draw_gradient(small))
    way = scene.pick(("ordered", "ordered", "adaptive", "fixed", "one bit"))
    dither = scene.pick((Image.Dither.FLOYDSTEINBERG, Image.Dither.FLOYDSTEINBERG, Image.Dither.NONE))
    if way == "ordered":
        gray = scene.chance(0.3)
        levels = scene.pick((1, 1, 2, 3, 5, 7))
        x = np.asarray(image.convert("L") if gray else image)
        threshold = tiled(small, ((_BAYER * 2 + 1) * 8).astype(np.uint16))
        step = (x.astype(np.uint16) * levels + (threshold if gray else threshold[:, :, None])) >> 8
        ramp = np.minimum(step, levels) * 255 // levels
        if gray:
            low, high = scene.pick(((BLACK, WHITE), ((15, 56, 15), (155, 188, 15)), scene.colours(2)))
            x = np.array([mix(low, high, i / 255) for i in range(256)], np.uint8)[ramp]
        else:
            x = ramp.astype(np.uint8)
        image = Image.fromarray(x)
    elif way == "adaptive":
        palette = image.reduce(4).quantize(scene.pick((4, 8, 16, 64, 256)))
        image = image.quantize(palette=palette, dither=dither).convert("RGB")
    elif way == "fixed":
        palette = Image.new("P", (1, 1))
        palette.putpalette([v for c in scene.pick((_EGA, _EGA, scene.colours(8))) for v in c])
        image = image.quantize(palette=palette, dither=dither).convert("RGB")
    else:
        image = image.convert("1", dither=dither).convert("RGB")
    return image.resize((small.width * scale, small.height * scale), Image.Resampling.NEAREST).crop((0, 0, *scene.size))


_EGA = (*product((0, 170), repeat=3), *product((85, 255), repeat=3))


@register
def draw_gradient(scene: Scene) -> np.ndarray:
    """A gradient of two to four colours, linear, radial, conical or bilinear, smooth, in bands or dithered by noise."""
    x = np.linspace(-1, 1, scene.width, dtype=np.float32)[None]
    y = np.linspace(-1, 1, scene.height, dtype=np.float32)[:, None]
    a, b = scene.random.uniform(-0.7, 0.7, 2)
    match scene.between(0, 5):
        case 0 | 1:
            angle = scene.random.choice((0, math.pi / 2, scene.random.uniform(0, 6.3)))
            field = (x * math.cos(angle) + y * math.sin(angle)) / 2.8 + 0.5
        case 2 | 3:
            field = np.hypot(x - a, y - b) / 1.8
        case 4:
            field = np.arctan2(y - b, x - a) / (2 * math.pi) + 0.5
        case _:
            corners = Image.fromarray(scene.random.integers(0, 256, (2, 2, 3), np.uint8))
            return np.asarray(corners.resize(scene.size, Image.Resampling.BILINEAR))
    field = np.clip(field, 0, 1)
    if scene.chance(0.25):
        bands = scene.between(3, 24)
        field = np.floor(field * bands) / bands
    if scene.chance(0.15):
        field = field + scene.random.standard_normal(field.shape, np.float32) * np.float32(0.004)
    stops = np.array(scene.colours(scene.between(2, 4)), np.float32)
    table = np.stack([np.interp(np.linspace(0, 1, 1024), np.linspace(0, 1, len(stops)), c) for c in stops.T], 1)
    return np.rint(table).astype(np.uint8)[np.clip(field * 1023, 0, 1023).astype(np.int32)]


@register
def draw_flat(scene: Scene) -> np.ndarray | Image.Image:
    """One colour, or a few in plain rectangles."""
    image = Image.new("RGB", scene.size, scene.colour())
    pen = ImageDraw.Draw(image)
    for _ in range(scene.pick((0, 1, 2, 5, 20))):
        pen.rectangle(scene.box(0.02, 0.7), scene.colour())
    return image


@register
def draw_colour_bars(scene: Scene) -> Image.Image:
    """A television test card: bars in the corners of the colour cube, steps of gray, outlined text."""
    level = scene.pick((255, 255, 191))
    bars = [(r * level, g * level, b * level) for g, r, b in product((1, 0), repeat=3)]
    strip = np.array(bars, np.uint8)[None]
    steps = np.linspace(0, 255, scene.between(2, 16)).astype(np.uint8)[None, :, None].repeat(3, 2)
    rows = [strip] * scene.between(2, 5) + [scene.pick((strip[:, ::-1], steps))] * scene.between(0, 2)
    image = Image.new("RGB", scene.size)
    for i, row in enumerate(rows):
        top, bottom = i * scene.height // len(rows), (i + 1) * scene.height // len(rows)
        size = scene.width, max(1, bottom - top)
        image.paste(Image.fromarray(row).resize(size, Image.Resampling.NEAREST), (0, top))
    pen = ImageDraw.Draw(image)
    for _ in range(scene.between(0, 6)):
        font, stroke = scene.outline_font(scene.sized(10, 70)), scene.pick((0, 1, 2, 3))
        where = (scene.between(-10, scene.width // 2), scene.between(0, scene.height - 20))
        pen.text(where, scene.title(2, font), scene.pick(bars), font, stroke_width=stroke, stroke_fill=scene.pick(bars))
    return image


def random_grain(scene: Scene, channels: int) -> np.ndarray:
    """Noise about zero: uniform, Gaussian, salt and pepper, or one bit: int16 [height, width, channels]."""
    shape = (scene.height, scene.width, channels)
    strength = scene.sized(3, 160)
    match scene.between(0, 5):
        case 0 | 1:
            return scene.random.integers(-strength, strength + 1, shape, np.int16)
        case 2 | 3:
            normal = scene.random.standard_normal(shape, np.float32) * np.float32(strength * 0.6)
            return np.rint(normal).astype(np.int16)
        case 4:
            dots = scene.random.integers(0, 256, shape, np.int16)
            rare = scene.sized(2, 100)
            return np.where(dots < rare, -255, np.where(dots >= 256 - rare, 255, 0)).astype(np.int16)
        case _:
            return (scene.random.integers(0, 2, shape, np.int16) * 2 - 1) * np.int16(strength)


@register
def draw_noise(scene: Scene) -> np.ndarray:
    """Noise, gray or in colour, over a colour, in pixels or in blocks."""
    block = scene.pick((1, 1, 1, 1, 1, 1, 2, 4))
    small = scene.part(-(-scene.height // block), -(-scene.width // block))
    middle = np.array(scene.pick(((128, 128, 128),) * 4 + (scene.colour(),)), np.int16)
    pixels = np.clip(middle + random_grain(small, scene.pick((1, 3))), 0, 255).astype(np.uint8)
    return pixels.repeat(block, 0).repeat(block, 1)[: scene.height, : scene.width]


_WEAVES = (  # of a row, a column, a period and a second number
    lambda v, u, p, q: v // p % 2 + 0 * u,
    lambda v, u, p, q: u // p % 2 + 0 * v,
    lambda v, u, p, q: (u + v * q) // p % 2,
    lambda v, u, p, q: (u // p + v // p) % 2,
    lambda v, u, p, q: (u % (4 * p) < q) | (v % (4 * p) < q),
    lambda v, u, p, q: (u % (3 * p) < p) & (v % (3 * p) < p),
    lambda v, u, p, q: (u % (2 * p + 1) - p) ** 2 + (v % (2 * p + 1) - p) ** 2 < p * p * 0.6,
    lambda v, u, p, q: (u & v) // p % 2,
)


@register
def draw_pattern(scene: Scene) -> np.ndarray:
    """Stripes, checkers, grids, dots or a woven tile, one pattern or several in blocks."""
    columns, rows = (scene.pick((1, 1, 2, 4)) for _ in range(2))
    out = np.empty((scene.height, scene.width, 3), np.uint8)
    y, x = np.ogrid[: scene.height, : scene.width]
    for i, j in np.ndindex(rows, columns):
        block = np.s_[
            i * scene.height // rows : (i + 1) * scene.height // rows,
            j * scene.width // columns : (j + 1) * scene.width // columns,
        ]
        v, u = y[block[0]], x[:, block[1]]
        p, q = scene.pick((1, 1, 2, 3, 4, 8, 16)), scene.pick((1, 2, 4, 8))
        on = scene.pick(_WEAVES)(v, u, p, q)
        pair = np.array(scene.pick(((BLACK, WHITE), scene.colours(2), (scene.colour(), scene.colour()))), np.uint8)
        out[block] = pair[on.astype(np.intp)]
    return out


@register
def draw_zone_plate(scene: Scene) -> np.ndarray:
    """A zone plate: a cosine whose frequency grows with the distance, gray or in colour, smooth or of two levels."""
    y = np.arange(scene.height, dtype=np.float32)[:, None] - scene.height * scene.random.choice((0, 0.5, 0.5))
    x = np.arange(scene.width, dtype=np.float32)[None] - scene.width * scene.random.choice((0, 0.5, 0.5))
    phase = (x * x + y * y) * np.float32(math.pi / max(scene.size) * scene.random.choice((0.3, 1, 1, 2)))
    contrast = scene.pick((127.5, 127.5, 60, 20))
    turns = np.arange(1024) * (2 * math.pi / 1024)
    shifts = scene.pick((BLACK, BLACK, (0, 2.1, 4.2), tuple(scene.random.random(3) * 6)))
    wave = np.stack([np.cos(turns + s) for s in shifts], 1)
    wave = np.sign(wave) if scene.chance(0.2) else wave
    table = np.clip(127.5 + contrast * wave, 0, 255).astype(np.uint8)
    return table[(phase * np.float32(1024 / (2 * math.pi))).astype(np.int32) & 1023]


@register
def draw_impulses(scene: Scene) -> np.ndarray:
    """Single pixels of one or several colours on a plain ground, on a grid or at random."""
    ground, *inks = scene.pick(((BLACK, WHITE), (WHITE, BLACK), tuple(scene.colour() for _ in range(5))))
    out = np.empty((scene.height, scene.width, 3), np.uint8)
    out[:] = ground
    if scene.chance(0.4):
        step = scene.sized(2, 64)
        out[scene.between(0, step - 1) :: step, scene.between(0, step - 1) :: step] = scene.pick(inks)
        return out
    count = scene.sized(1, 4000)
    rows, columns = scene.random.integers(0, scene.height, count), scene.random.integers(0, scene.width, count)
    out[rows, columns] = np.array(inks, np.uint8)[scene.random.integers(0, len(inks), count)]
    return out


@register
def draw_barcode(scene: Scene) -> Image.Image:
    """Labels with a bar code and its digits, or square codes with their three eyes."""
    theme = scene.theme(scene.pick(("light", "light", None)))
    image = Image.new("RGB", scene.size, theme.paper)
    pen = ImageDraw.Draw(image)
    for _ in range(scene.between(1, 5)):
        x, y = scene.between(0, scene.width * 2 // 3), scene.between(0, scene.height * 2 // 3)
        scale = scene.between(1, max(1, min(scene.size) // 60))
        if scene.chance(0.5):
            n = 17 + 4 * scene.between(1, 8)
            cells = scene.random.integers(0, 2, (n, n), np.uint8) * 255
            cells[6], cells[:, 6] = np.arange(n) % 2 * 255, np.arange(n) % 2 * 255
            rings = np.maximum(*np.abs(np.mgrid[-4:5, -4:5]))
            eye = np.where((rings == 2) | (rings == 4), 255, 0).astype(np.uint8)
            cells[:8, :8], cells[:8, -8:], cells[-8:, :8] = eye[1:, 1:], eye[1:, :8], eye[:8, 1:]
            code = np.pad(cells, 3, constant_values=255)
        else:
            widths = scene.random.integers(1, 5, 60)
            code = (np.arange(60) % 2 * 255).astype(np.uint8).repeat(widths)[None].repeat(scene.between(30, 60), 0)
            code = np.pad(code, ((3, 12), (9, 9)), constant_values=255)
        mark = Image.fromarray(code).resize((code.shape[1] * scale, code.shape[0] * scale), Image.Resampling.NEAREST)
        image.paste(mark, (x, y))
        if code.shape[0] != code.shape[1]:
            font = load_font("pillow", max(8, 10 * scale))
            digits = " ".join(map(str, scene.random.integers(0, 10, 13)))
            pen.text((x + 10 * scale, y + mark.height - 12 * scale), digits, BLACK, font)
    return image
