"""Training images: random crops of photographs and of drawn pictures, on the host or resident on a device.

`CropSource` reads a folder once, holds its images as uint8 and cuts crops on the host; it also owns the two validation
splits. `ResidentCrops` holds the same pixels on the training device and cuts there with that device's own random
numbers, so that a step needs nothing of the host and can be one CUDA graph; other processes draw pictures anew.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from concurrent.futures import Executor, Future, ProcessPoolExecutor, ThreadPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from . import graphics
from .errors import FastcodecError, ImageError
from .files import image_files
from .images import read_picture

VALIDATION_EVERY = 40  # one image in so many is held out of training,
VALIDATION_LIST = "validation.txt"  # unless this file in the folder names those that are, one a line
DRAWN_PICTURES = 384  # graphics that are held in memory; each step on the host draws one of them anew
DRAWN_SIDE = 512
VALIDATION_GRAPHICS = 36  # drawn pictures that are held out,
VALIDATION_SEED = 2021  # and their seed


class CropSource:
    """Random crops with flips from a folder of images, decoded once and held in memory as uint8, and from graphics.

    graphics: the share of crops that are drawn, 0 to 1. pool: processes that draw the first pictures; None: this one
    does.
    """

    def __init__(self, folder: Path, crop: int, seed: int, graphics: float = 0.0, pool: Executor | None = None):
        if not 0 <= graphics <= 1:
            raise ValueError(f"graphics {graphics} is not a share of the crops, 0 to 1")
        self.validation, self.images = _split(folder, crop)
        self.crop, self.graphics = crop, graphics
        self.random = np.random.default_rng(seed)
        self.drawn: list[np.ndarray] = []
        count = DRAWN_PICTURES if crop >= DRAWN_SIDE // 2 else 32
        if graphics and pool is not None:
            waiting = [pool.submit(draw_over, *self.order()) for _ in range(count)]
            self.drawn = [picture.result() for picture in waiting]
        elif graphics:
            self.drawn = [self._draw() for _ in range(count)]

    def _draw(self) -> np.ndarray:
        """A drawn picture, larger than a crop where the photograph allows; some kinds lie over the photograph."""
        return draw_over(self.random, self._under())

    def _under(self) -> np.ndarray:
        """The square of a photograph that a drawn picture may lie over, as large as that picture."""
        photograph = self.images[self.random.integers(len(self.images))]
        side = max(self.crop, min(DRAWN_SIDE, 2 * self.crop))
        if min(photograph.shape[:2]) < side:
            side = self.crop
        return _random_part(self.random, photograph, side)

    def order(self) -> tuple[int, np.ndarray]:
        """Arguments of `draw_over`, by which another process draws a picture: a seed and the photograph."""
        return int(self.random.integers(2**63)), np.ascontiguousarray(self._under())

    def batch(self, size: int, crop: int | None = None) -> Tensor:
        """uint8 [size, 3, crop, crop]."""
        crop = crop or self.crop
        out = np.empty((size, crop, crop, 3), np.uint8)
        if self.drawn:
            self.drawn[self.random.integers(len(self.drawn))] = self._draw()
        for i in range(size):
            pool = self.drawn if self.drawn and self.random.random() < self.graphics else self.images
            image = pool[self.random.integers(len(pool))]
            patch = _random_part(self.random, image, crop)
            if self.random.random() < 0.5:
                patch = patch[:, ::-1]
            if self.random.random() < 0.25:
                patch = patch.transpose(1, 0, 2)
            out[i] = patch
        return torch.from_numpy(out).permute(0, 3, 1, 2)

    def validation_batch(self, crop: int) -> Tensor:
        """The central crops of the held-out images: uint8 [n, 3, crop, crop]."""
        patches = []
        for image in self.validation:
            top, left = ((side - crop) // 2 for side in image.shape[:2])
            patches.append(image[top : top + crop, left : left + crop])
        return torch.from_numpy(np.stack(patches)).permute(0, 3, 1, 2)

    def validation_graphics(self, crop: int) -> Tensor:
        """Drawn pictures of every kind, the same for every seed: uint8 [n, 3, crop, crop].

        Pillow's own fonts make them equal on every machine; those over photographs lie over held-out ones.
        """
        pictures = []
        for i in range(max(VALIDATION_GRAPHICS, len(graphics.KINDS))):
            random = np.random.default_rng((VALIDATION_SEED, i))  # so that no picture depends on how another is drawn
            photograph = _random_part(random, self.validation[i % len(self.validation)], crop)
            kind = graphics.KINDS[i % len(graphics.KINDS)]
            pictures.append(
                graphics.draw(random, crop, crop, kind=kind, photograph=photograph, fonts=graphics.PILLOW_FONTS)
            )
        return torch.from_numpy(np.stack(pictures)).permute(0, 3, 1, 2)


class ResidentCrops:
    """The images of a `CropSource` on a device, and crops cut there: no step waits for the host.

    Pixels lie one after the other, [pixels, 3], whatever the images' sizes; photographs first, then the drawn ones,
    whose places are written anew by `redraw`. Random numbers are those of the device's default generator, which a CUDA
    graph advances at each replay.
    """

    def __init__(self, source: CropSource, device: torch.device):
        images = [*source.images, *source.drawn]
        shapes = torch.tensor([image.shape[:2] for image in images], dtype=torch.int64, device="cpu")
        areas = shapes.prod(1)
        self.starts = torch.cat([areas.new_zeros(1), areas.cumsum(0)])
        self.pixels = torch.empty(int(self.starts[-1]), 3, dtype=torch.uint8, device=device)
        for start, image in zip(self.starts.tolist(), images, strict=False):
            self._put(start, image)
        self.photographs, self.drawn, self.share = len(source.images), len(source.drawn), source.graphics
        self._start, self._height, self._width = (v.to(device) for v in (self.starts[:-1], *shapes.unbind(1)))
        self._source = source
        self._asked: list[Future[np.ndarray]] = []

    def _put(self, start: int, image: np.ndarray) -> None:
        flat = torch.from_numpy(np.require(image, requirements=["C", "W"])).view(-1, 3)
        self.pixels[start : start + len(flat)].copy_(flat)

    def batch(self, size: int, crop: int) -> Tensor:
        """RGB float32 [size, 3, crop, crop] in 0..1, channels last, cut, mirrored and turned as `CropSource.batch`."""
        device = self.pixels.device
        chance = torch.rand(6, size, device=device, dtype=torch.float64)
        image = (chance[0] * self.photographs).long()
        if self.drawn:
            image = torch.where(chance[1] < self.share, self.photographs + (chance[0] * self.drawn).long(), image)
        height, width = self._height.index_select(0, image), self._width.index_select(0, image)
        top = (chance[2] * (height - crop + 1)).long()
        left = (chance[3] * (width - crop + 1)).long()
        row = torch.arange(crop, device=device)[None, :, None]
        column = torch.arange(crop, device=device)[None, None, :]
        # Mirrored first and turned afterwards: the crop's rows are then the mirrored image's columns.
        turned = (chance[5] < 0.25)[:, None, None]
        y, x = torch.where(turned, column, row), torch.where(turned, row, column)
        x = torch.where((chance[4] < 0.5)[:, None, None], crop - 1 - x, x)
        start = (self._start.index_select(0, image) + top * width + left)[:, None, None]
        at = start + y * width[:, None, None] + x
        cut = self.pixels.index_select(0, at.flatten()).view(size, crop, crop, 3)
        return cut.permute(0, 3, 1, 2).float() / 255

    def redraw(self, pool: Executor) -> None:
        """Puts pictures that the pool has drawn anew into their places, and asks for more. Never waits for it.

        Call it between steps, from the thread that makes them: a picture's copy is then ordered with the steps.
        """
        if not self.drawn:
            return
        for picture in [picture for picture in self._asked if picture.done()]:
            self._asked.remove(picture)
            self._replace(picture.result())
        while len(self._asked) < 2 * drawing_processes():
            self._asked.append(pool.submit(draw_over, *self._source.order()))

    def _replace(self, picture: np.ndarray) -> None:
        place = self.photographs + int(self._source.random.integers(self.drawn))
        start, end = self.starts[place : place + 2].tolist()
        if picture.shape[0] * picture.shape[1] == end - start:  # all are of one size, unless photographs were small
            self._put(start, picture)


def drawing_processes() -> int:
    """Number of processes that draw pictures beside training: a core is left for the trainer."""
    return max(1, min(12, (os.cpu_count() or 2) - 2))


def drawing_pool() -> ProcessPoolExecutor:
    """Those processes. Not forked: the parent may hold a GPU, and PyTorch's threads do not survive a fork."""
    return ProcessPoolExecutor(drawing_processes(), mp_context=get_context("spawn"))


