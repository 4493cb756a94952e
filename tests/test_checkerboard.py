"""The checkerboard: its halves, its taps, and the gather against a dense masked convolution."""

import pytest
import torch
import torch.nn.functional as F

from fastcodec.kernels import checkerboard

SHAPES = [(1, 1), (1, 2), (1, 9), (7, 1), (2, 2), (3, 4), (5, 5), (16, 17), (64, 79)]


@pytest.mark.parametrize("height, width", SHAPES)
def test_anchors_are_the_positions_of_even_row_plus_column(height, width):
    even = [r * width + c for r in range(height) for c in range(width) if (r + c) % 2 == 0]
    odd = [r * width + c for r in range(height) for c in range(width) if (r + c) % 2 == 1]
    assert checkerboard.anchor_positions(height, width).tolist() == even
    assert checkerboard.non_anchor_positions(height, width).tolist() == odd
    assert len(even) == -(-height * width // 2)


def test_a_5x5_kernel_has_12_live_taps_in_row_major_order():
    taps = checkerboard.LIVE_TAPS
    assert len(taps) == 12
    assert list(taps) == sorted(taps)
    assert set(taps) == {(y, x) for y in range(-2, 3) for x in range(-2, 3) if (y + x) % 2}


@pytest.mark.parametrize("height, width", SHAPES)
@pytest.mark.parametrize("dtype", [torch.int16, torch.int32, torch.float32])
def test_split_and_merge_are_inverse(height, width, dtype):
    grid = torch.arange(2 * height * width * 3).view(2, height, width, 3).to(dtype)
    anchors, non_anchors = checkerboard.split(grid)
    assert anchors.shape == (2, -(-height * width // 2), 3)
    assert non_anchors.shape == (2, height * width // 2, 3)
    assert (anchors[:, 0] == grid[:, 0, 0]).all()
    merged = checkerboard.merge(anchors, non_anchors, height, width)
    assert merged.dtype == dtype
    assert torch.equal(merged, grid)


@pytest.mark.parametrize("height, width", SHAPES)
def test_the_gather_equals_a_dense_masked_convolution(height, width):
    generator = torch.Generator().manual_seed(height * 100 + width)
    batch, channels, outputs = 2, 3, 4
    anchors = torch.randint(-127, 128, (batch, -(-height * width // 2), channels), generator=generator)
    weight = torch.randint(-127, 128, (outputs, len(checkerboard.LIVE_TAPS), channels), generator=generator)

    rows = checkerboard.gather_context(anchors, height, width)
    ours = rows @ weight.flatten(1).T

    # The paper's form: the whole grid with zeros for what is not decoded yet, and a 5x5 kernel with 13 taps masked out.
    grid = checkerboard.merge(anchors, anchors.new_zeros(batch, height * width // 2, channels), height, width)
    kernel = torch.zeros(outputs, channels, 5, 5, dtype=torch.float64)
    for i, (dy, dx) in enumerate(checkerboard.LIVE_TAPS):
        kernel[:, :, 2 + dy, 2 + dx] = weight[:, i].double()
    dense = F.conv2d(grid.permute(0, 3, 1, 2).double(), kernel, padding=2).permute(0, 2, 3, 1)
    assert torch.equal(ours.double(), checkerboard.split(dense.contiguous())[1])


def test_the_masked_taps_could_not_matter():
    """From a non-anchor the other 13 taps meet non-anchors only: with a full kernel nothing changes."""
    grid = torch.randn(1, 1, 9, 8, dtype=torch.float64)
    rows, columns = torch.arange(9)[:, None], torch.arange(8)[None, :]
    grid = grid * ((rows + columns) % 2 == 0)
    full = torch.randn(1, 1, 5, 5, dtype=torch.float64)
    masked = torch.zeros_like(full)
    for dy, dx in checkerboard.LIVE_TAPS:
        masked[..., 2 + dy, 2 + dx] = full[..., 2 + dy, 2 + dx]
    at = (rows + columns) % 2 == 1
    assert torch.allclose(F.conv2d(grid, full, padding=2)[0, 0][at], F.conv2d(grid, masked, padding=2)[0, 0][at])


def test_positions_made_while_decoding_serve_training_too():
    """The cached positions outlive the mode in which they were first asked for."""
    checkerboard.anchor_positions.cache_clear()
    checkerboard.non_anchor_positions.cache_clear()
    checkerboard.context_rows.cache_clear()
    with torch.inference_mode():
        checkerboard.gather_context(torch.zeros(1, 18, 2), 6, 6)
    leaf = torch.randn(1, 6, 6, 2, requires_grad=True)
    anchors, non_anchors = checkerboard.split(leaf)
    (checkerboard.gather_context(anchors, 6, 6).sum() + non_anchors.square().sum()).backward()
    assert leaf.grad is not None
