"""The codec: image to .fic bytes and back, in the order of the paper.

Decoding reads top to bottom in `_decode_tiles` and `_decode_group`: hyper latents, hyper-synthesis, anchors, context,
non-anchors, synthesis (He et al. 2021, section 4.3.2). Encoding runs the same parameter code, because symbols are
residuals against the decoder's own means. Images are handled as groups of equal size (one image is a group of one), by
rows of tiles, so that memory follows the width of an image and not its area.
"""

from __future__ import annotations

import io
import re
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Literal

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from . import container
from .constants import HYPER_STRIDE, LATENT_STRIDE, MAX_QUALITY, MIN_QUALITY, TILE_LATENTS
from .container import DEFAULT_LIMITS, Container, Header, Limits, TileData
from .entropy.estimate import code_lengths
from .entropy.gaussian import gaussian_tables
from .errors import (
    CorruptStreamError,
    ImageError,
    ModelMismatchError,
    SymbolRangeError,
    TargetError,
    UnavailableError,
)
from .geometry import ANALYSIS_HALO, SYNTHESIS_HALO, Grid, Rect, hyper_size, windows
from .images import ImageLike, Picture, from_picture, to_picture
from .kernels import checkerboard, rans
from .kernels.integer import exact_float32
from .models import released
from .models.integer import Parameters, reconstruct
from .models.swift import quality_position

if TYPE_CHECKING:
    from .gpu import Engines, Sent

Precision = Literal["exact", "fast"]
Preset = Literal["size", "latency"]
Output = Literal["pil", "numpy", "tensor"]

# Positions of a batch of windows or tiles: what keeps the working set near 150 MB and every core busy.
WINDOW_POSITIONS = 8192
BATCH_POSITIONS = 16384

# How dear a squared error in a latent is to the encoder's rounding, against the loss that the model was trained with:
# the synthesis amplifies an error in a latent by more than the inverse gain alone says. Measured on the validation
# split at seven qualities: 5 costs 0.1 % of BD-rate less than plain rounding, 10 and 20 cost 2.1 % less, 40 costs 1.5 %
# less.
_ROUNDING_WEIGHT = 14.0
_SYMBOL_LIMIT = 2**15 - 1


@dataclass(frozen=True)
class Encoded:
    """A file and what the entropy model expected of it.

    estimated_bits: the float64 code length of the symbols under a Gaussian at the table's scale (p >= 1e-9) and under
    the hyper latents' prior; the file is larger by the coder's loss, its states and the container.
    """

    data: bytes
    estimated_bits: float
    quality: int


@dataclass(frozen=True)
class DecodedTensor:
    """Pixels on the codec's device, uint8 [files, 3, height, width]. They go to other libraries through DLPack."""

    pixels: Tensor
    _wait: Callable[[], object]

    def check(self) -> None:
        """Waits until the pixels are there. Raises CorruptStreamError, naming the tile, for a damaged payload."""
        self._wait()


