"""CompressAI's models on our coders: its own entropy coding beside the adapter's two modes, in one run.

`run()` returns the figures that bench/results/compressai.json holds. Times are medians of processor time on one thread,
taken in turns: what disturbs the machine disturbs all of them. More threads help only ours, which code an image each.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from types import ModuleType
from typing import NamedTuple

import numpy as np
import torch

from fastcodec.adapters import compressai as adapter

from . import common, rivals

REPEATS = 15
LATENTS = (192, 32, 48)  # of a Kodak image at M = 192
SCALES = np.exp(np.linspace(np.log(0.11), np.log(256), 64)).tolist()  # those of CompressAI's zoo

# What is done with CompressAI before its models are timed.
MODES: dict[str, Callable[[], AbstractContextManager]] = {
    "CompressAI": nullcontext,
    "compatible": partial(adapter.install, "compatible"),
    "native": partial(adapter.install, "native"),
}


class Subject(NamedTuple):
    """An entropy model with something to compress: compress() gives the strings, decompress(strings) the tensor."""

    name: str
    symbols: int
    compress: Callable[[], list[bytes]]
    decompress: Callable[[list[bytes]], torch.Tensor]


def gaussian(compressai: ModuleType, name: str, images: int, levels: tuple[int, int]) -> Subject:
    """Latents of that many images, each scale of the levels as often as the others."""
    model = compressai.entropy_models.GaussianConditional(None)
    model.update_scale_table(SCALES, force=True)
    rng = torch.Generator().manual_seed(1)
    shape = (images, *LATENTS)
    indexes = torch.randint(*levels, shape, dtype=torch.int32, generator=rng)
    means = torch.randn(shape, generator=rng) * 5
    y = torch.randn(shape, generator=rng) * model.scale_table[indexes.long()] + means
    return Subject(
        name, y.numel(), lambda: model.compress(y, indexes, means), lambda s: model.decompress(s, indexes, means=means)
    )


def factorised(compressai: ModuleType, name: str, shape: tuple[int, int, int]) -> Subject:
    """Latents of an image under a factorised prior, as it is initialised."""
    torch.manual_seed(1)
    model = compressai.entropy_models.EntropyBottleneck(shape[0])
    model.update(force=True)
    x = torch.randn(1, *shape) * 3
    return Subject(name, x.numel(), lambda: model.compress(x), lambda s: model.decompress(s, shape[1:]))


def together(name: str, *subjects: Subject) -> Subject:
    """All that is coded of one image."""

    def compress() -> list[bytes]:
        return [string for subject in subjects for string in subject.compress()]

    def decompress(strings: list[bytes]) -> torch.Tensor:
        pairs = zip(subjects, strings, strict=True)
        return torch.cat([subject.decompress([string]).flatten() for subject, string in pairs])

    return Subject(name, sum(subject.symbols for subject in subjects), compress, decompress)


def medians(calls: dict[str, Callable[[], object]]) -> dict[str, float]:
    """Seconds of each mode's call, taken in turns."""
    times: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(REPEATS):
        for name, call in calls.items():
            with MODES[name]():
                call()  # makes tables
                start = time.thread_time()
                call()
                often = max(1, min(20, int(0.01 / max(time.thread_time() - start, 1e-6))))
                start = time.thread_time()
                for _ in range(often):
                    call()
                times[name].append((time.thread_time() - start) / often)
    return {name: float(np.median(taken)) for name, taken in times.items()}


