"""How a batch of tiles lies in memory on a GPU: flat, tile after tile, with a table of where each begins.

Tiles of a batch may differ in size; one launch serves them all. A tile of h x w latents has ceil(h * w / 2) anchors,
floor(h * w / 2) non-anchors and ceil(h / 4) x ceil(w / 4) hyper latents. In flat tensors [positions, channels]:

    hyper latents   row-major within a tile, tiles one after the other
    psi             a tile's anchors, then its non-anchors, then the next tile's
    anchors         all tiles' anchors (means, indexes, symbols, values of the first pass)
    non-anchors     all tiles' non-anchors (the second pass)

which is the order in which the coder reads and writes its passes. Anchors and non-anchors are in row-major order of
their tile. If w is odd, the p-th anchor is at flat position f = row * w + column = 2p of the tile. If w is even, it is
in row p // (w/2), column 2 (p mod w/2) + (row odd), and the p-th non-anchor in the other column of the pair. Either way
flat position f is number f // 2 of its kind.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

# Columns of the table, int32 [tiles, COLUMNS]. Offsets count positions (rows of the flat tensors).
HEIGHT, WIDTH, QUALITY, HYPER, PSI, ANCHORS, NON_ANCHORS = range(7)
COLUMNS = 8


@dataclass(frozen=True)
class TileTable:
    """The table on a device, int32 [tiles, COLUMNS], and the positions of its largest tile, which launches cover."""

    rows: Tensor
    longest: int


@dataclass(frozen=True)
class Layout:
    """The table's numbers for tiles of (height, width) latents, and the sizes of the flat tensors."""

    shapes: tuple[tuple[int, int], ...]

    @property
    def hyper_shapes(self) -> list[tuple[int, int]]:
        return [(-(-height // 4), -(-width // 4)) for height, width in self.shapes]

    @property
    def hyper_positions(self) -> list[int]:
        return [height * width for height, width in self.hyper_shapes]

    @property
    def positions(self) -> list[int]:
        return [height * width for height, width in self.shapes]

    @property
    def anchors(self) -> list[int]:
        return [(height * width + 1) // 2 for height, width in self.shapes]

    @property
    def non_anchors(self) -> list[int]:
        return [height * width // 2 for height, width in self.shapes]

    @property
    def longest(self) -> int:
        """Positions of the largest tile: what a launch's grid must cover."""
        return max(self.positions, default=0)

    def rows(self, qualities: Sequence[int]) -> np.ndarray:
        """The table, int32 [tiles, COLUMNS]. qualities: for each tile the row of the first layer's bias, from 0."""
        table = np.zeros((len(self.shapes), COLUMNS), dtype=np.int32)
        table[:, [HEIGHT, WIDTH]] = np.reshape(self.shapes, (-1, 2))
        table[:, QUALITY] = qualities
        counts = (self.hyper_positions, self.positions, self.anchors, self.non_anchors)
        for column, count in zip((HYPER, PSI, ANCHORS, NON_ANCHORS), counts, strict=True):
            table[1:, column] = np.cumsum(count)[:-1]
        return table

    def table(self, qualities: Sequence[int]) -> Tensor:
        """`rows` as a tensor on the CPU."""
        return torch.from_numpy(self.rows(qualities))
