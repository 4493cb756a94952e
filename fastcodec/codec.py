"""The codec: image to .fic bytes and back.

Here is what files hold beside the payloads of tiles, and which images and files are coded together. The coding itself,
in the order of the papers, is the engines' (`engines/engine.py`).
"""

from __future__ import annotations

import copy
import operator
import sys
import threading
import warnings
from bisect import bisect_right
from collections.abc import Callable, Sequence
from functools import cache, lru_cache
from pathlib import Path
from typing import Any, Literal, TypeAlias, overload

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from . import calls, container, lossless, models
from .alpha import check_alpha, encode_alpha, read_alpha
from .constants import DEFAULT_QUALITY, MAX_QUALITY, MIN_QUALITY
from .container import DEFAULT_LIMITS, Container, Header, Limits, TileData
from .engines import DeviceLike, device_of, engines_of
from .engines.engine import Engine
from .engines.whole_image import WholeImageEngine
from .errors import ModelMismatchError, NotPortableWarning, TargetError, UnsupportedError
from .files import FileLike, naming, several
from .geometry import Grid, Rect
from .grouping import batches, check_alike, each, neighbours, of_items
from .images import ImageLike, Output, Picture, as_coded, from_picture, to_picture
from .kernels import forks
from .models.swift import release
from .models.zoo.base import CompressionModel
from .quality import checked_quality
from .results import DecodedTensor, Encoded

Precision = Literal["exact", "fast"]
Preset = Literal["size", "latency"]
Region: TypeAlias = "tuple[int, int, int, int]"

_PACKAGE = __name__.partition(".")[0]
_engines_lock = threading.Lock()  # a fork waits for the calls that take it (calls.py)


