"""The codec: image to .fic bytes and back.

Here is what files hold beside the tiles' payloads, and which images and files are coded together. The coding itself, in
the order of the paper, is `cpu.py`'s and `gpu.py`'s, two engines of one interface.
"""

from __future__ import annotations

import operator
import re
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from itertools import groupby
from typing import TYPE_CHECKING, Any, Literal, TypeAlias, TypeVar

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from . import _calls, container
from . import lossless as lossless_tiles
from .alpha import check_alpha, encode_alpha, read_alpha
from .constants import LATENT_STRIDE, MAX_QUALITY, MIN_QUALITY, TILE_LATENTS
from .container import DEFAULT_LIMITS, Container, Header, Limits, TileData
from .engines import cpu
from .entropy.rdoq import worth_of_distortion
from .errors import FastcodecError, ModelMismatchError, TargetError, UnavailableError, name_in, within
from .geometry import SYNTHESIS_HALO, Grid, Rect
from .images import ImageLike, Picture, from_picture, to_picture
from .kernels import forks, rans
from .models.swift import release as released
from .quality import checked_quality
from .sources import FileLike, naming, several

if TYPE_CHECKING:
    from .engines import gpu

Precision = Literal["exact", "fast"]
Preset = Literal["size", "latency"]
Output = Literal["pil", "numpy", "tensor"]

DeviceLike: TypeAlias = "str | int | torch.device | None"

_engines_lock = threading.Lock()  # a fork waits for the calls that take it (_calls.py)
# What keeping the promise in every block may cost where it is kept on average: so many times the network's bytes, or so
# many bytes more.
_MOST_TIMES, _MOST_BYTES = 4, 1 << 17
_NO_LIMITS = Limits(1 << 62, 1 << 62)  # for files of our own


@dataclass(frozen=True)
class Encoded:
    """A file and what the entropy model expected of it.

    estimated_bits: the float64 code length of the symbols under a Gaussian at the table's scale (p >= 1e-9), or in the
    release's own tables, and under the hyper latents' prior, and the bits of lossless tiles; the file is larger by the
    coder's loss, its states and the container.
    """

    data: bytes
    estimated_bits: float
    quality: int


@dataclass(frozen=True)
class DecodedTensor:
    """Pixels on the codec's device, uint8 [files, 3, height, width]. They go to other libraries through DLPack."""

    pixels: Tensor
    _wait: Callable[[], object]

    @_calls.counted
    def check(self) -> None:
        """Waits until the pixels are there. Raises CorruptStreamError, naming item and tile, for a damaged payload."""
        self._wait()

    def __reduce__(self) -> tuple:
        """Pickled and copied are pixels that are there: raises what `check` raises."""
        self.check()
        return DecodedTensor, (self.pixels, _no_wait)


def _no_wait() -> None:
    """Of pixels that are there."""


