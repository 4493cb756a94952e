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


@lru_cache(maxsize=64)
def anchor_positions(height: int, width: int) -> Tensor:
    """Row-major flat positions of the anchors of a height x width grid: int64 [ceil(height * width / 2)]."""
    return _parity_positions(height, width, 0)


@lru_cache(maxsize=64)
def non_anchor_positions(height: int, width: int) -> Tensor:
    """Row-major flat positions of the non-anchors: int64 [floor(height * width / 2)]."""
    return _parity_positions(height, width, 1)


@torch.inference_mode(False)  # cached: made during a decode, they must serve training too
def _parity_positions(height: int, width: int, parity: int) -> Tensor:
    rows = torch.arange(height)[:, None]
    columns = torch.arange(width)[None, :]
    return ((rows + columns) % 2 == parity).flatten().nonzero().flatten()


@lru_cache(maxsize=64)
@torch.inference_mode(False)
def context_rows(height: int, width: int) -> Tensor:
    """For each non-anchor, the 12 flat positions that its context reads, in a grid padded by 2 on every side.

    Returns int64 [non-anchors, 12] into the (height + 4) * (width + 4) padded grid, taps in the order of `LIVE_TAPS`.
    """
    positions = non_anchor_positions(height, width)
    padded_width = width + 2 * _RADIUS
    centre = (positions // width + _RADIUS) * padded_width + positions % width + _RADIUS
    offsets = torch.tensor([dy * padded_width + dx for dy, dx in LIVE_TAPS])
    return centre[:, None] + offsets[None, :]


def gather_context(anchors: Tensor, height: int, width: int) -> Tensor:
    """Collect every non-anchor's 12 neighbouring anchors, zero outside the grid.

    anchors: [B, anchors, M] of any dtype, in the order of `anchor_positions`; returns [B, non-anchors, 12 * M].
    """
    batch, _, channels = anchors.shape
    padded = anchors.new_zeros(batch, height + 2 * _RADIUS, width + 2 * _RADIUS, channels)
    positions = anchor_positions(height, width)
    padded[:, positions // width + _RADIUS, positions % width + _RADIUS] = anchors
    rows = context_rows(height, width)
    return padded.flatten(1, 2)[:, rows.flatten()].view(batch, rows.shape[0], len(LIVE_TAPS) * channels)


def merge(anchors: Tensor, non_anchors: Tensor, height: int, width: int) -> Tensor:
    """Put both halves back on the grid: two [B, positions, M] tensors to one [B, height, width, M]."""
    batch, _, channels = anchors.shape
    grid = anchors.new_empty(batch, height * width, channels)
    grid[:, anchor_positions(height, width)] = anchors
    grid[:, non_anchor_positions(height, width)] = non_anchors
    return grid.view(batch, height, width, channels)


def split(grid: Tensor) -> tuple[Tensor, Tensor]:
    """The inverse of `merge`: [B, height, width, M] to (anchors, non-anchors), each [B, positions, M]."""
    height, width = grid.shape[1:3]
    flat = grid.flatten(1, 2)
    return flat[:, anchor_positions(height, width)], flat[:, non_anchor_positions(height, width)]
