"""The entropy coder: round trips, equal bytes from all twins, an independent slow decoder, errors, corrupt payloads."""

import doctest
import gc
import hashlib
import pickle
import re
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
from coder_passes import assert_round_trip, decode_all, distributions, gaussian_pass, slow_decode
from torch._dynamo.testing import CompileCounterWithBackend

import fastcodec.rans
from fastcodec.entropy.gaussian import gaussian_tables
from fastcodec.kernels.rans import Latents, _cpu, _cpu_abi, _status, tables
from fastcodec.rans import (
    CorruptStreamError,
    Decoder,
    MixturePass,
    Pass,
    SymbolRangeError,
    TableSet,
    available_isas,
    cost_bits,
    encode,
    quantise_mixtures,
)

GAUSSIAN = gaussian_tables()
ISAS = available_isas()


def geometric(first: int, size: int, ratio: float) -> tuple[int, np.ndarray, float]:
    pmf = ratio ** np.abs(np.arange(size) + first)
    return first, pmf / pmf.sum(), 1e-3


# No skip, off-centre, and with the two extremes: a table that is a sentinel alone, and one of 2^14 entries.
HYPER = TableSet.from_pmfs(
    [geometric(-20, 41, 0.7), geometric(3, 9, 0.5), (0, np.array([]), 1.0), (-5, np.ones(16383), 0)]
)
# More entries than 16 bits can number.
WIDE = TableSet([(-4000 + 10 * i, [1] * 8192 + [8192]) for i in range(12)])
# Tables so far apart that an encoder keeps no row of all their symbols for each, and tables at the very ends of int16.
APART = TableSet([(-32768, [9000, 7000, 384]), (32766, [1, 8192, 8191]), (0, [8000, 8384])])
LOWEST = TableSet([(-32768, [9000, 7000, 384]), (-32768, [16384 - 3, 1, 1, 1])])
HIGHEST = TableSet([(32766, [9000, 7000, 384]), (32700, [16384 - 67, *[1] * 67])])


def table_pass(shape, table_set: TableSet, seed=0) -> Pass:
    """Symbols drawn from the tables themselves, sentinels replaced by any int16."""
    rng = np.random.default_rng(seed)
    indexes = rng.integers(0, table_set.count, shape, dtype=np.uint8)
    symbols = np.zeros(shape, dtype=np.int16)
    for i in range(table_set.count):
        where = indexes == i
        edges = np.cumsum(table_set.frequencies(i).astype(np.int64))
        drawn = np.searchsorted(edges, rng.integers(0, 1 << 14, int(where.sum())), side="right")
        values = table_set.first_symbol(i) + drawn
        symbols[where] = np.where(drawn == len(edges) - 1, rng.integers(-32768, 32768, len(drawn)), values)
    return Pass(torch.from_numpy(symbols), torch.from_numpy(indexes), table_set)


@pytest.mark.parametrize("lanes, streams", [(1, 1), (2, 3), (8, 1), (16, 2), (32, 1), (32, 5)])
def test_slow_decoder_agrees(lanes, streams):
    tile = [table_pass((7, 11), HYPER), gaussian_pass((23, 9), 1, escapes=0.05), gaussian_pass((22, 9), 2, 0, 20)]
    [payload] = encode([tile], lanes=lanes, streams=streams)
    decoded = slow_decode(payload, list(map(distributions, tile)))
    for item, symbols in zip(tile, decoded, strict=True):
        np.testing.assert_array_equal(symbols, item.symbols.numpy())


# ----------------------------------------------------------------------------------------------------------------------
# Round trips