class Codec:
    """Encodes and decodes images. One instance may be shared by any number of threads.

    Build one with `Codec.load`; `limits` bounds what a file may make it allocate. A pickle has the model's name and
    identity (or its file's path, or, of a model that is in no file, its weights), the limits, and the device that was
    asked for, and is loaded again where it arrives; codecs that arrive in one process share weights. In a forked
    process a codec goes on, on one thread of the CPU; a GPU is UnavailableError there.
    """

    def __init__(self, model: released.Model, limits: Limits = DEFAULT_LIMITS, device: DeviceLike = "cpu"):
        self.model = model
        self.limits = limits
        self._asked = device
        self.device, self._make_engine = _engines(device)
        self._engines: dict[bytes, cpu.Engine | gpu.Engine] = {}  # by the models' identities

    def __getstate__(self) -> dict[str, Any]:
        return {
            name: part for name, part in self.__dict__.items() if name not in ("device", "_make_engine", "_engines")
        }

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        kept = _kept_engines if self.model.source is not None else _new_engines
        self.device, self._make_engine, self._engines = kept(self.model, self._asked)

    @classmethod
    def load(cls, name: str = "swift", device: DeviceLike = "auto", limits: Limits = DEFAULT_LIMITS) -> Codec:
        """Load a shipped model.

        device: "cpu"; "cuda" or "cuda:N"; a torch.device of these, or N; "auto" or None, a GPU where there is one that
        the codec can use, else the CPU; "sim", the GPU's program on the CPU, which only tests have a use for. All read
        and write the same files.

        Raises ModelMismatchError for a name that this installation does not carry, UnavailableError, saying what is
        missing, for a device that cannot be used, ValueError or TypeError for what names none of these devices.
        """
        return cls(released.load(name), limits, device)

    @_calls.counted
    def encode(self, image: ImageLike, quality: int = 60, preset: Preset = "size", *, lossless: bool = False) -> bytes:
        """Encode a PIL image, an HWC or HW uint8 array, or a CHW uint8 tensor; returns a .fic file's bytes.

        quality: 1..100. Tiles that lossless coding serves better at that quality (screens, text, drawings) are coded
        so. preset: "size" keeps the coder's states under 0.3 % of the file, "latency" spends up to 3 % on more parallel
        lanes. lossless: every tile is coded so, and decodes to the very pixels; quality and preset are of no meaning
        then, and the file says quality 100. Raises ImageError for what is not an image, UnavailableError for `lossless`
        where this Pillow has no WebP.
        """
        return self.encode_picture(to_picture(image), quality, preset, lossless=lossless).data

    @_calls.counted
    def encode_batch(
        self, images: Sequence[ImageLike], quality: int = 60, preset: Preset = "size", *, lossless: bool = False
    ) -> list[bytes]:
        """Encode several images; those of equal size run through the network together.

        Raises what `encode` raises, the message beginning with the number of the image, as in "item 3: ...", from 0.
        """
        pictures = each(to_picture, images)
        return [encoded.data for encoded in self.encode_pictures(pictures, quality, preset, lossless=lossless)]

    @_calls.counted
    def encode_pictures(
        self, pictures: Sequence[Picture], quality: int = 60, preset: Preset = "size", *, lossless: bool = False
    ) -> list[Encoded]:
        """`encode_batch` for `Picture`s, with the estimates beside the bytes."""
        if lossless:
            return each(lambda picture: _encode_losslessly(picture, self.model.identity), pictures)
        quality = checked_quality(quality)
        engine = self._engine(self.model)
        groups = _groups([(*p.pixels.shape[:2], p.pixels.ndim) for p in pictures], engine.batch_positions)
        out: list[Encoded | None] = [None] * len(pictures)

        def alone(i: int) -> None:
            self._encode_group([pictures[i]], quality, preset)

        sent = [engine.send([pictures[i].pixels for i in group]) for group in groups[:1]]
        for number, group in enumerate(groups):
            # The next group's pixels are on their way to the device while this one is encoded.
            sent += [engine.send([pictures[i].pixels for i in following]) for following in groups[number + 1 :][:1]]
            with _of_items(group, alone):
                encoded = self._encode_group([pictures[i] for i in group], quality, preset, sent=sent.pop(0))
            for i, item in zip(group, encoded, strict=True):
                out[i] = item
        return out

    @_calls.counted
    def encode_picture(
        self,
        picture: Picture,
        quality: int = 60,
        preset: Preset = "size",
        *,
        lossless: bool = False,
        _tile_latents: int = TILE_LATENTS,
    ) -> Encoded:
        """`encode` for a `Picture`, with the estimate beside the bytes."""
        if lossless:
            return _encode_losslessly(picture, self.model.identity)
        return self._encode_group([picture], quality, preset, _tile_latents)[0]

    @_calls.counted
    def encode_to_size(self, picture: Picture, target_bytes: int, preset: Preset = "size") -> Encoded:
        """Encode at the highest quality whose file has at most `target_bytes` bytes; TargetError if none has."""
        low, high, best = MIN_QUALITY, MAX_QUALITY, None
        while low <= high:
            middle = (low + high) // 2
            encoded = self.encode_picture(picture, middle, preset)
            if len(encoded.data) <= target_bytes:
                best, low = encoded, middle + 1
            else:
                smallest, high = encoded, middle - 1
        if best is None:
            raise TargetError(f"{target_bytes} bytes are too few: quality {MIN_QUALITY} takes {len(smallest.data)}")
        return best

    @_calls.counted
    def decode(
        self,
        data: FileLike,
        *,
        out: Output = "pil",
        region: tuple[int, int, int, int] | None = None,
        precision: Precision = "exact",
    ) -> Image.Image | np.ndarray | Tensor:
        """Decode a file to uint8 pixels: a PIL image, an HWC (HW if grayscale) array or a CHW tensor, on the CPU
        (`decode_tensor` gives one on the codec's device).

        data: the file's bytes (bytes, bytearray, memoryview ...; with strides they are copied), its path (str or
        os.PathLike), or a binary file object. Errors name a file that has a name. Wherever a file is asked for, the
        same holds. region: (x, y, width, height) in pixels; only the tiles that it needs are read. precision: "exact"
        is within one level of the same pixels everywhere; "fast" runs residual blocks in bfloat16 on CPUs that multiply
        it, and is "exact" on others, where that would be slower, and on a GPU.
        Raises CorruptStreamError, UnsupportedVersionError, ModelMismatchError or LimitError, OSError for a path that
        cannot be read, TypeError for what is no file.
        """
        return from_picture(self.decode_picture(data, region=region, precision=precision), out)

    @_calls.counted
    def decode_batch(
        self, files: Sequence[FileLike], *, out: Output = "pil", precision: Precision = "exact"
    ) -> list[Image.Image | np.ndarray | Tensor]:
        """Decode several files; those of equal size and quality run through the network together.

        Raises what `decode` raises, the message beginning with the number of the file, as in "item 3: ...", from 0.
        """
        return [from_picture(picture, out) for picture in self.decode_pictures(files, precision=precision)]

    @_calls.counted
    def decode_pictures(self, files: Sequence[FileLike], *, precision: Precision = "exact") -> list[Picture]:
        """`decode_batch` to `Picture`s."""
        files = several(files)
        _check_precision(precision)
        parsed = each(self._read, files)
        engine = self._engine(self.model)
        keys = [
            (h.height, h.width, h.identity, h.float_entropy, None if engine.mixes_qualities else h.quality, c.lossless)
            for h, c in ((c.header, c) for c in parsed)
        ]
        pictures: list[Picture | None] = [None] * len(parsed)
        waiting: list[tuple[list[int], Callable[[], list[Picture]]]] = []

        def alone(i: int) -> None:
            with naming(files[i]):
                self._decode_group([parsed[i]], None, precision)()

        def settle(group: list[int], decoded: Callable[[], list[Picture]]) -> None:
            with _of_items(group, alone):
                for i, picture in zip(group, decoded(), strict=True):
                    pictures[i] = picture

        for group in _groups(keys, engine.batch_positions):
            with _of_items(group, alone):
                waiting.append((group, self._decode_group([parsed[i] for i in group], None, precision)))
            if len(waiting) > 1:  # a GPU decodes one group while the pixels of another come home
                settle(*waiting.pop(0))
        for group, decoded in waiting:
            settle(group, decoded)
        return pictures

    @_calls.counted
    def decode_tensor(
        self,
        files: Sequence[FileLike],
        *,
        out: Tensor | None = None,
        region: tuple[int, int, int, int] | None = None,
    ) -> DecodedTensor:
        """Decode files of equal size (or the same region of each) to pixels on the codec's device.

        Always three channels: without alpha, and for a grayscale file as the network gave them. out: uint8
        [files, 3, height, width] on that device, of any strides; made if None. On a GPU this returns before the work is
        done: the pixels are ready for what is enqueued next on the current stream, but what may be wrong with a file
        shows only in `check()`. Raises what `decode_batch` raises for what headers and checksums tell, and ValueError
        for files of different sizes or an `out` that does not fit.
        """
        files = several(files)
        parsed = each(self._read, files)
        kinds = [(c.header.height, c.header.width, c.header.identity, c.header.float_entropy) for c in parsed]
        check_alike(kinds)
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
                self._decode_group([parsed[i]], region, "exact")()

        def wait_for_all() -> None:
            for group, wait in waits:
                with _of_items(group, alone):
                    wait()

        for group in _neighbours([file.lossless for file in parsed]):
            with _of_items(group, alone):
                part = pixels[group[0] : group[-1] + 1]
                waits.append((group, self._decode_into([parsed[i] for i in group], area, part)))
        return DecodedTensor(out, wait_for_all)

    def _decode_into(self, files: list[Container], area: Rect, out: Tensor) -> Callable[[], object]:
        """Decode files of equal size whose lossless tiles are the same, uint8 [files, height, width, 3]. What is
        returned waits for the result."""
        tiles = lossless_tiles.images_within(files[0], area)
        network = _needs_network(files[0], area)
        wait = self._engine(self._model_for(files[0].header)).decode_into(files, area, out).wait if network else list
        for file, pixels in zip(files, out, strict=True):
            for number, covered in tiles:
                kept = covered.common(area)
                part = lossless_tiles.read_image(file, number, covered)[kept.within(covered).slices]
                pixels[kept.within(area).slices].copy_(torch.from_numpy(np.require(part, requirements=["C", "W"])))
        return wait

    @_calls.counted
    def decode_picture(
        self,
        data: FileLike,
        *,
        region: tuple[int, int, int, int] | None = None,
        precision: Precision = "exact",
    ) -> Picture:
        """`decode` to a `Picture`: pixels, alpha and metadata."""
        with naming(data):
            return self._decode_group([container.read(data, self.limits)], region, precision)()[0]

    @_calls.counted
    def verify(self, data: FileLike) -> None:
        """Decode every tile's latents and alpha, check every state, cursor and CRC; run no synthesis.

        Raises what `decode` raises; returns only if the whole file is sound.
        """
        with naming(data):
            parsed = container.read(data, self.limits)
            whole = _region(None, parsed.header.grid)
            if _needs_network(parsed, whole):
                self._engine(self._model_for(parsed.header)).verify(parsed)
            for number, covered in lossless_tiles.images_within(parsed, whole):
                lossless_tiles.read_image(parsed, number, covered)
            check_alpha(parsed)

    @_calls.counted
    def latents(self, data: FileLike) -> Tensor:
        """The decoded latents of a file in 1/16, int32 [h, w, M], on the CPU: equal bit for bit on every device.

        Lossless tiles have none; beside network tiles they hold what the synthesis sees there, else zeros.
        """
        with naming(data):
            parsed = container.read(data, self.limits)
            return self._engine(self._model_for(parsed.header)).latents(parsed)

    def _read(self, file: FileLike) -> Container:
        with naming(file):
            return container.read(file, self.limits)

    @contextmanager
    def timer(self) -> Iterator[dict[str, float]]:
        """Collect this thread's seconds by stage of the CPU's engine: analysis, hyper, parameters, rans, synthesis,
        other."""
        with cpu.timer() as times:
            yield times

    def _engine(self, model: released.Model) -> cpu.Engine | gpu.Engine:
        if self.device.type == "cuda":
            forks.check_gpu()
        with _engines_lock:
            if model.identity not in self._engines:
                self._engines[model.identity] = self._make_engine(model)
            return self._engines[model.identity]

    def _encode_group(
        self,
        pictures: list[Picture],
        quality: int,
        preset: Preset,
        tile_latents: int = TILE_LATENTS,
        sent: Sequence[np.ndarray] | gpu.Sent | None = None,
    ) -> list[Encoded]:
        """Encode pictures of equal size. sent: their pixels, if they are on their way to the engine already."""
        quality = checked_quality(quality)
        grid = Grid(*pictures[0].pixels.shape[:2], tile_latents)
        engine = self._engine(self.model)
        sent = engine.send([picture.pixels for picture in pictures]) if sent is None else sent
        payloads, bits = engine.encode(sent, grid, quality, preset)
        out = []
        for picture, image_payloads, estimates in zip(pictures, payloads, bits, strict=True):
            header = _header(picture, quality, self.model.identity)
            tiles = [
                TileData(payload, encode_alpha(picture.alpha, tile, grid))
                for payload, tile in zip(image_payloads, grid.tiles(), strict=True)
            ]
            if tile_latents == TILE_LATENTS:  # a reader knows no other tiles, and so could not be asked
                tiles = self._choose_lossless(picture, header, tiles)
            estimates = [8 * len(t.payload) if t.lossless else e for t, e in zip(tiles, estimates, strict=True)]
            out.append(Encoded(container.write(header, tiles), float(sum(estimates)), quality))
        return out

    def _choose_lossless(self, picture: Picture, header: Header, tiles: list[TileData]) -> list[TileData]:
        """A picture's tiles as the networks coded them, to those that its file will have.

        A tile that looks as if lossless coding might serve it is coded so too, unless a sample says that this is
        hopeless, and what the network's payload decodes to is compared: by bits + lambda * distortion, with the lambda
        that the quality was trained with, and by what the quality promises. A lossless tile changes what the synthesis
        sees beside it, so the neighbours that were tried are looked at again.
        """
        grid = header.grid
        rects = list(grid.tiles())
        areas = [rect.scaled(LATENT_STRIDE).clipped(grid.height, grid.width) for rect in rects]
        parts = [picture.pixels[area.slices] for area in areas]
        if not lossless_tiles.available():
            return tiles
        tried: dict[int, bytes | None] = {  # None: not coded yet
            number: None
            for number, (part, tile) in enumerate(zip(parts, tiles, strict=True))
            if lossless_tiles.worth_trying(part, len(tile.payload))
        }
        worth, promised = worth_of_distortion(self.model.config, header.quality), lossless_tiles.promise(header.quality)
        tiles, looked_at = list(tiles), list(tried)
        while looked_at:
            changed = []
            file = container.read(container.write(header, tiles), _NO_LIMITS)
            for number in looked_at:
                area, part = areas[number], parts[number]
                found = _levels(header, self._engine(self.model).decode([file], area, "exact").wait()[0])
                distortion = lossless_tiles.Distortion.between(part, found)
                cost = 8 * len(tiles[number].payload) + worth * distortion.mean * area.height * area.width
                kept = distortion.within(promised)
                if kept and tried[number] is None and lossless_tiles.is_hopeless(part, cost):
                    continue
                payload = tried[number] = tried[number] or lossless_tiles.encode(part)
                # A photograph must not grow tenfold for the sake of one block of its own.
                size = len(tiles[number].payload)
                dear = len(payload) > max(_MOST_TIMES * size, size + _MOST_BYTES)
                kept |= dear and distortion.mean <= promised.mean
                if lossless_tiles.is_better(payload, cost) or not kept:
                    tiles[number] = TileData(payload, tiles[number].alpha, lossless=True)
                    del tried[number]
                    changed.append(rects[number].grown(2 * SYNTHESIS_HALO, grid.latent_height, grid.latent_width))
            looked_at = [number for number in tried if any(rects[number].meets(around) for around in changed)]
        return lossless_tiles.join(tiles, picture.pixels, grid)

    def _model_for(self, header: Header) -> released.Model:
        if header.float_entropy:
            raise ModelMismatchError("written by a model with a floating-point entropy side, which swift is not")
        if header.identity == self.model.identity:
            return self.model
        return released.load(self.model.name, header.identity)

    def _decode_group(
        self, files: list[Container], region: tuple[int, int, int, int] | None, precision: Precision
    ) -> Callable[[], list[Picture]]:
        """Decode files of equal size and model (and quality, if the engine takes one at a time), or the same region of
        each. What is returned waits for the result."""
        _check_precision(precision)
        area = _region(region, files[0].header.grid)
        wait = None
        if _needs_network(files[0], area):
            wait = self._engine(self._model_for(files[0].header)).decode(files, area, precision).wait
        # While a GPU is at work:
        alphas = [read_alpha(file, area) for file in files]
        tiles = [
            [(pixels, lossless_tiles.read_image(file, number, pixels)) for number, pixels in places]
            for file, places in ((file, lossless_tiles.images_within(file, area)) for file in files)
        ]

        def finish() -> list[Picture]:
            images = wait() if wait else np.empty((len(files), area.height, area.width, 3), np.uint8)
            for pixels, parts in zip(images, tiles, strict=True):
                for covered, part in parts:
                    kept = covered.common(area)
                    pixels[kept.within(area).slices] = part[kept.within(covered).slices]
            return [_picture(f.header, p, alpha) for f, p, alpha in zip(files, images, alphas, strict=True)]

        return finish