class Codec:
    """Encodes and decodes images with one model on one device. Any number of threads may share one instance.

    Build one with `Codec.load`, or of a model: a released one (`fastcodec.models.load`), or a system of the zoo, which
    must not change from then on. A system of the zoo sees whole images, so its files have no regions, no lossless tiles
    and no precision but "exact"; they decode with the same weights on a machine of the same kind, and on another
    NotPortableWarning is given, and what does not decode there ends in CorruptStreamError.

    A pickle has the model's name and identity (or its file's path, or, of a model that is in no file, its weights), the
    limits, and the device that was asked for, and is loaded again where it arrives; codecs that arrive in one process
    share weights. In a forked process a codec goes on, on one thread of the CPU; a GPU is UnavailableError there.

    Args:
        model: the model.
        limits: what a file may make the codec allocate.
        device: as `load` takes it; None for where the model's weights are, which for a released one is the CPU.
        quality: 1..100, what `encode` takes if it is not told: 60 if None. Of a system with one rate, which has no
            choice, it is only what the header says, 1 if None.

    Raises:
        ExactnessError: an integer system on a device whose float64 products are not exact.
        UnavailableError, ValueError, TypeError: as `load`, for the device.
    """

    def __init__(
        self,
        model: release.Model | CompressionModel,
        limits: Limits = DEFAULT_LIMITS,
        device: DeviceLike = None,
        quality: int | None = None,
    ) -> None:
        self.limits = limits
        self._engines: dict[bytes, Engine] = {}  # by the models' identities
        if isinstance(model, CompressionModel):
            self.device = next(model.parameters()).device if device is None else device_of(device)
            self._whole_image = WholeImageEngine(model.to(self.device))
            self._engines[self._whole_image.identity] = self._whole_image
            usual = DEFAULT_QUALITY if model.variable_rate else MIN_QUALITY
        else:
            self.device, self._make_engine = engines_of("cpu" if device is None else device)
            usual = DEFAULT_QUALITY
        self.model = model
        self._asked = self.device if device is None else device
        self.quality = usual if quality is None else checked_quality(quality)

    def __getstate__(self) -> tuple:
        model = self.model
        if isinstance(model, CompressionModel) and self.device.type != "cpu":
            model = copy.deepcopy(model).cpu()
        return model, self.limits, self._asked, self.quality

    def __setstate__(self, state: tuple) -> None:
        self.__init__(*state)  # type: ignore[misc]  # a codec that arrives is made as any other
        if isinstance(self.model, release.Model) and self.model.source is not None:
            self._make_engine, self._engines = _kept_engines(self.model, self._asked)

    @classmethod
    def load(
        cls,
        name: str | Path = "swift",
        device: DeviceLike = "auto",
        limits: Limits = DEFAULT_LIMITS,
        system: str | None = None,
    ) -> Codec:
        """Load a shipped model, or a model's file.

        Args:
            name: "swift", or the path of a file: a released model's, what `save` wrote, or a checkpoint of CompressAI's
                (.pth, .pth.tar).
            device: "cpu"; "cuda" or "cuda:N"; a torch.device of these, or N; "auto" or None, a GPU where there is one
                that the codec can use, else the CPU. All read and write the same files of released models.
            limits: what a file may make the codec allocate.
            system: which one a checkpoint is of, where it does not tell, as for `from_compressai`.

        Raises:
            ModelMismatchError: a name that this installation does not carry.
            UnknownModelError, UnsupportedError, OSError: a file that is no model's, has more scales than the coder has
                tables, or cannot be read.
            UnavailableError: a device that cannot be used; the message says what is missing.
            ValueError, TypeError: what names none of these devices.
        """
        return cls(models.load(name, system), limits, "auto" if device is None else device)

    def save(self, path: str | Path) -> None:
        """Write the model to a file that `load` and the command line's --model take. Raises OSError naming it."""
        models.save(self.model, path)

    @property
    def identity(self) -> bytes:
        """The identity of the model, which its files carry: 6 bytes."""
        return self.model.identity if isinstance(self.model, release.Model) else self._whole_image.identity

    @property
    def machine(self) -> str:
        """The kind of machine on which its files decode; empty if they decode everywhere."""
        engine = self._engines.get(self.identity)
        return engine.machine if isinstance(engine, WholeImageEngine) else ""

    @calls.counted
    def encode(
        self,
        image: ImageLike,
        quality: int | None = None,
        preset: Preset = "size",
        *,
        lossless: bool = False,
        target_bytes: int | None = None,
    ) -> Encoded:
        """Encode an image to a .fic file.

        Args:
            image: a PIL image, an HWC or HW uint8 array, a CHW uint8 tensor, or a `Picture`.
            quality: 1..100; the codec's (60) if None. Tiles that lossless coding serves better at that quality
                (screens, text, drawings) are coded so.
            preset: "size" keeps the coder's states under 0.3 % of the file, "latency" spends up to 3 % on more lanes.
            lossless: every tile is coded so, and decodes to the very pixels; quality and preset are of no meaning then,
                and the file says quality 100.
            target_bytes: take the highest quality whose file has at most so many bytes.

        Raises:
            ImageError: what is not an image, or too extreme for the analysis.
            TargetError: a size that no quality reaches.
            UnsupportedError: another quality than the codec's, a size, or lossless tiles, of a system that has none.
            UnavailableError: `lossless` where this Pillow has no WebP.
            ValueError: a quality that is none, or one together with a size.
        """
        picture = to_picture(image)
        if target_bytes is None:
            return self._encode([picture], quality, preset, lossless)[0]
        if quality is not None or lossless:
            raise ValueError("target_bytes looks for the quality: pass neither quality nor lossless with it")
        return self._encode_to_size(picture, target_bytes, preset)

    @calls.counted
    def encode_batch(
        self,
        images: Sequence[ImageLike],
        quality: int | None = None,
        preset: Preset = "size",
        *,
        lossless: bool = False,
    ) -> list[Encoded]:
        """Encode several images; those of equal size run through the network together.

        Raises what `encode` raises, the message beginning with the number of the image, as in "item 3: ...", from 0.
        """
        pictures = each(to_picture, images)
        if lossless or not pictures:
            return each(lambda picture: self._encode([picture], quality, preset, lossless)[0], pictures)
        engine = self._engine(self.model)
        sizes = [_header(picture, MIN_QUALITY, self).grid for picture in pictures]
        keys = [(*picture.pixels.shape[:2], picture.pixels.ndim) for picture in pictures]
        groups = batches(keys, [grid.latent_height * grid.latent_width for grid in sizes], engine.batch_positions)
        out: list[Encoded | None] = [None] * len(pictures)

        def alone(i: int) -> None:
            self._encode([pictures[i]], quality, preset)

        sent = [engine.send([pictures[i].pixels for i in group]) for group in groups[:1]]
        for number, group in enumerate(groups):
            # The next group's pixels are on their way to the device while this one is encoded.
            sent += [engine.send([pictures[i].pixels for i in following]) for following in groups[number + 1 :][:1]]
            with of_items(group, alone):
                encoded = self._encode([pictures[i] for i in group], quality, preset, sent=sent.pop(0))
            for i, item in zip(group, encoded, strict=True):
                out[i] = item
        return [item for item in out if item is not None]

    @overload
    def decode(
        self, data: FileLike, *, out: Literal["pil"] = ..., region: Region | None = ..., precision: Precision = ...
    ) -> Image.Image: ...
    @overload
    def decode(
        self, data: FileLike, *, out: Literal["numpy"], region: Region | None = ..., precision: Precision = ...
    ) -> np.ndarray: ...
    @overload
    def decode(
        self, data: FileLike, *, out: Literal["tensor"], region: Region | None = ..., precision: Precision = ...
    ) -> Tensor: ...
    @overload
    def decode(
        self, data: FileLike, *, out: Literal["picture"], region: Region | None = ..., precision: Precision = ...
    ) -> Picture: ...
    @calls.counted
    def decode(
        self, data: FileLike, *, out: Output = "pil", region: Region | None = None, precision: Precision = "exact"
    ) -> Image.Image | np.ndarray | Tensor | Picture:
        """Decode a file to uint8 pixels on the CPU (`decode_tensor` gives them on the codec's device).

        Args:
            data: the file's bytes (bytes, bytearray, memoryview ...; with strides they are copied), its path (str or
                os.PathLike), or a binary file object. Errors name a file that has a name. Wherever a file is asked for,
                the same holds.
            out: "pil" for a PIL image, "numpy" for an HWC (HW if grayscale) array, "tensor" for a CHW tensor, "picture"
                for a `Picture`: pixels, alpha and metadata.
            region: (x, y, width, height) in pixels; only the tiles that it needs are read.
            precision: "exact" is within one level of the same pixels everywhere; "fast" runs residual blocks in
                bfloat16 on CPUs that multiply it, and is "exact" on others, where that would be slower, and on a GPU.

        Raises:
            CorruptStreamError, UnsupportedVersionError, ModelMismatchError, LimitError: what is wrong with the file.
            UnsupportedError: a region or a precision of a system that has none.
            OSError: a path that cannot be read.
            TypeError, ValueError: what is no file, no precision, or no region of this image.
        """
        with naming(data):
            return from_picture(self._decode([self._read(data)], region, precision)()[0], out)

    @overload
    def decode_batch(
        self, files: Sequence[FileLike], *, out: Literal["pil"] = ..., precision: Precision = ...
    ) -> list[Image.Image]: ...
    @overload
    def decode_batch(
        self, files: Sequence[FileLike], *, out: Literal["numpy"], precision: Precision = ...
    ) -> list[np.ndarray]: ...
    @overload
    def decode_batch(
        self, files: Sequence[FileLike], *, out: Literal["tensor"], precision: Precision = ...
    ) -> list[Tensor]: ...
    @overload
    def decode_batch(
        self, files: Sequence[FileLike], *, out: Literal["picture"], precision: Precision = ...
    ) -> list[Picture]: ...
    @calls.counted
    def decode_batch(
        self, files: Sequence[FileLike], *, out: Output = "pil", precision: Precision = "exact"
    ) -> Sequence[Image.Image | np.ndarray | Tensor | Picture]:
        """Decode several files; those of equal size and quality run through the network together.

        Raises what `decode` raises, the message beginning with the number of the file, as in "item 3: ...", from 0.
        """
        files = several(files)
        _check_precision(precision)
        parsed = each(self._read_named, files)
        if not parsed:
            return []
        engine = self._engine(self.model)
        keys = [(*_kind(c), None if engine.mixes_qualities else c.header.quality, c.lossless) for c in parsed]
        weights = [c.header.grid.latent_height * c.header.grid.latent_width for c in parsed]
        pictures: list[Any] = [None] * len(parsed)
        waiting: list[tuple[list[int], Callable[[], list[Picture]]]] = []

        def alone(i: int) -> None:
            with naming(files[i]):
                self._decode([parsed[i]], None, precision)()

        def settle(group: list[int], decoded: Callable[[], list[Picture]]) -> None:
            with of_items(group, alone):
                for i, picture in zip(group, decoded(), strict=True):
                    pictures[i] = from_picture(picture, out)

        for group in batches(keys, weights, engine.batch_positions):
            with of_items(group, alone):
                waiting.append((group, self._decode([parsed[i] for i in group], None, precision)))
            if len(waiting) > 1:  # a GPU decodes one group while the pixels of another come home
                settle(*waiting.pop(0))
        for group, decoded in waiting:
            settle(group, decoded)
        return pictures

    @calls.counted
    def decode_tensor(
        self, files: Sequence[FileLike], *, out: Tensor | None = None, region: Region | None = None
    ) -> DecodedTensor:
        """Decode files of equal size (or the same region of each) to pixels on the codec's device.

        Always three channels: without alpha, and for a grayscale file as the network gave them. On a GPU this returns
        before the work is done: the pixels are ready for what is enqueued next on the current stream, but what may be
        wrong with a file shows only in `DecodedTensor.check`.

        Args:
            files: as `decode` takes each.
            out: uint8 [files, 3, height, width] on that device, of any strides; made if None.
            region: (x, y, width, height) in pixels.

        Raises what `decode_batch` raises for what headers and checksums tell, and ValueError for files of different
        sizes or an `out` that does not fit.
        """
        files = several(files)
        parsed = each(self._read_named, files)
        check_alike([_kind(file) for file in parsed])
        area = _region(region, parsed[0].header.grid)
        shape = (len(parsed), 3, area.height, area.width)
        if out is None:
            out = torch.empty(len(parsed), area.height, area.width, 3, dtype=torch.uint8, device=self.device)
            out = out.permute(0, 3, 1, 2)
        elif out.shape != shape or out.dtype != torch.uint8 or out.device != self.device:
            raise ValueError(
                f"out must be uint8 {list(shape)} on {self.device}, not {out.dtype} {list(out.shape)} on {out.device}"
            )
        pixels = out.permute(0, 2, 3, 1)
        waits: list[tuple[list[int], Callable[[], object]]] = []

        def alone(i: int) -> None:
            with naming(files[i]):
                self._decode([parsed[i]], region, "exact")()

        def wait_for_all() -> None:
            for group, wait in waits:
                with of_items(group, alone):
                    wait()

        for group in neighbours([file.lossless for file in parsed]):
            with of_items(group, alone):
                part = pixels[group[0] : group[-1] + 1]
                waits.append((group, self._decode_into([parsed[i] for i in group], area, part)))
        return DecodedTensor(out, wait_for_all)

    @calls.counted
    def verify(self, data: FileLike) -> None:
        """Decode every tile's latents and alpha, check every state, cursor and CRC; run no synthesis.

        Raises what `decode` raises; returns only if the whole file is sound, and decodes on this machine.
        """
        with naming(data):
            parsed = self._read(data)
            whole = _region(None, parsed.header.grid)
            if lossless.needs_network(parsed, whole):
                self._engine_for(parsed.header).verify(parsed)
            for number, covered in lossless.images_within(parsed, whole):
                lossless.read_image(parsed, number, covered)
            check_alpha(parsed)

    @calls.counted
    def latents(self, data: FileLike) -> Tensor:
        """The decoded latents of a file in 1/16, int32 [h, w, M], on the CPU: equal bit for bit on every device.

        Lossless tiles have none; beside network tiles they hold what the synthesis sees there, else zeros. Of a system
        of the zoo: y^, float [h, w, M], on the codec's device. Raises what `decode` raises.
        """
        with naming(data):
            parsed = self._read(data)
            return self._engine_for(parsed.header).latents(parsed)

    # --- models and engines -----------------------------------------------------------------------------------------

    def _engine_for(self, header: Header) -> Engine:
        """The engine of a file's model, which may be an earlier release than the codec's."""
        model = self.model
        if isinstance(model, release.Model):
            if header.float_entropy:
                raise ModelMismatchError(
                    f"written by a model with a floating-point entropy side, which {model.name} is not"
                )
            if header.identity != model.identity:
                model = release.load(model.name, header.identity)
        return self._engine(model)

    def _engine(self, model: release.Model | CompressionModel) -> Engine:
        if self.device.type == "cuda":
            forks.check_gpu()
        identity = model.identity if isinstance(model, release.Model) else self.identity
        with _engines_lock:
            if identity not in self._engines:
                assert isinstance(model, release.Model)  # a system's engine was made with the codec
                self._engines[identity] = self._make_engine(model)
            return self._engines[identity]

    # --- encoding ---------------------------------------------------------------------------------------------------

    def _chosen(self, quality: int | None) -> int:
        if quality is None:
            return self.quality
        one_rate = isinstance(self.model, CompressionModel) and not self.model.variable_rate
        if checked_quality(quality) != self.quality and one_rate:
            raise UnsupportedError(f"this model has one rate, called quality {self.quality}, and no quality {quality}")
        return checked_quality(quality)

    def _encode(
        self, pictures: list[Picture], quality: int | None, preset: Preset, losslessly: bool = False, sent: Any = None
    ) -> list[Encoded]:
        """Encode pictures of equal size. sent: their pixels, if they are on their way to the engine already."""
        if losslessly:
            if isinstance(self.model, CompressionModel):
                raise UnsupportedError("this model's networks see whole images: it has no lossless tiles")
            return [self._encode_losslessly(picture) for picture in pictures]
        quality = self._chosen(quality)
        headers = [_header(picture, quality, self) for picture in pictures]
        grid, engine = headers[0].grid, self._engine(self.model)
        sent = engine.send([picture.pixels for picture in pictures]) if sent is None else sent
        payloads, bits = engine.encode(sent, grid, quality, preset)
        out = []
        for picture, header, image_payloads, estimates in zip(pictures, headers, payloads, bits, strict=True):
            tiles = [
                TileData(payload, encode_alpha(picture.alpha, area))
                for payload, area in zip(image_payloads, grid.areas(), strict=True)
            ]
            if isinstance(self.model, release.Model):
                worth = self.model.config.lagrangian(quality)
                tiles = lossless.choose(picture.pixels, header, tiles, worth, self._decode_own)
            estimates = [8 * len(t.payload) if t.lossless else e for t, e in zip(tiles, estimates, strict=True)]
            out.append(Encoded(container.write(header, tiles), float(sum(estimates)), quality))
        return out

    def _decode_own(self, file: Container, area: Rect) -> np.ndarray:
        """A part of a file of this codec's, uint8 [height, width, 3]; its lossless tiles are left undefined."""
        return self._engine(self.model).decode([file], area, "exact").wait()[0]

    def _encode_losslessly(self, picture: Picture) -> Encoded:
        """A file of lossless tiles alone."""
        header = _header(picture, MAX_QUALITY, self)
        tiles = [
            TileData(lossless.encode(picture.pixels[area.slices]), encode_alpha(picture.alpha, area), lossless=True)
            for area in header.grid.areas()
        ]
        tiles = lossless.join(tiles, picture.pixels, header.grid)
        return Encoded(container.write(header, tiles), float(sum(8 * len(tile.payload) for tile in tiles)), MAX_QUALITY)

    def _encode_to_size(self, picture: Picture, target_bytes: int, preset: Preset) -> Encoded:
        if isinstance(self.model, CompressionModel) and not self.model.variable_rate:
            raise UnsupportedError("this model has one rate: no quality meets a size")
        encoded = cache(lambda quality: self._encode([picture], quality, preset)[0])
        qualities = range(MIN_QUALITY, MAX_QUALITY + 1)
        fitting = bisect_right(qualities, target_bytes, key=lambda quality: len(encoded(quality)))
        if not fitting:
            raise TargetError(
                f"{target_bytes} bytes are too few: quality {MIN_QUALITY} takes {len(encoded(MIN_QUALITY))}"
            )
        return encoded(qualities[fitting - 1])

    # --- decoding ---------------------------------------------------------------------------------------------------

    def _read(self, file: FileLike) -> Container:
        """The container of a file. Warns, of a system of the zoo, of another machine."""
        parsed = container.read(file, self.limits)
        engine = self._engines.get(self.identity)
        if isinstance(engine, WholeImageEngine) and engine.written_elsewhere(parsed.header):
            warnings.warn(
                f"written on {parsed.header.written_on}, and this is {engine.machine}: it may not decode",
                NotPortableWarning,
                stacklevel=_callers_level(),
            )
        return parsed

    def _read_named(self, file: FileLike) -> Container:
        with naming(file):
            return self._read(file)

    def _decode(self, files: list[Container], region: Region | None, precision: str) -> Callable[[], list[Picture]]:
        """Decode files of equal size and model (and quality, if the engine takes one at a time), or the same region of
        each. What is returned waits for the result."""
        _check_precision(precision)
        area = _region(region, files[0].header.grid)
        decoded = None
        if lossless.needs_network(files[0], area):
            decoded = self._engine_for(files[0].header).decode(files, area, precision)
        # While a GPU is at work:
        alphas = [read_alpha(file, area) for file in files]
        parts = [list(lossless.parts_within(file, area)) for file in files]

        def finish() -> list[Picture]:
            images = decoded.wait() if decoded else np.empty((len(files), area.height, area.width, 3), np.uint8)
            for pixels, of_file in zip(images, parts, strict=True):
                for place, part in of_file:
                    pixels[place] = part
            return [_picture(f.header, p, alpha) for f, p, alpha in zip(files, images, alphas, strict=True)]

        return finish

    def _decode_into(self, files: list[Container], area: Rect, out: Tensor) -> Callable[[], object]:
        """Decode files of equal size whose lossless tiles are the same, uint8 [files, height, width, 3]. What is
        returned waits for the result."""
        wait: Callable[[], object] = list  # nothing to wait for
        if lossless.needs_network(files[0], area):
            wait = self._engine_for(files[0].header).decode_into(files, area, out).wait
        for file, pixels in zip(files, out, strict=True):
            for place, part in lossless.parts_within(file, area):
                pixels[place].copy_(torch.from_numpy(np.require(part, requirements=["C", "W"])))
        return wait


