"""Sessions: many batches through the same launches and memory, as a CUDA graph replays them. In the host shim."""

import numpy as np
import pytest
import torch
from simulation import simulated

from fastcodec.entropy.gaussian import SCALES, gaussian_tables
from fastcodec.errors import CorruptStreamError
from fastcodec.kernels import checkerboard
from fastcodec.kernels.device import Target
from fastcodec.kernels.rans import Pass, encode
from fastcodec.kernels.rans.session import DecodePlan, Session, SessionPass, shape_of

SHAPES = ((5, 7), (4, 6), (1, 1))  # of tiles, in latents
CHANNELS, MEAN_BITS = 16, 4


def anchors(height, width):
    return (height * width + 1) // 2


def draw(rng: np.random.Generator, positions: int) -> Pass:
    indexes = rng.integers(0, 40, (positions, CHANNELS), dtype=np.uint8)
    symbols = np.rint(rng.normal(size=indexes.shape) * SCALES[indexes]).astype(np.int16)
    symbols[indexes == 0] = 0
    return Pass(torch.from_numpy(symbols), torch.from_numpy(indexes), gaussian_tables())


def draw_tiles(seed: int) -> list[list[Pass]]:
    rng = np.random.default_rng(seed)
    return [[draw(rng, h + w), draw(rng, anchors(h, w)), draw(rng, h * w - anchors(h, w))] for h, w in SHAPES]


class Buffers:
    """The fixed tensors of three passes: symbols, anchors with values and latents, non-anchors with latents alone."""

    def __init__(self):
        rng = np.random.default_rng(9)
        positions = [[len(tile[n].indexes) for tile in draw_tiles(0)] for n in range(3)]
        self.indexes = [torch.empty(sum(p), CHANNELS, dtype=torch.uint8) for p in positions]
        self.symbols = torch.empty(sum(positions[0]), CHANNELS, dtype=torch.int16)
        self.means = [torch.from_numpy(rng.integers(-99, 99, i.shape, dtype=np.int16)) for i in self.indexes]
        self.values = torch.empty(sum(positions[1]), CHANNELS, dtype=torch.int32)
        self.gain = torch.from_numpy(rng.random((len(SHAPES), CHANNELS), dtype=np.float32))
        # Tiles side by side in one raster that is wider than each of them.
        self.raster = torch.zeros(5, 20, CHANNELS)
        lefts = (0, 8, 15)
        self.latents = [self.raster[:h, x : x + w] for (h, w), x in zip(SHAPES, lefts, strict=True)]
        common = {"tables": gaussian_tables()}
        latents = {"mean_bits": MEAN_BITS, "latents": self.latents, "gain": self.gain}
        self.passes = [
            SessionPass(self.indexes[0], positions[0], **common, symbols=self.symbols),
            SessionPass(
                self.indexes[1],
                positions[1],
                **common,
                **latents,
                means=self.means[1],
                values=self.values,
                anchors=True,
            ),
            SessionPass(self.indexes[2], positions[2], **common, **latents, means=self.means[2], anchors=False),
        ]

    def load(self, tiles: list[list[Pass]]) -> None:
        for n, indexes in enumerate(self.indexes):
            indexes.copy_(torch.cat([tile[n].indexes for tile in tiles]))

    def check(self, tiles: list[list[Pass]]) -> None:
        symbols = [torch.cat([tile[n].symbols for tile in tiles]).int() for n in range(3)]
        assert torch.equal(self.symbols.int(), symbols[0])
        values = [(s << MEAN_BITS) + m for s, m in zip(symbols, self.means, strict=True)]
        assert torch.equal(self.values, values[1])
        begin = [0, 0]
        for t, ((height, width), latents) in enumerate(zip(SHAPES, self.latents, strict=True)):
            halves = []
            for n in (1, 2):
                count = len(tiles[t][n].indexes)
                part = values[n][begin[n - 1] : begin[n - 1] + count]
                halves.append((part.float() * self.gain[t])[None])
                begin[n - 1] += count
            assert torch.equal(latents, checkerboard.merge(*halves, height, width)[0])


def run(session: Session, plan: DecodePlan, target: Target) -> None:
    staging = target.staging(session.size)
    session.write(plan, staging.data_ptr())
    session.memory.copy_(staging)
    for number in range(3):
        session.run(number)
    session.finish()
    plan.check(target.download(session.memory[: plan.records_bytes]))


