"""The suite "rans": what the entropy coder's kernels reach when the GPU is full, one image's latency, and peers.

What is timed is checked in the same run: payloads against the CPU coder's bytes, symbols and values against the input.
"""

from __future__ import annotations

import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fastcodec.codec import Preset
from fastcodec.entropy.fixed_point import MEAN_BITS
from fastcodec.entropy.gaussian import COUNT, SCALES, gaussian_tables
from fastcodec.rans import Decoder, Latents, MixturePass, Pass, TableSet, available_isas, encode, quantise_mixtures

from .. import coder
from . import peers
from ._subject import PRESETS, same
from ._timing import Machine, MismatchError, wall_times
from .measure import Suite

LANES = 32
STREAMS, MIXTURE_STREAMS = 64, 32  # of a tile a multiprocessor: two full loads of warps
WIDTH = 64  # of a tile, in latents
KERNELS = "fastcodec_rans_"  # what the names of the coder's kernels begin with

# How often the swift model uses each table index at quality 60, anchors and non-anchors of eight Kodak images, of
# 10,000. It is 0.51 bits a pixel there.
# fmt: off
SWIFT = (
    3568, 272, 281, 291, 302, 314, 320, 326, 324, 319, 310, 301, 289, 274, 259, 243, 225, 207, 190, 171, 152, 137, 122,
    107, 94, 83, 73, 62, 54, 46, 39, 34, 29, 25, 22, 19, 17, 15, 13, 11, 10, 8, 7, 5, 4, 4, 3, 3, 3, 3, 4, 3, 2, 1, 1,
)
# fmt: on
SWIFT_NAME = "swift at quality 60"
REFERENCE = "1..48"  # the mix that peers get
MIXES: dict[str, tuple[int, ...]] = {REFERENCE: coder.MIXES[REFERENCE], SWIFT_NAME: SWIFT, **coder.MIXES}
# Of mixtures: the range of the sigmas, and how far from 0 the means are, for what a trained network gives and for any.
MIXTURES = {"sigmas 0.11..2": (0.11, 2.0, 2.0), "sigmas 0.11..64": (0.11, 64.0, 20.0)}
COMPONENTS = 3


@dataclass(frozen=True)
class Sizes:
    """How much is coded and how often."""

    symbols: int = 1 << 28
    checked_symbols: int = 1 << 24  # also coded by the CPU, and compared
    peer_symbols: int = 1 << 26
    repeats: int = 7
    lanes: tuple[int, ...] = (1, 4, 8, 16, 32)
    streams: tuple[int, ...] = (1, 2, 4, 8, 16)
    image: tuple[int, int] = (32, 48)  # latents of a Kodak image


