"""CompressAI's coder: its bytes against a reference in plain Python, what it refuses, and lists and latents."""

from __future__ import annotations

import random

import numpy as np
import pytest
import torch
from rans64_reference import Table, decode, encode, quantised_cdf

from fastcodec.adapters import _ans
from fastcodec.errors import CorruptStreamError, SymbolRangeError
from fastcodec.kernels import rans64
from fastcodec.kernels.rans64 import latents

# What CompressAI 1.2.8 wrote: symbols, CDF, offset, stream.
RECORDED = [
    ([1, 2, -30, 30], [0, 100, 60000, 65536], -10, "02f27c11c4dc5b26b2eed5f5"),
    ([1 << 27], [0, 100, 60000, 65536], 0, "67f548eb05000000fcffff0f"),
    ([1] * 9, [0, 100, 60000, 65536], 0, "acdb871f01000000"),
    # Precision 12: the tables' sum is less than 2^16.
    ([1] * 40, [0, 100, 4000, 4096], 0, "f206f18d0300000088080450e70d7d2d4b0c212f3106296df40ae5d7"),
]


def tensor(values: list[int]) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.int32)


def made(tables: list[Table]) -> rans64.CdfTables:
    longest = max(len(cdf) for cdf, _ in tables)
    matrix = [cdf + [0] * (longest - len(cdf)) for cdf, _ in tables]
    return rans64.CdfTables.from_matrix(
        tensor(matrix), tensor([len(cdf) for cdf, _ in tables]), tensor([offset for _, offset in tables])
    )


def some_tables(rng: random.Random, count: int) -> list[Table]:
    tables = []
    for _ in range(count):
        ends = sorted(rng.sample(range(1, 1 << 16), rng.choice((1, 2, 5, 40, 700)) - 1))
        tables.append(([0, *ends, 1 << 16], rng.randrange(-60, 30)))
    return tables


def some_symbols(rng: random.Random, indexes: list[int], tables: list[Table]) -> list[int]:
    reach = (0, 1, 3, 20, 300, 1 << 20)
    symbols = []
    for index in indexes:
        cdf, offset = tables[index]
        outside = rng.choice(reach) if rng.random() < 0.1 else 0
        symbols.append(rng.randrange(offset - outside, offset + len(cdf) - 1 + outside))
    return symbols


@pytest.mark.parametrize("seed", range(60))
def test_bytes_of_the_reference(seed):
    rng = random.Random(seed)
    tables = some_tables(rng, rng.randrange(1, 9))
    indexes = [rng.randrange(len(tables)) for _ in range(rng.choice((0, 1, 2, 30, 400)))]
    symbols = some_symbols(rng, indexes, tables)
    expected = encode(symbols, indexes, tables)
    assert decode(expected, indexes, tables) == symbols
    assert rans64.encode([[(tensor(symbols), tensor(indexes), made(tables))]]) == [expected]
    [decoded] = rans64.decode([expected], [tensor(indexes)], made(tables))
    assert decoded.tolist() == symbols


@pytest.mark.parametrize("symbols, cdf, offset, stream", RECORDED)
def test_bytes_that_compressai_wrote(symbols, cdf, offset, stream):
    indexes, tables = [0] * len(symbols), [(cdf, offset)]
    assert encode(symbols, indexes, tables).hex() == stream
    assert rans64.encode([[(tensor(symbols), tensor(indexes), made(tables))]])[0].hex() == stream
    assert rans64.decode([bytes.fromhex(stream)], [tensor(indexes)], made(tables))[0].tolist() == symbols


def test_nothing_is_a_state():
    [stream] = rans64.encode([[]])
    assert stream == (1 << 31).to_bytes(8, "little")
    rans64.StreamDecoder(stream).finish()


