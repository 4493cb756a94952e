"""The CUDA coder on a GPU, beside the CPU coder: equal bytes, equal symbols, equal outcomes of hostile streams.

Tests marked `gpu` need one. A few cases of each grid also run in the host shim, in every run of the suite; with
FASTCODEC_SHIM=all every case does that can, which proves the tests themselves where there is no GPU.
"""

import itertools
import os
import random
import re
import shutil
import subprocess
import sys
import threading
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
from coder_passes import AnyPass, decode_column
from conftest import ROOT
from simulation import simulated
from torch import Tensor

from fastcodec.entropy.gaussian import SCALES, gaussian_tables
from fastcodec.errors import CorruptStreamError, FastcodecError
from fastcodec.kernels import device, nvrtc
from fastcodec.kernels.rans import (
    Decoder,
    Latents,
    MixturePass,
    Pass,
    TableSet,
    _cuda,
    cost_bits,
    cuda_status,
    encode,
    quantise_mixtures,
)

Tiles = list[list[AnyPass]]

# --- where the kernels run --------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Place:
    """A GPU, or the host shim, whose tensors are the CPU's."""

    device: torch.device
    driver: Path | None = None  # the shim's

    @contextmanager
    def kernels(self) -> Iterator[None]:
        """Within it, `put` tensors are coded by the kernels."""
        with simulated(self.driver) if self.driver else nullcontext():
            yield

    def put(self, tensor: Tensor) -> Tensor:
        return tensor.to(self.device)

    def tiles(self, tiles: Tiles) -> Tiles:
        def moved(item: AnyPass) -> AnyPass:
            return type(item)(*(self.put(part) if isinstance(part, Tensor) else part for part in item))

        return [[moved(item) for item in tile] for tile in tiles]

    def encode(self, tiles: Tiles, **options) -> list[bytes]:
        moved = self.tiles(tiles)
        with self.kernels():
            return encode(moved, **options)

    def synchronize(self) -> None:
        if self.driver is None:
            torch.cuda.synchronize()


@pytest.fixture
def place(request) -> Place:
    if request.param == "shim":
        return Place(torch.device("cpu"), request.getfixturevalue("simulator"))
    missing = cuda_status()
    assert not missing, missing
    return Place(torch.device("cuda"))


GPU = pytest.param("cuda", marks=pytest.mark.gpu)


def on_places(names: str, cases: Iterable[tuple], shim: Callable[..., bool] = lambda *case: True):
    """Every case on a GPU; those that `shim` says in the host shim too."""
    cases = list(cases)
    everything = os.environ.get("FASTCODEC_SHIM") == "all"
    parameters = [pytest.param("cuda", *case, marks=pytest.mark.gpu) for case in cases]
    parameters += [pytest.param("shim", *case) for case in cases if everything or shim(*case)]
    return pytest.mark.parametrize(f"place, {names}", parameters, indirect=["place"])


in_both = pytest.mark.parametrize("place", [GPU, "shim"], indirect=True)
on_gpu = pytest.mark.parametrize("place", [GPU], indirect=True)

# --- what is coded ----------------------------------------------------------------------------------------------------

_GAUSSIAN = gaussian_tables()


@cache
def _set(name: str) -> TableSet:
    """Table sets of few and many bits, with and without index 0 meaning "not coded"."""
    if name == "skewed":  # most symbols cost 1/5000 bit: hardly a word is read
        return TableSet([(0, [2**14 - 3, 1, 1, 1])])
    if name == "uniform":  # 10 bits: nearly every step reads words
        return TableSet([(-512, [16] * 1024)])
    if name == "escapes":  # the sentinel is the most frequent entry
        return TableSet([(-1, [1000, 1000, 1000, 2**14 - 3000]), (5, [2**14])])
    if name == "full":  # indexes up to 255
        return TableSet([(-(i % 7), [2**14 - 2 * (i % 50) - 2, *[1] * (2 * (i % 50) + 1), 1]) for i in range(256)])
    return _GAUSSIAN