def device_of(device: DeviceLike) -> torch.device:
    """The device of a name, as `Codec.load` has them. Raises what it raises."""
    return _engines(device)[0]


def _engines(device: DeviceLike) -> tuple[torch.device, Callable[[released.Model], cpu.Engine | gpu.Engine]]:
    """The device of a name, and what makes engines for it."""
    name = _device_name(device)
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() and not rans.cuda_status() else "cpu"
    if name == "cpu":
        return torch.device("cpu"), cpu.Engine
    try:
        from .engines import gpu
    except ModuleNotFoundError as error:
        raise UnavailableError(f"a GPU needs Triton, which is not installed: {error}") from error
    return gpu.engines(name)


def _device_name(device: DeviceLike) -> str:
    """One of the names "auto", "cpu", "cuda", "cuda:N" and "sim"."""
    allowed = "use 'auto' (or None), 'cpu', 'cuda', 'cuda:N', a torch.device of these, or a GPU's number N"
    if device is None:
        return "auto"
    if isinstance(device, torch.device | str):
        name = "cpu" if str(device) == "cpu:0" else str(device)
        if not re.fullmatch(r"auto|cpu|sim|cuda(:\d+)?", name):
            raise ValueError(f"device {device!r}: {allowed}")
        return name
    try:
        if isinstance(device, bool):
            raise TypeError
        number = operator.index(device)
    except TypeError:
        raise TypeError(f"a device is no {type(device).__name__}: {allowed}") from None
    if number < 0:
        raise ValueError(f"device {device!r}: {allowed}")
    return f"cuda:{number}"