@pytest.mark.parametrize("lanes, streams", [(4, 3), (8, 5), (32, 2)])  # mixed warps, and full ones
def test_batches_follow_each_other(simulator, lanes, streams):
    batches = [draw_tiles(seed) for seed in (1, 2, 3)]
    payloads = [encode(tiles, lanes=lanes, streams=streams) for tiles in batches]
    buffers = Buffers()
    with simulated(simulator) as target:
        plans = [DecodePlan(p, padded=True) for p in payloads]
        session = Session(plans[0], buffers.passes, target, payload_bytes=1 << 15)
        for tiles, plan in zip(batches, plans, strict=True):
            assert session.fits(plan)
            buffers.load(tiles)
            run(session, plan, target)
            buffers.check(tiles)


def test_padding_makes_shapes_alike(simulator):
    tiles = draw_tiles(4)
    with simulated(simulator) as target:
        plans = [
            (DecodePlan(p), DecodePlan(p, padded=True))
            for p in (encode(tiles, lanes=4, streams=streams) for streams in (2, 3))
        ]
    (exact, padded), (more_exact, more_padded) = plans
    assert shape_of(exact) != shape_of(more_exact)
    assert (exact.stream_count, more_exact.stream_count) == (6, 9)
    assert (padded.stream_count, more_padded.stream_count) == (8, 16)
    buffers = Buffers()
    with simulated(simulator) as target:
        session = Session(padded, buffers.passes, target)
        assert not session.fits(more_padded)
        with pytest.raises(ValueError, match="shape"):
            session.write(more_padded, 0)


@pytest.mark.parametrize("lanes", [2, 4, 8, 16, 32])
def test_batches_of_a_shape_may_have_other_numbers_of_streams(simulator, lanes):
    """Whatever two batches' streams are: if their shapes are alike, the first one's session decodes the second."""
    buffers, decoded = Buffers(), 0
    with simulated(simulator) as target:
        sessions = {}
        for streams in (1, 2, 3, 4, 2, 1):
            tiles = draw_tiles(streams)
            plan = DecodePlan(encode(tiles, lanes=lanes, streams=streams), padded=True)
            if shape_of(plan) not in sessions:
                sessions[shape_of(plan)] = Session(plan, buffers.passes, target, payload_bytes=1 << 15)
            session = sessions[shape_of(plan)]
            assert session.fits(plan)
            buffers.load(tiles)
            run(session, plan, target)
            buffers.check(tiles)
            decoded += 1
    assert len(sessions) < 4 < decoded


def test_a_larger_payload_does_not_fit(simulator):
    tiles = draw_tiles(5)
    payloads = encode(tiles, lanes=4, streams=2)
    with simulated(simulator) as target:
        plan = DecodePlan(payloads, padded=True)
        assert Session(plan, Buffers().passes, target).fits(plan)
        assert not Session(plan, Buffers().passes, target, payload_bytes=64).fits(plan)


def test_damage_is_told_and_does_not_stay(simulator):
    tiles = draw_tiles(6)
    payloads = encode(tiles, lanes=4, streams=3)
    damaged = [payloads[0], bytes([*payloads[1][:-9], payloads[1][-9] ^ 1, *payloads[1][-8:]]), payloads[2]]
    buffers = Buffers()
    buffers.load(tiles)
    with simulated(simulator) as target:
        plan = DecodePlan(payloads, padded=True)
        session = Session(plan, buffers.passes, target)
        with pytest.raises(CorruptStreamError, match="tile 1") as caught:
            run(session, DecodePlan(damaged, padded=True), target)
        assert caught.value.tile == 1
        run(session, plan, target)
    buffers.check(tiles)


def test_tensors_are_checked(simulator):
    indexes = torch.zeros(5, 3, dtype=torch.uint8)
    with simulated(simulator) as target:
        plan = DecodePlan(encode([[Pass(indexes.short(), indexes, gaussian_tables())]]))
        for item in (
            SessionPass(indexes, [4], gaussian_tables(), symbols=indexes.short()),
            SessionPass(indexes, [5], gaussian_tables(), symbols=indexes.int()),
            SessionPass(indexes, [5], gaussian_tables(), symbols=torch.zeros(3, 5, dtype=torch.int16).T),
            SessionPass(indexes, [5], gaussian_tables(), means=indexes.short()[:4]),
        ):
            with pytest.raises(ValueError, match=r"positions|contiguous"):
                Session(plan, [item], target)
