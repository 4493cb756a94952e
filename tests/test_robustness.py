"""Hostile files: 20,000 mutated containers and 500 mutated whole files raise fastcodec's own errors or decode, within
bounds of time and memory. The coder's own fuzzing is test_fuzz_rans.py."""

import contextlib
import random
import resource
import struct
import sys
import time
import zlib
from collections import Counter
from collections.abc import Iterator

import numpy as np
import pytest
import torch
from PIL import Image

from fastcodec import container, lossless
from fastcodec.codec import Codec
from fastcodec.container import Header, Limits, TileData
from fastcodec.engines import cpu
from fastcodec.entropy import rdoq as rounding
from fastcodec.errors import CorruptStreamError, FastcodecError, LimitError, NotAFicFileError, UnsupportedVersionError
from fastcodec.geometry import Grid
from fastcodec.images import Picture, to_picture
from fastcodec.models.swift import release as released

CONTAINERS = 20_000
FILES = 500
SECONDS_A_FILE = 10.0  # generous: a machine under load, and hundreds of times what such a file takes
MEMORY = 1 << 30  # of address space beyond what the process has


@contextlib.contextmanager
def memory_cap(room: int = MEMORY) -> Iterator[None]:
    """A MemoryError for whoever asks for more than `room` bytes in all, where the system counts them."""
    if not sys.platform.startswith("linux"):
        yield
        return
    with open("/proc/self/statm") as file:
        used = int(file.read().split()[0]) * resource.getpagesize()
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (used + room, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))


@pytest.fixture(scope="module")
def samples(codec, photographs) -> list[bytes]:
    """Small files of every kind: colours, alpha, metadata, two tiles, several lanes."""
    image = photographs["coffee"]
    alpha = (np.indices((40, 48)).sum(0) * 2).astype(np.uint8)
    pictures = [
        (to_picture(image[:31, :17, 1]), 80, "size"),
        (Picture(image[100:140, 100:148], alpha, b"a profile" * 9, b"II*\0" + bytes(30)), 60, "size"),
        (to_picture(image[200:264, 300:364]), 95, "latency"),
        (to_picture(np.tile(image[150:166], (1, 3, 1))[:, :1300]), 5, "size"),
        (to_picture(image[:1, :1]), 50, "size"),
    ]
    files = [codec.encode(picture, quality, preset) for picture, quality, preset in pictures]
    # Further metadata.
    xmp = b"<x:xmpmeta/>" * 9
    files.append(codec.encode(Picture(image[:33, :31].copy(), exif=b"II*\0" + bytes(30), xmp=xmp)))
    # Lossless tiles: one alone, gray with alpha; and one beside a network tile.
    files.append(codec.encode(Picture(image[:31, :33, 0].copy(), alpha[:31, :33].copy()), lossless=True))
    flat = np.full((16, 640, 3), 200, np.uint8)
    flat[4:12, ::7] = 30
    files.append(codec.encode(np.concatenate([np.tile(image[150:166], (1, 2, 1))[:, :1024], flat], axis=1), 40))
    assert [sum(container.read(data).lossless) for data in files[-2:]] == [1, 1]
    return files


def repaired(data: bytes) -> bytes:
    """The same bytes with CRCs that fit, as far as the structure can be followed: so a mutation reaches the code that
    the CRCs protect."""
    out = bytearray(data)
    reader = container._Reader(memoryview(out), 13)
    try:
        width, height = reader.varint(""), reader.varint("")
        metadata = sum(reader.varint("") for flag in (0b1000, 0b10000) if out[5] & flag)
        for _ in range(reader.take(1, "")[0] if out[4] == 3 and out[5] & 0b1000_0000 else 0):
            reader.take(1, "")
            metadata += reader.varint("")
        tiles = Grid(height, width).tile_count
        if tiles * 5 > len(out):
            return data
        alpha = bool(out[5] & 0b100)
        halved = int(out[4] >= 2 and bool(out[5] & 0b100_0000))
        lengths = [(reader.varint("") >> halved) + (reader.varint("") if alpha else 0) for _ in range(tiles)]
        reader.take(metadata, "")
        crc = zlib.crc32(out[: reader.at])
        begin = reader.at
        reader.take(4, "")
        struct.pack_into("<I", out, begin, crc)
        for number, length in enumerate(lengths):
            begin = reader.at
            reader.take(length + 4, "")
            seed = zlib.crc32(struct.pack("<I", number), crc)
            struct.pack_into("<I", out, begin + length, zlib.crc32(out[begin : begin + length], seed))
    except (CorruptStreamError, IndexError):
        pass
    return bytes(out)