_Engines: TypeAlias = "dict[bytes, cpu.Engine | gpu.Engine]"
_MakeEngine: TypeAlias = "Callable[[released.Model], cpu.Engine | gpu.Engine]"


def _new_engines(model: released.Model, device: DeviceLike) -> tuple[torch.device, _MakeEngine, _Engines]:
    """Of a codec that was pickled or copied: its device, what makes engines, and room for these."""
    return *_engines(device), {}


# A pool of processes sends a codec with every piece of work, and a GPU's engine takes long to make.
_kept_engines = lru_cache(maxsize=4)(_new_engines)


_Item, _Result = TypeVar("_Item"), TypeVar("_Result")


def each(function: Callable[[_Item], _Result], items: Iterable[_Item]) -> list[_Result]:
    """The function's results of the items of a batch; what it raises names the item."""
    out = []
    for number, item in enumerate(items):
        with within(_item(number)):
            out.append(function(item))
    return out


def check_alike(kinds: Sequence[object]) -> None:
    """ValueError, naming the first item that differs, unless there are items and all are of one kind."""
    if not kinds:
        raise ValueError("files of one size and model are needed, and there are none")
    for number, kind in enumerate(kinds):
        if kind != kinds[0]:
            raise ValueError(f"files of one size and model are needed, and item {number} differs from item 0 in these")


