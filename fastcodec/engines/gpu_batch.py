"""Batches of tiles on a GPU: the memory that they are decoded in, and what is launched for them.

`EntropyDecoder` is the decoder's entropy side for tiles of certain shapes, `BatchDecoder` everything from payloads to
pixels for batches of whole images. All tiles of all images go through each kernel together (kernels/triton/tiles.py),
and the coder's last step writes latents where the synthesis reads them.
"""

from __future__ import annotations

import threading
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from ..constants import MIN_QUALITY
from ..container import Container
from ..entropy.fixed_point import MEAN_BITS
from ..errors import CorruptStreamError, FastcodecError
from ..geometry import Grid, Rect
from ..kernels import rans
from ..kernels.device import Target
from ..kernels.rans.session import DecodePlan, Session, SessionPass, size_for
from ..kernels.triton import parameters
from ..kernels.triton.hyper_synthesis import HyperNetwork, hyper_synthesis
from ..kernels.triton.parameter_network import ParameterNetwork
from ..kernels.triton.parameters import Context
from ..kernels.triton.tiles import COLUMNS, QUALITY, Layout, TileTable
from ..models.swift.release import Model
from .gpu_transforms import Transforms
from .stages import stage

# Latents that go through the kernels together, over all images: 10 KB of memory each, so 1.3 GB.
GROUP_POSITIONS = 1 << 17
# Graphs are for small batches, whose launches take longer than their work: up to 8 megapixels in all.
GRAPH_POSITIONS = 1 << 15
# Bytes of payloads that any shape has room for, and sends: two or three microseconds. With less room, photographs of
# one size and quality would have half as many shapes again.
LEAST_CAPACITY = 1 << 16


class ModelOnGpu:
    """A released model, laid out on one GPU.

    Args:
        model: the model.
        target: the GPU.
        dtype: of the transforms: float16, which stays within one level of float32, or float32 to compare with.
    """

    def __init__(self, model: Model, target: Target, dtype: torch.dtype = torch.float16) -> None:
        self.model, self.target, self.device = model, target, target.device
        entropy = model.entropy
        with target.use():
            self.hyper_network = HyperNetwork.pack(
                [entropy.layers[f"h_s.{name}"] for name in ("head", "up1", "middle", "up2", "tail")], self.device
            )
            self.networks = [
                ParameterNetwork.pack(*entropy.group(number), self.device) for number in range(len(entropy.groups))
            ]
            self.inverse_gain = (model.inverse_gain / 2**MEAN_BITS).to(self.device)
            self.transforms = Transforms(model, self.device, dtype)

    def hyper_indexes(self, positions: int) -> Tensor:
        """Table indexes of the hyper latents: their channels, uint8 [positions, Z]."""
        channels = torch.arange(self.model.config.hyper_latents, dtype=torch.uint8, device=self.device)
        return channels.expand(positions, -1).contiguous()

    def empty(self, positions: int, channels: int, dtype: torch.dtype) -> Tensor:
        return torch.empty(positions, channels, dtype=dtype, device=self.device)

    def capture(self, launch: Callable[[], None]) -> Callable[[], None]:
        """What `launch` enqueues on the current stream as a CUDA graph: a function that enqueues all of it at once.

        `launch` has been called before by this thread, so that nothing is left to prepare. Does not wait for the GPU,
        and leaves PyTorch's caches as they are, unlike `torch.cuda.graph`: other batches may be under way. Where a
        capture fails, what it was to replace is returned, and a RuntimeWarning says why.
        """
        if self.device.type != "cuda":
            return self.target.graph(launch)
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


class LatentArea(NamedTuple):
    """Where decoded latents times the gain go: [files, h, w, M], and the rectangle of latents that they cover."""

    latents: Tensor
    box: Rect


class TileBatch:
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

    def views(self, area: LatentArea) -> list[Tensor]:
        """Where each tile lies in the latents."""
        places = zip(self._items, self.rects, strict=True)
        return [area.latents[file][rect.within(area.box).slices] for (file, _), rect in places]

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