def entropy_models(subjects: list[Subject]) -> list[dict]:
    """Tensors to strings and back through EntropyModel.compress and decompress."""
    rows = []
    table = common.table(
        "EntropyModel.compress / decompress, one thread",
        "what",
        "coder",
        "bytes",
        "compress, ms",
        "decompress, ms",
        "× CompressAI",
    )
    for subject in subjects:
        strings, values = {}, {}
        for mode, installed in MODES.items():
            with installed():
                strings[mode] = subject.compress()
                values[mode] = subject.decompress(strings[mode])
        assert strings["compatible"] == strings["CompressAI"]
        assert all(torch.equal(value, values["CompressAI"]) for value in values.values())
        encoding = medians({mode: subject.compress for mode in MODES})
        decoding = medians({mode: partial(subject.decompress, strings[mode]) for mode in MODES})
        for mode in MODES:
            row = {
                "what": subject.name,
                "symbols": subject.symbols,
                "coder": mode,
                "bytes": sum(map(len, strings[mode])),
                "compress_ms": 1e3 * encoding[mode],
                "decompress_ms": 1e3 * decoding[mode],
                "compress_times_compressai": encoding["CompressAI"] / encoding[mode],
                "decompress_times_compressai": decoding["CompressAI"] / decoding[mode],
            }
            rows.append(row)
            table.add_row(
                subject.name,
                mode,
                str(row["bytes"]),
                f"{row['compress_ms']:.2f}",
                f"{row['decompress_ms']:.2f}",
                f"{row['compress_times_compressai']:.1f} / {row['decompress_times_compressai']:.1f}",
            )
    common.console.print(table)
    return rows


def classes(compressai: ModuleType) -> list[dict]:
    """Lists to bytes and back through the classes of compressai.ans, as autoregressive models use them."""
    model = compressai.entropy_models.GaussianConditional(None)
    model.update_scale_table(SCALES, force=True)
    tables = (model.quantized_cdf.tolist(), model.cdf_length.tolist(), model.offset.tolist())
    rng = np.random.default_rng(1)
    count, channels = int(np.prod(LATENTS)), LATENTS[0]
    rows = []
    table = common.table("The classes of compressai.ans, ns a symbol", "call", "CompressAI", "fastcodec", "times")
    for rate, highest in (("low rate", 20), ("high rate", 48)):
        indexes = rng.integers(0, highest, count)
        symbols = np.rint(rng.normal(size=count) * np.array(SCALES)[indexes]).astype(int).tolist()
        indexes = indexes.tolist()
        stream = compressai.ans.RansEncoder().encode_with_indexes(symbols, indexes, *tables)
        steps = range(0, 16 * channels, channels)

        def step_by_step(stream=stream, indexes=indexes, steps=steps):
            decoder = compressai.ans.RansDecoder()
            decoder.set_stream(stream)
            for begin in steps:
                decoder.decode_stream(indexes[begin : begin + channels], *tables)

        def encode(symbols=symbols, indexes=indexes):
            return compressai.ans.RansEncoder().encode_with_indexes(symbols, indexes, *tables)

        def decode(stream=stream, indexes=indexes):
            return compressai.ans.RansDecoder().decode_with_indexes(stream, indexes, *tables)

        with adapter.install():
            assert encode() == stream
            assert decode() == symbols
        for name, call, number in (
            ("encode_with_indexes", encode, count),
            ("decode_with_indexes", decode, count),
            ("decode_stream, 192 a call", step_by_step, len(steps) * channels),
        ):
            taken = medians({mode: call for mode in ("CompressAI", "compatible")})
            row = {
                "call": f"{name}, {rate}",
                "compressai_ns": 1e9 * taken["CompressAI"] / number,
                "fastcodec_ns": 1e9 * taken["compatible"] / number,
                "times_compressai": taken["CompressAI"] / taken["compatible"],
            }
            rows.append(row)
            figures = (f"{row[key]:.1f}" for key in ("compressai_ns", "fastcodec_ns", "times_compressai"))
            table.add_row(f"{name}, {rate}", *figures)
    common.console.print(table)
    return rows


def run() -> dict:
    """All figures of this benchmark."""
    compressai = rivals.load()
    low_rate = gaussian(compressai, "latents, low rate", 1, (0, 20))
    hyper = factorised(compressai, "hyper latents", (192, 8, 12))
    subjects = [
        together("an image, low rate", low_rate, hyper),
        low_rate,
        gaussian(compressai, "latents, high rate", 1, (0, 48)),
        gaussian(compressai, "latents of 8 images", 8, (0, 32)),
        hyper,
        factorised(compressai, "factorised latents", (192, 32, 48)),
        factorised(compressai, "the same, M = 320", (320, 32, 48)),
    ]
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        return {"entropy_models": entropy_models(subjects), "classes": classes(compressai)}
    finally:
        torch.set_num_threads(threads)