def test_symbols_far_outside_their_table():
    """The farthest are those that CompressAI's decoder holds in its 32 bits."""
    tables = [([0, 9, 20000, 65536], 7), ([0, 65536], -3)]
    reach = 1 << 30
    symbols, indexes = [7 - reach, 9 + reach - 1, -3 - reach, -3 + reach - 1], [0, 0, 1, 1]
    stream = encode(symbols, indexes, tables)
    assert rans64.encode([[(tensor(symbols), tensor(indexes), made(tables))]]) == [stream]
    assert rans64.decode([stream], [tensor(indexes)], made(tables))[0].tolist() == symbols
    for symbol in (6 - reach, 9 + reach, -(1 << 31), (1 << 31) - 1):
        for call in (lambda *part: rans64.encode([[part]]), rans64.check):
            with pytest.raises(SymbolRangeError, match="symbol 1"):
                call(tensor([8, symbol]), tensor([0, 0]), made(tables))


def test_parts_of_a_stream_are_one_stream():
    rng = random.Random(1)
    first, second = some_tables(rng, 3), some_tables(rng, 5)
    parts, symbols = [], []
    for tables in (first, second, first):
        indexes = [rng.randrange(len(tables)) for _ in range(50)]
        symbols.append(some_symbols(rng, indexes, tables))
        parts.append((tensor(symbols[-1]), tensor(indexes), made(tables)))
    [stream] = rans64.encode([parts])
    shifted = [index + len(first) * (number == 1) for number, part in enumerate(parts) for index in part[1].tolist()]
    assert stream == encode([symbol for part in symbols for symbol in part], shifted, first + second)
    decoder = rans64.StreamDecoder(stream)
    assert [decoder.decode(indexes, tables).tolist() for _, indexes, tables in parts] == symbols
    decoder.finish()


def test_threads_change_nothing():
    rng = random.Random(2)
    tables = some_tables(rng, 4)
    streams = []
    for count in (0, 7, 30000, 5, 20000):
        indexes = [rng.randrange(4) for _ in range(count)]
        streams.append([(tensor(some_symbols(rng, indexes, tables)), tensor(indexes), made(tables))])
    encoded = rans64.encode(streams, threads=1)
    assert rans64.encode(streams, threads=4) == encoded
    for threads in (1, 4):
        decoded = rans64.decode(encoded, [part[1] for [part] in streams], made(tables), threads=threads)
        assert all(torch.equal(symbols, part[0]) for symbols, [part] in zip(decoded, streams, strict=True))
    with pytest.raises(ValueError):
        rans64.encode(streams, threads=0)


@pytest.mark.parametrize(
    "cdf",
    [
        [0],
        [],
        [0, 0],
        [1, 65536],
        [0, 5, 5, 65536],
        [0, 9, 5, 65536],
        [0, -5, 65536],
        [0, 70000],
        [0, 3, 65537],
        [-1, 65536],
    ],
)
def test_malformed_cdfs_are_refused(cdf):
    with pytest.raises(ValueError):
        rans64.CdfTables.from_matrix(
            tensor([[0, 7, 65536, 0], (cdf + [0] * 4)[:4]]), tensor([3, len(cdf)]), tensor([0, 0])
        )


def test_tables_of_wrong_shape_are_refused():
    cdf = tensor([[0, 7, 65536]])
    for lengths, offsets in (([4], [0]), ([3, 3], [0, 0]), ([3], [0, 0]), ([-1], [0]), ([3], [(1 << 31) - 1])):
        with pytest.raises(ValueError):
            rans64.CdfTables.from_matrix(cdf, tensor(lengths), tensor(offsets))
    with pytest.raises(ValueError):
        rans64.CdfTables(cdf.flatten(), torch.tensor([1]), tensor([3]), tensor([0]))
    with pytest.raises(ValueError):
        rans64.CdfTables(cdf.flatten(), torch.tensor([-1]), tensor([3]), tensor([0]))


def test_tables_know_their_matrix():
    cdf, lengths, offsets = tensor([[0, 7, 65536, 0], [0, 1, 2, 65536]]), tensor([3, 4]), tensor([0, -5])
    tables = rans64.CdfTables.from_matrix(cdf, lengths, offsets)
    assert tables.are_of_matrix(cdf, lengths, offsets)
    for other in (
        (cdf[:1], lengths[:1], offsets[:1]),
        (cdf[:, :3].contiguous(), lengths, offsets),
        (cdf + tensor([[0, 1, 0, 0], [0, 0, 0, 0]]), lengths, offsets),
        (cdf, tensor([3, 3]), offsets),
        (cdf, lengths, tensor([0, -4])),
    ):
        assert not tables.are_of_matrix(*other)


