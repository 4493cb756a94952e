"""CompressAI's entropy coding in plain Python, without our code: what tests compare `fastcodec.kernels.rans64` with.

Slow, and of trusted input only. The format: kernels/rans64/rans64.h.
"""

from __future__ import annotations

import struct

LOW = 1 << 31
Table = tuple[list[int], int]  # a CDF from 0, and the symbol of its first entry


def operations(symbol: int, table: Table) -> list[tuple[int, int, int]]:
    """What codes a symbol, in decoding order: (start, frequency, bits of probability) of each step."""
    cdf, offset = table
    last = len(cdf) - 2
    value = symbol - offset
    if 0 <= value < last:
        return [(cdf[value], cdf[value + 1] - cdf[value], 16)]
    raw = -2 * value - 1 if value < 0 else 2 * (value - last)
    nibbles = []
    while raw >> 4 * len(nibbles):
        nibbles.append(raw >> 4 * len(nibbles) & 15)
    return [(cdf[last], cdf[last + 1] - cdf[last], 16), *((digit, 1, 4) for digit in (len(nibbles), *nibbles))]


def encode(symbols: list[int], indexes: list[int], tables: list[Table]) -> bytes:
    steps = [step for symbol, index in zip(symbols, indexes, strict=True) for step in operations(symbol, tables[index])]
    state, words = LOW, []
    for start, frequency, bits in reversed(steps):
        if state >= frequency << (63 - bits):
            words.append(state & 0xFFFFFFFF)
            state >>= 32
        state = (state // frequency << bits) + state % frequency + start
    words += [state >> 32, state & 0xFFFFFFFF]
    return struct.pack(f"<{len(words)}I", *reversed(words))


def decode(stream: bytes, indexes: list[int], tables: list[Table]) -> list[int]:
    words = list(struct.unpack(f"<{len(stream) // 4}I", stream))
    state, at = words[0] | words[1] << 32, 2

    def advance(start: int, frequency: int, bits: int) -> None:
        nonlocal state, at
        state = frequency * (state >> bits) + (state & ((1 << bits) - 1)) - start
        if state < LOW:
            state, at = state << 32 | words[at], at + 1

    def nibble() -> int:
        digit = state & 15
        advance(digit, 1, 4)
        return digit

    symbols = []
    for index in indexes:
        cdf, offset = tables[index]
        entry = max(i for i in range(len(cdf) - 1) if cdf[i] <= state & 0xFFFF)
        advance(cdf[entry], cdf[entry + 1] - cdf[entry], 16)
        value = entry
        if entry == len(cdf) - 2:
            raw = sum(nibble() << 4 * i for i in range(nibble()))
            value = -(raw >> 1) - 1 if raw & 1 else entry + (raw >> 1)
        symbols.append(value + offset)
    assert state == LOW
    assert at == len(words)
    return symbols


def quantised_cdf(pmf: list[float], precision: int) -> list[int]:
    """Entry after entry that has nothing takes 1 from the least frequency above 1, the first one of these."""
    import numpy as np

    scaled = [float(np.float32(p) * np.float32(1 << precision)) for p in pmf]
    rounded = [int(p) + (p - int(p) >= 0.5) for p in scaled]  # halves away from 0
    frequencies = [(count << precision) // sum(rounded) for count in rounded]
    frequencies[-1] = (1 << precision) - sum(frequencies[:-1])
    for i in range(len(frequencies)):
        if frequencies[i] == 0:
            donor = min((f, j) for j, f in enumerate(frequencies) if f > 1)[1]
            frequencies[donor] -= 1
            frequencies[i] = 1
    return [sum(frequencies[:i]) for i in range(len(frequencies) + 1)]
