"""The entropy coder: interleaved rANS with one distribution per symbol, for tensors of integers.

The rule, the format of a payload and the bounds stand in rans.h. A tile is coded in passes, each a matrix of symbols
with the index of a table for every element (`Pass`), or with the parameters of a Gaussian mixture (`MixturePass`; its
rule stands in mixture.h). `encode` takes all passes at once; a `Decoder` gives them back one by one, so that the
indexes or parameters of a pass may depend on the symbols of those before it.

Tensors say where the work is done: on the CPU, or on the GPU that they lie on. Both write the same bytes.
"""

import itertools
from collections.abc import Sequence
from typing import NoReturn

import torch
from torch import Tensor

from .. import device as gpu
from ..errors import UnavailableError
from . import _cpu, _cuda, _operators
from ._cpu_abi import PRESETS, available_isas, thread_count
from ._cuda_abi import LATENT_TYPES
from .mixture import quantise_mixtures
from .passes import (
    AnyPass,
    EncodeOptions,
    Latents,
    Mixture,
    MixturePass,
    Pass,
    Reconstruction,
    check_indexes,
    check_mixtures,
    check_pass,
)
from .tables import TableSet

__all__ = [
    "Decoder",
    "Latents",
    "Mixture",
    "MixturePass",
    "Pass",
    "TableSet",
    "available_isas",
    "cost_bits",
    "cuda_status",
    "encode",
    "quantise_mixtures",
]


def cost_bits(p: AnyPass) -> float:
    """The cost of one pass in bits, escapes included: the estimate, in 1/256 bit, by which `encode` chooses N and S.

    Raises:
        ValueError, SymbolRangeError: as `encode`.
    """
    check_pass(p, "pass")
    target = _cuda.coder_target(p.symbols.device)
    return (_cpu.cost(p) if target is None else _cuda.cost(p, target)) / 256


def encode(
    tiles: Sequence[Sequence[AnyPass]],
    *,
    preset: str = "size",
    lanes: int | None = None,
    streams: int | None = None,
    threads: int | None = None,
    isa: str | None = None,
) -> list[bytes]:
    """Encodes tiles, each a sequence of passes, to one payload each.

    Equal tiles give equal bytes on every machine: on a GPU or a CPU, for every number of threads and instruction set.

    Args:
        tiles: the passes of each tile, of both kinds, in the order in which they will be decoded; all tensors on one
            device.
        preset: "size" keeps the lanes' cost to about 0.25 % of the payload, "latency" spends up to about 3 % on more of
            them, so that more symbols are decoded at once.
        lanes: N, a power of two from 1 to 32, instead of the preset's choice.
        streams: S, from 1 to 65535, likewise.
        threads: how many threads of the CPU may run; PyTorch's setting when None.
        isa: one of `available_isas()`; None takes $FASTCODEC_ISA, else the best. Of no meaning on a GPU.

    Raises:
        ValueError: a tensor's dtype, shape, layout or device, an index that names no table, weights that do not sum to
            4096, or an option out of range. On a GPU also a pass of 2^32 elements or more, and payloads of 2^32 words
            or more together.
        SymbolRangeError: a symbol outside int16, or not 0 where nothing is coded.
        UnavailableError: tensors on a GPU that the coder has no kernels for.
        MemoryError: the coder got too little memory; on a GPU that is PyTorch's OutOfMemoryError.
    """
    if preset not in PRESETS:
        raise ValueError(f"preset must be one of {', '.join(PRESETS)}, not {preset!r}")
    if lanes is not None and lanes not in (1, 2, 4, 8, 16, 32):
        raise ValueError(f"lanes must be a power of two from 1 to 32, not {lanes}")
    if streams is not None and not 1 <= streams <= 65535:
        raise ValueError(f"streams must be 1 to 65535, not {streams}")
    for t, tile in enumerate(tiles):
        for p, item in enumerate(tile):
            check_pass(item, f"tile {t}, pass {p}")
    passes = [item for tile in tiles for item in tile]
    devices = {item.symbols.device for item in passes}
    if len(devices) > 1:
        raise ValueError(f"the passes lie on several devices: {', '.join(map(str, devices))}")
    target = _cuda.coder_target(devices.pop()) if devices else None
    options = EncodeOptions(preset, lanes or 0, streams or 0, thread_count(threads), isa or "")
    if target is None:
        # The operator would do just this. Its dispatch, and a tensor of the payloads, are a good part of a small call.
        return _cpu.encode(tiles, options)
    begins = [0, *itertools.accumulate(map(len, tiles))]
    payloads, bounds = _operators.encode(*_operators.encode_arguments(passes), begins, *options)
    data = payloads.cpu().numpy()
    return [data[begin:end].tobytes() for begin, end in bounds.tolist()]


