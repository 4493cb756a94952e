"""The codec on a CPU: pixels to the tiles' payloads and back, in the order of the paper.

Decoding reads top to bottom in `_decode_tiles` and `decode`: hyper latents, hyper-synthesis, then for each group of
channels anchors, context, non-anchors, and synthesis (He et al. 2021, section 4.3.2; He et al. 2022). Encoding runs the
same parameter code, because symbols are residuals against the decoder's own means. Images come as groups of equal size
(one image is a group of one) and are handled by rows of tiles, so that memory follows the width of an image and not its
area. `gpu.py` does it on a GPU.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from .. import calls
from ..constants import HYPER_STRIDE, LATENT_STRIDE, MIN_QUALITY, TILE_LATENTS
from ..container import Container
from ..entropy import rdoq
from ..errors import CorruptStreamError, ImageError
from ..geometry import ANALYSIS_HALO, SYNTHESIS_HALO, Grid, Rect, hyper_size, windows
from ..kernels import checkerboard, rans
from ..kernels.integer_layer import exact_float32
from ..kernels.processor import bfloat16_is_native
from ..lossless import extend_latents
from ..models.swift import release
from ..models.swift.entropy_model import reconstruct
from ..models.swift.network import quality_position
from .stages import stage

# Positions of a batch of windows or tiles: what keeps the working set near 150 MB and every core busy.
WINDOW_POSITIONS = 8192
BATCH_POSITIONS = 16384

CodedPass = tuple[Tensor, Tensor, rans.TableSet]  # of a tile of every image: symbols, table indexes, tables


@dataclass(frozen=True)
class Decoded:
    """Pixels, uint8 [files, height, width, 3]."""

    pixels: np.ndarray

    def wait(self) -> np.ndarray:
        """They are there."""
        return self.pixels


class CpuEngine:
    """One released model on the CPU. Immutable, so threads may share it."""

    #: Latents, over all images, that are worth coding together.
    batch_positions = BATCH_POSITIONS
    #: Whether files that are decoded together may be of several qualities.
    mixes_qualities = False

    def __init__(self, model: release.Model):
        self.model = model

    # --- encoding ---------------------------------------------------------------------------------------------------

    def send(self, pictures: Sequence[np.ndarray]) -> Sequence[np.ndarray]:
        """What `encode` takes: on a CPU the images are where they are needed."""
        return pictures

    def encode(
        self, pictures: Sequence[np.ndarray], grid: Grid, quality: int, preset: str
    ) -> tuple[list[list[bytes]], list[list[float]]]:
        """Encode images of equal size, uint8 [height, width, 3] or [height, width].

        Returns for each image its tiles' payloads, and their estimated bits. Raises ImageError where the analysis gives
        no finite latents, SymbolRangeError where a symbol is beyond 16 bits.
        """
        payloads: list[list[bytes]] = [[] for _ in pictures]
        bits: list[list[float]] = [[] for _ in pictures]
        for passes in self.code_tiles(pictures, grid, quality):
            with _stage("rans"):
                encoded = rans.encode(
                    [
                        [
                            rans.Pass(symbols[i].reshape(-1, symbols.shape[-1]), indexes[i], tables)
                            for symbols, indexes, tables in passes
                        ]
                        for i in range(len(pictures))
                    ],
                    preset=preset,
                )
            with _stage("estimate"):
                for i, payload in enumerate(encoded):
                    payloads[i].append(payload)
                    bits[i].append(self._estimate(passes, i))
        return payloads, bits

    def code_tiles(self, pictures: Sequence[np.ndarray], grid: Grid, quality: int) -> Iterator[list[CodedPass]]:
        """The passes of every tile of images of equal size, up to the coder: hyper latents, then each group's anchors
        and non-anchors. Raises what `encode` raises."""
        tiles = list(grid.tiles())
        for top, bottom in pairwise(grid.rows):
            band = Rect(top, 0, bottom, grid.latent_width)
            latents = self._analyse_band(pictures, grid, band, quality)
            for tile in (tile for tile in tiles if tile.top == top):
                y = latents[:, :, *tile.within(band).slices]
                if not torch.isfinite(y).all():
                    raise ImageError("the analysis did not give finite latents")
                z = self._hyper_latents(y, quality)
                yield self._code_tile(y, z, tile.height, tile.width, quality)

    def _analyse_band(self, pictures: Sequence[np.ndarray], grid: Grid, band: Rect, quality: int) -> Tensor:
        """g_a over a row of tiles: scaled latents [B, M, h, w]. Windows carry a halo, so they leave no seam."""
        model = self.model
        t = _position(quality)
        y = torch.empty(len(pictures), model.config.latents, band.height, band.width, dtype=torch.float32, device="cpu")
        with _stage("analysis"), torch.inference_mode(), torch.autocast("cpu", enabled=False):
            for window in windows(band, WINDOW_POSITIONS):
                seen = window.grown(ANALYSIS_HALO, grid.latent_height, grid.latent_width)
                x = torch.stack([_pixels_as_input(p, seen.scaled(LATENT_STRIDE)) for p in pictures])
                latents = model.g_a(x.contiguous(memory_format=torch.channels_last), t)
                y[:, :, *window.within(band).slices] = latents[:, :, *window.within(seen).slices]
            y *= model.gain[quality - MIN_QUALITY][None, :, None, None]
        return y

    def _hyper_latents(self, y: Tensor, quality: int) -> Tensor:
        """h_a of a tile alone, rounded: int16 [B, hh, hw, Z]."""
        t = _position(quality)
        height, width = y.shape[2:]
        with _stage("hyper"), torch.inference_mode(), torch.autocast("cpu", enabled=False):
            padded = F.pad(y, (0, -width % HYPER_STRIDE, 0, -height % HYPER_STRIDE), mode="replicate")
            z = self.model.h_a(padded.contiguous(memory_format=torch.channels_last), t)
            return z.round().clamp(-127, 127).to(torch.int16).permute(0, 2, 3, 1).contiguous()

    def _code_tile(self, y: Tensor, z: Tensor, height: int, width: int, quality: int) -> list[CodedPass]:
        """Symbols, table indexes and tables of the passes: hyper latents, then each group's anchors and non-anchors."""
        model, entropy = self.model, self.model.entropy
        lengths = model.code_lengths.float()
        passes = [
            (z.flatten(1, 2), _hyper_indexes(z.shape[0], z.shape[1] * z.shape[2], z.shape[3]), model.hyper_tables)
        ]
        with exact_float32():
            with _stage("hyper"):
                psi_anchors, psi_non_anchors = entropy.hyper_synthesis(z, height, width)
            with _stage("parameters"):
                y_anchors, y_non_anchors = checkerboard.split(y.permute(0, 2, 3, 1))
                weight = model.distortion_weight(quality)
                decoded: tuple[list[Tensor], list[Tensor]] = [], []  # by groups, anchors and non-anchors
                for group, channels in enumerate(entropy.groups):
                    first = entropy.anchor_parameters(psi_anchors, quality, group, _joined(decoded[0]))
                    symbols = rdoq.symbols(
                        y_anchors[..., channels], first.means, first.indexes, weight[channels], lengths
                    )
                    passes.append((symbols, first.indexes, model.tables))
                    anchors = reconstruct(symbols, first.means)
                    second = entropy.non_anchor_parameters(
                        psi_non_anchors, anchors, (height, width), quality, group, _joined(decoded[1])
                    )
                    symbols = rdoq.symbols(
                        y_non_anchors[..., channels], second.means, second.indexes, weight[channels], lengths
                    )
                    passes.append((symbols, second.indexes, model.tables))
                    decoded[0].append(anchors)
                    decoded[1].append(reconstruct(symbols, second.means))
        return passes

    def _estimate(self, passes: list[CodedPass], i: int) -> float:
        (z, channels, _), *latents = passes
        bits = self.model.hyper_code_lengths[channels[i].long(), z[i].long() + 127].sum()
        lengths = self.model.code_lengths
        for symbols, indexes, _ in latents:
            magnitude = symbols[i].long().abs().clamp(max=lengths.shape[1] - 1)
            bits = bits + lengths.flatten()[indexes[i].long() * lengths.shape[1] + magnitude].sum()
        return float(bits)

    # --- decoding ---------------------------------------------------------------------------------------------------

    def decode(self, files: Sequence[Container], area: Rect, precision: str) -> Decoded:
        """Decode `area`, a rectangle of pixels, of files of equal size and quality, by rows of tiles.

        The files have the same lossless tiles, whose pixels are left undefined: the caller has them.

        precision: "exact" runs the synthesis in float32, "fast" its residual blocks in bfloat16 on processors that
        multiply it; on others it would be slower, so that "fast" is "exact" there. Raises
        CorruptStreamError, naming the tile, for a damaged payload.
        """
        header = files[0].header
        grid = header.grid
        tiles = list(grid.tiles())
        wanted = grid.latents_under(area)
        canvas = _Canvas(
            grid,
            area,
            header.quality,
            precision == "fast" and bfloat16_is_native(),
            np.empty((len(files), area.height, area.width, 3), np.uint8),
        )
        lossless = files[0].lossless_tiles
        # What continues the latents into a lossless tile may lie as far again.
        halo = SYNTHESIS_HALO * (2 if lossless else 1)
        pending: dict[int, Tensor] = {}  # tile number -> latents int32 [B, h, w, M], until its last band is synthesised
        for top in range(wanted.top - wanted.top % TILE_LATENTS, wanted.bottom, TILE_LATENTS):
            band = Rect(max(top, wanted.top), wanted.left, min(top + TILE_LATENTS, wanted.bottom), wanted.right)
            seen = band.grown(halo, grid.latent_height, grid.latent_width)
            needed = [i for i, tile in enumerate(tiles) if tile.meets(seen) and not files[0].lossless[i]]
            missing = [i for i in needed if i not in pending]
            for number, latents in self._decode_tiles(files, missing, tiles):
                pending[number] = latents
            shape = len(files), seen.height, seen.width, self.model.config.latents
            y = torch.zeros(shape, dtype=torch.float32, device="cpu")
            for number in needed:
                tile = tiles[number]
                part = tile.common(seen)
                y[:, *part.within(seen).slices] = pending[number][:, *part.within(tile).slices]
            extend_latents(y, seen, grid, lossless)
            self._synthesise_band(y, band, seen, canvas)
            pending = {n: latents for n, latents in pending.items() if tiles[n].bottom > band.bottom - halo}
        return Decoded(canvas.pixels)

    def decode_into(self, files: Sequence[Container], area: Rect, out: Tensor) -> Decoded:
        """`decode`, into a tensor, uint8 [files, height, width, 3] of any strides; the files may differ in quality."""
        for row, file in zip(out, files, strict=True):
            row.copy_(torch.from_numpy(self.decode([file], area, "exact").pixels[0]))
        return Decoded(out.numpy())

    def verify(self, file: Container) -> None:
        """Decode every network tile's symbols and check every state and cursor. Raises CorruptStreamError."""
        for _ in self._decode_tiles([file], file.network_tiles, list(file.header.grid.tiles())):
            pass

    def latents(self, file: Container) -> Tensor:
        """The decoded latents in 1/16, int32 [h, w, M]."""
        grid = file.header.grid
        tiles = list(grid.tiles())
        shape = grid.latent_height, grid.latent_width, self.model.config.latents
        out = torch.zeros(shape, dtype=torch.int32, device="cpu")
        for number, latents in self._decode_tiles([file], file.network_tiles, tiles):
            out[tiles[number].slices] = latents[0]
        extend_latents(out[None], Rect(0, 0, grid.latent_height, grid.latent_width), grid, file.lossless_tiles)
        return out

    def _decode_tiles(
        self, files: Sequence[Container], numbers: Sequence[int], tiles: list[Rect]
    ) -> Iterator[tuple[int, Tensor]]:
        """The entropy side of the decoder for some tiles of every file: yields (number, y^ int32 [B, h, w, M])."""
        model, tables = self.model, self.model.tables
        quality, entropy = files[0].header.quality, model.entropy
        for group in _tile_batches(numbers, tiles, len(files)):
            height, width = tiles[group[0]].height, tiles[group[0]].width
            hyper_height, hyper_width = hyper_size(height), hyper_size(width)
            jobs = [(file, number) for number in group for file in files]
            payloads = [file.tile(number).payload for file, number in jobs]
            try:
                with exact_float32():
                    with _stage("rans"):
                        decoder = rans.Decoder(payloads)
                        channels = _hyper_indexes(len(jobs), hyper_height * hyper_width, model.config.hyper_latents)
                        z = _decode_pass(decoder, channels, model.hyper_tables)
                    with _stage("hyper"):
                        z = z.view(len(jobs), hyper_height, hyper_width, -1)
                        psi_anchors, psi_non_anchors = entropy.hyper_synthesis(z, height, width)
                    decoded: tuple[list[Tensor], list[Tensor]] = [], []  # by groups, anchors and non-anchors
                    for number in range(len(entropy.groups)):
                        with _stage("parameters"):
                            first = entropy.anchor_parameters(psi_anchors, quality, number, _joined(decoded[0]))
                        with _stage("rans"):
                            anchors = reconstruct(_decode_pass(decoder, first.indexes, tables), first.means)
                        with _stage("parameters"):
                            second = entropy.non_anchor_parameters(
                                psi_non_anchors, anchors, (height, width), quality, number, _joined(decoded[1])
                            )
                        with _stage("rans"):
                            symbols = _decode_pass(decoder, second.indexes, tables)
                            decoded[0].append(anchors)
                            decoded[1].append(reconstruct(symbols, second.means))
                    with _stage("rans"):
                        decoder.finish()
                    latents = checkerboard.merge(torch.cat(decoded[0], 2), torch.cat(decoded[1], 2), height, width)
            except CorruptStreamError as error:
                if error.tile is None:
                    raise
                raise error.for_tile(jobs[error.tile][1]) from error
            for i, number in enumerate(group):
                yield number, latents[i * len(files) : (i + 1) * len(files)]

    def _synthesise_band(self, y: Tensor, band: Rect, seen: Rect, canvas: _Canvas) -> None:
        """g_s over a band of latents, y^ [B, h, w, M] in 1/16 covering `seen`."""
        model, grid = self.model, canvas.grid
        t = _position(canvas.quality)
        with _stage("synthesis"), torch.inference_mode(), torch.autocast("cpu", enabled=False):
            y = y * (model.inverse_gain[canvas.quality - MIN_QUALITY] / 16)
            for window in windows(band, WINDOW_POSITIONS):
                around = window.grown(SYNTHESIS_HALO, grid.latent_height, grid.latent_width)
                latents = y[:, *around.within(seen).slices].permute(0, 3, 1, 2)
                x = model.g_s(latents, t, fast=canvas.fast)
                x = x[:, :, *window.within(around).scaled(LATENT_STRIDE).slices]
                levels = (x * 255).round_().clamp_(0, 255).to(torch.uint8).permute(0, 2, 3, 1).numpy()
                target = window.scaled(LATENT_STRIDE)
                kept = target.common(canvas.area)
                canvas.pixels[:, *kept.within(canvas.area).slices] = levels[:, *kept.within(target).slices]