class Codec:
    """Encodes and decodes images. One instance may be shared by any number of threads: it holds no mutable state.

    Build one with `Codec.load`; `limits` bounds what a file may make it allocate.
    """

    def __init__(self, model: released.Model, limits: Limits = DEFAULT_LIMITS, device: str = "cpu"):
        self.model = model
        self.limits = limits
        self._engines = _engines(device)

    @classmethod
    def load(cls, name: str = "swift", device: str = "auto", limits: Limits = DEFAULT_LIMITS) -> Codec:
        """Load a shipped model.

        device: "cpu"; "cuda" or "cuda:N"; "auto", a GPU where there is one that the codec can use, else the CPU; "sim",
        the GPU's program on the CPU, which only tests have a use for. All read and write the same files.

        Raises ModelMismatchError for a name that this installation does not carry, UnavailableError, saying what is
        missing, for a device that cannot be used, ValueError for another name of a device.
        """
        return cls(released.load(name), limits, device)

    @property
    def device(self) -> torch.device:
        """Where the networks and the coder run."""
        return torch.device("cpu") if self._engines is None else self._engines.device

    def encode(self, image: ImageLike, quality: int = 60, preset: Preset = "size") -> bytes:
        """Encode a PIL image, an HWC or HW uint8 array, or a CHW uint8 tensor; returns a .fic file's bytes.

        quality: 1..100. preset: "size" keeps the coder's states under 0.3 % of the file, "latency" spends up to 3 % on
        more parallel lanes. Raises ImageError for what is not an image.
        """
        return self.encode_picture(to_picture(image), quality, preset).data

    def encode_batch(self, images: Sequence[ImageLike], quality: int = 60, preset: Preset = "size") -> list[bytes]:
        """Encode several images; those of equal size run through the network together."""
        return [
            encoded.data for encoded in self.encode_pictures([to_picture(image) for image in images], quality, preset)
        ]

    def encode_pictures(self, pictures: Sequence[Picture], quality: int = 60, preset: Preset = "size") -> list[Encoded]:
        """`encode_batch` for `Picture`s, with the estimates beside the bytes."""
        out: list[Encoded | None] = [None] * len(pictures)
        groups = self._groups([(*p.pixels.shape[:2], p.pixels.ndim) for p in pictures])
        sent = self._send(pictures, groups, 0)
        for number, group in enumerate(groups):
            following = self._send(pictures, groups, number + 1)  # on its way while this one is encoded
            encoded = self._encode_group([pictures[i] for i in group], quality, preset, sent=sent)
            sent = following
            for i, item in zip(group, encoded, strict=True):
                out[i] = item
        return out

    def encode_picture(
        self, picture: Picture, quality: int = 60, preset: Preset = "size", *, _tile_latents: int = TILE_LATENTS
    ) -> Encoded:
        """`encode` for a `Picture`, with the estimate beside the bytes."""
        return self._encode_group([picture], quality, preset, _tile_latents)[0]

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

    def decode(
        self,
        data: bytes | bytearray | memoryview,
        *,
        out: Output = "pil",
        region: tuple[int, int, int, int] | None = None,
        precision: Precision = "exact",
    ) -> Image.Image | np.ndarray | Tensor:
        """Decode a file to uint8 pixels: a PIL image, an HWC (HW if grayscale) array or a CHW tensor, on the CPU
        (`decode_tensor` gives one on the codec's device).

        region: (x, y, width, height) in pixels; only the tiles that it needs are read. precision: "exact" is within one
        level of the same pixels everywhere; "fast" runs residual blocks in bfloat16 on a CPU, and is the same on a GPU.
        Raises CorruptStreamError, UnsupportedVersionError, ModelMismatchError or LimitError.
        """
        return from_picture(self.decode_picture(data, region=region, precision=precision), out)

    def decode_batch(
        self, files: Sequence[bytes | bytearray | memoryview], *, out: Output = "pil", precision: Precision = "exact"
    ) -> list[Image.Image | np.ndarray | Tensor]:
        """Decode several files; those of equal size and quality run through the network together."""
        return [from_picture(picture, out) for picture in self.decode_pictures(files, precision=precision)]

    def decode_pictures(
        self, files: Sequence[bytes | bytearray | memoryview], *, precision: Precision = "exact"
    ) -> list[Picture]:
        """`decode_batch` to `Picture`s."""
        parsed = [container.read(data, self.limits) for data in files]
        # The CPU's parameter network takes one quality at a time.
        keys = [
            (h.height, h.width, h.identity, h.float_entropy, h.quality if self._engines is None else None)
            for h in (c.header for c in parsed)
        ]
        pictures: list[Picture | None] = [None] * len(parsed)
        waiting: list[tuple[list[int], Callable[[], list[Picture]]]] = []
        for group in self._groups(keys):
            waiting.append((group, self._decode_group([parsed[i] for i in group], None, precision)))
            if len(waiting) > 1:  # a GPU decodes one group while the pixels of another come home
                _settle(*waiting.pop(0), pictures)
        for group, decoded in waiting:
            _settle(group, decoded, pictures)
        return pictures

    def decode_tensor(
        self,
        files: Sequence[bytes | bytearray | memoryview],
        *,
        out: Tensor | None = None,
        region: tuple[int, int, int, int] | None = None,
        precision: Precision = "exact",
    ) -> DecodedTensor:
        """Decode files of equal size (or the same region of each) to pixels on the codec's device, without alpha.

        out: uint8 [files, 3, height, width] on that device, of any strides; made if None. On a GPU this returns before
        the work is done: the pixels are ready for what is enqueued next on the current stream, but what may be wrong
        with a file shows only in `check()`. Raises what `decode` raises for what headers and checksums tell, and
        ValueError for files of different sizes or an `out` that does not fit.
        """
        parsed = [container.read(data, self.limits) for data in files]
        kinds = {(c.header.height, c.header.width, c.header.identity, c.header.float_entropy) for c in parsed}
        if len(kinds) != 1:
            raise ValueError(f"files of one size and model are needed, not of {len(kinds)}")
        area = _region(region, parsed[0].header.grid)
        shape = (len(parsed), 3, area.height, area.width)
        if out is None:
            out = torch.empty(len(parsed), area.height, area.width, 3, dtype=torch.uint8, device=self.device)
            out = out.permute(0, 3, 1, 2)
        elif out.shape != shape or out.dtype != torch.uint8 or out.device != self.device:
            raise ValueError(
                f"out must be uint8 {list(shape)} on {self.device}, not {out.dtype} {list(out.shape)} on {out.device}"
            )
        rows = out.permute(0, 2, 3, 1)
        if self._engines is not None:
            engine = self._engines.of(self._model_for(parsed[0].header))
            return DecodedTensor(out, engine.decode(parsed, area, rows).wait)
        for i, data in enumerate(files):
            pixels = self.decode_picture(data, region=region, precision=precision).pixels
            rows[i] = torch.from_numpy(pixels if pixels.ndim == 3 else pixels[..., None])
        return DecodedTensor(out, lambda: None)

    def decode_picture(
        self,
        data: bytes | bytearray | memoryview,
        *,
        region: tuple[int, int, int, int] | None = None,
        precision: Precision = "exact",
    ) -> Picture:
        """`decode` to a `Picture`: pixels, alpha and metadata."""
        return self._decode_group([container.read(data, self.limits)], region, precision)()[0]

    def verify(self, data: bytes | bytearray | memoryview) -> None:
        """Decode every tile's latents and alpha, check every state, cursor and CRC; run no synthesis.

        Raises what `decode` raises; returns only if the whole file is sound.
        """
        parsed = container.read(data, self.limits)
        if self._engines is not None:
            self._engines.of(self._model_for(parsed.header)).verify(parsed)
            _check_alphas(parsed)
            return
        for _ in self._latents_by_tile(parsed):
            pass

    def latents(self, data: bytes | bytearray | memoryview) -> Tensor:
        """The decoded latents of a file in 1/16, int32 [h, w, M]: equal bit for bit on every device."""
        parsed = container.read(data, self.limits)
        if self._engines is not None:
            return self._engines.of(self._model_for(parsed.header)).latents(parsed)
        grid = parsed.header.grid
        out = torch.empty(grid.latent_height, grid.latent_width, self.model.config.latents, dtype=torch.int32)
        for tile, latents in self._latents_by_tile(parsed):
            out[tile.slices] = latents
        return out

    def _groups(self, keys: Sequence) -> list[list[int]]:
        """What goes through the networks together."""
        return _groups(keys, BATCH_POSITIONS if self._engines is None else self._engines.batch_positions)

    @contextmanager
    def timer(self) -> Iterator[dict[str, float]]:
        """Collect this thread's seconds by stage: analysis, hyper, parameters, rans, synthesis, other."""
        times = dict.fromkeys(("analysis", "hyper", "parameters", "rans", "synthesis"), 0.0)
        _active.times, start = times, time.perf_counter()
        try:
            yield times
        finally:
            _active.times = None
            times["other"] = time.perf_counter() - start - sum(times.values())

    # --- encoding ---------------------------------------------------------------------------------------------------

    def _send(self, pictures: Sequence[Picture], groups: list[list[int]], number: int) -> Sent | None:
        """On a GPU, enqueues the copy of a group's pixels, if there is such a group."""
        if self._engines is None or number >= len(groups):
            return None
        return self._engines.of(self.model).send([pictures[i].pixels for i in groups[number]])

    def _encode_group(
        self,
        pictures: list[Picture],
        quality: int,
        preset: Preset,
        tile_latents: int = TILE_LATENTS,
        sent: Sent | None = None,
    ) -> list[Encoded]:
        """Encode pictures of equal size. sent: their pixels, if they are on their way to the GPU already."""
        if not MIN_QUALITY <= quality <= MAX_QUALITY or quality != int(quality):
            raise ValueError(f"quality {quality!r} is not an integer from {MIN_QUALITY} to {MAX_QUALITY}")
        quality = int(quality)
        grid = Grid(*pictures[0].pixels.shape[:2], tile_latents)
        tiles = list(grid.tiles())
        if self._engines is not None:
            engine = self._engines.of(self.model)
            sent = sent or engine.send([picture.pixels for picture in pictures])
            payloads, bits = engine.encode(sent, grid, quality, preset, self._distortion_weight(quality))
        else:
            payloads, bits = self._encode_rows(pictures, grid, quality, preset)
        out = []
        for picture, image_payloads, estimate in zip(pictures, payloads, bits, strict=True):
            header = Header(
                width=grid.width,
                height=grid.height,
                quality=quality,
                identity=self.model.identity,
                grayscale=picture.pixels.ndim == 2,
                alpha=picture.alpha is not None,
                icc=picture.icc,
                exif=picture.exif,
            )
            alphas = [_encode_alpha(picture.alpha, tile, grid) for tile in tiles]
            data = container.write(header, [TileData(p, a) for p, a in zip(image_payloads, alphas, strict=True)])
            out.append(Encoded(data, estimate, quality))
        return out

    def _encode_rows(
        self, pictures: list[Picture], grid: Grid, quality: int, preset: Preset
    ) -> tuple[list[list[bytes]], list[float]]:
        """Each picture's payloads, a row of tiles after the other, and its estimated bits."""
        tiles = list(grid.tiles())
        payloads: list[list[bytes]] = [[] for _ in pictures]
        bits = [0.0] * len(pictures)
        for top, bottom in pairwise(grid.rows):
            band = Rect(top, 0, bottom, grid.latent_width)
            y = self._analyse_band(pictures, grid, band, quality)
            row = [tile for tile in tiles if tile.top == top]
            for encoded in self._encode_tiles([y[:, :, *tile.within(band).slices] for tile in row], quality, preset):
                for i, (payload, estimate) in enumerate(encoded):
                    payloads[i].append(payload)
                    bits[i] += estimate
        return payloads, bits

    def _analyse_band(self, pictures: list[Picture], grid: Grid, band: Rect, quality: int) -> Tensor:
        """g_a over a row of tiles: scaled latents [B, M, h, w]. Windows carry a halo, so they leave no seam."""
        model = self.model
        t = torch.tensor([quality_position(quality)]).float()
        y = torch.empty(len(pictures), model.config.latents, band.height, band.width, dtype=torch.float32)
        with _stage("analysis"), torch.inference_mode(), torch.autocast("cpu", enabled=False):
            for window in windows(band, WINDOW_POSITIONS):
                seen = window.grown(ANALYSIS_HALO, grid.latent_height, grid.latent_width)
                x = torch.stack([_pixels_as_input(p.pixels, seen.scaled(LATENT_STRIDE)) for p in pictures])
                latents = model.g_a(x.contiguous(memory_format=torch.channels_last), t)
                y[:, :, *window.within(band).slices] = latents[:, :, *window.within(seen).slices]
            y *= model.gain[quality - MIN_QUALITY][None, :, None, None]
        return y

    def _encode_tiles(self, tiles: list[Tensor], quality: int, preset: Preset) -> Iterator[list[tuple[bytes, float]]]:
        """Entropy-code a row of tiles, each scaled latents [B, M, h, w]; yields (payload, estimated bits) an image."""
        for y in tiles:
            if not torch.isfinite(y).all():
                raise ImageError("the analysis did not give finite latents")
            batch, height, width = y.shape[0], y.shape[2], y.shape[3]
            z = self._hyper_latents(y, quality)
            passes = self._code_tile(y, z, height, width, quality)
            with _stage("rans"):
                payloads = rans.encode(
                    [
                        [
                            rans.Pass(symbols[i].reshape(-1, symbols.shape[-1]), indexes[i], tables)
                            for symbols, indexes, tables in passes
                        ]
                        for i in range(batch)
                    ],
                    preset=preset,
                )
            with _stage("other"):
                yield [(payload, self._estimate(passes, i)) for i, payload in enumerate(payloads)]

    def _hyper_latents(self, y: Tensor, quality: int) -> Tensor:
        """h_a of a tile alone, rounded: int16 [B, hh, hw, Z]."""
        t = torch.tensor([quality_position(quality)]).float()
        height, width = y.shape[2:]
        with _stage("hyper"), torch.inference_mode(), torch.autocast("cpu", enabled=False):
            padded = F.pad(y, (0, -width % HYPER_STRIDE, 0, -height % HYPER_STRIDE), mode="replicate")
            z = self.model.h_a(padded.contiguous(memory_format=torch.channels_last), t)
            return z.round().clamp(-127, 127).to(torch.int16).permute(0, 2, 3, 1).contiguous()

    def _code_tile(
        self, y: Tensor, z: Tensor, height: int, width: int, quality: int
    ) -> list[tuple[Tensor, Tensor, rans.TableSet]]:
        """Symbols, table indexes and tables of the three passes: hyper latents, anchors, non-anchors."""
        model, entropy = self.model, self.model.entropy
        with exact_float32():
            with _stage("hyper"):
                psi_anchors, psi_non_anchors = entropy.hyper_synthesis(z, height, width)
            with _stage("parameters"):
                y_anchors, y_non_anchors = checkerboard.split(y.permute(0, 2, 3, 1))
                weight = self._distortion_weight(quality)
                first = entropy.anchor_parameters(psi_anchors, quality)
                anchors = _symbols(y_anchors, first, weight)
                decoded = reconstruct(anchors, first.means)
                second = entropy.non_anchor_parameters(psi_non_anchors, decoded, height, width, quality)
                non_anchors = _symbols(y_non_anchors, second, weight)
        hyper = _hyper_indexes(z.shape[0], z.shape[1] * z.shape[2], z.shape[3])
        gaussian = gaussian_tables()
        return [
            (z.flatten(1, 2), hyper, model.hyper_tables),
            (anchors, first.indexes, gaussian),
            (non_anchors, second.indexes, gaussian),
        ]

    def _distortion_weight(self, quality: int) -> Tensor:
        """Bits that a unit of squared error in each latent is worth to the rounding: float32 [M]."""
        config, model = self.model.config, self.model
        worth = config.lambda_min * (config.lambda_max / config.lambda_min) ** quality_position(quality)
        return _ROUNDING_WEIGHT * worth * 255**2 / 3 * model.inverse_gain[quality - MIN_QUALITY].square()

    def _estimate(self, passes: list[tuple[Tensor, Tensor, rans.TableSet]], i: int) -> float:
        (z, channels, _), *latents = passes
        bits = self.model.hyper_code_lengths[channels[i].long(), z[i].long() + 127].sum()
        lengths = code_lengths()
        for symbols, indexes, _ in latents:
            magnitude = symbols[i].long().abs().clamp(max=lengths.shape[1] - 1)
            bits = bits + lengths.flatten()[indexes[i].long() * lengths.shape[1] + magnitude].sum()
        return float(bits)

    # --- decoding ---------------------------------------------------------------------------------------------------

    def _model_for(self, header: Header) -> released.Model:
        if header.float_entropy:
            raise ModelMismatchError("written by a model with a floating-point entropy side, which swift is not")
        if header.identity == self.model.identity:
            return self.model
        return released.load(self.model.name, header.identity)

    def _decode_group(
        self, files: list[Container], region: tuple[int, int, int, int] | None, precision: Precision
    ) -> Callable[[], list[Picture]]:
        """Decode files of equal size and model (and, on the CPU, quality), or the same region of each. What is returned
        waits for the result."""
        if precision not in ("exact", "fast"):
            raise ValueError(f"precision {precision!r}: use 'exact' or 'fast'")
        header = files[0].header
        model, area = self._model_for(header), _region(region, header.grid)
        if self._engines is None:
            pictures = self._decode_bands(model, files, area, precision)
            return lambda: pictures
        decoded = self._engines.of(model).decode(files, area)
        alphas = [_alpha_of(file, area) for file in files]  # while the GPU is at work
        return lambda: [
            _picture(file.header, pixels, alpha)
            for file, pixels, alpha in zip(files, decoded.wait(), alphas, strict=True)
        ]

    def _decode_bands(
        self, model: released.Model, files: list[Container], area: Rect, precision: Precision
    ) -> list[Picture]:
        """The CPU's decoder: `area` of files of equal size, quality and model, by rows of tiles."""
        header = files[0].header
        grid = header.grid
        tiles = list(grid.tiles())
        wanted = grid.latents_under(area)
        pixels = [np.empty((area.height, area.width, 3), np.uint8) for _ in files]
        alphas = [np.empty((area.height, area.width), np.uint8) if f.header.alpha else None for f in files]
        pending: dict[int, Tensor] = {}  # tile number -> latents int32 [B, h, w, M], until its last band is synthesised
        finished: set[int] = set()
        for top in range(wanted.top - wanted.top % TILE_LATENTS, wanted.bottom, TILE_LATENTS):
            band = Rect(max(top, wanted.top), wanted.left, min(top + TILE_LATENTS, wanted.bottom), wanted.right)
            seen = band.grown(SYNTHESIS_HALO, grid.latent_height, grid.latent_width)
            needed = [i for i, tile in enumerate(tiles) if tile.meets(seen)]
            missing = [i for i in needed if i not in pending]
            for number, latents in self._decode_tiles(model, files, missing, tiles):
                pending[number] = latents
            for number in missing:
                if number not in finished:
                    _decode_alphas(files, number, tiles[number], area, grid, alphas)
            finished.update(needed)
            y = torch.empty(len(files), seen.height, seen.width, model.config.latents, dtype=torch.float32)
            for number in needed:
                tile = tiles[number]
                part = tile.common(seen)
                y[:, *part.within(seen).slices] = pending[number][:, *part.within(tile).slices]
            self._synthesise_band(model, y, band, seen, grid, area, header.quality, precision, pixels)
            pending = {n: latents for n, latents in pending.items() if tiles[n].bottom > band.bottom - SYNTHESIS_HALO}
        return [_picture(f.header, p, a) for f, p, a in zip(files, pixels, alphas, strict=True)]

    def _latents_by_tile(self, file: Container) -> Iterator[tuple[Rect, Tensor]]:
        model, tiles = self._model_for(file.header), list(file.header.grid.tiles())
        for number, latents in self._decode_tiles(model, [file], range(len(tiles)), tiles):
            if file.header.alpha:
                _read_alpha(file.tile(number).alpha, tiles[number].scaled(LATENT_STRIDE).clipped(*_size(file.header)))
            yield tiles[number], latents[0]

    def _decode_tiles(
        self, model: released.Model, files: list[Container], numbers: Sequence[int], tiles: list[Rect]
    ) -> Iterator[tuple[int, Tensor]]:
        """The entropy side of the decoder for some tiles of every file: yields (number, y^ int32 [B, h, w, M])."""
        quality, entropy, gaussian = files[0].header.quality, model.entropy, gaussian_tables()
        for group in _tile_batches(numbers, tiles, len(files)):
            height, width = tiles[group[0]].height, tiles[group[0]].width
            hyper_height, hyper_width = hyper_size(height), hyper_size(width)
            jobs = [(file, number) for number in group for file in files]
            try:
                with exact_float32():
                    with _stage("rans"):
                        decoder = rans.Decoder([file.tile(number).payload for file, number in jobs])
                        channels = _hyper_indexes(len(jobs), hyper_height * hyper_width, model.config.hyper_latents)
                        z = _decode_pass(decoder, channels, model.hyper_tables)
                    with _stage("hyper"):
                        z = z.view(len(jobs), hyper_height, hyper_width, -1)
                        psi_anchors, psi_non_anchors = entropy.hyper_synthesis(z, height, width)
                    with _stage("parameters"):
                        first = entropy.anchor_parameters(psi_anchors, quality)
                    with _stage("rans"):
                        anchors = reconstruct(_decode_pass(decoder, first.indexes, gaussian), first.means)
                    with _stage("parameters"):
                        second = entropy.non_anchor_parameters(psi_non_anchors, anchors, height, width, quality)
                    with _stage("rans"):
                        non_anchors = reconstruct(_decode_pass(decoder, second.indexes, gaussian), second.means)
                        decoder.finish()
                    latents = checkerboard.merge(anchors, non_anchors, height, width)
            except CorruptStreamError as error:
                if error.tile is None:
                    raise
                number = jobs[error.tile][1]
                cause = str(error).partition(": ")[2]
                raise CorruptStreamError(f"tile {number} is damaged: {cause}", number) from error
            for i, number in enumerate(group):
                yield number, latents[i * len(files) : (i + 1) * len(files)]

    def _synthesise_band(
        self,
        model: released.Model,
        y: Tensor,
        band: Rect,
        seen: Rect,
        grid: Grid,
        area: Rect,
        quality: int,
        precision: Precision,
        pixels: list[np.ndarray],
    ) -> None:
        """g_s over a band of latents, y^ [B, h, w, M] in 1/16 covering `seen`, into the pixels of `area`."""
        t = torch.tensor([quality_position(quality)]).float()
        with _stage("synthesis"), torch.inference_mode(), torch.autocast("cpu", enabled=False):
            y = y * (model.inverse_gain[quality - MIN_QUALITY] / 16)
            for window in windows(band, WINDOW_POSITIONS):
                around = window.grown(SYNTHESIS_HALO, grid.latent_height, grid.latent_width)
                latents = y[:, *around.within(seen).slices].permute(0, 3, 1, 2)
                x = model.g_s(latents, t, fast=precision == "fast")
                x = x[:, :, *window.within(around).scaled(LATENT_STRIDE).slices]
                x = (x * 255).round_().clamp_(0, 255).to(torch.uint8).permute(0, 2, 3, 1).numpy()
                target = window.scaled(LATENT_STRIDE)
                kept = target.common(area)
                for i, image in enumerate(pixels):
                    image[kept.within(area).slices] = x[i][kept.within(target).slices]