def draw(rng: np.random.Generator, name: str, positions: int, channels: int) -> AnyPass:
    """A pass of a kind: see DISTRIBUTIONS."""
    shape = (positions, channels)
    if name.startswith("mixtures"):
        return draw_mixtures(rng, shape, wide=name == "mixtures, wide")
    tables = _set(name)
    if name in ("skewed", "uniform"):
        indexes = np.zeros(shape, np.uint8)
        symbols = rng.integers(-512, 511, shape) if name == "uniform" else (rng.random(shape) < 0.02).astype(np.int64)
    elif name == "escapes":
        indexes = rng.integers(0, 2, shape)
        symbols = np.where(rng.random(shape) < 0.7, rng.integers(-(2**15), 2**15, shape), rng.integers(-1, 2, shape))
    elif name == "full":
        indexes = rng.integers(0, 256, shape)
        symbols = rng.integers(-8, 60, shape) * (rng.random(shape) < 0.1)
    else:
        lowest, highest = {"gaussian": (0, 40), "coded": (1, 64), "rare": (0, 200), "skipped": (0, 1)}[name]
        indexes = rng.integers(lowest, highest, shape)
        if name == "rare":  # one in forty is coded
            indexes = np.where(indexes < 195, 0, indexes - 190)
        symbols = np.rint(rng.normal(size=shape) * SCALES[indexes])
        symbols[indexes == 0] = 0
    return Pass(torch.from_numpy(symbols.astype(np.int16)), torch.from_numpy(indexes.astype(np.uint8)), tables)


def draw_mixtures(rng: np.random.Generator, shape: tuple[int, int], wide: bool) -> MixturePass:
    """Of one to four components; wide: with the widest reaches, and most symbols outside of them."""
    components = int(rng.integers(1, 5))
    weights = np.moveaxis(rng.dirichlet([0.7] * components, shape), -1, 0)
    planes = (components, *shape)
    means = rng.choice([-600.0, 0.0, 600.0], planes) if wide else rng.normal(size=planes) * 6
    sigmas = np.exp(rng.uniform(np.log(0.1), np.log(150.0 if wide else 3.0), planes))
    symbols = rng.integers(-(2**15), 2**15, shape) if wide else np.rint(means[0] + rng.normal(size=shape) * sigmas[0])
    parameters = quantise_mixtures(*map(torch.from_numpy, (weights, means, sigmas)))
    return MixturePass(torch.from_numpy(symbols.astype(np.int16)), *parameters)


DISTRIBUTIONS = ("gaussian", "coded", "rare", "skipped", "skewed", "uniform", "escapes", "full")
DISTRIBUTIONS += ("mixtures", "mixtures, wide")
SMALL = ((0, 8), (1, 1), (1, 5), (37, 3), (130, 32), (9, 1000))
LARGE = (700, 100)  # beyond 2^16 elements the estimate of the cost takes samples
LANES = (1, 2, 4, 8, 16, 32, None)
STREAMS = (1, 2, 7, 64, None)


def check(place: Place, tiles: Tiles, **options) -> None:
    """The kernels write the CPU coder's bytes and read them back."""
    wanted = encode(tiles, **options)
    assert place.encode(tiles, **options) == wanted
    check_decode(place, wanted, tiles)


def check_decode(place: Place, payloads: list[bytes], tiles: Tiles) -> None:
    """Payloads of tiles whose passes of equal number are of one kind: decoded as one batch."""
    with place.kernels():
        decoder = Decoder(payloads, device=place.device)
        assert isinstance(decoder._impl, _cuda.CudaDecoder)
        for column in zip(*tiles, strict=True):
            for symbols, item in zip(decode_column(decoder, column, place.put), column, strict=True):
                assert symbols.dtype == torch.int16
                assert torch.equal(symbols.cpu(), item.symbols.to(torch.int16))
        decoder.finish()


@on_places("name", [(name,) for name in DISTRIBUTIONS])
def test_every_shape_of_coder(place, name):
    """All N and S, on sizes from nothing to some thousands, with one to three passes."""
    rng = np.random.default_rng(len(name))
    shapes = list(itertools.product(LANES, STREAMS))
    sizes = itertools.cycle(SMALL)
    for number, (lanes, streams) in enumerate(shapes):
        first = next(sizes)
        passes = [draw(rng, name, *first)]
        passes += [draw(rng, name, *next(sizes)) for _ in range(number % 3)]
        for preset in ("size", "latency") if lanes is None or streams is None else ("size",):
            check(place, [passes], lanes=lanes, streams=streams, preset=preset)