class Decoder:
    """Decodes a batch of tiles pass by pass; coder states and cursors are kept between the passes.

    On a GPU nothing waits until `finish`: what went wrong before is told there, and until then the symbols of a damaged
    stream are 0 from the step that failed on.

    Args:
        payloads: one for each tile, as `encode` returned them. They are copied.
        device: where the indexes or parameters will be, and the symbols are put.
        threads: how many threads of the CPU may run; PyTorch's setting when None.
        isa: one of `available_isas()`; None takes $FASTCODEC_ISA, else the best. Of no meaning on a GPU.

    Raises:
        CorruptStreamError: a payload that no encoder wrote; the message names the tile and the cause.
        ValueError: `threads` below 1, an `isa` that this machine lacks, or payloads too large for a GPU.
        UnavailableError: a GPU that is not there, or that the coder has no kernels for.
        MemoryError: the coder got too little memory.
    """

    def __init__(
        self,
        payloads: Sequence[bytes | memoryview],
        *,
        device: torch.device | str = "cpu",
        threads: int | None = None,
        isa: str | None = None,
    ) -> None:
        self._tiles = len(payloads)
        self._device = torch.device(device)
        target = _cuda.coder_target(self._device)
        self._impl: _operators.AnyDecoder
        if target is None:
            self._impl = _cpu.CpuDecoder(payloads, threads, isa)
        else:
            self._impl = _cuda.CudaDecoder(payloads, target)
            self._device = target.device
        self._number = _operators.register(self._impl)

    def __reduce__(self) -> NoReturn:
        raise TypeError("a Decoder can be neither pickled nor copied: make another one of the payloads")

    def shape(self, tile: int) -> tuple[int, int]:
        """The lanes N and streams S of a tile.

        Raises:
            IndexError: there is no such tile; numbers are 0 and more.
        """
        if not 0 <= tile < self._tiles:
            raise IndexError(f"no tile {tile} among {self._tiles}")
        return self._impl.shape(tile)

    def _check(self, indexes: Sequence[Tensor]) -> None:
        if len(indexes) != self._tiles:
            raise ValueError(f"one index tensor for each of the {self._tiles} tiles is needed, not {len(indexes)}")
        for t, index in enumerate(indexes):
            check_indexes(index, f"tile {t}")
            if index.device != self._device:
                raise ValueError(f"tile {t}: indexes are on {index.device}, the decoder is on {self._device}")

    def _outputs(self, likes: Sequence[Tensor], out: Sequence[Tensor] | None, dtype: torch.dtype) -> list[Tensor]:
        """`out`, checked, or new tensors: of the shapes of `likes`."""
        if out is None:
            return [torch.empty(like.shape, dtype=dtype, device=like.device) for like in likes]
        if len(out) != self._tiles:
            raise ValueError(f"one output for each of the {self._tiles} tiles is needed, not {len(out)}")
        for t, (like, tensor) in enumerate(zip(likes, out, strict=True)):
            if tensor.dtype != dtype or tensor.shape != like.shape or not tensor.is_contiguous():
                raise ValueError(f"tile {t}: out must be contiguous, {dtype}, and of the shape {list(like.shape)}")
            if tensor.device != self._device:
                raise ValueError(f"tile {t}: out is on {tensor.device}, the decoder is on {self._device}")
        return list(out)

    def decode(
        self, indexes: Sequence[Tensor], tables: TableSet, *, out: Sequence[Tensor] | None = None
    ) -> list[Tensor]:
        """The symbols of the next pass of every tile: int16, of the indexes' shapes.

        Args:
            indexes: one for each tile, uint8 [P, C], contiguous, below `tables.count`. Shapes may differ; P may be 0.
            tables: the pass's tables, one set for all tiles.
            out: where to put the symbols, instead of into new tensors.

        Raises:
            CorruptStreamError: the bytes ended early; the message names the tile. On a GPU, `finish` raises it.
            ValueError: a tensor's dtype, shape, layout or device, or an index that names no table (on a GPU, `finish`
                raises that).
        """
        self._check(indexes)
        symbols = self._outputs(indexes, out, torch.int16)
        _operators.decode(self._impl.state, self._number, list(indexes), tables.identity, symbols)
        return symbols

    def decode_mixtures(
        self,
        mixtures: Sequence[Mixture | tuple[Tensor, Tensor, Tensor]],
        *,
        out: Sequence[Tensor] | None = None,
    ) -> list[Tensor]:
        """The symbols of the next pass of every tile, one of mixtures: int16 [P, C].

        Args:
            mixtures: one for each tile, as `quantise_mixtures` gives it, of tensors [K, P, C]. Shapes may differ, K
                too.
            out: where to put the symbols, instead of into new tensors.

        Raises:
            CorruptStreamError: the bytes ended early; the message names the tile. On a GPU, `finish` raises it.
            ValueError: a tensor's dtype, shape, layout or device, or weights that do not sum to 4096 (on a GPU,
                `finish` raises that). Nothing is decoded then.
        """
        if len(mixtures) != self._tiles:
            raise ValueError(f"one mixture for each of the {self._tiles} tiles is needed, not {len(mixtures)}")
        for t, mixture in enumerate(mixtures):
            if len(mixture) != 3:
                raise ValueError(f"tile {t}: a mixture is weights, means and scales, not {len(mixture)} things")
            check_mixtures(*mixture, f"tile {t}")
            if mixture[0].device != self._device:
                raise ValueError(f"tile {t}: the mixture is on {mixture[0].device}, the decoder is on {self._device}")
        weights, means, scales = ([mixture[part] for mixture in mixtures] for part in range(3))
        symbols = self._outputs([tensor[0] for tensor in scales], out, torch.int16)
        _operators.decode_mixtures(self._impl.state, self._number, weights, means, scales, symbols)
        return symbols

    def reconstruct(
        self,
        indexes: Sequence[Tensor],
        tables: TableSet,
        means: Sequence[Tensor],
        mean_bits: int,
        *,
        latents: Latents | None = None,
        out: Sequence[Tensor] | None = None,
    ) -> list[Tensor]:
        """The next pass as values, symbol + mean, in fixed point: int32, of the indexes' shapes.

        On a GPU this is fused into the decoding. With `latents`, each tile's values times the gain are written there
        too, at the half of the checkerboard that the pass's positions are: the synthesis reads them as they are.

        Args:
            indexes, tables: as `decode`.
            means: one for each tile, int16 [P, C], contiguous, with `mean_bits` fraction bits.
            mean_bits: 0 to 15; value = (symbol << mean_bits) + mean.
            latents: where to put latents, if they are wanted.
            out: where to put the values, instead of into new tensors.

        Raises:
            CorruptStreamError, ValueError: as `decode`; also `mean_bits`, means, latents or a gain that do not fit.
        """
        self._check(indexes)
        if not 0 <= mean_bits <= 15:
            raise ValueError(f"mean_bits must be 0 to 15, not {mean_bits}")
        tiles = [] if latents is None else list(latents.tiles)
        if len(means) != self._tiles or (tiles and len(tiles) != self._tiles):
            raise ValueError(f"means, and latents if any, are needed for each of the {self._tiles} tiles")
        for t, (index, mean) in enumerate(zip(indexes, means, strict=True)):
            if mean.dtype != torch.int16 or mean.shape != index.shape or not mean.is_contiguous():
                raise ValueError(f"tile {t}: means must be contiguous, int16, and of the indexes' shape")
            if mean.device != self._device:
                raise ValueError(f"tile {t}: means are on {mean.device}, the decoder is on {self._device}")
        if latents is not None:
            _check_latents(latents, indexes)
        gain, anchors = (None, True) if latents is None else latents[1:]
        wanted = Reconstruction(list(means), mean_bits, gain, self._outputs(indexes, out, torch.int32), tiles, anchors)
        _operators.reconstruct(self._impl.state, self._number, list(indexes), tables.identity, *wanted)
        return list(wanted.values)

    def finish(self) -> None:
        """Checks that every tile ended exactly where it must; to be called after the last pass.

        Raises:
            CorruptStreamError: a state or a cursor is elsewhere: the bytes, the indexes or the tables are not those of
                the encoder. On a GPU also what went wrong in the passes before.
            ValueError: on a GPU, an index of a pass before named no table, or weights did not sum to 4096.
        """
        self._impl.finish()


