"""Windows and their widgets, desktops, web pages, spreadsheets."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

from .patterns import draw_gradient, tiled
from .scene import BLACK, WHITE, Box, Colour, Font, Scene, Theme, font_height, load_font, luma, mix, register
from .writing import line_of_words, prose


@dataclass(frozen=True)
class Look:
    """The look of widgets: bevelled as in the nineties, or flat with a radius."""

    theme: Theme
    accent: Colour
    bevel: bool
    radius: int
    font: Font


def random_look(scene: Scene, bevel: bool) -> Look:
    """Colours, a radius and a font for all the widgets of a screen."""
    font = scene.font(scene.between(10, 15))
    if bevel:
        face = scene.pick(((192, 192, 192), (192, 192, 192), (212, 208, 200), scene.theme("tinted").paper))
        inks = ((0, 0, 128), (0, 128, 0), (128, 0, 0), (0, 0, 255), (128, 0, 128), (0, 128, 128))
        theme = Theme(WHITE, face, mix(face, BLACK, 0.35), BLACK, inks)
        if "pillow bitmap" in scene.fonts and scene.chance(0.6):
            font = load_font("pillow bitmap", 11)
        accent = scene.pick(((0, 0, 128), (0, 0, 128), (0, 128, 128), (128, 0, 128), scene.colour()))
        return Look(theme, accent, True, 0, font)
    theme = scene.theme(scene.pick(("light", "light", "dark", None)))
    return Look(theme, scene.pick(theme.accents), False, scene.pick((0, 0, 3, 6, 10)), font)


def panel(pen: ImageDraw.ImageDraw, box: Box, look: Look, fill: Colour, sunk: bool = False) -> None:
    """A button's or a field's body: two bevel lines, or an outline with round corners."""
    left, top, right, bottom = box
    if right - left < 4 or bottom - top < 4:
        return
    if not look.bevel:
        pen.rounded_rectangle(box, min(look.radius, (bottom - top) // 2), fill, look.theme.rule)
        return
    pen.rectangle(box, fill)
    shade = mix(look.theme.panel, BLACK, 0.33)
    lines = ((shade, WHITE), (BLACK, look.theme.panel)) if sunk else ((WHITE, BLACK), (fill, shade))
    for inset, (a, b) in enumerate(lines):
        x0, y0, x1, y1 = left + inset, top + inset, right - inset, bottom - inset
        pen.line((x0, y1, x0, y0, x1, y0), a)
        pen.line((x0, y1, x1, y1, x1, y0), b)


def put_label(pen: ImageDraw.ImageDraw, box: Box, text: str, ink: Colour, font: Font) -> None:
    """Text in the middle of a box, cut to it."""
    room = box[2] - box[0] - 4
    length = font.getlength(text)
    if length > room:
        text = text[: max(0, int(len(text) * room / length))]
        length = font.getlength(text)
    pen.text(((box[0] + box[2] - length) // 2, (box[1] + box[3] - font_height(font) * 1.2) // 2), text, ink, font)


def draw_icon(scene: Scene, image: Image.Image, box: Box) -> None:
    """A small icon: a folder, a page, a disc, a chart, a picture or a letter, with hard or smooth edges."""
    scale = scene.pick((1, 3))
    width, height = max(4, box[2] - box[0]), max(4, box[3] - box[1])
    icon = image.crop((box[0], box[1], box[0] + width, box[1] + height)).resize((width * scale, height * scale))
    pen = ImageDraw.Draw(icon)
    a, b, c = scene.colours(3)
    edge = scene.pick((BLACK, mix(a, BLACK, 0.4)))
    w, h = width * scale - 1, height * scale - 1
    match scene.between(0, 5):
        case 0:
            pen.polygon((0, h * 0.2, w * 0.4, h * 0.2, w * 0.5, h * 0.3, w, h * 0.3, w, h * 0.9, 0, h * 0.9), a, edge)
            pen.rectangle((0, h * 0.4, w, h * 0.9), mix(a, WHITE, 0.3), edge)
        case 1:
            pen.polygon((w * 0.15, 0, w * 0.65, 0, w * 0.85, h * 0.25, w * 0.85, h, w * 0.15, h), WHITE, edge)
            for y in range(3, 9):
                pen.line((w * 0.25, h * y / 10, w * 0.7, h * y / 10), a if y % 3 else b, scale)
        case 2:
            pen.ellipse((0, 0, w, h), a, edge)
            pen.pieslice((0, 0, w, h), scene.between(0, 180), scene.between(200, 360), b, edge)
            pen.ellipse((w * 0.4, h * 0.4, w * 0.6, h * 0.6), c, edge)
        case 3:
            pen.rectangle((0, 0, w, h), WHITE, edge)
            for i, colour in enumerate((a, b, c)):
                top = h * scene.random.uniform(0.1, 0.7)
                pen.rectangle((w * (0.1 + 0.3 * i), top, w * (0.3 + 0.3 * i), h * 0.9), colour)
        case 4:
            pen.rectangle((0, h * 0.1, w, h * 0.9), a, edge)
            pen.polygon(
                (w * 0.1, h * 0.85, w * 0.4, h * 0.4, w * 0.6, h * 0.65, w * 0.7, h * 0.55, w * 0.9, h * 0.85), b
            )
            pen.ellipse((w * 0.65, h * 0.18, w * 0.85, h * 0.38), c)
        case _:
            pen.rounded_rectangle((0, 0, w, h), w // 5, a)
            put_label(pen, (0, 0, w, h), scene.pick("AaBfXW?+!"), b, load_font("pillow", max(4, h * 3 // 4)))
    image.paste(icon.reduce(scale) if scale > 1 else icon, (box[0], box[1]))


def _form(scene: Scene, image: Image.Image, box: Box, look: Look) -> None:
    """Rows of widgets: fields, check boxes, sliders, progress bars, buttons."""
    pen, theme, font = ImageDraw.Draw(image), look.theme, look.font
    row = font_height(font) + scene.between(8, 14)
    left, y, right, bottom = box
    half = left + (right - left) * 2 // 5
    while y + row <= bottom:
        pen.text((left + 4, y + 4), scene.title(2, font)[: (half - left) // 7] + ":", theme.ink, font)
        match scene.between(0, 5):
            case 0 | 1:
                panel(pen, (half, y, right - 4, y + row - 5), look, theme.paper, True)
                pen.text((half + 6, y + 2), scene.fill(scene.pick(("{w}", "{p}", "{n}"))), theme.ink, font)
                if scene.chance(0.4):
                    panel(pen, (right - row, y + 2, right - 6, y + row - 7), look, theme.panel)
                    x, middle = right - row // 2 - 3, y + row // 2 - 3
                    pen.polygon((x - 4, middle - 2, x + 4, middle - 2, x, middle + 3), theme.ink)
            case 2:
                for x in range(half, right - 80, 90):
                    panel(pen, (x, y + 2, x + 13, y + 15), look, theme.paper, True)
                    if scene.chance(0.5):
                        pen.line((x + 3, y + 8, x + 6, y + 11, x + 11, y + 5), look.accent, 2)
                    pen.text((x + 19, y + 1), scene.words(1, font), theme.ink, font)
            case 3:
                end = half + int((right - half) * scene.random.random())
                panel(pen, (half, y + 3, right - 4, y + row - 8), look, theme.paper, True)
                pen.rectangle((half + 2, y + 5, max(half + 2, end - 6), y + row - 10), look.accent)
            case 4:
                x = scene.between(half, right - 12)
                pen.line((half, y + row // 2, right - 4, y + row // 2), theme.rule, 2)
                panel(pen, (x, y + 3, x + 9, y + row - 6), look, theme.panel)
            case _:
                for x in range(half, right - 70, 80):
                    plain, button = (theme.panel, theme.ink), (x, y, x + 74, y + row - 4)
                    fill, ink = scene.pick((plain, plain, plain if look.bevel else (look.accent, theme.paper)))
                    panel(pen, button, look, fill)
                    put_label(pen, button, scene.title(1, font), ink, font)
        y += row


def _grid(scene: Scene, image: Image.Image, box: Box, look: Look) -> None:
    """A table: a header, rows of numbers and words, rules or bands, a selected row."""
    pen, theme, font = ImageDraw.Draw(image), look.theme, look.font
    row, step = font_height(font) + scene.between(3, 10), scene.between(50, 130)
    left, top, right, bottom = box
    pen.rectangle((left, top, right - 1, bottom - 1), theme.paper)
    bands, rules, chosen = scene.chance(0.4), scene.chance(0.6), scene.between(1, 12)
    kinds = [scene.pick(("number", "word", "mixed")) for _ in range(left, right, step)]
    for i, y in enumerate(range(top, bottom - row + 1, row)):
        fill = theme.panel if i == 0 or (bands and i % 2) else look.accent if i == chosen else theme.paper
        pen.rectangle((left, y, right - 1, y + row - 1), fill)
        ink = theme.paper if i == chosen and not (bands and i % 2) else theme.ink
        for x, kind in zip(range(left, right - step // 2, step), kinds, strict=False):
            if i == 0:
                put_label(pen, (x, y, min(x + step, right), y + row), scene.title(1, font), theme.ink, font)
            elif kind == "number" or (kind == "mixed" and scene.chance(0.5)):
                text = scene.number()[: step // 7]
                pen.text((min(x + step, right) - 4 - font.getlength(text), y + 2), text, ink, font)
            else:
                pen.text((x + 4, y + 2), scene.words(1, font)[: step // 8], ink, font)
        if rules:
            pen.line((left, y + row - 1, right - 1, y + row - 1), theme.rule)
    for x in range(left + step, right, step) if rules else ():
        pen.line((x, top, x, bottom - 1), theme.rule)


def _icons(scene: Scene, image: Image.Image, box: Box, look: Look) -> None:
    """Icons in rows with their names below."""
    size = scene.pick((16, 24, 32, 32, 48))
    pen, step = ImageDraw.Draw(image), size + scene.between(30, 50)
    for y in range(box[1] + 6, box[3] - size - 20, size + 32):
        for x in range(box[0] + 10, box[2] - step + 10, step):
            if scene.chance(0.85):
                draw_icon(scene, image, (x + (step - size) // 2 - 8, y, x + (step + size) // 2 - 8, y + size))
                below = (x - 8, y + size, x - 10 + step, y + size + 18)
                put_label(pen, below, scene.fill("{f}"), look.theme.ink, look.font)


def _document(scene: Scene, image: Image.Image, box: Box, look: Look) -> None:
    """Paragraphs on paper."""
    ImageDraw.Draw(image).rectangle((box[0], box[1], box[2] - 1, box[3] - 1), look.theme.paper)
    inks = (look.theme.ink, look.accent)
    prose(scene, ImageDraw.Draw(image), (box[0] + 6, box[1] + 6, box[2] - 8, box[3] - 4), inks, scene.between(9, 16))


def _title_buttons(scene: Scene, pen: ImageDraw.ImageDraw, title: Box, look: Look, ink: Colour) -> None:
    """The buttons of a title bar, at its right end."""
    _, top, right, bottom = title
    bar = bottom - top
    round_buttons = not look.bevel and scene.chance(0.4)
    for i in range(3):
        if round_buttons:
            x, y = right - 20 - 18 * i, top + bar // 2 - 6
            pen.ellipse((x, y, x + 12, y + 12), ((255, 95, 87), (254, 188, 46), (40, 200, 64))[i])
            continue
        x, y, size = right - 5 - (i + 1) * (bar - 2), top + 3, bar - 6
        if look.bevel:
            panel(pen, (x, y, x + size + 1, y + size), look, look.theme.panel)
        mark, a, b = (look.theme.ink if look.bevel else ink), size // 3, size - size // 3
        if i == 0:
            pen.line((x + a, y + a, x + b, y + b), mark)
            pen.line((x + a, y + b, x + b, y + a), mark)
        elif i == 1:
            pen.rectangle((x + a - 1, y + a - 1, x + b, y + b), outline=mark)
        else:
            pen.line((x + a, y + b, x + b, y + b), mark)


def _window(scene: Scene, image: Image.Image, box: Box, look: Look) -> None:
    """A window: title bar with buttons, perhaps a menu, its content, perhaps a scroll bar and a status bar."""
    pen, theme, font = ImageDraw.Draw(image), look.theme, look.font
    left, top, right, bottom = box
    if right - left < 40 or bottom - top < 40:
        return
    if not look.bevel and scene.chance(0.6):
        _shadow(image, box)
    panel(pen, box, look, theme.panel)
    bar = font_height(font) + scene.between(6, 9) if look.bevel else font_height(font) + scene.between(8, 20)
    edge, active = (3, scene.chance(0.7)) if look.bevel else (1, scene.chance(0.4))
    fill = look.accent if active else theme.rule if look.bevel else theme.panel
    ink = WHITE if luma(fill) < 128 else BLACK
    title = (left + edge, top + edge, right - edge, top + edge + bar)
    pen.rounded_rectangle(title, look.radius, fill, corners=(True, True, False, False))
    text = scene.title(3, font)[: (right - left) // 12]
    pen.text((left + 8, top + edge + bar // 2 - font_height(font) * 0.6), text, ink, font)
    _title_buttons(scene, pen, (left, top + edge, right, top + edge + bar), look, ink)
    inner = [left + edge + 2, top + edge + bar + 2, right - edge - 2, bottom - edge - 2]
    if scene.chance(0.6):
        x = inner[0] + 6
        for word in ("File", "Edit", "View", "Tools", "Help"):
            if x + font.getlength(word) < inner[2]:
                pen.text((x, inner[1] + 2), word, theme.ink, font)
            x += int(font.getlength(word)) + 12
        inner[1] += font_height(font) + 8
    if scene.chance(0.5) and inner[3] - inner[1] > 80:
        status = inner[3] - font_height(font) - 5
        pen.text((inner[0] + 4, status + 1), scene.fill("{n} objects")[: (right - left) // 8], theme.ink, font)
        inner[3] = status - 2
    if scene.chance(0.5) and inner[2] - inner[0] > 60 and inner[3] - inner[1] > 20:
        x, y = inner[2] - 15, scene.between(inner[1] + 16, max(inner[1] + 16, inner[3] - 50))
        pen.rectangle((x, inner[1], inner[2], inner[3]), mix(theme.panel, theme.paper, 0.5))
        for part in ((inner[1], inner[1] + 15), (inner[3] - 15, inner[3]), (y, min(inner[3], y + 30))):
            panel(pen, (x, part[0], inner[2], part[1]), look, theme.panel)
        inner[2] = x - 2
    if inner[2] - inner[0] > 20 and inner[3] - inner[1] > 20:
        scene.pick((_form, _form, _grid, _icons, _document))(scene, image, tuple(inner), look)


def _shadow(image: Image.Image, box: Box) -> None:
    """A soft shadow around a box, blurred at an eighth of the size."""
    w, h = -(-image.width // 8), -(-image.height // 8)
    mask = Image.new("L", (w, h))
    ImageDraw.Draw(mask).rectangle((box[0] // 8, box[1] // 8 + 1, box[2] // 8, box[3] // 8 + 1), 130)
    mask = mask.filter(ImageFilter.GaussianBlur(1.3)).resize((w * 8, h * 8), Image.Resampling.BILINEAR)
    image.paste(BLACK, (0, 0), mask.crop((0, 0, *image.size)))


def windows(scene: Scene, image: Image.Image, bevel: bool) -> Image.Image:
    """Windows over an image, with a task bar and icons on the desktop."""
    look, pen = random_look(scene, bevel), ImageDraw.Draw(image)
    if scene.chance(0.5):
        for y in range(8, image.height - 60, 70):
            draw_icon(scene, image, (16, y, 48, y + 32))
            put_label(pen, (0, y + 33, 70, y + 50), scene.fill("{f}"), scene.pick((WHITE, BLACK)), look.font)
    many = image.width * image.height // 250_000
    for _ in range(1 + scene.between(many, 2 * many + 1)):
        _window(scene, image, scene.box(0.7 if many < 1 else 0.3, 0.95 if many < 2 else 0.7), look)
    if scene.chance(0.6):
        top = image.height - scene.between(24, 34)
        box = (0, top, image.width - 1, image.height - 1)
        panel(pen, box, replace(look, radius=0), look.theme.panel)
        for x in range(4, image.width - 120, 110):
            panel(pen, (x, top + 4, x + 100, image.height - 4), look, look.theme.panel, x > 4)
            draw_icon(scene, image, (x + 4, top + 6, x + 20, top + 22))
            put_label(pen, (x + 20, top, x + 100, image.height), scene.title(1, look.font), look.theme.ink, look.font)
        put_label(pen, (image.width - 60, top, image.width, image.height), "10:47", look.theme.ink, look.font)
    return image


@register
def draw_nineties(scene: Scene) -> Image.Image:
    """A desktop with bevelled windows on a flat or dithered background."""
    image = Image.new("RGB", scene.size, scene.pick(((0, 128, 128), (58, 110, 165), (128, 128, 128), scene.colour())))
    if scene.chance(0.2):
        image.paste(BLACK, (0, 0), Image.fromarray(tiled(scene, np.eye(2, dtype=np.uint8) * 255)))
    return windows(scene, image, True)


@register
def draw_desktop(scene: Scene) -> Image.Image:
    """A desktop with flat windows on a colour or a gradient."""
    flat = scene.chance(0.5)
    image = Image.new("RGB", scene.size, scene.colour()) if flat else Image.fromarray(draw_gradient(scene))
    return windows(scene, image, False)


@register
def draw_web_page(scene: Scene) -> Image.Image:
    """A web page: a header with links, a banner, cards or an article with a side column."""
    look = random_look(scene, False)
    theme, font = look.theme, look.font
    image = Image.new("RGB", scene.size, theme.paper)
    pen = ImageDraw.Draw(image)
    bar = scene.between(28, 56)
    dark = scene.chance(0.5)
    pen.rectangle((0, 0, scene.width, bar), look.accent if dark else theme.panel)
    draw_icon(scene, image, (10, 6, bar - 2, bar - 6))
    for x in range(bar + 12, scene.width, 78):
        pen.text((x, bar // 2 - 8), scene.title(1, font)[:9], theme.paper if dark else theme.ink, font)
    y = bar
    if scene.chance(0.5):
        y = bar + scene.between(60, 150)
        ends = (look.accent, scene.pick(theme.accents)) if scene.chance(0.5) else (look.accent,) * 2
        ramp = np.linspace(ends[0], ends[1], scene.width).round().astype(np.uint8)
        image.paste(Image.fromarray(ramp[None].repeat(y - bar, 0)), (0, bar))
        big = scene.font(scene.between(22, 44))
        pen.text((24, bar + 12), line_of_words(scene, big, scene.width - 60).capitalize(), theme.paper, big)
        panel(pen, (24, y - 34, 124, y - 8), look, theme.paper)
        put_label(pen, (24, y - 34, 124, y - 8), scene.title(2, font), look.accent, font)
    side = scene.width * 7 // 10 if scene.chance(0.5) else scene.width
    if scene.chance(0.5):
        inks = (theme.ink, look.accent)
        prose(scene, pen, (20, y + 14, side - 20, scene.height), inks, scene.between(11, 18))
    else:
        step = scene.between(120, 200)
        for top in range(y + 12, scene.height, step):
            for x in range(12, side - step // 2, step):
                box = (x, top, x + step - 12, top + step - 12)
                panel(pen, box, look, theme.panel)
                pen.rectangle((x + 6, top + 6, box[2] - 6, top + step // 2), scene.pick(theme.accents))
                draw_icon(scene, image, (x + 12, top + 12, x + step // 2 - 8, top + step // 2 - 8))
                prose(scene, pen, (x + 8, top + step // 2 + 4, box[2] - 4, box[3] - 2), (theme.faint, theme.ink), 10)
    if side < scene.width and y < scene.height:
        pen.rectangle((side, y, scene.width, scene.height), theme.panel)
        for top in range(y + 10, scene.height, 24):
            pen.text((side + 10, top), line_of_words(scene, font, scene.width - side - 16), look.accent, font)
    return image


@register
def draw_spreadsheet(scene: Scene) -> Image.Image:
    """A table over the whole picture, with a bar of tools above."""
    look = random_look(scene, scene.chance(0.3))
    image = Image.new("RGB", scene.size, look.theme.panel)
    for x in range(6, scene.width - 20, 24):
        draw_icon(scene, image, (x, 5, x + 16, 21))
    top = scene.between(26, 30)
    panel(ImageDraw.Draw(image), (4, top, scene.width - 5, top + 20), look, look.theme.paper, True)
    ImageDraw.Draw(image).text((10, top + 3), "=SUM(B2:B17)/COUNT(C2:C17)", look.theme.ink, look.font)
    _grid(scene, image, (0, top + 24, scene.width, scene.height), look)
    return image
