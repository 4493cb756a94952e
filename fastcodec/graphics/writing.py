"""Pages of text, terminals and code editors."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache

import numpy as np
from PIL import Image, ImageDraw

from .scene import Box, Colour, Font, Scene, Theme, font_height, load_font, register
from .words import CODE, SHELL, STYLES, TOKENS


def line_of_words(scene: Scene, font: Font, width: int) -> str:
    """Words that fill a line of a width in pixels."""
    words = scene.words(1 + width // max(1, 3 * font_height(font)), font).split(" ")
    while len(words) > 1 and (length := font.getlength(" ".join(words))) > width:
        words = words[: max(1, min(len(words) - 1, int(len(words) * width / length)))]
    return " ".join(words)


def prose(scene: Scene, pen: ImageDraw.ImageDraw, box: Box, inks: Sequence[Colour | int], size: int) -> None:
    """Paragraphs with headings and lists in a box; inks are the text's, then the headings'."""
    font, head = scene.font(size), scene.font(scene.between(size * 1.2, size * 2.5))
    leading = max(font_height(font) + 2, int(font_height(font) * scene.random.uniform(1.15, 1.6)))
    left, y, right, bottom = box
    ragged = scene.chance(0.7)
    while y + leading <= bottom:
        if scene.chance(0.4) and y + 2 * font_height(head) < bottom:
            pen.text((left, y), line_of_words(scene, head, (right - left) * 3 // 4), inks[-1], head)
            y += int(font_height(head) * 1.5)
        indent = scene.pick((0, 0, 0, size, 2 * size))
        for i in range(scene.between(1, 8)):
            if y + leading > bottom:
                return
            if indent == 2 * size and i % 2 == 0:
                pen.ellipse((left + size // 2, y + size // 2, left + size, y + size), inks[0])
            room = right - left - indent
            width = room if not ragged else int(room * scene.random.uniform(0.75, 1))
            ink = inks[0] if scene.chance(0.97) else inks[-1]
            pen.text((left + indent, y), line_of_words(scene, font, width), ink, font)
            y += leading
            indent = indent if indent == 2 * size else 0
        y += leading // 2


@register
def draw_text(scene: Scene) -> Image.Image | np.ndarray:
    """A page of prose in columns; its text aliased, antialiased, or antialiased by subpixels."""
    theme = scene.theme()
    way = scene.pick(("aliased", "antialiased", "antialiased", "antialiased", "subpixel"))
    size = scene.sized(7, 48) if scene.chance(0.7) else scene.between(9, 14)
    subpixel = way == "subpixel" and size < 24
    scale = 3 if subpixel else 1
    size_drawn = (scene.width * scale, scene.height * scale)
    image = Image.new("L", size_drawn) if subpixel else Image.new("RGB", size_drawn, theme.paper)
    pen = ImageDraw.Draw(image)
    pen.fontmode = "1" if way == "aliased" else "L"
    inks = (255,) if subpixel else (theme.ink, scene.pick(theme.accents))
    margin = scene.between(0, scene.width // 12)
    columns = scene.between(1, max(1, scene.width // (14 * size))) if scene.chance(0.4) else 1
    step = (scene.width - margin) // columns
    for i in range(columns):
        box = (margin + i * step, margin, (i + 1) * step, scene.height)
        prose(scene, pen, tuple(v * scale for v in box), inks, size * scale)
    if not subpixel:
        return image
    cover = np.asarray(image.reduce((1, 3))).reshape(scene.height, scene.width, 3)
    table = np.linspace(theme.paper, theme.ink, 256).round().astype(np.uint8)
    return np.stack([table[cover[..., i], i] for i in range(3)], -1)


@lru_cache(64)
def _atlas(font: Font, aliased: bool) -> np.ndarray:
    """The ASCII characters from the space on, each in a cell of one size: uint8 [95, height, width], its cover."""
    characters = [chr(c) for c in range(32, 127)]
    fixed = font.getlength("i") == font.getlength("m")
    width = max(2, math.ceil(font.getlength("m") if fixed else font.getlength("n") * 1.08))
    height = max(3, math.ceil(font_height(font) * 1.25))
    strip = Image.new("L", (width * 95, height))
    for i, character in enumerate(characters):
        length = math.ceil(font.getlength(character))
        cell = Image.new("L", (max(width, length), height))
        pen = ImageDraw.Draw(cell)
        pen.fontmode = "1" if aliased else "L"
        pen.text(((cell.width - length) // 2, 0), character, 255, font)
        if cell.width > width:  # a wide letter of a proportional font
            cell = cell.resize((width, height), Image.Resampling.BOX)
            cell = cell.point(lambda v: 255 * (v > 100)) if aliased else cell
        strip.paste(cell, (i * width, 0))
    return np.asarray(strip).reshape(height, 95, width).transpose(1, 0, 2)


def _highlight(line: str) -> np.ndarray:
    """The style of each character of a line of code, 0 for plain text: uint8 [characters]."""
    styles = np.zeros(len(line), np.uint8)
    for match in TOKENS.finditer(line):
        styles[match.start() : match.end()] = 1 + STYLES.index(match.lastgroup or "mark")
    return styles


def _console(scene: Scene, lines: Sequence[str], theme: Theme, gutter: bool) -> Image.Image:
    """Lines of text in character cells with colours by syntax, a selection and a cursor, and line numbers if asked."""
    mono = [n for n in scene.fonts if "Mono" in n or "cmtt" in n] or ["pillow"]
    size = scene.pick((9, 10, 11, 12, 13, 14, 15, 16, 18, 20, 24, 32))
    bitmap = "pillow bitmap" in scene.fonts and scene.chance(0.3)
    atlas = _atlas(load_font("pillow bitmap" if bitmap else scene.pick(mono), size), scene.chance(0.3))
    if bitmap and scene.chance(0.4):
        atlas = atlas.repeat(2, 1).repeat(2, 2)
    height, width = atlas.shape[1:]
    rows, columns = -(-scene.height // height), -(-scene.width // width)
    codes, styles = np.zeros((rows, columns), np.uint8), np.zeros((rows, columns), np.uint8)
    first = scene.between(1, 900)
    for row, line in enumerate(lines[:rows]):
        tones = _highlight(line)
        if gutter:
            line, tones = f"{first + row:>4}  {line}", np.concatenate([np.full(6, 7, np.uint8), tones])
        letters = np.frombuffer(line.encode("ascii", "replace")[:columns], np.uint8)
        codes[row, : len(letters)] = np.maximum(letters, 32) - 32
        styles[row, : len(letters)] = tones[: len(letters)]
    front = np.array((theme.ink, theme.faint, *theme.accents[:5], theme.faint), np.uint8)[styles]
    back = np.empty_like(front)
    back[:] = theme.paper
    if gutter:
        back[:, :5] = theme.panel
        back[scene.between(0, rows - 1)] = theme.panel
    if scene.chance(0.5):  # a selection or a status line
        row = scene.pick((scene.between(0, rows - 1), max(0, scene.height // height - 1)))
        back[row], front[row] = (front[row].copy(), back[row].copy()) if scene.chance(0.5) else (theme.rule, front[row])
    back[scene.between(0, rows - 1), scene.between(0, columns - 1)] = theme.ink  # the cursor
    cover = atlas[codes].transpose(0, 2, 1, 3).reshape(rows * height, columns * width)
    full = (columns * width, rows * height)
    inks, papers = (Image.fromarray(a).resize(full, Image.Resampling.NEAREST) for a in (front, back))
    return Image.composite(inks, papers, Image.fromarray(cover)).crop((0, 0, *scene.size))


@register
def draw_terminal(scene: Scene) -> Image.Image:
    """A terminal: commands and what they print."""
    lines = [line for _ in range(4 + scene.height // 40) for line in scene.fill(scene.pick(SHELL)).splitlines()]
    return _console(scene, lines, scene.theme(scene.pick(("dark", "dark", "dark", "light", None))), False)


@register
def draw_editor(scene: Scene) -> Image.Image:
    """A code editor: tabs, line numbers, syntax colours, a status bar."""
    theme = scene.theme(scene.pick(("dark", "light", "light", None)))
    source = scene.pick(CODE)
    image = _console(scene, scene.fill((source + "\n") * (1 + scene.height // 150)).split("\n"), theme, True)
    pen, font, bar = ImageDraw.Draw(image), scene.font(12), scene.between(18, 28)
    if scene.chance(0.7):
        pen.rectangle((0, 0, scene.width, bar), theme.panel)
        for i, x in enumerate(range(0, scene.width, 120)):
            pen.rectangle((x, 0, x + 118, bar), theme.paper if i == 0 else theme.rule)
            pen.text((x + 10, bar // 2 - 7), scene.fill("{w}.py"), theme.ink, font)
        pen.rectangle((0, scene.height - bar, scene.width, scene.height), scene.pick(theme.accents))
        pen.text((8, scene.height - bar // 2 - 7), scene.fill("Ln {n}, Col 17   UTF-8   LF"), theme.paper, font)
    return image