def mutated(data: bytes, others: list[bytes], generator: random.Random, begin: int = 0) -> bytes:
    """One to three mutations at or after `begin`; the header is hit as often as all the rest."""
    out = bytearray(data)
    for _ in range(generator.choice([1, 1, 1, 2, 3])):
        last = max(begin + 1, min(len(out), begin + 40) if generator.random() < 0.5 else len(out))
        at = min(generator.randrange(begin, last), max(0, len(out) - 1))
        kind = generator.randrange(9)
        if kind <= 2 and out:
            out[at] ^= 1 << generator.randrange(8)
        elif kind == 3 and out:
            out[at] = generator.choice([0, 1, 2, 0x7F, 0x80, 0xFE, 0xFF])
        elif kind == 4:
            del out[at:]
        elif kind == 5:
            out += generator.randbytes(generator.choice([1, 2, 4, 50]))
        elif kind == 6:  # a varint of any length, often enormous
            forged = container._varint(generator.getrandbits(generator.choice([3, 7, 14, 20, 28, 35, 48])))
            out[at : at + generator.choice([0, 1, len(forged)])] = forged
        elif kind == 7:
            del out[at : at + generator.choice([1, 2, 5, 30])]
        else:
            other = generator.choice(others)
            cut = generator.randrange(len(other))
            out[at : at + generator.choice([0, 10, len(out)])] = other[
                cut : cut + generator.choice([1, 10, len(other)])
            ]
    return bytes(out)


def read_last_tile(data: bytes) -> TileData:
    file = container.read(data)
    return file.tile(len(file.lengths) - 1)


def test_the_repair_makes_mutations_pass_the_crcs(samples):
    for data in samples:
        assert repaired(data) == data
        damaged = bytearray(data)
        damaged[-6] ^= 1
        for broken in (damaged, data[:12] + bytes([data[12] ^ 4]) + data[13:]):
            with pytest.raises(CorruptStreamError):
                read_last_tile(broken)
            read_last_tile(repaired(bytes(broken)))


@pytest.mark.timeout(120)
def test_mutated_containers(samples):
    generator = random.Random(2021)
    outcomes: Counter[str] = Counter()
    limits = Limits(max_pixels=1 << 26, max_metadata=1 << 16)
    slowest = 0.0
    with memory_cap():
        for _ in range(CONTAINERS):
            data = mutated(generator.choice(samples), samples, generator)
            if generator.random() < 0.7:
                data = repaired(data)
            start = time.perf_counter()
            try:
                file = container.read(data, limits)
                assert file.header.width * file.header.height <= limits.max_pixels
                tiles = [file.tile(i) for i in range(file.header.grid.tile_count)]
                assert sum(len(t.payload) + len(t.alpha) + 4 for t in tiles) < len(data)
                outcomes["sound"] += 1
            except FastcodecError as error:
                outcomes[type(error).__name__] += 1
            slowest = max(slowest, time.perf_counter() - start)
    assert slowest < SECONDS_A_FILE
    assert sum(outcomes.values()) == CONTAINERS
    # Every way out was taken, often: the mutations are neither all fatal nor all harmless.
    for kind in (NotAFicFileError, UnsupportedVersionError, LimitError, CorruptStreamError):
        assert outcomes[kind.__name__] > 20, outcomes
    assert outcomes["sound"] > 1000, outcomes


def result_of(call, data: bytes):
    try:
        return call(data)
    except FastcodecError as error:
        return type(error)


@pytest.mark.slow
@pytest.mark.timeout(280)
def test_mutated_files_decode_or_raise_a_typed_error(codec, samples):
    """Half of the mutations hit the tiles alone, and all CRCs fit: the coder and the PNG reader see hostile bytes."""
    generator = random.Random(360)
    careful = Codec(codec.model, Limits(max_pixels=1 << 21, max_metadata=1 << 16))
    outcomes: Counter[str] = Counter()
    slowest = 0.0
    with memory_cap():
        for i in range(FILES):
            data = generator.choice(samples)
            tiles_only = i % 2 == 0
            begin = container.read(data).offsets[0] if tiles_only else 0
            hostile = repaired(mutated(data, samples, generator, begin))
            start = time.perf_counter()
            decoded = result_of(lambda d: careful.decode(d, out="numpy"), hostile)
            slowest = max(slowest, time.perf_counter() - start)
            if isinstance(decoded, type):
                outcomes[decoded.__name__] += 1
            else:
                info = container.info(hostile, careful.limits)
                assert decoded.shape[:2] == (info.height, info.width)
                outcomes["decoded"] += 1
            # What `verify` says, `decode` does.
            verified = result_of(careful.verify, hostile)
            assert verified == (decoded if isinstance(decoded, type) else None)
    assert slowest < SECONDS_A_FILE
    assert outcomes["CorruptStreamError"] > FILES // 3, outcomes
    assert outcomes["decoded"] > 5, outcomes


