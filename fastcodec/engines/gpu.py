"""The codec on a GPU: from payloads to pixels without a round trip to the host between, and back.

An `Engine` is one released model on one GPU. It does what `cpu.py` does on the CPU, in the same order and with the
same integers: `_Entropy.launch` is the decoder's entropy side, `_Whole.launch` adds the synthesis. What differs is the
layout: all tiles of all images of a batch go through each kernel together (kernels/triton/tiles.py), the coder's last
step writes latents where the synthesis reads them, and a batch whose shape came before runs as a CUDA graph. Decoding
waits for the GPU in `Decoded.wait` and nowhere else.
"""

from __future__ import annotations

import threading
import warnings
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from ..constants import LATENT_STRIDE, MIN_QUALITY
from ..container import Container
from ..entropy.fixed_point import MEAN_BITS
from ..errors import CorruptStreamError, FastcodecError, ImageError, SymbolRangeError, UnavailableError
from ..geometry import ANALYSIS_HALO, SYNTHESIS_HALO, Grid, Rect, windows
from ..kernels import checkerboard, rans
from ..kernels.rans.session import (
    DecodePlan,
    Fetch,
    Session,
    SessionPass,
    Target,
    shape_of,
    simulator,
    size_for,
    target,
)
from ..kernels.triton import parameters
from ..kernels.triton.common import INTERPRETED
from ..kernels.triton.hyper_synthesis import HyperNetwork, hyper_synthesis
from ..kernels.triton.parameters import ParameterNetwork
from ..kernels.triton.tiles import COLUMNS, QUALITY, Layout
from ..lossless import extend_latents
from ..models.swift import release as released
from .gpu_transforms import Transforms

# Latents that go through the kernels together, over all images: 10 KB of memory each, so 1.3 GB.
GROUP_POSITIONS = 1 << 17
# Graphs are for small batches, whose launches take longer than their work: up to 8 megapixels in all.
GRAPH_POSITIONS = 1 << 15
# How many shapes of batches are remembered, and how many latents they may have together.
REMEMBERED_SHAPES = 32
REMEMBERED_POSITIONS = 1 << 17
# Bytes of payloads that any shape has room for, and sends: two or three microseconds. With less room, photographs of
# one size and quality would have half as many shapes again.
LEAST_CAPACITY = 1 << 16


def engines(device: str) -> tuple[torch.device, Callable[[released.Model], Engine]]:
    """The device of a name, and what makes engines for it.

    device: "cuda", "cuda:N", or "sim". Raises UnavailableError, saying what is missing, if it cannot be used.
    """
    if device != "sim":
        where = target(torch.device(device))
        return where.device, lambda model: Engine(model, where)
    where = simulator()
    if where is None or not INTERPRETED:
        raise UnavailableError(
            "device 'sim' runs in tests: with TRITON_INTERPRET=1, within fastcodec.kernels.rans._cuda.simulated"
        )
    # Half precision is slow on a CPU, and its results are the transforms' own tests' business.
    return where.device, lambda model: Engine(model, where, torch.float32)


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