@on_places("name, preset", itertools.product(DISTRIBUTIONS, ("size", "latency")), lambda name, preset: name == "rare")
def test_large_passes(place, name, preset):
    rng = np.random.default_rng(3)
    tile = [draw(rng, name, *LARGE), draw(rng, name, 40, 3)]
    for lanes, streams in ((None, None), (32, None), (32, 64), (8, 7), (1, 1)):
        check(place, [tile], lanes=lanes, streams=streams, preset=preset)
    cost = cost_bits(tile[0])
    [[moved, _]] = place.tiles([tile])
    with place.kernels():
        assert cost_bits(moved) == cost


@on_places("seed", [(seed,) for seed in range(24)], lambda seed: seed % 8 == 0)
def test_batches_of_mixed_tiles(place, seed):
    """Tiles of many shapes at once, each with its own N and S: their streams share warps and blocks."""
    rng = np.random.default_rng(seed)
    kinds = [str(rng.choice(DISTRIBUTIONS)) for _ in range(1 + seed % 3)]
    tiles: Tiles = []
    for _ in range(int(rng.integers(1, 40))):
        tile = []
        for kind in kinds:
            positions = int(rng.choice([0, 1, 2, 31, 200, 700])) if rng.random() < 0.3 else int(rng.integers(1, 90))
            item = draw(rng, kind, positions, int(rng.integers(1, 40)))
            if rng.random() < 0.3:
                item = item._replace(symbols=item.symbols.int())
            tile.append(item)
        tiles.append(tile)
    check(place, tiles, preset=("size", "latency")[seed % 2])
    payloads = []
    for tile in tiles:
        lanes, streams = int(rng.choice(LANES[:-1])), int(rng.choice([1, 2, 3, 7, 20]))
        payloads += encode([tile], lanes=lanes, streams=streams)
    check_decode(place, payloads, tiles)


