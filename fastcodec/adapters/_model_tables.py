"""Tables of CompressAI's entropy models for fastcodec's two coders."""

from __future__ import annotations

import functools
from bisect import bisect_left, bisect_right
from typing import Any

import torch
from torch import Tensor

from .. import rans
from ..kernels import rans64
from ..kernels.rans.tables import MAX_TABLES

# For each image and set of tables, where in [C, others] the set's elements are: a slice of channels, or a mask.
Where = list[list[Any]]


class ModelTables:
    """The quantised CDFs of one entropy model as both coders want them."""

    def __init__(self, buffers: tuple[Tensor, Tensor, Tensor]) -> None:
        self._copies = tuple(buffer.clone() for buffer in buffers)
        self.compatible = rans64.CdfTables.from_matrix(*self._on_cpu())

    def _on_cpu(self) -> tuple[Tensor, ...]:
        return tuple(buffer.to("cpu", torch.int32) for buffer in self._copies)

    def match(self, buffers: tuple[Tensor, Tensor, Tensor]) -> bool:
        """Whether the buffers hold what the tables were made of."""
        if any(mine.shape != buffer.shape for mine, buffer in zip(self._copies, buffers, strict=True)):
            return False
        if all(b.is_contiguous() and b.device.type == "cpu" and b.dtype == torch.int32 for b in buffers):
            return self.compatible.are_of_matrix(*buffers)  # a hundred times as fast as torch.equal
        return all(
            mine.device == buffer.device and torch.equal(mine, buffer)
            for mine, buffer in zip(self._copies, buffers, strict=True)
        )

    @functools.cached_property
    def native(self) -> list[rans.TableSet]:
        """fastcodec's tables, as many to a set as it takes."""
        from ..models.zoo.cdf import CDF_BITS, table_sets

        cdf, lengths, offsets = self._on_cpu()
        ends = cdf.gather(1, (lengths.long() - 1)[:, None])
        return list(table_sets(cdf * ((1 << CDF_BITS) // ends), lengths, offsets))

    def encode(self, symbols: Tensor, narrow: Tensor, where: Where) -> list[bytes]:
        """Native streams, one for each of the symbols, int16 or int32 [B, C, ...]. narrow: the indexes mod 256."""
        symbols, narrow = as_rows(symbols), as_rows(narrow)
        tiles = []
        for image, parts in enumerate(where):
            pairs = zip(parts, self.native, strict=True)
            tiles.append([rans.Pass(_column(symbols[image, w]), _column(narrow[image, w]), set_) for w, set_ in pairs])
        return rans.encode(tiles)

    def decode(self, strings: list[bytes], narrow: Tensor, where: Where) -> Tensor:
        """The inverse of `encode`: int16 [B, C, others], on the device of `narrow`."""
        narrow = as_rows(narrow)
        out = torch.empty(narrow.shape, dtype=torch.int16, device=narrow.device)
        if not strings:
            return out
        decoder = rans.Decoder(strings, device=narrow.device)
        for number, tables in enumerate(self.native):
            parts = [(image, sets[number]) for image, sets in enumerate(where)]
            picked = [narrow[part] for part in parts]
            indexes = [_column(part) for part in picked]
            if all(isinstance(w, slice) for _, w in parts):
                decoder.decode(indexes, tables, out=[out[part].view(-1, 1) for part in parts])
            else:
                for part, index, symbols in zip(parts, picked, decoder.decode(indexes, tables), strict=True):
                    out[part] = symbols.view(index.shape)
        decoder.finish()
        return out

    def where_channels(self, images: int) -> Where:
        """As `where`, of indexes that are the channels' numbers."""
        return [[slice(n * MAX_TABLES, (n + 1) * MAX_TABLES) for n in range(len(self.native))]] * images

    def where(self, indexes: Tensor) -> Where:
        """For each image and set of tables, where in [C, others] the set's elements are. indexes: [B, C, ...]."""
        indexes = as_rows(indexes)
        if len(self.native) == 1 or not indexes.numel():
            return [[slice(None)] * len(self.native)] * len(indexes)
        least, greatest = (bound // MAX_TABLES for bound in indexes.aminmax(dim=2))
        if not torch.equal(least, greatest):
            sets = indexes // MAX_TABLES
        elif (least.diff() >= 0).all():  # a factorised prior, whose channels have a table each: nothing is copied
            return [
                [slice(bisect_left(image, n), bisect_right(image, n)) for n in range(len(self.native))]
                for image in least.tolist()
            ]
        else:
            sets = least
        return [[image == n for n in range(len(self.native))] for image in sets]


def narrowed(indexes: Tensor, tables: int) -> Tensor:
    """Indexes mod 256, uint8. ValueError if one names no table."""
    if indexes.numel():
        least, greatest = (int(bound) for bound in indexes.aminmax())
        if least < 0 or greatest >= tables:
            raise ValueError(f"indexes {least} to {greatest}: there are {tables} tables")
    return indexes.to(torch.uint8)


def as_rows(tensor: Tensor) -> Tensor:
    """[B, C, ...] as [B, C, others]."""
    return tensor.flatten(2) if tensor.dim() > 2 else tensor[:, :, None]


def _column(tensor: Tensor) -> Tensor:
    return tensor.reshape(-1, 1).contiguous()