class _Active(threading.local):
    times: dict[str, float] | None = None


_active = _Active()


@contextmanager
def _stage(name: str) -> Iterator[None]:
    times = _active.times
    if times is None:
        yield
        return
    start = time.perf_counter()
    yield
    if name in times:
        times[name] += time.perf_counter() - start


def _engines(device: str) -> Engines | None:
    """What runs models on a device; None for the CPU, which needs no such thing."""
    if device == "cpu":
        return None
    if device == "auto":
        if not torch.cuda.is_available() or rans.cuda_status():
            return None
        device = "cuda"
    if device != "sim" and not re.fullmatch(r"cuda(:\d+)?", device):
        raise ValueError(f"device {device!r}: use 'auto', 'cpu', 'cuda' or 'cuda:N'")
    try:
        from .gpu import Engines
    except ModuleNotFoundError as error:
        raise UnavailableError(f"a GPU needs Triton, which is not installed: {error}") from error
    return Engines(device)


def _settle(group: list[int], decoded: Callable[[], list[Picture]], pictures: list[Picture | None]) -> None:
    """Put a group's pictures where they belong, once they are there."""
    for i, picture in zip(group, decoded(), strict=True):
        pictures[i] = picture


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


def _tile_batches(numbers: Sequence[int], tiles: list[Rect], images: int) -> Iterator[list[int]]:
    """Tiles of equal shape together, at most BATCH_POSITIONS positions over all images."""
    by_shape: dict[tuple[int, int], list[int]] = {}
    for number in numbers:
        by_shape.setdefault((tiles[number].height, tiles[number].width), []).append(number)
    for (height, width), members in by_shape.items():
        size = max(1, BATCH_POSITIONS // (height * width * images))
        for start in range(0, len(members), size):
            yield members[start : start + size]


def _pixels_as_input(pixels: np.ndarray, wanted: Rect) -> Tensor:
    """A window of an image as the network's input, [3, h, w] in 0..1; past the border the edge is replicated."""
    inside = wanted.clipped(*pixels.shape[:2])
    x = torch.from_numpy(pixels[inside.slices].astype(np.float32)).div_(255)  # a copy: the caller's may be read-only
    x = x.expand(3, -1, -1) if x.ndim == 2 else x.permute(2, 0, 1)
    beyond = (0, wanted.right - inside.right, 0, wanted.bottom - inside.bottom)
    return F.pad(x[None], beyond, mode="replicate")[0] if any(beyond) else x


def _symbols(y: Tensor, parameters: Parameters, weight: Tensor) -> Tensor:
    """y - mean, rounded to int16: to the nearest integer, or to the next one towards zero where that saves more bits
    than its distortion is worth; zero where the element is not coded. weight: bits a squared error, [M]."""
    lengths = code_lengths().float()
    columns = lengths.shape[1]
    residual = y - parameters.means.float() / 16
    nearest = residual.round()
    if nearest.numel() and float(nearest.abs().max()) > _SYMBOL_LIMIT:
        raise SymbolRangeError("a latent is further from its mean than the 16 bits of a symbol reach")
    closer = nearest - nearest.sign()
    row = parameters.indexes.long() * columns
    magnitude = nearest.abs().long().clamp_(max=columns - 1)
    saved = lengths.flatten()[row + magnitude] - lengths.flatten()[row + (magnitude - 1).clamp_(min=0)]
    lost = weight * ((residual - closer).square() - (residual - nearest).square())
    symbols = torch.where(saved > lost, closer, nearest)
    return symbols.mul_(parameters.indexes > 0).to(torch.int16)


def _hyper_indexes(batch: int, positions: int, channels: int) -> Tensor:
    """Table indexes of the hyper latents: their channels, uint8 [B, positions, Z]."""
    return torch.arange(channels, dtype=torch.uint8).expand(batch, positions, channels).contiguous()


def _decode_pass(decoder: rans.Decoder, indexes: Tensor, tables: rans.TableSet) -> Tensor:
    return torch.stack(decoder.decode(list(indexes), tables))


def _region(region: tuple[int, int, int, int] | None, grid: Grid) -> Rect:
    if region is None:
        return Rect(0, 0, grid.height, grid.width)
    x, y, width, height = region
    if x < 0 or y < 0 or width < 1 or height < 1 or x + width > grid.width or y + height > grid.height:
        raise ValueError(f"region {region} (x, y, width, height) is not inside {grid.width} x {grid.height}")
    return Rect(y, x, y + height, x + width)


def _size(header: Header) -> tuple[int, int]:
    return header.height, header.width


def _encode_alpha(alpha: np.ndarray | None, tile: Rect, grid: Grid) -> bytes:
    """A tile of the alpha plane as PNG; nothing where it is all opaque."""
    if alpha is None:
        return b""
    part = alpha[tile.scaled(LATENT_STRIDE).clipped(grid.height, grid.width).slices]
    if (part == 255).all():
        return b""
    buffer = io.BytesIO()
    Image.fromarray(part).save(buffer, "PNG", optimize=True)
    return buffer.getvalue()


def _read_alpha(data: bytes | memoryview, area: Rect) -> np.ndarray:
    """The inverse of `_encode_alpha`; CorruptStreamError unless the PNG is 8-bit gray and of just this size."""
    if not data:
        return np.full((area.height, area.width), 255, np.uint8)
    try:
        with Image.open(io.BytesIO(data), formats=["PNG"]) as image:
            if image.size != (area.width, area.height) or image.mode != "L":
                raise CorruptStreamError(f"alpha is {image.mode} {image.size}, not L {(area.width, area.height)}")
            return np.asarray(image)
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        if isinstance(error, CorruptStreamError):
            raise
        raise CorruptStreamError(f"alpha does not decode: {error}") from error


def _alpha_of(file: Container, area: Rect) -> np.ndarray | None:
    """The alpha of a rectangle of pixels."""
    if not file.header.alpha:
        return None
    grid, alpha = file.header.grid, np.empty((area.height, area.width), np.uint8)
    for number, tile in enumerate(grid.tiles()):
        if tile.scaled(LATENT_STRIDE).meets(area):
            _decode_alphas([file], number, tile, area, grid, [alpha])
    return alpha


def _check_alphas(file: Container) -> None:
    """Raise CorruptStreamError unless every tile's alpha decodes."""
    if file.header.alpha:
        for number, tile in enumerate(file.header.grid.tiles()):
            _read_alpha(file.tile(number).alpha, tile.scaled(LATENT_STRIDE).clipped(*_size(file.header)))


def _decode_alphas(
    files: list[Container], number: int, tile: Rect, area: Rect, grid: Grid, alphas: list[np.ndarray | None]
) -> None:
    covered = tile.scaled(LATENT_STRIDE).clipped(grid.height, grid.width)
    kept = covered.common(area)
    for file, alpha in zip(files, alphas, strict=True):
        if alpha is not None and kept.height > 0 and kept.width > 0:
            plane = _read_alpha(file.tile(number).alpha, covered)
            alpha[kept.within(area).slices] = plane[kept.within(covered).slices]


def _picture(header: Header, pixels: np.ndarray, alpha: np.ndarray | None) -> Picture:
    if header.grayscale:
        pixels = ((pixels.astype(np.uint16).sum(2) + 1) // 3).astype(np.uint8)
    return Picture(pixels, alpha, header.icc, header.exif)