@on_places("count, size", [(1, 1), (256, 3), (256, 64), (2, 16384), (3, 5000)])
def test_tables_beyond_shared_memory(place, count, size):
    """Sets too large for a block's shared memory are walked in global memory; the smallest one is a lone sentinel."""
    rng = np.random.default_rng(count + size)
    frequencies = [np.ones(size, np.int64) for _ in range(count)]
    for table in frequencies:
        table[int(rng.integers(size))] += 2**14 - size
    tables = TableSet([(-(size // 2), table) for table in frequencies])
    indexes = torch.from_numpy(rng.integers(0, count, (60, 9), dtype=np.uint8))
    symbols = torch.from_numpy(rng.integers(-(size // 2) - 2, size // 2 + 2, (60, 9), dtype=np.int16))
    for lanes in (4, 32):
        check(place, [[Pass(symbols, indexes, tables)]], lanes=lanes, streams=3)


@in_both
def test_no_tiles_and_empty_ones(place):
    check(place, [])
    check(place, [[], []])
    empty = draw(np.random.default_rng(0), "gaussian", 0, 4)
    check(place, [[empty], [empty]])


@in_both
def test_tiles_of_different_tables(place):
    rng = np.random.default_rng(5)
    tiles = [
        [draw(rng, "gaussian", 20, 8), draw(rng, "uniform", 50, 3)],
        [draw(rng, "full", 50, 3)],
        [],
        [draw(rng, "escapes", 9, 9), draw(rng, "uniform", 3, 50), draw(rng, "gaussian", 7, 7)],
    ]
    assert place.encode(tiles) == encode(tiles)


# --- reconstruction ---------------------------------------------------------------------------------------------------


@dataclass
class Picture:
    """A tile for `reconstruct`: one colour of a checkerboard of rows x columns."""

    item: Pass
    means: Tensor
    rows: int
    columns: int
    anchors: bool


def picture(rng: np.random.Generator, rows: int, columns: int, channels: int, anchors: bool, name: str) -> Picture:
    positions = (rows * columns + anchors) // 2
    means = rng.integers(-(2**15), 2**15, (positions, channels)).astype(np.int16)
    return Picture(draw(rng, name, positions, channels), torch.from_numpy(means), rows, columns, anchors)


def reconstruct(
    place: Place | None, payloads: list[bytes], pictures: list[Picture], gain: Tensor, dtype: torch.dtype, bits: int
) -> list[Tensor]:
    """Values and latents of all pictures, back on the CPU; without a place, the CPU coder's. Rows of latents are apart
    by more than their columns, and what lies between them comes back too."""
    with place.kernels() if place else nullcontext():
        put = place.put if place else lambda tensor: tensor
        decoder = Decoder(payloads, device=place.device if place else "cpu")
        wide = [
            put(torch.full((p.rows, p.columns + 1 + p.columns % 3, p.means.shape[1]), -1, dtype=dtype))
            for p in pictures
        ]
        values = decoder.reconstruct(
            [put(p.item.indexes) for p in pictures],
            pictures[0].item.tables,
            [put(p.means) for p in pictures],
            bits,
            latents=Latents(
                [latents[:, : p.columns] for latents, p in zip(wide, pictures, strict=True)],
                put(gain),
                pictures[0].anchors,
            ),
        )
        decoder.finish()
    return [tensor.cpu() for tensor in (*values, *wide)]


GEOMETRIES = ((5, 6), (4, 7), (1, 1), (1, 8), (9, 1), (2, 2), (33, 31), (16, 64))


@on_places(
    "dtype, anchors, lanes",
    itertools.product((torch.float32, torch.float16, torch.bfloat16), (True, False), (2, 32)),
    lambda dtype, anchors, lanes: (lanes == 32) == anchors,
)
def test_reconstruction_equals_the_cpu_twin(place, dtype, anchors, lanes):
    rng = np.random.default_rng(lanes)
    gain = torch.from_numpy(rng.uniform(1e-6, 0.5, 12).astype(np.float32))
    for name in ("gaussian", "uniform"):  # skipping and dense kernels
        pictures = [picture(rng, rows, columns, 12, anchors, name) for rows, columns in GEOMETRIES]
        for bits in (0, 4, 15):
            payloads = encode([[p.item] for p in pictures], lanes=lanes, streams=3)
            wanted = reconstruct(None, payloads, pictures, gain, dtype, bits)
            got = reconstruct(place, payloads, pictures, gain, dtype, bits)
            for one, other in zip(wanted, got, strict=True):
                assert torch.equal(one, other)
            for value, p in zip(wanted, pictures, strict=False):
                assert torch.equal(value, (p.item.symbols.int() << bits) + p.means)


# --- hostile streams --------------------------------------------------------------------------------------------------


def mutated(rng: random.Random, payload: bytes, others: Sequence[bytes]) -> bytes:
    out = bytearray(payload)
    for _ in range(rng.choice((1, 1, 1, 2, 3))):
        at = rng.randrange(min(len(out), rng.choice((6, 12, 1 << 30)))) if out else 0
        kind = rng.randrange(8)
        if kind == 0 and out:
            out[at] ^= 1 << rng.randrange(8)
        elif kind == 1 and out:
            out[at] = rng.choice((0, 1, 0x7F, 0x80, 0xFF, rng.randrange(256)))
        elif kind == 2:
            del out[at:]
        elif kind == 3:
            del out[len(out) - min(len(out), rng.choice((1, 2, 4, 6))) :]
        elif kind == 4:
            out += bytes(rng.choice((1, 2, 4, 40))) if rng.random() < 0.5 else rng.randbytes(rng.choice((1, 2, 4, 40)))
        elif kind == 5 and out:
            del out[at]
        elif kind == 6:
            out.insert(at, rng.randrange(256))
        else:
            other = rng.choice(others)
            out[at:] = other[min(at, len(other)) :]
    return bytes(out) if rng.random() < 0.9 else rng.randbytes(rng.randrange(200))


def outcome(
    payloads: list[bytes], columns: list[tuple[AnyPass, ...]], device: torch.device, put: Callable[[Tensor], Tensor]
) -> tuple[str, list[Tensor], CorruptStreamError | None]:
    """Where the first error was met, if any, and the symbols of every pass: after an error, too, both coders go on."""
    try:
        decoder = Decoder(payloads, device=device)
    except CorruptStreamError as error:
        return "construction", [], error
    caught, symbols = None, []
    for column in columns:
        out = [put(torch.full(item.symbols.shape, 77, dtype=torch.int16)) for item in column]
        try:
            decode_column(decoder, column, put, out)
        except CorruptStreamError as error:  # on the CPU only
            caught = caught or error
        symbols += out
    try:
        decoder.finish()
    except CorruptStreamError as error:
        caught = caught or error
    return "decoding" if caught else "", [tensor.cpu() for tensor in symbols], caught


@on_places("seed", [(seed,) for seed in range(8)], lambda seed: seed == 0)
def test_hostile_streams_end_as_on_the_cpu(place, seed):
    """One payload of a batch is damaged: the same errors, of the same tile, and the same symbols in all tiles."""
    rng, numbers = random.Random(seed), np.random.default_rng(seed)
    seen = {"construction": 0, "decoding": 0, "": 0}
    for _ in range(60):
        kinds = [rng.choice(DISTRIBUTIONS) for _ in range(rng.randrange(1, 4))]
        tiles = [
            [draw(numbers, kind, rng.choice((1, 5, 40)), rng.choice((1, 8, 30))) for kind in kinds]
            for _ in range(rng.randrange(1, 5))
        ]
        payloads = []
        for tile in tiles:
            payloads += encode([tile], lanes=rng.choice(LANES[:-1]), streams=rng.choice((1, 2, 7)))
        victim = rng.randrange(len(tiles))
        payloads[victim] = mutated(rng, payloads[victim], payloads)
        columns = list(zip(*tiles, strict=True))
        stage, symbols, error = outcome(payloads, columns, torch.device("cpu"), lambda tensor: tensor)
        with place.kernels():
            gpu_stage, gpu_symbols, gpu_error = outcome(payloads, columns, place.device, place.put)
        assert gpu_stage == stage
        assert type(gpu_error) is type(error)
        if error is not None:
            assert gpu_error.tile == error.tile == victim
            assert stage != "construction" or str(gpu_error) == str(error)
        for one, other in zip(symbols, gpu_symbols, strict=True):
            assert torch.equal(one, other)
        seen[stage] += 1
    assert all(seen.values()), seen


def spoil_index(item: Pass, row: int) -> Pass:
    beyond = item.indexes.clone()
    beyond[row, 7] = item.tables.count + row
    return item._replace(indexes=beyond)


def spoil_weights(item: MixturePass, row: int) -> MixturePass:
    wrong = item.weights.clone()
    wrong[0, row, 7] += 1 + row
    return item._replace(weights=wrong)


@on_places(
    "kind, spoil, words",
    [
        ("gaussian", spoil_index, "an index names no table"),
        ("mixtures", spoil_weights, "the weights of an element do not sum to 4096"),
    ],
)
def test_wrong_parameters_are_told_at_finish(place, kind, spoil, words):
    item = draw(np.random.default_rng(1), kind, 60, 40)
    for lanes, row in itertools.product((1, 8, 32), (0, 33, 59)):
        [payload] = encode([[item]], lanes=lanes, streams=2)
        with place.kernels():
            decoder = Decoder([payload, payload], device=place.device)
            _, symbols = decode_column(decoder, [spoil(item, row), item], place.put)
            assert torch.equal(symbols.cpu(), item.symbols)
            with pytest.raises(ValueError, match=f"tile 0: {words}"):
                decoder.finish()


@on_gpu
def test_parameters_quantised_on_a_gpu(place):
    """What a network on a GPU gives goes from there to the coder: no copy in between, one synchronisation in all."""
    generator = torch.Generator().manual_seed(3)
    weights, means, sigmas = (torch.rand(3, 200, 40, generator=generator) * scale + 0.1 for scale in (1, 30, 8))
    symbols = means[1].round().to(torch.int16)
    mixture = quantise_mixtures(*map(place.put, (weights, means, sigmas)))
    [payload] = encode([[MixturePass(place.put(symbols), *mixture)]])
    assert encode([[MixturePass(symbols, *(part.cpu() for part in mixture))]]) == [payload]
    decoder = Decoder([payload], device=place.device)
    [decoded] = decoder.decode_mixtures([mixture])
    decoder.finish()
    assert torch.equal(decoded.cpu(), symbols)


@in_both
def test_tiles_of_both_kinds(place):
    """Passes of equal number may be indexed in one tile and mixtures in another: two launches code them."""
    rng = np.random.default_rng(6)
    tiles = [
        [draw(rng, "gaussian", 20, 8), draw(rng, "mixtures", 50, 3)],
        [draw(rng, "mixtures", 50, 3)],
        [draw(rng, "mixtures, wide", 9, 9), draw(rng, "uniform", 3, 50), draw(rng, "mixtures", 7, 7)],
    ]
    assert place.encode(tiles) == encode(tiles)


def assert_refused_alike(place: Place, tiles: Tiles) -> None:
    """Both coders refuse the second tile's second pass, with the same words."""
    with pytest.raises(ValueError, match="tile 1, pass 1: ") as by_cpu:
        encode(tiles)
    with pytest.raises(ValueError, match="tile 1, pass 1: ") as by_gpu:
        place.encode(tiles)
    assert (type(by_gpu.value), str(by_gpu.value)) == (type(by_cpu.value), str(by_cpu.value))


@on_gpu
def test_faults_of_symbols_on_a_gpu(place):
    """What the CPU coder refuses to encode, with the same words."""
    item = draw(np.random.default_rng(2), "gaussian", 50, 20)
    beyond, wide, skipped = item.indexes.clone(), item.symbols.int(), item.symbols.clone()
    beyond[3, 3] = 200
    wide[tuple(torch.nonzero(item.indexes)[5])] = 40_000
    skipped[tuple(torch.nonzero(item.indexes == 0)[5])] = 1
    for change in ({"indexes": beyond}, {"symbols": wide}, {"symbols": skipped}):
        assert_refused_alike(place, [[item], [item, item._replace(**change)]])


@in_both
def test_faults_of_mixtures(place):
    """Likewise; with both faults in a pass, the weights are told."""
    item = draw(np.random.default_rng(2), "mixtures", 50, 20)
    wrong, wide = item.weights.clone(), item.symbols.int()
    wrong[0, 49, 19] += 1
    wide[5, 5] = 40_000
    for change in ({"weights": wrong}, {"symbols": wide}, {"weights": wrong, "symbols": wide}):
        assert_refused_alike(place, [[item], [item, item._replace(**change)]])


# --- PyTorch's streams, threads and graphs ----------------------------------------------------------------------------


def exercise(place: Place, seed: int = 0, tables: TableSet | None = None) -> None:
    """Encodes, decodes and reconstructs a little of everything. Also run by compute-sanitizer, in its own process."""
    rng = np.random.default_rng(seed)
    for name in ("gaussian", "escapes", "mixtures"):
        tiles = [[draw(rng, name, positions, 20), draw(rng, name, 9, 5)] for positions in (3, 40, 70)]
        if tables is not None and name == "gaussian":
            tiles = [[item._replace(tables=tables) for item in tile] for tile in tiles]
        check(place, tiles, preset="latency")
        for lanes in (4, 32):
            check(place, tiles, lanes=lanes, streams=3)
    gain = torch.full((6,), 0.1)
    for anchors, lanes in ((True, 32), (False, 8)):
        pictures = [picture(rng, rows, 7, 6, anchors, "gaussian") for rows in (8, 21)]
        payloads = encode([[p.item] for p in pictures], lanes=lanes, streams=2)
        wanted = reconstruct(None, payloads, pictures, gain, torch.bfloat16, 5)
        for one, other in zip(wanted, reconstruct(place, payloads, pictures, gain, torch.bfloat16, 5), strict=True):
            assert torch.equal(one, other)


@in_both
def test_a_little_of_everything(place):
    exercise(place)


@on_places("fresh", [(False,), (True,)])
def test_threads_with_streams_of_their_own(place, fresh):
    """All at once: what one thread's stream does must not be seen by another's. With `fresh` tables, the threads meet
    at each set's first use, where one of them uploads it for all."""
    count, rounds = (6, 6) if place.driver is None else (1, 2)
    sets = [TableSet.from_bytes(gaussian_tables().to_bytes()) for _ in range(rounds)] if fresh else []
    barrier, failures = threading.Barrier(count, timeout=60), []

    def work(number: int) -> None:
        try:
            stream = torch.cuda.Stream() if place.driver is None else None
            with torch.cuda.stream(stream):  # None: does nothing
                for turn in range(rounds):
                    barrier.wait()
                    exercise(place, 100 * number + turn, sets[turn] if fresh else None)
        except BaseException as error:
            failures.append(error)
            barrier.abort()

    exercise(place)  # so that nothing but the fresh sets is used for the first time
    threads = [threading.Thread(target=work, args=(number,)) for number in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    failures.sort(key=lambda error: isinstance(error, threading.BrokenBarrierError))
    if failures:
        raise failures[0]


class Passes:
    """Three decoded passes, one of mixtures, and a reconstructed one, all into tensors that are there already."""

    def __init__(self, place: Place, lanes: int):
        rng = np.random.default_rng(lanes)
        kinds = (("full", 30), ("gaussian", 210), ("mixtures", 100))
        self.items = [draw(rng, name, positions, 16) for name, positions in kinds]
        self.picture = picture(rng, 20, 21, 16, True, "gaussian")
        [self.moved] = place.tiles([[*self.items, self.picture.item]])
        self.means = place.put(self.picture.means)
        self.gain = place.put(torch.full((16,), 0.25))
        self.symbols = [torch.empty_like(item.symbols) for item in self.moved[:3]]
        self.values = torch.empty(self.means.shape, dtype=torch.int32, device=place.device)
        self.latents = torch.empty(20, 21, 16, dtype=torch.float16, device=place.device)
        self.payloads = encode([[*self.items, self.picture.item]], lanes=lanes, streams=3)
        self.place = place

    def run(self, decoder: Decoder) -> None:
        for item, out in zip(self.moved, self.symbols, strict=False):
            decode_column(decoder, [item], out=[out])
        decoder.reconstruct(
            [self.moved[3].indexes],
            gaussian_tables(),
            [self.means],
            6,
            latents=Latents([self.latents], self.gain),
            out=[self.values],
        )

    def poison(self) -> None:
        for tensor in (*self.symbols, self.values, self.latents):
            tensor.fill_(-99)

    def check(self) -> None:
        for item, out in zip(self.items, self.symbols, strict=True):
            assert torch.equal(out.cpu(), item.symbols)
        values = (self.picture.item.symbols.int() << 6) + self.picture.means
        assert torch.equal(self.values.cpu(), values)
        rows, columns = torch.meshgrid(torch.arange(20), torch.arange(21), indexing="ij")
        anchors = (rows + columns) % 2 == 0
        latents = self.latents.cpu()
        assert torch.equal(latents[anchors], (values.float() * 0.25).half())
        assert (latents[~anchors] == -99).all()


@on_gpu
@pytest.mark.parametrize("lanes", [8, 32])
def test_cuda_graph(place, lanes):
    """A captured decode replays; the decoder's state is what it changes, so that is put back before each replay."""
    passes = Passes(place, lanes)
    decoder = Decoder(passes.payloads, device=place.device)
    state = decoder._impl.state
    pristine = state.clone()
    passes.poison()
    passes.run(decoder)
    decoder.finish()
    passes.check()
    state.copy_(pristine)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        passes.run(decoder)
    for _ in range(3):
        passes.poison()
        state.copy_(pristine)
        graph.replay()
        passes.check()
        decoder.finish()
    graph.replay()  # from where the last one ended: there is nothing left to decode
    with pytest.raises(CorruptStreamError):
        decoder.finish()
    place.synchronize()


@pytest.mark.parametrize("place", ["shim"], indirect=True)
def test_what_capture_needs_of_the_decoder(place, monkeypatch):
    """Memory for descriptors that is there from the beginning, and tables that are; the shim has no graphs."""
    passes = Passes(place, 8)
    with place.kernels():
        decoder = Decoder(passes.payloads)
        target = decoder._impl._target
        pristine = decoder._impl.state.clone()
        passes.run(decoder)
        monkeypatch.setattr(target, "is_capturing", lambda: True)
        monkeypatch.setattr(target, "staging", None)
        for _ in range(2):
            decoder._impl.state.copy_(pristine)
            passes.poison()
            passes.run(decoder)
            passes.check()
        first = passes.moved[0]
        assert _cuda.CAPTURED_PASSES == 8
        with pytest.raises(FastcodecError, match="no more than 8 passes"):
            decoder.decode([first.indexes], first.tables, out=passes.symbols[:1])
        monkeypatch.undo()
        other = Decoder(passes.payloads)
        monkeypatch.setattr(other._impl._target, "is_capturing", lambda: True)
        unseen = TableSet([(0, [2**14 - 5, 5])] * 2)
        with pytest.raises(FastcodecError, match="once before"):
            other.decode([first.indexes], unseen, out=passes.symbols[:1])
        monkeypatch.setattr(_cuda, "_uploaded_for_mixtures", {})
        with pytest.raises(FastcodecError, match="mixtures once before"):
            decode_column(other, [passes.moved[2]], out=passes.symbols[2:])


# --- images of the kernels and tools ----------------------------------------------------------------------------------


@on_gpu
def test_nvrtc_image_gives_the_same_bytes(place, monkeypatch):
    """Machines without nvcc compile the kernels with NVRTC: another compiler front end, the same results."""
    if not _cuda.IMAGE.exists():
        pytest.skip(f"no {_cuda.IMAGE.name}: every other test here ran NVRTC's image")
    major, minor = torch.cuda.get_device_capability()
    try:
        headers = nvrtc.quoted_headers(_cuda.SOURCE)
        image = nvrtc.compile_image(_cuda.SOURCE, headers, f"sm_{major}{minor}")
    except nvrtc.NvrtcMissingError as error:
        pytest.skip(str(error))
    before = device.cuda_target(place.device)
    other, module = device.Target(before.device), _cuda.open_module(_cuda.DRIVER, image)
    assert module.value != _cuda.load_kernels(before).value
    monkeypatch.setitem(_cuda._modules, other, module)
    monkeypatch.setitem(device._targets, before.device, other)
    assert _cuda.coder_target(place.device) is other
    exercise(place, 11)
    for name in DISTRIBUTIONS:
        rng = np.random.default_rng(12)
        check(place, [[draw(rng, name, 200, 40), draw(rng, name, 33, 3)]], lanes=32, streams=5)
        check(place, [[draw(rng, name, 200, 40), draw(rng, name, 33, 3)]])


def sanitizer() -> str | None:
    folders = os.pathsep.join((os.environ.get("PATH", ""), "/usr/local/cuda/bin", "/opt/cuda/bin"))
    return shutil.which("compute-sanitizer", path=folders)


# Every tensor is an allocation of its own, so that memcheck sees where it ends.
EXERCISE = """
import sys
sys.path.append(sys.argv[1])
import torch
import test_gpu_rans as tests
tests.exercise(tests.Place(torch.device("cuda")))
print("exercised")
"""


@on_gpu
@pytest.mark.parametrize("tool", ["memcheck", "racecheck"])
def test_compute_sanitizer(place, tool):
    if (command := sanitizer()) is None:
        pytest.skip("no compute-sanitizer on the PATH or in /usr/local/cuda/bin")
    arguments = [command, "--tool", tool, "--error-exitcode", "9", sys.executable, "-c", EXERCISE, str(ROOT / "tests")]
    environment = {**os.environ, "PYTORCH_NO_CUDA_MEMORY_CACHING": "1"}
    try:
        run = subprocess.run(arguments, capture_output=True, text=True, timeout=60, env=environment, check=False)
    except subprocess.TimeoutExpired:
        pytest.skip(f"{tool} takes more than 60 s here")
    text = run.stdout + run.stderr
    if re.search(r"device (is )?not supported|LibraryNotLoaded|no attachable process", text, flags=re.IGNORECASE):
        pytest.skip(f"compute-sanitizer does not work here: {text.strip().splitlines()[0]}")
    assert run.returncode == 0, text[-6000:]
    assert "exercised" in run.stdout, text[-6000:]
    if (found := re.search(r"RACECHECK SUMMARY: ([1-9]\d*) hazards.*", text)) is not None:
        warnings.warn(f"{found[0]}\n{text[-4000:]}", stacklevel=1)


@pytest.mark.parametrize("place", ["shim"], indirect=True)
def test_the_sanitizers_script(place):
    """The same program but for where it runs: so it is known to work where there is no GPU."""
    program = EXERCISE.replace('torch.device("cuda")', 'torch.device("cpu"), __import__("pathlib").Path(sys.argv[2])')
    assert program != EXERCISE
    arguments = [sys.executable, "-c", program, str(ROOT / "tests"), str(place.driver)]
    run = subprocess.run(arguments, capture_output=True, text=True, timeout=120, check=False)
    assert run.returncode == 0, run.stderr
    assert run.stdout == "exercised\n"
