"""The CUDA coder without a GPU: its unchanged kernels in the host shim (cuda_shim/), beside the CPU coder.

tests/cuda_rans.cpp compares the two on thousands of cases, under the address and undefined-behaviour sanitizers and
under the shim's own watch for races; the tests here go through the public interface. tests/test_gpu_rans.py does the
same on a GPU.
"""

import numpy as np
import pytest
import torch
from coder_passes import gaussian_pass
from drivers import SIMULATED, assert_all_lanes, build_simulated, run_driver
from simulation import simulated

from fastcodec.entropy.gaussian import gaussian_tables
from fastcodec.errors import CorruptStreamError, SymbolRangeError, UnavailableError
from fastcodec.kernels.rans import Decoder, Latents, Pass, TableSet, _cuda, cost_bits, cuda_status, encode


@pytest.mark.slow
@pytest.mark.parametrize("kind", SIMULATED)
def test_kernels_agree_with_the_cpu_coder(kind):
    output, counts = run_driver(build_simulated("cuda_rans", kind), 2_500, seconds=240)
    # All kinds of cases, all numbers of lanes and all errors must have occurred, or the driver tests less than it says.
    assert len(counts) == 5 + 12, output
    assert all(counts.values()), output
    assert_all_lanes(output)


@pytest.fixture
def tiles() -> list[list[Pass]]:
    rng = np.random.default_rng(7)
    return [
        [
            gaussian_pass((6, 16), rng, highest=40),
            gaussian_pass((90, 32), rng, highest=40),
            gaussian_pass((89, 32), rng, highest=40),
        ],
        [
            gaussian_pass((1, 16), rng, highest=40),
            gaussian_pass((2, 32), rng, highest=40),
            gaussian_pass((0, 32), rng, highest=40),
        ],
    ]


def test_public_interface_in_the_shim(simulator, tiles):
    wanted = {preset: encode(tiles, preset=preset) for preset in ("size", "latency")}
    costs = [cost_bits(item) for item in tiles[0]]
    with simulated(simulator):
        assert {preset: encode(tiles, preset=preset) for preset in wanted} == wanted
        assert [cost_bits(item) for item in tiles[0]] == costs
        decoder = Decoder(wanted["latency"])
        assert isinstance(decoder._impl, _cuda.CudaDecoder)
        for number in range(3):
            decoded = decoder.decode([tile[number].indexes for tile in tiles], gaussian_tables())
            for symbols, tile in zip(decoded, tiles, strict=True):
                assert torch.equal(symbols, tile[number].symbols)
        decoder.finish()


def test_sampled_cost_chooses_the_same_shape(simulator):
    """Passes of more than 2^16 elements are sampled, by a rule that both twins must follow to the element."""
    rng = np.random.default_rng(3)
    tiles = [[gaussian_pass((300, 256), rng, highest=40), gaussian_pass((70, 1000), rng, highest=40)]]
    wanted = encode(tiles, preset="latency")
    with simulated(simulator):
        assert encode(tiles, preset="latency") == wanted
        assert Decoder(wanted).shape(0) == (32, 12)


def test_wide_symbols_and_different_tables_for_the_tiles(simulator):
    rng = np.random.default_rng(5)
    coin = TableSet([(0, [8192, 8190, 2])])
    flips = torch.from_numpy(rng.integers(0, 2, (50, 3), dtype=np.int32))
    tiles = [
        [gaussian_pass((20, 8), rng, highest=40), Pass(flips, torch.zeros(50, 3, dtype=torch.uint8), coin)],
        [Pass(flips, torch.zeros(50, 3, dtype=torch.uint8), coin)],
        [],
    ]
    with simulated(simulator):
        assert encode(tiles, lanes=8, streams=2) == encode(tiles, lanes=8, streams=2)
        by_kernels = encode(tiles)
    assert by_kernels == encode(tiles)