def _item(number: int) -> str:
    return f"item {number}"


@contextmanager
def _of_items(group: Sequence[int], alone: Callable[[int], object]) -> Iterator[None]:
    """A context: what is raised within it names the item of a batch that it is about.

    An engine that codes a group at once does not tell which of it was at fault, so `alone` codes one after the other.
    """
    try:
        yield
    except (FastcodecError, MemoryError) as error:
        if isinstance(error, FastcodecError) and not isinstance(error, UnavailableError):
            for number in group:
                with within(_item(number)):
                    alone(number)
        name_in(error, " and ".join(map(_item, group)) if len(group) < 3 else f"items {', '.join(map(str, group))}")
        raise


def _check_precision(precision: str) -> None:
    if precision not in ("exact", "fast"):
        raise ValueError(f"precision {precision!r}: use 'exact' or 'fast'")


def _groups(keys: Sequence, most: int) -> list[list[int]]:
    """Indexes of equal keys together, in batches of at most `most` latents."""
    by_key: dict[object, list[int]] = {}
    for i, key in enumerate(keys):
        by_key.setdefault(key, []).append(i)
    batches = []
    for key, members in by_key.items():
        grid = Grid(*key[:2])
        size = max(1, most // (grid.latent_height * grid.latent_width))
        batches += [members[i : i + size] for i in range(0, len(members), size)]
    return batches


def _region(region: tuple[int, int, int, int] | None, grid: Grid) -> Rect:
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
    return Picture(_levels(header, pixels), alpha, header.icc, header.exif, header.xmp)


def _levels(header: Header, pixels: np.ndarray) -> np.ndarray:
    """Decoded pixels [H, W, 3], as a picture has them: [H, W] for grayscale."""
    return ((pixels.astype(np.uint16).sum(2) + 1) // 3).astype(np.uint8) if header.grayscale else pixels


def _header(picture: Picture, quality: int, identity: bytes) -> Header:
    return Header(
        width=picture.width,
        height=picture.height,
        quality=quality,
        identity=identity,
        grayscale=picture.pixels.ndim == 2,
        alpha=picture.alpha is not None,
        icc=picture.icc,
        exif=picture.exif,
        xmp=picture.xmp,
    )


def _encode_losslessly(picture: Picture, identity: bytes) -> Encoded:
    """A file of lossless tiles alone."""
    header = _header(picture, MAX_QUALITY, identity)
    grid, tiles = header.grid, []
    for tile in grid.tiles():
        part = picture.pixels[tile.scaled(LATENT_STRIDE).clipped(grid.height, grid.width).slices]
        tiles.append(TileData(lossless_tiles.encode(part), encode_alpha(picture.alpha, tile, grid), lossless=True))
    tiles = lossless_tiles.join(tiles, picture.pixels, grid)
    return Encoded(container.write(header, tiles), float(sum(8 * len(tile.payload) for tile in tiles)), MAX_QUALITY)


def _needs_network(file: Container, area: Rect) -> bool:
    """Whether a tile that meets a rectangle of pixels was coded by the networks."""
    tiles = zip(file.lossless, file.header.grid.tiles(), strict=True)
    return any(not coded and tile.scaled(LATENT_STRIDE).meets(area) for coded, tile in tiles)


def _neighbours(keys: Sequence[object]) -> list[list[int]]:
    """Indexes of equal keys that follow one another."""
    return [[i for i, _ in group] for _, group in groupby(enumerate(keys), key=lambda item: item[1])]