class EntropyDecoder:
    """The decoder's entropy side for tiles of certain shapes: its memory and its launches.

    What differs from batch to batch (payloads, states, qualities) arrives by `send`, in one copy. latents: where the
    tiles' latents times the gain go; None where only the check matters, or, with `values`, the latents in 1/16.
    """

    def __init__(
        self,
        model: ModelOnGpu,
        batch: TileBatch,
        latents: LatentArea | None,
        *,
        capacity: int | None = None,
        values: bool = False,
    ) -> None:
        self._model, self.layout, self._files = model, batch.layout, batch.files
        config, layout, plan = model.model.config, batch.layout, batch.plan
        capacity = plan.size - plan.rest_at if capacity is None else capacity
        count = len(layout.shapes)
        self._table = layout.rows([0] * count)  # but for the qualities
        self._head = -(-4 * COLUMNS * count // 16) * 16
        self._memory = torch.empty(
            self._head + size_for(plan, 1 + 2 * len(model.networks), capacity), dtype=torch.uint8, device=model.device
        )
        self.table = self._memory[: 4 * COLUMNS * count].view(torch.int32).view(count, COLUMNS)
        self.records = self._memory[self._head : self._head + plan.records_bytes]
        self._z = model.empty(sum(layout.hyper_positions), config.hyper_latents, torch.int16)
        self._psi = model.empty(sum(layout.positions), config.hyper_features, torch.int8)
        # The last group's non-anchors tell nobody.
        self.values = [model.empty(sum(layout.anchors), config.latents, torch.int32)]
        if values or len(model.networks) > 1:
            self.values.append(model.empty(sum(layout.non_anchors), config.latents, torch.int32))
        self._gain = torch.empty(count, config.latents, dtype=torch.float32, device=model.device)
        self._outputs: list[tuple[Tensor, Tensor]] = []  # of each pass of latents: means and indexes
        passes = self._passes(batch.views(latents) if latents else [], values)
        memory = self._memory[self._head :]
        self._session = Session(plan, passes, model.target, payload_bytes=capacity, memory=memory)

    def _passes(self, views: Sequence[Tensor], values: bool) -> list[SessionPass]:
        """What the coder decodes, in order; means and indexes of each pass take the place of those before."""
        model, layout, groups = self._model.model, self.layout, self._model.model.entropy.groups
        indexes = self._model.hyper_indexes(len(self._z))
        passes = [SessionPass(indexes, layout.hyper_positions, model.hyper_tables, self._z)]
        widest = max(own.stop - own.start for own in groups)
        room = [self._model.empty(sum(layout.anchors), widest, dtype) for dtype in (torch.int16, torch.uint8)]
        for own in groups:
            for half, counts in enumerate((layout.anchors, layout.non_anchors)):
                shape = sum(counts), own.stop - own.start
                means, indexes = (tensor.flatten()[: shape[0] * shape[1]].view(shape) for tensor in room)
                self._outputs.append((means, indexes))
                wanted = half == 0 or values or own is not groups[-1]
                passes.append(
                    SessionPass(
                        indexes,
                        counts,
                        model.tables,
                        means=means,
                        mean_bits=MEAN_BITS,
                        values=self.values[half][:, own] if wanted else None,
                        latents=[view[..., own] for view in views],
                        gain=self._gain[:, own],
                        anchors=half == 0,
                    )
                )
        return passes

    def send(self, batch: TileBatch) -> None:
        """Enqueues the copy of what is to be decoded."""
        with stage("copies"):
            staging = self._model.target.staging(len(self._memory))
            table = staging.numpy()[: 4 * self._table.size].view(np.int32).reshape(self._table.shape)
            table[:] = self._table
            table[:, QUALITY] = batch.qualities
            self._session.write(batch.plan, staging.data_ptr() + self._head)
            self._memory.copy_(staging, non_blocking=True)

    def qualities(self) -> Tensor:
        """Each file's row in the tables of qualities, int32 [files]: tiles of the first number come first."""
        return self.table[: self._files, QUALITY].contiguous()

    def launch(self) -> None:
        """Enqueues the decoding, in the order of the papers (He et al. 2021, section 4.3.2; He et al. 2022)."""
        model, tiles = self._model, TileTable(self.table, self.layout.longest)
        torch.index_select(model.inverse_gain, 0, self.table[:, QUALITY], out=self._gain)
        self._run(0)
        with stage("hyper"):
            hyper_synthesis(self._z, tiles, model.hyper_network, self._psi)
        outputs = iter(enumerate(self._outputs, start=1))
        for own, network in zip(model.model.entropy.groups, model.networks, strict=True):
            for anchors, values in ((None, self.values[0]), (self.values[0][:, own], self.values[-1])):
                context = Context(anchors, values[:, : own.start] if own.start else None)
                number, (means, indexes) = next(outputs)
                with stage("parameters"):
                    parameters.decode_parameters(self._psi, context, tiles, network, means, indexes)
                self._run(number)
        with stage("rans"):
            self._session.finish()

    def _run(self, number: int) -> None:
        with stage("rans"):
            self._session.run(number)


class BatchDecoder:
    """The decoder for batches of whole images of one shape: everything from payloads to pixels, in memory that stays.

    A thread's first batch runs launch by launch, which also prepares what a capture must find ready: cuDNN's handle and
    plans are a thread's own. Its second is captured, if the batch is small enough to gain by it, for all threads.
    """

    def __init__(self, model: ModelOnGpu, grid: Grid, batch: TileBatch, capacity: int):
        self._model = model
        count = batch.files
        device, box = model.device, Rect(0, 0, grid.latent_height, grid.latent_width)
        self.positions = count * box.height * box.width
        shape = count, box.height, box.width, model.model.config.latents
        self._latents = torch.empty(shape, dtype=model.transforms.dtype, device=device)
        self.entropy = EntropyDecoder(model, batch, LatentArea(self._latents, box), capacity=capacity)
        self.pixels = torch.empty(count, grid.height, grid.width, 3, dtype=torch.uint8, device=device)
        self.free = model.target.record_event()  # when the pixels may be written again
        self._replay: Callable[[], None] | None = None
        self._prepared = threading.local()

    def run(self, batch: TileBatch) -> None:
        """Enqueues the decoding of a batch."""
        self._model.target.wait_event(self.free)
        self.entropy.send(batch)
        if self._replay is None and hasattr(self._prepared, "yes") and self.positions <= GRAPH_POSITIONS:
            self._replay = self._model.capture(self._launch)
        self._prepared.yes = True
        (self._replay or self._launch)()

    def _launch(self) -> None:
        self.entropy.launch()
        with stage("synthesis"):
            self._model.transforms.synthesis(self._latents, self.entropy.qualities(), self.pixels)


@dataclass(frozen=True)
class FlatPass:
    """One pass of the encoder over all tiles, one after the other: int16 and uint8 [sum of positions, channels]."""

    symbols: Tensor
    indexes: Tensor
    positions: list[int]
    tables: rans.TableSet

    def tiles(self) -> list[rans.Pass]:
        halves = (tensor.split(self.positions) for tensor in (self.symbols, self.indexes))
        return [rans.Pass(symbols, indexes, self.tables) for symbols, indexes in zip(*halves, strict=True)]


def tile_groups(numbers: Sequence[int], tiles: list[Rect], images: int) -> Iterator[list[int]]:
    """Tiles that go through the kernels together: at most GROUP_POSITIONS latents over all images, or one tile."""
    group: list[int] = []
    used = 0
    for number in numbers:
        positions = tiles[number].height * tiles[number].width * images
        if group and used + positions > GROUP_POSITIONS:
            yield group
            group, used = [], 0
        group.append(number)
        used += positions
    if group:
        yield group


def capacity_for(plan: DecodePlan) -> int:
    """Room for payloads, in few sizes, so that batches of about the same size have the same."""
    size = LEAST_CAPACITY
    while size < plan.size - plan.rest_at:
        size *= 2
    return size