@pytest.mark.parametrize("index", [-1, 2, 1 << 30, -(1 << 31)])
def test_indexes_that_name_no_table(index):
    tables = made([([0, 7, 65536], 0), ([0, 9, 65536], 0)])
    symbols, indexes = tensor([0, 0, 0]), tensor([0, 1, 1])
    [stream] = rans64.encode([[(symbols, indexes, tables)]])
    bad = tensor([0, 1, index])
    with pytest.raises(ValueError, match="symbol 2: the index names no table"):
        rans64.encode([[(symbols, bad, tables)]])
    decoder = rans64.StreamDecoder(stream)
    with pytest.raises(ValueError, match="symbol 2: the index names no table"):
        decoder.decode(bad, tables)
    assert decoder.decode(indexes, tables).tolist() == [0, 0, 0]  # it stayed where it was
    decoder.finish()


def test_tensors_that_do_not_fit():
    tables = made([([0, 7, 65536], 0)])
    good = tensor([0, 0])
    for symbols, indexes in ((good, good[:1]), (good.long(), good), (good, good.float())):
        with pytest.raises(ValueError):
            rans64.encode([[(symbols, indexes, tables)]])
    with pytest.raises(ValueError, match="contiguous"):
        rans64.encode([[(torch.zeros(4, dtype=torch.int32)[::2], good, tables)]])


@pytest.fixture(scope="module")
def stream():
    rng = random.Random(5)
    tables = some_tables(rng, 4)
    indexes = [rng.randrange(4) for _ in range(60)]
    symbols = some_symbols(rng, indexes, tables)
    return encode(symbols, indexes, tables), tensor(indexes), made(tables)


def test_every_truncation_raises(stream):
    """CompressAI's issue 300: a stream that ends too early ends the process, or gives what lies behind it in memory."""
    data, indexes, tables = stream
    for length in range(len(data)):
        with pytest.raises(CorruptStreamError, match="stream 0: corrupt"):
            rans64.decode([data[:length]], [indexes], tables)
    for extra in (b"\0", b"\0\0\0\0"):
        with pytest.raises(CorruptStreamError):
            rans64.decode([data + extra], [indexes], tables)
    for count in (0, len(indexes) - 1):
        with pytest.raises(CorruptStreamError, match="not at its end"):
            rans64.decode([data], [indexes[:count]], tables)