@lru_cache(maxsize=4)
def _kept_engines(
    model: release.Model, device: DeviceLike
) -> tuple[Callable[[release.Model], Engine], dict[bytes, Engine]]:
    """What makes engines for codecs that were pickled, and those that were made: a pool of processes sends a codec with
    every piece of work, and a GPU's engine takes long to make."""
    return engines_of(device)[1], {}


def _kind(file: Container) -> tuple[int, int, bytes, bool]:
    """What files that decode together have in common."""
    header = file.header
    return header.height, header.width, header.identity, header.float_entropy


def _check_precision(precision: str) -> None:
    if precision not in ("exact", "fast"):
        raise ValueError(f"precision {precision!r}: use 'exact' or 'fast'")


def _region(region: Region | None, grid: Grid) -> Rect:
    if region is None:
        return Rect(0, 0, grid.height, grid.width)
    try:
        x, y, width, height = map(operator.index, region)
    except (TypeError, ValueError):
        raise ValueError(f"region {region!r} is not four integers: x, y, width, height") from None
    if x < 0 or y < 0 or width < 1 or height < 1 or x + width > grid.width or y + height > grid.height:
        raise ValueError(f"region {region} (x, y, width, height) is not inside {grid.width} x {grid.height}")
    return Rect(y, x, y + height, x + width)


def _picture(header: Header, pixels: np.ndarray, alpha: np.ndarray | None) -> Picture:
    return Picture(as_coded(pixels, header.grayscale), alpha, header.icc, header.exif, header.xmp)


def _header(picture: Picture, quality: int, codec: Codec) -> Header:
    whole_image = isinstance(codec.model, CompressionModel)
    return Header(
        width=picture.width,
        height=picture.height,
        quality=quality,
        identity=codec.identity,
        grayscale=picture.pixels.ndim == 2,
        alpha=picture.alpha is not None,
        float_entropy=whole_image,
        icc=picture.icc,
        exif=picture.exif,
        xmp=picture.xmp,
        written_on=codec.machine,
    )


def _callers_level() -> int:
    """The level of a warning of `_read`'s that is about who called this package."""
    level, frame = 1, sys._getframe(1)
    while frame.f_back is not None and frame.f_globals["__name__"].partition(".")[0] == _PACKAGE:
        level, frame = level + 1, frame.f_back
    return level
