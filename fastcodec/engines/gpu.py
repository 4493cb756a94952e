"""The codec on a GPU: from payloads to pixels without a round trip to the host between, and back.

A `GpuEngine` is one released model on one GPU. It does what `cpu.py` does on a CPU, in the same order and with the same
integers. What differs is the layout (gpu_batch.py), and that a batch whose shape came before runs as a CUDA graph.
Decoding waits for the GPU in `Decoded.wait` and nowhere else.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from ..constants import LATENT_STRIDE, MIN_QUALITY
from ..container import Container
from ..errors import FastcodecError, ImageError, SymbolRangeError, UnavailableError
from ..geometry import ANALYSIS_HALO, SYNTHESIS_HALO, Grid, Rect, windows
from ..kernels import checkerboard, rans
from ..kernels.device import Fetch, Target
from ..kernels.rans.session import coder_target, shape_of
from ..kernels.triton import parameters
from ..kernels.triton.hyper_synthesis import hyper_synthesis
from ..kernels.triton.parameters import CodedSymbols, Context, SymbolChoice
from ..kernels.triton.symbol_choice import NOT_FINITE
from ..kernels.triton.tiles import QUALITY, Layout, TileTable
from ..lossless import extend_latents
from ..models.swift.release import Model
from . import gpu_batch
from .gpu_batch import (
    BatchDecoder,
    EntropyDecoder,
    FlatPass,
    LatentArea,
    ModelOnGpu,
    TileBatch,
    capacity_for,
    tile_groups,
)
from .stages import stage

# How many shapes of batches are remembered, and how many latents they may have together.
REMEMBERED_SHAPES = 32
REMEMBERED_POSITIONS = 1 << 17


def engines(device: str) -> tuple[torch.device, Callable[[Model], GpuEngine]]:
    """The device of a name, "cuda" or "cuda:N", and what makes engines for it.

    Raises UnavailableError, saying what is missing, if it cannot be used.
    """
    target = coder_target(torch.device(device))
    if target is None:
        raise UnavailableError(f"{device} is no GPU")
    return target.device, lambda model: GpuEngine(model, target)


@contextmanager
def _faults() -> Iterator[None]:
    """Within it, what a GPU raises that has failed (a kernel that read what it must not, say) is an UnavailableError.

    Such an error stays: no later call of this process can use the GPU, as a rule. That memory ran out is none of them.
    """
    try:
        yield
    except RuntimeError as error:
        text = str(error)
        failed = isinstance(error, torch.AcceleratorError) or text.startswith(("CUDA error", "Triton Error [CUDA]"))
        if not failed or isinstance(error, torch.OutOfMemoryError | FastcodecError):
            raise
        raise UnavailableError(
            f"the GPU failed, and this process cannot use it again: {text.splitlines()[0]}"
        ) from error


class GpuEngine(ModelOnGpu):
    """One released model on one GPU. Any number of threads may share one."""

    #: Latents, over all images, that are worth coding together.
    batch_positions = gpu_batch.GROUP_POSITIONS
    #: Whether files that are decoded together may be of several qualities.
    mixes_qualities = True

    def __init__(self, model: Model, target: Target, dtype: torch.dtype = torch.float16) -> None:
        super().__init__(model, target, dtype)
        with target.use():
            self._code_lengths = model.code_lengths.to(self.device)
            self._choice_lengths = self._code_lengths.float()
            self._hyper_code_lengths = model.hyper_code_lengths.to(self.device)
            self._made = target.record_event()
            # Decoding has streams of its own: so the memory that it keeps is always used in one order.
            self._compute, self._copies = self._new_stream(), self._new_stream()
        self._threads = threading.local()
        self._lock = threading.Lock()
        self._remembered: OrderedDict[tuple[object, ...], BatchDecoder] = OrderedDict()

    # --- decoding ---------------------------------------------------------------------------------------------------

    def decode(self, files: Sequence[Container], area: Rect, precision: str) -> Decoded:
        """Enqueues the decoding of `area`, a rectangle of pixels, of files of equal size, and its pixels' way home.

        The files have the same lossless tiles, whose pixels are left undefined: the caller has them.

        precision: of no meaning here, as nothing is faster than half precision. Raises CorruptStreamError for a tile
        whose CRC or structure is wrong; what else may be wrong with a payload shows in `Decoded.wait`.
        """
        return Decoded(self._decode(files, area, None))

    def decode_into(self, files: Sequence[Container], area: Rect, out: Tensor) -> Enqueued:
        """`decode`, into a tensor on the device, uint8 [files, height, width, 3] of any strides. What is enqueued on
        the current stream from here on finds the pixels there."""
        return self._decode(files, area, out)

    @_faults()
    def _decode(self, files: Sequence[Container], area: Rect, out: Tensor | None) -> Enqueued:
        before = self.target.record_event()
        with torch.inference_mode(), self.target.use(), self._lock, self.target.stream(self._compute):
            self.target.wait_event(before)  # `out` may be in use until then
            grid = files[0].header.grid
            tiles = list(grid.tiles())
            wanted = grid.latents_under(area)
            # What continues the latents into a lossless tile may lie as far again (cpu.py).
            halo = SYNTHESIS_HALO * (2 if files[0].lossless_tiles else 1)
            seen = wanted.grown(halo, grid.latent_height, grid.latent_width)
            numbers = [number for number in files[0].network_tiles if tiles[number].meets(seen)]
            positions = len(files) * grid.latent_height * grid.latent_width
            if len(numbers) == len(tiles) and positions <= gpu_batch.GROUP_POSITIONS:
                decoded = self._decode_whole(files, numbers, tiles, area, out)
            else:
                decoded = self._decode_in_parts(files, numbers, tiles, area, out)
            after = self.target.record_event()
        self.target.wait_event(after)
        return decoded

    def _decode_whole(
        self,
        files: Sequence[Container],
        numbers: Sequence[int],
        tiles: list[Rect],
        area: Rect,
        out: Tensor | None,
    ) -> Enqueued:
        """All at once, in memory that the next batch of this shape will use again."""
        batch = TileBatch(files, numbers, tiles)
        grid, capacity = files[0].header.grid, capacity_for(batch.plan)
        key = (len(files), grid, shape_of(batch.plan), capacity)
        decoder = self._remembered.pop(key, None) or BatchDecoder(self, grid, batch, capacity)
        self._remember(key, decoder)
        decoder.run(batch)
        pixels = decoder.pixels[:, *area.slices]
        if out is not None:
            with stage("copies"):
                out.copy_(pixels)
                return Enqueued([batch], self.target.fetch(decoder.entropy.records))
        finished = self.target.record_event()
        # The next batch need not wait until this one is home.
        with stage("copies"), self.target.stream(self._copies):
            self.target.wait_event(finished)
            fetch = self.target.fetch(decoder.entropy.records, pixels)
            decoder.free = self.target.record_event()
        return Enqueued([batch], fetch)

    def _remember(self, key: tuple[object, ...], decoder: BatchDecoder) -> None:
        self._remembered[key] = decoder
        positions = sum(item.positions for item in self._remembered.values())
        while len(self._remembered) > REMEMBERED_SHAPES or positions > REMEMBERED_POSITIONS:
            _, oldest = self._remembered.popitem(last=False)
            self.target.wait_event(oldest.free)  # its memory is given away now
            positions -= oldest.positions

    def _decode_in_parts(
        self,
        files: Sequence[Container],
        numbers: Sequence[int],
        tiles: list[Rect],
        area: Rect,
        out: Tensor | None,
    ) -> Enqueued:
        """The entropy side by groups of tiles, then the synthesis by windows: what is too large for one go, and
        regions."""
        grid, count = files[0].header.grid, len(files)
        lossless = files[0].lossless_tiles
        seen = grid.latents_under(area).grown(SYNTHESIS_HALO, grid.latent_height, grid.latent_width)
        box = _bounds([seen, *(tiles[number] for number in numbers)])
        latents = (torch.zeros if lossless else torch.empty)(
            count, box.height, box.width, self.model.config.latents, dtype=self.transforms.dtype, device=self.device
        )
        done, records = [], []
        for batch, entropy in self._entropy_by_groups(files, numbers, tiles, LatentArea(latents, box)):
            done.append(batch)
            records.append(entropy.records.clone())
            quality = entropy.qualities()
        extend_latents(latents, box, grid, lossless)
        pixels = torch.empty(count, area.height, area.width, 3, dtype=torch.uint8, device=self.device)
        for window in windows(grid.latents_under(area), max(1, gpu_batch.GROUP_POSITIONS // count)):
            around = window.grown(SYNTHESIS_HALO, grid.latent_height, grid.latent_width)
            kept = window.scaled(LATENT_STRIDE).common(area)
            corner = kept.within(around.scaled(LATENT_STRIDE))
            seen_latents = latents[:, *around.within(box).slices].contiguous()
            with stage("synthesis"):
                part = pixels[:, *kept.within(area).slices]
                self.transforms.synthesis(seen_latents, quality, part, corner.top, corner.left)
        with stage("copies"):
            if out is None:
                return Enqueued(done, self.target.fetch(*records, pixels))
            out.copy_(pixels)
            return Enqueued(done, self.target.fetch(*records))

    def _entropy_by_groups(
        self,
        files: Sequence[Container],
        numbers: Sequence[int],
        tiles: list[Rect],
        area: LatentArea | None = None,
        values: bool = False,
    ) -> Iterator[tuple[TileBatch, EntropyDecoder]]:
        """The entropy side of some tiles of every file, enqueued. area: where the latents of all files go."""
        for group in tile_groups(numbers, tiles, len(files)):
            batch = TileBatch(files, group, tiles)
            entropy = EntropyDecoder(self, batch, area, values=values)
            entropy.send(batch)
            entropy.launch()
            yield batch, entropy

    @_faults()
    def verify(self, file: Container) -> None:
        """Decodes every tile's symbols and checks every state and cursor. Raises what `Decoded.wait` raises."""
        tiles = list(file.header.grid.tiles())
        with torch.inference_mode(), self.target.use(), self.target.stream(self._stream_of_thread()):
            groups = self._entropy_by_groups([file], file.network_tiles, tiles)
            for batch, records in [(batch, self.target.fetch(entropy.records)) for batch, entropy in groups]:
                batch.check(records.wait()[0])

    @_faults()
    def latents(self, file: Container) -> Tensor:
        """The decoded latents in 1/16, int32 [h, w, M] on the CPU."""
        grid = file.header.grid
        tiles = list(grid.tiles())
        shape = grid.latent_height, grid.latent_width, self.model.config.latents
        out = torch.zeros(shape, dtype=torch.int32, device="cpu")
        with torch.inference_mode(), self.target.use(), self.target.stream(self._stream_of_thread()):
            for batch, entropy in self._entropy_by_groups([file], file.network_tiles, tiles, values=True):
                records, *halves = self.target.fetch(entropy.records, *entropy.values).wait()
                batch.check(records)
                anchors, non_anchors = (
                    torch.from_numpy(half).split(counts)
                    for half, counts in zip(halves, (entropy.layout.anchors, entropy.layout.non_anchors), strict=True)
                )
                for tile, a, n in zip(batch.rects, anchors, non_anchors, strict=True):
                    out[tile.slices] = checkerboard.merge(a[None], n[None], tile.height, tile.width)[0]
        extend_latents(out[None], Rect(0, 0, grid.latent_height, grid.latent_width), grid, file.lossless_tiles)
        return out

    # --- encoding ---------------------------------------------------------------------------------------------------

    @_faults()
    def encode(self, sent: Sent, grid: Grid, quality: int, preset: str) -> tuple[list[list[bytes]], list[list[float]]]:
        """Encodes images that `send` has sent.

        Returns for each image its tiles' payloads, and their estimated bits. Threads that encode do so side by side.
        Raises ImageError where the analysis gives no finite latents, SymbolRangeError where a symbol is beyond 16 bits.
        """
        with torch.inference_mode(), self.target.use(), self.target.stream(self._stream_of_thread()):
            self.target.wait_event(sent.ready)
            self.target.record_stream(sent.pixels)
            y = self._analyse(sent.pixels, grid, quality)
            tiles, images = list(grid.tiles()), len(y)
            payloads: list[list[bytes]] = [[] for _ in range(images)]
            bits: list[list[float]] = [[] for _ in range(images)]
            weight = self.model.distortion_weight(quality)[None]
            weight = weight.to(self.device)
            for group in tile_groups(range(len(tiles)), tiles, images):
                passes, error = self._code(y, [tiles[number] for number in group], quality, weight)
                fetch = self.target.fetch(error, self._estimate(passes))
                with stage("rans"):
                    encoded = rans.encode(list(zip(*(part.tiles() for part in passes), strict=True)), preset=preset)
                found, estimates = fetch.wait()
                if found[0]:
                    raise _encoding_error(int(found[0]))
                for job, (payload, estimate) in enumerate(zip(encoded, estimates.tolist(), strict=True)):
                    payloads[job % images].append(payload)
                    bits[job % images].append(estimate)
            return payloads, bits

    def _new_stream(self) -> torch.cuda.Stream:
        """A stream in which the weights are ready."""
        stream = self.target.new_stream()
        with self.target.stream(stream):
            self.target.wait_event(self._made)
        return stream

    def _stream_of_thread(self) -> torch.cuda.Stream:
        if not hasattr(self._threads, "stream"):
            self._threads.stream = self._new_stream()
        return self._threads.stream

    @_faults()
    def send(self, pictures: Sequence[np.ndarray]) -> Sent:
        """Enqueues the copy of images of equal size to the device, beside whatever it is doing.

        pictures: uint8 [height, width, 3] or [height, width].
        """
        with stage("copies"), self.target.use(), self.target.stream(self._copies):
            staging = self.target.staging(len(pictures), *pictures[0].shape)
            for row, picture in zip(staging.numpy(), pictures, strict=True):
                np.copyto(row, picture)
            pixels = staging.to(self.device, non_blocking=True)
            return Sent(pixels, self.target.record_event())

    def _analyse(self, pixels: Tensor, grid: Grid, quality: int) -> Tensor:
        """g_a and the gain: latents float32 [images, h, w, M]."""
        pixels = pixels if pixels.dim() == 4 else pixels[..., None]
        count = pixels.shape[0]
        row = torch.full((count,), quality - MIN_QUALITY, dtype=torch.int32, device=self.device)
        whole = Rect(0, 0, grid.latent_height, grid.latent_width)
        shape = count, whole.height, whole.width, self.model.config.latents
        y = torch.empty(shape, dtype=torch.float32, device=self.device)
        for window in windows(whole, max(1, gpu_batch.GROUP_POSITIONS // count)):
            around = window.grown(ANALYSIS_HALO, whole.height, whole.width)
            seen = around.scaled(LATENT_STRIDE).clipped(grid.height, grid.width)
            with stage("analysis"):
                found = self.transforms.analysis(pixels[:, *seen.slices], row)
                y[:, *window.slices] = found[:, *window.within(around).slices]
        return y

    def _code(self, y: Tensor, tiles: Sequence[Rect], quality: int, weight: Tensor) -> tuple[list[FlatPass], Tensor]:
        """The passes of some tiles of every image, the images' tiles of one number after each other; and the error word
        of `parameters.encode_parameters`."""
        count, channels = y.shape[0], y.shape[3]
        layout = Layout(tuple((tile.height, tile.width) for tile in tiles for _ in range(count)))
        table = layout.table([quality - MIN_QUALITY] * len(layout.shapes)).to(self.device)
        tile_table = TileTable(table, layout.longest)
        parts = [y[:, *tile.slices] for tile in tiles]
        with stage("hyper"):
            z = torch.cat([self._hyper_latents(part, table[:count, QUALITY]) for part in parts])
            psi = self.empty(sum(layout.positions), self.model.config.hyper_features, torch.int8)
            hyper_synthesis(z, tile_table, self.hyper_network, psi)
        error = torch.zeros(1, dtype=torch.int32, device=self.device)
        passes = [FlatPass(z, self.hyper_indexes(len(z)), layout.hyper_positions, self.model.hyper_tables)]
        with stage("parameters"):
            halves = [
                (half, self.empty(len(half), channels, torch.int32), counts)
                for half, counts in zip(self._split(parts), (layout.anchors, layout.non_anchors), strict=True)
            ]
            for own, network in zip(self.model.entropy.groups, self.networks, strict=True):
                anchors = None
                for half, values, counts in halves:
                    symbols, indexes = (
                        self.empty(len(half), network.latents, dtype) for dtype in (torch.int16, torch.uint8)
                    )
                    context = Context(anchors, values[:, : own.start] if own.start else None)
                    choice = SymbolChoice(half[:, own].contiguous(), weight[:, own].contiguous(), self._choice_lengths)
                    out = CodedSymbols(symbols, indexes, values[:, own], error)
                    parameters.encode_parameters(psi, context, tile_table, network, choice, out)
                    passes.append(FlatPass(symbols, indexes, counts, self.model.tables))
                    anchors = values[:, own]
        return passes, error

    def _split(self, parts: Sequence[Tensor]) -> list[Tensor]:
        """Anchors and non-anchors of tiles [B, h, w, M], flat: `checkerboard.split`, with positions on the device."""
        return [
            torch.cat([y.flatten(1, 2).index_select(1, of(*y.shape[1:3]).to(self.device)).flatten(0, 1) for y in parts])
            for of in (checkerboard.anchor_positions, checkerboard.non_anchor_positions)
        ]

    def _hyper_latents(self, y: Tensor, quality: Tensor) -> Tensor:
        """h_a of one tile of every image, rounded: int16 [images * hh * hw, Z]."""
        return self.transforms.hyper_analysis(y, quality).flatten(0, 2)

    def _estimate(self, passes: list[FlatPass]) -> Tensor:
        """The ideal code length of each tile in bits, float64 [tiles]: see entropy/code_length.py."""
        total = torch.zeros((), dtype=torch.float64, device="cpu")
        hyper_centre = self._hyper_code_lengths.shape[1] // 2
        for number, part in enumerate(passes):
            lengths = self._code_lengths if number else self._hyper_code_lengths
            column = part.symbols.int().abs() if number else part.symbols.int() + hyper_centre
            column = column.clamp_(max=lengths.shape[1] - 1)
            bits = lengths.flatten()[part.indexes.int() * lengths.shape[1] + column].sum(1)
            sums = torch.cat([bits.new_zeros(1), bits.cumsum(0)])
            counts = torch.tensor(part.positions, dtype=torch.int64, device="cpu")
            ends = counts.cumsum(0)
            total = total + sums[ends.to(self.device)] - sums[(ends - counts).to(self.device)]
        return total


@dataclass(frozen=True)
class Sent:
    """Images on their way to the device: uint8 [images, height, width, 3] or [images, height, width]."""

    pixels: Tensor
    ready: torch.cuda.Event  # when they are there


class Enqueued:
    """Batches that a GPU is decoding, and what is fetched of it: each batch's records, and pixels if any."""

    def __init__(self, batches: list[TileBatch], fetch: Fetch):
        self._batches, self._fetch = batches, fetch

    @_faults()
    def wait(self) -> list[np.ndarray]:
        """Wait until the GPU is done, check what it found, and return what was fetched.

        Raises CorruptStreamError, naming the tile, if a payload was not what its encoder wrote.
        """
        arrived = self._fetch.wait()
        for batch, records in zip(self._batches, arrived, strict=False):
            batch.check(records)
        return arrived


@dataclass(frozen=True)
class Decoded:
    """Pixels on their way to the host."""

    enqueued: Enqueued

    def wait(self) -> np.ndarray:
        """Wait for the pixels, uint8 [files, height, width, 3]. Raises what `Enqueued.wait` raises."""
        return self.enqueued.wait()[-1]


def _encoding_error(number: int) -> Exception:
    if number == NOT_FINITE:
        return ImageError("the analysis did not give finite latents")
    return SymbolRangeError("a latent is further from its mean than the 16 bits of a symbol reach")


def _bounds(rects: Sequence[Rect]) -> Rect:
    """The smallest rectangle around others."""
    return Rect(
        min(rect.top for rect in rects),
        min(rect.left for rect in rects),
        max(rect.bottom for rect in rects),
        max(rect.right for rect in rects),
    )