@pytest.mark.parametrize("anchors", [True, False])
@pytest.mark.parametrize("rows, columns", [(5, 6), (4, 7), (1, 1), (1, 8), (9, 1)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_reconstruction_equals_its_pytorch_twin(simulator, rows, columns, anchors, dtype):
    rng = np.random.default_rng(rows * 100 + columns)
    positions = (rows * columns + anchors) // 2
    item = gaussian_pass((positions, 12), rng, highest=64)
    means = torch.from_numpy(rng.integers(-(2**15), 2**15, (positions, 12)).astype(np.int16))
    gain = torch.from_numpy(rng.uniform(1e-6, 0.5, 12).astype(np.float32))
    payloads = encode([[item]], lanes=4, streams=2)

    def reconstruct() -> tuple[torch.Tensor, torch.Tensor]:
        wide = torch.full((rows, columns + 2, 12), -1, dtype=dtype)
        latents = wide[:, :columns]
        decoder = Decoder(payloads)
        [values] = decoder.reconstruct(
            [item.indexes], item.tables, [means], 4, latents=Latents([latents], gain, anchors)
        )
        decoder.finish()
        return values, wide

    by_cpu = reconstruct()
    with simulated(simulator):
        by_kernels = reconstruct()
    for one, other in zip(by_cpu, by_kernels, strict=True):
        assert torch.equal(one, other)
    assert torch.equal(by_cpu[0], (item.symbols.int() << 4) + means)


def test_faults_name_tile_and_pass(simulator, tiles):
    def changed(tile: int, number: int, **tensors) -> list[list[Pass]]:
        copy = [list(t) for t in tiles]
        copy[tile][number] = copy[tile][number]._replace(**tensors)
        return copy

    good = tiles[0][1]
    beyond = good.indexes.clone()
    beyond[3, 3] = gaussian_tables().count
    wide = good.symbols.int()
    wide[5, 5] = 40_000
    wide[good.indexes == 0] = 0
    skipped = good.symbols.clone()
    skipped[tuple(torch.nonzero(good.indexes == 0)[0])] = 1
    cases = [
        ({"indexes": beyond}, ValueError, "tile 0, pass 1: an index names no table"),
        ({"symbols": wide, "indexes": good.indexes.clamp(min=1)}, SymbolRangeError, "tile 0, pass 1: .* int16"),
        ({"symbols": skipped}, SymbolRangeError, "tile 0, pass 1: .* is not 0"),
    ]
    for tensors, error, text in cases:
        with pytest.raises(error, match=text):
            encode(changed(0, 1, **tensors))
        with simulated(simulator), pytest.raises(error, match=text):
            encode(changed(0, 1, **tensors))


def test_errors_wait_for_finish(simulator, tiles):
    payloads = encode(tiles)
    indexes = [[tile[number].indexes for tile in tiles] for number in range(3)]
    with simulated(simulator):
        with pytest.raises(CorruptStreamError, match="tile 1: a section reaches past"):
            Decoder([payloads[0], payloads[1][:3]])
        short = Decoder([payloads[0][:-6], payloads[1]])
        for number in range(3):
            decoded = short.decode(indexes[number], gaussian_tables())
        assert not decoded[0][-1].any()  # zeros from where the words ended
        assert torch.equal(decoded[1], tiles[1][2].symbols)
        with pytest.raises(CorruptStreamError, match="tile 0: a stream ran out of words") as caught:
            short.finish()
        assert caught.value.tile == 0
        wrong = Decoder(payloads)
        bad = indexes[0][0].clone()
        bad[0, 0] = 200
        wrong.decode([bad, indexes[0][1]], gaussian_tables())
        with pytest.raises(ValueError, match="tile 0: an index names no table"):
            wrong.finish()


@pytest.mark.parametrize("count, size", [(1, 1), (256, 3), (256, 64), (2, 16384), (3, 5000)])
def test_tables_of_any_size(simulator, count, size):
    """Sets beyond a block's shared memory are walked in global memory; one table has one entry, the sentinel."""
    rng = np.random.default_rng(count + size)
    tables = []
    for _ in range(count):
        frequencies = np.ones(size, dtype=np.int64)
        frequencies[int(rng.integers(size))] += 2**14 - size
        tables.append((-(size // 2), frequencies))
    tables = TableSet(tables)
    indexes = torch.from_numpy(rng.integers(0, count, (60, 9), dtype=np.uint8))
    symbols = torch.from_numpy(rng.integers(-(size // 2) - 2, size // 2 + 2, (60, 9), dtype=np.int16))
    wanted = encode([[Pass(symbols, indexes, tables)]], lanes=16)
    with simulated(simulator):
        assert encode([[Pass(symbols, indexes, tables)]], lanes=16) == wanted
        decoder = Decoder(wanted)
        assert torch.equal(decoder.decode([indexes], tables)[0], symbols)
        decoder.finish()


def test_operators_are_known_to_pytorch(tiles):
    passes = [item for tile in tiles for item in tile]
    symbols, indexes = [item.symbols for item in passes], [item.indexes for item in passes]
    tables = [item.tables.identity for item in passes]
    torch.library.opcheck(
        torch.ops.fastcodec.rans_encode.default, (symbols, indexes, tables, [0, 3, 6], "size", 0, 0, 1, "")
    )
    payloads = encode(tiles)

    def last_pass(state: torch.Tensor, number: int, index: torch.Tensor) -> torch.Tensor:
        symbols = [torch.empty(i.shape, dtype=torch.int16) for i in (index, tiles[1][0].indexes)]
        torch.ops.fastcodec.rans_decode(state, number, [index, tiles[1][0].indexes], tables[0], symbols)
        return symbols[0].float().mul(2)

    decoder = Decoder(payloads)
    compiled = torch.compile(last_pass, backend="aot_eager", fullgraph=True)
    doubled = compiled(decoder._impl.state, decoder._number, tiles[0][0].indexes)
    assert torch.equal(doubled, tiles[0][0].symbols.float() * 2)


def test_without_a_gpu_it_says_so():
    if torch.cuda.is_available():
        pytest.skip("there is one")
    assert "no CUDA device" in cuda_status()
    with pytest.raises(UnavailableError, match="no CUDA device"):
        Decoder([], device="cuda")
    with pytest.raises(UnavailableError, match="'meta' tensors"):
        cost_bits(
            Pass(*(torch.empty(1, 1, dtype=d, device="meta") for d in (torch.int16, torch.uint8)), gaussian_tables())
        )
