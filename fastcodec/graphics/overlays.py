"""Text, windows, drawings, noise and controls over photographs, and pictures in parts."""

from __future__ import annotations

import numpy as np
from PIL import Image, ImageDraw

from .drawings import draw_map, strokes
from .patterns import random_grain
from .scene import BLACK, SMALLEST, TABLE, WHITE, Scene, font_height, luma, register
from .screens import Look, draw_icon, panel, random_look, windows
from .writing import line_of_words, prose


@register
def draw_captioned_photograph(scene: Scene) -> Image.Image:
    """A photograph with subtitles, a title, a watermark, a date or a plate of text."""
    image = scene.background()
    pen = ImageDraw.Draw(image)
    for _ in range(scene.between(1, 4)):
        font = scene.outline_font(scene.sized(12, max(13, min(90, scene.height // 4))))
        subtitle = line_of_words(scene, font, scene.width * 9 // 10)
        text = scene.pick((subtitle, subtitle, scene.title(1, font), "12/05/2024 10:47", scene.title(2, font).upper()))
        middle = max(0, int(scene.width - font.getlength(text)) // 2)
        x = middle if scene.chance(0.6) else scene.between(0, scene.width // 2)
        y = scene.between(0, max(0, scene.height - 2 * font.size))
        ink = scene.pick((WHITE, WHITE, (255, 255, 0), BLACK, scene.colour()))
        edge = BLACK if luma(ink) > 100 else WHITE
        match scene.between(0, 4):
            case 0:
                size = max(8, font_height(font) // 2)
                panel(pen, (x, y, scene.width - 8, scene.height - 8), Look(scene.theme(), ink, False, 6, font), edge)
                prose(scene, pen, (x + 8, y + 8, scene.width - 16, scene.height - 8), (ink,), size)
            case 1:  # a watermark, half transparent
                mask = Image.new("L", image.size)
                ImageDraw.Draw(mask).text((x, y), text, scene.between(60, 160), font)
                image.paste(ink, (0, 0), mask)
            case _:
                pen.text((x, y), text, ink, font, stroke_width=scene.pick((0, 1, 2, 3)), stroke_fill=edge)
    return image


@register
def draw_windows_over_photograph(scene: Scene) -> Image.Image:
    """A desktop whose background is a photograph."""
    return windows(scene, scene.background(), scene.chance(0.3))


@register
def draw_drawing_over_photograph(scene: Scene) -> Image.Image:
    """Curves, boxes and arrows over a photograph."""
    image, s = scene.background(), scene.pick((1, 2, 2))
    mask = Image.new("L", (scene.width * s, scene.height * s))
    strokes(scene, ImageDraw.Draw(mask), s, (255,) if scene.chance(0.7) else (255, 160, 90))
    image.paste(scene.pick((BLACK, WHITE, (255, 0, 0), scene.colour())), (0, 0), mask.reduce(s))
    pen, ink = ImageDraw.Draw(image), scene.colour()
    for _ in range(scene.between(0, 4)):
        box, font = scene.box(0.1, 0.4), scene.font(12)
        pen.rectangle(box, None, ink, scene.between(1, 4))
        text = scene.fill("{w} 0.97")
        pen.rectangle((box[0], box[1] - 15, box[0] + font.getlength(text) + 6, box[1]), ink)
        pen.text((box[0] + 3, box[1] - 15), text, WHITE if luma(ink) < 128 else BLACK, font)
    return image


@register
def draw_noisy_photograph(scene: Scene) -> np.ndarray:
    """A photograph under noise, everywhere or in a box, or under scan lines."""
    pixels = np.array(scene.background())
    left, top, right, bottom = (0, 0, *scene.size) if scene.chance(0.5) else scene.box(0.3, 0.9)
    area = pixels[top:bottom, left:right]
    if scene.chance(0.15):
        area[:: scene.between(2, 4)] //= scene.pick((2, 3, 255))
        return pixels
    grain = random_grain(scene.part(bottom - top, right - left), scene.pick((1, 3)))
    area[:] = np.clip(area + grain, 0, 255)
    return pixels


@register
def draw_interface_over_photograph(scene: Scene) -> Image.Image:
    """A player's or a game's controls over a photograph: translucent bars, icons, numbers, a small map."""
    image, look = scene.background(), random_look(scene, False)
    tint = scene.pick((BLACK, WHITE, look.accent))
    mask = Image.new("L", scene.size)
    bars = [
        scene.pick(((0, 0, scene.width, 40), (0, scene.height - 44, scene.width, scene.height), scene.box(0.2, 0.5)))
        for _ in range(2)
    ]
    for bar in bars:
        ImageDraw.Draw(mask).rounded_rectangle(bar, look.radius, scene.pick((90, 140, 200, 255)))
    image.paste(tint, (0, 0), mask)
    pen, font = ImageDraw.Draw(image), scene.font(scene.between(11, 18))
    ink = WHITE if luma(tint) < 128 else BLACK
    for left, top, right, bottom in bars:
        size = max(8, min(28, bottom - top - 12))
        for x in range(left + 8, right - size, size + 14):
            if scene.chance(0.6):
                draw_icon(scene, image, (x, top + 6, x + size, top + 6 + size))
        y = min(scene.height - 4, bottom - 5)
        pen.line((left + 6, y, right - 6, y), ink, 3)
        pen.line((left + 6, y, (left + right) // 2, y), look.accent, 3)
        pen.text((left + 8, max(0, top - 18)), f"{scene.number()}  {scene.words(1, font)}", ink, font)
    if scene.chance(0.5):
        side = min(scene.size) // 4
        small = draw_map(scene.part(side, side)).resize((side, side))
        image.paste(small, (scene.width - side - 10, 50))
    return image


@register
def draw_mosaic(scene: Scene) -> Image.Image:
    """Parts side by side: photographs, other kinds, or plain paper, at even or uneven cuts."""
    image = Image.new("RGB", scene.size)
    others = [n for n in TABLE if n != "mosaic"]
    boxes = [(0, 0, *scene.size)]
    for _ in range(scene.between(1, 4)):
        left, top, right, bottom = boxes.pop(0)
        share = scene.pick((0.5, scene.random.uniform(0.25, 0.75)))
        if right - left > bottom - top:
            x = left + round((right - left) * share)
            boxes += [(left, top, x, bottom), (x, top, right, bottom)]
        else:
            y = top + round((bottom - top) * share)
            boxes += [(left, top, right, y), (left, y, right, bottom)]
    for i, (left, top, right, bottom) in enumerate(boxes):
        part = scene.part(max(SMALLEST, bottom - top), max(SMALLEST, right - left))
        drawn = part.background() if i % 2 == 0 else TABLE[scene.pick(others)](part)
        image.paste(Image.fromarray(np.asarray(drawn)[: bottom - top, : right - left]), (left, top))
    return image