@dataclass(frozen=True)
class _Canvas:
    """What a decoder paints: a rectangle of an image's pixels, uint8 [files, height, width, 3], at a quality."""

    grid: Grid
    area: Rect
    quality: int
    fast: bool
    pixels: np.ndarray


def _stage(name: str) -> AbstractContextManager[object]:
    """A stage of coding; a thread may be held where it begins."""
    calls.pause()
    return stage(name)


def _joined(groups: list[Tensor]) -> Tensor | None:
    """The decoded latents of the groups of channels so far, int32 [B, positions, channels]; None before the first."""
    return torch.cat(groups, 2) if groups else None


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


def _position(quality: int) -> Tensor:
    """The quality as the transforms take it: float32 [1]."""
    return torch.tensor([quality_position(quality)], dtype=torch.float32, device="cpu")


def _hyper_indexes(batch: int, positions: int, channels: int) -> Tensor:
    """Table indexes of the hyper latents: their channels, uint8 [B, positions, Z]."""
    return torch.arange(channels, dtype=torch.uint8, device="cpu").expand(batch, positions, channels).contiguous()


def _decode_pass(decoder: rans.Decoder, indexes: Tensor, tables: rans.TableSet) -> Tensor:
    return torch.stack(decoder.decode(list(indexes), tables))
