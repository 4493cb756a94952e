"""Decoding batches of one shape again and again, on a GPU, in memory that stays where it is: what a CUDA graph needs.

`Decoder` takes any batch and allocates for it. A `Session` is made once for batches of the same shape (`shape_of`): the
tensors that its passes read and write are fixed, and so are all arguments of its launches. A batch's payloads, its
states and its numbers of streams arrive by one copy, which the caller makes (together with whatever else it sends):

    plan = DecodePlan(payloads, padded=True)
    session = Session(plan, passes, target)
    session.write(plan, staging)            # session.size bytes on the host, for session.memory on the device
    session.run(0); ...; session.finish()   # can be captured, and replayed after the next batch was copied
    plan.check(records)                     # the first plan.records_bytes of session.memory, back on the host
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from torch import Tensor

from ..device import Target
from ._cuda import DecodePlan, coder_target
from ._cuda_abi import PassTensors, TilePass, complete_passes, describe_pass
from .tables import TableSet

__all__ = ["DecodePlan", "Session", "SessionPass", "coder_target", "shape_of", "size_for"]

_ALIGNMENT = 16  # of sections in a session's memory


@dataclass(frozen=True)
class SessionPass:
    """One pass of all tiles, one tile after the other in each tensor; what is None is not written.

    indexes: uint8 [sum of positions, C]; positions: of each tile; symbols: int16, like indexes. With means (int16, like
    indexes), values are reconstructed: `values` int32, of the indexes' shape, and `latents`, for each tile a view
    [rows, columns, C] of where its values times `gain` (float32 [tiles, C]) go, at its anchors or at its non-anchors.
    Values, latents and gain may be columns of larger tensors: a group of channels.
    """

    indexes: Tensor
    positions: Sequence[int]
    tables: TableSet
    symbols: Tensor | None = None
    means: Tensor | None = None
    mean_bits: int = 0
    values: Tensor | None = None
    latents: Sequence[Tensor] = field(default=())
    gain: Tensor | None = None
    anchors: bool = True


def shape_of(plan: DecodePlan) -> tuple[int, ...]:
    """What batches must have in common to be decoded by one session, beside the passes' tensors."""
    sections = plan.warps_at, plan.lanes_at, plan.states_at, plan.rest_at
    return plan.tiles, plan.stream_count, plan.warp_count, *sections, plan.full


def size_for(plan: DecodePlan, passes: int, payload_bytes: int) -> int:
    """Bytes of memory that a session takes."""
    return _aligned(plan.rest_at + payload_bytes) + passes * _aligned(plan.tiles * ctypes.sizeof(TilePass))


class Session:
    """See the module's text.

    Args:
        plan: of a batch of the session's shape; it is not decoded by being given here.
        passes: what `run` decodes, by number.
        target: the GPU.
        payload_bytes: how much a batch's payloads may take together; as much as those of `plan` when None.
        memory: uint8 on the device, aligned to 16 bytes, of at least `size_for` this batch; allocated when None.
    """

    def __init__(
        self,
        plan: DecodePlan,
        passes: Sequence[SessionPass],
        target: Target,
        *,
        payload_bytes: int | None = None,
        memory: Tensor | None = None,
    ) -> None:
        self.shape, self._target = shape_of(plan), target
        self._passes = _with_symbols(passes)
        self._layout = plan  # its offsets are those of every batch of this shape
        self._descriptors = [_describe(item, plan.tiles) for item in self._passes]
        payload_bytes = plan.size - plan.rest_at if payload_bytes is None else payload_bytes
        self._plan_bytes = _aligned(plan.rest_at + payload_bytes)
        self.size = size_for(plan, len(self._passes), payload_bytes)
        self.memory = torch.empty(self.size, dtype=torch.uint8, device=target.device) if memory is None else memory

    def fits(self, plan: DecodePlan) -> bool:
        """Whether a batch can be decoded here."""
        return shape_of(plan) == self.shape and plan.size <= self._plan_bytes

    def write(self, plan: DecodePlan, address: int) -> None:
        """Writes what `memory` must hold before the first pass, to an address on the host."""
        if not self.fits(plan):
            raise ValueError("the batch is not of this session's shape, or too large for it")
        plan.write(address)
        streams = np.array([plan.shape(tile)[1] for tile in range(plan.tiles)], dtype=np.uint32)
        at = address + self._plan_bytes
        for part in self._descriptors:
            records = np.frombuffer(memoryview(part), dtype=np.uint8).reshape(plan.tiles, -1)
            offset = TilePass.streams.offset
            records[:, offset : offset + 4] = streams.view(np.uint8).reshape(-1, 4)
            ctypes.memmove(at, part, ctypes.sizeof(part))
            at += _aligned(ctypes.sizeof(part))

    def run(self, number: int) -> None:
        """Enqueues a pass."""
        item, base = self._passes[number], self.memory.data_ptr()
        at = base + self._plan_bytes + sum(_aligned(ctypes.sizeof(part)) for part in self._descriptors[:number])
        with self._target.use():
            elements = 0 if item.means is None else max(item.positions, default=0) * item.indexes.shape[1]
            self._layout.decode(self._target, base, at, item.tables, reconstruct=elements)

    def finish(self) -> None:
        """Enqueues the check that every stream ended where it must; `DecodePlan.check` reads the outcome."""
        with self._target.use():
            self._layout.finish(self._target, self.memory.data_ptr())


def _with_symbols(passes: Sequence[SessionPass]) -> list[SessionPass]:
    """The passes, with room for symbols where nobody asks for them: one piece for all, as they run one by one."""
    unasked = [item.indexes for item in passes if item.symbols is None]
    if not unasked:
        return list(passes)
    room = torch.empty(max(map(torch.numel, unasked)), dtype=torch.int16, device=unasked[0].device)
    return [
        item
        if item.symbols is not None
        else replace(item, symbols=room[: item.indexes.numel()].view(item.indexes.shape))
        for item in passes
    ]


def _aligned(size: int) -> int:
    return -(-size // _ALIGNMENT) * _ALIGNMENT


def _describe(item: SessionPass, tiles: int) -> ctypes.Array[TilePass]:
    """The descriptors of a pass, but for the numbers of streams."""
    records = (TilePass * tiles)()
    if len(item.positions) != tiles or sum(item.positions) != item.indexes.shape[0]:
        raise ValueError(f"{list(item.positions)} positions are not those of {tiles} tiles in {item.indexes.shape}")
    for tensor, dtype in (
        (item.indexes, torch.uint8),
        (item.symbols, torch.int16),
        (item.means, torch.int16),
        (item.values, torch.int32),
    ):
        if tensor is None:
            continue
        lies_well = tensor.stride(1) == 1 if tensor is item.values else tensor.is_contiguous()
        if tensor.dtype != dtype or tensor.shape != item.indexes.shape or not lies_well:
            raise ValueError(f"a pass's tensor must be contiguous, {dtype}, and of the indexes' shape")
    tiles_of = {
        name: tensor.split(list(item.positions))
        for name in ("symbols", "indexes", "means", "values")
        if (tensor := getattr(item, name)) is not None
    }
    for t, record in enumerate(records):
        tensors = PassTensors(mean_bits=item.mean_bits, **{name: parts[t] for name, parts in tiles_of.items()})
        if item.latents and item.gain is not None:
            tensors = tensors._replace(latents=item.latents[t], gain=item.gain[t], anchors=item.anchors)
        describe_pass(record, tensors)
    complete_passes(records)
    return records
