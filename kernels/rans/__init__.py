"""The entropy coder: interleaved rANS with one distribution per symbol, for tensors of integers.

The rule, the format of a payload and the bounds stand in rans.h. A tile is coded in passes, each a matrix of symbols
with the index of a table for every element. `encode` takes all passes at once; a `Decoder` gives them back one by one,
so that the indexes of a pass may depend on the symbols of those before it.
"""

from collections.abc import Sequence
from typing import NamedTuple

from torch import Tensor, device, int16, int32, uint8

from . import _cpu
from .tables import TableSet

__all__ = ["Decoder", "Pass", "TableSet", "available_isas", "cost_bits", "encode"]


class Pass(NamedTuple):
    """What is coded together: positions row-major, channels fastest, both tensors contiguous and on one device."""

    symbols: Tensor  # int16 or int32 [P, C]; values must fit int16, and be 0 where nothing is coded
    indexes: Tensor  # uint8 [P, C]; the table of each symbol, below tables.count
    tables: TableSet


def _backend(where: device):
    if where.type == "cpu":
        return _cpu
    raise NotImplementedError(f"the coder does not run on {where.type!r} tensors yet: move them to the CPU")


def _check_indexes(indexes: Tensor, what: str) -> None:
    if indexes.dtype != uint8 or indexes.dim() != 2 or not indexes.is_contiguous():
        raise ValueError(
            f"{what}: indexes must be a contiguous uint8 matrix [positions, channels], not {indexes.dtype} "
            f"{list(indexes.shape)}{'' if indexes.is_contiguous() else ', not contiguous'}"
        )


def _check_pass(item: Pass, what: str) -> tuple[Tensor, Tensor, object]:
    symbols, indexes, tables = item
    _check_indexes(indexes, what)
    if symbols.dtype not in (int16, int32) or symbols.shape != indexes.shape or not symbols.is_contiguous():
        raise ValueError(
            f"{what}: symbols must be contiguous, int16 or int32, and of the indexes' shape {list(indexes.shape)}, not "
            f"{symbols.dtype} {list(symbols.shape)}{'' if symbols.is_contiguous() else ', not contiguous'}"
        )
    if symbols.device != indexes.device:
        raise ValueError(f"{what}: symbols are on {symbols.device}, indexes on {indexes.device}")
    return symbols, indexes, tables._cpu_handle.handle


def cost_bits(p: Pass) -> float:
    """The cost of one pass in bits, escapes included: the estimate, in 1/256 bit, by which `encode` chooses N and S.

    Raises:
        ValueError, SymbolRangeError: as `encode`.
    """
    return _backend(p.indexes.device).cost(*_check_pass(p, "pass")) / 256


def encode(
    tiles: Sequence[Sequence[Pass]],
    *,
    preset: str = "size",
    lanes: int | None = None,
    streams: int | None = None,
    threads: int | None = None,
    isa: str | None = None,
) -> list[bytes]:
    """Encodes tiles, each a sequence of passes, to one payload each.

    Equal tiles give equal bytes on every machine, for every number of threads and instruction set.

    Args:
        tiles: the passes of each tile, in the order in which they will be decoded.
        preset: "size" keeps the lanes' cost to about 0.25 % of the payload, "latency" spends up to about 3 % on more of
            them, so that more symbols are decoded at once.
        lanes: N, a power of two from 1 to 32, instead of the preset's choice.
        streams: S, from 1 to 65535, likewise.
        threads: how many threads may run; PyTorch's setting when None.
        isa: one of `available_isas()`; None takes $FASTCODEC_ISA, else the best.

    Raises:
        ValueError: a tensor's dtype, shape or layout, an index that names no table, or an option out of range.
        SymbolRangeError: a symbol outside int16, or not 0 where nothing is coded.
    """
    if preset not in _cpu.PRESETS:
        raise ValueError(f"preset must be one of {', '.join(_cpu.PRESETS)}, not {preset!r}")
    if lanes is not None and lanes not in (1, 2, 4, 8, 16, 32):
        raise ValueError(f"lanes must be a power of two from 1 to 32, not {lanes}")
    if streams is not None and not 1 <= streams <= 65535:
        raise ValueError(f"streams must be 1 to 65535, not {streams}")
    checked = [
        [_check_pass(item, f"tile {t}, pass {p}") for p, item in enumerate(tile)] for t, tile in enumerate(tiles)
    ]
    devices = {indexes.device for tile in checked for _, indexes, _ in tile}
    if len(devices) > 1:
        raise ValueError(f"the passes lie on several devices: {', '.join(map(str, devices))}")
    backend = _backend(devices.pop()) if devices else _cpu
    return backend.encode(checked, preset, lanes or 0, streams or 0, threads, isa)


class Decoder:
    """Decodes a batch of tiles pass by pass; coder states and cursors are kept between the passes.

    Args:
        payloads: one for each tile, as `encode` returned them. They are copied.
        threads: how many threads may run; PyTorch's setting when None.
        isa: one of `available_isas()`; None takes $FASTCODEC_ISA, else the best.

    Raises:
        CorruptStreamError: a payload that no encoder wrote; the message names the tile and the cause.
    """

    def __init__(
        self, payloads: Sequence[bytes | memoryview], *, threads: int | None = None, isa: str | None = None
    ) -> None:
        self._tiles = len(payloads)
        self._impl = _cpu.Decoder(payloads, threads, isa)

    def shape(self, tile: int) -> tuple[int, int]:
        """The lanes N and streams S of a tile."""
        if not 0 <= tile < self._tiles:
            raise IndexError(f"no tile {tile} among {self._tiles}")
        return self._impl.shape(tile)

    def decode(self, indexes: Sequence[Tensor], tables: TableSet) -> list[Tensor]:
        """The symbols of the next pass of every tile: int16, of the indexes' shapes.

        Args:
            indexes: one for each tile, uint8 [P, C], contiguous, below `tables.count`. Shapes may differ; P may be 0.
            tables: the pass's tables, one set for all tiles.

        Raises:
            CorruptStreamError: the bytes ended early; the message names the tile.
            ValueError: a tensor's dtype, shape or layout, or an index that names no table.
        """
        if len(indexes) != self._tiles:
            raise ValueError(f"one index tensor for each of the {self._tiles} tiles is needed, not {len(indexes)}")
        for t, index in enumerate(indexes):
            _check_indexes(index, f"tile {t}")
            _backend(index.device)
        return self._impl.decode(indexes, tables._cpu_handle.handle)

    def finish(self) -> None:
        """Checks that every tile ended exactly where it must; to be called after the last pass.

        Raises:
            CorruptStreamError: a state or a cursor is elsewhere: the bytes, the indexes or the tables are not those of
                the encoder.
        """
        self._impl.finish()


def available_isas() -> tuple[str, ...]:
    """The instruction sets that the coder can use on this machine, slowest first: of "scalar", "avx2", "avx512"."""
    return _cpu.available_isas()