@dataclass(frozen=True)
class Setup:
    """What all parts share. copy: bytes a second that a copy within the device's memory reads and writes."""

    machine: Machine
    sizes: Sizes
    copy: float

    def shape(self, symbols: int) -> tuple[int, int, int]:
        """Tiles, positions and channels of about so many symbols, a tile a multiprocessor, as memory allows."""
        tiles = self.machine.multiprocessors
        most = min(symbols, self.machine.most_symbols())
        return tiles, max(1, most // (tiles * coder.CHANNELS * LANES)) * LANES, coder.CHANNELS

    def kernels(self, make: Callable[[], Callable[[], object]], name: str = "") -> float:
        """Median seconds of the coder's kernels whose names begin with `name`, of what `make` returns, after one to
        warm up: decoding changes its decoder, so each run gets another."""
        times = []
        for _ in range(self.sizes.repeats + 1):
            found = self.machine.kernels(make())
            times.append(sum(seconds for kernel, seconds in found.items() if kernel.startswith(KERNELS + name)))
        return float(np.median(times[1:]))

    def wall(self, call: Callable[[], object]) -> float:
        """Median seconds of a call until the GPU is done, after one to warm up."""
        return float(np.median(wall_times(self.machine, call, self.sizes.repeats + 1)[1:]))


# --- what is coded ----------------------------------------------------------------------------------------------------


@cache
def dense_tables() -> TableSet:
    """The Gaussian tables without the one that is not coded, so that each index is one less."""
    tables = gaussian_tables()
    return TableSet([(tables.first_symbol(i), tables.frequencies(i)) for i in range(1, COUNT)])


@dataclass
class Batch:
    """Symbols and indexes, [tiles, positions, channels] on the machine's device, and their tables."""

    symbols: Tensor
    indexes: Tensor
    tables: TableSet

    @property
    def coded(self) -> int:
        """Symbols that take part in a step."""
        return int(torch.count_nonzero(self.indexes)) if self.tables.skip else self.indexes.numel()

    def tiles(self, most: int | None = None, device: str | None = None) -> list[list[Pass]]:
        """A pass a tile, on its device or another."""
        pairs = zip(self.symbols[:most], self.indexes[:most], strict=True)
        return [[Pass(s.to(device or s.device), i.to(device or i.device), self.tables)] for s, i in pairs]


def draw(device: torch.device, shape: tuple[int, int, int], mix: str, dense: bool = False, seed: int = 0) -> Batch:
    """Indexes of a mix, each symbol from the Gaussian of its index, tile by tile: so less memory is needed."""
    counts, generator = MIXES[mix], torch.Generator(device).manual_seed(seed)
    scales = torch.tensor(SCALES, dtype=torch.float32, device=device)
    edges = torch.tensor(np.cumsum(counts)[:-1] / np.sum(counts), dtype=torch.float32, device=device)
    symbols = torch.empty(shape, dtype=torch.int16, device=device)
    indexes = torch.empty(shape, dtype=torch.uint8, device=device)
    for tile in range(shape[0]):
        if len(counts) == 2:  # all indexes of a range alike; else counts of each
            drawn = torch.randint(counts[0], counts[1], shape[1:], generator=generator, device=device)
        else:
            drawn = torch.bucketize(torch.rand(shape[1:], generator=generator, device=device), edges)
        noise = torch.randn(shape[1:], generator=generator, device=device)
        symbols[tile] = (noise * scales[drawn]).round() * (drawn != 0)
        indexes[tile] = drawn - int(dense)
    return Batch(symbols, indexes, dense_tables() if dense else gaussian_tables())


def draw_mixtures(device: torch.device, shape: tuple[int, int, int], name: str) -> list[MixturePass]:
    """A pass for each tile, symbols drawn from their mixtures."""
    (least, greatest, far), generator = MIXTURES[name], torch.Generator(device).manual_seed(0)

    def uniform(*planes: int) -> Tensor:
        return torch.rand((*planes, *shape[1:]), generator=generator, device=device)

    passes = []
    for _ in range(shape[0]):
        weights = uniform(COMPONENTS).neg().log1p().neg()  # normalised, they are Dirichlet(1)
        means, sigmas = (2 * uniform(COMPONENTS) - 1) * far, least * (greatest / least) ** uniform(COMPONENTS)
        shares = weights / weights.sum(0)
        pick = (uniform() > shares.cumsum(0)[:-1]).sum(0)[None]
        noise = torch.randn(shape[1:], generator=generator, device=device)
        symbols = (means.gather(0, pick)[0] + noise * sigmas.gather(0, pick)[0]).round()
        passes.append(MixturePass(symbols.to(torch.int16), *quantise_mixtures(shares, means, sigmas)))
    return passes


def equal_payloads(one: list[bytes], other: list[bytes], what: str) -> None:
    """Raises MismatchError unless they are the same."""
    if one != other:
        raise MismatchError(f"{what}: not what the CPU coder writes")


# --- a full GPU -------------------------------------------------------------------------------------------------------


def full_gpu(it: Setup, mix: str, dense: bool) -> dict[str, Any]:
    """Every kernel and the calls through Python, on tiles and streams that load all multiprocessors evenly."""
    batch = draw(it.machine.device, it.shape(it.sizes.symbols), mix, dense)
    count, passes = batch.symbols.numel(), batch.tiles()
    code = partial(encode, lanes=LANES, streams=STREAMS)
    payloads = code(passes)
    size, whole = sum(map(len, payloads)), partial(code, passes)
    few = max(1, min(len(payloads), it.sizes.checked_symbols // batch.symbols[0].numel()))
    compared = batch.tiles(few, "cpu")
    equal_payloads(payloads[:few], code(compared), "payloads")

    def speed(seconds: float, byte_count: int) -> dict[str, float]:
        """Of a kernel, and its place under the roof of memory."""
        figures = {"gsymbols": count / seconds / 1e9, "seconds": seconds, "bytes_per_symbol": byte_count / count}
        return {**figures, "gb_s": byte_count / seconds / 1e9, "of_copy_bandwidth": byte_count / seconds / it.copy}

    row: dict[str, Any] = {"bits_per_symbol": 8 * size / count, "coded": batch.coded / count, "symbols": count}
    row["encode"] = speed(it.kernels(lambda: whole, "encode"), 3 * count + size)
    row["encode"]["gsymbols_of_all_kernels"] = count / it.kernels(lambda: whole) / 1e9
    row["decode"] = speed(decode_seconds(it, batch, payloads), 3 * count + size)  # an index is read, a symbol written
    # An index and a mean are read, a value and a latent are written; between the two kernels, a symbol both ways.
    row["reconstruct"] = speed(reconstruct_seconds(it, batch, payloads), (1 + 2 + 4 + 2 + 2 * 2) * count + size)

    def decoded() -> None:
        decoder = Decoder(payloads, device=it.machine.device)
        decoder.decode(list(batch.indexes), batch.tables)
        decoder.finish()

    for name, call in (("encode", whole), ("decode", decoded)):
        seconds = it.wall(call)
        row.setdefault("calls", {}).update(
            {f"{name}_gsymbols": count / seconds / 1e9, f"{name}_payload_gb_s": size / seconds / 1e9}
        )
    row["cpu"] = cpu_speeds(compared, payloads[:few])
    row["times_a_cpu_core"] = 1e3 * row["decode"]["gsymbols"] / max(isa["decode"] for isa in row["cpu"]["one_thread"])
    return row


def decode_seconds(it: Setup, batch: Batch, payloads: list[bytes]) -> float:
    """Of decoding to int16 symbols."""
    outputs = list(torch.full_like(batch.symbols, -99))

    def make() -> Callable[[], object]:
        decoder = Decoder(payloads, device=it.machine.device)
        return partial(decoder.decode, list(batch.indexes), batch.tables, out=outputs)

    seconds = it.kernels(make)
    same(torch.stack(outputs), batch.symbols, "decoded symbols")
    return seconds


def reconstruct_seconds(it: Setup, batch: Batch, payloads: list[bytes]) -> float:
    """Of decoding with all that `reconstruct` writes: int32 values, and bfloat16 latents at their places."""
    (tiles, positions, channels), device = batch.symbols.shape, it.machine.device
    means = torch.randint(-3000, 3000, batch.symbols.shape, dtype=torch.int16, device=device)
    gain = torch.rand(channels, device=device)
    values = list(torch.full(batch.symbols.shape, -99, dtype=torch.int32, device=device))
    rows = 2 * positions // WIDTH
    latents = torch.zeros(tiles, rows, WIDTH, channels, dtype=torch.bfloat16, device=device)

    def make() -> Callable[[], object]:
        decoder = Decoder(payloads, device=device)
        into = Latents(list(latents), gain)
        arguments = list(batch.indexes), batch.tables, list(means), MEAN_BITS
        return partial(decoder.reconstruct, *arguments, latents=into, out=values)

    seconds = it.kernels(make)
    for tile in range(tiles):
        same(values[tile], (batch.symbols[tile].int() << MEAN_BITS) + means[tile], "values")
    odd = ((torch.arange(rows)[:, None] + torch.arange(WIDTH)) % 2 == 1).to(device)
    same(latents[0][~odd], (values[0].float() * gain).bfloat16(), "latents")
    same(latents[0][odd].count_nonzero(), torch.tensor(0), "latents between")
    return seconds


def cpu_speeds(tiles: list[list[Pass]], payloads: list[bytes]) -> dict[str, Any]:
    """The CPU coder on the same data, Msymbol/s: each instruction set on one thread and one tile, and all threads."""
    [item], threads, rows = tiles[0], torch.get_num_threads(), []
    torch.set_num_threads(1)
    try:
        for isa in available_isas():
            encoding = coder.seconds(
                partial(encode, [[item]], threads=1, isa=isa, lanes=LANES, streams=STREAMS), repeats=3
            )
            decoding, count = coder.decode_seconds(payloads[0], item, isa, 3), item.symbols.numel() / 1e6
            rows.append({"isa": isa, "encode": count / encoding, "decode": count / decoding})
    finally:
        torch.set_num_threads(threads)

    def decoded() -> None:
        decoder = Decoder(payloads)
        decoder.decode([item.indexes for [item] in tiles], item.tables)
        decoder.finish()

    def speed(call: Callable[[], object]) -> float:
        """Of the fastest of three calls by the clock."""
        times = []
        for _ in range(3):
            start = time.perf_counter()
            call()
            times.append(time.perf_counter() - start)
        return sum(item.symbols.numel() for [item] in tiles) / min(times) / 1e6

    encoding = speed(partial(encode, tiles, lanes=LANES, streams=STREAMS))
    return {"one_thread": rows, "threads": threads, "all_threads": {"encode": encoding, "decode": speed(decoded)}}


def mixtures(it: Setup, name: str) -> dict[str, Any]:
    """Mixtures of three on a full GPU, kernels alone; and a core of the CPU on one of the tiles."""
    passes = draw_mixtures(it.machine.device, it.shape(it.sizes.peer_symbols), name)
    whole = partial(encode, [[item] for item in passes], lanes=LANES, streams=MIXTURE_STREAMS)
    payloads = whole()
    first = MixturePass(*(part.cpu() for part in passes[0]))
    alone = encode([[first]], lanes=LANES, streams=MIXTURE_STREAMS)
    equal_payloads(payloads[:1], alone, "payloads of mixtures")
    outputs = [torch.full_like(item.symbols, -99) for item in passes]

    def make() -> Callable[[], object]:
        decoder = Decoder(payloads, device=it.machine.device)
        return partial(decoder.decode_mixtures, [item[1:] for item in passes], out=outputs)

    def by_cpu() -> None:
        reader = Decoder(alone, threads=1)
        reader.decode_mixtures([first[1:]])
        reader.finish()

    decoding, count = it.kernels(make), len(passes) * first.symbols.numel()
    for item, found in zip(passes, outputs, strict=True):
        same(found, item.symbols, "symbols of mixtures")
    return {
        "components": COMPONENTS,
        "symbols": count,
        "bits_per_symbol": 8 * sum(map(len, payloads)) / count,
        "encode_msymbols": count / it.kernels(lambda: whole, "encode") / 1e6,
        "encode_msymbols_of_all_kernels": count / it.kernels(lambda: whole) / 1e6,
        "decode_msymbols": count / decoding / 1e6,
        "cpu_decode_msymbols": first.symbols.numel() / coder.seconds(by_cpu, 3) / 1e6,
    }


# --- one image --------------------------------------------------------------------------------------------------------


def image(it: Setup, name: str) -> list[Batch]:
    """A Kodak image's passes: all 294,912 symbols of 192 channels coded, or the swift model's 256 channels."""
    positions, device = it.sizes.image[0] * it.sizes.image[1], it.machine.device
    if name == SWIFT_NAME:
        return [draw(device, (1, positions // 2, 256), name, seed=seed) for seed in (1, 2)]
    return [draw(device, (1, positions, 192), name, seed=1)]


def latency(it: Setup, name: str) -> dict[str, Any]:
    """Time to decode one image against N and S, each with its cost in bytes; and what the presets choose."""
    batches = image(it, name)
    on_cpu = [[batch.tiles(1, "cpu")[0][0] for batch in batches]]
    chosen: dict[Preset, tuple[int, int]] = {p: Decoder(encode(on_cpu, preset=p)).shape(0) for p in PRESETS}
    shapes = {*chosen.values(), *((lanes, streams) for lanes in it.sizes.lanes for streams in it.sizes.streams)}
    smallest, count = len(encode(on_cpu, preset="size")[0]), sum(batch.symbols.numel() for batch in batches)
    rows = []
    for lanes, streams in sorted(shapes):
        [payload] = encode(on_cpu, lanes=lanes, streams=streams)
        kernels, call = image_seconds(it, batches, payload)
        rows.append(
            {
                "lanes": lanes,
                "streams": streams,
                "presets": [preset for preset, shape in chosen.items() if shape == (lanes, streams)],
                "bytes": len(payload),
                "bytes_beside_size_preset": len(payload) - smallest,
                "kernel_microseconds": 1e6 * kernels,
                "call_microseconds": 1e6 * call,
            }
        )
    coded = sum(batch.coded for batch in batches) / count
    return {"symbols": count, "coded": coded, "size_preset_bytes": smallest, "shapes": rows}


def image_seconds(it: Setup, batches: list[Batch], payload: bytes) -> tuple[float, float]:
    """Of an image's kernels, and of decoding it through Python. Symbols are checked."""
    outputs = [torch.empty_like(batch.symbols[0]) for batch in batches]

    def decode(decoder: Decoder) -> None:
        for batch, out in zip(batches, outputs, strict=True):
            decoder.decode([batch.indexes[0]], batch.tables, out=[out])

    def whole() -> None:
        decoder = Decoder([payload], device=it.machine.device)
        decode(decoder)
        decoder.finish()

    kernels = it.kernels(lambda: partial(decode, Decoder([payload], device=it.machine.device)))
    for batch, out in zip(batches, outputs, strict=True):
        same(out, batch.symbols[0], "decoded symbols")
    return kernels, it.wall(whole)


# --- peers ------------------------------------------------------------------------------------------------------------


def beside_peers(it: Setup) -> dict[str, Any]:
    """Other entropy coders for GPUs on as many symbols, tensors on the GPU to tensors on the GPU, beside ours."""
    with it.machine.side_stream():
        batch = draw(it.machine.device, it.shape(it.sizes.peer_symbols), REFERENCE, dense=True)
        whole, count = partial(encode, batch.tiles(), lanes=LANES, streams=STREAMS), batch.symbols.numel()
        payloads = whole()
        ours = {"encode": it.kernels(lambda: whole), "decode": decode_seconds(it, batch, payloads)}
        speeds = {f"{way}_gsymbols": count / seconds / 1e9 for way, seconds in ours.items()}
        found: dict[str, Any] = {"fastcodec": {"bits_per_symbol": 8 * sum(map(len, payloads)) / count, **speeds}}
        for name, make in peers.PEERS.items():
            row = found[name] = dict[str, Any]()
            try:
                peer = make(it.machine, peers.Coded(batch.symbols, batch.indexes, batch.tables))
                row |= {"coded": peer.coded, "bits_per_symbol": 8 * peer.byte_count / count}
                for way, call in (("encode", peer.encode), ("decode", peer.decode)):
                    seconds = peers.seconds(it.machine, call, it.sizes.repeats)
                    row |= {f"{way}_gsymbols": count / seconds / 1e9, f"{way}_ours_over_it": seconds / ours[way]}
            except peers.AbsentError as absent:
                row["absent"] = str(absent)
            except Exception:
                row["failed"] = traceback.format_exc()
        it.machine.synchronize()
    return found


def card(it: Setup) -> dict[str, Any]:
    """The machine and its memory."""
    peak = it.machine.nvml.peak_bandwidth()
    return {
        "name": it.machine.name,
        "multiprocessors": it.machine.multiprocessors,
        "capability": it.machine.capability / 10,
        "cuda": torch.version.cuda,
        "copy_gb_s": it.copy / 1e9,
        "peak_gb_s": None if peak is None else peak / 1e9,
        "nvml": it.machine.nvml.missing or "available",
    }


def parts(folder: Path, setup: Setup | None = None) -> Suite:
    """All of them, what matters most first: time may end."""
    if setup is None:
        machine = Machine()
        setup = Setup(machine, Sizes(), machine.copy_bandwidth())
    suite = Suite()
    suite.add("card", card, setup)
    for number, (mix, counts) in enumerate(MIXES.items()):
        if number == 2:
            for name in (REFERENCE, SWIFT_NAME):
                suite.add(f"one image, {name}", latency, setup, name, first=8.0)
            for name in MIXTURES:
                suite.add(f"mixtures, {name}", mixtures, setup, name, first=5.0)
            suite.add("peers", beside_peers, setup, first=10.0)
        suite.add(f"full GPU, {mix}, skip", full_gpu, setup, mix, False, first=20.0)
        if len(counts) == 2 and counts[0] > 0:  # what skips has no dense kernels
            suite.add(f"full GPU, {mix}, dense", full_gpu, setup, mix, True, first=20.0)
    return suite
