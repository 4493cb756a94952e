"""The entropy coder: speed of each instruction set, speed through tensors beside other coders, and what it loses.

`run()` returns the figures that bench/results/coder.json holds. All speeds are of one thread, in Msymbol/s.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import torch

from fastcodec.entropy.gaussian import SCALES, gaussian_tables
from fastcodec.rans import Decoder, Pass, available_isas, cost_bits, encode

from . import common, rivals

CHANNELS = 64
REPEATS = 15

# Which table indexes occur, each as often as the others and in random order. The bits follow from them.
MIXES = {
    "1..57": (1, 58),
    "1..48": (1, 49),
    "1..32": (1, 33),
    "1..20": (1, 21),
    "8": (8, 9),
    "0..24, 0 is skipped": (0, 25),
}
KODAK_SYMBOLS = 294_912  # latents of a Kodak image at M = 192

Measured = tuple[Callable[[], object], Callable[[], object], int]  # encoding, decoding, and the bytes of a pass


def draw(count: int, lowest: int, highest: int, seed: int = 0) -> Pass:
    """Symbols from the Gaussian of their table's scale."""
    rng = np.random.default_rng(seed)
    indexes = rng.integers(lowest, highest, (count // CHANNELS, CHANNELS), dtype=np.uint8)
    symbols = np.rint(rng.normal(size=indexes.shape) * SCALES[indexes]).astype(np.int16)
    symbols[indexes == 0] = 0
    return Pass(torch.from_numpy(symbols), torch.from_numpy(indexes), gaussian_tables())


def seconds(call: Callable[[], object], repeats: int = REPEATS) -> float:
    """Median processor time of a call, after one to warm up.

    Not the time of the clock: a machine with other work to do interrupts a long call more often than a short one, which
    would favour the faster coder. All that is measured here runs on the calling thread.
    """
    call()
    times = []
    for _ in range(repeats):
        start = time.thread_time()
        call()
        times.append(time.thread_time() - start)
    return float(np.median(times))


def decode_seconds(payload: bytes, item: Pass, isa: str, repeats: int = REPEATS) -> float:
    """Median time of a decoder's `decode`, into memory that is there already."""
    symbols = torch.empty_like(item.symbols)
    times = []
    for _ in range(repeats + 1):
        decoder = Decoder([payload], threads=1, isa=isa)
        start = time.thread_time()
        decoder.decode([item.indexes], item.tables, out=[symbols])
        times.append(time.thread_time() - start)
        decoder.finish()
    assert torch.equal(symbols, item.symbols)
    return float(np.median(times[1:]))


def native() -> list[dict]:
    """Speed of each instruction set on large tiles, one stream of 32 lanes (and of 8)."""
    rows = []
    table = common.table("Coder, Msymbol/s on one core", "indexes", "bits/symbol", "lanes", "twin", "encode", "decode")
    for name, (lowest, highest) in MIXES.items():
        item = draw(1 << 18, lowest, highest)
        count = item.symbols.numel()
        bits = cost_bits(item) / count
        for lanes in (32, 8):
            for isa in available_isas():
                [payload] = encode([[item]], lanes=lanes, streams=1, threads=1, isa=isa)
                encoding = seconds(partial(encode, [[item]], lanes=lanes, streams=1, threads=1, isa=isa))
                decoding = decode_seconds(payload, item, isa)
                row = {
                    "indexes": name,
                    "bits_per_symbol": bits,
                    "lanes": lanes,
                    "isa": isa,
                    "encode": count / encoding / 1e6,
                    "decode": count / decoding / 1e6,
                }
                rows.append(row)
                speeds = (f"{row['encode']:.0f}", f"{row['decode']:.0f}")
                table.add_row(name, f"{bits:.2f}", str(lanes), isa, *speeds)
    common.console.print(table)
    return rows


def _compressai_coder(item: Pass) -> Measured:
    compressai = rivals.load()
    model = compressai.entropy_models.GaussianConditional(None)
    model.update_scale_table(SCALES.tolist(), force=True)
    # Its tensors are [batch, channels, height, width]; shape does not matter to its coder.
    values = item.symbols.t().reshape(1, CHANNELS, -1, 1).float().contiguous()
    indexes = item.indexes.t().reshape(1, CHANNELS, -1, 1).int().contiguous()
    strings = model.compress(values, indexes)
    assert torch.equal(model.decompress(strings, indexes), values)
    return (
        lambda: model.compress(values, indexes),
        lambda: model.decompress(strings, indexes),
        sum(map(len, strings)),
    )


def _constriction_coder(item: Pass) -> Measured:
    import constriction

    symbols = item.symbols.flatten().int().numpy()
    means = np.zeros(symbols.size)
    scales = SCALES[item.indexes.flatten().numpy()]
    family = constriction.stream.model.QuantizedGaussian(-1024, 1024)

    def compress() -> np.ndarray:
        coder = constriction.stream.stack.AnsCoder()
        coder.encode_reverse(symbols, family, means, scales)
        return coder.get_compressed()

    words = compress()

    def decompress() -> np.ndarray:
        return constriction.stream.stack.AnsCoder(words).decode(family, means, scales)

    assert np.array_equal(decompress(), symbols)
    return compress, decompress, words.nbytes


def own_coder(item: Pass, preset: str) -> Measured:
    """Encoding, decoding, and the bytes of a pass, through the Python interface."""
    [payload] = encode([[item]], preset=preset, threads=1)

    def decompress() -> torch.Tensor:
        decoder = Decoder([payload], threads=1)
        [symbols] = decoder.decode([item.indexes], item.tables)
        decoder.finish()
        return symbols

    assert torch.equal(decompress(), item.symbols)
    return lambda: encode([[item]], preset=preset, threads=1), decompress, len(payload)


def tensors() -> list[dict]:
    """Tensors in, bytes out and back, as many symbols as a Kodak image has latents, beside other coders."""
    rows = []
    table = common.table(
        f"{KODAK_SYMBOLS} symbols through Python, Msymbol/s on one thread",
        "coder",
        "bits/symbol",
        "bytes",
        "encode",
        "decode",
        "× CompressAI",
    )
    for lowest, highest in ((1, 20), (1, 48)):
        item = draw(KODAK_SYMBOLS, lowest, highest, seed=1)
        bits = cost_bits(item) / KODAK_SYMBOLS
        coders: dict[str, Callable[[Pass], Measured]] = {
            "CompressAI": _compressai_coder,
            "constriction": _constriction_coder,
            "fastcodec, size": partial(own_coder, preset="size"),
            "fastcodec, latency": partial(own_coder, preset="latency"),
        }
        made = {}
        for name, make in coders.items():
            try:
                made[name] = make(item)
            except (common.CannotRunError, ImportError) as error:
                common.console.print(f"{name}: {error}")
        # In turns, so that what disturbs the machine disturbs all of them.
        times: dict[tuple[str, int], list[float]] = {(name, way): [] for name in made for way in (0, 1)}
        for _ in range(REPEATS):
            for (name, way), taken in times.items():
                taken.append(seconds(made[name][:2][way], 9 if name.startswith("fastcodec") else 1))
        speeds = {key: KODAK_SYMBOLS / float(np.median(taken)) / 1e6 for key, taken in times.items()}
        for name, (_, _, size) in made.items():
            row: dict[str, Any] = {
                "coder": name,
                "indexes": f"{lowest}..{highest - 1}",
                "bits_per_symbol": bits,
                "bytes": size,
                "encode": speeds[name, 0],
                "decode": speeds[name, 1],
            }
            ratio = "-"
            if "CompressAI" in made:
                row["encode_times_compressai"] = row["encode"] / speeds["CompressAI", 0]
                row["decode_times_compressai"] = row["decode"] / speeds["CompressAI", 1]
                ratio = f"{row['encode_times_compressai']:.1f} / {row['decode_times_compressai']:.1f}"
            rows.append(row)
            figures = (f"{bits:.2f}", str(row["bytes"]), f"{row['encode']:.1f}", f"{row['decode']:.1f}")
            table.add_row(name, *figures, ratio)
    common.console.print(table)
    return rows


def gaussian_bits(item: Pass) -> float:
    """The ideal code length under the Gaussians of the indexes, each probability at least 1e-9."""
    erfc = np.vectorize(math.erfc)
    k = np.abs(item.symbols.numpy().astype(np.float64)).ravel()
    scale = SCALES[item.indexes.numpy()].ravel() * math.sqrt(2)
    total = 0.0
    # One erfc a distinct pair of symbol and scale.
    pairs, counts = np.unique(np.stack([k, scale]), axis=1, return_counts=True)
    masses = (erfc((pairs[0] - 0.5) / pairs[1]) - erfc((pairs[0] + 0.5) / pairs[1])) / 2
    total -= float((counts * np.log2(np.maximum(masses, 1e-9))).sum())
    return total


def table_bits(item: Pass) -> float:
    """What the tables alone make of it: -log2 of each symbol's share, 16 bits more for an escape."""
    total = 0.0
    for index in np.unique(item.indexes.numpy()).tolist():
        frequencies = item.tables.frequencies(index)
        position = item.symbols.numpy()[item.indexes.numpy() == index] - item.tables.first_symbol(index)
        outside = (position < 0) | (position >= len(frequencies) - 1)
        position[outside] = len(frequencies) - 1
        total += float((14 - np.log2(frequencies[position])).sum()) + 16.0 * int(outside.sum())
    return total


def losses() -> list[dict]:
    """A long payload of one lane against the ideal, coder and tables together, at several rates."""
    rows = []
    table = common.table("Loss against the ideal Gaussian code length", "index", "bits/symbol", "tables", "payload")
    for index in (4, 6, 8, 12, 16, 24, 32, 48, 63):
        item = draw(1 << 21, index, index + 1, seed=index)
        ideal = gaussian_bits(item)
        [payload] = encode([[item]], lanes=1, streams=1)
        row = {
            "index": index,
            "bits_per_symbol": ideal / item.symbols.numel(),
            "tables_percent": 100 * (table_bits(item) / ideal - 1),
            "payload_percent": 100 * (8 * len(payload) / ideal - 1),
        }
        rows.append(row)
        percents = (f"{row['tables_percent']:.3f} %", f"{row['payload_percent']:.3f} %")
        table.add_row(str(index), f"{row['bits_per_symbol']:.3f}", *percents)
    common.console.print(table)
    return rows


def run() -> dict:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        return {"native": native(), "tensors": tensors(), "losses": losses()}
    finally:
        torch.set_num_threads(threads)