class Engine:
    """One released model on one GPU. Any number of threads may share one.

    Args:
        model: the model.
        where: the GPU, or in tests its simulation.
        dtype: of the transforms: float16, which stays within one level of float32, or float32 to compare with.
    """

    #: Latents, over all images, that are worth coding together.
    batch_positions = GROUP_POSITIONS
    #: Whether files that are decoded together may be of several qualities.
    mixes_qualities = True
    whole_image = False

    def __init__(self, model: released.Model, where: Target, dtype: torch.dtype = torch.float16) -> None:
        self.model, self.where, self.device = model, where, where.device
        entropy = model.entropy
        with where.use():
            self.hyper_network = HyperNetwork.pack(
                [entropy.layers[f"h_s.{name}"] for name in ("head", "up1", "middle", "up2", "tail")], self.device
            )
            self.networks = [
                ParameterNetwork.pack(*entropy.group(number), self.device) for number in range(len(entropy.groups))
            ]
            self.inverse_gain = (model.inverse_gain / 2**MEAN_BITS).to(self.device)
            self._code_lengths = model.code_lengths.to(self.device)
            self._choice_lengths = self._code_lengths.float()
            self._hyper_code_lengths = model.hyper_code_lengths.to(self.device)
            self.transforms = Transforms(model, self.device, dtype)
            self._made = where.mark()
            # Decoding has streams of its own: so the memory that it keeps is always used in one order.
            self._compute, self._copies = self._new_stream(), self._new_stream()
        self._threads = threading.local()
        self._lock = threading.Lock()
        self._remembered: OrderedDict[tuple, _Whole] = OrderedDict()

    # --- decoding ---------------------------------------------------------------------------------------------------

    def decode(self, files: Sequence[Container], area: Rect, precision: str) -> Decoded:
        """Enqueues the decoding of `area`, a rectangle of pixels, of files of equal size, and its pixels' way home.

        The files have the same lossless tiles, whose pixels are left undefined: the caller has them.

        precision: of no meaning here, as nothing is faster than half precision. Raises CorruptStreamError for a tile
        whose CRC or structure is wrong; what else may be wrong with a payload shows in `Decoded.wait`.
        """
        return self._decode(files, area, None)

    def decode_into(self, files: Sequence[Container], area: Rect, out: Tensor) -> Decoded:
        """`decode`, into a tensor on the device, uint8 [files, height, width, 3] of any strides. What is enqueued on
        the current stream from here on finds the pixels there."""
        return self._decode(files, area, out)

    @_faults()
    def _decode(self, files: Sequence[Container], area: Rect, out: Tensor | None) -> Decoded:
        before = self.where.mark()
        with torch.inference_mode(), self.where.use(), self._lock, self.where.on(self._compute):
            self.where.follow(before)  # `out` may be in use until then
            grid = files[0].header.grid
            tiles = list(grid.tiles())
            wanted = grid.latents_under(area)
            # What continues the latents into a lossless tile may lie as far again (cpu.py).
            halo = SYNTHESIS_HALO * (2 if files[0].lossless_tiles else 1)
            seen = wanted.grown(halo, grid.latent_height, grid.latent_width)
            numbers = [number for number in files[0].network_tiles if tiles[number].meets(seen)]
            positions = len(files) * grid.latent_height * grid.latent_width
            if len(numbers) == len(tiles) and positions <= GROUP_POSITIONS:
                decoded = self._decode_whole(files, numbers, tiles, area, out)
            else:
                decoded = self._decode_in_parts(files, numbers, tiles, area, out)
            after = self.where.mark()
        self.where.follow(after)
        return decoded

    def _decode_whole(
        self,
        files: Sequence[Container],
        numbers: Sequence[int],
        tiles: list[Rect],
        area: Rect,
        out: Tensor | None,
    ) -> Decoded:
        """All at once, in memory that the next batch of this shape will use again."""
        jobs = _Jobs(files, numbers, tiles)
        grid, capacity = files[0].header.grid, _capacity(jobs.plan)
        key = (len(files), grid, shape_of(jobs.plan), capacity)
        whole = self._remembered.pop(key, None) or _Whole(self, grid, jobs, capacity)
        self._remember(key, whole)
        whole.run(jobs)
        pixels = whole.pixels[:, *area.slices]
        if out is not None:
            out.copy_(pixels)
            return Decoded([jobs], self.where.fetch(whole.entropy.records), False)
        finished = self.where.mark()
        with self.where.on(self._copies):  # the next batch need not wait until this one is home
            self.where.follow(finished)
            fetch = self.where.fetch(whole.entropy.records, pixels)
            whole.free = self.where.mark()
        return Decoded([jobs], fetch, True)

    def _remember(self, key: tuple, whole: _Whole) -> None:
        self._remembered[key] = whole
        positions = sum(item.positions for item in self._remembered.values())
        while len(self._remembered) > REMEMBERED_SHAPES or positions > REMEMBERED_POSITIONS:
            _, oldest = self._remembered.popitem(last=False)
            self.where.follow(oldest.free)  # its memory is given away now
            positions -= oldest.positions

    def _decode_in_parts(
        self,
        files: Sequence[Container],
        numbers: Sequence[int],
        tiles: list[Rect],
        area: Rect,
        out: Tensor | None,
    ) -> Decoded:
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
        for jobs, entropy in self._entropy_by_groups(files, numbers, tiles, latents, box):
            done.append(jobs)
            records.append(entropy.records.clone())
            quality = entropy.qualities()
        extend_latents(latents, box, grid, lossless)
        pixels = torch.empty(count, area.height, area.width, 3, dtype=torch.uint8, device=self.device)
        for window in windows(grid.latents_under(area), max(1, GROUP_POSITIONS // count)):
            around = window.grown(SYNTHESIS_HALO, grid.latent_height, grid.latent_width)
            kept = window.scaled(LATENT_STRIDE).common(area)
            corner = kept.within(around.scaled(LATENT_STRIDE))
            self.transforms.synthesis(
                latents[:, *around.within(box).slices].contiguous(),
                quality,
                pixels[:, *kept.within(area).slices],
                corner.top,
                corner.left,
            )
        if out is None:
            return Decoded(done, self.where.fetch(*records, pixels), True)
        out.copy_(pixels)
        return Decoded(done, self.where.fetch(*records), False)

    def _entropy_by_groups(
        self,
        files: Sequence[Container],
        numbers: Sequence[int],
        tiles: list[Rect],
        latents: Tensor | None,
        box: Rect | None,
        values: bool = False,
    ) -> Iterator[tuple[_Jobs, _Entropy]]:
        """The entropy side of some tiles of every file, enqueued. latents: of all files, covering `box`."""
        for group in _groups(numbers, tiles, len(files)):
            jobs = _Jobs(files, group, tiles)
            views = None if latents is None else jobs.views(latents, box)
            entropy = _Entropy(self, jobs, views, values=values)
            entropy.send(jobs)
            entropy.launch()
            yield jobs, entropy

    @_faults()
    def verify(self, file: Container) -> None:
        """Decodes every tile's symbols and checks every state and cursor. Raises what `Decoded.wait` raises."""
        tiles = list(file.header.grid.tiles())
        with torch.inference_mode(), self.where.use(), self.where.on(self._stream_of_thread()):
            groups = self._entropy_by_groups([file], file.network_tiles, tiles, None, None)
            for jobs, records in [(jobs, self.where.fetch(entropy.records)) for jobs, entropy in groups]:
                jobs.check(records.wait()[0])

    @_faults()
    def latents(self, file: Container) -> Tensor:
        """The decoded latents in 1/16, int32 [h, w, M] on the CPU."""
        grid = file.header.grid
        tiles = list(grid.tiles())
        shape = grid.latent_height, grid.latent_width, self.model.config.latents
        out = torch.zeros(shape, dtype=torch.int32, device="cpu")
        with torch.inference_mode(), self.where.use(), self.where.on(self._stream_of_thread()):
            for jobs, entropy in self._entropy_by_groups([file], file.network_tiles, tiles, None, None, values=True):
                records, *halves = self.where.fetch(entropy.records, *entropy.values).wait()
                jobs.check(records)
                anchors, non_anchors = (
                    torch.from_numpy(half).split(counts)
                    for half, counts in zip(halves, (entropy.layout.anchors, entropy.layout.non_anchors), strict=True)
                )
                for tile, a, n in zip(jobs.rects, anchors, non_anchors, strict=True):
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
        with torch.inference_mode(), self.where.use(), self.where.on(self._stream_of_thread()):
            self.where.follow(sent.mark)
            self.where.keep(sent.pixels)
            y = self._analyse(sent.pixels, grid, quality)
            tiles, images = list(grid.tiles()), len(y)
            payloads: list[list[bytes]] = [[] for _ in range(images)]
            bits: list[list[float]] = [[] for _ in range(images)]
            weight = self.model.distortion_weight(quality)[None]
            weight = weight.to(self.device)
            for group in _groups(range(len(tiles)), tiles, images):
                passes, error = self._code(y, [tiles[number] for number in group], quality, weight)
                fetch = self.where.fetch(error, self._estimate(passes))
                encoded = rans.encode(list(zip(*(part.tiles() for part in passes), strict=True)), preset=preset)
                found, estimates = fetch.wait()
                if found[0]:
                    raise _encoding_error(int(found[0]))
                for job, (payload, estimate) in enumerate(zip(encoded, estimates.tolist(), strict=True)):
                    payloads[job % images].append(payload)
                    bits[job % images].append(estimate)
            return payloads, bits

    def capture(self, launch: Callable[[], None]) -> Callable[[], None]:
        """What `launch` enqueues on the current stream as a CUDA graph: a function that enqueues all of it at once.

        `launch` has been called before by this thread, so that nothing is left to prepare. Does not wait for the GPU,
        and leaves PyTorch's caches as they are, unlike `torch.cuda.graph`: other batches may be under way. Where a
        capture fails, what it was to replace is returned, and a RuntimeWarning says why.
        """
        if self.device.type != "cuda":
            return self.where.graph(launch)
        graph = torch.cuda.CUDAGraph()  # with memory of its own
        try:
            graph.capture_begin(capture_error_mode="thread_local")
            try:
                launch()
            except BaseException:
                with suppress(RuntimeError):  # it says that the capture is void
                    graph.capture_end()
                raise
            graph.capture_end()
        except (RuntimeError, FastcodecError) as error:
            warnings.warn(f"decoding goes on without a CUDA graph, which failed: {error}", RuntimeWarning, stacklevel=2)
            return launch
        return graph.replay

    def _new_stream(self) -> object:
        """A stream in which the weights are ready."""
        stream = self.where.new_stream()
        with self.where.on(stream):
            self.where.follow(self._made)
        return stream

    def _stream_of_thread(self) -> object:
        if not hasattr(self._threads, "stream"):
            self._threads.stream = self._new_stream()
        return self._threads.stream

    @_faults()
    def send(self, pictures: Sequence[np.ndarray]) -> Sent:
        """Enqueues the copy of images of equal size to the device, beside whatever it is doing.

        pictures: uint8 [height, width, 3] or [height, width].
        """
        staging = self.where.staging(len(pictures), *pictures[0].shape)
        for row, picture in zip(staging.numpy(), pictures, strict=True):
            np.copyto(row, picture)
        with self.where.use(), self.where.on(self._copies):
            pixels = staging.to(self.device, non_blocking=True)
            return Sent(pixels, self.where.mark())

    def _analyse(self, pixels: Tensor, grid: Grid, quality: int) -> Tensor:
        """g_a and the gain: latents float32 [images, h, w, M]."""
        pixels = pixels if pixels.dim() == 4 else pixels[..., None]
        count = pixels.shape[0]
        row = torch.full((count,), quality - MIN_QUALITY, dtype=torch.int32, device=self.device)
        whole = Rect(0, 0, grid.latent_height, grid.latent_width)
        shape = count, whole.height, whole.width, self.model.config.latents
        y = torch.empty(shape, dtype=torch.float32, device=self.device)
        for window in windows(whole, max(1, GROUP_POSITIONS // count)):
            around = window.grown(ANALYSIS_HALO, whole.height, whole.width)
            seen = around.scaled(LATENT_STRIDE).clipped(grid.height, grid.width)
            found = self.transforms.analysis(pixels[:, *seen.slices], row)
            y[:, *window.slices] = found[:, *window.within(around).slices]
        return y

    def _code(self, y: Tensor, tiles: Sequence[Rect], quality: int, weight: Tensor) -> tuple[list[_FlatPass], Tensor]:
        """The passes of some tiles of every image, the images' tiles of one number after each other; and the error word
        of `parameters.encode_parameters`."""
        count, channels = y.shape[0], y.shape[3]
        layout = Layout(tuple((tile.height, tile.width) for tile in tiles for _ in range(count)))
        table = layout.table([quality - MIN_QUALITY] * len(layout.shapes)).to(self.device)
        parts = [y[:, *tile.slices] for tile in tiles]
        z = torch.cat([self._hyper_latents(part, table[:count, QUALITY]) for part in parts])
        y_anchors, y_non_anchors = (
            torch.cat([half.flatten(0, 1) for half in halves])
            for halves in zip(*(self._split(part) for part in parts), strict=True)
        )
        psi = self.empty(sum(layout.positions), self.model.config.hyper_features, torch.int8)
        hyper_synthesis(z, table, layout.longest, self.hyper_network, psi)
        error = torch.zeros(1, dtype=torch.int32, device=self.device)
        passes = [_FlatPass(z, self.hyper_indexes(len(z)), layout.hyper_positions, self.model.hyper_tables)]
        halves = [
            (half, self.empty(len(half), channels, torch.int32), counts)
            for half, counts in ((y_anchors, layout.anchors), (y_non_anchors, layout.non_anchors))
        ]
        for own, network in zip(self.model.entropy.groups, self.networks, strict=True):
            anchors = None
            for half, values, counts in halves:
                symbols, indexes = (
                    self.empty(len(half), network.latents, dtype) for dtype in (torch.int16, torch.uint8)
                )
                parameters.encode_parameters(
                    psi,
                    anchors,
                    values[:, : own.start] if own.start else None,
                    table,
                    layout.longest,
                    network,
                    half[:, own].contiguous(),
                    weight[:, own].contiguous(),
                    self._choice_lengths,
                    symbols,
                    indexes,
                    values[:, own],
                    error,
                )
                passes.append(_FlatPass(symbols, indexes, counts, self.model.tables))
                anchors = values[:, own]
        return passes, error

    def _split(self, y: Tensor) -> tuple[Tensor, Tensor]:
        """Anchors and non-anchors of tiles [B, h, w, M]: `checkerboard.split`, with positions on the device."""
        halves = checkerboard.anchor_positions(*y.shape[1:3]), checkerboard.non_anchor_positions(*y.shape[1:3])
        return tuple(y.flatten(1, 2).index_select(1, half.to(self.device)) for half in halves)

    def _hyper_latents(self, y: Tensor, quality: Tensor) -> Tensor:
        """h_a of one tile of every image, rounded: int16 [images * hh * hw, Z]."""
        return self.transforms.hyper_analysis(y, quality).flatten(0, 2)

    def _estimate(self, passes: list[_FlatPass]) -> Tensor:
        """The ideal code length of each tile in bits, float64 [tiles]: see entropy/code_length.py."""
        total = 0
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

    # --- what both need ---------------------------------------------------------------------------------------------

    def hyper_indexes(self, positions: int) -> Tensor:
        """Table indexes of the hyper latents: their channels, uint8 [positions, Z]."""
        channels = torch.arange(self.model.config.hyper_latents, dtype=torch.uint8, device=self.device)
        return channels.expand(positions, -1).contiguous()

    def empty(self, positions: int, channels: int, dtype: torch.dtype) -> Tensor:
        return torch.empty(positions, channels, dtype=dtype, device=self.device)


@dataclass(frozen=True)
class Sent:
    """Images on their way to the device: uint8 [images, height, width, 3] or [images, height, width]."""

    pixels: Tensor
    mark: object  # when they are there


class Decoded:
    """Pixels on their way, or on the device already."""

    def __init__(self, jobs: list[_Jobs], fetch: Fetch, pixels: bool):
        self._jobs, self._fetch, self._pixels = jobs, fetch, pixels

    @_faults()
    def wait(self) -> np.ndarray | None:
        """Waits until the GPU is done and checks what it found; returns the pixels if they were fetched, uint8 [files,
        height, width, 3].

        Raises CorruptStreamError, naming the tile, if a payload was not what its encoder wrote.
        """
        arrived = self._fetch.wait()
        for jobs, records in zip(self._jobs, arrived, strict=False):
            jobs.check(records)
        return arrived[-1] if self._pixels else None


class _Jobs:
    """Tiles to be decoded together: those of some numbers, of every file; files' tiles of one number are neighbours."""

    def __init__(self, files: Sequence[Container], numbers: Sequence[int], tiles: list[Rect]):
        self.files = len(files)
        self._items = [(file, number) for number in numbers for file in range(len(files))]
        self.rects = [tiles[number] for _, number in self._items]
        self.qualities = [files[file].header.quality - MIN_QUALITY for file, _ in self._items]
        self.layout = Layout(tuple((rect.height, rect.width) for rect in self.rects))
        payloads = [files[file].tile(number).payload for file, number in self._items]
        with self._named():
            self.plan = DecodePlan(payloads, padded=True)

    def views(self, latents: Tensor, box: Rect) -> list[Tensor]:
        """Where each tile lies in latents [files, h, w, M] that cover `box`."""
        places = zip(self._items, self.rects, strict=True)
        return [latents[file][rect.within(box).slices] for (file, _), rect in places]

    def check(self, records: np.ndarray) -> None:
        """Raises CorruptStreamError if a tile did not end as it must."""
        with self._named():
            self.plan.check(records)

    @contextmanager
    def _named(self) -> Iterator[None]:
        try:
            yield
        except CorruptStreamError as error:
            if error.tile is None:
                raise
            raise error.for_tile(self._items[error.tile][1]) from error


class _Entropy:
    """The decoder's entropy side for tiles of certain shapes: its memory and its launches.

    What differs from batch to batch (payloads, states, qualities) arrives by `send`, in one copy. latents: for each
    tile where its latents times the gain go; None where only the check matters, or, with `values`, the latents in 1/16.
    """

    def __init__(
        self,
        engine: Engine,
        jobs: _Jobs,
        latents: Sequence[Tensor] | None,
        *,
        capacity: int | None = None,
        values: bool = False,
    ) -> None:
        self._engine, self.layout, self._files = engine, jobs.layout, jobs.files
        config, layout, plan = engine.model.config, jobs.layout, jobs.plan
        capacity = plan.size - plan.rest_at if capacity is None else capacity
        count = len(layout.shapes)
        self._table = layout.rows([0] * count)  # but for the qualities
        self._head = -(-4 * COLUMNS * count // 16) * 16
        self._memory = torch.empty(
            self._head + size_for(plan, 1 + 2 * len(engine.networks), capacity), dtype=torch.uint8, device=engine.device
        )
        self.table = self._memory[: 4 * COLUMNS * count].view(torch.int32).view(count, COLUMNS)
        self.records = self._memory[self._head : self._head + plan.records_bytes]
        empty = engine.empty
        self._z = empty(sum(layout.hyper_positions), config.hyper_latents, torch.int16)
        self._psi = empty(sum(layout.positions), config.hyper_features, torch.int8)
        groups, rows = engine.model.entropy.groups, (sum(layout.anchors), sum(layout.non_anchors))
        # Each pass's means and indexes take the place of those before. The last group's non-anchors tell nobody.
        widest = max(own.stop - own.start for own in groups)
        means, indexes = (empty(rows[0], widest, dtype) for dtype in (torch.int16, torch.uint8))
        self.values = [empty(rows[0], config.latents, torch.int32)]
        if values or len(groups) > 1:
            self.values.append(empty(rows[1], config.latents, torch.int32))
        self._gain = torch.empty(count, config.latents, dtype=torch.float32, device=engine.device)
        passes = [
            SessionPass(engine.hyper_indexes(len(self._z)), layout.hyper_positions, engine.model.hyper_tables, self._z)
        ]
        self._outputs: list[tuple[Tensor, Tensor]] = []  # of each pass of latents: means and indexes
        for own in groups:
            for half, counts in enumerate((layout.anchors, layout.non_anchors)):
                shape = rows[half], own.stop - own.start
                output = tuple(room.flatten()[: shape[0] * shape[1]].view(shape) for room in (means, indexes))
                self._outputs.append(output)
                wanted = half == 0 or values or own is not groups[-1]
                passes.append(
                    SessionPass(
                        output[1],
                        counts,
                        engine.model.tables,
                        means=output[0],
                        mean_bits=MEAN_BITS,
                        values=self.values[half][:, own] if wanted else None,
                        latents=[view[..., own] for view in latents or ()],
                        gain=self._gain[:, own],
                        anchors=half == 0,
                    )
                )
        self._session = Session(plan, passes, engine.where, payload_bytes=capacity, memory=self._memory[self._head :])

    def send(self, jobs: _Jobs) -> None:
        """Enqueues the copy of what is to be decoded."""
        staging = self._engine.where.staging(len(self._memory))
        table = staging.numpy()[: 4 * self._table.size].view(np.int32).reshape(self._table.shape)
        table[:] = self._table
        table[:, QUALITY] = jobs.qualities
        self._session.write(jobs.plan, staging.data_ptr() + self._head)
        self._memory.copy_(staging, non_blocking=True)

    def qualities(self) -> Tensor:
        """Each file's row in the tables of qualities, int32 [files]: tiles of the first number come first."""
        return self.table[: self._files, QUALITY].contiguous()

    def launch(self) -> None:
        """Enqueues the decoding, in the order of the papers (He et al. 2021, section 4.3.2; He et al. 2022)."""
        engine, session, longest = self._engine, self._session, self.layout.longest
        torch.index_select(engine.inverse_gain, 0, self.table[:, QUALITY], out=self._gain)
        session.run(0)
        hyper_synthesis(self._z, self.table, longest, engine.hyper_network, self._psi)
        outputs = iter(enumerate(self._outputs, start=1))
        for own, network in zip(engine.model.entropy.groups, engine.networks, strict=True):
            before = [values[:, : own.start] if own.start else None for values in self.values]
            number, output = next(outputs)
            parameters.anchor_parameters(self._psi, before[0], self.table, longest, network, *output)
            session.run(number)
            number, output = next(outputs)
            anchors = self.values[0][:, own]
            parameters.context_parameters(self._psi, anchors, before[-1], self.table, longest, network, *output)
            session.run(number)
        session.finish()


class _Whole:
    """The decoder for batches of whole images of one shape: everything from payloads to pixels, in memory that stays.

    A thread's first batch runs launch by launch, which also prepares what a capture must find ready: cuDNN's handle and
    plans are a thread's own. Its second is captured, if the batch is small enough to gain by it, for all threads.
    """

    def __init__(self, engine: Engine, grid: Grid, jobs: _Jobs, capacity: int):
        self._engine = engine
        count = jobs.files
        device, box = engine.device, Rect(0, 0, grid.latent_height, grid.latent_width)
        self.positions = count * box.height * box.width
        self._latents = torch.empty(
            count, box.height, box.width, engine.model.config.latents, dtype=engine.transforms.dtype, device=device
        )
        self.entropy = _Entropy(engine, jobs, jobs.views(self._latents, box), capacity=capacity)
        self.pixels = torch.empty(count, grid.height, grid.width, 3, dtype=torch.uint8, device=device)
        self.free = engine.where.mark()  # when the pixels may be written again
        self._replay: Callable[[], None] | None = None
        self._prepared = threading.local()

    def run(self, jobs: _Jobs) -> None:
        """Enqueues the decoding of a batch."""
        self._engine.where.follow(self.free)
        self.entropy.send(jobs)
        if self._replay is None and hasattr(self._prepared, "yes") and self.positions <= GRAPH_POSITIONS:
            self._replay = self._engine.capture(self._launch)
        self._prepared.yes = True
        (self._replay or self._launch)()

    def _launch(self) -> None:
        self.entropy.launch()
        self._engine.transforms.synthesis(self._latents, self.entropy.qualities(), self.pixels)


@dataclass(frozen=True)
class _FlatPass:
    """One pass of the encoder over all tiles, one after the other: int16 and uint8 [sum of positions, channels]."""

    symbols: Tensor
    indexes: Tensor
    positions: list[int]
    tables: rans.TableSet

    def tiles(self) -> list[rans.Pass]:
        halves = (tensor.split(self.positions) for tensor in (self.symbols, self.indexes))
        return [rans.Pass(symbols, indexes, self.tables) for symbols, indexes in zip(*halves, strict=True)]


def _encoding_error(number: int) -> Exception:
    if number == parameters.NOT_FINITE:
        return ImageError("the analysis did not give finite latents")
    return SymbolRangeError("a latent is further from its mean than the 16 bits of a symbol reach")


def _groups(numbers: Sequence[int], tiles: list[Rect], images: int) -> Iterator[list[int]]:
    """Tiles that go through the kernels together: at most GROUP_POSITIONS latents over all images, or one tile."""
    group, used = [], 0
    for number in numbers:
        positions = tiles[number].height * tiles[number].width * images
        if group and used + positions > GROUP_POSITIONS:
            yield group
            group, used = [], 0
        group.append(number)
        used += positions
    if group:
        yield group


def _bounds(rects: Sequence[Rect]) -> Rect:
    """The smallest rectangle around others."""
    return Rect(
        min(rect.top for rect in rects),
        min(rect.left for rect in rects),
        max(rect.bottom for rect in rects),
        max(rect.right for rect in rects),
    )


def _capacity(plan: DecodePlan) -> int:
    """Room for payloads, in few sizes, so that batches of about the same size have the same."""
    size = LEAST_CAPACITY
    while size < plan.size - plan.rest_at:
        size *= 2
    return size