def test_every_flipped_bit_raises():
    """Without escapes. The bits of an escape's nibbles are its alone: nothing else depends on them."""
    rng = random.Random(6)
    tables = some_tables(rng, 4)
    indexes = [index for index in (rng.randrange(4) for _ in range(90)) if len(tables[index][0]) > 2]
    symbols = [rng.randrange(tables[i][1], tables[i][1] + len(tables[i][0]) - 2) for i in indexes]
    data = encode(symbols, indexes, tables)
    for bit in range(8 * len(data)):
        damaged = bytearray(data)
        damaged[bit // 8] ^= 1 << bit % 8
        with pytest.raises(CorruptStreamError):
            rans64.decode([bytes(damaged)], [tensor(indexes)], made(tables))


def test_a_failed_stream_gives_nothing_more(stream):
    data, indexes, tables = stream
    decoder = rans64.StreamDecoder(data[:-4])
    with pytest.raises(CorruptStreamError, match="ends too early"):
        decoder.decode(indexes, tables)
    for call in (lambda: decoder.decode(indexes[:1], tables), decoder.finish):
        with pytest.raises(CorruptStreamError, match="earlier call"):
            call()


def test_the_stream_that_failed_is_named(stream):
    data, indexes, tables = stream
    with pytest.raises(CorruptStreamError, match="stream 2") as caught:
        rans64.decode([data, data, data[:-4], data[:-8]], [indexes] * 4, tables, threads=2)
    assert caught.value.tile == 2


def words(state: int, *more: int) -> bytes:
    return state.to_bytes(8, "little") + b"".join(word.to_bytes(4, "little") for word in more)


def test_states_and_escapes_that_no_encoder_writes():
    for state in (0, (1 << 31) - 1, 1 << 63, (1 << 64) - 1):
        with pytest.raises(CorruptStreamError, match="does not begin"):
            rans64.StreamDecoder(words(state))
    rans64.StreamDecoder(words((1 << 63) - 1))
    only_escapes, one = made([([0, 65536], 0)]), tensor([0])
    for state, word in (
        (0xF00000000 | 9, 0),  # nine nibbles
        (0xF00000000 | 15, 0),  # 15, which would go on
        (7 << 60 | 8, 15),  # eight nibbles, the last one too large
    ):
        with pytest.raises(CorruptStreamError, match="an escape is no symbol"):
            rans64.StreamDecoder(words(state, word)).decode(one, only_escapes)
    assert rans64.StreamDecoder(words(7 << 60 | 8, 7)).decode(one, only_escapes).tolist() == [7 << 27]
    for offset, state in (((1 << 31) - 9, 0xF00000FE2), (-(1 << 31), 0xF00000011)):
        with pytest.raises(CorruptStreamError, match="an escape is no symbol"):
            rans64.StreamDecoder(words(state, 15)).decode(one, made([([0, 65536], offset)]))
    with pytest.raises(CorruptStreamError, match="leaves its tables"):
        rans64.StreamDecoder(words(1 << 40 | 4096)).decode(one, made([([0, 100, 4096], 0)]))


@pytest.mark.parametrize("seed", range(40))
def test_quantised_cdfs(seed):
    rng = np.random.default_rng(seed)
    precision = int(rng.integers(8, 18))
    pmf = (rng.random(int(rng.integers(1, 200))) ** rng.integers(1, 40)).astype(np.float32)
    pmf[rng.random(pmf.size) < 0.2] = 0
    pmf[0] += 1e-3
    assert rans64.quantise_pmf(pmf, precision).tolist() == quantised_cdf(pmf.tolist(), precision)


def test_halves_round_away_from_zero():
    """Three halves make [1, 1, 1]: 85, 85 and the rest of 2^8; rounded to even they would be [0, 0, 0]."""
    pmf = np.full(3, 0.5 / 256, dtype=np.float32)
    assert rans64.quantise_pmf(pmf, 8).tolist() == quantised_cdf(pmf.tolist(), 8) == [0, 85, 170, 256]


@pytest.mark.parametrize(
    "pmf, precision",
    [
        ([], 16),
        ([0, 0], 16),
        ([-1, 2], 16),
        ([np.nan, 1], 16),
        ([np.inf], 16),
        ([1] * 5, 2),
        ([1e20, 1], 16),
        ([1], -1),
        ([1], 31),
        ([4e4, 4e4], 16),
    ],
)
def test_probabilities_that_are_none(pmf, precision):
    with pytest.raises(ValueError):
        rans64.quantise_pmf(np.array(pmf, dtype=np.float32), precision)


class Integer:
    def __index__(self) -> int:
        return 5


def test_lists():
    values = [0, -1, 255, 256, 257, -5, -6, (1 << 31) - 1, -(1 << 31), 1 << 30, -(1 << 30)]
    assert _ans._integers(values).tolist() == values
    assert _ans._integers([]).shape == (0,)
    mixed = [True, 3, Integer(), np.int64(-7), np.uint8(9), torch.tensor(4)]
    assert _ans._integers(mixed).tolist() == [1, 3, 5, -7, 9, 4]
    assert _ans._integers(tuple(values)).tolist() == values
    assert _ans._integers(np.array(values)).tolist() == values
    for wrong in (1 << 31, -(1 << 31) - 1, 1 << 70):
        with pytest.raises(ValueError):
            _ans._integers([1, wrong])
    for wrong in ([1, 2.0], [None], "12", b"12", 5, iter([1]), [[1]]):
        with pytest.raises(TypeError):
            _ans._integers(wrong)


@pytest.mark.parametrize("count", [0, 1, 7, 4096, 4097, 10001])
@pytest.mark.parametrize("with_means", [True, False])
def test_latents(count, with_means):
    rng = np.random.default_rng(count)
    y = torch.from_numpy((rng.integers(-65536, 65534, count) / 2).astype(np.float32))
    y[: count // 3] = torch.from_numpy((rng.integers(-60, 60, count) / 4).astype(np.float32))[: count // 3]
    means = torch.from_numpy((rng.integers(-3, 3, count) / 8).astype(np.float32)) if with_means else None
    y = y.clamp(-32000, 32000)
    indexes = torch.from_numpy(rng.integers(0, 300, count).astype(np.int32))
    ours, reference = (f(y, means, indexes, 300) for f in (latents.quantise, latents.quantise_reference))
    assert all(map(torch.equal, ours, reference))
    assert [part.dtype for part in ours] == [torch.int16, torch.uint8]


@pytest.mark.parametrize(
    "value, index, fits",
    [(32767.5, 0, False), (32767.4, 9, True), (-32768.5, 9, True), (-32768.6, 9, False), (1e30, 0, False),
     (float("nan"), 0, False), (float("-inf"), 0, False), (0, 10, False), (0, -1, False), (0, 9, True)],
)  # fmt: skip
@pytest.mark.parametrize("place", [0, 5000])
def test_latents_that_do_not_fit(value, index, fits, place):
    y, indexes = torch.zeros(5001), torch.zeros(5001, dtype=torch.int32)
    y[place], indexes[place] = value, index
    ours, reference = (f(y, None, indexes, 10) for f in (latents.quantise, latents.quantise_reference))
    assert (ours is not None) == (reference is not None) == fits
    if fits:
        assert all(map(torch.equal, ours, reference))


@pytest.mark.parametrize("shape", [(1, 1, 1), (2, 3, 17), (3, 5, 0), (0, 2, 4), (1, 192, 33)])
def test_rows_of_latents(shape):
    rng = np.random.default_rng(shape[1])
    y = torch.from_numpy((rng.integers(-400, 400, shape) / 4).astype(np.float32))
    means = torch.from_numpy((rng.integers(-9, 9, (shape[1], 1)) / 8).astype(np.float32))
    ours, reference = (f(y, means) for f in (latents.quantise_rows, latents.quantise_rows_reference))
    assert torch.equal(ours, reference)
    assert ours.dtype == torch.int16
    for value in (32768.0 + 3, float("nan")) if y.numel() else ():
        y[-1, -1, -1] = value
        assert latents.quantise_rows(y, means) is latents.quantise_rows_reference(y, means) is None


def test_the_default_device_is_not_the_coder_s():
    """It writes to addresses: with PyTorch's default on a GPU, a new tensor there would end the process."""
    y, means, indexes = torch.randn(2, 3, 5), torch.randn(3, 1), torch.zeros(30, dtype=torch.int32)
    cdf, length, offset = tensor([[0, 100, 60000, 65536]]), tensor([4]), tensor([0])
    symbols = tensor([1] * 30)
    with torch.device("meta"):  # nothing there has an address
        tables = rans64.CdfTables.from_matrix(cdf, length, offset)
        (stream,) = rans64.encode([[(symbols, indexes, tables)]])
        (decoded,) = rans64.decode([stream], [indexes], tables)
        made = [rans64.quantise_pmf(np.ones(3)), _ans._integers([3, 1]), _ans._integers((3, 1))]
        made += [latents.quantise_rows(y, means), *latents.quantise(y.view(-1), None, indexes, 1)]
    assert torch.equal(decoded, symbols)
    assert made[0].tolist() == [0, 21845, 43690, 65536]
    assert made[1].tolist() == made[2].tolist() == [3, 1]
    assert torch.equal(made[3], torch.round(y - means).to(torch.int16))
    assert torch.equal(made[4], torch.round(y).to(torch.int16).view(-1))


def test_constants_are_as_documented():
    from fastcodec.kernels.rans64 import _library

    assert _library.constants() == {
        "probability_bits": 16,
        "state_low": 1 << 31,
        "bypass_bits": 4,
        "max_raw": (1 << 31) - 1,
    }
