"""Checkerboard geometry: which positions are anchors, and which anchors a non-anchor's context reads.

Anchors are the positions with (row + column) even (He et al. 2021, figure 1d; the convention of CompressAI's
checkerboard). A 5x5 kernel centred on a non-anchor meets an anchor wherever (dy + dx) is odd: 12 live taps of 25, so
the context convolution is a gather of 12 rows and one matrix product on non-anchor positions only.
"""

from functools import lru_cache

import torch
from torch import Tensor

CONTEXT_KERNEL = 5
_RADIUS = CONTEXT_KERNEL // 2

#: (dy, dx) of the live taps, row-major: the order of the context weights' input blocks.
LIVE_TAPS: tuple[tuple[int, int], ...] = tuple(
    (dy, dx) for dy in range(-_RADIUS, _RADIUS + 1) for dx in range(-_RADIUS, _RADIUS + 1) if (dy + dx) % 2
)


_HOST = torch.device("cpu")


@lru_cache(maxsize=256)
def anchor_positions(height: int, width: int, device: torch.device = _HOST) -> Tensor:
    """Row-major flat positions of the anchors of a height x width grid: int64 [ceil(height * width / 2)]."""
    return _parity_positions(height, width, 0, device)


@lru_cache(maxsize=256)
def non_anchor_positions(height: int, width: int, device: torch.device = _HOST) -> Tensor:
    """Row-major flat positions of the non-anchors: int64 [floor(height * width / 2)]."""
    return _parity_positions(height, width, 1, device)


@torch.inference_mode(False)  # cached: made during a decode, they must serve training too
def _parity_positions(height: int, width: int, parity: int, device: torch.device) -> Tensor:
    number = torch.arange((height * width + 1 - parity) // 2, dtype=torch.int64, device=device)
    if width % 2:  # then a position's parity is that of its number on the grid
        return 2 * number + parity
    return 2 * number + (number // (width // 2) + parity) % 2


@lru_cache(maxsize=256)
@torch.inference_mode(False)
def context_rows(height: int, width: int, device: torch.device = _HOST) -> Tensor:
    """For each non-anchor, the 12 flat positions that its context reads, in a grid padded by 2 on every side.

    Returns int64 [non-anchors, 12] into the (height + 4) * (width + 4) padded grid, taps in the order of `LIVE_TAPS`.
    """
    positions = non_anchor_positions(height, width, device)
    padded_width = width + 2 * _RADIUS
    centre = (positions // width + _RADIUS) * padded_width + positions % width + _RADIUS
    # Every other one of the kernel, row-major.
    taps = torch.arange(CONTEXT_KERNEL**2 // 2, dtype=torch.int64, device=device) * 2 + 1
    offsets = (taps // CONTEXT_KERNEL - _RADIUS) * padded_width + taps % CONTEXT_KERNEL - _RADIUS
    return centre[:, None] + offsets[None, :]


@lru_cache(maxsize=256)
@torch.inference_mode(False)
def _merged_rows(height: int, width: int, device: torch.device) -> Tensor:
    """For each position of the grid, its row in anchors followed by non-anchors: int64 [height * width]."""
    positions = torch.cat([anchor_positions(height, width, device), non_anchor_positions(height, width, device)])
    return positions.argsort()


@lru_cache(maxsize=256)
@torch.inference_mode(False)
def _context_anchors(height: int, width: int, device: torch.device) -> Tensor:
    """`context_rows` as rows of the anchors themselves, flat: int64 [12 * non-anchors]; one past the last, outside."""
    anchors = anchor_positions(height, width, device)
    padded = height + 2 * _RADIUS, width + 2 * _RADIUS
    grid = torch.full(padded, len(anchors), dtype=torch.int64, device=device)
    grid[anchors // width + _RADIUS, anchors % width + _RADIUS] = torch.arange(
        len(anchors), dtype=torch.int64, device=device
    )
    return grid.flatten()[context_rows(height, width, device).flatten()]


def gather_context(anchors: Tensor, height: int, width: int) -> Tensor:
    """Collect every non-anchor's 12 neighbouring anchors, zero outside the grid.

    anchors: [B, anchors, M] of any dtype, in the order of `anchor_positions`; returns [B, non-anchors, 12 * M].
    """
    batch, _, channels = anchors.shape
    outside = anchors.new_zeros(batch, 1, channels)
    rows = _context_anchors(height, width, anchors.device)
    taken = torch.cat([anchors, outside], 1).index_select(1, rows)
    return taken.view(batch, -1, len(LIVE_TAPS) * channels)


def merge(anchors: Tensor, non_anchors: Tensor, height: int, width: int) -> Tensor:
    """Put both halves back on the grid: two [B, positions, M] tensors to one [B, height, width, M]."""
    rows = _merged_rows(height, width, anchors.device)
    return torch.cat([anchors, non_anchors], 1).index_select(1, rows).unflatten(1, (height, width))


def split(grid: Tensor) -> tuple[Tensor, Tensor]:
    """The inverse of `merge`: [B, height, width, M] to (anchors, non-anchors), each [B, positions, M]."""
    height, width = grid.shape[1:3]
    flat = grid.flatten(1, 2)
    halves = anchor_positions(height, width, grid.device), non_anchor_positions(height, width, grid.device)
    return flat.index_select(1, halves[0]), flat.index_select(1, halves[1])