@pytest.mark.timeout(120)
def test_mutated_payloads_never_pass_for_sound(codec, samples):
    """The CRC catches every changed bit. Behind it the coder's end states catch nearly all: all but changes near a
    lane's end that happen to be another symbol's stream, of about one bit in a thousand."""
    generator = random.Random(7)
    data, passed = samples[2], 0
    file = container.read(data)
    payload = bytes(file.tile(0).payload)
    begin = data.index(payload)
    for _ in range(150):
        at, bit = generator.randrange(len(payload)), 1 << generator.randrange(8)
        damaged = bytearray(data)
        damaged[begin + at] ^= bit
        with pytest.raises(CorruptStreamError, match="CRC"):
            codec.verify(damaged)
        damaged = bytearray(payload)
        damaged[at] ^= bit
        passed += result_of(codec.verify, container.write(file.header, [TileData(bytes(damaged))])) is None
    assert passed <= 3


def test_random_bytes_behind_a_sound_header(codec):
    generator = random.Random(9)
    header = Header(64, 48, 50, codec.model.identity)
    for length in (0, 1, 2, 5, 6, 20, 300, 5000):
        for _ in range(4):
            body = bytearray(generator.randbytes(length))
            if body and generator.random() < 0.7:
                body[:3] = bytes([generator.randrange(6), 1, 0])[: len(body)]  # a plausible shape
            with pytest.raises(CorruptStreamError, match="tile"):
                codec.decode(container.write(header, [TileData(bytes(body))]))


def test_a_forged_size_fails_at_its_first_tile(codec):
    """The largest image that the limits allow, from a file of a few kilobytes that says so."""
    header = Header(1 << 14, 1 << 14, 50, codec.model.identity, alpha=True)
    data = container.write(header, [TileData(b"", b"")] * header.grid.tile_count)
    assert len(data) < 2000
    start = time.perf_counter()
    with memory_cap(3 << 30), pytest.raises(CorruptStreamError, match="tile"):
        codec.decode(data)
    assert time.perf_counter() - start < SECONDS_A_FILE


def test_a_sound_stream_of_absurd_latents_decodes(codec, monkeypatch):
    """Nobody's analysis writes these, but every check passes: they must not overflow anything, and the integer model
    must still equal its reference."""
    generator = torch.Generator().manual_seed(3)

    def extremes(y: torch.Tensor, means: torch.Tensor, indexes: torch.Tensor, *_) -> torch.Tensor:
        values = torch.tensor([-(2**15), 2**15 - 1, 0, 1, -130, 4000])
        chosen = values[torch.randint(0, 6, indexes.shape, generator=generator)]
        return chosen.mul(indexes > 0).to(torch.int16)

    def hyper(y: torch.Tensor, *_) -> torch.Tensor:
        shape = (1, -(-y.shape[2] // 4), -(-y.shape[3] // 4), codec.model.config.hyper_latents)
        return torch.randint(-(2**15), 2**15, shape, generator=generator).to(torch.int16)

    monkeypatch.setattr(rounding, "symbols", extremes)
    monkeypatch.setattr(cpu.CpuEngine, "_hyper_latents", lambda self, *arguments: hyper(*arguments))
    monkeypatch.setattr(cpu.CpuEngine, "_estimate", lambda *_: 0.0)
    monkeypatch.setattr(lossless, "worth_trying", lambda *_: False)
    data = codec.encode(np.zeros((70, 90, 3), np.uint8), quality=100)
    assert codec.decode(data).size == (90, 70)
    assert codec.decode(data, precision="fast").size == (90, 70)
    latents = codec.latents(data)
    assert int(latents.abs().max()) > 2**18
    assert torch.equal(Codec(released.load("swift", None, "reference")).latents(data), latents)


def test_damaged_input_images_are_typed_errors_too(codec, samples, tmp_path):
    """What comes in at the other end: a .fic file where an image is expected, and images of absurd shapes."""
    for image in (np.zeros((3, 0), np.uint8), np.zeros((2, 2, 2, 2), np.uint8), Image.new("RGB", (0, 4))):
        with pytest.raises(FastcodecError):
            codec.encode(image)
