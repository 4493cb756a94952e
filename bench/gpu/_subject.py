"""What the codec is measured on: photographs of any size and number, their files by the CPU, and checks against it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

from fastcodec.codec import Codec, Preset
from fastcodec.constants import MAX_QUALITY, MIN_QUALITY
from fastcodec.images import Picture

from .. import common
from ._timing import Machine, MismatchError

PRESETS: tuple[Preset, ...] = ("latency", "size")
QUALITY = 60  # of many pictures: about half a bit a pixel, on average over the Kodak set
WRITTEN = 16  # images that the CPU writes of a batch: larger ones repeat them
_CELL = 768, 512  # width and height of the photographs that images consist of
_PHOTOGRAPHS = ("astronaut", "chelsea", "coffee", "rocket")  # that scikit-image has without a download


@dataclass(frozen=True)
class Sizes:
    """How much is coded and how often."""

    images: tuple[tuple[int, int], ...] = ((768, 512), (1920, 1080), (3840, 2160))  # the first is that of batches
    bits: float = 0.5  # a pixel
    batches: tuple[int, ...] = (16, 64, 4, 1)
    studied: tuple[int, ...] = (1, 16)  # batches whose launches are measured, and baselines for them
    many: int = 24  # different pictures
    rounds: int = 8  # in which they are decoded
    energy_batch: int = 16
    warm_ups: int = 3  # a new shape runs launch by launch, then it is captured, then it is replayed
    repeats: int = 50
    profiles: int = 3
    rate_seconds: float = 0.4
    energy_seconds: float = 1.5


def photographs() -> tuple[str, list[np.ndarray]]:
    """Where they are from, and photographs of 768x512, uint8 [512, 768, 3].

    From the Kodak set, else from scikit-image, else noise.
    """
    try:
        found = [p.pixels if p.width > p.height else p.pixels.transpose(1, 0, 2) for _, p in common.kodak()]
        return "Kodak", [np.ascontiguousarray(photo) for photo in found]
    except common.CannotRunError:
        pass
    try:
        from skimage import data

        images = [Image.fromarray(getattr(data, name)()) for name in _PHOTOGRAPHS]
        return "scikit-image", [np.asarray(ImageOps.fit(image, _CELL, Image.Resampling.LANCZOS)) for image in images]
    except Exception:  # not installed, or without its images
        return "synthetic", [synthetic(seed) for seed in range(4)]


def synthetic(seed: int) -> np.ndarray:
    """Noise with the spectrum of photographs (power as 1 / f^2) and their unequal distribution of detail over the
    image, which decides how much of it is coded: uint8 [512, 768, 3]."""
    random = np.random.default_rng(seed)
    width, height = _CELL
    frequency = np.hypot(np.fft.fftfreq(height)[:, None], np.fft.rfftfreq(width)[None, :])
    frequency[0, 0] = 1

    def field(power: float) -> np.ndarray:
        spectrum = np.fft.rfft2(random.standard_normal((height, width))) / frequency**power
        spectrum[0, 0] = 0
        values = np.fft.irfft2(spectrum, (height, width))
        return values / values.std()

    luma = field(1.0) * np.exp(0.8 * field(1.5)) * 35 + 110
    colours = [luma + 12 * field(1.3) for _ in range(3)]
    return np.stack(colours, 2).round().clip(0, 255).astype(np.uint8)


def compose(cells: Sequence[np.ndarray], width: int, height: int, first: int = 0) -> Picture:
    """An image of any size: photographs at their own scale side by side, from number `first` on; after one round they
    are mirrored. (One photograph, enlarged, would be smoother than any camera's image.)"""
    out = np.empty((height, width, 3), np.uint8)
    number = first
    for top in range(0, height, _CELL[1]):
        for left in range(0, width, _CELL[0]):
            turn = number // len(cells)
            cell = cells[number % len(cells)][:: -1 if turn & 2 else 1, :: -1 if turn & 1 else 1]
            part = out[top : top + _CELL[1], left : left + _CELL[0]]
            part[...] = cell[: part.shape[0], : part.shape[1]]
            number += 1
    return Picture(out)


def nearest_quality(rate: Callable[[int], float], wanted: float) -> int:
    """The quality whose rate, which rises with it, is nearest to the wanted one, by bisection."""
    low, high = MIN_QUALITY, MAX_QUALITY
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if rate(middle) < wanted else (low, middle)
    return min(low, high, key=lambda quality: abs(rate(quality) - wanted))


def same(one: Tensor, other: Tensor, what: str) -> None:
    """Raises MismatchError unless tensors are equal."""
    if not torch.equal(one.cpu(), other.cpu()):
        raise MismatchError(f"{what}: not what the CPU and the input say")


def near(out: Tensor, expected: Sequence[np.ndarray], what: str) -> None:
    """Raises MismatchError unless the first of these pixels, uint8 [files, 3, height, width], are those of the CPU
    within one level."""
    for found, wanted in zip(out.permute(0, 2, 3, 1).cpu().numpy(), expected, strict=False):
        furthest = int(np.abs(found.astype(np.int16) - wanted).max())
        if furthest > 1:
            raise MismatchError(f"{what}: {furthest} levels from the CPU's pixels")


@dataclass(frozen=True)
class Batch:
    """Images of one size, and their files by preset, written by the CPU at QUALITY."""

    pictures: list[Picture]
    files: dict[Preset, list[bytes]]

    @property
    def megapixels(self) -> float:
        return sum(picture.width * picture.height for picture in self.pictures) / 1e6


class Subject:
    """What is measured: the codec on the GPU, the CPU's to compare with, pictures and their files.

    folder: where files that the CPU wrote are kept for processes that follow.
    """

    def __init__(
        self, folder: Path, machine: Machine | None = None, codec: Codec | None = None, sizes: Sizes | None = None
    ):
        self.folder, self.machine, self.sizes = folder, machine or Machine(), sizes or Sizes()
        self.cpu = Codec.load("swift", "cpu")
        self.codec = codec or self.fresh_codec()

    def fresh_codec(self) -> Codec:
        """A codec that has met no shape, and so decodes each launch by launch once; its engine is ready."""
        codec = Codec.load("swift", str(self.machine.device))
        small = Picture(synthetic(0)[:64, :64].copy())
        codec.decode_tensor([self.cpu_file(small, "small", "size")]).check()
        return codec

    @cached_property
    def photographs(self) -> tuple[str, list[np.ndarray]]:
        """Where they are from, and themselves."""
        source, cells = photographs()
        return (source, cells) if source == "Kodak" else ("synthetic", list(map(synthetic, range(self.sizes.many))))

    def picture(self, size: tuple[int, int], number: int = 0) -> Picture:
        return compose(self.photographs[1], *size, number)

    @cached_property
    def many(self) -> list[Picture]:
        """Different pictures, a quarter of them upright as in the Kodak set."""
        pictures = [self.picture(self.sizes.images[0], number) for number in range(self.sizes.many)]
        for number in range(0, len(pictures), 4):
            pictures[number] = Picture(np.ascontiguousarray(pictures[number].pixels.transpose(1, 0, 2)))
        return pictures

    def cpu_file(self, picture: Picture, name: str, preset: Preset, quality: int = QUALITY) -> bytes:
        """A picture's file by the CPU, written once for all processes under this name."""
        path = self.folder / f"{name}-{preset}-{quality}.fic"
        if not path.exists():
            unfinished = path.with_suffix(".part")
            unfinished.write_bytes(self.cpu.encode(picture, quality, preset))
            unfinished.replace(path)
        return path.read_bytes()

    @cached_property
    def quality(self) -> int:
        """Of single pictures: what gives the first one the rate that is wanted."""
        path, picture = self.folder / "quality", self.picture(self.sizes.images[0])

        def rate(quality: int) -> float:
            return 8 * len(self.cpu_file(picture, "rate", "size", quality)) / (picture.width * picture.height)

        if not path.exists():
            path.write_text(str(nearest_quality(rate, self.sizes.bits)), encoding="utf-8")
        return int(path.read_text("utf-8"))

    def file(self, size: tuple[int, int], preset: Preset) -> bytes:
        """The file of a single picture."""
        return self.cpu_file(self.picture(size), f"{size[0]}x{size[1]}", preset, self.quality)

    def batch(self, count: int) -> Batch:
        """So many landscape pictures of the first size, no two alike up to WRITTEN."""
        numbers = [number % WRITTEN for number in range(count)]
        pictures = [self.picture(self.sizes.images[0], number) for number in numbers]
        files = {p: [self.cpu_file(pictures[n], f"batch-{n}", p) for n in numbers] for p in PRESETS}
        return Batch(pictures, files)

    def pixels(self, pictures: Sequence[Picture]) -> Tensor:
        """Room on the device for pictures of one size: uint8 [pictures, 3, height, width]."""
        shape = len(pictures), pictures[0].height, pictures[0].width, 3
        return torch.zeros(shape, dtype=torch.uint8, device=self.machine.device).permute(0, 3, 1, 2)
