"""Charts, maps, diagrams, line art, logos and cartoons: shapes drawn large and reduced, or with hard edges."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from PIL import Image, ImageDraw

from .scene import BLACK, WHITE, Box, Colour, Font, Scene, Theme, around, font_height, mix, path, register
from .screens import put_label
from .writing import line_of_words


def _canvas(scene: Scene, paper: Colour) -> tuple[Image.Image, ImageDraw.ImageDraw, int]:
    """An image, its pen and its scale: 1 for hard edges, 2 or 3 for edges made smooth by `Image.reduce`."""
    scale = scene.pick((1, 2, 2, 3))
    image = Image.new("RGB", (scene.width * scale, scene.height * scale), paper)
    return image, ImageDraw.Draw(image), scale


def _curve(scene: Scene, count: int) -> np.ndarray:
    """A series over 0..1: a random walk, waves, growth, or independent values: float [count]."""
    x = np.linspace(0, 1, count)
    match scene.between(0, 3):
        case 0:
            y = np.cumsum(scene.random.standard_normal(count))
        case 1:
            y = np.sin(x * scene.random.uniform(4, 30) + scene.random.random() * 6) * scene.random.uniform(0.5, 1) + x
        case 2:
            y = np.exp(x * scene.random.uniform(-4, 4)) + scene.random.standard_normal(count) * 0.03
        case _:
            y = scene.random.random(count)
    return (y - y.min()) / max(1e-9, float(np.ptp(y)))


def _plot(scene: Scene, pen: ImageDraw.ImageDraw, box: Box, theme: Theme, scale: int) -> None:
    """Series of one form inside a box: lines, areas, bars, points, a pie or a map of heat."""
    left, top, right, bottom = box
    width, height = right - left, bottom - top
    form = scene.pick(("lines", "lines", "areas", "bars", "bars", "points", "pie", "heat"))
    inks = (*theme.accents, *scene.colours(3)) if scene.chance(0.5) else scene.colours(9)
    series = scene.between(1, 5)
    thick = scale * scene.pick((1, 1, 2, 3))
    if form == "pie":
        radius, start = min(width, height) * 0.46, scene.between(0, 359)
        cx, cy = (left + right) / 2, (top + bottom) / 2
        shares = np.cumsum(scene.random.dirichlet(np.ones(series + 2) * 2)) * 360 + start
        for ink, a, b in zip(inks, (start, *shares), shares, strict=False):
            pen.pieslice(around(cx, cy, radius), a, b, ink, theme.paper, thick)
        if scene.chance(0.4):
            pen.ellipse(around(cx, cy, radius / 2), theme.paper)
    elif form == "heat":
        n, m = scene.between(4, 14), scene.between(4, 14)
        values = scene.smooth(m, n, 3) / 255 if scene.chance(0.5) else scene.random.random((m, n))
        for i, j in np.ndindex(n, m):
            cx, cy = left + i * width // n, top + j * height // m
            pen.rectangle((cx, cy, cx + width // n, cy + height // m), mix(inks[0], inks[1], float(values[j, i])))
    elif form == "bars":
        n = scene.between(3, max(3, 20 // series))
        values = np.stack([_curve(scene, n) * 0.85 + 0.1 for _ in range(series)])
        step = width / n
        for i, j in np.ndindex(series, n):
            start, wide = left + step * (j + 0.1 + 0.8 * i / series), max(0, 0.8 * step / series - 1)
            pen.rectangle((start, bottom - float(values[i, j]) * height, start + wide, bottom), inks[i])
    else:
        count = scene.sized(5, 200)
        for ink in inks[:series]:
            x = np.linspace(left, right, count)
            if form == "points":
                x = np.clip(scene.random.normal(0.5, 0.18, count), 0, 1) * width + left
            low, high = np.sort(scene.random.random(2))
            y = bottom - (low + (high - low) * _curve(scene, count)) * height
            points = path(x, y)
            if form == "areas":
                pen.polygon([left, bottom, *points, right, bottom], ink)
            elif form == "lines":
                pen.line(points, ink, thick, "curve" if thick > 1 else None)
            if form == "points" or count < 25:
                r = scale * scene.pick((2, 3, 4))
                shape = scene.pick((pen.ellipse, pen.rectangle))
                for px, py in zip(x, y, strict=True):
                    shape(around(px, py, r), ink, theme.paper if r > 2 * scale else None)


@register
def draw_chart(scene: Scene) -> Image.Image:
    """One chart or a few: axes, grid, ticks, labels, a title, a legend."""
    theme = scene.theme()
    image, pen, s = _canvas(scene, theme.paper)
    font, big = scene.font(scene.between(9, 14)), scene.font(scene.between(14, 22))
    columns, rows = (scene.between(1, max(1, min(3, n // 220))) for n in scene.size)
    texts: list[tuple[float, float, str, Font]] = []
    for i, j in np.ndindex(columns, rows):
        w, h = scene.width // columns, scene.height // rows
        x0, y0 = i * w, j * h
        left, top, right, bottom = x0 + w // 8 + 24, y0 + h // 12 + 14, x0 + w - 12, y0 + h - h // 12 - 20
        ticks, dashes = max(1, min(scene.between(3, 8), (right - left) // 42)), scene.chance(0.4)
        pen.rectangle((left * s, top * s, right * s, bottom * s), scene.pick((theme.paper, theme.panel)))
        for k in range(ticks + 1):
            x, y = left + (right - left) * k // ticks, top + (bottom - top) * k // ticks
            for a in range(left, right, 6 if dashes else right - left):
                pen.line((a * s, y * s, (min(right, a + 3) if dashes else right) * s, y * s), theme.rule, s)
            if not dashes:
                pen.line((x * s, top * s, x * s, bottom * s), theme.rule, s)
            label = f"{(ticks - k) * 25:,}"
            texts.append((left - 6 - font.getlength(label), y - 7, label, font))
            texts.append((x - 8, bottom + 4, str(2010 + k), font))
        _plot(scene, pen, (left * s, top * s, right * s, bottom * s), theme, s)
        pen.line((left * s, top * s, left * s, bottom * s, right * s, bottom * s), theme.ink, s)
        texts.append((left + 4, y0 + 4, scene.title(3, big)[: w // 10], big))
        texts.append((right - 90, top + 6, scene.words(2, font)[:14], font))
    image = image.reduce(s)
    pen = ImageDraw.Draw(image)
    for x, y, text, face in texts:
        pen.text((x, y), text, theme.ink, face)
    return image


def strokes(scene: Scene, pen: ImageDraw.ImageDraw, scale: int, inks: Sequence[Colour | int]) -> None:
    """Curves, spirals, polygons, circles, hatching and rays all over a picture."""
    w, h = scene.width * scale, scene.height * scale
    family = scene.between(0, 5)
    for _ in range(scene.between(3, 24)):
        ink, thick = scene.pick(inks), scale * scene.pick((1, 1, 1, 2, 3, 6))
        t = np.linspace(0, 1, 120)
        a, b, c, d = scene.random.random(4)
        x0, y0, r = a * w, b * h, (0.05 + 0.4 * c) * min(w, h)
        match family if scene.chance(0.7) else scene.between(0, 5):
            case 0:
                corners = scene.random.random((4, 2)) * (w, h)
                weights = np.stack([(1 - t) ** 3, 3 * t * (1 - t) ** 2, 3 * t**2 * (1 - t), t**3], 1)
                points = weights @ corners
            case 1:
                turn = t[:, None] * 2 * math.pi * np.array([scene.between(1, 7), scene.between(1, 7)]) + (0, d * 6)
                points = np.sin(turn) * r + (x0, y0)
            case 2:
                angle, radius = t * 2 * math.pi * scene.between(2, 6), r * t
                points = np.stack([x0 + radius * np.cos(angle), y0 + radius * np.sin(angle)], 1)
            case 3:
                points = scene.random.normal(0, 0.5, (scene.between(3, 8), 2)) * r + (x0, y0)
                points = np.concatenate([points, points[:1]])
            case 4:
                for k in range(scene.between(1, 6)):
                    q = r * (k + 1) / 6
                    pen.ellipse(around(x0, y0, q), outline=ink, width=thick)
                continue
            case _:
                gap, angle = scale * scene.between(3, 12), d * math.pi
                along = np.array([math.cos(angle), math.sin(angle)])
                across = along[::-1] * (-1, 1)
                for k in range(int(r / gap)):
                    start = np.array([x0, y0]) + across * k * gap
                    pen.line((*start, *(start + along * r)), ink, scale)
                continue
        pen.line(points.ravel().tolist(), ink, thick, "curve" if thick > 2 else None)


@register
def draw_line_art(scene: Scene) -> Image.Image:
    """Curves and shapes in few colours on plain paper."""
    theme = scene.theme()
    image, pen, s = _canvas(scene, theme.paper)
    inks = (theme.ink,) if scene.chance(0.5) else (theme.ink, *theme.accents[: scene.between(1, 5)])
    strokes(scene, pen, s, inks)
    return image.reduce(s)


@register
def draw_map(scene: Scene) -> Image.Image:
    """A map: sea and land or a town's blocks, contours, roads with borders, names."""
    s = scene.pick((1, 2, 2))
    w, h = scene.width * s, scene.height * s
    field = scene.smooth(h, w, scene.between(3, 8))
    levels = scene.between(2, 9)
    low, high = scene.pick((((170, 211, 223), (242, 239, 233)), ((70, 130, 180), (34, 120, 50)), scene.colours(2)))
    if scene.chance(0.4):  # contours: the last colour
        bands = np.arange(256, dtype=np.uint8) // scene.between(4, 12)
        field = np.where(np.diff(bands[field], axis=1, prepend=0) != 0, 255, np.minimum(field, 254))
    image = Image.fromarray(field).convert("P")
    table = [mix(low, high, i * levels // 256 / (levels - 1)) for i in range(255)]
    image.putpalette([v for colour in (*table, mix(low, BLACK, 0.4)) for v in colour])
    image = image.convert("RGB")
    pen = ImageDraw.Draw(image)
    for _ in range(scene.between(0, 40)):
        x, y, step = scene.between(0, w), scene.between(0, h), s * scene.between(5, 24)
        pen.polygon(
            (x, y, x + step, y + step // 4, x + step, y + step, x, y + step * 3 // 4), (217, 208, 201), (180, 170, 160)
        )
    theme = scene.theme("light")
    for thick, ink, casing in (
        (8, scene.pick(theme.accents), (80, 80, 80)),
        (5, (252, 214, 164), (160, 110, 60)),
        (3, WHITE, (170, 170, 170)),
    ):
        roads = []
        for _ in range(scene.between(1, 5)):
            steps = scene.random.normal(scene.random.normal(0, 30, 2), 12, (24, 2)) * s
            roads.append((np.cumsum(steps, 0) + scene.random.random(2) * (w, h)).ravel().tolist())
        for colour, width in ((casing, thick + 2), (ink, thick)):
            for road in roads:
                pen.line(road, colour, width * s, "curve")
    image = image.reduce(s)
    pen = ImageDraw.Draw(image)
    for _ in range(scene.between(0, 1 + scene.width * scene.height // 12000)):
        font = scene.outline_font(scene.between(9, 18))
        where = (scene.between(0, scene.width - 40), scene.between(0, scene.height - 12))
        pen.text(where, scene.title(1, font), (50, 50, 50), font, stroke_width=1, stroke_fill=WHITE)
    return image


@register
def draw_diagram(scene: Scene) -> Image.Image:
    """Boxes with names, joined by arrows."""
    theme = scene.theme()
    image, pen, s = _canvas(scene, theme.paper)
    font = scene.font(scene.between(10, 16))
    columns, rows = max(1, scene.width // scene.between(90, 180)), max(1, scene.height // scene.between(60, 120))
    w, h = scene.width // columns, scene.height // rows
    centres = [(i * w + w // 2, j * h + h // 2) for i, j in np.ndindex(columns, rows) if scene.chance(0.7)]
    centres = centres or [(w // 2, h // 2)]
    for x, y in centres:
        tx, ty = scene.pick(centres)
        corner = (tx * s, y * s) if scene.chance(0.6) else ()
        pen.line((x * s, y * s, *corner, tx * s, ty * s), theme.ink, s)
        side = 1 if y > ty else -1
        tip = ty + side * h // 4
        if y != ty:
            pen.polygon([v * s for v in (tx, tip, tx - 4, tip + 9 * side, tx + 4, tip + 9 * side)], theme.ink)
    form, fills = scene.pick(("box", "round", "ellipse")), (theme.paper, theme.panel, *theme.accents[:3])
    labels = []
    for x, y in centres:
        box = (x - w // 3, y - h // 4, x + w // 3, y + h // 4)
        fill, big = scene.pick(fills), tuple(v * s for v in box)
        if form == "ellipse":
            pen.ellipse(big, fill, theme.ink, s)
        else:
            pen.rounded_rectangle(big, 8 * s if form == "round" else 0, fill, theme.ink, s)
        labels.append((box, theme.paper if fill in theme.accents else theme.ink))
    image = image.reduce(s)
    for box, ink in labels:
        put_label(ImageDraw.Draw(image), box, scene.title(2, font), ink, font)
    return image


@register
def draw_logo(scene: Scene) -> Image.Image:
    """A logo of filled polygons, rings and a name, once large or many times small."""
    paper = scene.pick((WHITE, BLACK, scene.colour()))
    many = scene.chance(0.4)
    cell = max(24, min(scene.size) // scene.between(2, 6)) if many else min(scene.size)
    s = scene.pick((1, 2, 3)) if many else scene.pick((1, 2))
    image = Image.new("RGB", scene.size, paper)
    for _ in range(6 if many else 1):
        inks = scene.colours(scene.between(1, 4))
        mark = Image.new("RGB", (cell * s, cell * s), paper)
        pen, c = ImageDraw.Draw(mark), cell * s / 2
        for _ in range(scene.between(1, 5)):
            r, turn, ink = c * scene.random.uniform(0.3, 0.92), scene.random.random() * 6.3, scene.pick((*inks, paper))
            match scene.between(0, 4):
                case 0:
                    pen.ellipse(around(c, c, r), ink)
                case 1:
                    pen.regular_polygon((c, c, r), scene.between(3, 8), turn * 57, ink)
                case 2:
                    n = scene.between(4, 12)
                    angles = np.arange(2 * n) * math.pi / n + turn
                    radii = np.tile((r, r * scene.random.uniform(0.3, 0.8)), n)
                    pen.polygon(path(c + radii * np.cos(angles), c + radii * np.sin(angles)), ink)
                case 3:
                    pen.pieslice(around(c, c, r), turn * 57, turn * 57 + scene.pick((90, 120, 180, 270)), ink)
                case _:
                    width = max(1, int(r * scene.random.uniform(0.1, 0.4)))
                    pen.ellipse(around(c, c, r), outline=ink, width=width)
        font = scene.font(max(8, cell * s // 6))
        name = scene.title(1, font)[:7]
        pen.text((c - font.getlength(name) / 2, c * 1.6), name, scene.pick(inks), font)
        mark = mark.reduce(s)
        if many:
            places = range(scene.between(0, cell), scene.width, cell * scene.between(1, 3))
        else:
            places = range((scene.width - cell) // 2, (scene.width - cell) // 2 + 1)
        for x in places:
            image.paste(mark, (x, scene.between(0, scene.height - cell)))
    return image


@register
def draw_cartoon(scene: Scene) -> Image.Image:
    """A landscape or a face in flat colours with dark outlines, perhaps with a balloon of text."""
    sky, grass, skin, shirt, roof, wall = (
        scene.colour() if scene.chance(0.3) else c
        for c in ((135, 206, 235), (80, 170, 60), (255, 219, 172), scene.colour(), (200, 50, 40), (250, 230, 180))
    )
    image, pen, s = _canvas(scene, sky)
    w, h = scene.width * s, scene.height * s
    thick = s * scene.pick((1, 2, 3, 4))
    line: dict[str, Any] = {"outline": BLACK, "width": thick}
    x, y, r = scene.random.random() * w, h * 0.2, h * 0.1
    pen.ellipse(around(x, y, r), (255, 220, 0), **line)
    for _ in range(scene.between(0, 5)):
        x, y, r = scene.random.random() * w, scene.random.random() * h * 0.4, h * scene.random.uniform(0.03, 0.08)
        for dx in (-1.2, 0, 1.2):
            pen.ellipse(around(x + dx * r, y, r), WHITE)
    for k in range(scene.between(1, 3)):
        t = np.linspace(0, 1, 60)
        hill = 0.55 + 0.12 * k + 0.08 * np.sin(t * scene.random.uniform(3, 12) + scene.random.random() * 6)
        points = path(t * w, hill * h)
        pen.polygon([0, h, *points, w, h], mix(grass, BLACK, 0.15 * k))
        pen.line(points, BLACK, thick, "curve")
    for _ in range(scene.between(0, 4)):
        x, y, r = scene.random.random() * w, h * scene.random.uniform(0.55, 0.9), h * scene.random.uniform(0.06, 0.18)
        if scene.chance(0.5):
            pen.rectangle((x - r, y - r, x + r, y + r * 0.6), wall, **line)
            pen.polygon((x - 1.2 * r, y - r, x, y - 2 * r, x + 1.2 * r, y - r), roof, **line)
            pen.rectangle((x - 0.2 * r, y - 0.2 * r, x + 0.2 * r, y + 0.6 * r), roof, **line)
            pen.rectangle((x + 0.4 * r, y - 0.6 * r, x + 0.8 * r, y - 0.2 * r), sky, **line)
        else:
            pen.rectangle((x - 0.15 * r, y - r, x + 0.15 * r, y + r), (120, 80, 40), **line)
            pen.ellipse((x - 0.8 * r, y - 2.2 * r, x + 0.8 * r, y - 0.4 * r), mix(grass, (0, 60, 0), 0.4), **line)
    for _ in range(scene.between(0, 2)):
        x, y, r = scene.random.random() * w, h * scene.random.uniform(0.35, 0.8), h * scene.random.uniform(0.08, 0.3)
        pen.rounded_rectangle((x - r, y + 0.8 * r, x + r, y + 3 * r), r / 2, shirt, **line)
        pen.ellipse(around(x, y, r), skin, **line)
        hair = scene.pick(((60, 30, 10), (20, 20, 20), (230, 190, 60)))
        pen.pieslice((x - r, y - 1.05 * r, x + r, y + r), 190, 350, hair, **line)
        pen.ellipse((x - 0.75 * r, y - 0.62 * r, x + 0.75 * r, y + 0.9 * r), skin)
        for side in (-1, 1):
            e = x + side * 0.35 * r
            pen.ellipse((e - 0.2 * r, y - 0.25 * r, e + 0.2 * r, y + 0.2 * r), WHITE, **line)
            pen.ellipse((e - 0.08 * r, y - 0.08 * r, e + 0.08 * r, y + 0.12 * r), BLACK)
        pen.chord((x - 0.4 * r, y, x + 0.4 * r, y + 0.75 * r), 20, 160, (180, 30, 40), **line)
    image = image.reduce(s)
    if scene.chance(0.4):
        font = scene.font(scene.between(11, 18))
        text, pen = line_of_words(scene, font, min(200, scene.width - 40)), ImageDraw.Draw(image)
        x, y = scene.between(4, scene.width - font.getlength(text) - 24), scene.between(4, scene.height // 3)
        pen.rounded_rectangle((x, y, x + font.getlength(text) + 20, y + font_height(font) * 2), 10, WHITE, BLACK, 2)
        pen.text((x + 10, y + font_height(font) // 2), text, BLACK, font)
    return image
