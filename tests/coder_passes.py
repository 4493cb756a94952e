"""Passes for the entropy coder's tests, and what is done with them: round trips by all twins, and a slow decoder."""

import itertools
from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor

from fastcodec.entropy.gaussian import SCALES, gaussian_tables
from fastcodec.rans import Decoder, MixturePass, Pass, available_isas, encode

AnyPass = Pass | MixturePass
Tile = list[AnyPass]
#: The first symbol of an element and the edges of its entries, 0 to 2^14; None where nothing is coded.
Distribution = tuple[int, np.ndarray] | None


def gaussian_pass(shape, seed=0, lowest=0, highest=64, escapes=0.0) -> Pass:
    """Symbols of the Gaussians that their tables are for, index 0 skipped; a share of them, escapes, any int16.

    seed: a number, or a generator that goes on.
    """
    rng = np.random.default_rng(seed)
    indexes = rng.integers(lowest, highest, shape, dtype=np.uint8)
    symbols = np.rint(rng.normal(size=shape) * SCALES[indexes])
    if escapes:
        symbols = np.where(rng.random(shape) < escapes, rng.integers(-32768, 32768, shape), symbols)
    symbols[indexes == 0] = 0
    return Pass(torch.from_numpy(symbols.astype(np.int16)), torch.from_numpy(indexes), gaussian_tables())


def decode_column(
    decoder: Decoder,
    column: Sequence[AnyPass],
    put: Callable[[Tensor], Tensor] = lambda tensor: tensor,
    out: list[Tensor] | None = None,
) -> list[Tensor]:
    """The passes of equal number of all tiles, which are of one kind and have one table set."""
    if isinstance(column[0], MixturePass):
        return decoder.decode_mixtures([tuple(map(put, item[1:])) for item in column], out=out)
    return decoder.decode([put(item.indexes) for item in column], column[0].tables, out=out)


def decode_all(payloads: list[bytes], tiles: list[Tile], **options) -> list[list[Tensor]]:
    """Every pass of tiles whose passes of equal number are as `decode_column` wants them."""
    decoder = Decoder(payloads, **options)
    columns = [decode_column(decoder, column) for column in zip(*tiles, strict=True)]
    decoder.finish()
    return [[symbols[number] for symbols in columns] for number in range(len(tiles))]


def assert_round_trip(tile: Tile, **options) -> bytes:
    """All twins write the same bytes, read them back, and 1 and 2 threads agree."""
    [payload] = encode([tile], isa="scalar", threads=1, **options)
    for isa, threads in itertools.product(available_isas(), (1, 2)):
        assert encode([tile], isa=isa, threads=threads, **options) == [payload], (isa, threads)
        [decoded] = decode_all([payload], [tile], isa=isa, threads=threads)
        for item, symbols in zip(tile, decoded, strict=True):
            assert symbols.dtype == torch.int16
            assert symbols.shape == item.symbols.shape
            assert torch.equal(symbols, item.symbols.to(torch.int16)), (isa, threads)
    return payload


def distributions(item: Pass) -> list[list[Distribution]]:
    """Those of an indexed pass, [positions][channels]."""
    tables = item.tables
    every = [
        (tables.first_symbol(i), np.append(0, np.cumsum(tables.frequencies(i), dtype=int))) for i in range(tables.count)
    ]
    return [[every[i] if i or not tables.skip else None for i in row] for row in item.indexes.tolist()]


def slow_decode(payload: bytes, passes: list[list[list[Distribution]]]) -> list[np.ndarray]:
    """The symbols of passes that have these distributions: rans.h's rule, in plain Python, from its comment alone."""
    at = 0

    def varint() -> int:
        nonlocal at
        value = shift = 0
        while True:
            byte = payload[at]
            at += 1
            value |= (byte & 127) << shift
            shift += 7
            if byte < 128:
                return value

    assert payload[0] <= 5
    lanes = 1 << payload[0]
    at = 1
    streams = varint()
    escape_counts = [varint() for _ in range(streams)]
    word_counts = [varint() for _ in range(streams - 1)]
    states = np.frombuffer(payload, "<u4", streams * lanes, at).reshape(streams, lanes).tolist()
    at += 4 * streams * lanes
    word_counts.append((len(payload) - at) // 2 - sum(escape_counts) - sum(word_counts))
    values = np.frombuffer(payload, "<u2", -1, at).tolist()
    words = [values[sum(word_counts[:s]) : sum(word_counts[: s + 1])] for s in range(streams)]
    values = np.frombuffer(payload, "<i2", -1, at).tolist()[sum(word_counts) :]
    escapes = [values[sum(escape_counts[:s]) : sum(escape_counts[: s + 1])] for s in range(streams)]
    result = []
    for rows in passes:
        symbols = np.zeros((len(rows), len(rows[0])), dtype=np.int16)
        for s in range(streams):
            begin, end = s * len(rows) // streams, (s + 1) * len(rows) // streams
            flat = symbols[begin:end].reshape(-1)
            elements = enumerate(itertools.chain.from_iterable(rows[begin:end]))
            coded = ((k, *element) for k, element in elements if element is not None)
            # Advancing and refilling lane by lane is the same as step by step: each takes its word in lane order.
            for (k, first, edges), lane in zip(coded, itertools.cycle(range(lanes)), strict=False):
                state = states[s][lane]
                slot = state & 16383
                entry = int(np.searchsorted(edges, slot, side="right")) - 1
                start, stop = int(edges[entry]), int(edges[entry + 1])
                state = (stop - start) * (state >> 14) + slot - start
                if state < 1 << 16:
                    state = state << 16 | words[s].pop(0)
                states[s][lane] = state
                flat[k] = escapes[s].pop(0) if entry == len(edges) - 2 else first + entry
        result.append(symbols)
    assert not any(words)
    assert not any(escapes)
    assert all(state == 1 << 16 for stream in states for state in stream)
    return result