def _check_latents(latents: Latents, indexes: Sequence[Tensor]) -> None:
    gain = latents.gain
    for t, (tile, index) in enumerate(zip(latents.tiles, indexes, strict=True)):
        positions, channels = index.shape
        if tile.dtype not in LATENT_TYPES or tile.dim() != 3 or tile.shape[2] != channels:
            raise ValueError(f"tile {t}: latents must be float [rows, columns, {channels}], not {list(tile.shape)}")
        rows, columns, _ = tile.shape
        row, column, channel = tile.stride()
        if channel != 1 or column < channels or row < columns * column or row >= 2**32:
            raise ValueError(f"tile {t}: latents must lie channels fastest, then columns, then rows")
        half = (rows * columns + (1 if latents.anchors else 0)) // 2
        if half != positions:
            raise ValueError(f"tile {t}: that half of {rows} x {columns} latents are {half}, not {positions} positions")
        if gain.dtype != torch.float32 or gain.shape != (channels,) or not gain.is_contiguous():
            raise ValueError(f"latents need a gain for each channel: float32 [{channels}], contiguous")
        if {tile.device, gain.device} != {index.device}:
            raise ValueError(f"tile {t}: latents and gain must be on {index.device}")


def cuda_status(device: torch.device | str = "cuda") -> str:
    """The empty string where the coder runs on a GPU, else what is missing for it.

    The first call on a machine without a compiled image compiles the kernels, which takes some seconds.
    """
    try:
        _cuda.load_kernels(gpu.cuda_target(torch.device(device)))
    except UnavailableError as error:
        return str(error)
    return ""