TILES = {
    "hyper and two halves": [
        table_pass((13, 10), HYPER),
        gaussian_pass((100, 37), 1),
        gaussian_pass((101, 37), 2, 0, 20),
    ],
    "escapes everywhere": [gaussian_pass((60, 31), 3, 1, 64, escapes=1.0), table_pass((50, 8), HYPER, 4)],
    "almost all skipped": [gaussian_pass((300, 16), 5, 0, 2)],
    "all skipped": [Pass(torch.zeros(40, 8, dtype=torch.int16), torch.zeros(40, 8, dtype=torch.uint8), GAUSSIAN)] * 2,
    "sizes around a vector": [
        gaussian_pass((1, n), n, 1, 40) for n in (1, 7, 8, 9, 15, 16, 17, 31, 32, 33, 63, 64, 65)
    ],
    "empty passes": [gaussian_pass((0, 5)), gaussian_pass((3, 0)), gaussian_pass((5, 5), 6), gaussian_pass((0, 0))],
    "no passes": [],
    "wide tables": [table_pass((90, 20), WIDE, 7), gaussian_pass((9, 20), 8)],
    "tables apart": [table_pass((70, 30), APART, 9), table_pass((80, 7), LOWEST, 10), table_pass((75, 9), HIGHEST, 11)],
    "one very likely symbol": [
        Pass(torch.zeros(900, 9, dtype=torch.int16), torch.ones(900, 9, dtype=torch.uint8), GAUSSIAN)
    ],
}


@pytest.mark.parametrize("name", TILES)
@pytest.mark.parametrize("lanes", [1, 2, 4, 8, 16, 32])
def test_round_trip(name, lanes):
    for streams in (1, 2, 7, 64):
        assert_round_trip(TILES[name], lanes=lanes, streams=streams)


@pytest.mark.parametrize("name", TILES)
@pytest.mark.parametrize("preset", ["size", "latency"])
def test_round_trip_of_presets(name, preset):
    assert_round_trip(TILES[name], preset=preset)


def test_every_frequency():
    for start in range(1, 16384, 256):
        frequencies = range(start, min(start + 256, 16384))
        table_set = TableSet([(0, [f, 16384 - f]) for f in frequencies])
        symbols = torch.randint(0, 2, (64, len(frequencies)), dtype=torch.int16, generator=torch.manual_seed(start))
        indexes = torch.arange(len(frequencies)).to(torch.uint8).expand(symbols.shape).contiguous()
        assert_round_trip([Pass(symbols, indexes, table_set)], lanes=32, streams=1)


def test_the_division_of_the_simd_twins():
    """rans.h's estimate of x / f, at the greatest and the least x of a quotient, is the quotient or one less."""
    rng = np.random.default_rng(0)
    for f in range(1, 16385):
        quotients = np.concatenate([[0, 1, 2, (1 << 18) - 2, (1 << 18) - 1], rng.integers(1 << 17, 1 << 18, 20)])
        x = (quotients[:, None] * f + [0, f - 1]).astype(np.uint32)
        inverse = np.float32(1) / np.float32(f)
        # The product of two float32, less 1/16, is exact in float64: the sum then rounds once, as a fused one does.
        estimate = (x.astype(np.float32).astype(np.float64) * np.float64(inverse) - 0.0625).astype(np.float32)
        short = quotients[:, None] - np.trunc(estimate).astype(np.int64)
        assert ((short == 0) | (short == 1)).all(), f


def test_most_streams():
    tile = [gaussian_pass((70000, 1), 1, 1, 30)]
    assert_round_trip(tile, lanes=1, streams=65535)


def test_random_tiles():
    rng = np.random.default_rng(9)
    for trial in range(60):
        tile = []
        for p in range(rng.integers(1, 4)):
            shape = tuple(rng.integers(0, 60, 2))
            kind = rng.integers(3)
            if kind == 0:
                tile.append(table_pass(shape, HYPER, 100 * trial + p))
            elif kind == 1:
                tile.append(gaussian_pass(shape, 100 * trial + p, 0, rng.integers(1, 65), rng.choice([0, 0.01, 0.3])))
            else:
                tile.append(table_pass(shape, WIDE, 100 * trial + p))
        assert_round_trip(tile, lanes=int(2 ** rng.integers(6)), streams=int(rng.integers(1, 65)))


