"""The benchmark of tiles: what it counts for tiles alone is what the encoder counts."""

import numpy as np
import pytest

from bench import tiling
from fastcodec.codec import Codec
from fastcodec.engines import cpu
from fastcodec.geometry import Grid


@pytest.mark.parametrize("quality", [20, 80])
def test_bits_of_tiles_and_of_one_tile_are_the_encoders(photographs, quality):
    picture = np.concatenate([photographs["coffee"][:90], photographs["rocket"][:90], photographs["coffee"][90:180]], 1)
    model = Codec.load("swift", "cpu").model
    found = tiling._bits(model, picture, quality)
    assert tuple(found) == tiling.WAYS
    for way, side in (("tiles", 64), ("one tile", 4096)):
        grid = Grid(*picture.shape[:2], tile_latents=side)
        assert grid.tile_count == (2 if side == 64 else 1)
        total = 0.0
        for (z, channels, _), *latents in cpu.CpuEngine(model).code_tiles([picture], grid, quality):
            total += float(model.hyper_code_lengths[channels.long(), z.long() + 127].sum())
            for symbols, indexes, _ in latents:
                total += float(model.code_lengths[indexes.long(), symbols.long().abs()].sum())
        assert found[way] == pytest.approx(total, rel=2e-3)  # one window or several: a symbol may round otherwise
    assert 0.9 < found["hyper-synthesis across borders"] / found["one tile"] < 1.1
    assert 0.9 < found["hyper-analysis too"] / found["one tile"] < 1.1