def draw_over(seed: int | np.random.Generator, photograph: np.ndarray) -> np.ndarray:
    """A drawn picture of the photograph's size, which is square; some kinds lie over it."""
    side = photograph.shape[0]
    return graphics.draw(np.random.default_rng(seed), side, side, photograph=photograph)


def _split(folder: Path, crop: int) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """The images of at least `crop` pixels each way: those held out, and those to train on."""
    files = image_files(folder, recursive=True)
    with ThreadPoolExecutor(min(32, os.cpu_count() or 1)) as pool:
        loaded = zip(files, pool.map(_load, files), strict=True)
        images = [(path, image) for path, image in loaded if image is not None and min(image.shape[:2]) >= crop]
    if len(images) < VALIDATION_EVERY:
        raise ImageError(f"{folder}: {len(images)} images of at least {crop} pixels; need {VALIDATION_EVERY}")
    named = folder / VALIDATION_LIST
    if named.exists():
        held = held_out(folder, named.read_text("utf-8").split("\n"), [path for path, _ in images])
    else:
        held = {path for path, _ in images[::VALIDATION_EVERY]}
    return [im for path, im in images if path in held], [im for path, im in images if path not in held]


def held_out(folder: Path, names: Sequence[str], files: Sequence[Path]) -> set[Path]:
    """The files that a list of names relative to the folder holds out. ImageError for a name that is not among them."""
    wanted = {folder / name for name in names if name}
    missing = sorted(wanted - set(files))
    if missing or not wanted:
        raise ImageError(
            f"{folder / VALIDATION_LIST}: "
            + (f"{missing[0]} is not an image that is large enough" if missing else "names no image")
        )
    return wanted


def _random_part(random: np.random.Generator, image: np.ndarray, side: int) -> np.ndarray:
    """A square of the image at a random place."""
    top, left = (random.integers(n - side + 1) for n in image.shape[:2])
    return image[top : top + side, left : left + side]


def _load(path: Path) -> np.ndarray | None:
    """RGB pixels; None, with a word on stderr, for a file that is not an image: one must not end a run of hours."""
    try:
        pixels = read_picture(path).pixels
    except FastcodecError as error:
        print(f"skipped: {error}", file=sys.stderr)
        return None
    return pixels if pixels.ndim == 3 else np.repeat(pixels[:, :, None], 3, axis=2)