def test_batch_is_independent_of_its_company():
    tiles = [[gaussian_pass((n, 12), n), gaussian_pass((n + 1, 12), n + 1)] for n in (0, 1, 50, 333, 2000)]
    together = encode(tiles, threads=2)
    assert together == [encode([tile])[0] for tile in tiles]
    for isa in ISAS:
        for tile, decoded in zip(tiles, decode_all(together, tiles, isa=isa, threads=2), strict=True):
            assert all(torch.equal(symbols, item.symbols) for item, symbols in zip(tile, decoded, strict=True))
    assert encode([]) == []
    assert Decoder([]).decode([], GAUSSIAN) == []


def test_many_elements_take_several_threads():
    tiles = [[gaussian_pass((3000, 64), seed, 0, 40)] for seed in range(3)]
    payloads = encode(tiles, preset="latency", threads=1)
    assert payloads == encode(tiles, preset="latency", threads=4)
    assert any(Decoder(payloads).shape(t)[1] > 1 for t in range(3))
    for tile, decoded in zip(tiles, decode_all(payloads, tiles, threads=4), strict=True):
        assert torch.equal(decoded[0], tile[0].symbols)


def test_int32_symbols_are_the_same_as_int16():
    item = gaussian_pass((40, 30), 1, escapes=0.1)
    wide = item._replace(symbols=item.symbols.to(torch.int32))
    assert encode([[wide]]) == encode([[item]])
    assert cost_bits(wide) == cost_bits(item)


def test_another_default_device():
    """Of no meaning for tensors that are given: a decoder's own stay on the CPU."""
    item = gaussian_pass((40, 30), 12)
    means, gain = torch.ones(40, 30, dtype=torch.int16), torch.ones(30)
    [payload] = encode([[item, item]])
    latents = torch.zeros(8, 10, 30)
    with torch.device("meta"):
        assert encode([[item, item]]) == [payload]
        decoder = Decoder([payload])
        [symbols] = decoder.decode([item.indexes], GAUSSIAN)
        [values] = decoder.reconstruct([item.indexes], GAUSSIAN, [means], 4, latents=Latents([latents], gain))
        decoder.finish()
    assert torch.equal(symbols, item.symbols)
    assert torch.equal(values, item.symbols * 16 + 1)
    assert torch.equal(latents[0, 0], values[0].float())


def test_payload_types_and_later_changes_of_them():
    item = gaussian_pass((40, 30), 1)
    [payload] = encode([[item]])
    store = bytearray(b"xyz" + payload)
    for given in (payload, store[3:], memoryview(store)[3:]):
        decoder = Decoder([given])
        store[3:] = bytes(len(payload))
        [symbols] = decoder.decode([item.indexes], GAUSSIAN)
        store[3:] = payload
        decoder.finish()
        assert torch.equal(symbols, item.symbols)


def test_several_python_threads_at_once():
    tile = [gaussian_pass((500, 64), 1), gaussian_pass((500, 64), 2)]
    [payload] = encode([tile])

    def work(_: int) -> None:
        for _ in range(10):
            [decoded] = decode_all([payload], [tile], threads=2)
            assert encode([tile]) == [payload]
            assert torch.equal(decoded[1], tile[1].symbols)

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(work, range(4)))


