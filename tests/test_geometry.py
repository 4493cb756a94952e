"""Sizes: tiles cover every latent once, no tile is a sliver, and windows cut any rectangle without gap or overlap."""

import tracemalloc

import numpy as np
import pytest

from fastcodec.constants import LATENT_STRIDE, MIN_TILE_LATENTS, TILE_LATENTS
from fastcodec.geometry import Grid, Rect, hyper_size, tile_edges, windows


def covered(rectangles, height: int, width: int) -> np.ndarray:
    """How often each position of a height x width grid is covered."""
    count = np.zeros((height, width), int)
    for r in rectangles:
        assert 0 <= r.top < r.bottom <= height
        assert 0 <= r.left < r.right <= width
        count[r.slices] += 1
    return count


def test_edges_cover_an_axis_and_a_small_remainder_joins_its_neighbour():
    for length in range(1, 1000):
        edges = tile_edges(length)
        sides = np.diff(edges)
        assert (edges[0], edges[-1]) == (0, length)
        assert (sides[:-1] == TILE_LATENTS).all()
        if len(sides) == 1:
            assert length < TILE_LATENTS + MIN_TILE_LATENTS
        else:
            assert MIN_TILE_LATENTS <= sides[-1] < TILE_LATENTS + MIN_TILE_LATENTS


@pytest.mark.parametrize(
    "pixels, sides",
    [
        (1, [1]),
        (1024, [64]),
        (1025, [65]),  # one latent over: no sliver
        (1024 + 15 * 16, [79]),
        (1024 + 15 * 16 + 1, [64, 16]),
        (2048, [64, 64]),
        (2049, [64, 65]),
        (3000, [64, 64, 60]),
    ],
)
def test_tiles_of_known_sizes(pixels, sides):
    grid = Grid(pixels, 16)
    assert list(np.diff(grid.rows)) == sides
    assert grid.tile_count == len(sides)
    assert [tile.height for tile in grid.tiles()] == sides
    grid = Grid(16, pixels)
    assert [tile.width for tile in grid.tiles()] == sides


def test_tiles_cover_every_latent_once_row_by_row():
    random = np.random.default_rng(1)
    for height, width in random.integers(1, 5000, (60, 2)):
        grid = Grid(int(height), int(width))
        tiles = list(grid.tiles())
        assert (covered(tiles, grid.latent_height, grid.latent_width) == 1).all()
        assert len(tiles) == grid.tile_count
        assert tiles == sorted(tiles, key=lambda t: (t.top, t.left))
        assert grid.latent_height * LATENT_STRIDE - grid.height in range(LATENT_STRIDE)
        assert grid.latent_width * LATENT_STRIDE - grid.width in range(LATENT_STRIDE)


def test_counting_the_tiles_of_a_forged_size_takes_no_memory():
    tracemalloc.start()
    try:
        count = Grid(1, 1 << 40).tile_count
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert count == 1 << 30
    assert peak < 1 << 20


def test_hyper_latents_round_up():
    assert [hyper_size(n) for n in (1, 3, 4, 5, 64, 79)] == [1, 1, 1, 2, 16, 20]


@pytest.mark.parametrize("most", [1, 64, 500, 8192])
def test_windows_cover_their_area_exactly(most):
    random = np.random.default_rng(most)
    for top, left, height, width in random.integers(1, 200, (40, 4)):
        area = Rect(int(top), int(left), int(top + height), int(left + width))
        parts = [w.within(area) for w in windows(area, most)]
        assert (covered(parts, area.height, area.width) == 1).all()
        # Never far above what was asked for, whatever the shape: memory follows it.
        assert max(w.height * w.width for w in parts) <= max(2 * most, 64)


def test_a_wide_band_is_cut_into_windows_near_square():
    parts = list(windows(Rect(0, 0, 64, 6250), 8192))
    assert max(w.width / w.height for w in parts) < 2.1
    assert max(w.height * w.width for w in parts) <= 8192


def test_rectangles():
    r = Rect(3, 5, 10, 20)
    assert (r.height, r.width) == (7, 15)
    assert r.grown(4, 12, 22) == Rect(0, 1, 12, 22)
    assert r.scaled(16) == Rect(48, 80, 160, 320)
    assert r.within(Rect(2, 5, 99, 99)) == Rect(1, 0, 8, 15)
    assert r.clipped(8, 99) == Rect(3, 5, 8, 20)
    assert r.meets(Rect(9, 19, 30, 30))
    assert not r.meets(Rect(10, 0, 30, 30))  # half-open: touching is not meeting
    assert not r.meets(Rect(0, 20, 30, 30))
    field = np.arange(400).reshape(20, 20)
    assert field[r.slices].shape == (7, 15)


def test_the_latents_under_a_region_are_the_fewest_that_cover_it():
    grid = Grid(1000, 1000)
    assert grid.latents_under(Rect(0, 0, 16, 16)) == Rect(0, 0, 1, 1)
    assert grid.latents_under(Rect(15, 16, 17, 33)) == Rect(0, 1, 2, 3)
    assert grid.latents_under(Rect(999, 999, 1000, 1000)) == Rect(62, 62, 63, 63)