def test_the_bytes_are_these():
    """Pins the format: a change here is a change of every file that was ever written."""
    # No random generator: numbers that will be the same for ever.
    k = np.arange(6000, dtype=np.uint64).reshape(200, 30)
    noise = (k * np.uint64(2654435761) >> np.uint64(7)) % np.uint64(1009)
    indexes = (noise % np.uint64(64)).astype(np.uint8)
    symbols = ((noise.astype(np.int64) - 504) * np.where(indexes == 0, 0, indexes) // 4000).astype(np.int16)
    symbols[17, 3], indexes[17, 3] = -32768, 5
    item = Pass(torch.from_numpy(symbols), torch.from_numpy(indexes), GAUSSIAN)
    payloads = [
        encode([[item, item]], **options)[0] for options in ({}, {"preset": "latency"}, {"lanes": 16, "streams": 3})
    ]
    digests = [hashlib.sha256(payload).hexdigest()[:16] for payload in payloads]
    assert digests == ["21dae75089ff39cf", "b96c9f359c21fb97", "5b7fd30722eb27c2"]


# ----------------------------------------------------------------------------------------------------------------------
# Cost and shape


def test_cost_is_the_sum_over_the_tables():
    item = gaussian_pass((80, 50), 3, escapes=0.02)
    expected = 0
    for symbol, index in zip(item.symbols.flatten().tolist(), item.indexes.flatten().tolist(), strict=True):
        if index:
            frequencies = GAUSSIAN.frequencies(index)
            position = symbol - GAUSSIAN.first_symbol(index)
            inside = 0 <= position < len(frequencies) - 1
            frequency = int(frequencies[position if inside else -1])
            # Exact, since 2^14 / f is never within 2^-20 of a power of 2^(1/256) unless equal to it.
            expected += 14 * 256 - int(np.floor(256 * np.log2(np.longdouble(frequency)))) + (0 if inside else 16 * 256)
    assert cost_bits(item) == expected / 256


@pytest.mark.parametrize("isa", ISAS)
def test_cost_is_the_same_for_every_twin(isa, monkeypatch):
    item = gaussian_pass((1234, 77), 3, escapes=0.02)
    monkeypatch.setenv("FASTCODEC_ISA", "scalar")
    expected = cost_bits(item)
    monkeypatch.setenv("FASTCODEC_ISA", isa)
    assert cost_bits(item) == expected


def overhead(item: Pass, payload: bytes) -> float:
    return len(payload) * 8 / cost_bits(item) - 1


@pytest.mark.parametrize("rows", [1, 30, 300, 3000, 30000])
def test_presets_spend_what_they_say(rows):
    item = gaussian_pass((rows, 64), 1, 1, 30)
    [small], [fast] = encode([[item]]), encode([[item]], preset="latency")
    for payload, limit in ((small, 0.0025), (fast, 0.034)):
        # A single lane, the header and the coder's own loss (under 0.1 %) come on top.
        assert overhead(item, payload) < limit + 0.001 + 8 * 8 / cost_bits(item)
    lanes, streams = Decoder([small]).shape(0)
    fast_lanes, fast_streams = Decoder([fast]).shape(0)
    assert fast_lanes * fast_streams >= lanes * streams
    if len(fast) > 12500:
        assert fast_lanes * fast_streams >= 128
    if rows == 1:
        assert (lanes, streams) == (1, 1)
    if rows == 30000:
        assert lanes == 32
        assert streams > 1


def test_shape_overrides():
    item = gaussian_pass((100, 64), 1, 1, 30)
    for options, expected in [
        ({"lanes": 4, "streams": 9}, (4, 9)),
        ({"streams": 3}, (None, 3)),
        ({"lanes": 32}, (32, None)),
    ]:
        [payload] = encode([[item]], **options)
        shape = Decoder([payload]).shape(0)
        assert all(want in (None, got) for want, got in zip(expected, shape, strict=True))
        assert_round_trip([item], **options)


# ----------------------------------------------------------------------------------------------------------------------
# Errors


def test_symbols_outside_int16():
    item = gaussian_pass((4, 4), 1, 1, 30)
    for value in (32768, -32769, 1 << 30):
        symbols = item.symbols.to(torch.int32)
        symbols[2, 3] = value
        with pytest.raises(SymbolRangeError, match=r"tile 1, pass 1: .*int16"):
            encode([[item, item], [item, item._replace(symbols=symbols)]])
        with pytest.raises(SymbolRangeError):
            cost_bits(item._replace(symbols=symbols))


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("options", [{}, {"lanes": 32, "streams": 2}])
def test_a_symbol_where_nothing_is_coded(isa, options):
    item = gaussian_pass((50, 21), 1)
    row, column = np.argwhere(item.indexes.numpy() == 0)[-1]
    item.symbols[row, column] = 1
    with pytest.raises(SymbolRangeError, match=r"tile 0, pass 0: .*not coded"):
        encode([[item]], isa=isa, **options)


def test_indexes_without_a_table():
    item = gaussian_pass((50, 21), 1)
    [payload] = encode([[item]])
    item.indexes[49, 20] = 64
    with pytest.raises(ValueError, match=r"tile 0, pass 0: .*names no table"):
        encode([[item]])
    with pytest.raises(ValueError, match=r"tile 0: .*names no table"):
        Decoder([payload]).decode([item.indexes], GAUSSIAN)


def test_arguments():
    item = gaussian_pass((6, 4), 1)
    [payload] = encode([[item]])
    for bad, text in [
        (item._replace(symbols=item.symbols.float()), "symbols must be"),
        (item._replace(symbols=item.symbols[:5]), "symbols must be"),
        (item._replace(symbols=item.symbols.t().contiguous().t()), "not contiguous"),
        (item._replace(indexes=item.indexes.int()), "indexes must be"),
        (item._replace(symbols=item.symbols.view(-1), indexes=item.indexes.view(-1)), "indexes must be"),
    ]:
        with pytest.raises(ValueError, match=f"tile 0, pass 1: .*{text}"):
            encode([[item, bad]])
    for options in (
        {"preset": "tiny"},
        {"lanes": 3},
        {"lanes": 64},
        {"streams": 0},
        {"streams": 65536},
        {"threads": 0},
    ):
        with pytest.raises(ValueError):
            encode([[item]], **options)
    with pytest.raises(ValueError, match="instruction set"):
        encode([[item]], isa="mmx")
    with pytest.raises(ValueError, match="one index tensor"):
        Decoder([payload]).decode([], GAUSSIAN)
    with pytest.raises(ValueError, match="indexes must be"):
        Decoder([payload]).decode([item.indexes.long()], GAUSSIAN)


def test_instruction_set_by_environment(monkeypatch):
    monkeypatch.setenv("FASTCODEC_ISA", "no such")
    with pytest.raises(ValueError, match="no such"):
        encode([])
    monkeypatch.setenv("FASTCODEC_ISA", "scalar")
    assert _cpu_abi.isa_number(None) == 0
    assert _cpu_abi.isa_number(ISAS[-1]) == _cpu_abi.ISAS.index(ISAS[-1])


# ----------------------------------------------------------------------------------------------------------------------
# Corrupt payloads


def decode_error(payload: bytes, tile, isa="scalar") -> str | None:
    try:
        decode_all([payload], [tile], isa=isa)
    except CorruptStreamError as error:
        return str(error)
    return None


@pytest.mark.parametrize("lanes, streams", [(1, 1), (8, 2), (32, 2)])
def test_truncation_and_extension(lanes, streams):
    tile = [gaussian_pass((20, 9), 1, 1, 30, 0.02), gaussian_pass((20, 9), 2)]
    [payload] = encode([tile], lanes=lanes, streams=streams)
    for size in range(len(payload)):
        errors = {decode_error(payload[:size], tile, isa) for isa in ISAS}
        assert len(errors) == 1
        assert None not in errors, size
    for extra in (b"\0", b"\0\0", bytes(100)):
        assert decode_error(payload + extra, tile)


@pytest.mark.parametrize("lanes, streams", [(1, 1), (4, 2), (32, 1)])
def test_bit_flips(lanes, streams):
    """A flipped bit is an error, or makes the very bytes that other symbols have: those are for a CRC to notice."""
    tile = [gaussian_pass((30, 9), 1, 1, 30), gaussian_pass((30, 9), 2)]
    [payload] = encode([tile], lanes=lanes, streams=streams)
    unnoticed = 0
    for bit in range(8 * len(payload)):
        flipped = bytearray(payload)
        flipped[bit // 8] ^= 1 << bit % 8
        errors = {decode_error(bytes(flipped), tile, isa) for isa in ISAS}
        assert len(errors) == 1, bit
        if None in errors:
            [decoded] = decode_all([bytes(flipped)], [tile])
            others = [item._replace(symbols=symbols) for item, symbols in zip(tile, decoded, strict=True)]
            assert encode([others], lanes=lanes, streams=streams) == [bytes(flipped)], bit
            unnoticed += 1
    assert unnoticed <= 3


def test_causes_are_named():
    tile = [gaussian_pass((4, 4), 1, 1, 2)]
    state = (1 << 16).to_bytes(4, "little")
    for payload, cause in [
        (b"", "past the payload's end"),
        (b"\x06\x01\x00" + 64 * state, "reserved bits"),
        (b"\x08\x01\x00" + state, "reserved bits"),
        (b"\x00\x00" + state, "number of streams"),
        (b"\x00\x80\x80\x04" + state, "number of streams"),
        (b"\x00\x81\x00\x00" + state, "shortest form"),
        (b"\x00\x01\xff\xff\xff\xff\x7f" + state, "shortest form"),
        (b"\x00\x01\xff\xff\xff\xff\xff\x01" + state, "shortest form"),
        (b"\x00\x01\x00" + state[:3], "past the payload's end"),
        (b"\x00\x01\x01" + state, "past the payload's end"),
        (b"\x00\xff\xff\x03" + state, "past the payload's end"),
        (b"\x05\x02\x00\x00\xff\xff\xff\xff\x0f" + 64 * state, "past the payload's end"),
        (b"\x00\x01\x00" + state + b"\0", "within a word"),
        (b"\x00\x01\x00" + b"\xff\xff\0\0", "below its lower bound"),
        (b"\x00\x01\x00" + b"\x00\x12\x34\x56", "did not return"),
        (b"\x00\x01\x00" + state, "ran out of words"),
    ]:
        assert cause in str(decode_error(payload, tile)), payload
    [payload] = encode([tile])
    assert "words are left" in decode_error(payload + b"\0\0", tile)
    forged = bytearray(payload + b"\0\0")
    forged[2] = 1  # one escape
    assert "escapes are left" in decode_error(bytes(forged), tile)
    escaping = gaussian_pass((4, 4), 1, 1, 2)
    escaping.symbols[1, 1] = 999
    [payload] = encode([[escaping]])
    forged = bytearray(payload)
    forged[2] = 0
    assert "ran out of escapes" in decode_error(bytes(forged[:-2]), [escaping])


def test_an_error_names_its_tile_and_stays():
    item = gaussian_pass((40, 9), 1, 1, 30)
    good, bad = encode([[item]])[0], encode([[item]])[0][:-6]
    with pytest.raises(CorruptStreamError, match="tile 1: a section"):
        Decoder([good, b"\x05\x01\x00", good])
    decoder = Decoder([good, good, bad])
    with pytest.raises(CorruptStreamError, match="tile 2: a stream ran out of words"):
        decoder.decode([item.indexes] * 3, GAUSSIAN)
    with pytest.raises(CorruptStreamError, match="tile 2: a stream ran out of words"):
        decoder.finish()
    with pytest.raises(CorruptStreamError, match="tile 0"):
        Decoder([good]).finish()


def test_what_a_forged_header_may_allocate():
    """A few bytes that declare 65535 streams of 2^32 words are refused before anything of that size is allocated."""
    resource = pytest.importorskip("resource")
    forged = [b"\x05\xff\xff\x03" + b"\xff\xff\xff\xff\x0f" * n for n in (1, 20, 60000)]
    for payload in forged:
        assert "past the payload's end" in str(decode_error(payload, []))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for _ in range(200):
        for payload in forged:
            assert decode_error(payload, [])
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 16 << 10  # KiB


# ----------------------------------------------------------------------------------------------------------------------
# Documents and constants


def test_errors_have_the_libraries_numbers():
    def members(header: str, name: str) -> list[str]:
        text = (Path(_cpu.__file__).parent / header).read_text("utf-8")
        body = re.search(rf"enum {name} : \w+ {{(.*?)}};", text, flags=re.DOTALL)[1]
        return re.findall(r"^\s*(k\w+)", body, flags=re.MULTILINE)

    def camel(status: _status.Status) -> str:
        return "kStatus" + status.name.title().replace("_", "")

    assert list(_status.Status) == list(range(len(_status.Status)))
    assert members("status.h", "Status") == [camel(status) for status in _status.Status]
    errors = members("rans.h", "Error")
    assert {
        errors.index("kIndexRange"): _status.Status.INDEX_RANGE,
        errors.index("kWeightsWrong"): _status.Status.WEIGHTS,
    } == _status._PARAMETER_ERRORS


def test_constants_have_one_home():
    constants = _cpu_abi.constants()
    assert constants["probability_bits"] == tables.PROBABILITY_BITS
    assert constants["max_tables"] == tables.MAX_TABLES
    assert constants == {
        "probability_bits": 14,
        "state_low": 1 << 16,
        "max_lanes": 32,
        "max_streams": 65535,
        "max_tables": 256,
        "escape_bits": 16,
    }


def test_example_of_the_documentation():
    assert doctest.testmod(fastcodec.rans).attempted > 5
    assert doctest.testmod(fastcodec.rans).failed == 0


def test_table_sets_travel():
    copy = pickle.loads(pickle.dumps(HYPER))
    assert copy == HYPER
    item = table_pass((20, 20), HYPER)
    assert encode([[item]]) == encode([[item._replace(tables=copy)]])


def test_operators_find_a_set_as_long_as_an_equal_one_lives():
    tables_of_one = [(0, [5, 2**14 - 5])]
    first, second = TableSet(tables_of_one), TableSet(tables_of_one)
    assert tables.find_tables(first.identity) == first == second
    del first
    gc.collect()
    item = Pass(torch.zeros(3, 4, dtype=torch.int16), torch.zeros(3, 4, dtype=torch.uint8), second)
    [payload] = encode([[item]])
    assert torch.equal(decode_all([payload], [[item]])[0][0], item.symbols)
    identity = second.identity
    del second, item
    gc.collect()
    with pytest.raises(LookupError, match="keep the TableSet while it is in use"):
        tables.find_tables(identity)


def test_tables_count_from_either_end():
    last = HYPER.count - 1
    assert HYPER.first_symbol(-1) == HYPER.first_symbol(last)
    assert np.array_equal(HYPER.frequencies(-2), HYPER.frequencies(last - 1))
    for method in (HYPER.first_symbol, HYPER.frequencies):
        for i in (last + 1, -last - 2):
            with pytest.raises(IndexError):
                method(i)


def test_decoding_in_a_compiled_function():
    """All passes of a tile in one graph, which serves every Decoder: it is compiled for the first, then for any."""
    shape = (12, 8)
    items = [gaussian_pass(shape, 1, 1), table_pass(shape, HYPER), gaussian_pass(shape, 2, 1)]
    ones = torch.ones(3, *shape)
    mixture = MixturePass(items[0].symbols, *quantise_mixtures(ones, ones, ones))
    counter = CompileCounterWithBackend("aot_eager")

    @torch.compile(backend=counter, fullgraph=True)
    def all_passes(decoder, first, second, means, third):
        [a] = decoder.decode([first], GAUSSIAN)
        [b] = decoder.decode([second], HYPER)
        [c] = decoder.decode_mixtures([mixture[1:]])
        [d] = decoder.reconstruct([third], GAUSSIAN, [means], 4)
        return a + b, c, d

    [payload] = encode([[items[0], items[1], mixture, items[2]]])
    for number in range(10):
        decoder = Decoder([payload])
        means = torch.full(shape, number, dtype=torch.int16)
        total, mixed, values = all_passes(decoder, items[0].indexes, items[1].indexes, means, items[2].indexes)
        decoder.finish()
        assert torch.equal(total, items[0].symbols + items[1].symbols)
        assert torch.equal(mixed, mixture.symbols)
        assert torch.equal(values, items[2].symbols.int() * 16 + number)
    assert counter.frame_count <= 2


@pytest.mark.filterwarnings("ignore:Dynamo::torch", "ignore:Graph break::torch")
def test_encoding_in_a_compiled_function():
    """The graph breaks there, as the result is bytes."""
    item = gaussian_pass((12, 8), 1, 1)

    @torch.compile(backend="aot_eager")
    def encoded(halves):
        # Not item._replace: PyTorch 2.11 loses the fields of what that gives where a graph breaks.
        return encode([[Pass(halves + halves, item.indexes, item.tables)]])

    halves = item.symbols // 2
    assert encoded(halves) == encode([[item._replace(symbols=halves + halves)]])
